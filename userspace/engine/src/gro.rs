//! Watches what arrives for the governor, and switches UDP GRO of a socket.

use towpath_proto::Machine;

use crate::Host;
use crate::counters::Counter;
use crate::governor::Advice;
use crate::shard::{Received, Shard};
use crate::socket::{is_readable, set_gro};
use crate::sockets::State;

impl<M: Machine, H: Host<M>> Shard<M, H> {
    /// Lets the governor see what arrived at a slot. Returns which slot it wants changed, and how.
    pub(crate) fn observe(&mut self, index: u32, received: &Received) -> Option<(u32, Advice)> {
        if !self.gro {
            return None;
        }
        let slot = self.sockets.slot_mut(index)?;
        let (advised, advice) = if slot.receiving.gro {
            let datagrams = match received.segment_bytes {
                0 => 1,
                segment => received.bytes.div_ceil(segment) as u32,
            };
            (index, slot.governor.merged(datagrams))
        } else {
            let flow = (received.remote, received.bytes);
            let (ended, datagrams) = self.meter.next(index, flow)?;
            let slot = self
                .sockets
                .slot_mut(ended)
                .filter(|slot| slot.state == State::Open)?;
            (ended, slot.governor.run_ended(datagrams))
        };
        (advice != Advice::Keep).then_some((advised, advice))
    }

    /// Switches GRO on. From now on the socket must be received from with big buffers.
    pub(crate) fn enable_gro(&mut self, index: u32) {
        let Some(slot) = self.sockets.slot_mut(index) else {
            return;
        };
        if set_gro(slot.fd(), true).is_ok() {
            slot.receiving.gro = true;
            self.counters.add(Counter::GroEnabled, 1);
        } else {
            slot.governor.refuse();
        }
    }

    /// Switches GRO off where the socket is empty before and after: what was merged before the
    /// switch and read after it would lack its segment size. Returns whether it is off.
    pub(crate) fn disable_gro(&mut self, index: u32) -> bool {
        let Some(slot) = self.sockets.slot_mut(index) else {
            return false;
        };
        let fd = slot.fd();
        if is_readable(fd) || set_gro(fd, false).is_err() {
            slot.governor.keep_on();
            return false;
        }
        if is_readable(fd) && set_gro(fd, true).is_ok() {
            slot.governor.keep_on();
            return false;
        }
        slot.receiving.gro = false;
        self.counters.add(Counter::GroDisabled, 1);
        true
    }
}
