//! The latest change of each key of the tail, held, to be found by the rows of the state.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{FilterBuilder, cast};
use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;

use super::intake::Numbers;
use super::names::{Hashing, Mark, Names, Step};
use super::order::{HEAD, Head, Heads, ORDER, Rest};

/// The column that is found out, and not read, of a tail's row.
pub const IS_AFTER_REMOVAL: &str = "is_after_removal";
/// The column of a batch with that name.
pub fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| DataFusionError::Internal(format!("there is no column {name}")))
}

/// A batch, also of no columns at all.
pub fn with_columns(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// The heads of the rows of a batch.
pub fn heads_of(batch: &RecordBatch) -> Result<Heads> {
    let [sync_count, modified, arrived, ..] = ORDER;
    Ok(Heads::of([column(batch, sync_count)?, column(batch, modified)?, column(batch, arrived)?])?)
}

/// The columns behind the heads; `None` when the batch has not all of them.
pub fn rest_of(batch: &RecordBatch) -> Option<Vec<ArrayRef>> {
    ORDER[HEAD..].iter().map(|name| batch.column_by_name(name).cloned()).collect()
}

/// The count and the server date of a removal of a dataset. What is not beyond it is removed.
pub type Removal = (i64, i64);

/// The latest row of each key, and where it is. Entries lie by identity, dataset and key: who looks for the keys of one
/// dataset after the other, as the state has them, finds them side by side.
pub struct Tail {
    pub(super) parts: Vec<Part>,
    pub(super) identities: Numbers,
    pub(super) names_of_datasets: Numbers,
    /// Of the marks.
    pub(super) hasher: Hashing,
    /// Of each identity, in the order of their numbers: where its datasets begin; and where the last one's end.
    pub(super) datasets_of: Vec<u32>,
    pub(super) datasets: Vec<Dataset>,
    pub(super) entries: Vec<Entry>,
    /// What covers all of it.
    pub(super) memory: MemoryReservation,
}

/// Rows as they came.
pub struct Part {
    pub rows: RecordBatch,
    pub names: Names,
    /// The columns behind the heads.
    pub rest: Vec<ArrayRef>,
}

impl Part {
    fn left(&self, schema: &SchemaRef, fates: &[Option<bool>]) -> Result<RecordBatch> {
        let are_left: BooleanArray = fates.iter().map(|fate| Some(fate.is_some())).collect();
        let left = FilterBuilder::new(&are_left).optimize().build();
        let columns = schema.fields().iter().map(|field| match field.name().as_str() {
            IS_AFTER_REMOVAL => {
                Ok(Arc::new(fates.iter().flatten().copied().map(Some).collect::<BooleanArray>()) as ArrayRef)
            }
            name => {
                let values = cast(&left.filter(column(&self.rows, name)?)?, field.data_type())?;
                // Views would keep all text of the part alive.
                Ok(values.as_string_view_opt().map_or(values.clone(), |views| Arc::new(views.gc()) as ArrayRef))
            }
        });
        with_columns(schema, columns.collect::<Result<_>>()?, left.count())
    }
}

/// Where a row is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub part: u32,
    pub row: u32,
}

/// The datasets of an identity are in the order of the numbers of their names.
pub struct Dataset {
    pub name: u32,
    /// Where its keys begin, and where they end.
    pub entries: (u32, u32),
    pub removal: Option<Removal>,
}

/// A key, and its latest row. Those of a dataset are in the order of their marks. What a look at it ends with is here, and
/// not in that row's columns.
pub struct Entry {
    pub dataset: u32,
    pub key: Mark,
    pub at: Place,
    pub head: Head,
}

/// Where a walk over the rows of a batch is, as far as the tail has it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Walk {
    identity: Option<u32>,
    dataset: Option<u32>,
}

impl Walk {
    /// The number of the row's dataset.
    pub fn dataset(self) -> Option<u32> {
        self.dataset
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.memory.size();
        f.debug_struct("Tail").field("keys", &self.len()).field("bytes", &bytes).finish_non_exhaustive()
    }
}

/// The names of a row, and its number among them.
pub fn named(parts: &[Part], at: Place) -> (&Names, usize) {
    (&parts[at.part as usize].names, at.row as usize)
}

/// What is behind the head of a row; its number is that among the names.
pub fn rest_at(parts: &[Part], at: Place) -> Rest<'_> {
    Rest(&parts[at.part as usize].rest)
}

impl Tail {
    fn names(&self, at: Place) -> (&Names, usize) {
        named(&self.parts, at)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many datasets there are.
    pub fn datasets(&self) -> usize {
        self.datasets.len()
    }

    /// Columns of the latest row of each key but of those that are `beaten`. `removals` are more of them, by dataset.
    pub fn left(&self, schema: &SchemaRef, beaten: &[bool], removals: &[Option<Removal>]) -> Result<Vec<RecordBatch>> {
        // Of each row, whether it is left, and then whether no removal is after it.
        let mut fates: Vec<_> = self.parts.iter().map(|part| vec![None; part.rows.num_rows()]).collect();
        for (entry, _) in self.entries.iter().zip(beaten).filter(|(_, is_beaten)| !**is_beaten) {
            let removal = self.removal(entry.dataset).max(removals[entry.dataset as usize]);
            let is_after = removal.is_none_or(|removal| entry.head.moment() > removal);
            fates[entry.at.part as usize][entry.at.row as usize] = Some(is_after && !entry.key.is_none());
        }
        let parts = self.parts.iter().zip(fates).filter(|(_, fates)| fates.iter().any(Option::is_some));
        parts.map(|(part, fates)| part.left(schema, &fates)).collect()
    }

    /// Goes on to the next row of a batch; gives whether its dataset may be another one.
    pub fn follow(&self, walk: &mut Walk, names: &Names, row: usize) -> bool {
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

    /// The number of the key of a row of a dataset.
    pub fn find(&self, dataset: u32, names: &Names, row: usize) -> Option<usize> {
        let key = names.key_mark(row, &self.hasher);
        let (start, end) = self.datasets[dataset as usize].entries;
        let is_it = |known: &Entry| {
            let (theirs, at) = self.names(known.at);
            theirs.key(at) == names.key(row)
        };
        search(&self.entries, start..end, key, |entry| entry.key, |entry| key.is_whole() || is_it(entry))
            .map(|entry| entry as usize)
    }

    /// Whether a row comes after the latest of a key; `None` when their heads are equal, and that is all that is known of it.
    pub fn compare(&self, head: Head, rest: Option<Rest<'_>>, row: usize, entry: usize) -> Option<Ordering> {
        let Entry { at, head: latest, .. } = self.entries[entry];
        match head.cmp(&latest) {
            Ordering::Equal => rest.map(|rest| rest.compare(row, &rest_at(&self.parts, at), at.row as usize)),
            order => Some(order),
        }
    }

    /// The latest removal of a dataset.
    pub fn removal(&self, dataset: u32) -> Option<Removal> {
        self.datasets[dataset as usize].removal
    }

    /// The identity of a key.
    pub fn identity(&self, entry: usize) -> Option<&str> {
        let (names, row) = self.names(self.entries[entry].at);
        names.identity(row)[1]
    }
}

/// The number of what has this key in a range that is in the order of keys; of several, of the one that `is_it`.
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
