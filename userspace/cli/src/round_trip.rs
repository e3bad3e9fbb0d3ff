//! Round trips, as reports show them.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::target::shown;

/// Round trips in microseconds.
#[derive(Serialize)]
pub(crate) struct RoundTrip {
    min_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    max_us: f64,
}

impl RoundTrip {
    /// Those of a histogram in nanoseconds; `None` where there were none.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let us = |ns: u64| ns as f64 / 1e3;
        (!histogram.is_empty()).then(|| Self {
            min_us: us(histogram.min()),
            p50_us: us(histogram.value_at_quantile(0.5)),
            p90_us: us(histogram.value_at_quantile(0.9)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            max_us: us(histogram.max()),
        })
    }
}

impl fmt::Display for RoundTrip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = [
            self.min_us,
            self.p50_us,
            self.p90_us,
            self.p99_us,
            self.max_us,
        ];
        let [min, p50, p90, p99, max] = times.map(|us| shown(Duration::from_secs_f64(us / 1e6)));
        write!(f, "min {min}, p50 {p50}, p90 {p90}, p99 {p99}, max {max}")
    }
}
