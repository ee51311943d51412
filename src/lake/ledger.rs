//! The commit protocol: who may write for a shard, how far the shard has come, and one atomic step that moves both
//! together with the files.
//!
//! # Invariants
//! - A commit holds the files *and* the positions that they reach, in one put-if-absent of one object.
//! - It is written for version `v + 1` only if every shard in it still is, at `v`, what its writer believes it to be:
//!   same number, same owner, same position. So two writers of one shard never both succeed, however late one of them
//!   wakes up.
//! - Numbers of a shard count up by one; positions only move forward; nothing here ever deletes a data file.
//!
//! # What an error means
//! After any failed write the outcome is unknown, so the log is read forward and decides (`commit.rs`):
//!
//! | in the log | meaning | what follows |
//! |---|---|---|
//! | the token of this commit | it was stored, its answer was lost | committed |
//! | no token, the shards as they were | it was not stored, or not yet | the same version again while it is free, else the next |
//! | no token, the shards otherwise | another owner took over | fenced: the caller drops its buffers of that shard |
//!
//! A write that is still under way when its error arrives can only become version `v + 1` itself: every later attempt
//! is made for a version that is still free, so one of the two loses.
//!
//! # In the log
//! Transaction ids, because they are the one thing that every Delta writer carries forward for ever:
//! `ingest/<stream>/<shard>` is the number, `…/owner` a random 63-bit token, `…/seq0` to `…/seq3` the position as four
//! decimal limbs of 18 digits, `…/from` where the shard was begun (0 is the horizon, else milliseconds), `…/read_to` the
//! time up to which it was read, `…/parts` how many parts of the next record are done (after an import).
//! `created/<stream>` is when the stream was made whose shards have that name, `lake/id` a random number that is this
//! lake's own. (Of ids with two slashes a shard has one alone, by which tools find them.)

use std::collections::{BTreeMap, BTreeSet};

use deltalake::kernel::Add;

use super::commit::{self, Committed, Draft, Proposal};
use super::log::{self, Transactions};
use super::{LakeError, Store};
use crate::ids::{SequenceNumber, ShardKey, StartAt, incarnation_of};
use crate::schema::Table;

mod once;
mod state;

pub use super::commit::new_token;
pub(crate) use state::encode_state;
pub use state::{ShardState, decode_state};

/// Where a shard enters the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The shard.
    pub shard: ShardKey,
    /// Where it is begun as long as there is no position.
    pub from: StartAt,
    /// A position that somebody else's checkpoint gave.
    pub position: Option<SequenceNumber>,
    /// Parts of the record right after it that are done.
    pub parts_done: i64,
}

/// A shard's step in a commit: from a state that the writer holds to the next.
#[derive(Debug, Clone)]
pub struct Step {
    /// The shard.
    pub shard: ShardKey,
    /// What the shard must be; `None` when it must not be there.
    pub expected: Option<ShardState>,
    /// What it becomes.
    pub next: ShardState,
}

/// How a commit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log, once.
    Committed {
        /// The version that holds it.
        version: u64,
        /// How many versions were lost to other writers on the way.
        conflicts: u32,
    },
    /// Nothing was committed: these shards belong to another owner now.
    Fenced(Vec<ShardKey>),
}

/// The ledger of one table for one writer.
#[derive(Debug)]
pub struct Ledger {
    table: Table,
    store: Store,
    known: Transactions,
}

impl Ledger {
    /// Opens the ledger of a table, making the table if it is not there.
    ///
    /// # Errors
    /// The store failed, or the log is corrupt.
    pub async fn open(lake: &Store, table: Table) -> Result<Self, LakeError> {
        table.ensure(lake).await?;
        let store = table.store(lake);
        let known = log::read_transactions(&store).await?;
        let known = known.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
        known.admit(table, &store, false)?;
        Ok(Self { table, store, known })
    }

    /// The newest version that was seen.
    pub fn version(&self) -> u64 {
        self.known.version
    }

    /// Reads what others have committed since.
    ///
    /// # Errors
    /// The store failed, or the log is corrupt.
    pub async fn refresh(&mut self) -> Result<(), LakeError> {
        log::read_forward(&self.store, &mut self.known).await
    }

    /// State of a shard at the newest version that was seen.
    pub fn state(&self, shard: &ShardKey) -> Option<ShardState> {
        decode_state(&self.known, shard)
    }

    /// The names under which incarnations of a stream have shards here: its own, and `<stream>.<when it was made>`.
    pub fn incarnations(&self, stream: &str) -> BTreeSet<String> {
        let names = self.known.ids.keys().filter_map(|id| id.strip_prefix("ingest/")?.split('/').next());
        names.filter(|name| incarnation_of(stream, name).is_some()).map(str::to_owned).collect()
    }

    /// Every shard of a stream that the ledger knows.
    pub fn shards(&self, stream: &str) -> Vec<(ShardKey, ShardState)> {
        let prefix = format!("ingest/{stream}/");
        let names = self.known.ids.keys().filter_map(|id| id.strip_prefix(&prefix)).filter(|id| !id.contains('/'));
        let keys = names.filter_map(|shard| ShardKey::new(stream, shard));
        let mut found: Vec<_> = keys.filter_map(|key| Some((key.clone(), self.state(&key)?))).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// Enters shards that the ledger does not know yet, all of them in one commit or none, with other transaction ids.
    ///
    /// So that several workers that start at once agree on where a stream begins: the first one's word stands.
    ///
    /// # Errors
    /// The store failed for too long, or the log is corrupt.
    pub async fn begin(
        &mut self,
        beginnings: &[Beginning],
        token: u64,
        also: Vec<(String, i64)>,
    ) -> Result<(), LakeError> {
        self.refresh().await?;
        let step = |b: &Beginning| {
            let next = ShardState {
                number: 1,
                owner: token,
                position: b.position.clone(),
                from: b.from,
                read_to_ms: 0,
                parts_done: b.parts_done,
            };
            Step { shard: b.shard.clone(), expected: None, next }
        };
        let steps: Vec<Step> = beginnings.iter().map(step).collect();
        let ids = steps.iter().flat_map(|s| encode_state(&s.shard, &s.next)).chain(also).collect();
        let free = |known: &Transactions| steps.iter().all(|s| decode_state(known, &s.shard).is_none());
        self.publish(Vec::new(), ids, ("fence/before", "fence/after"), free).await.map(drop)
    }

    /// Takes shards over, whoever holds them: number + 1, the new token, the position unchanged.
    ///
    /// From here on no commit of an earlier owner can succeed.
    ///
    /// # Errors
    /// The store failed for too long, or the log is corrupt.
    pub async fn fence(
        &mut self,
        shards: &[(ShardKey, StartAt)],
        token: u64,
    ) -> Result<BTreeMap<ShardKey, ShardState>, LakeError> {
        loop {
            self.refresh().await?;
            let steps: Vec<Step> = shards
                .iter()
                .map(|(shard, from)| {
                    let expected = self.state(shard);
                    let next = match &expected {
                        Some(state) => ShardState { number: state.number + 1, owner: token, ..state.clone() },
                        None => ShardState {
                            number: 1,
                            owner: token,
                            position: None,
                            from: *from,
                            read_to_ms: 0,
                            parts_done: 0,
                        },
                    };
                    Step { shard: shard.clone(), expected, next }
                })
                .collect();
            match self.commit(Vec::new(), &steps).await? {
                Outcome::Committed { .. } => return Ok(steps.into_iter().map(|s| (s.shard, s.next)).collect()),
                // Somebody else moved one of them while we looked: look again.
                Outcome::Fenced(_) => continue,
            }
        }
    }

    /// Commits files together with the steps of the shards that they come from. All or nothing.
    ///
    /// # Errors
    /// The store failed for longer than five minutes, or the log is corrupt. The outcome is then unknown to the caller
    /// and known to the log; starting over from the log is always right.
    pub async fn commit(&mut self, files: Vec<Add>, steps: &[Step]) -> Result<Outcome, LakeError> {
        let failpoints = self.failpoints(&files);
        let ids = steps.iter().flat_map(|s| encode_state(&s.shard, &s.next)).collect();
        let lost = |known: &Transactions, s: &Step| decode_state(known, &s.shard) != s.expected;
        let free = |known: &Transactions| !steps.iter().any(|s| lost(known, s));
        Ok(match self.publish(files, ids, failpoints, free).await? {
            Some(Committed { version, conflicts }) => Outcome::Committed { version, conflicts },
            None => {
                let lost = steps.iter().filter(|s| lost(&self.known, s));
                Outcome::Fenced(lost.map(|s| s.shard.clone()).collect())
            }
        })
    }

    /// Commits files and transaction ids, as long as `free` holds of what the log says.
    async fn publish(
        &mut self,
        adds: Vec<Add>,
        ids: Vec<(String, i64)>,
        failpoints: (&'static str, &'static str),
        free: impl Fn(&Transactions) -> bool + Sync,
    ) -> Result<Option<Committed>, LakeError> {
        commit::commit(self.table, &self.store, &mut self.known, &Addition { adds, ids, failpoints, free }).await
    }

    /// Whether it is time to write a checkpoint of the log; it is then taken to be under way.
    pub fn checkpoint_due(&mut self) -> bool {
        self.known.checkpoint_due()
    }

    fn failpoints(&self, files: &[Add]) -> (&'static str, &'static str) {
        match self.table {
            _ if files.is_empty() => ("fence/before", "fence/after"),
            Table::Quarantine => ("quarantine/before", "quarantine/after"),
            Table::Gaps => ("gap/before", "gap/after"),
            _ => ("commit/before", "commit/after"),
        }
    }
}

/// What a ledger commits.
struct Addition<F> {
    adds: Vec<Add>,
    ids: Vec<(String, i64)>,
    failpoints: (&'static str, &'static str),
    free: F,
}

impl<F: Fn(&Transactions) -> bool + Sync> Proposal for Addition<F> {
    async fn draft(&self, known: &Transactions) -> Result<Option<Draft>, LakeError> {
        let draft = || Draft { adds: self.adds.clone(), ids: self.ids.clone(), ..Draft::default() };
        Ok((self.free)(known).then(draft))
    }

    fn failpoints(&self) -> (&'static str, &'static str) {
        self.failpoints
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::aws::AwsSettings;
    use crate::lake::{Location, paths};

    fn shard(name: &str) -> ShardKey {
        ShardKey::new("stream", name).unwrap()
    }

    fn position(digits: &str) -> SequenceNumber {
        SequenceNumber::parse(digits).unwrap()
    }

    async fn lake(folder: &std::path::Path) -> Store {
        Store::create(&Location::Folder(folder.to_owned()), &AwsSettings::default()).await.unwrap()
    }

    fn advance(shard: &ShardKey, state: &ShardState, to: &str) -> Step {
        let next = ShardState { number: state.number + 1, position: Some(position(to)), ..state.clone() };
        Step { shard: shard.clone(), expected: Some(state.clone()), next }
    }

    #[tokio::test]
    async fn a_fenced_owner_commits_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path()).await;
        let key = shard("a");
        let mut first = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        let held = first.fence(&[(key.clone(), StartAt::TrimHorizon)], 1).await.unwrap().remove(&key).unwrap();
        let mut second = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        let taken = second.fence(&[(key.clone(), StartAt::TrimHorizon)], 2).await.unwrap().remove(&key).unwrap();
        assert_eq!((taken.number, taken.owner), (2, 2));
        assert_eq!(
            first.commit(Vec::new(), &[advance(&key, &held, "10")]).await.unwrap(),
            Outcome::Fenced(vec![key.clone()])
        );
        let done = second.commit(Vec::new(), &[advance(&key, &taken, "20")]).await.unwrap();
        assert!(matches!(done, Outcome::Committed { .. }));
        let reopened = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        assert_eq!(reopened.state(&key).unwrap().position, Some(position("20")));
    }

    #[tokio::test]
    async fn a_commit_whose_answer_was_lost_is_found_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path()).await;
        let key = shard("a");
        let mut ledger = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        let held = ledger.fence(&[(key.clone(), StartAt::TrimHorizon)], 1).await.unwrap().remove(&key).unwrap();
        let step = advance(&key, &held, "10");
        let stored = ledger.version() + 1;
        ledger.store.loses_answer = Some(Arc::new(|| Box::pin(async { true })));
        let outcome = ledger.commit(Vec::new(), &[step]).await.unwrap();
        assert_eq!(outcome, Outcome::Committed { version: stored, conflicts: 0 });
    }

    #[tokio::test]
    async fn a_checkpoint_carries_the_positions_on() {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path()).await;
        let key = shard("a");
        let mut ledger = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        let held = ledger.fence(&[(key.clone(), StartAt::Timestamp(77))], 1).await.unwrap().remove(&key).unwrap();
        let step = advance(&key, &held, "49590338271490256608559692538361571095921575989136588898");
        ledger.commit(Vec::new(), std::slice::from_ref(&step)).await.unwrap();
        crate::lake::snapshot::checkpoint(&ledger.store).await.unwrap();
        let after = advance(&shard("b"), &held, "1");
        ledger.commit(Vec::new(), &[Step { expected: None, ..after.clone() }]).await.unwrap();
        // What the checkpoint covers may be cleaned away by any Delta writer.
        for version in 0..=2 {
            ledger.store.delete(&paths::commit(version)).await.unwrap();
        }
        let reopened = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        assert_eq!(reopened.version(), 3);
        assert_eq!(reopened.state(&key), Some(step.next));
        assert_eq!(reopened.state(&shard("b")), Some(after.next));
    }

    #[tokio::test]
    async fn a_lost_answer_counts_even_if_a_shard_has_moved_on_since() {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path()).await;
        let (a, b) = (shard("a"), shard("b"));
        let mut ledger = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        let both = [(a.clone(), StartAt::TrimHorizon), (b.clone(), StartAt::TrimHorizon)];
        let held = ledger.fence(&both, 1).await.unwrap();
        let steps = [advance(&a, &held[&a], "10"), advance(&b, &held[&b], "20")];
        let stored = ledger.version() + 1;
        ledger.store.loses_answer = Some(Arc::new(move || {
            let (lake, b) = (lake.clone(), b.clone());
            Box::pin(async move {
                let mut other = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
                other.fence(&[(b, StartAt::TrimHorizon)], 2).await.unwrap();
                true
            })
        }));
        let outcome = ledger.commit(Vec::new(), &steps).await.unwrap();
        assert_eq!(outcome, Outcome::Committed { version: stored, conflicts: 0 });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn writers_of_different_shards_all_succeed() {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path()).await;
        Table::SyncRecords.ensure(&lake).await.unwrap();
        let writers = (0..6u64).map(|n| {
            let lake = lake.clone();
            tokio::spawn(async move {
                let key = shard(&format!("s{n}"));
                let mut ledger = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
                let fenced = ledger.fence(&[(key.clone(), StartAt::TrimHorizon)], n + 1).await.unwrap();
                let mut state = fenced[&key].clone();
                for to in 1..=20u64 {
                    let step = advance(&key, &state, &to.to_string());
                    assert!(matches!(
                        ledger.commit(Vec::new(), std::slice::from_ref(&step)).await.unwrap(),
                        Outcome::Committed { .. }
                    ));
                    state = step.next;
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        let ledger = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        assert_eq!(ledger.version(), 6 * 21);
        for (_, state) in ledger.shards("stream") {
            assert_eq!((state.number, state.position.unwrap().as_str()), (21, "20"));
        }
    }
}
