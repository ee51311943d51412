//! Rows of the tail as they arrived, and the numbers of their names.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{FilterBuilder, cast};
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use hashbrown::HashTable;

use super::names::{Hashing, Names};
use super::order::{TieBreakers, column};

/// The column of a tail row that is computed, not read.
pub(super) const IS_AFTER_REMOVAL: &str = "is_after_removal";

/// Creates a batch, which may have no columns.
pub(super) fn with_columns(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// Rows in arrival order.
pub(super) struct Part {
    pub rows: RecordBatch,
    pub names: Names,
    /// The tie-breaker columns.
    pub rest: Vec<ArrayRef>,
}

impl Part {
    /// Returns the rows that are left: those with a fate, which is their value of [`IS_AFTER_REMOVAL`].
    pub(super) fn left(&self, schema: &SchemaRef, fates: &[Option<bool>]) -> Result<RecordBatch> {
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

/// The place of a row.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub part: u32,
    pub row: u32,
}

/// The most parts of a tail, and the most rows. A tail has no more names, datasets or entries than rows.
pub(super) const INDEX_MAX: usize = u32::MAX as usize;

/// Converts an index or a count of parts, rows, names, datasets or entries. The cast loses nothing, because
/// `Intake::push` accepts at most [`INDEX_MAX`] of each.
pub(super) fn index(number: usize) -> u32 {
    number as u32
}

/// Returns the names of a part, and the row's index in them.
pub(super) fn named(parts: &[Part], at: Place) -> (&Names, usize) {
    (&parts[at.part as usize].names, at.row as usize)
}

/// Returns the tie-breaker columns of a part; the row has the same index as in the names.
pub(super) fn tie_breakers_at(parts: &[Part], at: Place) -> TieBreakers<'_> {
    TieBreakers(&parts[at.part as usize].rest)
}

/// Interned names of one kind, each with a number.
#[derive(Default)]
pub(super) struct Numbers {
    hasher: Hashing,
    /// Hash of each name, and one row that has the name.
    pub known: Vec<(u64, Place)>,
    by_name: HashTable<u32>,
}

impl Numbers {
    /// Returns the number of a name, if it has one. `name_of` reads the name of a row.
    pub(super) fn find<'a, N: Hash + Eq>(
        &self,
        name: &N,
        parts: &'a [Part],
        name_of: impl Fn(&'a Names, usize) -> N,
    ) -> Option<u32> {
        self.find_by_hash(self.hasher.hash_one(name), name, parts, name_of)
    }

    fn find_by_hash<'a, N: Eq>(
        &self,
        hash: u64,
        name: &N,
        parts: &'a [Part],
        name_of: impl Fn(&'a Names, usize) -> N,
    ) -> Option<u32> {
        let is_it = |&number: &u32| {
            let (known, at) = self.known[number as usize];
            let (names, row) = named(parts, at);
            known == hash && name_of(names, row) == *name
        };
        self.by_name.find(hash, is_it).copied()
    }

    /// Returns the number of a row's name, and assigns one if the name is new.
    pub(super) fn of<'a, N: Hash + Eq>(
        &mut self,
        at: Place,
        parts: &'a [Part],
        name_of: impl Fn(&'a Names, usize) -> N,
    ) -> u32 {
        let (names, row) = named(parts, at);
        let name = name_of(names, row);
        let hash = self.hasher.hash_one(&name);
        self.find_by_hash(hash, &name, parts, name_of).unwrap_or_else(|| {
            let number = index(self.known.len());
            self.known.push((hash, at));
            let known = &self.known;
            self.by_name.insert_unique(hash, number, |&number| known[number as usize].0);
            number
        })
    }
}
