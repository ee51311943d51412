//! Knowledge about the hosts of payloads: the cause of a failure, and how long a retry is worthwhile.
//!
//! | failure | cause | how long it is retried |
//! |---|---|---|
//! | a slow or broken answer; or any failure while the host answers others | the object | [`PAYLOAD_TIMEOUT`] |
//! | no connection to a host that has answered in this run | an outage | while the URL is valid |
//! | busy answers ([`Trouble::Busy`]) only | an outage | while the URL is valid; at most the configured patience |
//! | no connection, and the host has never answered | an unknown host | [`PAYLOAD_TIMEOUT`] for all of these, then once each |
//!
//! While no host at all has answered in this run, the network may be down, and unknown hosts get [`PAYLOAD_COLD_TIMEOUT`]. One
//! answer makes a host a working host again. Time without waiting for unknown hosts restores a quarter of itself.

use crate::timeouts::{PAYLOAD_COLD_TIMEOUT, PAYLOAD_OUTAGE_MAX, PAYLOAD_TIMEOUT};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The time spent on unknown hosts is forgotten this many times slower than it was spent.
const REST: u32 = 4;
/// Hosts that are remembered. Their names come from records, so anybody can invent them.
const HOSTS_MAX: usize = 1_000;

/// The kind of a temporary failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No connection.
    Unreachable,
    /// 5xx, 429, 408, 425.
    Busy,
    /// An answer that was too slow, or ended in the middle.
    Slow,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Retry after a pause.
    Again,
    /// Retry; the host has an outage, and the shard waits for it.
    Wait,
    /// Give up.
    GiveUp,
}

/// A failed fetch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failed {
    /// Kind of the failure.
    pub trouble: Trouble,
    /// Start of the fetch.
    pub began: Instant,
    /// Time of the next attempt.
    pub again_at: Instant,
    /// Whether the URL has a known expiry.
    pub expires: bool,
}

#[derive(Debug, Default)]
struct Host {
    answered: Option<Instant>,
    /// Start of the failures since the last answer.
    failing_since: Option<Instant>,
}

/// Time spent on hosts that have never answered, all together. Anybody who writes into the stream can invent such
/// hosts, and a shard must not stop for each of them.
#[derive(Debug, Default)]
struct Waited {
    total: Duration,
    until: Option<Instant>,
}

impl Waited {
    /// Adds a wait and returns whether the total is over the limit. Waits at the same time count once.
    fn is_over(&mut self, began: Instant, until: Instant, limit: Duration) -> bool {
        let before = self.until.unwrap_or(began);
        let total = self.total.saturating_sub(began.saturating_duration_since(before) / REST);
        let total = total + until.saturating_duration_since(before.max(began));
        (self.total, self.until) = (total.min(limit), Some(before.max(until)));
        total > limit
    }
}

/// The hosts of a run.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    /// The configured patience.
    patience: Option<Duration>,
    known: HashMap<String, Host>,
    has_any_answered: bool,
    unknown: Waited,
}

impl Hosts {
    /// Returns a registry without any host.
    pub(crate) fn new(patience: Option<Duration>) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Notes that the host has answered, with any answer.
    pub(crate) fn answered(&mut self, host: &str, now: Instant) {
        if !self.has_any_answered {
            // The network works, so hosts that do not answer from now on get the normal limit.
            (self.has_any_answered, self.unknown) = (true, Waited::default());
        }
        let host = self.host(host);
        (host.answered, host.failing_since) = (Some(now), None);
    }

    /// Notes a failed fetch and decides what to do.
    pub(crate) fn failed(&mut self, host: &str, failed: Failed) -> Next {
        let Failed { trouble, began, again_at, expires } = failed;
        let (patience, is_cold) = (self.patience, !self.has_any_answered);
        let host = self.host(host);
        let failing = again_at.saturating_duration_since(*host.failing_since.get_or_insert(began));
        let lasted = again_at.saturating_duration_since(began);
        let answers_others = host.answered.is_some_and(|at| at >= began);
        let is_out = !answers_others
            && match trouble {
                Trouble::Slow => false,
                Trouble::Unreachable => host.answered.is_some(),
                Trouble::Busy => patience.is_none(),
            };
        if is_out {
            return match lasted {
                lasted if lasted > PAYLOAD_OUTAGE_MAX && !expires => Next::GiveUp,
                lasted if lasted > Duration::from_secs(60) => Next::Wait,
                _ => Next::Again,
            };
        }
        let is_unknown = trouble == Trouble::Unreachable && host.answered.is_none();
        if !is_unknown {
            return if lasted > patience.unwrap_or(PAYLOAD_TIMEOUT) { Next::GiveUp } else { Next::Again };
        }
        let limit = patience.unwrap_or(if is_cold { PAYLOAD_COLD_TIMEOUT } else { PAYLOAD_TIMEOUT });
        let is_over = self.unknown.is_over(began, again_at, limit);
        if is_over || failing > limit { Next::GiveUp } else { Next::Again }
    }

    fn host(&mut self, name: &str) -> &mut Host {
        if self.known.len() >= HOSTS_MAX && !self.known.contains_key(name) {
            // Hosts that have answered tell an outage from a fault; the others can be learnt again.
            self.known.retain(|_, host| host.answered.is_some());
            if self.known.len() >= HOSTS_MAX {
                self.known.clear();
            }
        }
        self.known.entry(name.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Instant);

    impl Clock {
        fn at(&self, minutes: u64) -> Instant {
            self.0 + Duration::from_secs(60 * minutes)
        }

        fn failed(&self, trouble: Trouble, began: u64, again: u64, expires: bool) -> Failed {
            Failed { trouble, began: self.at(began), again_at: self.at(again), expires }
        }
    }

    #[test]
    fn an_outage_is_waited_for_and_a_dead_host_is_not() {
        use Trouble::{Busy, Slow, Unreachable};
        let clock = Clock(Instant::now());
        let mut hosts = Hosts::new(None);
        // Nothing has answered: the network may be down.
        assert_eq!(hosts.failed("dead", clock.failed(Unreachable, 0, 16, true)), Next::Again);
        assert_eq!(hosts.failed("dead", clock.failed(Unreachable, 0, 61, true)), Next::GiveUp);
        hosts.answered("s3", clock.at(0));
        // The network works. Unknown hosts get a quarter of an hour, all together.
        assert_eq!(hosts.failed("gone", clock.failed(Unreachable, 0, 15, true)), Next::Again);
        assert_eq!(hosts.failed("gone", clock.failed(Unreachable, 0, 16, true)), Next::GiveUp);
        assert_eq!(hosts.failed("gone", clock.failed(Unreachable, 20, 20, true)), Next::GiveUp, "the next one: once");
        hosts.answered("gone", clock.at(21));
        assert_eq!(hosts.failed("gone", clock.failed(Unreachable, 22, 22, true)), Next::Again, "as good as new");

        // It has answered before: retried while the URL is valid.
        assert_eq!(hosts.failed("s3", clock.failed(Unreachable, 1, 2, true)), Next::Again);
        assert_eq!(hosts.failed("s3", clock.failed(Unreachable, 1, 1_000, true)), Next::Wait);
        assert_eq!(hosts.failed("s3", clock.failed(Unreachable, 1, 1_000, false)), Next::GiveUp);
        assert_eq!(hosts.failed("s3", clock.failed(Busy, 1, 1_000, true)), Next::Wait);
        // Others get payloads from this host meanwhile, so the object is at fault.
        hosts.answered("s3", clock.at(400));
        assert_eq!(hosts.failed("s3", clock.failed(Busy, 390, 404, true)), Next::Again);
        assert_eq!(hosts.failed("s3", clock.failed(Busy, 390, 406, true)), Next::GiveUp);
        assert_eq!(hosts.failed("slow", clock.failed(Slow, 0, 16, true)), Next::GiveUp);
    }

    #[test]
    fn a_patience_that_was_given_is_kept() {
        use Trouble::{Busy, Slow, Unreachable};
        let clock = Clock(Instant::now());
        let mut hosts = Hosts::new(Some(Duration::from_secs(120)));
        for trouble in [Busy, Slow, Unreachable] {
            assert_eq!(hosts.failed("h", clock.failed(trouble, 0, 2, true)), Next::Again, "{trouble:?}");
            assert_eq!(hosts.failed("h", clock.failed(trouble, 0, 3, true)), Next::GiveUp, "{trouble:?}");
        }
        hosts.answered("h", clock.at(4));
        assert_eq!(hosts.failed("h", clock.failed(Unreachable, 5, 60, true)), Next::Wait, "but not in an outage");
    }

    #[test]
    fn unknown_hosts_are_waited_for_together() {
        let clock = Clock(Instant::now());
        let mut hosts = Hosts::new(None);
        hosts.answered("s3", clock.at(0));
        let mut failed =
            |host: &str, began, again| hosts.failed(host, clock.failed(Trouble::Unreachable, began, again, true));
        assert_eq!(failed("a", 0, 10), Next::Again);
        assert_eq!(failed("b", 2, 12), Next::Again, "at the same time");
        assert_eq!(failed("a", 0, 16), Next::GiveUp);
        for (minute, host) in (16..).zip(["c", "d", "e"]) {
            assert_eq!(failed(host, minute, minute + 1), Next::GiveUp, "{host}: once");
        }
        assert_eq!(failed("f", 57, 66), Next::Again, "forty minutes later, ten of them are forgotten");
        assert_eq!(failed("f", 57, 70), Next::GiveUp);
    }

    #[test]
    fn made_up_hosts_take_no_memory() {
        let clock = Clock(Instant::now());
        let mut hosts = Hosts::new(None);
        hosts.answered("s3", clock.at(0));
        for n in 0..5_000 {
            hosts.failed(&format!("h{n}"), clock.failed(Trouble::Unreachable, 0, 0, true));
        }
        assert!(hosts.known.len() <= HOSTS_MAX && hosts.known.contains_key("s3"));
    }
}
