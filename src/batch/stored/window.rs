//! Columns of a range of rows in their final order.
//!
//! The cells of a column are visited batch by batch, not in the final order: neighbours in a batch lie side by side in
//! memory, and their texts are often the same bytes.

use std::hash::Hash;
use std::ops::Range;

use arrow::array::{Array, StringViewArray};
use hashbrown::HashMap;

use super::super::file::{Coded, Column, NULL};
use super::super::sorted::{PROBE, Ranked};
use super::{Cells, Ordered, Place, StoredRows};

/// Gives each value a code.
pub(super) struct Coder<V> {
    known: HashMap<V, u32>,
    values: Vec<V>,
    present: usize,
    probe: usize,
}

impl<V: Copy + Eq + Hash> Coder<V> {
    /// Creates a coder that knows each value once.
    pub(super) fn new() -> Self {
        Self { known: HashMap::new(), values: Vec::new(), present: 0, probe: usize::MAX }
    }

    /// Creates a coder for values that may hardly repeat: if most of the first ones are new, every further value gets a
    /// code of its own.
    fn probing() -> Self {
        Self { probe: PROBE, ..Self::new() }
    }

    fn code(&mut self, value: V) -> u32 {
        // A row group, and the rows in memory, are fewer than 2³².
        let next = self.values.len() as u32;
        self.present += 1;
        let is_hopeless = self.present > self.probe && self.values.len() > self.present / 2;
        let code = if is_hopeless { next } else { *self.known.entry(value).or_insert(next) };
        if code == next {
            self.values.push(value);
        }
        code
    }

    /// Returns the column of rows with these codes.
    pub(super) fn column(self, codes: Vec<u32>) -> Column<V> {
        Column { codes, values: self.values }
    }
}

impl<'a> Coder<&'a str> {
    /// Gives texts of some rows their codes. `put` gets each row with its code; rows of null are left out.
    pub(super) fn texts(
        &mut self,
        cells: &'a StringViewArray,
        rows: impl Iterator<Item = usize>,
        mut put: impl FnMut(usize, u32),
    ) {
        let (views, nulls) = (cells.views(), cells.nulls());
        let mut last: Option<(u128, u32)> = None;
        for (index, row) in rows.enumerate() {
            if nulls.is_some_and(|nulls| nulls.is_null(row)) {
                continue;
            }
            let code = match last {
                // Equal views of one array are the same text.
                Some((view, code)) if view == views[row] => code,
                _ => self.code(cells.value(row)),
            };
            last = Some((views[row], code));
            put(index, code);
        }
    }
}

/// A row of a batch, and its number in the range.
type Seat = (u32, u32);

/// Rows of a range of the final order, by batch.
pub(crate) struct Window<'a> {
    ordered: &'a Ordered<'a>,
    range: Range<usize>,
    /// The batches with rows of the range, and where their seats begin and end.
    parts: Vec<(&'a StoredRows, Range<usize>)>,
    seats: Vec<Seat>,
}

impl<'a> Window<'a> {
    pub(super) fn new(ordered: &'a Ordered<'a>, range: Range<usize>) -> Self {
        let counts = ordered.rows_of_batches(range.clone());
        let (mut parts, mut next) = (Vec::new(), Vec::with_capacity(counts.len()));
        let mut begin = 0;
        for (rows, count) in ordered.batches.iter().zip(counts) {
            next.push(begin);
            if count > 0 {
                parts.push((rows, begin..begin + count));
            }
            begin += count;
        }
        let mut seats = vec![(0, 0); range.len()];
        for (number, (batch, row)) in (0..).zip(ordered.places(range.clone())) {
            let seat = &mut next[*batch as usize];
            seats[*seat] = (*row, number);
            *seat += 1;
        }
        Self { ordered, range, parts, seats }
    }

    /// Returns the identities. The codes have the order of the texts, and a text may occur in no row; as for the datasets
    /// and keys.
    pub(crate) fn identities(&self) -> Coded<'_, &'a str> {
        self.ranked(&self.ordered.identities)
    }

    /// Returns the datasets.
    pub(crate) fn datasets(&self) -> Coded<'_, &'a str> {
        self.ranked(&self.ordered.datasets)
    }

    /// Returns the keys.
    pub(crate) fn keys(&self) -> Coded<'_, &'a str> {
        self.ranked(&self.ordered.keys)
    }

    fn ranked<'r>(&self, ranked: &'r Ranked<'a>) -> Coded<'r, &'a str> {
        let number = |(batch, row): &Place| self.ordered.first[*batch as usize] + *row as usize;
        let codes = self.ordered.places(self.range.clone()).map(|place| ranked.ranks[number(place)]).collect();
        Coded { codes, values: ranked.texts() }
    }

    /// Returns a column of texts, each text once.
    pub(crate) fn texts(&self, column: usize) -> Column<&'a str> {
        self.coded_texts(column, Coder::new())
    }

    /// Returns a column of texts that may hardly repeat.
    pub(crate) fn long_texts(&self, column: usize) -> Column<&'a str> {
        self.coded_texts(column, Coder::probing())
    }

    fn coded_texts(&self, column: usize, mut coder: Coder<&'a str>) -> Column<&'a str> {
        let mut codes = vec![NULL; self.range.len()];
        for (rows, seats) in &self.parts {
            if let Cells::Text(cells) = &rows.cells[column] {
                let seats = &self.seats[seats.clone()];
                let rows = seats.iter().map(|(row, _)| *row as usize);
                coder.texts(cells, rows, |index, code| codes[seats[index].1 as usize] = code);
            }
        }
        coder.column(codes)
    }

    /// Returns a column of numbers that may hardly repeat.
    pub(crate) fn longs(&self, column: usize) -> Column<i64> {
        self.numbers(|rows, row| rows.long(column, row))
    }

    /// Returns a column of small numbers.
    pub(crate) fn ints(&self, column: usize) -> Column<i32> {
        self.numbers(|rows, row| rows.int(column, row))
    }

    /// Returns the copies that rows stand for, as far as they are stated.
    pub(crate) fn copies(&self) -> Column<i64> {
        self.numbers(StoredRows::copies)
    }

    fn numbers<V: Copy + Eq + Hash>(&self, number: impl Fn(&StoredRows, usize) -> Option<V>) -> Column<V> {
        let (mut codes, mut coder) = (vec![NULL; self.range.len()], Coder::probing());
        for (rows, seats) in &self.parts {
            let mut last: Option<(V, u32)> = None;
            for (row, number_of_row) in &self.seats[seats.clone()] {
                let Some(value) = number(rows, *row as usize) else { continue };
                let code = match last {
                    Some((before, code)) if before == value => code,
                    _ => coder.code(value),
                };
                last = Some((value, code));
                codes[*number_of_row as usize] = code;
            }
        }
        coder.column(codes)
    }
}
