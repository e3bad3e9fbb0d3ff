//! Finds a packet's route, and whether it can be followed without userspace.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use towpath_ebpf_common::checksum::{Change, padding};
use towpath_ebpf_common::meter::PacketSize;
use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::{NextHop, Route, Settings, flag};

use crate::frame::{Frame, load};
use crate::maps::{NEXT_HOPS, ROUTES};
use crate::parse::{ETHERNET_BYTES, Headers, IPV4_BYTES, IPV6_BYTES, Key, UDP_BYTES, VLAN_BYTES};

pub(crate) const CHANNEL_BYTES: usize = 4;

/// A peer's datagram wrapped more often than this may be going round between relays. Likewise one that
/// has a Data indication within so many wrappings, whose data lie behind attributes: userspace, which
/// reads those, decides.
const MAX_WRAPPINGS: usize = 4;

/// The first two bytes of a Data indication (RFC 8656 §18), as they lie in memory.
const DATA_INDICATION: u16 = 0x0017_u16.to_be();

/// Longest message whose padding is left out here. No frame is that long; the verifier wants to know.
const MAX_PADDED_BYTES: u16 = 0x7fff;

/// A packet that will be relayed, if its limits allow.
///
/// What depends on the route's family, its channel or the next hop's tag is numbers here, and whoever
/// has to branch on them reads the maps again: the verifier then need not walk what follows once for
/// every combination.
pub(crate) struct Relayed {
    pub(crate) route: &'static Route,
    pub(crate) next_hop: &'static NextHop,
    generation: u32,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub(crate) now: u64,
    pub(crate) time_to_live: u8,
    /// Where the data begin, from the start of the frame that arrived.
    pub(crate) old_data_offset: usize,
    /// Where they begin in the frame that leaves.
    pub(crate) new_data_offset: usize,
    /// Bytes of application data.
    pub(crate) data_bytes: u16,
    /// Bytes of the UDP header and what follows it, as they leave.
    pub(crate) udp_bytes: u16,
    /// The UDP checksum that leaves, as it lies in memory.
    pub(crate) checksum: u16,
    pub(crate) size: PacketSize,
}

impl Relayed {
    /// Whether the route's memory is another route's by now.
    #[inline(always)]
    pub(crate) fn is_replaced(&self) -> bool {
        generation(self.route) != self.generation
    }
}

/// Reads it anew each time.
#[inline(always)]
fn generation(route: &Route) -> u32 {
    // SAFETY: it is a reference.
    unsafe { core::ptr::from_ref(&route.generation).read_volatile() }
}

/// What a datagram carries.
struct Content {
    is_channel_data: bool,
    offset: usize,
    bytes: u16,
    /// The length field of the ChannelData header; 0 where there is none.
    channel_bytes: u16,
    /// The sum of what follows the data.
    padding: u16,
}

/// Finds the route of a packet and checks everything that does not change anything.
#[inline(always)]
pub(crate) fn look_up(
    frame: Frame,
    headers: &Headers,
    key: &mut Key,
    settings: &Settings,
) -> Result<Relayed, Reason> {
    // The local port decides what it is. The first byte cannot: QUIC's short headers look like
    // ChannelData.
    let content = if Settings::is_relayed(settings.ports, key.local_port()) {
        plain(frame, headers)?
    } else {
        channel_data(frame, headers, key)?
    };
    // SAFETY: where the route is removed meanwhile, its memory is another route's, and still a route's.
    let route = unsafe { ROUTES.get(key.as_route_key()) }.ok_or(Reason::NoRoute)?;
    // SAFETY: bpf_ktime_get_ns may always be called.
    let now = unsafe { bpf_ktime_get_ns() };
    if route.expires <= now {
        return Err(Reason::Expired);
    }
    if headers.time_to_live <= 1 {
        return Err(Reason::TimeToLive);
    }
    let generation = generation(route);
    let next_hop = next_hop(route)?;
    let to_ipv6 = !is_mapped(&route.destination);
    let ip_bytes = if to_ipv6 { IPV6_BYTES } else { IPV4_BYTES };
    let (channel_header_bytes, new_channel_bytes) = if u16::from_ne_bytes(route.channel) == 0 {
        (0, 0)
    } else {
        (CHANNEL_BYTES, content.bytes)
    };
    let udp_bytes = content.bytes + (UDP_BYTES + channel_header_bytes) as u16;
    if udp_bytes as u32 + ip_bytes as u32 > next_hop.mtu {
        return Err(Reason::TooBig);
    }
    let checksum = if headers.checksum != 0 {
        Change {
            constant: route.checksum,
            old_udp_bytes: headers.udp_bytes,
            new_udp_bytes: udp_bytes,
            old_channel_bytes: content.channel_bytes,
            new_channel_bytes,
            padding: content.padding,
        }
        .apply(headers.checksum)
    } else if to_ipv6 {
        // RFC 768: zero says there is none. IPv6 wants one, and userspace can make it.
        return Err(Reason::ZeroChecksum);
    } else {
        0
    };
    // The leg between relay and peer is the plain one.
    let peer_is_ipv6 = if content.is_channel_data {
        to_ipv6
    } else {
        headers.is_ipv6
    };
    let tag_bytes = if next_hop.vlan == 0 { 0 } else { VLAN_BYTES };
    let kept = settings.flags & flag::KEEP_TTL != 0;
    Ok(Relayed {
        route,
        next_hop,
        generation,
        now,
        time_to_live: headers.time_to_live - !kept as u8,
        old_data_offset: content.offset,
        new_data_offset: ETHERNET_BYTES + tag_bytes + ip_bytes + UDP_BYTES + channel_header_bytes,
        data_bytes: content.bytes,
        udp_bytes,
        checksum,
        size: PacketSize::new(peer_is_ipv6, content.bytes as u32),
    })
}

/// What came to a relayed port.
#[inline(always)]
fn plain(frame: Frame, headers: &Headers) -> Result<Content, Reason> {
    let content = Content {
        is_channel_data: false,
        offset: headers.udp_offset + UDP_BYTES,
        bytes: headers.udp_bytes - UDP_BYTES as u16,
        channel_bytes: 0,
        padding: 0,
    };
    if is_nested(frame, &content) {
        return Err(Reason::Nested);
    }
    Ok(content)
}

/// What came to any other port.
#[inline(always)]
fn channel_data(frame: Frame, headers: &Headers, key: &mut Key) -> Result<Content, Reason> {
    let offset = headers.udp_offset + UDP_BYTES;
    let at = frame.start + offset;
    let inside = headers.udp_bytes - UDP_BYTES as u16;
    if (inside as usize) < CHANNEL_BYTES || !frame.reaches(at + CHANNEL_BYTES) {
        return Err(Reason::NotChannelData);
    }
    // SAFETY: the four bytes are there.
    let header: u32 = unsafe { load(at) };
    if !is_channel(header) {
        return Err(Reason::NotChannelData);
    }
    let bytes = u16::from_be((header >> 16) as u16);
    let present = inside - CHANNEL_BYTES as u16;
    // RFC 8656 §12.5: "Over UDP, the padding is not required but MAY be included."
    if bytes > present || present as u32 > (bytes as u32 + 3) & !3 {
        return Err(Reason::ChannelLength);
    }
    let behind = if present == bytes {
        0
    } else if present > MAX_PADDED_BYTES {
        return Err(Reason::ChannelLength);
    } else {
        let end = at + CHANNEL_BYTES + masked(present);
        padding(bytes, behind(frame, end, present - bytes))
    };
    key.set_channel(header as u16);
    Ok(Content {
        is_channel_data: true,
        offset: offset + CHANNEL_BYTES,
        bytes,
        channel_bytes: bytes,
        padding: behind,
    })
}

/// A number up to [`MAX_PADDED_BYTES`], as an instruction the compiler does not see through: it would
/// drop the mask, since it knows the number's range, and the verifier does not.
#[inline(always)]
fn masked(number: u16) -> usize {
    let mut masked = number as u64;
    // SAFETY: it changes the register it is given and nothing else.
    unsafe {
        core::arch::asm!(
            "{0} &= {mask}",
            inout(reg) masked,
            mask = const MAX_PADDED_BYTES,
            options(pure, nomem, nostack),
        );
    }
    masked as usize
}

/// Whether four bytes as they lie in memory begin with a channel number.
#[inline(always)]
fn is_channel(header: u32) -> bool {
    header & 0xc0 == 0x40
}

/// The one to three bytes of padding before `end`. They are read backwards from there: the verifier
/// understands the comparison of the packet's end with an address that nothing is added to.
#[inline(always)]
fn behind(frame: Frame, end: usize, count: u16) -> [u8; 3] {
    if !frame.reaches(end) {
        return [0; 3];
    }
    // SAFETY: the message is longer than this, and ends here.
    let last: u8 = unsafe { load(end - 1) };
    if count == 1 {
        return [last, 0, 0];
    }
    // SAFETY: as before.
    let middle: u8 = unsafe { load(end - 2) };
    if count == 2 {
        return [middle, last, 0];
    }
    // SAFETY: as before.
    [unsafe { load(end - 3) }, middle, last]
}

#[inline(always)]
fn next_hop(route: &Route) -> Result<&'static NextHop, Reason> {
    NEXT_HOPS
        .get(route.next_hop)
        .filter(|next_hop| next_hop.state != NextHop::INVALID)
        .ok_or(Reason::NoNextHop)
}

/// Whether an address is an IPv4 address.
#[inline(always)]
pub(crate) fn is_mapped(address: &[u8; 16]) -> bool {
    let at = core::ptr::from_ref(address) as usize;
    // SAFETY: the sixteen bytes are there.
    let words: [u32; 3] = unsafe { load(at) };
    words[0] == 0 && words[1] == 0 && words[2] == 0xffff_0000
}

/// Whether data is ChannelData in ChannelData more often than any two relays would make it, or may be
/// when what is inside a Data indication is counted.
#[inline(always)]
fn is_nested(frame: Frame, content: &Content) -> bool {
    let at = frame.start + content.offset;
    if (content.bytes as usize) < (MAX_WRAPPINGS + 1) * CHANNEL_BYTES
        || !frame.reaches(at + (MAX_WRAPPINGS + 1) * CHANNEL_BYTES)
    {
        return false;
    }
    let mut present = content.bytes as u32;
    let mut level = 0;
    while level <= MAX_WRAPPINGS {
        // SAFETY: five headers' bytes are there.
        let header: u32 = unsafe { load(at + level * CHANNEL_BYTES) };
        let bytes = u16::from_be((header >> 16) as u16) as u32;
        if header as u16 == DATA_INDICATION {
            return true;
        }
        present = present.wrapping_sub(CHANNEL_BYTES as u32);
        if !is_channel(header) || bytes > present || present > (bytes + 3) & !3 {
            return false;
        }
        present = bytes;
        level += 1;
    }
    true
}
