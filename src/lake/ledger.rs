//! The commit protocol of shards: who may write for a shard, and up to which position the shard is committed. One
//! atomic commit moves the epoch, the owner and the position together with the files.
//!
//! # Invariants
//! - A commit holds the files *and* the positions that they reach, in one put-if-absent of one object.
//! - A commit is written for version `v + 1` only if every shard in it has, at `v`, the state that the writer expects:
//!   same epoch, owner and position. So two writers of one shard never both succeed, however late one of them wakes up.
//! - The epoch of a shard increases by one with each commit. Positions only move forward. The ledger never
//!   deletes a data file.
//!
//! # What an error means
//! After any failed write the outcome is unknown. The writer then reads the log forward, and the log decides
//! (`commit.rs`):
//!
//! | in the log | meaning | next step |
//! |---|---|---|
//! | the token of this commit | the commit was stored, the answer was lost | committed |
//! | no token, the shards unchanged | it was not stored, or not yet | retry the version if still free, else the next |
//! | no token, the shards changed | another owner took over | fenced: the caller drops its buffers of that shard |
//!
//! A write that is still in flight when its error arrives can only become version `v + 1` itself. Every later attempt
//! targets a version that is still free, so one of the two loses.
//!
//! # In the log
//! The ledger is stored in transaction ids, because every Delta writer carries them forward forever:
//!
//! | id | value |
//! |---|---|
//! | `ingest/<stream>/<shard>` | the epoch; a shard's only id with two slashes, by which tools find shards |
//! | `…/owner` | a random 63-bit token of the owner |
//! | `…/seq0` to `…/seq3` | the position, as four decimal limbs of 18 digits |
//! | `…/from` | where reading of the shard began: 0 is the horizon, else milliseconds |
//! | `…/read_to` | the watermark |
//! | `…/parts` | done sub-records of the record after the position (after an import) |
//! | `created/<stream>` | creation time of the stream whose shards have this name |
//! | `lake/id` | a random number that identifies this lake |

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
pub use once::{CARE_TURN, Turns};
pub(crate) use state::encode_state;
pub use state::{ShardState, decode_state};

/// The epoch of a shard that the ledger did not know before.
pub(crate) const FIRST_EPOCH: u64 = 1;

/// The first entry of a shard in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The shard.
    pub shard: ShardKey,
    /// Where reading begins as long as there is no position.
    pub from: StartAt,
    /// A position that was imported from a foreign checkpoint.
    pub position: Option<SequenceNumber>,
    /// Sub-records of the record right after the position that are already done.
    pub parts_done: i64,
}

/// A shard's step in a commit: from the state that the writer holds to the next state.
#[derive(Debug, Clone)]
pub struct Step {
    /// The shard.
    pub shard: ShardKey,
    /// The state that the shard must have; `None` if the ledger must not know the shard.
    pub expected: Option<ShardState>,
    /// The state after the commit.
    pub next: ShardState,
}

/// The result of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The commit is in the log exactly once.
    Committed {
        /// The log version of the commit.
        version: u64,
        /// The number of versions lost to other writers on the way.
        conflicts: u32,
    },
    /// Nothing was committed: these shards now belong to another owner.
    Fenced(Vec<ShardKey>),
}

/// The ledger of one table, as one writer sees it.
#[derive(Debug)]
pub struct Ledger {
    table: Table,
    store: Store,
    known: Transactions,
}

impl Ledger {
    /// Opens the ledger of a table. Creates the table if it does not exist.
    ///
    /// # Errors
    /// The store failed, the log is corrupt, or the table's requirements forbid commits.
    pub async fn open(lake: &Store, table: Table) -> Result<Self, LakeError> {
        table.ensure(lake).await?;
        let store = table.store(lake);
        let known = log::read_transactions(&store).await?;
        let known = known.ok_or_else(|| LakeError::NoLake(store.to_string()))?;
        known.admit(table, &store, false)?;
        Ok(Self { table, store, known })
    }

    /// Returns the newest log version that was read.
    pub fn version(&self) -> u64 {
        self.known.version
    }

    /// Reads the commits that other writers made since the last read.
    ///
    /// # Errors
    /// The store failed, or the log is corrupt.
    pub async fn refresh(&mut self) -> Result<(), LakeError> {
        log::read_forward(&self.store, &mut self.known).await
    }

    /// Returns the state of a shard at the newest log version that was read.
    pub fn state(&self, shard: &ShardKey) -> Option<ShardState> {
        decode_state(&self.known, shard)
    }

    /// Returns the names under which the ledger knows incarnations of a stream: its own name, and `<stream>.<creation
    /// time>`.
    pub fn incarnations(&self, stream: &str) -> BTreeSet<String> {
        let names = self.known.ids.keys().filter_map(|id| id.strip_prefix("ingest/")?.split('/').next());
        names.filter(|name| incarnation_of(stream, name).is_some()).map(str::to_owned).collect()
    }

    /// Returns every shard of a stream that the ledger knows.
    pub fn shards(&self, stream: &str) -> Vec<(ShardKey, ShardState)> {
        let prefix = format!("ingest/{stream}/");
        let names = self.known.ids.keys().filter_map(|id| id.strip_prefix(&prefix)).filter(|id| !id.contains('/'));
        let keys = names.filter_map(|shard| ShardKey::new(stream, shard));
        let mut found: Vec<_> = keys.filter_map(|key| Some((key.clone(), self.state(&key)?))).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// Enters shards that the ledger does not know yet, together with the transaction ids `also`. The commit covers all
    /// of them or none.
    ///
    /// Several workers that start at once thus agree on where a stream begins: the first commit wins.
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
                epoch: FIRST_EPOCH,
                owner: token,
                position: b.position.clone(),
                from: b.from,
                read_to_ms: 0,
                parts_done: b.parts_done,
            };
            Step { shard: b.shard.clone(), expected: None, next }
        };
        let steps: Vec<Step> = beginnings.iter().map(step).collect();
        let mut ids = encode_steps(&steps)?;
        ids.extend(also);
        let free = |known: &Transactions| steps.iter().all(|s| decode_state(known, &s.shard).is_none());
        self.publish(Vec::new(), ids, ("fence/before", "fence/after"), free).await.map(drop)
    }

    /// Takes over shards from any owner: the epoch increases by one, the owner becomes `token`, the position stays.
    ///
    /// Afterwards no commit of an earlier owner can succeed.
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
                        Some(state) => ShardState { epoch: state.epoch + 1, owner: token, ..state.clone() },
                        None => ShardState {
                            epoch: FIRST_EPOCH,
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
                // Another writer moved one of the shards in the meantime, so the states must be read again.
                Outcome::Fenced(_) => continue,
            }
        }
    }

    /// Commits files together with the steps of the shards that the files come from. All or nothing.
    ///
    /// # Errors
    /// The store failed for longer than five minutes, or the log is corrupt. The outcome is then unknown to the caller,
    /// but the log knows it. Starting over from the log is always correct.
    pub async fn commit(&mut self, files: Vec<Add>, steps: &[Step]) -> Result<Outcome, LakeError> {
        let failpoints = self.failpoints(&files);
        let ids = encode_steps(steps)?;
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

    /// Commits files and transaction ids if `free` holds for the log version right before the commit.
    async fn publish(
        &mut self,
        adds: Vec<Add>,
        ids: Vec<(String, i64)>,
        failpoints: (&'static str, &'static str),
        free: impl Fn(&Transactions) -> bool + Sync,
    ) -> Result<Option<Committed>, LakeError> {
        commit::commit(self.table, &self.store, &mut self.known, &Addition { adds, ids, failpoints, free }).await
    }

    /// Returns whether a checkpoint of the log is due. If so, the ledger counts it as in progress.
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

/// Encodes the states after the steps as transaction ids.
fn encode_steps(steps: &[Step]) -> Result<Vec<(String, i64)>, LakeError> {
    let mut ids = Vec::new();
    for step in steps {
        ids.extend(encode_state(&step.shard, &step.next)?);
    }
    Ok(ids)
}

/// A proposed commit of the ledger.
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
        let next = ShardState { epoch: state.epoch + 1, position: Some(position(to)), ..state.clone() };
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
        assert_eq!((taken.epoch, taken.owner), (2, 2));
        assert_eq!(
            first.commit(Vec::new(), &[advance(&key, &held, "10")]).await.unwrap(),
            Outcome::Fenced(vec![key.clone()])
        );
        let done = second.commit(Vec::new(), &[advance(&key, &taken, "20")]).await.unwrap();
        assert!(matches!(done, Outcome::Committed { .. }));
        let reopened = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        assert_eq!(reopened.state(&key).unwrap().position, Some(position("20")));
    }

    /// Workers that start at once may list different shards, and each has its own time at which reading begins.
    #[tokio::test(flavor = "multi_thread")]
    async fn workers_that_start_at_once_agree_on_the_start_of_a_stream() {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path()).await;
        Table::SyncRecords.ensure(&lake).await.unwrap();
        let workers = (1..=6u64).map(|token| {
            let lake = lake.clone();
            tokio::spawn(async move {
                let from = StartAt::Timestamp(i64::try_from(token).unwrap());
                let beginning = |name: &str| Beginning { shard: shard(name), from, position: None, parts_done: 0 };
                let beginnings = [beginning("common"), beginning(&format!("own{token}"))];
                let mut ledger = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
                let created = vec![("created/stream".to_owned(), i64::try_from(token).unwrap())];
                ledger.begin(&beginnings, token, created).await.unwrap();
                ledger
            })
        });
        let mut agreed = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        for worker in workers.collect::<Vec<_>>() {
            let ledger = worker.await.unwrap();
            agreed.refresh().await.unwrap();
            assert_eq!(ledger.shards("stream"), agreed.shards("stream"), "the worker knows the agreed start");
        }
        assert_eq!(agreed.version(), 1, "one commit");
        let winner = agreed.state(&shard("common")).unwrap().owner;
        let from = StartAt::Timestamp(i64::try_from(winner).unwrap());
        let state = ShardState { epoch: 1, owner: winner, position: None, from, read_to_ms: 0, parts_done: 0 };
        let own = shard(&format!("own{winner}"));
        assert_eq!(agreed.shards("stream"), [(shard("common"), state.clone()), (own, state)]);
        assert_eq!(agreed.value("created/stream"), i64::try_from(winner).ok());
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
        // Any Delta writer may clean up the commits that the checkpoint covers.
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
            assert_eq!((state.epoch, state.position.unwrap().as_str()), (21, "20"));
        }
    }
}
