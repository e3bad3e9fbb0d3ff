//! The maps a packet is relayed by: routes, next hops, the relay's own addresses, settings.
//!
//! ```text
//!   source address, port ─┐
//!   local address, port   ├─ ROUTES ─▶ Route ─▶ NEXT_HOPS[next_hop] ─▶ NextHop
//!   channel (0: none)    ─┘              └────▶ METERS, LIMITS [up_slot], [down_slot]
//! ```
//!
//! Addresses are IPv6, an IPv4 address is IPv4-mapped.

use core::net::{IpAddr, SocketAddr};

use crate::checksum;

/// Version of the layout of all maps. It is part of the directory the maps are pinned in, and the
/// first word of [`Settings`].
pub const LAYOUT: u32 = 2;

/// Name of the program that relays.
pub const PROGRAM: &str = "towpath_relay";

/// Names of the maps. Programs that observe the relay may rely on them.
pub mod map {
    /// Hash of [`RouteKey`](super::RouteKey) to [`Route`](super::Route).
    pub const ROUTES: &str = "ROUTES";
    /// Array of [`NextHop`](super::NextHop).
    pub const NEXT_HOPS: &str = "NEXT_HOPS";
    /// Hash of [`LocalKey`](super::LocalKey) to a `u32` that says nothing.
    pub const LOCALS: &str = "LOCALS";
    /// Array of one [`Settings`](super::Settings), mmapable.
    pub const SETTINGS: &str = "SETTINGS";
    /// Per-CPU array of [`Count`](crate::reason::Count), by [`Reason`](crate::reason::Reason).
    pub const REASONS: &str = "REASONS";
    /// Per-CPU array of one [`Lease`](crate::lease::Lease) of the global limit.
    pub const LEASES: &str = "LEASES";
    /// Array of [`Limits`](crate::meter::Limits), mmapable, written by userspace only.
    pub const LIMITS: &str = "LIMITS";
    /// Array of [`Meter`](crate::meter::Meter), mmapable, written by both sides.
    pub const METERS: &str = "METERS";
    /// Hash of [`IdentityHash`](crate::meter::IdentityHash) to
    /// [`IdentityRecord`](crate::meter::IdentityRecord).
    pub const IDENTITIES: &str = "IDENTITIES";
    /// Array of one [`StrangerLimits`](crate::strangers::StrangerLimits), mmapable.
    pub const STRANGER_LIMITS: &str = "STRANGER_LIMITS";
    /// Array of [`BUDGETS`](crate::strangers::BUDGETS) words.
    pub const STRANGERS: &str = "STRANGERS";
    /// Array of [`SEEN`](crate::strangers::SEEN) words.
    pub const SEEN: &str = "SEEN";
}

/// Entries of each map as built; a loader sizes [`map::ROUTES`], [`map::LIMITS`], [`map::METERS`]
/// and [`map::IDENTITIES`] by its configuration.
pub mod entries {
    /// Routes.
    pub const ROUTES: u32 = 131_072;
    /// Next hops.
    pub const NEXT_HOPS: u32 = 4096;
    /// Own addresses and listening ports.
    pub const LOCALS: u32 = 1024;
    /// Slots.
    pub const SLOTS: u32 = 65_536;
}

/// What a packet is recognized by: all of it must match.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C, align(8))]
pub struct RouteKey {
    /// Address it came from.
    pub source: [u8; 16],
    /// Address of ours it was sent to.
    pub local: [u8; 16],
    /// Port it came from.
    pub source_port: [u8; 2],
    /// Port of ours it was sent to.
    pub local_port: [u8; 2],
    /// Channel it names; 0 for plain UDP, which is what a relayed port gets.
    pub channel: [u8; 2],
    /// 0.
    pub reserved: [u8; 2],
}

impl RouteKey {
    /// The key of packets from `source` to `local`; `channel` is 0 for plain UDP.
    pub fn new(source: SocketAddr, local: SocketAddr, channel: u16) -> Self {
        Self {
            source: mapped(source.ip()),
            local: mapped(local.ip()),
            source_port: source.port().to_be_bytes(),
            local_port: local.port().to_be_bytes(),
            channel: channel.to_be_bytes(),
            reserved: [0; 2],
        }
    }

    /// The address and port packets with this key come from.
    pub fn sent_from(&self) -> SocketAddr {
        let port = u16::from_be_bytes(self.source_port);
        SocketAddr::new(unmapped(self.source), port)
    }

    /// The address and port of ours they are sent to.
    pub fn sent_to(&self) -> SocketAddr {
        let port = u16::from_be_bytes(self.local_port);
        SocketAddr::new(unmapped(self.local), port)
    }

    /// The channel they name; 0 for plain UDP.
    pub fn channel_number(&self) -> u16 {
        u16::from_be_bytes(self.channel)
    }
}

/// What becomes of a packet that has a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Route {
    /// Address it goes to.
    pub destination: [u8; 16],
    /// Address of ours it leaves from.
    pub source: [u8; 16],
    /// Port it goes to.
    pub destination_port: [u8; 2],
    /// Port of ours it leaves from.
    pub source_port: [u8; 2],
    /// Channel of the ChannelData header in front; 0 for none.
    pub channel: [u8; 2],
    /// [`checksum::constant`] of what the route changes.
    pub checksum: u16,
    /// The slot that pays for its up direction; 0 for nobody.
    pub up_slot: u32,
    /// The slot that pays for its down direction; 0 for nobody.
    pub down_slot: u32,
    /// Index into [`map::NEXT_HOPS`].
    pub next_hop: u32,
    /// A number that no other route had in the last seconds: the kernel gives the memory of a removed
    /// route to the next one at once, and the program sees by it that this happened.
    pub generation: u32,
    /// Nanoseconds of CLOCK_MONOTONIC: from then on the route is no route.
    pub expires: u64,
}

/// A route as it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Where packets go.
    pub destination: SocketAddr,
    /// Where of ours they leave from; of the destination's family.
    pub source: SocketAddr,
    /// Channel they leave with; 0 for plain UDP.
    pub channel: u16,
    /// The slot that pays for its up direction; 0 for nobody.
    pub up_slot: u32,
    /// The slot that pays for its down direction; 0 for nobody.
    pub down_slot: u32,
    /// Index into [`map::NEXT_HOPS`].
    pub next_hop: u32,
    /// A number that no other route had in the last seconds.
    pub generation: u32,
    /// Nanoseconds of CLOCK_MONOTONIC: from then on the route is no route.
    pub expires: u64,
}

impl Route {
    /// The route of packets recognized by `key`.
    pub fn new(key: &RouteKey, target: &Target) -> Self {
        let destination = mapped(target.destination.ip());
        let source = mapped(target.source.ip());
        let destination_port = target.destination.port().to_be_bytes();
        let source_port = target.source.port().to_be_bytes();
        let channel = target.channel.to_be_bytes();
        Self {
            checksum: checksum::constant(
                &[
                    &key.source,
                    &key.local,
                    &key.source_port,
                    &key.local_port,
                    &key.channel,
                ],
                &[
                    &destination,
                    &source,
                    &destination_port,
                    &source_port,
                    &channel,
                ],
            ),
            destination,
            source,
            destination_port,
            source_port,
            channel,
            up_slot: target.up_slot,
            down_slot: target.down_slot,
            next_hop: target.next_hop,
            generation: target.generation,
            expires: target.expires,
        }
    }
}

/// The neighbour a packet is handed to. Userspace follows the kernel's tables and writes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct NextHop {
    /// Index of the interface it leaves by.
    pub interface: u32,
    /// Longest IP packet it takes.
    pub mtu: u32,
    /// The neighbour's hardware address.
    pub destination_mac: [u8; 6],
    /// The interface's hardware address.
    pub source_mac: [u8; 6],
    /// VLAN identifier of the tag packets leave with; 0 for none.
    pub vlan: u16,
    /// [`NextHop::INVALID`], [`NextHop::VALID`] or [`NextHop::REDIRECT`].
    pub state: u16,
}

impl NextHop {
    /// Packets for it are passed to the stack.
    pub const INVALID: u16 = 0;
    /// The addresses are those the stack would use.
    pub const VALID: u16 = 1;
    /// Likewise, but packets are handed to the interface also where they came in by it. A virtual cable
    /// whose far end has no program takes redirected packets and loses those sent back.
    pub const REDIRECT: u16 = 2;
}

/// An address and port that belong to the relay: a packet for it that nobody listens for stays
/// unanswered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C, align(4))]
pub struct LocalKey {
    /// The address.
    pub address: [u8; 16],
    /// A listening port; 0 stands for all ports of [`Settings::ports`] on a relay address.
    pub port: [u8; 2],
    /// 0.
    pub reserved: [u8; 2],
}

impl LocalKey {
    /// A listening address.
    pub fn listening(address: SocketAddr) -> Self {
        Self {
            address: mapped(address.ip()),
            port: address.port().to_be_bytes(),
            reserved: [0; 2],
        }
    }

    /// An address that relayed ports are on.
    pub fn relaying(address: IpAddr) -> Self {
        Self::listening(SocketAddr::new(address, 0))
    }
}

/// What the program is told. Every value that may change while packets flow is one word, so that
/// none is read half written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Settings {
    /// [`LAYOUT`]; the program passes everything while it is another.
    pub layout: u32,
    /// [`ports`](Self::ports) of the relayed ports.
    pub ports: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// A [`LimitWord`](crate::rate::LimitWord): the limit of the relay as a whole. Its bucket is in
    /// [`map::METERS`], slot [`GLOBAL_SLOT`](crate::meter::GLOBAL_SLOT).
    pub global: u64,
    /// When the daemon last wrote it, in nanoseconds of CLOCK_MONOTONIC.
    pub heartbeat: u64,
    /// 0.
    pub unused: [u64; 4],
}

/// Bits of [`Settings::flags`].
pub mod flag {
    /// Packets are relayed; without it all of them are passed.
    pub const FORWARD: u32 = 1 << 0;
    /// The time to live stays as it is: for measurements that send one packet round and round.
    pub const KEEP_TTL: u32 = 1 << 1;
}

impl Settings {
    /// The word that says relayed ports are `min..=max`.
    pub const fn ports(min: u16, max: u16) -> u32 {
        (max as u32) << 16 | min as u32
    }

    /// Whether `port` lies within the relayed ports of `word`.
    #[inline(always)]
    pub const fn is_relayed(word: u32, port: u16) -> bool {
        (word & 0xffff) as u16 <= port && port <= (word >> 16) as u16
    }
}

/// The IPv6 form of an address: IPv4 addresses are mapped.
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The address behind its IPv6 form.
pub fn unmapped(address: [u8; 16]) -> IpAddr {
    IpAddr::V6(address.into()).to_canonical()
}

const _: () = {
    assert!(size_of::<RouteKey>() == 40);
    assert!(size_of::<Route>() == 64);
    assert!(size_of::<NextHop>() == 24);
    assert!(size_of::<LocalKey>() == 20);
    assert!(size_of::<Settings>() == 64);
};

#[cfg(test)]
mod tests {
    use super::{RouteKey, Settings};

    #[test]
    fn a_key_lies_in_memory_in_network_byte_order() {
        let source = "192.0.2.7:4660".parse().expect("an address");
        let local = "[2001:db8::1]:3478".parse().expect("an address");
        let key = RouteKey::new(source, local, 0x4001);
        assert_eq!(key.source[10..], [0xff, 0xff, 192, 0, 2, 7]);
        assert_eq!(key.local[..4], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(key.source_port, [0x12, 0x34]);
        assert_eq!(key.channel, [0x40, 0x01]);
    }

    #[test]
    fn a_key_gives_back_the_addresses_it_was_made_of() {
        for (source, local) in [
            ("192.0.2.7:4660", "198.51.100.1:3478"),
            ("[2001:db8::7]:1", "192.0.2.1:65535"),
        ] {
            let [source, local] = [source, local].map(|text| text.parse().expect("an address"));
            let key = RouteKey::new(source, local, 0x7fff);
            assert_eq!((key.sent_from(), key.sent_to()), (source, local));
            assert_eq!(key.channel_number(), 0x7fff);
        }
    }

    #[test]
    fn both_ends_of_the_relayed_ports_are_relayed() {
        let word = Settings::ports(49_152, 65_535);
        assert!(!Settings::is_relayed(word, 49_151));
        assert!(Settings::is_relayed(word, 49_152));
        assert!(Settings::is_relayed(word, 65_535));
        assert!(!Settings::is_relayed(word, 3478));
    }
}
