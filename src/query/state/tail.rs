//! The latest change of each key of the tail, held, to be found by the rows of the state.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringViewArray, UInt64Array,
};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::order::{HEAD, Head, Heads, ORDER, Rest};

/// The column that is found out, and not read, of a tail's row.
pub const IS_AFTER_REMOVAL: &str = "is_after_removal";
/// What an entry takes beside its columns, at most.
pub const BYTES_OF_AN_ENTRY: usize = 64;

/// What the rows of a batch are of.
pub struct Names {
    pools: StringViewArray,
    identities: StringViewArray,
    datasets: StringViewArray,
    keys: StringViewArray,
}

impl Names {
    /// From the columns of that name.
    pub fn of(batch: &RecordBatch) -> Result<Self> {
        let view = |name| {
            let text = cast(column(batch, name)?, &DataType::Utf8View)?;
            Ok::<_, DataFusionError>(text.as_string_view().clone())
        };
        let (pools, identities) = (view("pool")?, view("identity_id")?);
        Ok(Self { pools, identities, datasets: view("dataset_name")?, keys: view("key")? })
    }

    /// Whether a row is of the dataset of the row before it. Equal views into the same buffers are equal texts; that other
    /// views may be so too costs a look and nothing else.
    pub fn goes_on(&self, row: usize) -> bool {
        let same = |names: &StringViewArray| {
            let views = names.views();
            row > 0 && views[row] == views[row - 1] && names.is_valid(row) && names.is_valid(row - 1)
        };
        same(&self.datasets) && same(&self.identities) && same(&self.pools)
    }

    pub fn identity(&self, row: usize) -> Option<&str> {
        text(&self.identities, row)
    }

    /// A removal of a dataset has none.
    pub fn key(&self, row: usize) -> Option<&str> {
        text(&self.keys, row)
    }

    fn dataset(&self, row: usize) -> [Option<&str>; 3] {
        [&self.pools, &self.identities, &self.datasets].map(|names| text(names, row))
    }
}

fn text(names: &StringViewArray, row: usize) -> Option<&str> {
    names.is_valid(row).then(|| names.value(row))
}

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

/// The latest row of each key, and where it is.
pub struct Tail {
    rows: RecordBatch,
    names: Names,
    heads: Heads,
    rest: Vec<ArrayRef>,
    hasher: DefaultHashBuilder,
    datasets: Vec<Dataset>,
    /// Datasets, by name.
    by_name: HashTable<u32>,
    entries: Vec<Entry>,
    /// Entries, by dataset and key.
    by_key: HashTable<u32>,
    _memory: MemoryReservation,
}

struct Dataset {
    /// A row that names it.
    row: usize,
    removal: Option<Removal>,
}

/// A key, and its latest row.
struct Entry {
    dataset: u32,
    row: usize,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("keys", &self.len()).finish_non_exhaustive()
    }
}

impl Tail {
    /// Of rows with all columns of the order, and `op`. `memory` covers what they take.
    pub fn new(rows: RecordBatch, memory: MemoryReservation) -> Result<Self> {
        let rest = rest_of(&rows).ok_or_else(|| DataFusionError::Internal("rows without an order".to_owned()))?;
        let ops = cast(column(&rows, "op")?, &DataType::Utf8View)?;
        let mut tail = Self {
            names: Names::of(&rows)?,
            heads: heads_of(&rows)?,
            rest,
            hasher: DefaultHashBuilder::default(),
            datasets: Vec::new(),
            by_name: HashTable::new(),
            entries: Vec::new(),
            by_key: HashTable::with_capacity(rows.num_rows()),
            rows,
            _memory: memory,
        };
        let mut dataset = None;
        for row in 0..tail.rows.num_rows() {
            if !tail.names.goes_on(row) {
                dataset = tail.dataset(&tail.names, row);
            }
            // A row without a key that is no removal marks an event without records: it changed nothing.
            if tail.names.key(row).is_some() || text(ops.as_string_view(), row) == Some("remove") {
                dataset = Some(tail.add(dataset, row));
            }
        }
        Ok(tail)
    }

    /// Takes a row in; gives the number of its dataset.
    fn add(&mut self, dataset: Option<u32>, row: usize) -> u32 {
        let dataset = dataset.unwrap_or_else(|| self.add_dataset(row));
        let head = self.heads.get(row);
        if self.names.key(row).is_none() {
            let removal = &mut self.datasets[dataset as usize].removal;
            *removal = (*removal).max(Some((head.sync_count, head.modified)));
        }
        match self.find(dataset, self.names.key(row)) {
            Some(entry) => {
                if self.compare(head, Some(Rest(&self.rest)), row, entry).is_some_and(Ordering::is_gt) {
                    self.entries[entry].row = row;
                }
            }
            None => self.add_entry(dataset, row),
        }
        dataset
    }

    fn add_dataset(&mut self, row: usize) -> u32 {
        let number = u32::try_from(self.datasets.len()).unwrap_or(u32::MAX);
        self.datasets.push(Dataset { row, removal: None });
        let hash = self.hasher.hash_one(self.names.dataset(row));
        let (names, datasets, hasher) = (&self.names, &self.datasets, &self.hasher);
        let again = |&known: &u32| hasher.hash_one(names.dataset(datasets[known as usize].row));
        self.by_name.insert_unique(hash, number, again);
        number
    }

    fn add_entry(&mut self, dataset: u32, row: usize) {
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Entry { dataset, row });
        let hash = self.hasher.hash_one((dataset, self.names.key(row)));
        let (names, entries, hasher) = (&self.names, &self.entries, &self.hasher);
        let again = |&known: &u32| {
            let entry = &entries[known as usize];
            hasher.hash_one((entry.dataset, names.key(entry.row)))
        };
        self.by_key.insert_unique(hash, number, again);
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Columns of the latest row of each key but of those that are `beaten`. `removals` are more of them, by dataset.
    pub fn left(&self, schema: &SchemaRef, beaten: &[bool], removals: &HashMap<u32, Removal>) -> Result<RecordBatch> {
        let left = self.entries.iter().zip(beaten).filter(|(_, is_beaten)| !**is_beaten).map(|(entry, _)| entry);
        let left: Vec<&Entry> = left.collect();
        let rows: UInt64Array = left.iter().map(|entry| Some(entry.row as u64)).collect();
        let is_after = |entry: &&Entry| {
            let head = self.heads.get(entry.row);
            let removal = self.removal(entry.dataset).max(removals.get(&entry.dataset).copied());
            let is_after = removal.is_none_or(|removal| (head.sync_count, head.modified) > removal);
            Some(is_after && self.names.key(entry.row).is_some())
        };
        let columns = schema.fields().iter().map(|field| match field.name().as_str() {
            IS_AFTER_REMOVAL => Ok(Arc::new(left.iter().map(is_after).collect::<BooleanArray>()) as ArrayRef),
            name => Ok(cast(&take(column(&self.rows, name)?, &rows, None)?, field.data_type())?),
        });
        with_columns(schema, columns.collect::<Result<_>>()?, left.len())
    }

    /// The number of the dataset that a row is of, if the tail has it.
    pub fn dataset(&self, names: &Names, row: usize) -> Option<u32> {
        let name = names.dataset(row);
        let is_it = |&known: &u32| self.names.dataset(self.datasets[known as usize].row) == name;
        self.by_name.find(self.hasher.hash_one(name), is_it).copied()
    }

    /// The number of a key of a dataset.
    pub fn find(&self, dataset: u32, key: Option<&str>) -> Option<usize> {
        let is_it = |&known: &u32| {
            let entry = &self.entries[known as usize];
            entry.dataset == dataset && self.names.key(entry.row) == key
        };
        self.by_key.find(self.hasher.hash_one((dataset, key)), is_it).map(|&entry| entry as usize)
    }

    /// Whether a row comes after the latest of a key; `None` when their heads are equal, and that is all that is known of it.
    pub fn compare(&self, head: Head, rest: Option<Rest<'_>>, row: usize, entry: usize) -> Option<Ordering> {
        let at = self.entries[entry].row;
        match head.cmp(&self.heads.get(at)) {
            Ordering::Equal => rest.map(|rest| rest.compare(row, &Rest(&self.rest), at)),
            order => Some(order),
        }
    }

    /// The latest removal of a dataset.
    pub fn removal(&self, dataset: u32) -> Option<Removal> {
        self.datasets[dataset as usize].removal
    }

    /// The identity of a key.
    pub fn identity(&self, entry: usize) -> Option<&str> {
        self.names.identity(self.entries[entry].row)
    }
}
