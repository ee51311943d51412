//! The files of a table that must stay, and the verdict on every other file.
//!
//! Memory holds a number of 64 bits for each listed path. If two paths had the same number, a file would stay that
//! could go; no file goes that must stay.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use chrono::{DateTime, TimeDelta, Utc};
use deltalake::kernel::{Action, DeletionVectorDescriptor};
use futures::{StreamExt, TryStreamExt};

use super::names::{DataName, vector_path};
use crate::ids::ShardKey;
use crate::lake::ledger::decode_state;
use crate::lake::log::{self, Transactions};
use crate::lake::{LakeError, Store, paths, snapshot};
use crate::schema::Table;
use crate::timeouts::VACUUM_UNPROVEN_AGE_MIN;

/// Commits that are read concurrently.
const READS: usize = 16;

/// The times that a vacuum compares with, by the clock of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cutoffs {
    /// The beginning of the retention.
    pub retention: DateTime<Utc>,
    /// An unlisted file whose name does not tell its commit must be older than this.
    pub unproven: DateTime<Utc>,
}

impl Cutoffs {
    /// Computes the times. `None` if the retention reaches back before all times.
    pub(super) fn new(now: DateTime<Utc>, retention: std::time::Duration) -> Option<Self> {
        let before = |age| now.checked_sub_signed(TimeDelta::from_std(age).ok()?);
        Some(Self { retention: before(retention)?, unproven: before(retention.max(VACUUM_UNPROVEN_AGE_MIN))? })
    }
}

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The newest version lists it.
    Active,
    /// A version within the retention lists it, or it is younger than that.
    Recent,
    /// No version lists it yet, and its writer may still commit it.
    Pending,
    /// A consumer has not got its rows yet, and no other file has them apart.
    Undelivered,
    /// No version within the retention lists it, and none ever will.
    Dead,
}

/// The paths that versions of a table list.
pub(super) struct Listed {
    hasher: RandomState,
    pub cutoffs: Cutoffs,
    /// The transaction ids, at most as new as `version`.
    pub known: Transactions,
    /// The loaded version.
    pub version: u64,
    /// The newest version whose commit was read.
    read_to: u64,
    active: HashSet<u64>,
    /// Listed by a version within the retention.
    recent: HashSet<u64>,
    /// Removed before the retention began.
    removed: HashSet<u64>,
    /// Removed, and needed by a delivery to come.
    undelivered: HashSet<u64>,
}

impl Listed {
    /// Reads the log of a table; `None` if there is no table.
    ///
    /// A file was listed within the retention if it is active, or if a commit since then removed it. The time of a
    /// removal is the later one of two: the one that its writer gave, and the one that the store gave the commit. So a
    /// writer whose clock is late shortens nothing.
    ///
    /// # Errors
    /// The log cannot be read, or it lists files outside of the table.
    pub(super) async fn read(table: &Store, cutoffs: Cutoffs) -> Result<Option<Self>, LakeError> {
        // The ids are read first: a shard's epoch only grows, so an older one spares more files.
        let Some(known) = log::read_transactions(table).await? else { return Ok(None) };
        let Some(loaded) = snapshot::load(table, None).await? else { return Ok(None) };
        let version = loaded.version().unwrap_or(known.version);
        let mut listed = Self {
            hasher: RandomState::new(),
            cutoffs,
            known,
            version,
            read_to: version,
            active: HashSet::new(),
            recent: HashSet::new(),
            removed: HashSet::new(),
            undelivered: HashSet::new(),
        };
        let hasher = listed.hasher.clone();
        let active = &mut listed.active;
        snapshot::visit_active(table, &loaded, |path, vector| {
            insert(active, &hasher, path);
            insert_vector(active, &hasher, table, vector)
        })
        .await?;
        let (recent, removed) = (&mut listed.recent, &mut listed.removed);
        snapshot::visit_removed(table, &loaded, |path, at_ms| {
            let is_recent = at_ms.is_none_or(|at_ms| at_ms >= cutoffs.retention.timestamp_millis());
            insert(if is_recent { &mut *recent } else { &mut *removed }, &hasher, path);
        })
        .await?;
        listed.read_recent_commits(table).await?;
        Ok(Some(listed))
    }

    /// Checks that the table requires nothing that this version does not know. It could be about files.
    ///
    /// # Errors
    /// The table requires such a thing.
    pub(super) fn admit(&self, table: Table, store: &Store) -> Result<(), LakeError> {
        self.known.admit(table, store, false)
    }

    /// Adds the files of the commits that the store got within the retention.
    async fn read_recent_commits(&mut self, table: &Store) -> Result<(), LakeError> {
        let since = self.cutoffs.retention;
        let versions = table.listed("_delta_log", None).try_filter_map(|(path, object)| async move {
            let name = path.strip_prefix("_delta_log/");
            Ok(name.and_then(paths::commit_version).filter(|_| object.last_modified >= since))
        });
        let mut commits =
            versions.map_ok(|version| log::read_commit(table, version)).try_buffer_unordered(READS).boxed();
        while let Some(actions) = commits.try_next().await? {
            // Log clean-up may have deleted a commit since it was listed. Nobody reads its version any more.
            self.apply(table, &actions.unwrap_or_default())?;
        }
        Ok(())
    }

    /// Adds the files of commits that were made meanwhile. A RESTORE lists files again that were removed long ago.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) async fn read_forward(&mut self, table: &Store) -> Result<(), LakeError> {
        while let Some(actions) = log::read_commit(table, self.read_to + 1).await? {
            self.apply(table, &actions)?;
            self.read_to += 1;
        }
        Ok(())
    }

    fn apply(&mut self, table: &Store, actions: &[Action]) -> Result<(), LakeError> {
        for action in actions {
            let (path, vector) = match action {
                Action::Add(add) => (&add.path, &add.deletion_vector),
                Action::Remove(remove) => (&remove.path, &remove.deletion_vector),
                _ => continue,
            };
            insert(&mut self.recent, &self.hasher, path);
            insert_vector(&mut self.recent, &self.hasher, table, vector.as_ref())?;
        }
        Ok(())
    }

    /// Keeps a file for a delivery to come.
    pub(super) fn keep_undelivered(&mut self, path: &str) {
        insert(&mut self.undelivered, &self.hasher, path);
    }

    /// Returns whether a version within the retention lists a path.
    pub(super) fn is_listed(&self, path: &str) -> bool {
        self.holds(&self.active, path) || self.holds(&self.recent, path)
    }

    fn holds(&self, set: &HashSet<u64>, path: &str) -> bool {
        // Some writers escape a path once more than others, so both readings of it count.
        set.contains(&self.hasher.hash_one(path))
            || decoded(path).is_some_and(|path| set.contains(&self.hasher.hash_one(path.as_str())))
    }

    /// Judges a file by its path, its name and its time in the store.
    pub(super) fn judge(&self, path: &str, name: &DataName, modified: DateTime<Utc>) -> Verdict {
        if self.holds(&self.active, path) {
            return Verdict::Active;
        }
        if self.holds(&self.recent, path) || modified >= self.cutoffs.retention {
            return Verdict::Recent;
        }
        if self.holds(&self.undelivered, path) {
            return Verdict::Undelivered;
        }
        if self.holds(&self.removed, path) {
            return Verdict::Dead;
        }
        let is_taken = match name {
            DataName::Part(part) => self.epoch(&part.shard).map(|epoch| part.epoch <= epoch),
            DataName::State(version) => Some(*version <= self.version),
            DataName::Other => None,
        };
        match is_taken {
            Some(true) => Verdict::Dead,
            Some(false) => Verdict::Pending,
            None if modified >= self.cutoffs.unproven => Verdict::Recent,
            None => Verdict::Dead,
        }
    }

    /// Returns the epoch of a shard, given as `<stream>.<shard>`; `None` if the ledger does not know the shard. Nobody
    /// commits files of an unknown shard without a fence before.
    fn epoch(&self, shard: &str) -> Option<u64> {
        let (stream, shard) = shard.rsplit_once('.')?;
        let shard = ShardKey::new(stream, shard)?;
        decode_state(&self.known, &shard).map(|state| state.epoch)
    }
}

fn insert(set: &mut HashSet<u64>, hasher: &RandomState, path: &str) {
    set.insert(hasher.hash_one(path));
    if let Some(path) = decoded(path) {
        set.insert(hasher.hash_one(path.as_str()));
    }
}

fn insert_vector(
    set: &mut HashSet<u64>,
    hasher: &RandomState,
    table: &Store,
    vector: Option<&DeletionVectorDescriptor>,
) -> Result<(), LakeError> {
    match vector.map(vector_path).transpose() {
        Ok(path) => {
            if let Some(path) = path.flatten() {
                insert(set, hasher, &path);
            }
            Ok(())
        }
        Err(text) => {
            let reason = format!(
                "its deletion vector {text:?} names no file of the table; undo that commit with the engine that made it"
            );
            Err(LakeError::Log { path: format!("{}_delta_log", table.url()), reason })
        }
    }
}

/// Returns a path without its percent escapes, if it has some.
fn decoded(path: &str) -> Option<String> {
    let place = object_store::path::Path::from_url_path(path).ok().filter(|_| path.contains('%'))?;
    Some(place.to_string()).filter(|decoded| decoded != path)
}
