//! The TURN client, answered by a server that says anything, also signed: it never panics, never waits
//! for a time that has passed, keeps no more than its limits, and what it sends can be read.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::credentials::LongTermKey;
use towpath_proto::stun::Schedule;
use towpath_proto::turn::client::{Client, ClientConfig, Credentials};
use towpath_proto::wire::attribute::{
    Algorithm, Data, ErrorCode, Family, Lifetime, Nonce, PasswordAlgorithms, Realm,
    XorMappedAddress, XorPeerAddress, XorRelayedAddress,
};
use towpath_proto::wire::{
    ChannelData, Class, Code, HEADER_BYTES, IntegrityKey, Kind, Message, MessageType,
    MessageWriter, Method, TransactionId, WriteError, classify,
};

use crate::bytes::Bytes;

const REALM: &str = "r";
/// More than a client polled at its deadlines can need before time has to pass.
const MAX_POLLS: usize = 10_000;

struct World {
    now: Timestamp,
    server: SocketAddr,
    client: Client,
    /// What the client sent last.
    request: Option<(MessageType, TransactionId)>,
    keys: [IntegrityKey; 2],
}

pub(crate) fn fuzz(data: &[u8]) {
    let mut input = Bytes(data);
    let key = |algorithm| {
        let key = LongTermKey::derive(algorithm, "u", REALM, "p").expect("they are credentials");
        IntegrityKey::new(key.as_bytes())
    };
    let credentials = Credentials::new("u".into(), "p".into()).expect("they are credentials");
    let server = SocketAddr::from(([192, 0, 2, 1], 3478));
    let config = ClientConfig {
        server,
        credentials: Arc::new(credentials),
        lifetime: None,
        mobility: true,
        schedule: Schedule::STANDARD,
    };
    let mut world = World {
        now: Timestamp::ZERO,
        server,
        client: Client::new(config, [1; 32]),
        request: None,
        keys: [key(Algorithm::Md5), key(Algorithm::Sha256)],
    };
    while !input.is_empty() {
        world.step(&mut input);
        world.run();
    }
}

impl World {
    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.byte() % 12 {
            0 => {
                let family = [None, Some(Family::V4), Some(Family::V6)];
                let _ = self
                    .client
                    .allocate(self.now, family[usize::from(input.byte() % 3)]);
            }
            1 => {
                let _ = self.client.permit(self.now, peer(input).ip());
            }
            2 => {
                let _ = self.client.bind_channel(self.now, peer(input));
            }
            3 => self.send(input),
            4 => self.client.release(self.now),
            5 => self.now = self.now + Duration::from_secs(input.number().into()),
            6 => self.now = self.now + Duration::from_millis(input.byte().into()),
            7 => {
                let len = usize::from(input.number());
                let bytes = input.take(len);
                self.client.handle_datagram(self.now, self.server, bytes);
            }
            8 => {
                self.client.handle_datagram(self.now, peer(input), &[0, 1]);
            }
            _ => self.respond(input),
        }
    }

    /// Polls the client as its callers do. It must come to rest without time passing.
    fn run(&mut self) {
        let mut buffer = [0; 2048];
        for _ in 0..MAX_POLLS {
            while self.client.poll_event().is_some() {}
            if self
                .client
                .poll_timeout()
                .is_none_or(|deadline| deadline > self.now)
            {
                return;
            }
            self.client.handle_timeout(self.now);
            if let Some(len) = self.client.poll_transmit(self.now, &mut buffer) {
                let message = Message::parse(&buffer[..len]).expect("we wrote it");
                assert_eq!(message.check_fingerprint(), Ok(()));
                self.request = Some((message.message_type(), message.transaction_id()));
            }
        }
        panic!(
            "the client's deadline stays at {:?}",
            self.client.poll_timeout()
        );
    }

    fn send(&mut self, input: &mut Bytes<'_>) {
        let (peer, payload) = (peer(input), input.short());
        let mut buffer = [0; 300];
        let Ok(len) = self.client.send(peer, payload, &mut buffer) else {
            return;
        };
        let bytes = &buffer[..len];
        match classify(bytes) {
            Kind::ChannelData => {
                assert_eq!(
                    ChannelData::parse(bytes).map(|message| message.data),
                    Ok(payload)
                );
            }
            Kind::Stun => {
                let message = Message::parse(bytes).expect("we wrote it");
                assert_eq!(message.get(), Ok(Some(Data(payload))));
                assert_eq!(message.get(), Ok(Some(XorPeerAddress(peer))));
            }
            Kind::Other => panic!("neither STUN nor ChannelData"),
        }
    }

    /// Answers the last request, or sends an indication.
    fn respond(&mut self, input: &mut Bytes<'_>) {
        let Some((asked, id)) = self.request else {
            return;
        };
        let mut buffer = [0; 2048];
        let message_type = match input.byte() % 4 {
            0 => MessageType::new(asked.method(), Class::Success),
            1 | 2 => MessageType::new(asked.method(), Class::Error),
            _ => MessageType::new(Method::DATA, Class::Indication),
        };
        let Ok(mut writer) = MessageWriter::new(&mut buffer, message_type, id) else {
            return;
        };
        for _ in 0..input.byte() % 8 {
            let _ = self.put(&mut writer, input);
        }
        let signing = input.byte();
        let key = &self.keys[usize::from(signing >> 1 & 1)];
        let _ = match signing & 5 {
            0 => writer.integrity(key).map(|_| ()),
            1 => writer.integrity_sha256(key, 32).map(|_| ()),
            _ => Ok(()),
        };
        let bytes = writer.finish();
        assert!(bytes.len() >= HEADER_BYTES);
        self.client.handle_datagram(self.now, self.server, bytes);
    }

    fn put(&self, writer: &mut MessageWriter<'_>, input: &mut Bytes<'_>) -> Result<(), WriteError> {
        match input.byte() % 10 {
            0 => {
                let known = [300, 401, 403, 437, 438, 486, 508];
                let number = match input.byte() {
                    place @ 0..=127 => known[usize::from(place) % known.len()],
                    other => 300 + u16::from(other),
                };
                let code = Code::new(number).expect("300 to 699");
                writer.put(&ErrorCode { code, reason: "" })
            }
            1 => writer.put(&Realm(REALM)),
            2 => writer.put(&Nonce(input.short())),
            3 => writer.put(&PasswordAlgorithms::SHA256_MD5),
            4 => writer.put(&XorRelayedAddress(peer(input))),
            5 => writer.put(&XorMappedAddress(peer(input))),
            6 => writer.put(&Lifetime(u32::from(input.number()))),
            7 => writer.put(&XorPeerAddress(peer(input))),
            8 => writer.put(&Data(input.short())),
            _ => {
                let kind = towpath_proto::wire::AttributeType(input.number());
                writer.put_raw(kind, input.short())
            }
        }
        .map(|_| ())
    }
}

/// One of a few peers, so that they are met again.
fn peer(input: &mut Bytes<'_>) -> SocketAddr {
    let byte = input.byte();
    let ip = if byte & 0x80 == 0 {
        IpAddr::from([203, 0, 113, byte & 7])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(byte & 7)])
    };
    SocketAddr::new(ip, 1000 + u16::from(byte >> 3 & 3))
}
