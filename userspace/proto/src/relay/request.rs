//! A request, and how it is answered.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::counters::{DropReason, RequestKind};
use super::outbox::MAX_ANSWER_BYTES;
use super::{Relay, User};
use crate::Timestamp;
use crate::auth::{
    Authenticated, Gate, Integrity, STRANGER_BYTES, STRANGER_FACTOR, may_offer_nothing, offer,
};
use crate::machine::{Datagram, ListenerId, Prefix, Socket, TrafficClass, Transmit};
use crate::nonce::Offer;
use crate::slots::Identity;
use crate::turn::server::Flow;
use crate::wire::attribute::{
    AlternateServer, ErrorCode, Nonce, Realm, Software, UnknownAttributes,
};
use crate::wire::{
    Class, Code, Message, MessageType, MessageWriter, Method, TransactionId, WriteError,
};

/// A request and where it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) kind: RequestKind,
    pub(crate) message: Message<'a>,
    pub(crate) from: Endpoint,
}

/// Where a request came from and its answer goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    pub(crate) listener: ListenerId,
    /// The server's address the client sent to.
    pub(crate) server: IpAddr,
    pub(crate) client: SocketAddr,
}

impl Endpoint {
    /// Where the client of an allocation is.
    pub(crate) fn of(flow: &Flow) -> Self {
        let (server, client) = (flow.server(), flow.client());
        Self {
            listener: ListenerId(flow.listener),
            server,
            client,
        }
    }

    /// Where a datagram came from.
    pub(crate) fn sender(listener: ListenerId, datagram: &Datagram<'_>) -> Self {
        Self {
            listener,
            server: datagram.local,
            client: datagram.remote,
        }
    }

    pub(crate) fn flow(&self) -> Flow {
        Flow::new(self.listener.0, self.server, self.client)
    }
}

/// Everything an answer is made of but its attributes.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) kind: RequestKind,
    pub(crate) to: Endpoint,
    pub(crate) transaction: TransactionId,
    /// The request had a FINGERPRINT, so the answer gets one.
    pub(crate) fingerprint: bool,
    /// Who the answer is signed for.
    pub(crate) signed: Option<(Arc<User>, Integrity)>,
    /// Longest the answer may be.
    pub(crate) limit: usize,
}

/// Why a request is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// An error response with this code.
    Code(Code),
    /// 420, and these are the unknown attributes.
    Unknown(UnknownAttributes),
    /// 300, and this is the server to try.
    Alternate(SocketAddr),
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self::Code(code)
    }
}

impl Request<'_> {
    /// The envelope of an answer to a stranger.
    pub(crate) fn stranger_envelope(&self) -> Envelope {
        Envelope {
            kind: self.kind,
            to: self.from,
            transaction: self.message.transaction_id(),
            fingerprint: self.message.has_fingerprint(),
            signed: None,
            limit: (STRANGER_FACTOR * self.message.as_bytes().len()).min(STRANGER_BYTES),
        }
    }

    /// The envelope of an answer to a known user.
    pub(crate) fn envelope(&self, sender: &Authenticated) -> Envelope {
        Envelope {
            signed: Some((Arc::clone(&sender.user), sender.integrity)),
            limit: MAX_ANSWER_BYTES,
            ..self.stranger_envelope()
        }
    }
}

impl RequestKind {
    fn method(self) -> Method {
        match self {
            Self::Binding => Method::BINDING,
            Self::Allocate => Method::ALLOCATE,
            Self::Refresh => Method::REFRESH,
            Self::CreatePermission => Method::CREATE_PERMISSION,
            Self::ChannelBind => Method::CHANNEL_BIND,
        }
    }
}

impl Relay {
    /// The sender of a request; `None` where it was refused and answered.
    pub(crate) fn authenticate(
        &mut self,
        now: Timestamp,
        request: &Request<'_>,
    ) -> Option<Authenticated> {
        // Who made the allocation of this 5-tuple is the first to be tried, if the rules were not changed
        // since they were last applied to it.
        let version = self.policy_version;
        let known = self
            .allocations
            .find(&request.from.flow())
            .and_then(|id| self.allocations.get(id))
            .filter(|known| known.policy_version == version)
            .map(|known| &known.details.user);
        let gate = Gate {
            config: &self.config,
            nonces: &self.nonces,
            clock: self.clock,
            known,
        };
        let outcome = gate.check(now, &request.message, request.from.client);
        match self.judge_attempt(now, request, outcome) {
            Ok(sender) => Some(sender),
            Err(code) => {
                self.challenge(now, request, code);
                None
            }
        }
    }

    /// Who pays for an allocation that this user makes from there.
    pub(crate) fn identity_of(&self, user: &User, from: Endpoint) -> Identity {
        let listener = self.config.listeners.get(usize::from(from.listener.0));
        let port = listener.map_or(0, SocketAddr::port);
        let server = SocketAddr::new(from.server, port);
        user.identity(&self.config.realm, from.client, server)
    }

    /// Refuses a stranger. What makes the answer too long is left off: first the reason phrase, then,
    /// where that may be, the offer.
    fn challenge(&mut self, now: Timestamp, request: &Request<'_>, code: Code) {
        if !self.admits_stranger(now, request.from) {
            return;
        }
        let envelope = request.stranger_envelope();
        if code == Code::BAD_REQUEST {
            // RFC 8489 §9.2.4: "This response SHOULD NOT include a USERNAME, USERHASH, NONCE, or REALM
            // attribute."
            self.refuse(&envelope, code.into());
            return;
        }
        let config = Arc::clone(&self.config);
        let offers = [offer(&config), Offer::Nothing];
        let allowed = 1 + usize::from(may_offer_nothing(&config));
        let mut sent = Err(DropReason::AnswerTooLong);
        for offer in offers.into_iter().take(allowed) {
            let nonce = self.nonces.issue(now, request.from.client, offer);
            // RFC 8489 §9.2.4: 401 and 438 have REALM, NONCE and PASSWORD-ALGORITHMS.
            let attributes = |reason: &'static str, writer: &mut MessageWriter<'_>| {
                writer.put(&ErrorCode { code, reason })?;
                writer.put(&Realm(&config.realm))?.put(&Nonce(&nonce))?;
                writer.put_some(offer.algorithms().as_ref())?;
                Ok(())
            };
            sent = self.try_answer_error(&envelope, code, attributes);
            if sent != Err(DropReason::AnswerTooLong) {
                break;
            }
        }
        self.count_refusal(code, sent);
    }

    /// Answers an authenticated request, or a Binding, with an error.
    pub(crate) fn refuse(&mut self, envelope: &Envelope, refusal: Refusal) {
        let (code, unknown, alternate) = match refusal {
            Refusal::Code(code) => (code, None, None),
            Refusal::Unknown(unknown) => (Code::UNKNOWN_ATTRIBUTE, Some(unknown), None),
            Refusal::Alternate(server) => {
                (Code::TRY_ALTERNATE, None, Some(AlternateServer(server)))
            }
        };
        let attributes = |reason: &'static str, writer: &mut MessageWriter<'_>| {
            writer
                .put(&ErrorCode { code, reason })?
                .put_some(unknown.as_ref())?
                .put_some(alternate.as_ref())?;
            Ok(())
        };
        self.answer_error(envelope, code, attributes);
    }

    /// Sends an error response, without the reason phrase where it would make it too long.
    fn answer_error(
        &mut self,
        envelope: &Envelope,
        code: Code,
        attributes: impl Fn(&'static str, &mut MessageWriter<'_>) -> Result<(), WriteError>,
    ) {
        let sent = self.try_answer_error(envelope, code, attributes);
        self.count_refusal(code, sent);
    }

    fn try_answer_error(
        &mut self,
        envelope: &Envelope,
        code: Code,
        attributes: impl Fn(&'static str, &mut MessageWriter<'_>) -> Result<(), WriteError>,
    ) -> Result<(), DropReason> {
        let sent = self.answer(envelope, Class::Error, |writer| {
            attributes(code.reason(), writer)
        });
        if sent == Err(DropReason::AnswerTooLong) {
            return self.answer(envelope, Class::Error, |writer| attributes("", writer));
        }
        sent
    }

    fn count_refusal(&self, code: Code, sent: Result<(), DropReason>) {
        match sent {
            Ok(()) => self.counters.count_error(code.number()),
            Err(reason) => self.counters.drops(reason).increment(),
        }
    }

    /// Does what an authenticated request asks for, and answers with a success that says no more, or
    /// with the refusal.
    pub(crate) fn act(
        &mut self,
        now: Timestamp,
        request: &Request<'_>,
        action: impl FnOnce(&mut Self, &Authenticated) -> Result<(), Refusal>,
    ) {
        let Some(sender) = self.authenticate(now, request) else {
            return;
        };
        let envelope = request.envelope(&sender);
        match action(self, &sender) {
            Ok(()) => self.succeed(&envelope, |_| Ok(())),
            Err(refusal) => self.refuse(&envelope, refusal),
        }
    }

    /// Answers with success.
    pub(crate) fn succeed(
        &mut self,
        envelope: &Envelope,
        attributes: impl FnOnce(&mut MessageWriter<'_>) -> Result<(), WriteError>,
    ) {
        match self.answer(envelope, Class::Success, attributes) {
            Ok(()) => self.counters.successes(envelope.kind).increment(),
            Err(reason) => self.counters.drops(reason).increment(),
        }
    }

    /// Queues an answer; fails where that would break a limit.
    pub(crate) fn answer(
        &mut self,
        envelope: &Envelope,
        class: Class,
        attributes: impl FnOnce(&mut MessageWriter<'_>) -> Result<(), WriteError>,
    ) -> Result<(), DropReason> {
        let config = Arc::clone(&self.config);
        self.queue(envelope.to, envelope.limit, |buffer| {
            write(
                envelope,
                class,
                config.software.as_deref(),
                buffer,
                attributes,
            )
        })
    }

    /// Queues what `write` writes into at most `limit` bytes; fails where that is too short.
    pub(crate) fn queue(
        &mut self,
        to: Endpoint,
        limit: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, WriteError>,
    ) -> Result<(), DropReason> {
        let mut buffer = self.outbox.begin(limit).ok_or(DropReason::OutputFull)?;
        let limit = limit.min(buffer.len());
        let Ok(len) = write(&mut buffer[..limit]) else {
            self.outbox.discard(buffer);
            return Err(DropReason::AnswerTooLong);
        };
        let transmit = Transmit {
            socket: Socket::Listener(to.listener),
            source: Some(to.server),
            destination: to.client,
            prefix: Prefix::EMPTY,
            payload: 0..len,
            padding: 0,
            traffic_class: TrafficClass::ORDINARY,
            dont_fragment: false,
        };
        self.outbox.push(transmit, buffer);
        Ok(())
    }
}

fn write(
    envelope: &Envelope,
    class: Class,
    software: Option<&str>,
    buffer: &mut [u8],
    attributes: impl FnOnce(&mut MessageWriter<'_>) -> Result<(), WriteError>,
) -> Result<usize, WriteError> {
    let message_type = MessageType::new(envelope.kind.method(), class);
    let mut writer = MessageWriter::new(buffer, message_type, envelope.transaction)?;
    attributes(&mut writer)?;
    if let Some((user, integrity)) = &envelope.signed {
        writer.put_some(software.map(Software).as_ref())?;
        let key = user
            .key(integrity.algorithm())
            .expect("the request was checked with this key");
        match integrity {
            Integrity::Sha1 => writer.integrity(&key)?,
            Integrity::Sha256(_) => writer.integrity_sha256(&key, 32)?,
            Integrity::Both(_) => writer.integrity(&key)?.integrity_sha256(&key, 32)?,
        };
    }
    if envelope.fingerprint {
        writer.fingerprint()?;
    }
    Ok(writer.len())
}
