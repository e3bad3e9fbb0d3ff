//! Error codes and their standard reason phrases (IANA, STUN Error Codes registry).

use std::fmt;

/// An error code: 300 to 699.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u16);

macro_rules! codes {
    ($($constant:ident = $number:literal, $reason:literal, $rfc:literal;)*) => {
        impl Code {
            $(
                #[doc = concat!($reason, " (", $rfc, ").")]
                pub const $constant: Self = Self($number);
            )*

            /// The registry's reason phrase; empty for a code this codec does not know.
            pub const fn reason(self) -> &'static str {
                match self {
                    $(Self::$constant => $reason,)*
                    _ => "",
                }
            }
        }
    };
}

codes! {
    TRY_ALTERNATE = 300, "Try Alternate", "RFC 8489 §14.8";
    BAD_REQUEST = 400, "Bad Request", "RFC 8489 §14.8";
    UNAUTHENTICATED = 401, "Unauthenticated", "RFC 8489 §14.8";
    FORBIDDEN = 403, "Forbidden", "RFC 8656 §19";
    MOBILITY_FORBIDDEN = 405, "Mobility Forbidden", "RFC 8016 §6";
    UNKNOWN_ATTRIBUTE = 420, "Unknown Attribute", "RFC 8489 §14.8";
    ALLOCATION_MISMATCH = 437, "Allocation Mismatch", "RFC 8656 §19";
    STALE_NONCE = 438, "Stale Nonce", "RFC 8489 §14.8";
    ADDRESS_FAMILY_NOT_SUPPORTED = 440, "Address Family not Supported", "RFC 8656 §19";
    WRONG_CREDENTIALS = 441, "Wrong Credentials", "RFC 8656 §19";
    UNSUPPORTED_TRANSPORT = 442, "Unsupported Transport Protocol", "RFC 8656 §19";
    PEER_ADDRESS_FAMILY_MISMATCH = 443, "Peer Address Family Mismatch", "RFC 8656 §19";
    CONNECTION_ALREADY_EXISTS = 446, "Connection Already Exists", "RFC 6062 §6.3";
    CONNECTION_TIMEOUT_OR_FAILURE = 447, "Connection Timeout or Failure", "RFC 6062 §6.3";
    ALLOCATION_QUOTA_REACHED = 486, "Allocation Quota Reached", "RFC 8656 §19";
    ROLE_CONFLICT = 487, "Role Conflict", "RFC 8445 §7.1";
    SERVER_ERROR = 500, "Server Error", "RFC 8489 §14.8";
    INSUFFICIENT_CAPACITY = 508, "Insufficient Capacity", "RFC 8656 §19";
}

impl Code {
    /// A code by its number; `None` outside 300 to 699.
    ///
    /// RFC 8489 §14.8: "The Class represents the hundreds digit of the error code. The value MUST be
    /// between 3 and 6."
    pub const fn new(number: u16) -> Option<Self> {
        if number >= 300 && number <= 699 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The code's number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            "" => write!(f, "{}", self.0),
            reason => write!(f, "{} {reason}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
