//! Finds a packet's route, and whether it can be followed without userspace.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use towpath_ebpf_common::checksum::{Change, padding};
use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::{NextHop, Route, Settings, flag};

use crate::frame::{Frame, load};
use crate::maps::{NEXT_HOPS, ROUTES};
use crate::parse::{Headers, IPV4_BYTES, IPV6_BYTES, Key, UDP_BYTES};

pub(crate) const CHANNEL_BYTES: usize = 4;

/// A peer's datagram wrapped more often than this may be going round between relays: userspace,
/// which also knows the other wrapping, decides.
const MAX_WRAPPINGS: usize = 4;

/// Longest message whose padding is left out here. No frame is that long; the verifier wants to know.
const MAX_PADDED_BYTES: u16 = 0x7fff;

/// A packet that will be relayed, if its limits allow.
pub(crate) struct Relayed {
    pub(crate) route: &'static Route,
    pub(crate) next_hop: &'static NextHop,
    /// The channel it leaves on, as it lies in memory; 0 for plain UDP.
    pub(crate) channel: u16,
    generation: u32,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub(crate) now: u64,
    pub(crate) time_to_live: u8,
    pub(crate) to_ipv6: bool,
    /// Whether it came to a relayed port.
    pub(crate) is_from_peer: bool,
    /// Bytes of application data.
    pub(crate) data_bytes: u16,
    /// The UDP checksum that leaves, as it lies in memory.
    pub(crate) checksum: u16,
    /// Where the data begins, from the start of the frame.
    pub(crate) data_offset: usize,
}

impl Relayed {
    /// Bytes of the UDP header and what follows it, as they leave.
    #[inline(always)]
    pub(crate) fn udp_bytes(&self) -> u16 {
        let channel = if self.channel == 0 {
            0
        } else {
            CHANNEL_BYTES as u16
        };
        self.data_bytes + UDP_BYTES as u16 + channel
    }

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
        plain(headers)
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
    let kept = settings.flags & flag::KEEP_TTL != 0;
    let mut relayed = Relayed {
        route,
        next_hop: next_hop(route)?,
        channel: u16::from_ne_bytes(route.channel),
        generation: generation(route),
        now,
        time_to_live: headers.time_to_live - !kept as u8,
        to_ipv6: !is_mapped(&route.destination),
        is_from_peer: !content.is_channel_data,
        data_bytes: content.bytes,
        checksum: 0,
        data_offset: content.offset,
    };
    if !content.is_channel_data && is_nested(frame, &content) {
        return Err(Reason::Nested);
    }
    fits(&relayed)?;
    if headers.checksum == 0 {
        // RFC 768: zero says there is none. IPv6 wants one, and userspace can make it.
        return if relayed.to_ipv6 {
            Err(Reason::ZeroChecksum)
        } else {
            Ok(relayed)
        };
    }
    relayed.checksum = Change {
        constant: route.checksum,
        old_udp_bytes: headers.udp_bytes,
        new_udp_bytes: relayed.udp_bytes(),
        old_channel_bytes: if content.is_channel_data {
            content.bytes
        } else {
            0
        },
        new_channel_bytes: if relayed.channel != 0 {
            content.bytes
        } else {
            0
        },
        padding: content.padding,
    }
    .apply(headers.checksum);
    Ok(relayed)
}

#[inline(always)]
fn plain(headers: &Headers) -> Content {
    Content {
        is_channel_data: false,
        offset: headers.udp_offset + UDP_BYTES,
        bytes: headers.udp_bytes - UDP_BYTES as u16,
        padding: 0,
    }
}

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
        .filter(|next_hop| next_hop.state == NextHop::VALID)
        .ok_or(Reason::NoNextHop)
}

#[inline(always)]
fn fits(relayed: &Relayed) -> Result<(), Reason> {
    let ip = if relayed.to_ipv6 {
        IPV6_BYTES
    } else {
        IPV4_BYTES
    };
    if relayed.udp_bytes() as u32 + ip as u32 > relayed.next_hop.mtu {
        return Err(Reason::TooBig);
    }
    Ok(())
}

/// Whether an address is an IPv4 address.
#[inline(always)]
pub(crate) fn is_mapped(address: &[u8; 16]) -> bool {
    let at = core::ptr::from_ref(address) as usize;
    // SAFETY: the sixteen bytes are there.
    let words: [u32; 3] = unsafe { load(at) };
    words[0] == 0 && words[1] == 0 && words[2] == 0xffff_0000
}

/// Whether data is ChannelData in ChannelData more often than any two relays would make it.
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
        present = present.wrapping_sub(CHANNEL_BYTES as u32);
        if !is_channel(header) || bytes > present || present > (bytes + 3) & !3 {
            return false;
        }
        present = bytes;
        level += 1;
    }
    true
}
