//! The latest change of each key of the tail, in memory, for lookups by the rows of the state.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryReservation;

use super::names::{Hashing, Mark, Names, Step};
use super::order::{OrderPrefix, TieBreakers};
use super::parts::{Numbers, Part, Place, named, tie_breakers_at};

/// `sync_count` and server date of the removal of a dataset. Rows that are not later are removed.
pub(super) type Removal = (i64, i64);

/// The latest row of each key, and where that row is. Entries are sorted by identity, dataset and key. The state has
/// the keys of a dataset side by side, so its lookups find neighbouring entries.
pub(super) struct Tail {
    pub(super) parts: Vec<Part>,
    pub(super) identities: Numbers,
    pub(super) names_of_datasets: Numbers,
    /// The hasher of the marks.
    pub(super) hasher: Hashing,
    /// The index of each identity's first dataset, by identity number; the last item is the number of datasets.
    pub(super) datasets_of: Vec<u32>,
    pub(super) datasets: Vec<Dataset>,
    pub(super) entries: Vec<Entry>,
    /// The reservation for all of the tail.
    pub(super) memory: MemoryReservation,
}

/// A dataset of the tail. The datasets of an identity are sorted by the numbers of their names.
pub(super) struct Dataset {
    pub name: u32,
    /// Start and end of its entries.
    pub entries: (u32, u32),
    pub removal: Option<Removal>,
}

/// A key and its latest row. The entries of a dataset are sorted by mark. An entry holds what a lookup usually needs,
/// so that the row's columns are not read.
pub(super) struct Entry {
    pub dataset: u32,
    pub key: Mark,
    pub at: Place,
    pub head: OrderPrefix,
}

/// A cursor over the rows of a batch: the tail's identity and dataset of the current row, if the tail has them.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Walk {
    identity: Option<u32>,
    dataset: Option<u32>,
}

impl Walk {
    /// Returns the number of the row's dataset.
    pub(super) fn dataset(self) -> Option<u32> {
        self.dataset
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.memory.size();
        f.debug_struct("Tail").field("keys", &self.len()).field("bytes", &bytes).finish_non_exhaustive()
    }
}

impl Tail {
    fn names(&self, at: Place) -> (&Names, usize) {
        named(&self.parts, at)
    }

    /// Returns the number of keys.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the number of datasets.
    pub(super) fn datasets(&self) -> usize {
        self.datasets.len()
    }

    /// Returns columns of the latest row of each key, except the keys that are `superseded`. `removals` are the state's
    /// removals, by dataset.
    pub(super) fn left(
        &self,
        schema: &SchemaRef,
        superseded: &[bool],
        removals: &[Option<Removal>],
    ) -> Result<Vec<RecordBatch>> {
        // For each row, `None` if it is not emitted, else whether it comes after every removal.
        let mut fates: Vec<_> = self.parts.iter().map(|part| vec![None; part.rows.num_rows()]).collect();
        for (entry, _) in self.entries.iter().zip(superseded).filter(|(_, is_beaten)| !**is_beaten) {
            let removal = self.removal(entry.dataset).max(removals[entry.dataset as usize]);
            let is_after = removal.is_none_or(|removal| entry.head.moment() > removal);
            fates[entry.at.part as usize][entry.at.row as usize] = Some(is_after && !entry.key.is_none());
        }
        let parts = self.parts.iter().zip(fates).filter(|(_, fates)| fates.iter().any(Option::is_some));
        parts.map(|(part, fates)| part.left(schema, &fates)).collect()
    }

    /// Moves to the next row of a batch. Returns whether the row's dataset may differ from that of the row before.
    pub(super) fn follow(&self, walk: &mut Walk, names: &Names, row: usize) -> bool {
        let step = names.step(row);
        if step == Step::Identity {
            walk.identity = self.identities.find(&names.identity(row), &self.parts, Names::identity);
        }
        if step != Step::Key {
            walk.dataset = walk.identity.and_then(|identity| self.find_dataset(identity, names, row));
        }
        step != Step::Key
    }

    fn find_dataset(&self, identity: u32, names: &Names, row: usize) -> Option<u32> {
        let name = self.names_of_datasets.find(&names.dataset(row), &self.parts, Names::dataset)?;
        let of = self.datasets_of[identity as usize]..self.datasets_of[identity as usize + 1];
        search(&self.datasets, of, name, |dataset| dataset.name, |_| true)
    }

    /// Returns the number of the entry for a row's key in a dataset.
    pub(super) fn find(&self, dataset: u32, names: &Names, row: usize) -> Option<usize> {
        let key = names.key_mark(row, &self.hasher);
        let (start, end) = self.datasets[dataset as usize].entries;
        let is_it = |known: &Entry| {
            let (theirs, at) = self.names(known.at);
            theirs.key(at) == names.key(row)
        };
        search(&self.entries, start..end, key, |entry| entry.key, |entry| key.is_whole() || is_it(entry))
            .map(|entry| entry as usize)
    }

    /// Compares a row with the latest row of an entry. Returns `None` if their order prefixes are equal and `rest`, the
    /// tie-breakers, is unknown.
    pub(super) fn compare(
        &self,
        head: OrderPrefix,
        rest: Option<TieBreakers<'_>>,
        row: usize,
        entry: usize,
    ) -> Option<Ordering> {
        let Entry { at, head: latest, .. } = self.entries[entry];
        match head.cmp(&latest) {
            Ordering::Equal => rest.map(|rest| rest.compare(row, &tie_breakers_at(&self.parts, at), at.row as usize)),
            order => Some(order),
        }
    }

    /// Returns the latest removal of a dataset.
    pub(super) fn removal(&self, dataset: u32) -> Option<Removal> {
        self.datasets[dataset as usize].removal
    }

    /// Returns the identity of a key.
    pub(super) fn identity(&self, entry: usize) -> Option<&str> {
        let (names, row) = self.names(self.entries[entry].at);
        names.identity(row)[1]
    }
}

/// Returns the index of an item with this key, in a range that is sorted by key. If several items have the key, `is_it`
/// selects one.
fn search<T, K: Ord>(
    all: &[T],
    of: Range<u32>,
    key: K,
    key_of: impl Fn(&T) -> K,
    is_it: impl Fn(&T) -> bool,
) -> Option<u32> {
    let some = &all[of.start as usize..of.end as usize];
    let first = some.partition_point(|known| key_of(known) < key);
    let alike = (of.start..of.end).zip(some).skip(first).take_while(|(_, known)| key_of(known) == key);
    { alike }.find(|(_, known)| is_it(known)).map(|(number, _)| number)
}
