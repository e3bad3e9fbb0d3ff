//! Attribute values: one type for each attribute, read from and written into messages.
//!
//! Reading never allocates; text and bytes are borrowed from the message.

mod algorithm;
mod behavior;
mod error;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use super::{AttributeType, ChannelNumber, MAGIC_COOKIE, TransactionId};

pub use self::algorithm::{Algorithm, PasswordAlgorithm, PasswordAlgorithms};
pub use self::behavior::{ChangeRequest, ResponsePort};
pub use self::error::{AddressErrorCode, ErrorCode, UnknownAttributes};

/// An attribute's value that [`Message::get`](super::Message::get) reads and
/// [`MessageWriter::put`](super::MessageWriter::put) writes.
pub trait Attribute<'a>: Sized {
    /// The attribute's type.
    const TYPE: AttributeType;

    /// Reads the value, padding left off. `id` is the message's, with which addresses are XORed.
    fn read(value: &'a [u8], id: &TransactionId) -> Result<Self, ValueError>;

    /// Length of the value when written.
    fn value_len(&self) -> usize;

    /// Writes the value into `value`, which is [`value_len`](Self::value_len) bytes long and zero.
    fn write(&self, id: &TransactionId, value: &mut [u8]);
}

/// Why an attribute's value cannot be read. The sender is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ValueError {
    /// A length the attribute cannot have.
    #[error("{kind} of {len} bytes")]
    Length {
        /// The attribute.
        kind: AttributeType,
        /// Its length.
        len: usize,
    },
    /// Neither IPv4 (1) nor IPv6 (2).
    #[error("{kind} of address family {family:#04x}")]
    Family {
        /// The attribute.
        kind: AttributeType,
        /// The family's number.
        family: u8,
    },
    /// Text that is not UTF-8.
    #[error("{kind} is not UTF-8")]
    Text {
        /// The attribute.
        kind: AttributeType,
    },
    /// A number outside what the attribute may hold.
    #[error("{kind} holds {number}")]
    Number {
        /// The attribute.
        kind: AttributeType,
        /// The number.
        number: u32,
    },
}

/// Longest USERNAME. RFC 8489 §14.3: "a UTF-8-encoded sequence of fewer than 509 bytes".
pub const MAX_USERNAME_BYTES: usize = 508;

/// Longest REALM, NONCE, SOFTWARE and reason phrase that is read. RFC 8489 §14.8 to §14.14: fewer than
/// 128 characters, which may be 509 bytes when encoded and have to be accepted up to 763.
pub const MAX_TEXT_BYTES: usize = 763;

/// An address family as attributes number it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// 0x01.
    V4,
    /// 0x02.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 2,
        }
    }

    fn read(kind: AttributeType, family: u8) -> Result<Self, ValueError> {
        match family {
            1 => Ok(Self::V4),
            2 => Ok(Self::V6),
            _ => Err(ValueError::Family { kind, family }),
        }
    }
}

fn exactly<const N: usize>(kind: AttributeType, value: &[u8]) -> Result<&[u8; N], ValueError> {
    value.try_into().map_err(|_| ValueError::Length {
        kind,
        len: value.len(),
    })
}

fn text(kind: AttributeType, value: &[u8], most: usize) -> Result<&str, ValueError> {
    if value.len() > most {
        return Err(ValueError::Length {
            kind,
            len: value.len(),
        });
    }
    str::from_utf8(value).map_err(|_| ValueError::Text { kind })
}

/// The bytes an address is XORed with: the cookie, then the transaction id (RFC 8489 §14.2).
fn xor_mask(id: &TransactionId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(&id.0);
    mask
}

fn read_address(
    kind: AttributeType,
    value: &[u8],
    mask: &[u8; 16],
) -> Result<SocketAddr, ValueError> {
    let length = ValueError::Length {
        kind,
        len: value.len(),
    };
    let (&[_, family, p0, p1], address) = value.split_first_chunk().ok_or(length)?;
    let port = u16::from_be_bytes([p0 ^ mask[0], p1 ^ mask[1]]);
    let ip = match Family::read(kind, family)? {
        Family::V4 => {
            let mut octets: [u8; 4] = address.try_into().map_err(|_| length)?;
            octets
                .iter_mut()
                .zip(mask)
                .for_each(|(octet, mask)| *octet ^= mask);
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        Family::V6 => {
            let mut octets: [u8; 16] = address.try_into().map_err(|_| length)?;
            octets
                .iter_mut()
                .zip(mask)
                .for_each(|(octet, mask)| *octet ^= mask);
            IpAddr::V6(Ipv6Addr::from(octets))
        }
    };
    Ok(SocketAddr::new(ip, port))
}

const fn address_len(address: &SocketAddr) -> usize {
    match address {
        SocketAddr::V4(_) => 8,
        SocketAddr::V6(_) => 20,
    }
}

fn write_address(address: &SocketAddr, mask: &[u8; 16], value: &mut [u8]) {
    value[1] = Family::of(address.ip()).number();
    value[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => value[4..8].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => value[4..20].copy_from_slice(&ip.octets()),
    }
    value[2..4]
        .iter_mut()
        .zip(mask)
        .for_each(|(byte, mask)| *byte ^= mask);
    value[4..]
        .iter_mut()
        .zip(mask)
        .for_each(|(byte, mask)| *byte ^= mask);
}

macro_rules! address_attribute {
    ($(#[$doc:meta])* $name:ident, $constant:ident, $mask:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub struct $name(pub SocketAddr);

        impl Attribute<'_> for $name {
            const TYPE: AttributeType = AttributeType::$constant;

            fn read(value: &[u8], id: &TransactionId) -> Result<Self, ValueError> {
                let mask: fn(&TransactionId) -> [u8; 16] = $mask;
                read_address(Self::TYPE, value, &mask(id)).map(Self)
            }

            fn value_len(&self) -> usize {
                address_len(&self.0)
            }

            fn write(&self, id: &TransactionId, value: &mut [u8]) {
                let mask: fn(&TransactionId) -> [u8; 16] = $mask;
                write_address(&self.0, &mask(id), value);
            }
        }
    };
}

address_attribute! {
    /// The client's address as the server saw it, hidden from NATs that rewrite payloads.
    XorMappedAddress, XOR_MAPPED_ADDRESS, xor_mask
}
address_attribute! {
    /// A peer's address.
    XorPeerAddress, XOR_PEER_ADDRESS, xor_mask
}
address_attribute! {
    /// The relayed transport address of an allocation.
    XorRelayedAddress, XOR_RELAYED_ADDRESS, xor_mask
}
address_attribute! {
    /// The client's address as it is, for clients of RFC 3489.
    MappedAddress, MAPPED_ADDRESS, |_| [0; 16]
}
address_attribute! {
    /// Another server to try, in a 300 response.
    AlternateServer, ALTERNATE_SERVER, |_| [0; 16]
}
address_attribute! {
    /// Where a Binding response came from.
    ResponseOrigin, RESPONSE_ORIGIN, |_| [0; 16]
}
address_attribute! {
    /// Where a Binding response would have come from with another address and another port.
    OtherAddress, OTHER_ADDRESS, |_| [0; 16]
}
address_attribute! {
    /// [`ResponseOrigin`] for clients of RFC 3489.
    SourceAddress, SOURCE_ADDRESS, |_| [0; 16]
}
address_attribute! {
    /// [`OtherAddress`] for clients of RFC 3489.
    ChangedAddress, CHANGED_ADDRESS, |_| [0; 16]
}

macro_rules! text_attribute {
    ($(#[$doc:meta])* $name:ident, $constant:ident, $most:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub struct $name<'a>(pub &'a str);

        impl<'a> Attribute<'a> for $name<'a> {
            const TYPE: AttributeType = AttributeType::$constant;

            fn read(value: &'a [u8], _: &TransactionId) -> Result<Self, ValueError> {
                text(Self::TYPE, value, $most).map(Self)
            }

            fn value_len(&self) -> usize {
                self.0.len()
            }

            fn write(&self, _: &TransactionId, value: &mut [u8]) {
                value.copy_from_slice(self.0.as_bytes());
            }
        }
    };
}

text_attribute! {
    /// Who asks.
    Username, USERNAME, MAX_USERNAME_BYTES
}
text_attribute! {
    /// Where the name and password hold.
    Realm, REALM, MAX_TEXT_BYTES
}
text_attribute! {
    /// The sender's software, for people to read.
    Software, SOFTWARE, MAX_TEXT_BYTES
}
text_attribute! {
    /// The name a TLS certificate of the alternate server must carry.
    AlternateDomain, ALTERNATE_DOMAIN, 255
}

macro_rules! bytes_attribute {
    ($(#[$doc:meta])* $name:ident, $constant:ident, $most:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub struct $name<'a>(pub &'a [u8]);

        impl<'a> Attribute<'a> for $name<'a> {
            const TYPE: AttributeType = AttributeType::$constant;

            fn read(value: &'a [u8], _: &TransactionId) -> Result<Self, ValueError> {
                if value.len() > $most {
                    return Err(ValueError::Length { kind: Self::TYPE, len: value.len() });
                }
                Ok(Self(value))
            }

            fn value_len(&self) -> usize {
                self.0.len()
            }

            fn write(&self, _: &TransactionId, value: &mut [u8]) {
                value.copy_from_slice(self.0);
            }
        }
    };
}

bytes_attribute! {
    /// What the server wants back with the next request. Text by the RFC, but echoed, never read.
    Nonce, NONCE, MAX_TEXT_BYTES
}
bytes_attribute! {
    /// The application data of a Send or Data indication.
    Data, DATA, usize::from(u16::MAX)
}
bytes_attribute! {
    /// A mobility ticket.
    MobilityTicket, MOBILITY_TICKET, usize::from(u16::MAX)
}

macro_rules! flag_attribute {
    ($(#[$doc:meta])* $name:ident, $constant:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub struct $name;

        impl Attribute<'_> for $name {
            const TYPE: AttributeType = AttributeType::$constant;

            fn read(value: &[u8], _: &TransactionId) -> Result<Self, ValueError> {
                exactly::<0>(Self::TYPE, value).map(|_| Self)
            }

            fn value_len(&self) -> usize {
                0
            }

            fn write(&self, _: &TransactionId, _: &mut [u8]) {}
        }
    };
}

flag_attribute! {
    /// The relayed datagram must leave with its don't-fragment bit set.
    DontFragment, DONT_FRAGMENT
}
flag_attribute! {
    /// The controlling agent nominates this pair (ICE).
    UseCandidate, USE_CANDIDATE
}

/// A fixed number of bytes: `$to` makes them of the value, `$from` the value of them.
macro_rules! fixed_attribute {
    ($name:ty, $constant:ident, $bytes:literal, $from:expr, $to:expr) => {
        impl Attribute<'_> for $name {
            const TYPE: AttributeType = AttributeType::$constant;

            fn read(value: &[u8], _: &TransactionId) -> Result<Self, ValueError> {
                let from: fn([u8; $bytes]) -> Result<Self, ValueError> = $from;
                from(*exactly::<$bytes>(Self::TYPE, value)?)
            }

            fn value_len(&self) -> usize {
                $bytes
            }

            fn write(&self, _: &TransactionId, value: &mut [u8]) {
                let to: fn(&Self) -> [u8; $bytes] = $to;
                value.copy_from_slice(&to(self));
            }
        }
    };
}

/// How long an allocation lives, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Lifetime(pub u32);

fixed_attribute!(
    Lifetime,
    LIFETIME,
    4,
    |v| Ok(Self(u32::from_be_bytes(v))),
    |a| a.0.to_be_bytes()
);

/// The channel to bind. Reserved bits are written as zero and ignored (RFC 8656 §18.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChannelNumberValue(pub ChannelNumber);

fixed_attribute!(
    ChannelNumberValue,
    CHANNEL_NUMBER,
    4,
    |[n0, n1, _, _]| {
        let number = u16::from_be_bytes([n0, n1]);
        let refused = ValueError::Number {
            kind: Self::TYPE,
            number: number.into(),
        };
        ChannelNumber::new(number).map(Self).ok_or(refused)
    },
    |a| {
        let [n0, n1] = a.0.number().to_be_bytes();
        [n0, n1, 0, 0]
    }
);

/// The transport from the relay to the peers: an IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestedTransport(pub u8);

impl RequestedTransport {
    /// 17.
    pub const UDP: Self = Self(17);
    /// 6 (RFC 6062).
    pub const TCP: Self = Self(6);
}

fixed_attribute!(
    RequestedTransport,
    REQUESTED_TRANSPORT,
    4,
    |[protocol, _, _, _]| Ok(Self(protocol)),
    |a| [a.0, 0, 0, 0]
);

/// The family the relayed address is wanted in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestedAddressFamily(pub Family);

fixed_attribute!(
    RequestedAddressFamily,
    REQUESTED_ADDRESS_FAMILY,
    4,
    |[family, _, _, _]| Family::read(Self::TYPE, family).map(Self),
    |a| [a.0.number(), 0, 0, 0]
);

/// The second family an allocation is wanted in. RFC 8656 §18.11 allows IPv6 only; IPv4 is read, so
/// that the server can answer 400.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AdditionalAddressFamily(pub Family);

fixed_attribute!(
    AdditionalAddressFamily,
    ADDITIONAL_ADDRESS_FAMILY,
    4,
    |[family, _, _, _]| Family::read(Self::TYPE, family).map(Self),
    |a| [a.0.number(), 0, 0, 0]
);

/// What [`AdditionalAddressFamily`] was before it had its number. coturn's programs send it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EarlyAdditionalAddressFamily(pub Family);

fixed_attribute!(
    EarlyAdditionalAddressFamily,
    EARLY_ADDITIONAL_ADDRESS_FAMILY,
    4,
    |[family, _, _, _]| Family::read(Self::TYPE, family).map(Self),
    |a| [a.0.number(), 0, 0, 0]
);

/// The relayed port must be even.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EvenPort {
    /// The R bit: keep the next higher port for a later allocation.
    pub reserve_next: bool,
}

fixed_attribute!(
    EvenPort,
    EVEN_PORT,
    1,
    |[flags]| Ok(Self {
        reserve_next: flags & 0x80 != 0
    }),
    |a| [u8::from(a.reserve_next) << 7]
);

/// Stands for a port kept by [`EvenPort`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReservationToken(pub [u8; 8]);

fixed_attribute!(
    ReservationToken,
    RESERVATION_TOKEN,
    8,
    |v| Ok(Self(v)),
    |a| a.0
);

/// SHA-256 of `username:realm`, in place of USERNAME.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Userhash(pub [u8; 32]);

fixed_attribute!(Userhash, USERHASH, 32, |v| Ok(Self(v)), |a| a.0);

/// A connection of RFC 6062.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionId(pub u32);

fixed_attribute!(
    ConnectionId,
    CONNECTION_ID,
    4,
    |v| Ok(Self(u32::from_be_bytes(v))),
    |a| a.0.to_be_bytes()
);

/// The priority a peer-reflexive candidate would have (ICE).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Priority(pub u32);

fixed_attribute!(
    Priority,
    PRIORITY,
    4,
    |v| Ok(Self(u32::from_be_bytes(v))),
    |a| a.0.to_be_bytes()
);

/// The sender believes it is controlled; its tie-breaker (ICE).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IceControlled(pub u64);

fixed_attribute!(
    IceControlled,
    ICE_CONTROLLED,
    8,
    |v| Ok(Self(u64::from_be_bytes(v))),
    |a| a.0.to_be_bytes()
);

/// The sender believes it controls; its tie-breaker (ICE).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IceControlling(pub u64);

fixed_attribute!(
    IceControlling,
    ICE_CONTROLLING,
    8,
    |v| Ok(Self(u64::from_be_bytes(v))),
    |a| a.0.to_be_bytes()
);

/// An ICMP message the relay received for an allocation, in a Data indication (RFC 8656 §18.13).
///
/// ```text
/// |          reserved (16)        |  type (7)   |    code (9)     |
/// |                        error data (32)                        |
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Icmp {
    /// The ICMP type; the field holds 7 bits.
    pub icmp_type: u8,
    /// The ICMP code; the field holds 9 bits.
    pub code: u16,
    /// The MTU where the message says "too big", else zero.
    pub error_data: u32,
}

fixed_attribute!(
    Icmp,
    ICMP,
    8,
    |[_, _, t, c, d0, d1, d2, d3]| {
        Ok(Self {
            icmp_type: t >> 1,
            code: u16::from_be_bytes([t & 1, c]),
            error_data: u32::from_be_bytes([d0, d1, d2, d3]),
        })
    },
    |a| {
        let bits = u16::from(a.icmp_type & 0x7f) << 9 | a.code & 0x1ff;
        let [t, c] = bits.to_be_bytes();
        let [d0, d1, d2, d3] = a.error_data.to_be_bytes();
        [0, 0, t, c, d0, d1, d2, d3]
    }
);

#[cfg(test)]
mod tests;
