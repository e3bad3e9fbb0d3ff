//! Just enough STUN and TURN to make allocations from outside: requests are built, responses read.
//!
//! Kept apart from the relay's own codec on purpose, so that the bench does not share its mistakes.

use std::net::{Ipv4Addr, SocketAddrV4};

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;

const COOKIE: u32 = 0x2112_a442;
const HEADER_BYTES: usize = 20;
const INTEGRITY_BYTES: usize = 20;

const ALLOCATE: u16 = 0x003;
const REFRESH: u16 = 0x004;
const CHANNEL_BIND: u16 = 0x009;

const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const CHANNEL_NUMBER: u16 = 0x000c;
const LIFETIME: u16 = 0x000d;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const REQUESTED_TRANSPORT: u16 = 0x0019;

/// Number of a transaction.
pub type TransactionId = [u8; 12];

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// A UDP allocation for this many seconds.
    Allocate(u32),
    /// Another lifetime; 0 ends the allocation.
    Refresh(u32),
    /// A channel to a peer, and the permission that comes with it.
    ChannelBind(u16, SocketAddrV4),
}

/// Long-term credentials, with what a server said about them.
#[derive(Clone, Debug)]
pub struct Credentials {
    username: String,
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: [u8; 16],
}

impl Credentials {
    /// Credentials for the realm and nonce of a 401 response.
    pub fn new(username: &str, password: &str, realm: &[u8], nonce: &[u8]) -> Self {
        // RFC 8489 §9.2.2: key = MD5(username ":" realm ":" password)
        let mut hash = Md5::new();
        hash.update(username);
        hash.update(b":");
        hash.update(realm);
        hash.update(b":");
        hash.update(password);
        let key = hash.finalize().into();
        Self {
            username: username.to_owned(),
            realm: realm.to_vec(),
            nonce: nonce.to_vec(),
            key,
        }
    }

    /// The key that requests are authenticated with.
    pub fn key(&self) -> &[u8; 16] {
        &self.key
    }

    /// Takes the nonce of a 438 response.
    pub fn renew(&mut self, nonce: &[u8]) {
        self.nonce = nonce.to_vec();
    }
}

impl Request {
    fn method(self) -> u16 {
        match self {
            Self::Allocate(_) => ALLOCATE,
            Self::Refresh(_) => REFRESH,
            Self::ChannelBind(..) => CHANNEL_BIND,
        }
    }

    /// The request's bytes, authenticated where credentials are given.
    pub fn build(self, id: TransactionId, credentials: Option<&Credentials>) -> Vec<u8> {
        let mut message = vec![0; HEADER_BYTES];
        message[0..2].copy_from_slice(&self.method().to_be_bytes());
        message[4..8].copy_from_slice(&COOKIE.to_be_bytes());
        message[8..20].copy_from_slice(&id);
        match self {
            Self::Allocate(seconds) => {
                push(&mut message, REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
                push(&mut message, LIFETIME, &seconds.to_be_bytes());
            }
            Self::Refresh(seconds) => push(&mut message, LIFETIME, &seconds.to_be_bytes()),
            Self::ChannelBind(channel, peer) => {
                push(
                    &mut message,
                    CHANNEL_NUMBER,
                    &(u32::from(channel) << 16).to_be_bytes(),
                );
                push(&mut message, XOR_PEER_ADDRESS, &xor_address(peer));
            }
        }
        if let Some(credentials) = credentials {
            push(&mut message, USERNAME, credentials.username.as_bytes());
            push(&mut message, REALM, &credentials.realm);
            push(&mut message, NONCE, &credentials.nonce);
            set_length(&mut message, 4 + INTEGRITY_BYTES);
            let mut hmac =
                Hmac::<Sha1>::new_from_slice(&credentials.key).expect("any length is a key");
            hmac.update(&message);
            let code = hmac.finalize().into_bytes();
            push(&mut message, MESSAGE_INTEGRITY, &code);
        }
        set_length(&mut message, 0);
        message
    }
}

fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&(value.len() as u16).to_be_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn set_length(message: &mut [u8], more: usize) {
    let length = (message.len() - HEADER_BYTES + more) as u16;
    message[2..4].copy_from_slice(&length.to_be_bytes());
}

fn xor_address(address: SocketAddrV4) -> [u8; 8] {
    let port = address.port() ^ (COOKIE >> 16) as u16;
    let ip = (u32::from(*address.ip()) ^ COOKIE).to_be_bytes();
    [
        0,
        1,
        (port >> 8) as u8,
        port as u8,
        ip[0],
        ip[1],
        ip[2],
        ip[3],
    ]
}

/// What a server answered.
#[derive(Debug, Default)]
pub struct Response<'a> {
    /// Which request it answers.
    pub id: TransactionId,
    /// 0 for success, else the error code.
    pub error: u16,
    /// The relayed address, where there is one.
    pub relayed: Option<SocketAddrV4>,
    /// The realm, where there is one.
    pub realm: &'a [u8],
    /// The nonce, where there is one.
    pub nonce: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads a response; `None` where the bytes are something else.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let header = message.get(..HEADER_BYTES)?;
        let class = u16::from_be_bytes([header[0], header[1]]) & 0x0110;
        if header[4..8] != COOKIE.to_be_bytes() || class & 0x0100 == 0 {
            return None;
        }
        let mut response = Self {
            id: header[8..20].try_into().ok()?,
            ..Self::default()
        };
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let mut rest = message.get(HEADER_BYTES..HEADER_BYTES + length)?;
        while let [kind_high, kind_low, length_high, length_low, value @ ..] = rest {
            let kind = u16::from_be_bytes([*kind_high, *kind_low]);
            let length = usize::from(u16::from_be_bytes([*length_high, *length_low]));
            response.take(kind, value.get(..length)?)?;
            rest = value.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        // An error response without a code is no valid response.
        (class == 0x0100 || response.error != 0).then_some(response)
    }

    fn take(&mut self, kind: u16, value: &'a [u8]) -> Option<()> {
        match kind {
            ERROR_CODE => {
                let code = value.get(2..4)?;
                self.error = u16::from(code[0] & 7) * 100 + u16::from(code[1]);
            }
            XOR_RELAYED_ADDRESS => self.relayed = Some(read_xor_address(value)?),
            REALM => self.realm = value,
            NONCE => self.nonce = value,
            _ => {}
        }
        Some(())
    }
}

fn read_xor_address(value: &[u8]) -> Option<SocketAddrV4> {
    let [0, 1, high, low, ip @ ..] = value else {
        return None;
    };
    let port = u16::from_be_bytes([*high, *low]) ^ (COOKIE >> 16) as u16;
    let ip = u32::from_be_bytes(ip.try_into().ok()?) ^ COOKIE;
    Some(SocketAddrV4::new(Ipv4Addr::from(ip), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_its_xor_form() {
        let address: SocketAddrV4 = "10.77.2.1:49153".parse().expect("an address");
        assert_eq!(read_xor_address(&xor_address(address)), Some(address));
    }

    #[test]
    fn a_401_response_gives_its_code_realm_and_nonce() {
        let mut message = vec![0; HEADER_BYTES];
        message[0..2].copy_from_slice(&(ALLOCATE | 0x0110).to_be_bytes());
        message[4..8].copy_from_slice(&COOKIE.to_be_bytes());
        push(&mut message, ERROR_CODE, &[0, 0, 4, 1]);
        push(&mut message, REALM, b"example");
        push(&mut message, NONCE, b"n");
        set_length(&mut message, 0);
        let response = Response::parse(&message).expect("a response");
        assert_eq!(
            (response.error, response.realm, response.nonce),
            (401, &b"example"[..], &b"n"[..])
        );
        for length in 0..message.len() {
            assert!(Response::parse(&message[..length]).is_none());
        }
    }

    #[test]
    fn requests_are_no_responses() {
        let request = Request::Allocate(600).build([7; 12], None);
        assert!(Response::parse(&request).is_none());
    }
}
