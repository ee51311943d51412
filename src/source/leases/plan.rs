//! Decides which leases to take and which one to ask for. Pure: the clock is passed in.
//!
//! **Invariant: no worker's wall clock counts.** A lease has expired if its counter was *seen* unchanged for the
//! failover time, on the local monotonic clock. So a new worker waits that long before it takes a lease from another
//! worker, and a wrong clock moves no lease.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::seq::SliceRandom;

/// A lease as the table shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Id of the shard.
    pub key: String,
    /// Worker that reads the shard.
    pub owner: Option<String>,
    /// Counter that each renewal and each change of owner increments.
    pub counter: i64,
    /// A sequence number, or a KCL word for a place.
    pub checkpoint: String,
    /// Last sub-record of an aggregate that is done, as KCL counts them.
    pub checkpoint_sub_sequence: i64,
    /// Worker that has asked the owner for a handoff.
    pub handoff_requested_by: Option<String>,
    /// Stream of the shard, if the writer of the lease recorded it.
    pub stream: Option<String>,
    /// Lake of the checkpoint, if the writer of the lease recorded it.
    pub lake: Option<String>,
    /// Process that last took or renewed the lease.
    pub session: Option<String>,
}

/// The KCL checkpoint of a shard that was read to its end.
pub const SHARD_END: &str = "SHARD_END";

impl Lease {
    /// Returns whether the shard was read to its end, so that no worker needs its lease.
    pub fn is_ended(&self) -> bool {
        self.checkpoint == SHARD_END
    }
}

/// The time at which each lease was last seen to change.
#[derive(Debug)]
pub struct Observed {
    failover: Duration,
    leases: HashMap<String, Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    owner: Option<String>,
    counter: i64,
    at: Instant,
    /// Whether the lease has changed under this owner since it was first seen: only then is the owner known to live.
    moved: bool,
}

impl Observed {
    /// Creates an empty set of observations.
    pub fn new(failover: Duration) -> Self {
        Self { failover, leases: HashMap::new() }
    }

    /// Records what the table shows at `now`.
    pub fn note(&mut self, leases: &[Lease], now: Instant) {
        let seen = leases.iter().map(|lease| {
            let before = self.leases.get(&lease.key);
            let seen = match before.filter(|seen| seen.owner == lease.owner && seen.counter == lease.counter) {
                Some(same) => same.clone(),
                None => {
                    // A change of owner does not show that the new owner lives: the earlier owner may have made it.
                    let moved = before.is_some_and(|seen| seen.owner == lease.owner);
                    Seen { owner: lease.owner.clone(), counter: lease.counter, at: now, moved }
                }
            };
            (lease.key.clone(), seen)
        });
        self.leases = seen.collect();
    }

    /// Returns whether a lease may be taken at `now`: it has no owner, or its owner was not seen to renew it for too
    /// long.
    pub fn is_free(&self, lease: &Lease, now: Instant) -> bool {
        let expired = |seen: &Seen| now.saturating_duration_since(seen.at) >= self.failover;
        lease.owner.is_none() || self.leases.get(&lease.key).is_some_and(expired)
    }

    /// Returns whether a live worker reads the shard: its lease was seen to change, and has not expired at `now`.
    pub fn is_kept(&self, lease: &Lease, now: Instant) -> bool {
        !self.is_free(lease, now) && self.leases.get(&lease.key).is_some_and(|seen| seen.moved)
    }
}

/// The next actions of a worker.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Leases to take now.
    pub take: Vec<Lease>,
    /// Lease whose owner to ask for a handoff.
    pub ask: Option<Lease>,
}

/// Plans the next actions of worker `me`. Each worker takes its share of the shards. If there is none to take and
/// another worker holds at least two more, `me` asks that worker for a handoff. Only one request is open at a time.
pub fn plan(leases: &[Lease], observed: &Observed, me: &str, now: Instant, rng: &mut impl Rng) -> Plan {
    let open: Vec<&Lease> = leases.iter().filter(|l| !l.is_ended()).collect();
    let mut load: BTreeMap<&str, usize> = BTreeMap::from([(me, 0)]);
    let mut free = Vec::new();
    for lease in &open {
        match lease.owner.as_deref() {
            Some(owner) if owner == me || !observed.is_free(lease, now) => *load.entry(owner).or_default() += 1,
            _ => free.push((*lease).clone()),
        }
    }
    let mine = load.get(me).copied().unwrap_or(0);
    let share = open.len().div_ceil(load.len());
    free.shuffle(rng);
    free.truncate(share.saturating_sub(mine));
    if !free.is_empty() {
        return Plan { take: free, ask: None };
    }
    let asked_already = open.iter().any(|l| l.handoff_requested_by.as_deref() == Some(me));
    let busiest = load.iter().filter(|(owner, _)| **owner != me).max_by_key(|(_, held)| **held);
    let ask = busiest.filter(|(_, held)| !asked_already && **held >= mine + 2).and_then(|(owner, _)| {
        let mut theirs: Vec<&&Lease> =
            open.iter().filter(|l| l.owner.as_deref() == Some(*owner) && l.handoff_requested_by.is_none()).collect();
        theirs.shuffle(rng);
        theirs.first().map(|l| (**l).clone())
    });
    Plan { take: Vec::new(), ask }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    const FAILOVER: Duration = Duration::from_secs(10);

    fn lease(key: &str, owner: &str, counter: i64) -> Lease {
        Lease {
            key: key.to_owned(),
            owner: (!owner.is_empty()).then(|| owner.to_owned()),
            counter,
            checkpoint: "TRIM_HORIZON".to_owned(),
            checkpoint_sub_sequence: 0,
            handoff_requested_by: None,
            stream: None,
            lake: None,
            session: None,
        }
    }

    fn table(spec: &[(&str, &str)]) -> Vec<Lease> {
        spec.iter().map(|(key, owner)| lease(key, owner, 1)).collect()
    }

    fn planned(leases: &[Lease], me: &str) -> Plan {
        let now = Instant::now();
        let mut observed = Observed::new(FAILOVER);
        observed.note(leases, now);
        plan(leases, &observed, me, now, &mut ChaCha8Rng::seed_from_u64(1))
    }

    #[test]
    fn a_lease_expires_only_by_being_seen_unchanged() {
        let start = Instant::now();
        let mut observed = Observed::new(FAILOVER);
        let at = |seconds| start + Duration::from_secs(seconds);
        observed.note(&[lease("a", "other", 1)], at(0));
        assert!(!observed.is_free(&lease("a", "other", 1), at(9)));
        // Renewed at the last moment: the ten seconds begin again.
        observed.note(&[lease("a", "other", 2)], at(9));
        assert!(!observed.is_free(&lease("a", "other", 2), at(18)));
        observed.note(&[lease("a", "other", 2)], at(18));
        assert!(observed.is_free(&lease("a", "other", 2), at(19)));
        // This lease has not been seen yet, however old it may be.
        assert!(!observed.is_free(&lease("b", "other", 1), at(1_000)));
        assert!(observed.is_free(&lease("b", "", 1), at(1_000)));
    }

    #[test]
    fn an_owner_lives_when_it_was_seen_to_renew() {
        let start = Instant::now();
        let mut observed = Observed::new(FAILOVER);
        let at = |seconds| start + Duration::from_secs(seconds);
        observed.note(&[lease("a", "dead", 1), lease("b", "other", 1)], at(0));
        observed.note(&[lease("a", "dead", 1), lease("b", "other", 2)], at(3));
        assert!(!observed.is_kept(&lease("a", "dead", 1), at(3)));
        assert!(observed.is_kept(&lease("b", "other", 2), at(3)));
        assert!(!observed.is_kept(&lease("b", "other", 2), at(13)), "it has expired since");
        observed.note(&[lease("b", "heir", 3)], at(4));
        assert!(!observed.is_kept(&lease("b", "heir", 3), at(4)), "it was given to somebody");
    }

    #[test]
    fn one_worker_takes_all_and_two_take_half() {
        let free = table(&[("a", ""), ("b", ""), ("c", ""), ("d", "")]);
        assert_eq!(planned(&free, "me").take.len(), 4);
        let half = table(&[("a", ""), ("b", ""), ("c", ""), ("d", "other")]);
        assert_eq!(planned(&half, "me").take.len(), 2);
        let full = table(&[("a", ""), ("b", "me"), ("c", "me"), ("d", "other")]);
        assert_eq!(planned(&full, "me"), Plan::default());
    }

    #[test]
    fn ended_shards_are_nobodys() {
        let mut leases = table(&[("a", ""), ("b", "other")]);
        leases[0].checkpoint = SHARD_END.to_owned();
        assert_eq!(planned(&leases, "me"), Plan::default());
    }

    #[test]
    fn one_is_asked_for_at_a_time_and_only_of_those_who_hold_two_more() {
        let mut leases = table(&[("a", "x"), ("b", "x"), ("c", "x"), ("d", "y")]);
        let ask = planned(&leases, "me").ask.unwrap();
        assert_eq!(ask.owner.as_deref(), Some("x"));
        leases.iter_mut().find(|l| l.key == ask.key).unwrap().handoff_requested_by = Some("me".to_owned());
        assert_eq!(planned(&leases, "me"), Plan::default());
        assert_eq!(planned(&table(&[("a", "x"), ("b", "x"), ("c", "me")]), "me"), Plan::default());
    }

    /// For one to five workers, the shares settle within one lease of each other.
    #[test]
    fn shares_settle() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for workers in 1..6_usize {
            let mut leases = table(&[]);
            leases.extend((0..17).map(|n| lease(&format!("s{n}"), "", 1)));
            let mut observed = Observed::new(FAILOVER);
            let now = Instant::now();
            for _ in 0..40 {
                for worker in 0..workers {
                    let me = format!("w{worker}");
                    observed.note(&leases, now);
                    let plan = plan(&leases, &observed, &me, now, &mut rng);
                    for taken in plan.take.iter().chain(&plan.ask) {
                        leases.iter_mut().find(|l| l.key == taken.key).unwrap().owner = Some(me.clone());
                    }
                }
            }
            let mut load: BTreeMap<String, usize> = BTreeMap::new();
            leases.iter().for_each(|l| *load.entry(l.owner.clone().unwrap()).or_default() += 1);
            assert_eq!(load.len(), workers);
            assert!(load.values().max().unwrap() - load.values().min().unwrap() <= 1, "{load:?}");
        }
    }
}
