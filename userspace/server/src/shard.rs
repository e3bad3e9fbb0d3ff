//! What runs on a shard for the relay besides its machine: opening ports, routes in the kernel,
//! handing datagrams over, passing on notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use towpath_engine::{Handover, OpenError, Ports};
use towpath_proto::relay::{Notice, PortError, Relay, RelayCommand, RelayEvent};

use crate::offload::Offload;

/// Notices of one shard that wait to be logged.
pub(crate) const MAX_NOTICES: usize = 4096;

/// The way of one shard's notices to the control plane. Bounded: a shard never waits for a log.
#[derive(Debug)]
pub(crate) struct Notices {
    queue: ArrayQueue<Notice>,
    lost: AtomicU64,
}

impl Notices {
    pub(crate) fn new() -> Self {
        Self {
            queue: ArrayQueue::new(MAX_NOTICES),
            lost: AtomicU64::new(0),
        }
    }

    fn push(&self, notice: Notice) {
        if self.queue.push(notice).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The oldest notice.
    pub(crate) fn pop(&self) -> Option<Notice> {
        self.queue.pop()
    }

    /// How many found the queue full.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Runs the commands of one shard's relay.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) notices: Arc<Notices>,
    /// Without a kernel path no routes are asked for.
    pub(crate) offload: Option<Offload>,
}

impl towpath_engine::Host<Relay> for Host {
    fn execute(&mut self, command: RelayCommand, ports: &mut dyn Ports) -> Option<RelayEvent> {
        match command {
            RelayCommand::OpenPort { port, local } => Some(match ports.open(port, local) {
                Ok(()) => RelayEvent::PortOpened { port },
                Err(error) => RelayEvent::PortFailed {
                    port,
                    error: port_error(&error),
                },
            }),
            RelayCommand::ClosePort { port } => {
                ports.close(port);
                None
            }
            RelayCommand::SetRoute { key, route } => {
                if let Some(offload) = &mut self.offload {
                    offload.set(&key, &route);
                }
                None
            }
            RelayCommand::RemoveRoute { key } => {
                if let Some(offload) = &mut self.offload {
                    offload.remove(&key);
                }
                None
            }
            RelayCommand::HandOver {
                to,
                listener,
                local,
                remote,
                traffic_class,
                payload,
            } => {
                let datagram = Handover {
                    listener,
                    local,
                    remote,
                    traffic_class,
                    payload,
                };
                ports.hand_over(to, datagram);
                None
            }
            RelayCommand::Notify(notice) => {
                self.notices.push(notice);
                None
            }
        }
    }
}

fn port_error(error: &OpenError) -> PortError {
    match error {
        OpenError::InUse { .. } => PortError::InUse,
        OpenError::NoDescriptors { .. } => PortError::NoDescriptors,
        OpenError::BadPort { .. } | OpenError::Other { .. } => PortError::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use towpath_proto::relay::AllocationOwner;

    use super::*;

    #[test]
    fn a_full_queue_of_notices_counts_what_it_loses() {
        let notices = Notices::new();
        let address = "192.0.2.1:1".parse().unwrap();
        let notice = Notice::AllocationMade {
            owner: AllocationOwner {
                user: "alice".into(),
                client: address,
                server: address,
                relayed: address,
                second: None,
            },
            lifetime: Duration::from_secs(600),
        };
        for _ in 0..MAX_NOTICES + 3 {
            notices.push(notice.clone());
        }
        assert_eq!(notices.lost(), 3);
        assert_eq!(notices.pop(), Some(notice));
    }
}
