//! QUIC's handshake without cryptography, for runs of thousands of nodes.
//!
//! ```text
//!   caller                                     called
//!     ├── Initial: its id, its parameters ───────▶│
//!     │◀────────────────────── Initial: nothing ──┤
//!     │◀── Handshake: its id, its parameters ─────┤
//!     ├── Handshake: nothing ────────────────────▶│
//! ```
//!
//! Each message has two bytes of length in front. Packets are in the clear; their tag is a checksum, so that
//! what was changed on the way is found out as it would be otherwise.

use std::any::Any;
use std::io::Cursor;
use std::sync::Arc;

use bytes::BytesMut;
use quinn_proto::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey,
    ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError, TransportErrorCode};
use towpath_proto::identity::PeerId;
use towpath_proto::quic::simulation::{Sessions, proved, refused};

use crate::trace::Fnv;

const TAG_BYTES: usize = 16;
const ID_BYTES: usize = 32;
/// TLS's bad_certificate, as a code of QUIC (RFC 9001 §4.8).
const BAD_CERTIFICATE: u8 = 42;

/// What a node without cryptography makes its handshakes with.
pub fn sessions(own: PeerId) -> Sessions {
    Sessions {
        client: Arc::new(Node(own)),
        server: Arc::new(Node(own)),
    }
}

struct Node(PeerId);

impl ClientConfig for Node {
    fn start_session(
        self: Arc<Self>,
        _: u32,
        server_name: &str,
        parameters: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let expected = server_name.parse();
        let expected = expected.map_err(|_| ConnectError::InvalidServerName(server_name.into()))?;
        let session = NullSession::new(self.0, Some(expected), parameters);
        Ok(Box::new(session))
    }
}

impl ServerConfig for Node {
    fn initial_keys(&self, _: u32, _: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        Ok(keys())
    }

    fn retry_tag(&self, _: u32, original: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        tag(u64::MAX, &[original, packet])
    }

    fn start_session(
        self: Arc<Self>,
        _: u32,
        parameters: &TransportParameters,
    ) -> Box<dyn Session> {
        Box::new(NullSession::new(self.0, None, parameters))
    }
}

/// How far a handshake is, in messages written and read.
struct NullSession {
    side: Side,
    /// Whom a caller calls.
    expected: Option<PeerId>,
    own: PeerId,
    /// What each end says of itself.
    hello: Vec<u8>,
    written: u8,
    read: u8,
    unread: Vec<u8>,
    peer: Option<PeerId>,
    peers_parameters: Option<TransportParameters>,
    refused: Option<PeerId>,
}

impl NullSession {
    fn new(own: PeerId, expected: Option<PeerId>, parameters: &TransportParameters) -> Self {
        let mut hello = own.as_bytes().to_vec();
        parameters.write(&mut hello);
        Self {
            side: if expected.is_some() {
                Side::Client
            } else {
                Side::Server
            },
            expected,
            own,
            hello,
            written: 0,
            read: 0,
            unread: Vec::new(),
            peer: None,
            peers_parameters: None,
            refused: None,
        }
    }

    /// The next whole message.
    fn message(&mut self) -> Option<Vec<u8>> {
        let len = usize::from(u16::from_be_bytes(*self.unread.first_chunk()?));
        let message = self.unread.get(2..2 + len)?.to_vec();
        self.unread.drain(..2 + len);
        self.read += 1;
        Some(message)
    }

    fn take_hello(&mut self, hello: &[u8]) -> Result<(), TransportError> {
        let (id, parameters) = hello
            .split_first_chunk::<ID_BYTES>()
            .ok_or_else(|| failed("no hello"))?;
        let found = PeerId::from_bytes(*id);
        if self.expected.is_some_and(|expected| expected != found) {
            self.refused = Some(found);
            return Err(failed("somebody else answered"));
        }
        self.peer = Some(found);
        let parameters = TransportParameters::read(self.side, &mut Cursor::new(parameters))?;
        self.peers_parameters = Some(parameters);
        Ok(())
    }
}

fn failed(reason: &str) -> TransportError {
    TransportError {
        code: TransportErrorCode::crypto(BAD_CERTIFICATE),
        frame: None,
        reason: reason.into(),
    }
}

fn write(message: &[u8], buffer: &mut Vec<u8>) {
    let len = u16::try_from(message.len()).expect("messages are short");
    buffer.extend_from_slice(&len.to_be_bytes());
    buffer.extend_from_slice(message);
}

impl Session for NullSession {
    fn initial_keys(&self, _: &ConnectionId, _: Side) -> Keys {
        keys()
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        match (self.refused, self.peer) {
            (Some(found), _) => Some(refused(found)),
            (None, Some(peer)) => Some(proved(peer)),
            (None, None) => None,
        }
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        Some(Box::new(self.peer?))
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.side.is_client().then_some(false)
    }

    fn is_handshaking(&self) -> bool {
        match self.side {
            Side::Client => self.written < 3,
            Side::Server => self.read < 2,
        }
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        self.unread.extend_from_slice(bytes);
        while let Some(message) = self.message() {
            match (self.side, self.read) {
                (Side::Client, 2) | (Side::Server, 1) => self.take_hello(&message)?,
                (Side::Client, 1) | (Side::Server, 2) if message.is_empty() => {}
                (Side::Client | Side::Server, _) => return Err(failed("not its turn")),
            }
        }
        Ok(false)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        Ok(self.peers_parameters)
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        let turn = (self.side, self.written, self.read);
        let new_keys = match turn {
            (Side::Client, 0, _) => {
                write(&self.hello, buffer);
                None
            }
            (Side::Client, 1, 1..) => Some(keys()),
            (Side::Client, 2, 2..) | (Side::Server, 0, 1..) => {
                write(&[], buffer);
                Some(keys())
            }
            (Side::Server, 1, _) => {
                write(&self.hello, buffer);
                Some(keys())
            }
            (Side::Client | Side::Server, _, _) => return None,
        };
        self.written += 1;
        new_keys
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        Some(keys().packet)
    }

    fn is_valid_retry(&self, original: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        let Some((payload, found)) = payload.split_last_chunk::<TAG_BYTES>() else {
            return false;
        };
        let packet = [header, payload].concat();
        tag(u64::MAX, &[original, &packet]) == *found
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        let peer = self.peer.ok_or(ExportKeyingMaterialError)?;
        let mut ends = [self.own, peer];
        ends.sort();
        let [first, second] = ends;
        let material = tag(0, &[label, context, first.as_bytes(), second.as_bytes()]);
        let repeated = material.iter().cycle();
        output
            .iter_mut()
            .zip(repeated)
            .for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

fn keys() -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(Clear),
            remote: Box::new(Clear),
        },
        packet: KeyPair {
            local: Box::new(Clear),
            remote: Box::new(Clear),
        },
    }
}

/// Leaves everything as it is.
struct Clear;

impl HeaderKey for Clear {
    fn decrypt(&self, _: usize, _: &mut [u8]) {}

    fn encrypt(&self, _: usize, _: &mut [u8]) {}

    fn sample_size(&self) -> usize {
        TAG_BYTES
    }
}

impl PacketKey for Clear {
    fn encrypt(&self, packet: u64, buffer: &mut [u8], _: usize) {
        let (clear, end) = buffer
            .split_last_chunk_mut::<TAG_BYTES>()
            .expect("there is room for a tag");
        *end = tag(packet, &[clear]);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        let (clear, found) = payload.split_last_chunk::<TAG_BYTES>().ok_or(CryptoError)?;
        let expected = tag(packet, &[header, clear]);
        if expected != *found {
            return Err(CryptoError);
        }
        let len = clear.len();
        payload.truncate(len);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        TAG_BYTES
    }

    fn confidentiality_limit(&self) -> u64 {
        u64::MAX
    }

    fn integrity_limit(&self) -> u64 {
        u64::MAX
    }
}

/// A checksum of a packet in parts, as long as a tag.
fn tag(packet: u64, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
    let mut hash = Fnv::new();
    hash.write(&packet.to_be_bytes());
    for part in parts {
        hash.write(part);
    }
    let hash = hash.finish();
    let mut tag = [0; TAG_BYTES];
    tag[..8].copy_from_slice(&hash.to_be_bytes());
    tag[8..].copy_from_slice(&(!hash).to_be_bytes());
    tag
}
