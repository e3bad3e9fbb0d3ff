//! Until when the peer is known to have been there: when the latest packet was sent whose receipt it has
//! confirmed.
//!
//! quinn-proto tells this its congestion controller alone, so this is one: it notes the time and passes
//! everything on to CUBIC (RFC 9438). That acknowledgements arrive says less: they are repeated in
//! packets whose sender hears nothing any more.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};

/// Makes the controllers.
#[derive(Debug, Default)]
pub(super) struct Confirming(Arc<CubicConfig>);

struct Confirmed {
    inner: Box<dyn Controller>,
    sent_at: Option<Instant>,
}

/// When the latest packet was sent whose receipt is confirmed.
pub(super) fn sent_at(controller: &dyn Controller) -> Option<Instant> {
    let state = controller.clone_box().into_any();
    state.downcast::<Confirmed>().ok()?.sent_at
}

impl ControllerFactory for Confirming {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Confirmed {
            inner: self.0.clone().build(now, current_mtu),
            sent_at: None,
        })
    }
}

impl Controller for Confirmed {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.sent_at = self.sent_at.max(Some(sent));
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            sent_at: self.sent_at,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
