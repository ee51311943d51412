//! Names that identify rows: pool, identity, dataset and key.

use std::hash::BuildHasher;

use arrow::array::{Array, AsArray, RecordBatch, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};

use super::order::column;

/// The hasher of names. In tests nearly all hashes are equal, because the code must tolerate collisions.
#[cfg(not(test))]
pub(super) type Hashing = hashbrown::DefaultHashBuilder;
#[cfg(test)]
pub(super) type Hashing = std::hash::BuildHasherDefault<super::tests::Weak>;

/// Names of the rows of a batch.
pub(super) struct Names {
    pools: StringViewArray,
    identities: StringViewArray,
    datasets: StringViewArray,
    keys: StringViewArray,
    /// Whether every row has a pool, an identity and a dataset.
    complete: bool,
}

/// The names that a row shares with the row before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// No name is known to be shared.
    Identity,
    /// Pool and identity.
    Dataset,
    /// Pool, identity and dataset.
    Key,
}

/// A name in a fixed size, for searches. It is the name's view if the view holds the whole name, which is the usual
/// case. Otherwise it is the start of the view (length and first bytes), and the hash of the name.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark(u64, u64);

impl Mark {
    /// The mark of a missing name. No view starts like this, because no text is that long.
    const NONE: Self = Self(u64::MAX, u64::MAX);
    /// Bytes that a view can hold, by the specification of Arrow; unused bytes are zero.
    const WHOLE: u32 = 12;

    fn of(names: &StringViewArray, row: usize, hasher: &impl BuildHasher) -> Self {
        if names.is_null(row) {
            return Self::NONE;
        }
        let view = names.views()[row];
        let mark = Self(view as u64, (view >> 64) as u64);
        if mark.is_whole() { mark } else { Self(mark.0, hasher.hash_one(names.value(row))) }
    }

    /// Returns whether there is no name.
    pub(super) fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Returns whether equal marks mean equal names.
    pub(super) fn is_whole(self) -> bool {
        self.is_none() || self.0 as u32 <= Self::WHOLE
    }
}

impl Names {
    /// Reads the name columns of a batch.
    pub(super) fn of(batch: &RecordBatch) -> Result<Self> {
        let view = |name| {
            let text = cast(column(batch, name)?, &DataType::Utf8View)?;
            Ok::<_, DataFusionError>(text.as_string_view().clone())
        };
        let (pools, identities, datasets) = (view("identity_pool_id")?, view("identity_id")?, view("dataset_name")?);
        let complete = [&pools, &identities, &datasets].iter().all(|names| names.null_count() == 0);
        Ok(Self { pools, identities, datasets, keys: view("key")?, complete })
    }

    /// Returns the names that a row shares with the row before it. Equal views into the same buffers are equal texts.
    /// Different views may also be equal texts; that costs one lookup and nothing else.
    pub(super) fn step(&self, row: usize) -> Step {
        let same = |names: &StringViewArray| names.views()[row] == names.views()[row - 1];
        match row > 0 && self.complete && same(&self.identities) && same(&self.pools) {
            true if same(&self.datasets) => Step::Key,
            true => Step::Dataset,
            false => Step::Identity,
        }
    }

    /// Returns the pool and the identity of a row.
    pub(super) fn identity(&self, row: usize) -> [Option<&str>; 2] {
        [text(&self.pools, row), text(&self.identities, row)]
    }

    pub(super) fn dataset(&self, row: usize) -> Option<&str> {
        text(&self.datasets, row)
    }

    /// Returns the key of a row. The removal of a dataset has none.
    pub(super) fn key(&self, row: usize) -> Option<&str> {
        text(&self.keys, row)
    }

    pub(super) fn key_mark(&self, row: usize, hasher: &impl BuildHasher) -> Mark {
        Mark::of(&self.keys, row, hasher)
    }

    pub(super) fn has_key(&self, row: usize) -> bool {
        self.keys.is_valid(row)
    }
}

/// Returns the text of a row, if it has one.
pub(super) fn text(names: &StringViewArray, row: usize) -> Option<&str> {
    names.is_valid(row).then(|| names.value(row))
}
