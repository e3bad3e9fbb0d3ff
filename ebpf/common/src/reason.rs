//! Why a packet was relayed, passed to the stack or dropped: the indices of the map of reasons.

/// What the program decided about a packet, and why. Each is counted per CPU, packets and bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Reason {
    /// Relayed, out of the interface it came in by.
    Transmitted = 0,
    /// Relayed, out of another interface.
    Redirected = 1,
    /// Passed: neither IPv4 nor IPv6, more than one VLAN tag, or a group's hardware address.
    NotIp = 2,
    /// Passed: not UDP, or IPv6 extension headers before it.
    NotUdp = 3,
    /// Passed: IPv4 options.
    Options = 4,
    /// Passed: a fragment.
    Fragment = 5,
    /// Passed: truncated, lengths that contradict each other, or a wrong IPv4 header checksum.
    Malformed = 6,
    /// Passed: not for a relayed port, and not ChannelData.
    NotChannelData = 7,
    /// Passed: a ChannelData length the datagram does not have, padding aside.
    ChannelLength = 8,
    /// Passed: no route, and somebody may want it.
    NoRoute = 9,
    /// Passed: the route has expired.
    Expired = 10,
    /// Passed: the last hop it may make.
    TimeToLive = 11,
    /// Passed: it would become larger than the next hop's link takes.
    TooBig = 12,
    /// Passed: without a UDP checksum, which IPv6 wants.
    ZeroChecksum = 13,
    /// Passed: the next hop is not known.
    NoNextHop = 14,
    /// Passed: the driver leaves no room for longer headers.
    NoHeadroom = 15,
    /// Passed: forwarding is switched off, or the maps have another layout.
    Disabled = 16,
    /// Dropped: the peer that sent it is over its limit.
    OverUp = 17,
    /// Dropped: the peer it is for is over its limit.
    OverDown = 18,
    /// Dropped: a priority class is over its limit.
    OverClass = 19,
    /// Dropped: the relay as a whole is over its limit.
    OverGlobal = 20,
    /// Dropped: too many others charged the same limit at the same instant.
    Contended = 21,
    /// Dropped: for an address and port of the relay's that nobody listens on now.
    Silent = 22,
    /// Dropped: the packet's bytes or its route went away while it was rewritten.
    Lost = 23,
    /// Passed: wrapped so often, or in a Data indication, that it may be going round.
    Nested = 24,
    /// Dropped: a stranger whose address asked too much.
    StrangerSource = 25,
    /// Dropped: a stranger whose network asked too much.
    StrangerNetwork = 26,
    /// Dropped: a stranger, and all together asked too much.
    StrangerTotal = 27,
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fate {
    /// It went on to where the route leads.
    Relayed,
    /// The network stack got it, as it came.
    Passed,
    /// Nobody got it.
    Dropped,
}

impl Reason {
    /// How many there are.
    pub const COUNT: u32 = 28;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Transmitted,
        Self::Redirected,
        Self::NotIp,
        Self::NotUdp,
        Self::Options,
        Self::Fragment,
        Self::Malformed,
        Self::NotChannelData,
        Self::ChannelLength,
        Self::NoRoute,
        Self::Expired,
        Self::TimeToLive,
        Self::TooBig,
        Self::ZeroChecksum,
        Self::NoNextHop,
        Self::NoHeadroom,
        Self::Disabled,
        Self::OverUp,
        Self::OverDown,
        Self::OverClass,
        Self::OverGlobal,
        Self::Contended,
        Self::Silent,
        Self::Lost,
        Self::Nested,
        Self::StrangerSource,
        Self::StrangerNetwork,
        Self::StrangerTotal,
    ];

    /// What becomes of a packet for this reason.
    #[inline(always)]
    pub const fn fate(self) -> Fate {
        match self {
            Self::Transmitted | Self::Redirected => Fate::Relayed,
            Self::NotIp
            | Self::NotUdp
            | Self::Options
            | Self::Fragment
            | Self::Malformed
            | Self::NotChannelData
            | Self::ChannelLength
            | Self::NoRoute
            | Self::Expired
            | Self::TimeToLive
            | Self::TooBig
            | Self::ZeroChecksum
            | Self::NoNextHop
            | Self::NoHeadroom
            | Self::Disabled
            | Self::Nested => Fate::Passed,
            Self::OverUp
            | Self::OverDown
            | Self::OverClass
            | Self::OverGlobal
            | Self::Contended
            | Self::Silent
            | Self::Lost
            | Self::StrangerSource
            | Self::StrangerNetwork
            | Self::StrangerTotal => Fate::Dropped,
        }
    }

    /// The reason's name in metrics and in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transmitted => "transmitted",
            Self::Redirected => "redirected",
            Self::NotIp => "not_ip",
            Self::NotUdp => "not_udp",
            Self::Options => "options",
            Self::Fragment => "fragment",
            Self::Malformed => "malformed",
            Self::NotChannelData => "not_channel_data",
            Self::ChannelLength => "channel_length",
            Self::NoRoute => "no_route",
            Self::Expired => "expired",
            Self::TimeToLive => "time_to_live",
            Self::TooBig => "too_big",
            Self::ZeroChecksum => "zero_checksum",
            Self::NoNextHop => "no_next_hop",
            Self::NoHeadroom => "no_headroom",
            Self::Disabled => "disabled",
            Self::OverUp => "over_up",
            Self::OverDown => "over_down",
            Self::OverClass => "over_class",
            Self::OverGlobal => "over_global",
            Self::Contended => "contended",
            Self::Silent => "silent",
            Self::Lost => "lost",
            Self::Nested => "nested",
            Self::StrangerSource => "stranger_source",
            Self::StrangerNetwork => "stranger_network",
            Self::StrangerTotal => "stranger_total",
        }
    }
}

/// One CPU's count for one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames as they arrived, link header included.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Count>() == 16);

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn reasons_are_numbered_in_order_and_named_apart() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            let same = Reason::ALL
                .iter()
                .filter(|other| other.name() == reason.name());
            assert_eq!(same.count(), 1, "{reason:?}");
        }
    }
}
