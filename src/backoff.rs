//! Pauses between tries: each twice as long as the one before, up to a limit, with jitter.

use std::time::Duration;

use rand::RngExt;

/// The pauses of one thing that is tried again.
#[derive(Debug, Clone)]
pub struct Backoff {
    first_ms: u64,
    max_ms: u64,
    next_ms: u64,
}

impl Backoff {
    /// Pauses from `first_ms` up to `max_ms`.
    pub fn new(first_ms: u64, max_ms: u64) -> Self {
        Self { first_ms, max_ms, next_ms: first_ms }
    }

    /// The next pause, between half of it and all of it: for a service that should be left alone for a while.
    pub fn pause(&mut self) -> Duration {
        let whole = self.step();
        Duration::from_millis(rand::rng().random_range(whole / 2..=whole))
    }

    /// The next pause, of anything up to all of it: for writers that race each other and should come apart.
    pub fn spread(&mut self) -> Duration {
        let whole = self.step();
        Duration::from_millis(rand::rng().random_range(1..=whole.max(1)))
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.next_ms = self.first_ms;
    }

    fn step(&mut self) -> u64 {
        let whole = self.next_ms;
        self.next_ms = (whole * 2).min(self.max_ms);
        whole
    }
}
