//! What clients of RFC 3489 are answered (RFC 5389 §12.2), byte for byte.

use std::net::{IpAddr, SocketAddr};

use towpath_proto::relay::DropReason;

use super::{Alternative, Expectation, Flow, Sent};
use crate::stun::{Builder, Parsed, attribute, kind, parse_classic};

/// What may come of a message without the cookie; `None` where it is no Binding request.
pub(super) fn expected(flow: Flow, payload: &[u8]) -> Option<Expectation> {
    let request = parse_classic(payload).filter(|request| request.kind == kind::BINDING)?;
    let id = payload[4..20].try_into().expect("it is 16 bytes long");
    let unknown = unknown_attributes(&request);
    let answer = if unknown.is_empty() {
        let mut answer = Builder::classic(kind::BINDING | kind::SUCCESS, id);
        answer.put(attribute::MAPPED_ADDRESS, &plain_address(flow.client));
        answer.finish()
    } else {
        let mut answer = Builder::classic(kind::BINDING | kind::ERROR, id);
        answer.put(attribute::ERROR_CODE, &[0, 0, 4, 20]);
        answer.put(attribute::UNKNOWN_ATTRIBUTES, &unknown);
        answer.finish()
    };
    let shortest = if flow.client.is_ipv4() { 32 } else { 44 };
    let limit = (payload.len() * 16 / 10).max(shortest);
    let strangers = Alternative::Drop(&[DropReason::TooManyRequests]);
    if answer.len() > limit {
        return Some(vec![
            Alternative::Drop(&[DropReason::AnswerTooLong]),
            strangers,
        ]);
    }
    let sent = Sent {
        source: flow.server,
        destination: flow.client,
        payload: answer,
        traffic_class: 0,
        dont_fragment: false,
    };
    Some(vec![Alternative::Datagram(sent), strangers])
}

/// At most eight, each once, and the first again where their number is odd.
fn unknown_attributes(request: &Parsed) -> Vec<u8> {
    let asks_for_nothing = match request.find(attribute::CHANGE_REQUEST) {
        Some([_, _, _, flags]) => flags & 6 == 0,
        Some(_) | None => false,
    };
    let mut kinds: Vec<u16> = Vec::new();
    for (kind, _) in &request.attributes {
        let known = *kind == attribute::USERNAME
            || (*kind == attribute::CHANGE_REQUEST && asks_for_nothing);
        if *kind < 0x8000 && !known && !kinds.contains(kind) && kinds.len() < 8 {
            kinds.push(*kind);
        }
    }
    if kinds.len() % 2 == 1 {
        kinds.push(kinds[0]);
    }
    kinds.into_iter().flat_map(u16::to_be_bytes).collect()
}

/// An address as it is.
pub(super) fn plain_address(address: SocketAddr) -> Vec<u8> {
    let mut value = vec![0, if address.is_ipv4() { 1 } else { 2 }];
    value.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(v4) => value.extend(v4.octets()),
        IpAddr::V6(v6) => value.extend(v6.octets()),
    }
    value
}
