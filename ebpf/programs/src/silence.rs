//! Packets for the relay's own addresses that nobody listens for.
//!
//! While the daemon is away the stack would answer them with ICMP errors, and clients would give up
//! their allocations before the next daemon is there.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release};
use aya_ebpf::programs::XdpContext;
use towpath_ebpf_common::route::{LocalKey, Settings};

use crate::lookup::is_mapped;
use crate::maps::LOCALS;
use crate::parse::Key;

/// The network namespace the interface is in.
const CURRENT_NAMESPACE: u64 = u64::MAX;
const IPV4_TUPLE_BYTES: u32 = 12;
const IPV6_TUPLE_BYTES: u32 = 36;

/// Whether a packet is for an address of the relay's.
#[inline(always)]
pub(crate) fn is_own(key: &Key, settings: &Settings) -> bool {
    let relayed = Settings::is_relayed(settings.ports, key.local_port());
    let port = if relayed { 0 } else { (key.0[4] >> 16) as u16 };
    let words: [u32; 5] = [
        key.0[2] as u32,
        (key.0[2] >> 32) as u32,
        key.0[3] as u32,
        (key.0[3] >> 32) as u32,
        port as u32,
    ];
    // SAFETY: both are 20 bytes aligned to 4, and any bytes are a key.
    let local: &LocalKey = unsafe { &*core::ptr::from_ref(&words).cast() };
    LOCALS.get_ptr(local).is_some()
}

/// Whether a socket is bound to where it is for.
#[inline(always)]
pub(crate) fn has_socket(ctx: &XdpContext, key: &Key) -> bool {
    let ports = key.0[4] as u32;
    if is_mapped(&key.as_route_key().local) {
        let mut tuple: [u32; 3] = [(key.0[1] >> 32) as u32, (key.0[3] >> 32) as u32, ports];
        return holds(
            ctx,
            core::ptr::from_mut(&mut tuple).cast(),
            IPV4_TUPLE_BYTES,
        );
    }
    let mut tuple: [u32; 9] = [
        key.0[0] as u32,
        (key.0[0] >> 32) as u32,
        key.0[1] as u32,
        (key.0[1] >> 32) as u32,
        key.0[2] as u32,
        (key.0[2] >> 32) as u32,
        key.0[3] as u32,
        (key.0[3] >> 32) as u32,
        ports,
    ];
    holds(
        ctx,
        core::ptr::from_mut(&mut tuple).cast(),
        IPV6_TUPLE_BYTES,
    )
}

#[inline(always)]
fn holds(ctx: &XdpContext, tuple: *mut bpf_sock_tuple, bytes: u32) -> bool {
    // SAFETY: the tuple is `bytes` long, which is how the kernel knows its family.
    let socket = unsafe { bpf_sk_lookup_udp(ctx.as_ptr(), tuple, bytes, CURRENT_NAMESPACE, 0) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the look-up took a reference, which ends here.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}
