//! Pauses between retries: each twice as long as the one before, up to a limit, with jitter.

use std::time::{Duration, Instant};

use crate::timeouts::ERROR_AFTER;
use rand::RngExt;

/// The pauses of one retried operation.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first_ms: u64,
    max_ms: u64,
    next_ms: u64,
}

impl Backoff {
    /// Creates pauses from `first_ms` up to `max_ms`.
    pub(crate) fn new(first_ms: u64, max_ms: u64) -> Self {
        Self { first_ms, max_ms, next_ms: first_ms }
    }

    /// Returns the next pause, between half of it and all of it. For a service that needs some time without requests.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self.step();
        Duration::from_millis(rand::rng().random_range(whole / 2..=whole))
    }

    /// Returns the next pause, any length up to all of it. For writers that race each other and must spread out.
    pub(crate) fn spread(&mut self) -> Duration {
        let whole = self.step();
        Duration::from_millis(rand::rng().random_range(1..=whole.max(1)))
    }

    /// Starts again with the first pause.
    pub(crate) fn reset(&mut self) {
        self.next_ms = self.first_ms;
    }

    fn step(&mut self) -> u64 {
        let whole = self.next_ms;
        self.next_ms = (whole * 2).min(self.max_ms);
        whole
    }
}

/// The log level of a failure that continues: an error after a minute, and once a minute from then on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Alarm {
    since: Option<Instant>,
    /// Time of the last failure that was logged as an error.
    last_error: Option<Instant>,
}

impl Alarm {
    /// Notes a failure at `now`. Returns how long it has continued, and whether to log it as an error.
    pub(crate) fn failed(&mut self, now: Instant) -> (Duration, bool) {
        let lasted = now.saturating_duration_since(*self.since.get_or_insert(now));
        let is_due = self.last_error.is_none_or(|at| now.saturating_duration_since(at) >= ERROR_AFTER);
        let is_loud = lasted >= ERROR_AFTER && is_due;
        if is_loud {
            self.last_error = Some(now);
        }
        (lasted, is_loud)
    }

    /// Notes a success.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loud_after_a_minute_and_once_a_minute() {
        let start = Instant::now();
        let mut alarm = Alarm::default();
        let mut loud = |seconds| alarm.failed(start + Duration::from_secs(seconds)).1;
        assert_eq!([0, 59, 60, 61, 119, 120].map(&mut loud), [false, false, true, false, false, true]);
        alarm.succeeded();
        assert_eq!(alarm.failed(start + Duration::from_secs(200)), (Duration::ZERO, false));
    }
}
