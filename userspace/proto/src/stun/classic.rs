//! Binding requests of RFC 3489, which have no magic cookie.
//!
//! RFC 5389 §12.2: the server "SHOULD copy the value seen in the magic cookie field in the Binding
//! Request to the magic cookie field in the Binding Response message, and insert a MAPPED-ADDRESS
//! attribute instead of an XOR-MAPPED-ADDRESS attribute". The answers are bounded as others are.

use super::behavior::Place;
use super::server::longest_answer;
use crate::Timestamp;
use crate::relay::{DropReason, Endpoint, Relay, RequestKind};
use crate::wire::attribute::{
    ChangeRequest, ChangedAddress, ErrorCode, MappedAddress, SourceAddress, UnknownAttributes,
};
use crate::wire::{
    AttributeType, Class, ClassicMessage, Code, MessageType, MessageWriter, Method, WriteError,
};

impl Relay {
    /// Answers what has no cookie, if it is a Binding request. There is nothing else that a client of
    /// RFC 3489 could want here: shared secrets came over TLS.
    pub(crate) fn classic_binding(
        &mut self,
        now: Timestamp,
        from: Endpoint,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let request = ClassicMessage::parse(payload).map_err(|_| DropReason::Unrecognized)?;
        if (request.method(), request.class()) != (Method::BINDING, Class::Request) {
            return Err(DropReason::Unrecognized);
        }
        if from.client.port() == 0 {
            return Err(DropReason::UnusableDatagram);
        }
        self.counters.requests(RequestKind::Binding).increment();
        self.admit_stranger(now, from)?;
        let place = self.place(from);
        let limit = longest_answer(payload.len(), from.client.ip(), false);
        let unknown = request.unknown_required(|kind| is_known(kind, place, &request));
        let change = match request.get::<ChangeRequest>() {
            Ok(change) if unknown.is_empty() => change.unwrap_or_default(),
            Ok(_) => {
                let code = Code::UNKNOWN_ATTRIBUTE;
                return self.refuse_classic(&request, from, limit, code, &unknown);
            }
            Err(_) => {
                let code = Code::BAD_REQUEST;
                return self.refuse_classic(&request, from, limit, code, &unknown);
            }
        };
        let reply = self.reply(now, from, place, change, limit, 0);
        let mapped = MappedAddress(from.client);
        let changed = reply.told.map(|told| ChangedAddress(told.other));
        let source = reply.told.map(|told| SourceAddress(told.origin));
        let mut sent = Err(DropReason::AnswerTooLong);
        for extras in (0..=if reply.told.is_some() { 2 } else { 0 }).rev() {
            let attributes = |writer: &mut MessageWriter<'_>| {
                writer.put(&mapped)?;
                writer.put_some(changed.as_ref().filter(|_| extras > 0))?;
                writer.put_some(source.as_ref().filter(|_| extras > 1))?;
                Ok(())
            };
            sent = self.answer_classic(&request, reply.to, reply.limit, Class::Success, attributes);
            if sent != Err(DropReason::AnswerTooLong) {
                break;
            }
        }
        sent?;
        self.counters.successes(RequestKind::Binding).increment();
        Ok(())
    }

    /// RFC 3489 §11.2.9 and §11.2.10: values are whole words long, so no reason phrase is sent, and
    /// "if the number of unknown attributes is an odd number, one of the attributes MUST be repeated".
    fn refuse_classic(
        &mut self,
        request: &ClassicMessage<'_>,
        from: Endpoint,
        limit: usize,
        code: Code,
        unknown: &UnknownAttributes,
    ) -> Result<(), DropReason> {
        let mut kinds: Vec<u8> = unknown
            .iter()
            .flat_map(|kind| kind.0.to_be_bytes())
            .collect();
        if !kinds.len().is_multiple_of(4) {
            kinds.extend_from_within(..2);
        }
        self.answer_classic(request, from, limit, Class::Error, |writer| {
            writer.put(&ErrorCode { code, reason: "" })?;
            if !kinds.is_empty() {
                writer.put_raw(AttributeType::UNKNOWN_ATTRIBUTES, &kinds)?;
            }
            Ok(())
        })?;
        self.counters.count_error(code.number());
        Ok(())
    }

    fn answer_classic(
        &mut self,
        request: &ClassicMessage<'_>,
        to: Endpoint,
        limit: usize,
        class: Class,
        attributes: impl FnOnce(&mut MessageWriter<'_>) -> Result<(), WriteError>,
    ) -> Result<(), DropReason> {
        let message_type = MessageType::new(Method::BINDING, class);
        self.queue(to, limit, |buffer| {
            let mut writer = MessageWriter::classic(buffer, message_type, request.id())?;
            attributes(&mut writer)?;
            Ok(writer.len())
        })
    }
}

/// Credentials are not asked for; CHANGE-REQUEST is known as to everybody else, and RESPONSE-ADDRESS,
/// which would send the answer to anybody, never.
fn is_known(kind: AttributeType, place: Option<Place>, request: &ClassicMessage<'_>) -> bool {
    match kind {
        AttributeType::USERNAME => true,
        AttributeType::CHANGE_REQUEST => {
            let change = request.get::<ChangeRequest>();
            place.is_some() || matches!(change, Ok(Some(change)) if change.is_nothing())
        }
        _ => false,
    }
}
