//! Gives a packet the headers it leaves with. Its data stay where they are; the start of the packet
//! moves.
//!
//! ```text
//!   Ethernet │ tag? │ IPv4 or IPv6 │ UDP │ ChannelData? │ data │ left out: padding
//! ```

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use towpath_ebpf_common::checksum::ipv4_header;
use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::NextHop;

use crate::frame::{Frame, load, store};
use crate::lookup::{CHANNEL_BYTES, Relayed, is_mapped};
use crate::parse::{
    ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, Headers, IPV4_BYTES,
    IPV6_BYTES, UDP, UDP_BYTES, VLAN_BYTES,
};

/// Makes room for the new headers and cuts off what follows the data. Where there is no room the
/// packet is as it was.
#[inline(always)]
pub(crate) fn make_room(ctx: &XdpContext, relayed: &Relayed) -> Result<(), Reason> {
    let data_end = relayed.old_data_offset + relayed.data_bytes as usize;
    let surplus = Frame::of(ctx).bytes() as i64 - data_end as i64;
    let shrinks_by = relayed.old_data_offset as i64 - relayed.new_data_offset as i64;
    // SAFETY: the context is the one the program was called with.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), shrinks_by as i32) } != 0 {
        return Err(Reason::NoHeadroom);
    }
    // SAFETY: as before.
    if surplus > 0 && unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast(), -surplus as i32) } != 0 {
        return Err(Reason::Lost);
    }
    Ok(())
}

/// Writes the headers.
#[inline(always)]
pub(crate) fn rewrite(
    ctx: &XdpContext,
    headers: &Headers,
    relayed: &Relayed,
) -> Result<(), Reason> {
    let frame = Frame::of(ctx);
    let at = if is_mapped(&relayed.route.destination) {
        let at = write_ethernet(frame, relayed.next_hop, ETHERTYPE_IPV4)?;
        write_ipv4(frame, at, headers, relayed)?
    } else {
        let at = write_ethernet(frame, relayed.next_hop, ETHERTYPE_IPV6)?;
        write_ipv6(frame, at, headers, relayed)?
    };
    let data = write_udp(frame, at, relayed)?;
    // The kernel gives the memory of a removed route to the next one at once, and next hops change.
    // Where that happened while the packet was written, it is half the one and half the other.
    if relayed.is_replaced() || data + relayed.data_bytes as usize != frame.end {
        return Err(Reason::Lost);
    }
    Ok(())
}

/// Returns where the next header begins.
#[inline(always)]
fn write_ethernet(frame: Frame, next_hop: &NextHop, ethertype: u16) -> Result<usize, Reason> {
    let at = frame.start;
    if !frame.reaches(at + ETHERNET_BYTES + VLAN_BYTES) {
        return Err(Reason::Lost);
    }
    // Destination and source lie in the map's value as they do on the wire.
    let macs = core::ptr::from_ref(&next_hop.destination_mac) as usize;
    // SAFETY: the two addresses are twelve bytes that follow each other.
    let macs: [u32; 3] = unsafe { load(macs) };
    // SAFETY: eighteen bytes are there, here and below; without a tag fourteen are written.
    unsafe { store(at, macs) };
    if next_hop.vlan == 0 {
        // SAFETY: as before.
        unsafe { store(at + 12, ethertype) };
        return Ok(at + ETHERNET_BYTES);
    }
    let tag = ETHERTYPE_VLAN as u32 | (next_hop.vlan.to_be() as u32) << 16;
    // SAFETY: as before.
    unsafe { store(at + 12, tag) };
    // SAFETY: as before.
    unsafe { store(at + 16, ethertype) };
    Ok(at + ETHERNET_BYTES + VLAN_BYTES)
}

/// Returns where the next header begins.
#[inline(always)]
fn write_ipv4(
    frame: Frame,
    at: usize,
    headers: &Headers,
    relayed: &Relayed,
) -> Result<usize, Reason> {
    if !frame.reaches(at + IPV4_BYTES) {
        return Err(Reason::Lost);
    }
    let length = IPV4_BYTES as u16 + relayed.udp_bytes;
    // SAFETY: a mapped address ends in the IPv4 address.
    let source: u32 = unsafe { load(core::ptr::from_ref(&relayed.route.source) as usize + 12) };
    let destination = core::ptr::from_ref(&relayed.route.destination) as usize + 12;
    // SAFETY: as before.
    let destination: u32 = unsafe { load(destination) };
    let mut words = [
        0x45 | (headers.traffic_class as u32) << 8 | (length.to_be() as u32) << 16,
        headers.fragmentation,
        relayed.time_to_live as u32 | (UDP as u32) << 8,
        source,
        destination,
    ];
    words[2] |= (ipv4_header(words) as u32) << 16;
    // SAFETY: the header's bytes are there.
    unsafe { store(at, words) };
    Ok(at + IPV4_BYTES)
}

/// Returns where the next header begins.
#[inline(always)]
fn write_ipv6(
    frame: Frame,
    at: usize,
    headers: &Headers,
    relayed: &Relayed,
) -> Result<usize, Reason> {
    if !frame.reaches(at + IPV6_BYTES) {
        return Err(Reason::Lost);
    }
    let class = headers.traffic_class;
    // The flow label is 0: it was the sender's, and the sender is the relay now.
    let first = (0x60 | class >> 4) as u32 | ((class << 4) as u32) << 8;
    let second =
        relayed.udp_bytes.to_be() as u32 | (UDP as u32) << 16 | (relayed.time_to_live as u32) << 24;
    // SAFETY: an address is sixteen bytes.
    let source: [u64; 2] = unsafe { load(core::ptr::from_ref(&relayed.route.source) as usize) };
    let destination = core::ptr::from_ref(&relayed.route.destination) as usize;
    // SAFETY: as before.
    let destination: [u64; 2] = unsafe { load(destination) };
    // SAFETY: the header's bytes are there, here and below.
    unsafe { store(at, [first, second]) };
    // SAFETY: as before.
    unsafe { store(at + 8, source) };
    // SAFETY: as before.
    unsafe { store(at + 24, destination) };
    Ok(at + IPV6_BYTES)
}

/// Returns where the data begin.
#[inline(always)]
fn write_udp(frame: Frame, at: usize, relayed: &Relayed) -> Result<usize, Reason> {
    if !frame.reaches(at + UDP_BYTES) {
        return Err(Reason::Lost);
    }
    let route = relayed.route;
    let ports = u16::from_ne_bytes(route.source_port) as u32
        | (u16::from_ne_bytes(route.destination_port) as u32) << 16;
    let rest = relayed.udp_bytes.to_be() as u32 | (relayed.checksum as u32) << 16;
    // SAFETY: the header's bytes are there.
    unsafe { store(at, [ports, rest]) };
    let channel = u16::from_ne_bytes(route.channel);
    if channel == 0 {
        return Ok(at + UDP_BYTES);
    }
    if !frame.reaches(at + UDP_BYTES + CHANNEL_BYTES) {
        return Err(Reason::Lost);
    }
    let header = channel as u32 | (relayed.data_bytes.to_be() as u32) << 16;
    // SAFETY: the header's bytes are there.
    unsafe { store(at + UDP_BYTES, header) };
    Ok(at + UDP_BYTES + CHANNEL_BYTES)
}
