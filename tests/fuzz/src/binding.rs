//! The STUN client, answered with anything: it never panics, ends in bounded time, and believes nobody
//! but its server.

use std::net::SocketAddr;
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::stun::{BindingClient, Schedule};
use towpath_proto::wire::{
    AttributeType, Class, HEADER_BYTES, Message, MessageType, MessageWriter, Method, TransactionId,
};

use crate::bytes::Bytes;

/// More than any schedule's deadlines.
const MAX_DEADLINES: usize = 100;

pub(crate) fn fuzz(data: &[u8]) {
    let mut input = Bytes(data);
    let server = SocketAddr::from(([192, 0, 2, 1], 3478));
    let stranger = SocketAddr::from(([192, 0, 2, 2], 3478));
    let mut now = Timestamp::ZERO + Duration::from_secs(1);
    let id = TransactionId([5; 12]);
    let mut client = BindingClient::new(now, server, id, Schedule::STANDARD);
    let mut buffer = [0; 2048];
    while !input.is_empty() && client.outcome().is_none() {
        match input.byte() % 4 {
            0 => now = now + Duration::from_millis(input.number().into()),
            1 => {
                let len = usize::from(input.number());
                client.handle_datagram(now, server, input.take(len));
            }
            2 => {
                let response = response(&mut input, &mut buffer, id);
                client.handle_datagram(now, stranger, response);
                assert_eq!(client.outcome(), None, "somebody else was believed");
            }
            _ => {
                let response = response(&mut input, &mut buffer, id);
                client.handle_datagram(now, server, response);
            }
        }
        send(&mut client, now);
    }
    for _ in 0..MAX_DEADLINES {
        let Some(deadline) = client.poll_timeout() else {
            break;
        };
        now = now.max(deadline);
        send(&mut client, now);
    }
    assert!(client.outcome().is_some(), "still waiting");
}

fn send(client: &mut BindingClient, now: Timestamp) {
    let mut buffer = [0; 2048];
    client.handle_timeout(now);
    while let Some(len) = client.poll_transmit(now, &mut buffer) {
        assert!(Message::parse(&buffer[..len]).is_ok());
    }
}

/// An answer with any attributes.
fn response<'b>(input: &mut Bytes<'_>, buffer: &'b mut [u8], id: TransactionId) -> &'b [u8] {
    let class = [Class::Success, Class::Error][usize::from(input.byte() & 1)];
    let kind = MessageType::new(Method::BINDING, class);
    let mut writer = MessageWriter::new(buffer, kind, id).expect("a header fits");
    for _ in 0..input.byte() % 4 {
        let known = [
            AttributeType::XOR_MAPPED_ADDRESS,
            AttributeType::MAPPED_ADDRESS,
            AttributeType::ERROR_CODE,
            AttributeType(input.number()),
        ];
        let attribute = known[usize::from(input.byte() % 4)];
        let _ = writer.put_raw(attribute, input.short());
    }
    let bytes = writer.finish();
    assert!(bytes.len() >= HEADER_BYTES);
    bytes
}
