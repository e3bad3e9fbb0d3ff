//! Data that was relayed again and again.
//!
//! Two allocations on two relays can be made each other's clients: each relay wraps what comes from
//! the other for a client that is a relayed address of the other. Neither can see the loop, but each
//! round leaves its header, so the loop shows in the datagram itself:
//!
//! ```text
//!   ChannelData │ ChannelData │ Data indication │ ChannelData │ … │ what was sent once
//! ```

use crate::wire::attribute::Data;
use crate::wire::{ChannelData, Class, Kind, Message, Method, classify};

/// A peer that is itself the client of a relay has its data wrapped once, and a relay behind a relay
/// twice. What is wrapped more often than this is going round.
const MAX_WRAPPINGS: usize = 4;

/// Whether a peer's datagram has been relayed to clients so often that it must be in a loop.
///
/// Costs one comparison where the first byte is not that of a wrapping.
#[inline]
pub(crate) fn is_in_a_loop(payload: &[u8]) -> bool {
    matches!(payload.first(), Some(0x00 | 0x40..=0x7f)) && is_wrapped_too_often(payload)
}

#[inline(never)]
fn is_wrapped_too_often(payload: &[u8]) -> bool {
    let mut inner = payload;
    for _ in 0..=MAX_WRAPPINGS {
        let Some(data) = unwrap(inner) else {
            return false;
        };
        inner = data;
    }
    true
}

/// The data in one wrapping.
fn unwrap(payload: &[u8]) -> Option<&[u8]> {
    match classify(payload) {
        Kind::ChannelData => Some(ChannelData::parse(payload).ok()?.data),
        Kind::Stun => {
            let message = Message::parse(payload).ok()?;
            let is_data = message.class() == Class::Indication && message.method() == Method::DATA;
            Some(
                message
                    .get::<Data<'_>>()
                    .ok()
                    .flatten()
                    .filter(|_| is_data)?
                    .0,
            )
        }
        Kind::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ChannelNumber, TransactionId, data_indication};

    fn in_channel_data(data: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; data.len() + 4];
        let channel = ChannelNumber::FIRST;
        ChannelData { channel, data }.write(&mut buffer).unwrap();
        buffer
    }

    fn in_indication(data: &[u8]) -> Vec<u8> {
        let peer = "192.0.2.1:7".parse().unwrap();
        let around = data_indication(TransactionId([7; 12]), peer, data.len()).unwrap();
        let mut bytes = around.prefix.as_bytes().to_vec();
        bytes.extend(data);
        bytes.resize(bytes.len() + usize::from(around.padding), 0);
        bytes
    }

    #[test]
    fn data_is_in_a_loop_once_it_was_wrapped_five_times() {
        for wrap in [in_channel_data, in_indication] {
            let mut datagram = b"data".to_vec();
            for wrapped in 0..8 {
                assert_eq!(
                    is_in_a_loop(&datagram),
                    wrapped > MAX_WRAPPINGS,
                    "{wrapped}"
                );
                datagram = wrap(&datagram);
            }
        }
    }

    #[test]
    fn wrappings_of_both_kinds_count_together() {
        let mut datagram = Vec::new();
        for wrapped in 0..8 {
            assert_eq!(is_in_a_loop(&datagram), wrapped > MAX_WRAPPINGS);
            let wrap = if wrapped % 2 == 0 {
                in_indication
            } else {
                in_channel_data
            };
            datagram = wrap(&datagram);
        }
    }

    #[test]
    fn data_that_only_begins_like_a_wrapping_is_not_in_a_loop() {
        assert!(!is_in_a_loop(&[0x40; 1200]));
        assert!(!is_in_a_loop(&[0; 1200]));
        assert!(!is_in_a_loop(&[]));
    }
}
