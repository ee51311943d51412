//! Collects the tail while it is read: rows in arrival order, and sorted by identity once all are read.

use std::cmp::Ordering;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;

use super::names::{Hashing, Mark, Names, Step, text};
use super::order::{OrderPrefix, column, order_prefixes, tie_breakers};
use super::parts::{INDEX_MAX, Numbers, Part, Place, index, named, tie_breakers_at};
use super::tail::{Dataset, Entry, Tail};

/// Upper bound of the bytes that a row takes beside its columns: as a change, as a sorted change, as an entry, and for
/// its names.
const BYTES_OF_A_ROW: usize = 320;

/// A row that changes a key or removes a dataset.
#[derive(Default, Clone, Copy)]
struct Change {
    identity: u32,
    dataset: u32,
    key: Mark,
    at: Place,
    head: OrderPrefix,
}

/// Rows of the tail, while they are collected.
pub(super) struct Intake {
    parts: Vec<Part>,
    /// Rows of all parts.
    rows: usize,
    /// Identities, by pool and name.
    identities: Numbers,
    /// Datasets by name alone, because most identities have datasets of the same names.
    datasets: Numbers,
    hasher: Hashing,
    /// Changes of each part.
    changes: Vec<Vec<Change>>,
    memory: MemoryReservation,
}

impl Intake {
    /// Returns an empty intake. `memory` accounts for the rows that it collects.
    pub(super) fn new(memory: MemoryReservation) -> Self {
        let (identities, datasets) = (Numbers::default(), Numbers::default());
        let hasher = Hashing::default();
        Self { parts: Vec::new(), rows: 0, identities, datasets, hasher, changes: Vec::new(), memory }
    }

    /// Adds rows, which must have all columns of the order, and `op`. Returns `false` if the memory reservation fails,
    /// or the rows are too many for their indices; the intake must then be discarded.
    pub(super) fn push(&mut self, rows: RecordBatch) -> Result<bool> {
        let bytes = rows.get_array_memory_size() + rows.num_rows() * BYTES_OF_A_ROW;
        self.rows = self.rows.saturating_add(rows.num_rows());
        let are_indexable = self.rows <= INDEX_MAX && self.parts.len() < INDEX_MAX;
        if !are_indexable || self.memory.try_grow(bytes).is_err() {
            return Ok(false);
        }
        let rest = tie_breakers(&rows).ok_or_else(|| DataFusionError::Internal("rows without an order".to_owned()))?;
        let ops = cast(column(&rows, "op")?, &DataType::Utf8View)?;
        let (heads, count) = (order_prefixes(&rows)?, rows.num_rows());
        let part = index(self.parts.len());
        self.parts.push(Part { names: Names::of(&rows)?, rest, rows });
        let names = &self.parts[part as usize].names;
        let mut changes = Vec::with_capacity(count);
        let (mut identity, mut dataset) = (None, None);
        for (row, number) in (0..count).zip(0_u32..) {
            match names.step(row) {
                Step::Identity => (identity, dataset) = (None, None),
                Step::Dataset => dataset = None,
                Step::Key => {}
            }
            // A row without a key that is no removal marks an event without records. Such an event changes nothing.
            if !names.has_key(row) && text(ops.as_string_view(), row) != Some("remove") {
                continue;
            }
            let at = Place { part, row: number };
            let identity = *identity.get_or_insert_with(|| self.identities.of(at, &self.parts, Names::identity));
            let dataset = *dataset.get_or_insert_with(|| self.datasets.of(at, &self.parts, Names::dataset));
            let key = names.key_mark(row, &self.hasher);
            changes.push(Change { identity, dataset, key, at, head: heads.get(row) });
        }
        self.changes.push(changes);
        Ok(true)
    }

    /// Returns the latest row of each key.
    pub(super) fn done(self) -> Tail {
        let mut datasets_of = Vec::with_capacity(self.identities.known.len() + 1);
        let mut changes = self.by_identity();
        let (mut datasets, mut entries) = (Vec::new(), Vec::with_capacity(changes.len()));
        for of_identity in changes.chunk_by_mut(|a, b| a.identity == b.identity) {
            datasets_of.push(index(datasets.len()));
            of_identity.sort_unstable_by(|a, b| self.by_name(a, b));
            for of_dataset in of_identity.chunk_by(|a, b| a.dataset == b.dataset) {
                let first = index(entries.len());
                for of_key in of_dataset.chunk_by(|a, b| self.by_name(a, b).is_eq()) {
                    let latest = of_key.iter().max_by(|a, b| self.by_order(a, b));
                    let dataset = index(datasets.len());
                    entries.extend(latest.map(|&Change { key, at, head, .. }| Entry { dataset, key, at, head }));
                }
                let removals = of_dataset.iter().filter(|change| change.key.is_none());
                let removal = removals.map(|change| change.head.moment()).max();
                let (name, entries) = (of_dataset[0].dataset, (first, index(entries.len())));
                datasets.push(Dataset { name, entries, removal });
            }
        }
        datasets_of.push(index(datasets.len()));
        let Self { parts, identities, datasets: names_of_datasets, hasher, memory, .. } = self;
        Tail { parts, identities, names_of_datasets, hasher, datasets_of, datasets, entries, memory }
    }

    /// Returns all changes, ordered by the numbers of their identities. They are copied into one vector, because the
    /// next steps read each change many times.
    fn by_identity(&self) -> Vec<Change> {
        let mut ends = vec![0_usize; self.identities.known.len() + 1];
        self.changes.iter().flatten().for_each(|change| ends[change.identity as usize + 1] += 1);
        (1..ends.len()).for_each(|n| ends[n] += ends[n - 1]);
        let mut next = ends;
        let mut changes = vec![Change::default(); self.changes.iter().map(Vec::len).sum()];
        for change in self.changes.iter().flatten() {
            let next = &mut next[change.identity as usize];
            changes[*next] = *change;
            *next += 1;
        }
        changes
    }

    /// Compares by dataset, then by key.
    fn by_name(&self, a: &Change, b: &Change) -> Ordering {
        let text = |change: &Change| {
            let (names, row) = named(&self.parts, change.at);
            names.key(row)
        };
        a.dataset.cmp(&b.dataset).then(a.key.cmp(&b.key)).then_with(|| match a.key.is_whole() {
            true => Ordering::Equal,
            false => text(a).cmp(&text(b)),
        })
    }

    fn by_order(&self, a: &Change, b: &Change) -> Ordering {
        let rest = |change: &Change| tie_breakers_at(&self.parts, change.at);
        a.head.cmp(&b.head).then_with(|| rest(a).compare(a.at.row as usize, &rest(b), b.at.row as usize))
    }
}
