//! The relay's packet path in the kernel: ChannelData to UDP, UDP to ChannelData, ChannelData to
//! ChannelData, metered and counted.
//!
//! ```text
//!   parse ─▶ look up ─▶ make room ─▶ police ─▶ rewrite ─▶ verdict
//! ```
//!
//! It only ever does what the machine in userspace would have done. Whatever it does not know, or
//! would have to think about, it passes to the stack as it came.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features)]
// The attribute of the program makes a function without documentation.
#![allow(missing_docs)]

mod frame;
mod lookup;
mod maps;
mod parse;
mod police;
mod rewrite;
mod silence;
mod strangers;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use towpath_ebpf_common::reason::{Fate, Reason};
use towpath_ebpf_common::route::{LAYOUT, NextHop, Settings, flag};

use frame::Frame;
use maps::{REASONS, SETTINGS};
use parse::{Headers, Key};

/// The program to attach.
#[xdp]
pub fn towpath_relay(ctx: XdpContext) -> u32 {
    let bytes = Frame::of(&ctx).bytes();
    let (reason, verdict) = match relay(&ctx) {
        Ok(next_hop)
            if next_hop.interface as usize == ctx.ingress_ifindex()
                && next_hop.state != NextHop::REDIRECT =>
        {
            (Reason::Transmitted, xdp_action::XDP_TX)
        }
        // SAFETY: bpf_redirect only notes where the packet goes.
        Ok(next_hop) => (Reason::Redirected, unsafe {
            bpf_redirect(next_hop.interface, 0) as u32
        }),
        Err(reason) => match reason.fate() {
            Fate::Passed => (reason, xdp_action::XDP_PASS),
            Fate::Dropped | Fate::Relayed => (reason, xdp_action::XDP_DROP),
        },
    };
    count(reason, bytes);
    verdict
}

/// Relays a packet to the next hop, or says why not; then it is as it was, unless it is dropped.
#[inline(always)]
fn relay(ctx: &XdpContext) -> Result<&'static NextHop, Reason> {
    let settings = SETTINGS.get(0).ok_or(Reason::Disabled)?;
    if settings.layout != LAYOUT || settings.flags & flag::FORWARD == 0 {
        return Err(Reason::Disabled);
    }
    let (headers, mut key) = parse::parse(Frame::of(ctx))?;
    relay_datagram(ctx, &headers, &mut key, settings).map_err(|reason| match reason.fate() {
        Fate::Passed if silence::is_own(&key, settings) => at_own_address(ctx, &headers, &key, reason),
        Fate::Passed | Fate::Dropped | Fate::Relayed => reason,
    })
}

/// What becomes of a packet for an address of the relay's that would be passed for `reason`.
#[inline(always)]
fn at_own_address(ctx: &XdpContext, headers: &Headers, key: &Key, reason: Reason) -> Reason {
    // Only what came to a listening port is asked whether it is ChannelData.
    if reason == Reason::NotChannelData
        && let Some(refused) = strangers::refuse(Frame::of(ctx), headers, key)
    {
        return refused;
    }
    if silence::has_socket(ctx, key) {
        reason
    } else {
        Reason::Silent
    }
}

#[inline(always)]
fn relay_datagram(
    ctx: &XdpContext,
    headers: &Headers,
    key: &mut Key,
    settings: &Settings,
) -> Result<&'static NextHop, Reason> {
    let relayed = lookup::look_up(Frame::of(ctx), headers, key, settings)?;
    let payers = police::payers(relayed.route)?;
    rewrite::make_room(ctx, &relayed)?;
    police::police(&payers, settings, relayed.now, relayed.size)?;
    rewrite::rewrite(ctx, headers, &relayed)?;
    Ok(relayed.next_hop)
}

#[inline(always)]
fn count(reason: Reason, bytes: usize) {
    if let Some(count) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: it is this CPU's own, and the program does not interrupt itself.
        let count = unsafe { &mut *count };
        count.packets += 1;
        count.bytes += bytes as u64;
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the kernel is told; no helper used here wants another licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 18] = *b"MIT OR Apache-2.0\0";
