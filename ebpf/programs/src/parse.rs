//! Reads the headers of a packet, up to UDP's, and what it is recognized by.
//!
//! ```text
//!   Ethernet (one VLAN tag or none) │ IPv4 without options or IPv6 without extensions │ UDP
//! ```

use towpath_ebpf_common::checksum::ipv4_header_is_intact;
use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::RouteKey;

use crate::frame::{Frame, load};

pub(crate) const ETHERNET_BYTES: usize = 14;
pub(crate) const VLAN_BYTES: usize = 4;
pub(crate) const IPV4_BYTES: usize = 20;
pub(crate) const IPV6_BYTES: usize = 40;
pub(crate) const UDP_BYTES: usize = 8;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
pub(crate) const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8_u16.to_be();

pub(crate) const UDP: u8 = 17;
const FRAGMENT_HEADER: u8 = 44;
/// The flag and nothing else, as it lies in memory.
const DONT_FRAGMENT: u32 = 0x0000_4000_u32.to_be();
const IDENTIFICATION_AND_DONT_FRAGMENT: u32 = 0xffff_4000_u32.to_be();
/// The words of an IPv4-mapped address before the address.
const MAPPED: u64 = 0xffff_0000;

/// A route's key as the machine words it is put together from: a look-up needs it in memory, and
/// byte by byte it would take forty stores.
#[repr(transparent)]
pub(crate) struct Key(pub(crate) [u64; 5]);

impl Key {
    #[inline(always)]
    pub(crate) fn as_route_key(&self) -> &RouteKey {
        // SAFETY: both are 40 bytes aligned to 8, and any bytes are a key.
        unsafe { &*core::ptr::from_ref(self).cast::<RouteKey>() }
    }

    /// The port it was sent to.
    #[inline(always)]
    pub(crate) fn local_port(&self) -> u16 {
        u16::from_be((self.0[4] >> 16) as u16)
    }

    #[inline(always)]
    pub(crate) fn set_channel(&mut self, channel: u16) {
        self.0[4] = self.0[4] & 0xffff_ffff | (channel as u64) << 32;
    }
}

const _: () = assert!(size_of::<Key>() == size_of::<RouteKey>());
const _: () = assert!(align_of::<Key>() == align_of::<RouteKey>());

/// What must be known of the headers once they are gone.
#[derive(Clone, Copy)]
pub(crate) struct Headers {
    /// Where the UDP header begins, from the start of the frame.
    pub(crate) udp_offset: usize,
    pub(crate) is_ipv6: bool,
    pub(crate) traffic_class: u8,
    pub(crate) time_to_live: u8,
    /// The identification and flags that an IPv4 header leaves with, as they lie in memory.
    pub(crate) fragmentation: u32,
    pub(crate) udp_bytes: u16,
    /// UDP checksum as it lies in memory; 0 for none.
    pub(crate) checksum: u16,
}

/// Reads the headers and what the packet is recognized by, the channel left 0.
#[inline(always)]
pub(crate) fn parse(frame: Frame) -> Result<(Headers, Key), Reason> {
    let at = frame.start;
    if !frame.reaches(at + ETHERNET_BYTES) {
        return Err(Reason::Malformed);
    }
    // SAFETY: the Ethernet header is there.
    let first: u8 = unsafe { load(at) };
    if first & 1 != 0 {
        return Err(Reason::NotIp);
    }
    // SAFETY: as before.
    let ethertype: u16 = unsafe { load(at + 12) };
    if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
        return parse_ip(frame, ETHERNET_BYTES, ethertype);
    }
    if !frame.reaches(at + ETHERNET_BYTES + VLAN_BYTES) {
        return Err(Reason::Malformed);
    }
    // SAFETY: the tag is there.
    let ethertype: u16 = unsafe { load(at + 16) };
    parse_ip(frame, ETHERNET_BYTES + VLAN_BYTES, ethertype)
}

#[inline(always)]
fn parse_ip(frame: Frame, offset: usize, ethertype: u16) -> Result<(Headers, Key), Reason> {
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(frame, offset),
        ETHERTYPE_IPV6 => parse_ipv6(frame, offset),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
fn parse_ipv4(frame: Frame, offset: usize) -> Result<(Headers, Key), Reason> {
    let at = frame.start + offset;
    if !frame.reaches(at + IPV4_BYTES + UDP_BYTES) {
        return Err(Reason::Malformed);
    }
    // SAFETY: the IPv4 header is there.
    let words: [u32; 5] = unsafe { load(at) };
    if (words[2] >> 8) as u8 != UDP {
        return Err(Reason::NotUdp);
    }
    match words[0] as u8 {
        0x45 => {}
        0x46..=0x4f => return Err(Reason::Options),
        _ => return Err(Reason::Malformed),
    }
    // More fragments, or an offset.
    if words[1] >> 16 & 0xff3f != 0 {
        return Err(Reason::Fragment);
    }
    // A header written anew has a right checksum, whatever this one's was.
    if !ipv4_header_is_intact(words) {
        return Err(Reason::Malformed);
    }
    let udp_bytes = u16::from_be((words[0] >> 16) as u16).wrapping_sub(IPV4_BYTES as u16);
    let addresses = [
        0,
        MAPPED | (words[3] as u64) << 32,
        0,
        MAPPED | (words[4] as u64) << 32,
    ];
    let headers = Headers {
        udp_offset: offset + IPV4_BYTES,
        is_ipv6: false,
        traffic_class: (words[0] >> 8) as u8,
        time_to_live: words[2] as u8,
        // RFC 791: the first of the flags is "reserved, must be zero".
        fragmentation: words[1] & IDENTIFICATION_AND_DONT_FRAGMENT,
        udp_bytes,
        checksum: 0,
    };
    parse_udp(frame, headers, addresses)
}

#[inline(always)]
fn parse_ipv6(frame: Frame, offset: usize) -> Result<(Headers, Key), Reason> {
    let at = frame.start + offset;
    if !frame.reaches(at + IPV6_BYTES + UDP_BYTES) {
        return Err(Reason::Malformed);
    }
    // SAFETY: the IPv6 header is there.
    let words: [u32; 2] = unsafe { load(at) };
    if words[0] as u8 >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    match (words[1] >> 16) as u8 {
        UDP => {}
        FRAGMENT_HEADER => return Err(Reason::Fragment),
        _ => return Err(Reason::NotUdp),
    }
    // SAFETY: as before.
    let addresses: [u64; 4] = unsafe { load(at + 8) };
    let headers = Headers {
        udp_offset: offset + IPV6_BYTES,
        is_ipv6: true,
        traffic_class: (words[0] << 4) as u8 | (words[0] >> 12) as u8 & 0xf,
        time_to_live: (words[1] >> 24) as u8,
        // What came by IPv6 must not be fragmented on the way.
        fragmentation: DONT_FRAGMENT,
        udp_bytes: u16::from_be(words[1] as u16),
        checksum: 0,
    };
    parse_udp(frame, headers, addresses)
}

/// `headers.udp_bytes` is what the IP header says; the UDP header must say the same.
#[inline(always)]
fn parse_udp(
    frame: Frame,
    headers: Headers,
    addresses: [u64; 4],
) -> Result<(Headers, Key), Reason> {
    let at = frame.start + headers.udp_offset;
    // SAFETY: the IP header was checked together with the UDP header.
    let ports: u32 = unsafe { load(at) };
    // SAFETY: as before.
    let length: u16 = unsafe { load(at + 4) };
    // SAFETY: as before.
    let checksum: u16 = unsafe { load(at + 6) };
    let udp_bytes = u16::from_be(length);
    if udp_bytes != headers.udp_bytes
        || udp_bytes < UDP_BYTES as u16
        || !frame.reaches(at + udp_bytes as usize)
    {
        return Err(Reason::Malformed);
    }
    // RFC 8200 §8.1: "IPv6 receivers must discard UDP packets containing a zero checksum".
    if headers.is_ipv6 && checksum == 0 {
        return Err(Reason::ZeroChecksum);
    }
    let [source, source_end, local, local_end] = addresses;
    let key = Key([source, source_end, local, local_end, ports as u64]);
    Ok((
        Headers {
            checksum,
            ..headers
        },
        key,
    ))
}
