//! A shard of a node as the engine runs it: a [`Machine`] that is its [`Core`] and the tasks of its
//! connections.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::future::CatchUnwind;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use towpath_engine::{Host, Ports};
use towpath_proto::machine::{Datagram, IcmpError, Transmit};
use towpath_proto::{Machine, Timestamp};

use crate::core::{Core, Task};
use crate::gate::{Gate, Order, is_anything_spawned, lend, take_spawned};
use crate::shared::Shared;

/// Rounds of notices and tasks before datagrams are looked at again: tasks that wake each other without
/// end do not keep a shard from the network.
const MAX_TURNS: usize = 64;

/// A shard of a node.
pub(crate) struct Shard {
    /// `None` only while its tasks have it.
    core: Option<Box<Core>>,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    tasks: FuturesUnordered<CatchUnwind<AssertUnwindSafe<Task>>>,
    waker: Waker,
    now: Timestamp,
}

impl Shard {
    pub(crate) fn new(core: Core, gate: Arc<Gate>, shared: Arc<Shared>) -> Self {
        Self {
            core: Some(Box::new(core)),
            waker: Waker::from(Arc::clone(&gate)),
            gate,
            shared,
            tasks: FuturesUnordered::new(),
            now: Timestamp::ZERO,
        }
    }

    fn core(&mut self) -> &mut Core {
        self.core
            .as_deref_mut()
            .expect("tasks give the core back when they were polled")
    }

    /// Tells those who wait what has happened, and lets tasks go on, until nothing is left to do.
    fn turn(&mut self) {
        self.gate.settle();
        for _ in 0..MAX_TURNS {
            let mut busy = self.core().follow_notices();
            while let Some(what) = self.gate.next_released() {
                busy = true;
                self.core().release(what);
            }
            if self.gate.take_woken() || self.core().has_spawned() {
                busy = true;
                self.poll_tasks();
            }
            if !busy {
                return;
            }
        }
    }

    fn poll_tasks(&mut self) {
        let core = self
            .core
            .take()
            .expect("tasks give the core back when they were polled");
        let (tasks, waker, shared) = (&mut self.tasks, &self.waker, &self.shared);
        let (core, ()) = lend(core, || {
            let mut cx = Context::from_waker(waker);
            loop {
                for task in take_spawned() {
                    tasks.push(AssertUnwindSafe(task).catch_unwind());
                }
                match tasks.poll_next_unpin(&mut cx) {
                    Poll::Ready(Some(Ok(()))) => {}
                    // The panic hook has told of it; other connections go on.
                    Poll::Ready(Some(Err(_))) => shared.counters.panics.add(1),
                    Poll::Ready(None) | Poll::Pending if is_anything_spawned() => {}
                    Poll::Ready(None) | Poll::Pending => return,
                }
            }
        });
        self.core = Some(core);
    }
}

impl Machine for Shard {
    type Command = Infallible;
    type Event = Order;

    fn handle_datagram(&mut self, now: Timestamp, datagram: Datagram<'_>) -> Option<Transmit> {
        self.now = now;
        let core = self.core();
        core.tick(now);
        core.peer.handle_datagram(now, datagram)
    }

    fn handle_event(&mut self, now: Timestamp, order: Order) {
        self.now = now;
        self.core().tick(now);
        match order {
            Order::Wake => {}
            Order::Run(order) => order(self.core()),
        }
    }

    fn handle_icmp(&mut self, now: Timestamp, error: IcmpError) {
        self.core().peer.handle_icmp(now, error);
    }

    fn handle_timeout(&mut self, now: Timestamp) {
        self.now = now;
        let core = self.core();
        core.tick(now);
        core.peer.handle_timeout(now);
    }

    fn poll_transmit(&mut self, now: Timestamp, buffer: &mut [u8]) -> Option<Transmit> {
        self.core().peer.poll_transmit(now, buffer)
    }

    fn poll_command(&mut self) -> Option<Infallible> {
        self.turn();
        None
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        let core = self.core.as_ref()?;
        if self.gate.is_woken() || core.has_spawned() {
            return Some(self.now);
        }
        core.peer.poll_timeout()
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.gate.close();
        self.shared.close();
        if let Some(core) = &mut self.core {
            core.end();
        }
    }
}

/// A node's machine asks for nothing that the engine does not do by itself.
pub(crate) struct NoHost;

impl Host<Shard> for NoHost {
    fn execute(&mut self, command: Infallible, _ports: &mut dyn Ports) -> Option<Order> {
        match command {}
    }
}
