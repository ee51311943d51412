//! What rows are of: pool, identity, dataset and key.

use std::hash::BuildHasher;

use arrow::array::{Array, AsArray, RecordBatch, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};

use super::tail::column;

/// What names are found by. In tests nearly all hashes are equal, as they must be allowed to be.
#[cfg(not(test))]
pub type Hashing = hashbrown::DefaultHashBuilder;
#[cfg(test)]
pub type Hashing = std::hash::BuildHasherDefault<super::tests::Weak>;

/// What the rows of a batch are of.
pub struct Names {
    pools: StringViewArray,
    identities: StringViewArray,
    datasets: StringViewArray,
    keys: StringViewArray,
    /// Whether every row has a pool, an identity and a dataset.
    complete: bool,
}

/// What a row has in common with the row before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing that is known.
    Identity,
    /// The identity.
    Dataset,
    /// Identity and dataset.
    Key,
}

/// A name as it is looked for: a view of it when that holds all of it, which it nearly always does; otherwise how it begins,
/// and its hash.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64, u64);

impl Mark {
    /// As no view begins: texts are shorter.
    const NONE: Self = Self(u64::MAX, u64::MAX);
    /// A view holds as many bytes, by the specification of Arrow, with zeros behind what it holds.
    const WHOLE: u32 = 12;

    fn of(names: &StringViewArray, row: usize, hasher: &impl BuildHasher) -> Self {
        if names.is_null(row) {
            return Self::NONE;
        }
        let view = names.views()[row];
        let mark = Self(view as u64, (view >> 64) as u64);
        if mark.is_whole() { mark } else { Self(mark.0, hasher.hash_one(names.value(row))) }
    }

    /// Whether there is no name.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Whether equal marks are equal names.
    pub fn is_whole(self) -> bool {
        self.is_none() || self.0 as u32 <= Self::WHOLE
    }
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

    /// What goes on from the row before. Equal views into the same buffers are equal texts; that other views may be so too
    /// costs a look and nothing else.
    pub fn step(&self, row: usize) -> Step {
        let same = |names: &StringViewArray| names.views()[row] == names.views()[row - 1];
        match row > 0 && self.complete && same(&self.identities) && same(&self.pools) {
            true if same(&self.datasets) => Step::Key,
            true => Step::Dataset,
            false => Step::Identity,
        }
    }

    /// The pool and the identity of a row.
    pub fn identity(&self, row: usize) -> [Option<&str>; 2] {
        [text(&self.pools, row), text(&self.identities, row)]
    }

    pub fn dataset(&self, row: usize) -> Option<&str> {
        text(&self.datasets, row)
    }

    /// A removal of a dataset has none.
    pub fn key(&self, row: usize) -> Option<&str> {
        text(&self.keys, row)
    }

    pub fn key_mark(&self, row: usize, hasher: &impl BuildHasher) -> Mark {
        Mark::of(&self.keys, row, hasher)
    }

    pub fn has_key(&self, row: usize) -> bool {
        self.keys.is_valid(row)
    }
}

/// The text of a row, if it has one.
pub fn text(names: &StringViewArray, row: usize) -> Option<&str> {
    names.is_valid(row).then(|| names.value(row))
}
