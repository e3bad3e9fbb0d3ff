//! Binding: telling clients their own address (RFC 8489 §2), and how their NAT behaves (RFC 5780).
//!
//! Binding is not authenticated, so its answer carries XOR-MAPPED-ADDRESS and, where there is a second
//! address and port, what of RFC 5780 fits: an answer is at most 1.6 times its request over IPv4. One
//! that says all of it to a shorter request comes from a small budget. Only an answer to another port of
//! the client (RESPONSE-PORT) asks for credentials.

use std::net::{IpAddr, SocketAddr};

use super::behavior::Place;
use crate::Timestamp;
use crate::auth::BINDING_TENTHS;
use crate::machine::TRANSMIT_BUFFER_BYTES;
use crate::relay::{DropReason, Endpoint, Envelope, MAX_ANSWER_BYTES, Refusal, Relay, Request};
use crate::wire::attribute::{
    ChangeRequest, MappedAddress, OtherAddress, ResponseOrigin, ResponsePort, ValueError,
    XorMappedAddress,
};
use crate::wire::{AttributeType, Class, Code, HEADER_BYTES, Message, MessageWriter, WriteError};

const FINGERPRINT_BYTES: usize = 8;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// What a Binding request asks of its answer.
#[derive(Clone, Copy, Debug)]
struct Wish {
    change: ChangeRequest,
    to_port: Option<u16>,
    padding: bool,
}

/// Where an answer leaves, and what it may say beside the client's address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub(super) to: Endpoint,
    /// Where it comes from, and the other address and port.
    pub(super) told: Option<Told>,
    /// Longest it may be.
    pub(super) limit: usize,
}

/// Addresses of the server that an answer tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) origin: SocketAddr,
    pub(super) other: SocketAddr,
}

impl Relay {
    pub(crate) fn binding(&mut self, now: Timestamp, request: &Request<'_>) {
        let message = &request.message;
        let place = self.place(request.from);
        let envelope = if place.is_some() && message.contains(AttributeType::RESPONSE_PORT) {
            // Whoever has an answer sent to where it did not ask from is known first.
            let Some(sender) = self.authenticate(now, request) else {
                return;
            };
            request.envelope(&sender)
        } else {
            if !self.admits_stranger(now, request.from) {
                return;
            }
            request.stranger_envelope()
        };
        let len = message.as_bytes().len();
        let limit = longest_answer(len, request.from.client.ip(), message.has_fingerprint());
        let unknown = message.unknown_required(|kind| is_known(kind, place, message));
        if !unknown.is_empty() {
            // RFC 8489 §6.3.1: unknown comprehension-required attributes are answered with 420.
            let limit = (len * BINDING_TENTHS / 10).min(envelope.limit);
            self.refuse(&Envelope { limit, ..envelope }, Refusal::Unknown(unknown));
            return;
        }
        match Wish::read(message) {
            Ok(wish) => {
                let tail = if message.has_fingerprint() {
                    FINGERPRINT_BYTES
                } else {
                    0
                };
                let reply = self.reply(now, request.from, place, wish.change, limit, tail);
                self.answer_binding(&envelope, reply, wish, len, tail);
            }
            Err(code) => {
                let limit = limit.min(envelope.limit);
                self.refuse(&Envelope { limit, ..envelope }, code.into());
            }
        }
    }

    /// Where behaviour discovery is on and has a second address and port for this one.
    pub(super) fn place(&self, from: Endpoint) -> Option<Place> {
        let discovery = self.discovery.as_ref()?;
        discovery.place(from.listener, from.server)
    }

    /// Settles where an answer comes from and how long it may be. `tail` is what follows the
    /// attributes.
    pub(super) fn reply(
        &mut self,
        now: Timestamp,
        from: Endpoint,
        place: Option<Place>,
        change: ChangeRequest,
        limit: usize,
        tail: usize,
    ) -> Reply {
        let (Some(place), Some(discovery)) = (place, &mut self.discovery) else {
            let told = None;
            return Reply {
                to: from,
                told,
                limit,
            };
        };
        let origin = discovery.origin(place, change);
        let client = from.client.ip();
        let complete = HEADER_BYTES + 3 * address_bytes(client) + tail;
        let limit = if complete > limit && discovery.admits_long_answer(now, client) {
            complete
        } else {
            limit
        };
        Reply {
            to: Endpoint {
                listener: origin.listener,
                server: origin.local,
                client: from.client,
            },
            told: Some(Told {
                origin: origin.public,
                other: discovery.other(place),
            }),
            limit,
        }
    }

    /// Sends the longest of the answers that keep the limit.
    fn answer_binding(
        &mut self,
        envelope: &Envelope,
        reply: Reply,
        wish: Wish,
        request_bytes: usize,
        tail: usize,
    ) {
        let Reply {
            mut to,
            told,
            limit,
        } = reply;
        let mapped = to.client;
        to.client.set_port(wish.to_port.unwrap_or(mapped.port()));
        let limit = if wish.padding {
            limit.max(request_bytes).min(TRANSMIT_BUFFER_BYTES)
        } else {
            limit.min(MAX_ANSWER_BYTES)
        };
        let envelope = Envelope {
            to,
            limit,
            ..envelope.clone()
        };
        let mut sent = Err(DropReason::AnswerTooLong);
        for extras in (0..=if told.is_some() { 3 } else { 0 }).rev() {
            sent = self.answer(&envelope, Class::Success, |writer| {
                writer.put(&XorMappedAddress(mapped))?;
                if let Some(told) = told {
                    put_told(writer, told, mapped, extras)?;
                }
                if wish.padding {
                    pad(writer, request_bytes, tail)?;
                }
                Ok(())
            });
            if sent != Err(DropReason::AnswerTooLong) {
                break;
            }
        }
        match sent {
            Ok(()) => self.counters.successes(envelope.kind).increment(),
            Err(reason) => self.counters.drops(reason).increment(),
        }
    }
}

impl Wish {
    fn read(message: &Message<'_>) -> Result<Self, Code> {
        let bad = |_: ValueError| Code::BAD_REQUEST;
        let change = message.get::<ChangeRequest>().map_err(bad)?;
        let to_port = message.get::<ResponsePort>().map_err(bad)?;
        let padding = message.contains(AttributeType::PADDING);
        // RFC 5780 §6.1: "If the Request also contains the RESPONSE-PORT attribute [beside PADDING]
        // the server MUST return an error response of type 400." Port 0 is no port.
        if to_port.is_some_and(|ResponsePort(port)| padding || port == 0) {
            return Err(Code::BAD_REQUEST);
        }
        Ok(Self {
            change: change.unwrap_or_default(),
            to_port: to_port.map(|ResponsePort(port)| port),
            padding,
        })
    }
}

/// The first `extras` of what RFC 5780 §6.1 puts beside XOR-MAPPED-ADDRESS: the rest is left off where
/// the answer would be too long.
fn put_told(
    writer: &mut MessageWriter<'_>,
    told: Told,
    mapped: SocketAddr,
    extras: usize,
) -> Result<(), WriteError> {
    if extras > 0 {
        writer.put(&OtherAddress(told.other))?;
    }
    if extras > 1 {
        writer.put(&ResponseOrigin(told.origin))?;
    }
    if extras > 2 {
        writer.put(&MappedAddress(mapped))?;
    }
    Ok(())
}

/// Makes the answer as long as its request, where it is not already: never longer.
fn pad(
    writer: &mut MessageWriter<'_>,
    request_bytes: usize,
    tail: usize,
) -> Result<(), WriteError> {
    const ZEROS: [u8; TRANSMIT_BUFFER_BYTES] = [0; TRANSMIT_BUFFER_BYTES];
    let longest = request_bytes.min(TRANSMIT_BUFFER_BYTES);
    let around = writer.len() + tail + ATTRIBUTE_HEADER_BYTES;
    if let Some(len) = longest.checked_sub(around) {
        writer.put_raw(AttributeType::PADDING, &ZEROS[..len & !3])?;
    }
    Ok(())
}

/// [`BINDING_TENTHS`], and never less than the client's address takes.
pub(super) fn longest_answer(request_bytes: usize, client: IpAddr, fingerprint: bool) -> usize {
    let tail = if fingerprint { FINGERPRINT_BYTES } else { 0 };
    let shortest = HEADER_BYTES + address_bytes(client) + tail;
    (request_bytes * BINDING_TENTHS / 10).max(shortest)
}

/// Length of an attribute that holds an address of this family.
fn address_bytes(of_family: IpAddr) -> usize {
    let ip_bytes = if of_family.is_ipv4() { 4 } else { 16 };
    ATTRIBUTE_HEADER_BYTES + 4 + ip_bytes
}

/// What a Binding request may carry: credentials are not asked for, and what RFC 5780 adds is known
/// where there is another address and port.
fn is_known(kind: AttributeType, place: Option<Place>, message: &Message<'_>) -> bool {
    match kind {
        AttributeType::USERNAME
        | AttributeType::USERHASH
        | AttributeType::REALM
        | AttributeType::NONCE
        | AttributeType::PASSWORD_ALGORITHM => true,
        AttributeType::PADDING | AttributeType::RESPONSE_PORT => place.is_some(),
        // RFC 5780 §6.1: without "an alternate address and port …, the server MUST generate an error
        // response of type 420". Many clients send one that asks for nothing, which is done.
        AttributeType::CHANGE_REQUEST => {
            let change = message.get::<ChangeRequest>();
            place.is_some() || matches!(change, Ok(Some(change)) if change.is_nothing())
        }
        _ => false,
    }
}
