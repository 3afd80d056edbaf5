//! How many of something there are at the moment.

use metrics::Gauge;

/// Counts one in a gauge for as long as it lives, however that ends: a dropped future, a panic.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// From now on.
    pub fn in_gauge(gauge: Gauge) -> Self {
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}
