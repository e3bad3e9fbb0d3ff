//! The simulator's own STUN codec: simple, allocating, and independent of the one under test.
//!
//! The builder writes whatever it is told, malformed messages included.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;

/// Bytes 4 to 8 of every message.
pub const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Message types: method and class as they stand in the first two bytes.
pub mod kind {
    /// Binding request.
    pub const BINDING: u16 = 0x001;
    /// Binding indication.
    pub const BINDING_INDICATION: u16 = 0x011;
    /// Allocate request.
    pub const ALLOCATE: u16 = 0x003;
    /// Refresh request.
    pub const REFRESH: u16 = 0x004;
    /// CreatePermission request.
    pub const CREATE_PERMISSION: u16 = 0x008;
    /// ChannelBind request.
    pub const CHANNEL_BIND: u16 = 0x009;
    /// Send indication.
    pub const SEND: u16 = 0x016;
    /// Data indication.
    pub const DATA: u16 = 0x017;
    /// What turns a request's type into its success response's.
    pub const SUCCESS: u16 = 0x100;
    /// What turns a request's type into its error response's.
    pub const ERROR: u16 = 0x110;
}

/// Attribute types.
pub mod attribute {
    /// USERNAME.
    pub const USERNAME: u16 = 0x0006;
    /// MESSAGE-INTEGRITY.
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    /// ERROR-CODE.
    pub const ERROR_CODE: u16 = 0x0009;
    /// CHANNEL-NUMBER.
    pub const CHANNEL_NUMBER: u16 = 0x000c;
    /// LIFETIME.
    pub const LIFETIME: u16 = 0x000d;
    /// XOR-PEER-ADDRESS.
    pub const XOR_PEER_ADDRESS: u16 = 0x0012;
    /// DATA.
    pub const DATA: u16 = 0x0013;
    /// REALM.
    pub const REALM: u16 = 0x0014;
    /// NONCE.
    pub const NONCE: u16 = 0x0015;
    /// XOR-RELAYED-ADDRESS.
    pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    /// REQUESTED-ADDRESS-FAMILY.
    pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    /// EVEN-PORT.
    pub const EVEN_PORT: u16 = 0x0018;
    /// REQUESTED-TRANSPORT.
    pub const REQUESTED_TRANSPORT: u16 = 0x0019;
    /// DONT-FRAGMENT.
    pub const DONT_FRAGMENT: u16 = 0x001a;
    /// MESSAGE-INTEGRITY-SHA256.
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    /// PASSWORD-ALGORITHM.
    pub const PASSWORD_ALGORITHM: u16 = 0x001d;
    /// USERHASH.
    pub const USERHASH: u16 = 0x001e;
    /// XOR-MAPPED-ADDRESS.
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    /// RESERVATION-TOKEN.
    pub const RESERVATION_TOKEN: u16 = 0x0022;
    /// ADDITIONAL-ADDRESS-FAMILY.
    pub const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
    /// ADDRESS-ERROR-CODE.
    pub const ADDRESS_ERROR_CODE: u16 = 0x8001;
    /// MAPPED-ADDRESS.
    pub const MAPPED_ADDRESS: u16 = 0x0001;
    /// CHANGE-REQUEST.
    pub const CHANGE_REQUEST: u16 = 0x0003;
    /// UNKNOWN-ATTRIBUTES.
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    /// ALTERNATE-SERVER.
    pub const ALTERNATE_SERVER: u16 = 0x8023;
    /// PASSWORD-ALGORITHMS.
    pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
    /// MOBILITY-TICKET.
    pub const MOBILITY_TICKET: u16 = 0x8030;
    /// ICMP.
    pub const ICMP: u16 = 0x8004;
    /// FINGERPRINT.
    pub const FINGERPRINT: u16 = 0x8028;
}

/// A transaction id.
pub type TransactionId = [u8; 12];

/// Writes a message.
#[derive(Clone, Debug)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// A message of this type without attributes.
    pub fn new(kind: u16, id: TransactionId) -> Self {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(COOKIE);
        bytes.extend(id);
        Self { bytes }
    }

    /// A message of RFC 3489, which has no cookie.
    pub fn classic(kind: u16, id: [u8; 16]) -> Self {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(id);
        Self { bytes }
    }

    /// Adds an attribute.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len()).expect("an attribute fits into 16 bits of length");
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(len.to_be_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.set_len(0);
        self
    }

    /// Adds a XOR'd address.
    pub fn put_address(&mut self, kind: u16, address: SocketAddr) -> &mut Self {
        let family = if address.is_ipv4() { 1 } else { 2 };
        let mut value = vec![0, family];
        value.extend(address.port().to_be_bytes());
        match address.ip() {
            IpAddr::V4(v4) => value.extend(v4.octets()),
            IpAddr::V6(v6) => value.extend(v6.octets()),
        }
        xor_address(&mut value, &self.bytes);
        self.put(kind, &value)
    }

    /// Adds MESSAGE-INTEGRITY.
    pub fn integrity(&mut self, key: &[u8]) -> &mut Self {
        self.set_len(24);
        let value = hmac_sha1(key, &self.bytes);
        self.put(attribute::MESSAGE_INTEGRITY, &value)
    }

    /// Adds MESSAGE-INTEGRITY-SHA256.
    pub fn integrity_sha256(&mut self, key: &[u8]) -> &mut Self {
        self.set_len(36);
        let value = hmac_sha256(key, &self.bytes);
        self.put(attribute::MESSAGE_INTEGRITY_SHA256, &value)
    }

    /// Adds FINGERPRINT.
    pub fn fingerprint(&mut self) -> &mut Self {
        self.set_len(8);
        let value = fingerprint(&self.bytes);
        self.put(attribute::FINGERPRINT, &value)
    }

    /// The message.
    pub fn finish(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    fn set_len(&mut self, ahead: usize) {
        let len = self.bytes.len() - 20 + ahead;
        let len = u16::try_from(len).expect("a message fits into 16 bits of length");
        self.bytes[2..4].copy_from_slice(&len.to_be_bytes());
    }
}

/// A message that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Method and class as they stand in the first two bytes.
    pub kind: u16,
    /// The transaction.
    pub id: TransactionId,
    /// All attributes that a receiver acts on, in order, without the checks.
    pub attributes: Vec<(u16, Vec<u8>)>,
    /// Offset and value of MESSAGE-INTEGRITY.
    pub integrity: Option<(usize, Vec<u8>)>,
    /// Offset and value of MESSAGE-INTEGRITY-SHA256.
    pub integrity_sha256: Option<(usize, Vec<u8>)>,
    /// Whether FINGERPRINT is there and right.
    pub fingerprint: Option<bool>,
    bytes: Vec<u8>,
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#05x} {:02x?}", self.kind, &self.id[..4])?;
        for (kind, value) in &self.attributes {
            write!(f, " {kind:#06x}={:02x?}", &value[..value.len().min(24)])?;
        }
        Ok(())
    }
}

/// Reads a message; `None` where the bytes are none.
pub fn parse(bytes: &[u8]) -> Option<Parsed> {
    read(bytes, true)
}

/// Reads a message of RFC 3489, which has no cookie.
pub fn parse_classic(bytes: &[u8]) -> Option<Parsed> {
    read(bytes, false)
}

fn read(bytes: &[u8], cookie: bool) -> Option<Parsed> {
    let kind = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    let len = usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
    let has_cookie = bytes.get(4..8)? == COOKIE;
    if kind & 0xc000 != 0 || has_cookie != cookie || bytes.len() != 20 + len || len % 4 != 0 {
        return None;
    }
    let mut parsed = Parsed {
        kind,
        id: bytes.get(8..20)?.try_into().ok()?,
        attributes: Vec::new(),
        integrity: None,
        integrity_sha256: None,
        fingerprint: None,
        bytes: bytes.to_vec(),
    };
    let mut at = 20;
    while at < bytes.len() {
        let kind = u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?);
        let len = usize::from(u16::from_be_bytes(
            bytes.get(at + 2..at + 4)?.try_into().ok()?,
        ));
        let value = bytes.get(at + 4..at + 4 + len)?;
        if parsed.fingerprint.is_some() {
            return None;
        }
        parsed.note(kind, at, value)?;
        at += 4 + len.next_multiple_of(4);
    }
    (at == bytes.len()).then_some(parsed)
}

impl Parsed {
    fn note(&mut self, kind: u16, at: usize, value: &[u8]) -> Option<()> {
        let checked = self.integrity.is_some() || self.integrity_sha256.is_some();
        match kind {
            attribute::FINGERPRINT => {
                let right = self.check(at, 8, |bytes| fingerprint(bytes).to_vec()) == value;
                self.fingerprint = (value.len() == 4).then_some(right);
                self.fingerprint?;
            }
            attribute::MESSAGE_INTEGRITY if !checked => {
                self.integrity = (value.len() == 20).then(|| (at, value.to_vec()));
                self.integrity.as_ref()?;
            }
            attribute::MESSAGE_INTEGRITY_SHA256 if self.integrity_sha256.is_none() => {
                let sound = (16..=32).contains(&value.len()) && value.len().is_multiple_of(4);
                self.integrity_sha256 = sound.then(|| (at, value.to_vec()));
                self.integrity_sha256.as_ref()?;
            }
            _ if !checked => self.attributes.push((kind, value.to_vec())),
            _ => {}
        }
        Some(())
    }

    /// Length of the whole message.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the message has no bytes, which none has.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The first attribute of this type.
    pub fn find(&self, kind: u16) -> Option<&[u8]> {
        self.attributes
            .iter()
            .find(|(other, _)| *other == kind)
            .map(|(_, value)| &value[..])
    }

    /// The first attribute of this type, as a XOR'd address.
    pub fn address(&self, kind: u16) -> Option<SocketAddr> {
        self.addresses(kind).into_iter().next()?
    }

    /// All attributes of this type, as XOR'd addresses; `None` for one that is none.
    pub fn addresses(&self, kind: u16) -> Vec<Option<SocketAddr>> {
        let of_kind = self.attributes.iter().filter(|(other, _)| *other == kind);
        of_kind
            .map(|(_, value)| read_address(value, &self.bytes))
            .collect()
    }

    /// The value of a 32-bit attribute.
    pub fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// The error code of an error response.
    pub fn error_code(&self) -> Option<u16> {
        let value = self.find(attribute::ERROR_CODE)?;
        Some(u16::from(*value.get(2)? & 7) * 100 + u16::from(*value.get(3)?))
    }

    /// Whether MESSAGE-INTEGRITY is there and right.
    pub fn verify_integrity(&self, key: &[u8]) -> bool {
        let Some((at, value)) = &self.integrity else {
            return false;
        };
        self.check(*at, 24, |bytes| hmac_sha1(key, bytes)) == *value
    }

    /// Whether MESSAGE-INTEGRITY-SHA256 is there and right.
    pub fn verify_integrity_sha256(&self, key: &[u8]) -> bool {
        let Some((at, value)) = &self.integrity_sha256 else {
            return false;
        };
        let full = self.check(*at, 4 + value.len(), |bytes| hmac_sha256(key, bytes));
        full[..value.len()] == *value
    }

    /// Whether there is a MESSAGE-INTEGRITY of either kind.
    pub fn is_protected(&self) -> bool {
        self.integrity.is_some() || self.integrity_sha256.is_some()
    }

    fn check(&self, at: usize, len: usize, over: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let mut bytes = self.bytes[..at].to_vec();
        let len = u16::try_from(at - 20 + len).expect("it is shorter than the message read");
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        over(&bytes)
    }
}

/// The long-term key of MESSAGE-INTEGRITY.
pub fn md5_key(user: &str, realm: &str, password: &str) -> [u8; 16] {
    Md5::digest(format!("{user}:{realm}:{password}")).into()
}

/// The long-term key of PASSWORD-ALGORITHM SHA-256.
pub fn sha256_key(user: &str, realm: &str, password: &str) -> [u8; 32] {
    Sha256::digest(format!("{user}:{realm}:{password}")).into()
}

/// USERHASH's value.
pub fn userhash(user: &str, realm: &str) -> [u8; 32] {
    Sha256::digest(format!("{user}:{realm}")).into()
}

/// The password of a time-limited username.
pub fn rest_password(secret: &str, username: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mac = hmac_sha1(secret.as_bytes(), username.as_bytes());
    // 20 bytes are 27 digits, the last of 4 bits, and one that pads.
    let bit = |at: usize| mac.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let digit = |at: usize| (at..at + 6).fold(0, |digit, at| digit << 1 | bit(at));
    let digits = (0..27).map(|place| char::from(DIGITS[usize::from(digit(6 * place))]));
    digits.chain(['=']).collect()
}

/// A ChannelData message, padded or not.
pub fn channel_data(channel: u16, data: &[u8], padded: bool) -> Vec<u8> {
    let len = u16::try_from(data.len()).expect("the data fits into a datagram");
    let mut bytes = channel.to_be_bytes().to_vec();
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    if padded {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn read_address(value: &[u8], message: &[u8]) -> Option<SocketAddr> {
    let mut value = value.to_vec();
    let sound = matches!((value.get(1), value.len()), (Some(1), 8) | (Some(2), 20));
    if !sound {
        return None;
    }
    xor_address(&mut value, message);
    let port = u16::from_be_bytes([value[2], value[3]]);
    let ip = match value[1] {
        1 => IpAddr::from(<[u8; 4]>::try_from(&value[4..]).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(&value[4..]).ok()?),
    };
    Some(SocketAddr::new(ip, port))
}

/// XORs port and address with the cookie and the transaction id.
fn xor_address(value: &mut [u8], message: &[u8]) {
    for (byte, mask) in value[2..4].iter_mut().zip(COOKIE) {
        *byte ^= mask;
    }
    for (byte, mask) in value[4..].iter_mut().zip(&message[4..20]) {
        *byte ^= mask;
    }
}

fn hmac_sha1(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac.finalize().into_bytes().to_vec()
}

fn hmac_sha256(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac.finalize().into_bytes().to_vec()
}

fn fingerprint(bytes: &[u8]) -> [u8; 4] {
    (crc32fast::hash(bytes) ^ 0x5354_554e).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let key = md5_key("user", "realm", "pass");
        let addresses: [SocketAddr; 2] = [
            "8.8.8.8:53".parse().unwrap(),
            "[2a00::1]:7".parse().unwrap(),
        ];
        let mut builder = Builder::new(kind::ALLOCATE, [7; 12]);
        builder.put(attribute::USERNAME, b"user");
        for address in addresses {
            builder.put_address(attribute::XOR_PEER_ADDRESS, address);
        }
        let bytes = builder
            .integrity(&key)
            .put(attribute::LIFETIME, &[0; 4])
            .fingerprint()
            .finish();
        let parsed = parse(&bytes).unwrap();
        assert_eq!(parsed.find(attribute::USERNAME), Some(&b"user"[..]));
        assert_eq!(
            parsed.addresses(attribute::XOR_PEER_ADDRESS),
            addresses.map(Some)
        );
        assert_eq!(
            parsed.find(attribute::LIFETIME),
            None,
            "it stands behind the integrity"
        );
        assert!(parsed.verify_integrity(&key) && !parsed.verify_integrity(b"other"));
        assert_eq!(parsed.fingerprint, Some(true));
        let mut broken = bytes.clone();
        broken[25] ^= 1;
        let broken = parse(&broken).unwrap();
        assert!(broken.fingerprint == Some(false) && !broken.verify_integrity(&key));
        assert_eq!(parse(&bytes[..bytes.len() - 4]), None);
    }
}
