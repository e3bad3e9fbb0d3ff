//! What strangers ask at listening ports: beyond their limits it ends here, before it costs userspace
//! anything. Within them, and for everybody else, userspace decides as if there were no program.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::strangers::{Admission, HEADER_BYTES, Source, Table, admit, is_strangers};

use crate::frame::{Frame, load};
use crate::maps::{SEEN, STRANGER_LIMITS, STRANGERS, Word};
use crate::parse::{Headers, Key, UDP_BYTES};

struct Maps;

impl Table for Maps {
    type Word = Word;

    #[inline(always)]
    fn budget(&self, index: u32) -> Option<&Word> {
        STRANGERS.get(index)
    }

    #[inline(always)]
    fn seen(&self, index: u32) -> Option<&Word> {
        SEEN.get(index)
    }
}

/// Charges a datagram that came to a listening port and is not ChannelData, where it is a stranger's.
/// Returns why it is dropped; `None` where it is not.
#[inline(always)]
pub(crate) fn refuse(frame: Frame, headers: &Headers, key: &Key) -> Option<Reason> {
    let limits = STRANGER_LIMITS.get(0)?;
    if !is_from_stranger(frame, headers) {
        return None;
    }
    let source = Source([key.0[0], key.0[1]]);
    // SAFETY: bpf_ktime_get_ns may always be called.
    let now = unsafe { bpf_ktime_get_ns() };
    match admit(&Maps, limits, source, false, now) {
        Admission::Admitted => None,
        Admission::OverSource => Some(Reason::StrangerSource),
        Admission::OverNetwork => Some(Reason::StrangerNetwork),
        Admission::OverTotal => Some(Reason::StrangerTotal),
    }
}

#[inline(always)]
fn is_from_stranger(frame: Frame, headers: &Headers) -> bool {
    let at = frame.start + headers.udp_offset + UDP_BYTES;
    let bytes = headers.udp_bytes - UDP_BYTES as u16;
    if bytes < HEADER_BYTES || !frame.reaches(at + HEADER_BYTES as usize) {
        return true;
    }
    // SAFETY: the header's bytes are there.
    let [first, second]: [u32; 2] = unsafe { load(at) };
    is_strangers(u32::from_be(first), u32::from_be(second))
}
