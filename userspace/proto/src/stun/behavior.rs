//! The server's two addresses and two ports for NAT behaviour discovery (RFC 5780 §6): where answers
//! can come from, and how many may be longer than others.
//!
//! ```text
//!   index       address   port       CHANGE-REQUEST is an exclusive or:
//!   4 n + 0     first     first        change port     ^ 1
//!   4 n + 1     first     second       change address  ^ 2
//!   4 n + 2     second    first        both            ^ 3, which is OTHER-ADDRESS
//!   4 n + 3     second    second
//! ```

use std::net::{IpAddr, SocketAddr};

use rand_chacha::rand_core::Rng;
use thiserror::Error;
use towpath_ebpf_common::strangers::{self, Admission};

use crate::Timestamp;
use crate::machine::ListenerId;
use crate::relay::{RelayAddress, StrangerLimits, Strangers};
use crate::wire::attribute::ChangeRequest;

/// Answers per second and shard that may be longer than [`BINDING_TENTHS`](crate::auth::BINDING_TENTHS)
/// allows, because the shortest request asks what a short answer cannot hold. A client that learns how
/// its NAT behaves sends a handful.
const LONG_ANSWERS: StrangerLimits = StrangerLimits {
    per_source: 8,
    per_network: 32,
    in_total: 1000,
};

/// The addresses and ports of NAT behaviour discovery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BehaviorAddresses {
    /// Two addresses of IPv4, of IPv6, or of each.
    pub pairs: Vec<[RelayAddress; 2]>,
    /// The port that clients know, and the other.
    pub ports: [u16; 2],
}

/// A rule that [`BehaviorAddresses`] break.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BehaviorAddressError {
    /// The two ports are one, or none.
    #[error("{first} and {second} cannot be the two ports of behaviour discovery")]
    Ports {
        /// The first.
        first: u16,
        /// The second.
        second: u16,
    },
    /// Two addresses that cannot stand beside each other.
    #[error("{first} and {second} cannot be two addresses of behaviour discovery")]
    Pair {
        /// The first.
        first: IpAddr,
        /// The second.
        second: IpAddr,
    },
    /// More than a pair of each family.
    #[error("{pairs} pairs of addresses for behaviour discovery, there may be one of each family")]
    Pairs {
        /// How many there are.
        pairs: usize,
    },
    /// A combination of address and port that is not listened on.
    #[error("behaviour discovery needs {address}, which is not listened on")]
    NotListenedOn {
        /// The combination.
        address: SocketAddr,
    },
}

impl BehaviorAddresses {
    /// Every combination of a local address and a port: all have to be listened on.
    pub fn combinations(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let locals = self.pairs.iter().flatten().map(|address| address.local);
        locals.flat_map(|ip| self.ports.map(|port| SocketAddr::new(ip, port)))
    }

    pub(crate) fn validate(&self, listeners: &[SocketAddr]) -> Result<(), BehaviorAddressError> {
        let [first, second] = self.ports;
        if first == second || first == 0 || second == 0 {
            return Err(BehaviorAddressError::Ports { first, second });
        }
        for [one, other] in &self.pairs {
            let families = [one.local, one.public, other.local, other.public];
            let alike = families
                .iter()
                .all(|ip| ip.is_ipv4() == one.local.is_ipv4());
            let usable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast();
            let distinct = one.local != other.local && one.public != other.public;
            if !alike || !distinct || !families.iter().all(usable) {
                let (first, second) = (one.public, other.public);
                return Err(BehaviorAddressError::Pair { first, second });
            }
        }
        let of_v4 = self.pairs.iter().filter(|pair| pair[0].local.is_ipv4());
        let of_v4 = of_v4.count();
        if of_v4 > 1 || self.pairs.len() - of_v4 > 1 {
            let pairs = self.pairs.len();
            return Err(BehaviorAddressError::Pairs { pairs });
        }
        match self
            .combinations()
            .find(|address| listener_of(listeners, *address).is_none())
        {
            Some(address) => Err(BehaviorAddressError::NotListenedOn { address }),
            None => Ok(()),
        }
    }
}

/// The listener that gets what is sent to `address`: the kernel prefers it to a wildcard.
fn listener_of(listeners: &[SocketAddr], address: SocketAddr) -> Option<ListenerId> {
    let any = |listener: &SocketAddr| {
        listener.ip().is_unspecified()
            && listener.port() == address.port()
            && listener.is_ipv4() == address.is_ipv4()
    };
    let exact = listeners.iter().position(|listener| *listener == address);
    let index = exact.or_else(|| listeners.iter().position(any))?;
    u16::try_from(index).ok().map(ListenerId)
}

/// One combination of address and port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) listener: ListenerId,
    pub(crate) local: IpAddr,
    /// As clients know it.
    pub(crate) public: SocketAddr,
}

/// Which of the [`Origin`]s a request came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(usize);

/// A shard's side of behaviour discovery.
#[derive(Debug)]
pub(crate) struct Discovery {
    origins: Vec<Origin>,
    long_answers: Strangers,
    long_answer_paces: strangers::StrangerLimits,
}

impl Discovery {
    /// The addresses must have passed [`BehaviorAddresses::validate`].
    pub(crate) fn new(
        addresses: &BehaviorAddresses,
        listeners: &[SocketAddr],
        rng: &mut impl Rng,
    ) -> Self {
        let addresses_in_order = addresses.pairs.iter().flatten();
        let origins = addresses_in_order.flat_map(|address| {
            addresses.ports.map(|port| Origin {
                listener: listener_of(listeners, SocketAddr::new(address.local, port))
                    .expect("every combination was found to be listened on"),
                local: address.local,
                public: SocketAddr::new(address.public, port),
            })
        });
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let long_answers = Strangers::new(&secret);
        Self {
            origins: origins.collect(),
            long_answer_paces: long_answers.paces(&LONG_ANSWERS),
            long_answers,
        }
    }

    /// Where a request came to; `None` where there is no other address and port beside it.
    pub(crate) fn place(&self, listener: ListenerId, local: IpAddr) -> Option<Place> {
        let is_it = |origin: &Origin| origin.listener == listener && origin.local == local;
        self.origins.iter().position(is_it).map(Place)
    }

    /// Where the answer comes from. RFC 5780 §6.1, table 1.
    pub(crate) fn origin(&self, place: Place, change: ChangeRequest) -> Origin {
        let flip = usize::from(change.address) << 1 | usize::from(change.port);
        self.origins[place.0 ^ flip]
    }

    /// RFC 5780 §6.1: OTHER-ADDRESS is "the source IP address and port that would be used if the
    /// client had set the 'change IP' and 'change port' flags".
    pub(crate) fn other(&self, place: Place) -> SocketAddr {
        let both = ChangeRequest {
            address: true,
            port: true,
        };
        self.origin(place, both).public
    }

    /// Whether one more answer may be longer than others; counts it.
    pub(crate) fn admits_long_answer(&self, now: Timestamp, client: IpAddr) -> bool {
        let paces = &self.long_answer_paces;
        self.long_answers.charge(now, paces, client, false) == Admission::Admitted
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha12Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn direct(ip: &str) -> RelayAddress {
        RelayAddress::direct(ip.parse().unwrap())
    }

    fn addresses() -> BehaviorAddresses {
        BehaviorAddresses {
            pairs: vec![
                [direct("192.0.2.1"), direct("192.0.2.2")],
                [direct("2001:db8::1"), direct("2001:db8::2")],
            ],
            ports: [3478, 3479],
        }
    }

    fn listeners(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    const WILDCARDS: [&str; 4] = ["0.0.0.0:3478", "0.0.0.0:3479", "[::]:3478", "[::]:3479"];

    // RFC 5780 §6.1, table 1
    #[test]
    fn the_flags_choose_address_and_port_independently() {
        let listeners = listeners(&WILDCARDS);
        let mut rng = ChaCha12Rng::from_seed([1; 32]);
        let discovery = Discovery::new(&addresses(), &listeners, &mut rng);
        let cases = [
            (
                ListenerId(0),
                "192.0.2.1",
                ["1:3478", "1:3479", "2:3478", "2:3479"],
            ),
            (
                ListenerId(0),
                "192.0.2.2",
                ["2:3478", "2:3479", "1:3478", "1:3479"],
            ),
            (
                ListenerId(1),
                "192.0.2.1",
                ["1:3479", "1:3478", "2:3479", "2:3478"],
            ),
        ];
        for (listener, local, expected) in cases {
            let place = discovery.place(listener, local.parse().unwrap()).unwrap();
            for (flags, expected) in expected.into_iter().enumerate() {
                let (address, port) = (flags & 2 != 0, flags & 1 != 0);
                let origin = discovery.origin(place, ChangeRequest { address, port });
                assert_eq!(origin.public.to_string(), format!("192.0.2.{expected}"));
            }
            let other = format!("192.0.2.{}", expected[3]);
            assert_eq!(discovery.other(place).to_string(), other);
        }
        let place = discovery.place(ListenerId(3), "2001:db8::2".parse().unwrap());
        let other = discovery.other(place.unwrap());
        assert_eq!(other, "[2001:db8::1]:3478".parse().unwrap());
        let elsewhere = discovery.place(ListenerId(0), "192.0.2.3".parse().unwrap());
        assert!(elsewhere.is_none(), "no other address belongs to it");
    }

    #[test]
    fn every_combination_has_to_be_listened_on() {
        let sound = addresses();
        assert_eq!(sound.validate(&listeners(&WILDCARDS)), Ok(()));
        let each: Vec<String> = sound.combinations().map(|a| a.to_string()).collect();
        let each: Vec<&str> = each.iter().map(String::as_str).collect();
        assert_eq!(sound.validate(&listeners(&each)), Ok(()));
        for missing in 0..each.len() {
            let mut fewer = listeners(&each);
            let address = fewer.remove(missing);
            let refused = BehaviorAddressError::NotListenedOn { address };
            assert_eq!(sound.validate(&fewer), Err(refused));
        }
    }

    #[test]
    fn one_pair_of_each_family_with_two_addresses_and_two_ports_is_sound() {
        let all = listeners(&WILDCARDS);
        let mut same_ports = addresses();
        same_ports.ports = [3478, 3478];
        let refused = same_ports.validate(&all).unwrap_err();
        assert!(matches!(refused, BehaviorAddressError::Ports { .. }));
        for pair in [
            [direct("192.0.2.1"), direct("192.0.2.1")],
            [direct("192.0.2.1"), direct("2001:db8::1")],
            [direct("192.0.2.1"), direct("0.0.0.0")],
        ] {
            let pairs = vec![pair];
            let refused = BehaviorAddresses {
                pairs,
                ..addresses()
            };
            let refused = refused.validate(&all).unwrap_err();
            assert!(matches!(refused, BehaviorAddressError::Pair { .. }));
        }
        let mut twice = addresses();
        twice.pairs[1] = [direct("192.0.2.3"), direct("192.0.2.4")];
        let refused = BehaviorAddressError::Pairs { pairs: 2 };
        assert_eq!(twice.validate(&all), Err(refused));
    }
}
