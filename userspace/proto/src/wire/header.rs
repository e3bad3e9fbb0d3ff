//! The first twenty bytes of a STUN message (RFC 8489 §5).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! |0 0|  message type (14 bits)   |        length (attributes)    |
//! |                     magic cookie 0x2112a442                   |
//! |                   transaction id (96 bits) …                  |
//! ```

use std::fmt;

/// Length of a STUN header.
pub const HEADER_BYTES: usize = 20;

/// The constant in bytes 4 to 8 of every STUN message.
pub const MAGIC_COOKIE: u32 = 0x2112_a442;

/// What a STUN message is about: 12 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Method(u16);

impl Method {
    /// Binding (RFC 8489 §3).
    pub const BINDING: Self = Self(0x001);
    /// Allocate (RFC 8656 §7).
    pub const ALLOCATE: Self = Self(0x003);
    /// Refresh (RFC 8656 §8).
    pub const REFRESH: Self = Self(0x004);
    /// Send indication (RFC 8656 §11).
    pub const SEND: Self = Self(0x006);
    /// Data indication (RFC 8656 §11).
    pub const DATA: Self = Self(0x007);
    /// CreatePermission (RFC 8656 §10).
    pub const CREATE_PERMISSION: Self = Self(0x008);
    /// ChannelBind (RFC 8656 §12).
    pub const CHANNEL_BIND: Self = Self(0x009);
    /// Connect (RFC 6062 §4.3).
    pub const CONNECT: Self = Self(0x00a);
    /// ConnectionBind (RFC 6062 §4.3).
    pub const CONNECTION_BIND: Self = Self(0x00b);
    /// ConnectionAttempt indication (RFC 6062 §4.4).
    pub const CONNECTION_ATTEMPT: Self = Self(0x00c);

    /// A method by its number; `None` above 12 bits.
    pub const fn new(number: u16) -> Option<Self> {
        if number <= 0xfff {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The method's number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The RFC's name, where it has one here.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::BINDING => "Binding",
            Self::ALLOCATE => "Allocate",
            Self::REFRESH => "Refresh",
            Self::SEND => "Send",
            Self::DATA => "Data",
            Self::CREATE_PERMISSION => "CreatePermission",
            Self::CHANNEL_BIND => "ChannelBind",
            Self::CONNECT => "Connect",
            Self::CONNECTION_BIND => "ConnectionBind",
            Self::CONNECTION_ATTEMPT => "ConnectionAttempt",
            _ => return None,
        })
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "method {:#05x}", self.0),
        }
    }
}

/// A message's class (RFC 8489 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Wants a response.
    Request,
    /// Wants none.
    Indication,
    /// The request was carried out.
    Success,
    /// The request was refused; ERROR-CODE says why.
    Error,
}

/// Method and class, as bytes 0 and 1 of the header hold them.
///
/// ```text
///  13 12 11 10 9 8 7 6 5 4 3 2 1 0
///  M  M  M  M  M C M M M C M M M M      (the class bits lie among the method's)
///  11 10 9  8  7 1 6 5 4 0 3 2 1 0
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageType(u16);

impl MessageType {
    /// The type of a message of this method and class.
    pub const fn new(method: Method, class: Class) -> Self {
        let class = match class {
            Class::Request => 0x000,
            Class::Indication => 0x010,
            Class::Success => 0x100,
            Class::Error => 0x110,
        };
        let m = method.0;
        Self((m & 0x00f) | (m & 0x070) << 1 | (m & 0xf80) << 2 | class)
    }

    /// The type that bytes 0 and 1 hold; `None` where their two highest bits are not zero.
    pub const fn from_bits(bits: u16) -> Option<Self> {
        if bits & 0xc000 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// As bytes 0 and 1 hold it.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// What the message is about.
    pub const fn method(self) -> Method {
        Method((self.0 & 0x000f) | (self.0 & 0x00e0) >> 1 | (self.0 & 0x3e00) >> 2)
    }

    /// The message's class.
    pub const fn class(self) -> Class {
        match (self.0 & 0x100 != 0, self.0 & 0x010 != 0) {
            (false, false) => Class::Request,
            (false, true) => Class::Indication,
            (true, false) => Class::Success,
            (true, true) => Class::Error,
        }
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.method(), self.class())
    }
}

/// Ties a response to its request: 96 random bits of the client's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub [u8; 12]);

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_and_class_survives_the_interleaved_bits() {
        for number in 0..=0xfff {
            let method = Method::new(number).unwrap();
            for class in [
                Class::Request,
                Class::Indication,
                Class::Success,
                Class::Error,
            ] {
                let message_type = MessageType::new(method, class);
                assert_eq!(
                    MessageType::from_bits(message_type.bits()),
                    Some(message_type)
                );
                assert_eq!(
                    (message_type.method(), message_type.class()),
                    (method, class)
                );
            }
        }
        assert_eq!(Method::new(0x1000), None);
    }

    #[test]
    fn message_types_have_the_numbers_of_the_rfcs() {
        assert_eq!(
            MessageType::new(Method::BINDING, Class::Success).bits(),
            0x0101
        );
        assert_eq!(
            MessageType::new(Method::ALLOCATE, Class::Error).bits(),
            0x0113
        );
        assert_eq!(
            MessageType::new(Method::DATA, Class::Indication).bits(),
            0x0017
        );
        assert_eq!(MessageType::from_bits(0x4001), None);
    }
}
