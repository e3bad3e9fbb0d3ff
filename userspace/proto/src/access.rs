//! Which peers a relay may be made to talk to.
//!
//! Every peer address passes through [`PeerPolicy::judge_from`] and nothing else. It first finds the
//! IPv4 addresses that an IPv6 address carries (IPv4-mapped and -compatible, IPv4-translated, 6to4,
//! NAT64, Teredo) and judges those too: one denied address inside denies the whole.
//!
//! ```text
//!   never      unspecified, multicast, broadcast, IPv4-mapped/-compatible/-translated   → denied
//!   deny       a prefix of `deny`                                                       → denied
//!   own        a relay address of this host     → its relayed ports in use, and nothing else;
//!              one on the loopback              → the same, for allocations on the loopback
//!              another address of this host                                             → denied
//!   allow      a prefix of `allow`                                                      → allowed
//!   special    every special-use range of the IANA registries, and IPv6 outside 2000::/3 → denied
//!   else                                                                                → allowed
//! ```
//!
//! A prefix of `allow` opens an address of this host only where it names that very address (`/32`,
//! `/128`) or, for loopback, lies within the loopback range; a wider prefix that happens to cover
//! the host does not. Listening ports of the relay stay closed even then, so relayed data can never
//! reach a listening address and loop.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

use crate::relay::{RelayConfig, RelayShared};

/// Exceptions to the default rules about peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRules {
    /// Exceptions to the denial of special-use ranges.
    pub allow: Vec<IpPrefix>,
    /// Denied in any case: wins over `allow`.
    pub deny: Vec<IpPrefix>,
}

/// The first bits of an IP address, as in `10.0.0.0/8`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IpPrefix {
    address: IpAddr,
    bits: u8,
}

impl IpPrefix {
    /// A prefix of `bits` bits; the bits behind them must be zero.
    pub fn new(address: IpAddr, bits: u8) -> Result<Self, IpPrefixError> {
        let width = if address.is_ipv4() { 32 } else { 128 };
        if bits > width {
            return Err(IpPrefixError::TooLong {
                address,
                bits,
                width,
            });
        }
        if significant(address) & !mask(address, bits) != 0 {
            return Err(IpPrefixError::HostBits { address, bits });
        }
        Ok(Self { address, bits })
    }

    /// Whether the address begins with this prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && (significant(address) ^ significant(self.address)) & mask(address, self.bits) == 0
    }

    /// Whether the prefix is one whole address.
    pub fn is_host(&self) -> bool {
        self.bits == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The address the prefix begins with.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of bits.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    fn is_within_loopback(&self) -> bool {
        match self.address {
            IpAddr::V4(_) => self.bits >= 8 && self.address.is_loopback(),
            IpAddr::V6(_) => self.is_host() && self.address.is_loopback(),
        }
    }
}

/// The address's bits, at the top of 128.
fn significant(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Ones for the first `bits` of the address's width.
fn mask(address: IpAddr, bits: u8) -> u128 {
    let width = if address.is_ipv4() {
        u128::MAX << 96
    } else {
        u128::MAX
    };
    width & !u128::MAX.checked_shr(u32::from(bits)).unwrap_or(0)
}

impl FromStr for IpPrefix {
    type Err = IpPrefixError;

    /// Reads `address/bits`, or a single address.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, bits) = text
            .split_once('/')
            .map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| IpPrefixError::Address {
            text: text.to_owned(),
        })?;
        let bits = match bits {
            None if address.is_ipv4() => 32,
            None => 128,
            Some(bits) => bits.parse().map_err(|_| IpPrefixError::Bits {
                text: text.to_owned(),
            })?,
        };
        Self::new(address, bits)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// Why a text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IpPrefixError {
    /// The part before the slash is no IP address.
    #[error("\"{text}\" does not begin with an IP address")]
    Address {
        /// The text.
        text: String,
    },
    /// The part behind the slash is no number of bits.
    #[error("\"{text}\" does not end in a prefix length")]
    Bits {
        /// The text.
        text: String,
    },
    /// More bits than the address has.
    #[error("{address}/{bits}: a prefix of this family has at most {width} bits")]
    TooLong {
        /// The address.
        address: IpAddr,
        /// The bits asked for.
        bits: u8,
        /// The bits there are.
        width: u8,
    },
    /// The address goes on behind the prefix.
    #[error("{address}/{bits} has bits set behind the prefix")]
    HostBits {
        /// The address.
        address: IpAddr,
        /// The prefix length.
        bits: u8,
    },
}

/// The rules in force.
#[derive(Clone, Debug)]
pub struct PeerPolicy {
    rules: AccessRules,
    own: Vec<(IpAddr, OwnAddress)>,
    listeners: Vec<SocketAddr>,
}

/// What [`PeerPolicy::judge_from`] says about an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every port may be reached.
    Allowed,
    /// An address of this host: each port is judged by itself, by
    /// [`PeerPolicy::is_own_port_open`].
    Own(OwnAddress),
    /// No port may be reached.
    Denied(Denial),
}

/// Why a peer address is denied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denial {
    /// It is nobody's unicast address, or IPv4 in disguise.
    NoPeer,
    /// A prefix of `deny` covers it.
    Rule,
    /// It is in a special-use range that no prefix of `allow` opens.
    SpecialUse,
    /// It carries an IPv4 address that is denied.
    Embedded,
    /// It is an address of this host that no allocation can have and `allow` does not name.
    OwnHost,
}

/// An address of this host as a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnAddress {
    /// Index of the relay address that peers know by this IP.
    relay_address: Option<u8>,
    /// Whether `allow` names the address.
    opened: bool,
}

impl OwnAddress {
    /// Denied where no port can ever be open, so that a client hears of it at once.
    fn verdict(self) -> Verdict {
        if self.relay_address.is_some() || self.opened {
            Verdict::Own(self)
        } else {
            Verdict::Denied(Denial::OwnHost)
        }
    }

    /// Index of the relay address that peers know by this IP.
    pub(crate) fn relay_address(self) -> Option<usize> {
        self.relay_address.map(usize::from)
    }
}

impl PeerPolicy {
    /// The rules of a configuration.
    pub fn new(config: &RelayConfig) -> Self {
        let mut policy = Self {
            rules: config.access.clone(),
            own: Vec::new(),
            listeners: config.listeners.clone(),
        };
        for (index, address) in config.relay_addresses.iter().enumerate() {
            policy.add_own(address.public, u8::try_from(index).ok());
        }
        let local = config.relay_addresses.iter().map(|address| address.local);
        let listening = config.listeners.iter().map(SocketAddr::ip);
        for address in local
            .chain(listening)
            .chain(config.own_addresses.iter().copied())
        {
            policy.add_own(address, None);
        }
        policy
    }

    fn add_own(&mut self, address: IpAddr, relay_address: Option<u8>) {
        if self.own.iter().any(|(known, _)| *known == address) {
            return;
        }
        let opened = self.is_opened(address);
        self.own.push((
            address,
            OwnAddress {
                relay_address,
                opened,
            },
        ));
    }

    /// Whether this is an address of our host.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.own.iter().any(|(known, _)| *known == address)
    }

    /// Whether `allow` names this address of our host.
    fn is_opened(&self, address: IpAddr) -> bool {
        self.rules.allow.iter().any(|prefix| {
            prefix.contains(address) && (prefix.is_host() || prefix.is_within_loopback())
        })
    }

    /// Judges a peer's address, whoever asks.
    fn judge(&self, address: IpAddr) -> Verdict {
        if is_never_a_peer(address) {
            return Verdict::Denied(Denial::NoPeer);
        }
        for inner in Embedded::of(address).iter() {
            match self.judge_one(IpAddr::V4(inner)) {
                Verdict::Allowed => {}
                Verdict::Own(_) | Verdict::Denied(_) => return Verdict::Denied(Denial::Embedded),
            }
        }
        self.judge_one(address)
    }

    /// Judges a peer's address for an allocation whose relayed port is on `local`.
    pub fn judge_from(&self, local: IpAddr, peer: IpAddr) -> Verdict {
        match self.judge(peer) {
            // What comes from elsewhere would pass for a neighbour there.
            Verdict::Own(own) if peer.is_loopback() && !local.is_loopback() && !own.opened => {
                Verdict::Denied(Denial::OwnHost)
            }
            verdict => verdict,
        }
    }

    fn judge_one(&self, address: IpAddr) -> Verdict {
        if is_never_a_peer(address) {
            return Verdict::Denied(Denial::NoPeer);
        }
        if self
            .rules
            .deny
            .iter()
            .any(|prefix| prefix.contains(address))
        {
            return Verdict::Denied(Denial::Rule);
        }
        if let Some((_, own)) = self.own.iter().find(|(known, _)| *known == address) {
            return own.verdict();
        }
        let allowed = self
            .rules
            .allow
            .iter()
            .any(|prefix| prefix.contains(address));
        if address.is_loopback() && allowed {
            // All of 127.0.0.0/8 is this host, whether it is listed or not.
            let opened = self.is_opened(address);
            let own = OwnAddress {
                relay_address: None,
                opened,
            };
            return own.verdict();
        }
        if !allowed && is_special_use(address) {
            return Verdict::Denied(Denial::SpecialUse);
        }
        Verdict::Allowed
    }

    /// Whether a port of an own address may be reached now: a relayed port in use, or any port but
    /// a listening one where `allow` names the address.
    pub fn is_own_port_open(
        &self,
        own: OwnAddress,
        peer: SocketAddr,
        shared: &RelayShared,
    ) -> bool {
        let relayed = own
            .relay_address
            .is_some_and(|index| shared.is_live(usize::from(index), peer.port()));
        relayed || (own.opened && !self.is_listening_port(peer.port()))
    }

    /// Listening ports are closed at every own address: a public one may lead to any of them.
    fn is_listening_port(&self, port: u16) -> bool {
        self.listeners
            .iter()
            .any(|listener| listener.port() == port)
    }
}

/// Addresses that no rule opens.
fn is_never_a_peer(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => {
            // RFC 4291 §2.5.5 and RFC 7915 §2: IPv4 in disguise. An IPv4 peer has an IPv4 address.
            let compatible = v6.to_bits() >> 32 == 0 && !v6.is_loopback();
            let mapped = v6.to_bits() >> 32 == 0xffff;
            let translated = v6.to_bits() >> 32 == 0xffff_0000;
            v6.is_multicast() || compatible || mapped || translated
        }
    }
}

/// The IPv4 addresses that an IPv6 address carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Embedded([Option<Ipv4Addr>; 2]);

impl Embedded {
    fn of(address: IpAddr) -> Self {
        let IpAddr::V6(v6) = address else {
            return Self([None; 2]);
        };
        let bits = v6.to_bits();
        let at = |shift: u32| Some(Ipv4Addr::from_bits((bits >> shift) as u32));
        let [first, second, third, ..] = v6.segments();
        Self(match (first, second, third) {
            // RFC 3056 §2: 2002:V4ADDR::/48.
            (0x2002, _, _) => [at(80), None],
            // RFC 4380 §4: the server's address, and the client's with its bits inverted.
            (0x2001, 0, _) => [at(64), at(0).map(|v4| Ipv4Addr::from_bits(!v4.to_bits()))],
            // RFC 8215: local-use NAT64. RFC 6052 §2.2 puts the address elsewhere for each prefix
            // length; both the /48 and the /96 form are looked at.
            (0x64, 0xff9b, 1) => {
                let high = (bits >> 64) as u32 & 0xffff;
                let low = (bits >> 40) as u32 & 0xffff;
                [Some(Ipv4Addr::from_bits(high << 16 | low)), at(0)]
            }
            // RFC 6052 §2.1: 64:ff9b::/96.
            (0x64, 0xff9b, 0) => [at(0), None],
            _ => [None; 2],
        })
    }

    fn iter(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.0.into_iter().flatten()
    }
}

/// Special-use ranges: the IANA special-purpose address registries, multicast, and whatever of IPv6
/// is not global unicast.
fn is_special_use(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => SPECIAL_V4
            .iter()
            .any(|&(start, bits)| (v4.to_bits() ^ start) >> (32 - bits) == 0),
        IpAddr::V6(v6) => {
            let in_range = |&(start, bits): &(Ipv6Addr, u32)| {
                (v6.to_bits() ^ start.to_bits()) >> (128 - bits) == 0
            };
            let global_unicast = in_range(&(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3))
                || in_range(&(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96));
            !global_unicast || SPECIAL_V6.iter().any(in_range)
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

const SPECIAL_V4: [(u32, u32); 17] = [
    (v4(0, 0, 0, 0), 8),
    (v4(10, 0, 0, 0), 8),
    (v4(100, 64, 0, 0), 10),
    (v4(127, 0, 0, 0), 8),
    (v4(169, 254, 0, 0), 16),
    (v4(172, 16, 0, 0), 12),
    (v4(192, 0, 0, 0), 24),
    (v4(192, 0, 2, 0), 24),
    (v4(192, 31, 196, 0), 24),
    (v4(192, 52, 193, 0), 24),
    (v4(192, 88, 99, 0), 24),
    (v4(192, 168, 0, 0), 16),
    (v4(192, 175, 48, 0), 24),
    (v4(198, 18, 0, 0), 15),
    (v4(198, 51, 100, 0), 24),
    (v4(203, 0, 113, 0), 24),
    // Multicast and 240.0.0.0/4 are neighbours.
    (v4(224, 0, 0, 0), 3),
];

/// Within 2000::/3; 6to4 is judged by the IPv4 address it carries.
const SPECIAL_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

#[cfg(test)]
mod tests;
