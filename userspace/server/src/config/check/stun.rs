//! The rules of `[stun]`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use toml::Spanned;
use towpath_proto::relay::RelayAddress;

use super::Checker;
use crate::config::error::Problem;
use crate::config::shape::StunShape;
use crate::config::{Placed, StunSection};

const PORTS: &str = "stun.behavior_ports";
const DEFAULT_PORTS: [u16; 2] = [3478, 3479];

impl Checker<'_> {
    pub(super) fn stun(
        &mut self,
        shape: StunShape,
        relayed_ports: &RangeInclusive<u16>,
    ) -> StunSection {
        let key = "stun.behavior_addresses";
        let any = "no single address; name two of them";
        let addresses = self.address_pairs(key, any, shape.behavior_addresses);
        for v4 in [true, false] {
            let of_family = addresses.iter().filter(|a| a.value.local.is_ipv4() == v4);
            let of_family: Vec<&Placed<RelayAddress>> = of_family.collect();
            if let [first, ..] = of_family[..]
                && of_family.len() != 2
            {
                let problem = Problem::BehaviorAddresses {
                    family: if v4 { "IPv4" } else { "IPv6" },
                    count: of_family.len(),
                };
                self.error(first.span.clone(), problem);
            }
        }
        let ports = match shape.behavior_ports {
            Some(ports) => self.behavior_ports(ports, relayed_ports),
            None => DEFAULT_PORTS,
        };
        StunSection {
            behavior_addresses: addresses,
            behavior_ports: ports,
        }
    }

    fn behavior_ports(
        &mut self,
        list: Spanned<Vec<Spanned<i64>>>,
        relayed_ports: &RangeInclusive<u16>,
    ) -> [u16; 2] {
        let span = list.span();
        let mut ports = Vec::new();
        for number in list.into_inner() {
            let value = *number.get_ref();
            let Some(port) = u16::try_from(value).ok().filter(|port| *port > 0) else {
                let problem = Problem::OutOfRange {
                    key: PORTS,
                    value,
                    min: 1,
                    max: u16::MAX.into(),
                };
                self.error(number.span(), problem);
                return DEFAULT_PORTS;
            };
            if relayed_ports.contains(&port) {
                let problem = Problem::BehaviorPortInPortRange {
                    port,
                    port_range: relayed_ports.clone(),
                };
                self.error(number.span(), problem);
            }
            ports.push(port);
        }
        match ports[..] {
            [first, second] if first != second => [first, second],
            _ => {
                self.error(span, Problem::BehaviorPorts);
                DEFAULT_PORTS
            }
        }
    }
}

impl StunSection {
    /// Every combination of address and port, and where its address is written.
    pub fn combinations(&self) -> impl Iterator<Item = (&Placed<RelayAddress>, SocketAddr)> {
        let ports = self.behavior_ports;
        self.behavior_addresses.iter().flat_map(move |placed| {
            ports.map(|port| (placed, SocketAddr::new(placed.value.local, port)))
        })
    }
}
