//! A Binding request (RFC 8489 §2): "what is my address, seen from you?"

use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use super::{Due, Retransmission, Schedule};
use crate::Timestamp;
use crate::wire::attribute::{ErrorCode, MappedAddress, XorMappedAddress};
use crate::wire::{
    AttributeType, Class, Code, Message, MessageType, MessageWriter, Method, TransactionId,
};

/// One Binding transaction with one server.
///
/// ```text
///  new ─▶ poll_transmit … poll_transmit ─▶ handle_datagram ─▶ outcome: Ok
///              └─ handle_timeout, until the schedule ends ──▶ outcome: Err(TimedOut)
/// ```
#[derive(Clone, Debug)]
pub struct BindingClient {
    server: SocketAddr,
    id: TransactionId,
    request: Retransmission,
    last_sent: Timestamp,
    outcome: Option<Result<Binding, BindingError>>,
}

/// What the server said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// Our address, as the server sees it.
    pub mapped: SocketAddr,
    /// From the last transmission to the response.
    pub round_trip: Duration,
    /// How often the request was sent. Above one, `round_trip` may belong to an earlier transmission.
    pub transmissions: u8,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BindingError {
    /// No response came.
    #[error("no response to {transmissions} requests")]
    TimedOut {
        /// How often the request was sent.
        transmissions: u8,
    },
    /// The server refused.
    #[error("the server answered {0}")]
    Refused(Code),
    /// The response has no address, or an error no code.
    #[error("the response is malformed")]
    Malformed,
    /// RFC 8489 §6.3.3: "If the success response contains unknown comprehension-required attributes,
    /// the response is discarded and the transaction is considered to have failed."
    #[error("the response needs {0} understood")]
    UnknownAttribute(AttributeType),
}

impl BindingClient {
    /// A transaction that begins at `now`. `id` must be random.
    pub fn new(now: Timestamp, server: SocketAddr, id: TransactionId, schedule: Schedule) -> Self {
        let request = Retransmission::new(now, schedule);
        Self {
            server,
            id,
            request,
            last_sent: now,
            outcome: None,
        }
    }

    /// Writes the request into `buffer` when it is due; returns its length. It goes to the server.
    pub fn poll_transmit(&mut self, now: Timestamp, buffer: &mut [u8]) -> Option<usize> {
        if self.outcome.is_some() || self.request.due(now) != Due::Transmit {
            return None;
        }
        let message_type = MessageType::new(Method::BINDING, Class::Request);
        let mut writer = MessageWriter::new(buffer, message_type, self.id).ok()?;
        writer.fingerprint().ok()?;
        self.request.sent(now);
        self.last_sent = now;
        Some(writer.finish().len())
    }

    /// Takes a datagram; returns whether it is this transaction's response.
    ///
    /// RFC 8489 §6.3.1 lets through what has the transaction's id and the server's address.
    pub fn handle_datagram(&mut self, now: Timestamp, remote: SocketAddr, bytes: &[u8]) -> bool {
        if self.outcome.is_some() || remote != self.server {
            return false;
        }
        let Ok(message) = Message::parse(bytes) else {
            return false;
        };
        let is_response = matches!(message.class(), Class::Success | Class::Error);
        if !is_response
            || message.method() != Method::BINDING
            || message.transaction_id() != self.id
            || (message.has_fingerprint() && message.check_fingerprint().is_err())
        {
            return false;
        }
        let round_trip = now.saturating_since(self.last_sent);
        self.outcome = Some(read(&message).map(|mapped| Binding {
            mapped,
            round_trip,
            transmissions: self.request.transmissions(),
        }));
        true
    }

    /// Ends the transaction when its schedule has ended.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if self.outcome.is_none() && self.request.due(now) == Due::Failed {
            let transmissions = self.request.transmissions();
            self.outcome = Some(Err(BindingError::TimedOut { transmissions }));
        }
    }

    /// When something is due; `None` once there is an outcome.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.outcome.is_none().then(|| self.request.next())
    }

    /// How it ended; `None` while it has not.
    pub fn outcome(&self) -> Option<Result<Binding, BindingError>> {
        self.outcome
    }
}

fn read(message: &Message<'_>) -> Result<SocketAddr, BindingError> {
    if message.class() == Class::Error {
        let code = message.get::<ErrorCode<'_>>().ok().flatten();
        return Err(code.map_or(BindingError::Malformed, |error| {
            BindingError::Refused(error.code)
        }));
    }
    let is_known =
        |kind| kind == AttributeType::XOR_MAPPED_ADDRESS || kind == AttributeType::MAPPED_ADDRESS;
    if let Some(unknown) = message.unknown_required(is_known).iter().next() {
        return Err(BindingError::UnknownAttribute(unknown));
    }
    if let Ok(Some(XorMappedAddress(mapped))) = message.get() {
        return Ok(mapped);
    }
    match message.get() {
        Ok(Some(MappedAddress(mapped))) => Ok(mapped),
        Ok(None) | Err(_) => Err(BindingError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::attribute::{Attribute, Realm};

    const ID: TransactionId = TransactionId([5; 12]);

    fn server() -> SocketAddr {
        "192.0.2.1:3478".parse().unwrap()
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_nanos(ms * 1_000_000)
    }

    fn asked() -> BindingClient {
        let mut client = BindingClient::new(at(0), server(), ID, Schedule::STANDARD);
        let mut buffer = [0; 64];
        let len = client.poll_transmit(at(0), &mut buffer).unwrap();
        let request = Message::parse(&buffer[..len]).unwrap();
        assert_eq!(
            (request.method(), request.class()),
            (Method::BINDING, Class::Request)
        );
        assert_eq!(client.poll_transmit(at(0), &mut buffer), None);
        client
    }

    fn response<'a>(class: Class, id: TransactionId, attribute: &impl Attribute<'a>) -> Vec<u8> {
        let mut buffer = [0; 128];
        let message_type = MessageType::new(Method::BINDING, class);
        let mut writer = MessageWriter::new(&mut buffer, message_type, id).unwrap();
        writer.put(attribute).unwrap();
        writer.finish().to_vec()
    }

    #[test]
    fn a_response_gives_the_mapped_address_and_the_round_trip() {
        let mapped: SocketAddr = "203.0.113.9:4000".parse().unwrap();
        for bytes in [
            response(Class::Success, ID, &XorMappedAddress(mapped)),
            response(Class::Success, ID, &MappedAddress(mapped)),
        ] {
            let mut client = asked();
            assert!(client.handle_datagram(at(30), server(), &bytes));
            let round_trip = Duration::from_millis(30);
            let binding = Binding {
                mapped,
                round_trip,
                transmissions: 1,
            };
            assert_eq!(client.outcome(), Some(Ok(binding)));
            assert_eq!(client.poll_timeout(), None);
            assert!(
                !client.handle_datagram(at(31), server(), &bytes),
                "a duplicate"
            );
        }
    }

    #[test]
    fn a_response_from_elsewhere_or_to_another_transaction_is_not_taken() {
        let mapped = XorMappedAddress("203.0.113.9:4000".parse().unwrap());
        let mut client = asked();
        let stranger: SocketAddr = "192.0.2.2:3478".parse().unwrap();
        let bytes = response(Class::Success, ID, &mapped);
        assert!(!client.handle_datagram(at(1), stranger, &bytes));
        let other = response(Class::Success, TransactionId([6; 12]), &mapped);
        assert!(!client.handle_datagram(at(1), server(), &other));
        let request = response(Class::Request, ID, &mapped);
        assert!(!client.handle_datagram(at(1), server(), &request));
        assert_eq!(client.outcome(), None);
    }

    #[test]
    fn a_request_that_nobody_answers_times_out() {
        let mut client = asked();
        let mut buffer = [0; 64];
        while let Some(next) = client.poll_timeout() {
            client.handle_timeout(next);
            client.poll_transmit(next, &mut buffer);
            assert!(next <= at(39_500));
        }
        assert_eq!(
            client.outcome(),
            Some(Err(BindingError::TimedOut { transmissions: 7 }))
        );
    }

    #[test]
    fn a_refusal_and_a_response_that_cannot_be_understood_are_told_apart() {
        let outcome = |bytes: &[u8]| {
            let mut client = asked();
            assert!(client.handle_datagram(at(1), server(), bytes));
            client.outcome().unwrap().unwrap_err()
        };
        let refusal = response(Class::Error, ID, &ErrorCode::new(Code::SERVER_ERROR));
        assert_eq!(outcome(&refusal), BindingError::Refused(Code::SERVER_ERROR));
        let unknown = response(Class::Success, ID, &Realm("?"));
        assert_eq!(
            outcome(&unknown),
            BindingError::UnknownAttribute(AttributeType::REALM)
        );
        let software = response(Class::Success, ID, &crate::wire::attribute::Software("x"));
        assert_eq!(outcome(&software), BindingError::Malformed);
    }
}
