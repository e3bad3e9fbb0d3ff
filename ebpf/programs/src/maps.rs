//! The maps. Their names and layouts are [`towpath_ebpf_common`]'s.

use core::cell::UnsafeCell;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use towpath_ebpf_common::gcra;
use towpath_ebpf_common::lease::Lease;
use towpath_ebpf_common::meter::{IdentityHash, IdentityRecord, Limits, Meter};
use towpath_ebpf_common::reason::{Count, Reason};
use towpath_ebpf_common::route::{LocalKey, NextHop, Route, RouteKey, Settings, entries};
use towpath_ebpf_common::strangers::{self, StrangerLimits};

#[map]
pub(crate) static ROUTES: HashMap<RouteKey, Route> = HashMap::with_max_entries(entries::ROUTES, 0);

#[map]
pub(crate) static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(entries::NEXT_HOPS, 0);

#[map]
pub(crate) static LOCALS: HashMap<LocalKey, u32> = HashMap::with_max_entries(entries::LOCALS, 0);

#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static REASONS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Reason::COUNT, 0);

#[map]
pub(crate) static LEASES: PerCpuArray<Lease> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub(crate) static LIMITS: Array<Limits<Word>> =
    Array::with_max_entries(entries::SLOTS, BPF_F_MMAPABLE);

#[map]
pub(crate) static METERS: Array<Meter<Word>> =
    Array::with_max_entries(entries::SLOTS, BPF_F_MMAPABLE);

/// Not looked at by the program: it lies here so that it is made and pinned with the others.
#[map]
static IDENTITIES: HashMap<IdentityHash, IdentityRecord> =
    HashMap::with_max_entries(entries::SLOTS, 0);

#[map]
pub(crate) static STRANGER_LIMITS: Array<StrangerLimits> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static STRANGERS: Array<Word> = Array::with_max_entries(strangers::BUDGETS, 0);

#[map]
pub(crate) static SEEN: Array<Word> = Array::with_max_entries(strangers::SEEN, 0);

/// A word of a map that others read and write at the same time.
#[repr(transparent)]
pub(crate) struct Word(UnsafeCell<u64>);

// SAFETY: all access is by single instructions that read, write or exchange the whole word.
unsafe impl Sync for Word {}

impl gcra::Word for Word {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: the word lies in a map's value, which lives as long as the program runs.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.0.get().write_volatile(value) }
    }

    #[inline(always)]
    fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;
        // SAFETY: as in `load`; the target has no weaker order.
        let (found, exchanged) =
            unsafe { atomic_cxchg::<u64, ORDER, ORDER>(self.0.get(), old, new) };
        if exchanged { Ok(found) } else { Err(found) }
    }

    #[inline(always)]
    fn add(&self, n: u64) {
        // SAFETY: as in `load`.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(self.0.get(), n) };
    }
}
