//! Collapses exact copies of a change into one row, which counts them.
//!
//! Exact copies agree in every column except those of their delivery: shard, sequence number, sub-sequence, place in the
//! record, arrival, source. Rows come in the order of a file, so copies are close to each other: they agree in its first
//! columns (a *tie*). A tie may cross batches, so the last tie of a batch is held back.
//!
//! **Invariant: the row that stays is the one that `sql/views/changes.sql` would return of the copies, and it stands for
//! the sum of what they stood for.** So it does not matter how rows are split into files that are collapsed apart and together.

use std::mem;
use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, UInt32Array};
use arrow::compute::{concat, take};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::error::ArrowError;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::{Cells, StoredRows, at};

/// Collapses the copies in a stream of sorted rows.
#[derive(Debug, Default)]
pub(crate) struct Collapser {
    /// Rows of the last tie, as far as it was read.
    held: Option<StoredRows>,
    dropped: u64,
}

impl Collapser {
    /// Takes the next rows. Returns the rows before the last tie, without their copies.
    ///
    /// # Errors
    /// The texts of a batch are too long (a bug).
    pub(crate) fn push(&mut self, rows: StoredRows) -> Result<Option<StoredRows>, ArrowError> {
        let rows = match self.held.take() {
            Some(held) => held.followed_by(&rows)?,
            None => rows,
        };
        let (rows, dropped) = rows.collapsed()?;
        self.dropped += dropped;
        let len = rows.len();
        let Some(last) = len.checked_sub(1) else { return Ok(None) };
        let start = (0..last).rev().find(|row| !rows.is_tied(*row, last)).map_or(0, |row| row + 1);
        // The rows of a slice keep the texts of all rows in memory.
        self.held = Some(rows.slice(start, len - start).compacted());
        Ok((start > 0).then(|| rows.slice(0, start)))
    }

    /// Returns the last rows.
    pub(crate) fn finish(&mut self) -> Option<StoredRows> {
        self.held.take()
    }

    /// Returns the number of rows that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// The columns, beside those of a tie, in which exact copies agree.
#[derive(PartialEq, Eq, Hash)]
struct Content<'a> {
    texts: [Option<&'a str>; 5],
    longs: [Option<i64>; 3],
}

/// The place of a row in the order of changes, after `sync_count` and server date; the greatest is the latest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Latest<'a> {
    arrived_at: i64,
    digits: usize,
    sequence_number: &'a str,
    sub_sequence: i64,
    record_index: i32,
    shard_id: &'a str,
}

impl StoredRows {
    /// Returns whether two rows agree in the columns that begin the order of a file.
    fn is_tied(&self, a: usize, b: usize) -> bool {
        let texts = [at::KEY, at::DATASET_NAME, at::IDENTITY_ID];
        [at::SYNC_COUNT, at::LAST_MODIFIED_DATE].into_iter().all(|column| self.long(column, a) == self.long(column, b))
            && texts.into_iter().all(|column| self.text(column, a) == self.text(column, b))
    }

    fn content(&self, row: usize) -> Content<'_> {
        let texts = [at::IDENTITY_POOL_ID, at::OPERATION, at::VALUE, at::OP, at::EXTRA];
        let longs = [at::DEVICE_LAST_MODIFIED_DATE, at::EVENT_SYNC_COUNT, at::EVENT_LAST_MODIFIED_DATE];
        Content { texts: texts.map(|column| self.text(column, row)), longs: longs.map(|column| self.long(column, row)) }
    }

    /// Returns the place of a row in the order of changes; `None` if the row is no change, or lacks a column of the order.
    fn latest(&self, row: usize) -> Option<Latest<'_>> {
        let is_change = self.text(at::KEY, row).is_some() || self.text(at::OP, row) == Some("remove");
        let is_ordered =
            [at::SYNC_COUNT, at::LAST_MODIFIED_DATE].into_iter().all(|column| self.long(column, row).is_some());
        let sequence_number = self.text(at::SEQUENCE_NUMBER, row).filter(|_| is_change && is_ordered)?;
        Some(Latest {
            arrived_at: self.long(at::ARRIVED_AT, row)?,
            digits: sequence_number.len(),
            sequence_number,
            sub_sequence: self.long(at::SUB_SEQUENCE, row).unwrap_or(-1),
            record_index: self.int(at::RECORD_INDEX, row)?,
            shard_id: self.text(at::SHARD_ID, row)?,
        })
    }

    /// Returns the rows without copies, and the number of rows that were dropped.
    fn collapsed(self) -> Result<(Self, u64), ArrowError> {
        let mut copies: Vec<Option<i64>> = (0..self.rows).map(|row| self.copies(row)).collect();
        let mut is_dropped = vec![false; self.rows];
        let mut start = 0;
        while start < self.rows {
            let end = (start + 1..self.rows).find(|row| !self.is_tied(start, *row)).unwrap_or(self.rows);
            if end - start > 1 {
                self.collapse_tie(start..end, &mut copies, &mut is_dropped);
            }
            start = end;
        }
        let kept: Vec<u32> =
            (0..).zip(&is_dropped).filter(|(_, is_dropped)| !**is_dropped).map(|(row, _)| row).collect();
        let dropped = (self.rows - kept.len()) as u64;
        if dropped == 0 {
            return Ok((self, 0));
        }
        let copies: Int64Array = kept.iter().map(|row| copies[*row as usize]).collect();
        let rows = kept.len();
        let kept = UInt32Array::from(kept);
        let cells = self.cells.iter().map(|cells| cells.with(|column| take(column, &kept, None)));
        let kept = Self { cells: cells.collect::<Result<_, _>>()?, copies: Some(copies), rows };
        Ok((kept.compacted(), dropped))
    }

    /// Adds the copies of each row of a tie to the latest of them.
    fn collapse_tie(&self, tie: Range<usize>, copies: &mut [Option<i64>], is_dropped: &mut [bool]) {
        let mut known: HashMap<Content<'_>, (usize, Latest<'_>)> = HashMap::new();
        for row in tie {
            let Some(latest) = self.latest(row) else { continue };
            let mut entry = match known.entry(self.content(row)) {
                Entry::Vacant(entry) => {
                    entry.insert((row, latest));
                    continue;
                }
                Entry::Occupied(entry) => entry,
            };
            let (stays, of_it) = entry.get_mut();
            let sum = copies[*stays].unwrap_or(1).saturating_add(copies[row].unwrap_or(1));
            let goes = if latest > *of_it {
                *of_it = latest;
                mem::replace(stays, row)
            } else {
                row
            };
            copies[*stays] = Some(sum);
            is_dropped[goes] = true;
        }
    }

    /// Returns these rows and then the others.
    fn followed_by(&self, others: &Self) -> Result<Self, ArrowError> {
        let cells = self.cells.iter().zip(&others.cells);
        let cells = cells.map(|(mine, theirs)| mine.with(|column| concat(&[column, theirs.array()])));
        let copies = (self.copies.is_some() || others.copies.is_some()).then(|| {
            let mine = (0..self.rows).map(|row| self.copies(row));
            mine.chain((0..others.rows).map(|row| others.copies(row))).collect()
        });
        Ok(Self { cells: cells.collect::<Result<_, _>>()?, copies, rows: self.rows + others.rows })
    }

    /// Returns the rows without texts of other rows.
    fn compacted(mut self) -> Self {
        for cells in &mut self.cells {
            if let Cells::Text(texts) = cells {
                *texts = texts.gc();
            }
        }
        self
    }
}

impl Cells {
    fn array(&self) -> &dyn Array {
        match self {
            Self::Text(cells) => cells,
            Self::Long(cells) => cells,
            Self::Int(cells) => cells,
        }
    }

    /// Returns the values that a computation makes of these. It keeps their type.
    fn with(&self, compute: impl FnOnce(&dyn Array) -> Result<ArrayRef, ArrowError>) -> Result<Self, ArrowError> {
        let values = compute(self.array())?;
        Ok(match self {
            Self::Text(_) => Self::Text(values.as_string_view().clone()),
            Self::Long(_) => Self::Long(values.as_primitive::<Int64Type>().clone()),
            Self::Int(_) => Self::Int(values.as_primitive::<Int32Type>().clone()),
        })
    }
}
