//! The latest change of each key of the tail, held, to be found by the rows of the state.

use std::cmp::Ordering;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringViewArray};
use arrow::compute::{cast, interleave};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::order::{HEAD, Head, Heads, ORDER, Rest};

/// The column that is found out, and not read, of a tail's row.
pub const IS_AFTER_REMOVAL: &str = "is_after_removal";
/// What an entry takes beside its columns, at most.
const BYTES_OF_AN_ENTRY: usize = 256;

/// What the rows of a batch are of.
pub struct Names {
    pools: StringViewArray,
    identities: StringViewArray,
    datasets: StringViewArray,
    keys: StringViewArray,
    /// Whether every row has a pool, an identity and a dataset.
    complete: bool,
}

impl Names {
    /// From the columns of that name.
    pub fn of(batch: &RecordBatch) -> Result<Self> {
        let view = |name| {
            let text = cast(column(batch, name)?, &DataType::Utf8View)?;
            Ok::<_, DataFusionError>(text.as_string_view().clone())
        };
        let (pools, identities, datasets) = (view("identity_pool_id")?, view("identity_id")?, view("dataset_name")?);
        let complete = [&pools, &identities, &datasets].iter().all(|names| names.null_count() == 0);
        Ok(Self { pools, identities, datasets, keys: view("key")?, complete })
    }

    /// Whether a row is of the dataset of the row before it. Equal views into the same buffers are equal texts; that other
    /// views may be so too costs a look and nothing else.
    pub fn goes_on(&self, row: usize) -> bool {
        let same = |names: &StringViewArray| names.views()[row] == names.views()[row - 1];
        row > 0 && self.complete && same(&self.datasets) && same(&self.identities) && same(&self.pools)
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
    parts: Vec<Part>,
    hasher: DefaultHashBuilder,
    datasets: Vec<Dataset>,
    /// Datasets, by name.
    by_name: HashTable<u32>,
    entries: Vec<Entry>,
    /// Entries, by dataset and key.
    by_key: HashTable<u32>,
    memory: MemoryReservation,
}

/// Rows as they came.
struct Part {
    rows: RecordBatch,
    names: Names,
    rest: Vec<ArrayRef>,
}

/// Where a row is.
#[derive(Clone, Copy)]
struct Place {
    part: u32,
    row: u32,
}

struct Dataset {
    hash: u64,
    /// A row that names it.
    at: Place,
    removal: Option<Removal>,
}

/// A key, and its latest row.
struct Entry {
    hash: u64,
    dataset: u32,
    at: Place,
    /// Of that row; here, because nearly every look at an entry ends with it.
    head: Head,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("keys", &self.len()).finish_non_exhaustive()
    }
}

impl Tail {
    /// Of no rows yet. `memory` will cover what they take.
    pub fn new(memory: MemoryReservation) -> Self {
        Self {
            parts: Vec::new(),
            hasher: DefaultHashBuilder::default(),
            datasets: Vec::new(),
            by_name: HashTable::new(),
            entries: Vec::new(),
            by_key: HashTable::new(),
            memory,
        }
    }

    /// Takes in rows with all columns of the order, and `op`. Gives false when memory does not hold them: then the tail is
    /// good for nothing.
    pub fn push(&mut self, rows: RecordBatch) -> Result<bool> {
        let bytes = rows.get_array_memory_size() + rows.num_rows() * BYTES_OF_AN_ENTRY;
        if self.memory.try_grow(bytes).is_err() {
            return Ok(false);
        }
        let rest = rest_of(&rows).ok_or_else(|| DataFusionError::Internal("rows without an order".to_owned()))?;
        let ops = cast(column(&rows, "op")?, &DataType::Utf8View)?;
        let (heads, count) = (heads_of(&rows)?, rows.num_rows());
        // More parts or rows than these do not fit into memory.
        let part = u32::try_from(self.parts.len()).unwrap_or(u32::MAX);
        self.parts.push(Part { names: Names::of(&rows)?, rest, rows });
        let mut dataset = None;
        for (row, number) in (0..count).zip(0_u32..) {
            let names = &self.parts[part as usize].names;
            if !names.goes_on(row) {
                dataset = self.dataset(names, row);
            }
            // A row without a key that is no removal marks an event without records: it changed nothing.
            if names.key(row).is_some() || text(ops.as_string_view(), row) == Some("remove") {
                dataset = Some(self.add(dataset, Place { part, row: number }, heads.get(row)));
            }
        }
        Ok(true)
    }

    /// Takes a row in; gives the number of its dataset.
    fn add(&mut self, dataset: Option<u32>, at: Place, head: Head) -> u32 {
        let dataset = dataset.unwrap_or_else(|| self.add_dataset(at));
        if self.key(at).is_none() {
            let removal = &mut self.datasets[dataset as usize].removal;
            *removal = (*removal).max(Some((head.sync_count, head.modified)));
        }
        match self.find(dataset, self.key(at)) {
            Some(entry) => {
                let rest = Some(Rest(&self.part(at).rest));
                if self.compare(head, rest, at.row as usize, entry).is_some_and(Ordering::is_gt) {
                    (self.entries[entry].at, self.entries[entry].head) = (at, head);
                }
            }
            None => self.add_entry(dataset, at, head),
        }
        dataset
    }

    fn add_dataset(&mut self, at: Place) -> u32 {
        let number = u32::try_from(self.datasets.len()).unwrap_or(u32::MAX);
        let hash = self.hasher.hash_one(self.part(at).names.dataset(at.row as usize));
        self.datasets.push(Dataset { hash, at, removal: None });
        let datasets = &self.datasets;
        self.by_name.insert_unique(hash, number, |&known| datasets[known as usize].hash);
        number
    }

    fn add_entry(&mut self, dataset: u32, at: Place, head: Head) {
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let hash = self.hasher.hash_one((dataset, self.key(at)));
        self.entries.push(Entry { hash, dataset, at, head });
        let entries = &self.entries;
        self.by_key.insert_unique(hash, number, |&known| entries[known as usize].hash);
    }

    fn part(&self, at: Place) -> &Part {
        &self.parts[at.part as usize]
    }

    fn key(&self, at: Place) -> Option<&str> {
        self.part(at).names.key(at.row as usize)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many datasets there are.
    pub fn datasets(&self) -> usize {
        self.datasets.len()
    }

    /// Columns of the latest row of each key but of those that are `beaten`, in batches of at most `size` rows. `removals`
    /// are more of them, by dataset.
    pub fn left(
        &self,
        schema: &SchemaRef,
        beaten: &[bool],
        removals: &[Option<Removal>],
        size: usize,
    ) -> Result<Vec<RecordBatch>> {
        let left = self.entries.iter().zip(beaten).filter(|(_, is_beaten)| !**is_beaten).map(|(entry, _)| entry);
        let left: Vec<&Entry> = left.collect();
        left.chunks(size).map(|entries| self.rows_of(schema, entries, removals)).collect()
    }

    fn rows_of(&self, schema: &SchemaRef, entries: &[&Entry], removals: &[Option<Removal>]) -> Result<RecordBatch> {
        // Of many parts, a batch is of few.
        let mut used: Vec<u32> = entries.iter().map(|entry| entry.at.part).collect();
        used.sort_unstable();
        used.dedup();
        let place = |at: Place| (used.partition_point(|&part| part < at.part), at.row as usize);
        let places: Vec<(usize, usize)> = entries.iter().map(|entry| place(entry.at)).collect();
        let is_after = |entry: &&Entry| {
            let removal = self.removal(entry.dataset).max(removals[entry.dataset as usize]);
            let is_after = removal.is_none_or(|removal| (entry.head.sync_count, entry.head.modified) > removal);
            Some(is_after && self.key(entry.at).is_some())
        };
        let columns = schema.fields().iter().map(|field| match field.name().as_str() {
            IS_AFTER_REMOVAL => Ok(Arc::new(entries.iter().map(is_after).collect::<BooleanArray>()) as ArrayRef),
            name => {
                let parts = used.iter().map(|&part| column(&self.parts[part as usize].rows, name).map(AsRef::as_ref));
                let values = cast(&interleave(&parts.collect::<Result<Vec<_>>>()?, &places)?, field.data_type())?;
                // Views would keep all text of the tail alive, and be counted for it, batch by batch.
                Ok(values.as_string_view_opt().map_or(values.clone(), |views| Arc::new(views.gc()) as ArrayRef))
            }
        });
        with_columns(schema, columns.collect::<Result<_>>()?, entries.len())
    }

    /// The number of the dataset that a row is of, if the tail has it.
    pub fn dataset(&self, names: &Names, row: usize) -> Option<u32> {
        let name = names.dataset(row);
        let hash = self.hasher.hash_one(name);
        let is_it = |&known: &u32| {
            let Dataset { hash: known, at, .. } = &self.datasets[known as usize];
            *known == hash && self.part(*at).names.dataset(at.row as usize) == name
        };
        self.by_name.find(hash, is_it).copied()
    }

    /// The number of a key of a dataset.
    pub fn find(&self, dataset: u32, key: Option<&str>) -> Option<usize> {
        let hash = self.hasher.hash_one((dataset, key));
        let is_it = |&known: &u32| {
            let entry = &self.entries[known as usize];
            entry.hash == hash && entry.dataset == dataset && self.key(entry.at) == key
        };
        self.by_key.find(hash, is_it).map(|&entry| entry as usize)
    }

    /// Whether a row comes after the latest of a key; `None` when their heads are equal, and that is all that is known of it.
    pub fn compare(&self, head: Head, rest: Option<Rest<'_>>, row: usize, entry: usize) -> Option<Ordering> {
        let Entry { at, head: latest, .. } = self.entries[entry];
        match head.cmp(&latest) {
            Ordering::Equal => rest.map(|rest| rest.compare(row, &Rest(&self.part(at).rest), at.row as usize)),
            order => Some(order),
        }
    }

    /// The latest removal of a dataset.
    pub fn removal(&self, dataset: u32) -> Option<Removal> {
        self.datasets[dataset as usize].removal
    }

    /// The identity of a key.
    pub fn identity(&self, entry: usize) -> Option<&str> {
        let at = self.entries[entry].at;
        self.part(at).names.identity(at.row as usize)
    }
}
