//! Charges a packet to everybody who pays for it, or to nobody, and counts it.

use towpath_ebpf_common::gcra::{Charge, charge, refund};
use towpath_ebpf_common::lease::Lease;
use towpath_ebpf_common::meter::{Direction, GLOBAL_SLOT, Limits, NOBODY_SLOT, PacketSize};
use towpath_ebpf_common::rate::LimitWord;
use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::{Route, Settings};

use crate::maps::{LEASES, LIMITS, METERS, Word};

/// One who pays, and what for.
struct Payer {
    peer: &'static Direction<Word>,
    limit: LimitWord,
    /// The class's bucket, where the class has a limit.
    class: Option<(&'static Direction<Word>, LimitWord)>,
}

/// Which of a slot's two directions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// All who pay for a packet.
pub(crate) struct Payers {
    up: Option<Payer>,
    down: Option<Payer>,
}

/// Finds who pays. A slot that is not there cannot be charged, and the packet is userspace's.
#[inline(always)]
pub(crate) fn payers(route: &Route) -> Result<Payers, Reason> {
    Ok(Payers {
        up: payer(route.up_slot, Way::Up)?,
        down: payer(route.down_slot, Way::Down)?,
    })
}

/// Charges and counts, or says what refused it; then what was charged is given back.
#[inline(always)]
pub(crate) fn police(
    payers: &Payers,
    settings: &Settings,
    now: u64,
    packet: PacketSize,
) -> Result<(), Reason> {
    let charged = charge_all(payers, settings, now, packet.charged);
    for payer in [&payers.up, &payers.down] {
        let Some(payer) = payer else { continue };
        match charged {
            Ok(()) => payer.peer.count(now, packet),
            Err(_) => payer.peer.count_dropped(packet),
        }
    }
    charged
}

#[inline(always)]
fn charge_all(payers: &Payers, settings: &Settings, now: u64, bytes: u32) -> Result<(), Reason> {
    let Payers { up, down } = payers;
    if let Some(up) = up {
        charge_one(up, now, bytes, Reason::OverUp)?;
    }
    if let Some(down) = down
        && let Err(reason) = charge_one(down, now, bytes, Reason::OverDown)
    {
        refund_one(up, bytes);
        return Err(reason);
    }
    charge_global(settings, now, bytes).inspect_err(|_| {
        refund_one(up, bytes);
        refund_one(down, bytes);
    })
}

#[inline(always)]
fn payer(slot: u32, way: Way) -> Result<Option<Payer>, Reason> {
    if slot == NOBODY_SLOT {
        return Ok(None);
    }
    let (Some(limits), Some(peer)) = (LIMITS.get(slot), direction(slot, way)) else {
        return Err(Reason::NoRoute);
    };
    let class_slot = limits.class_slot();
    let class_limit = match LIMITS.get(class_slot) {
        Some(class) => in_force(class, way),
        None => return Err(Reason::NoRoute),
    };
    let class = if class_limit.is_unlimited() {
        None
    } else {
        direction(class_slot, way).map(|class| (class, class_limit))
    };
    Ok(Some(Payer {
        peer,
        limit: in_force(limits, way),
        class,
    }))
}

#[inline(always)]
fn direction(slot: u32, way: Way) -> Option<&'static Direction<Word>> {
    let meter = METERS.get(slot)?;
    Some(match way {
        Way::Up => &meter.up,
        Way::Down => &meter.down,
    })
}

#[inline(always)]
fn in_force(limits: &Limits<Word>, way: Way) -> LimitWord {
    match way {
        Way::Up => limits.up_in_force(),
        Way::Down => limits.down_in_force(),
    }
}

#[inline(always)]
fn charge_one(payer: &Payer, now: u64, bytes: u32, over: Reason) -> Result<(), Reason> {
    outcome(
        charge(&payer.peer.spent_until, payer.limit, now, bytes),
        over,
    )?;
    let Some((class, limit)) = payer.class else {
        return Ok(());
    };
    outcome(
        charge(&class.spent_until, limit, now, bytes),
        Reason::OverClass,
    )
    .inspect_err(|_| refund(&payer.peer.spent_until, payer.limit, bytes))
}

#[inline(always)]
fn refund_one(payer: &Option<Payer>, bytes: u32) {
    if let Some(payer) = payer {
        refund(&payer.peer.spent_until, payer.limit, bytes);
        if let Some((class, limit)) = payer.class {
            refund(&class.spent_until, limit, bytes);
        }
    }
}

#[inline(always)]
fn charge_global(settings: &Settings, now: u64, bytes: u32) -> Result<(), Reason> {
    let limit = LimitWord::from_bits(settings.global);
    if limit.is_unlimited() {
        return Ok(());
    }
    let (Some(lease), Some(meter)) = (LEASES.get_ptr_mut(0), METERS.get(GLOBAL_SLOT)) else {
        return Err(Reason::OverGlobal);
    };
    // SAFETY: it is this CPU's own, and the program does not interrupt itself.
    let lease: &mut Lease = unsafe { &mut *lease };
    let charged = lease.charge(&meter.up.spent_until, limit, now, bytes);
    outcome(charged, Reason::OverGlobal)
}

#[inline(always)]
fn outcome(charge: Charge, over: Reason) -> Result<(), Reason> {
    match charge {
        Charge::Passed => Ok(()),
        Charge::Over => Err(over),
        Charge::Contended => Err(Reason::Contended),
    }
}
