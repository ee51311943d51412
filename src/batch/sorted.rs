//! The rows of a partition in their final order, and the distinct values of each column.
//!
//! The order is identity_id, dataset_name, key (nulls first), sync_count descending, last_modified_date descending,
//! arrival. Point lookups prune by it, and the newest row of a key comes first. The texts become ranks first, so that
//! sorting compares integers.

use std::cmp::Reverse;
use std::hash::Hash;
use std::ops::Range;

use hashbrown::HashMap;

use super::columns::{EventEntry, Partition, RowEntry, Span};
use super::file::{Coded, Column, NULL};
use crate::decode::write_extra;

/// Approximate bytes of a row's columns, without its text.
pub(super) const ROW_BYTES: usize = 256;
/// Values after which it is known whether a column repeats its values.
pub(super) const PROBE: usize = 2_048;

/// Distinct texts in their order, and the rank of the text of each event or row; [`NULL`] for null.
#[derive(Debug)]
pub(super) struct Ranked<'a> {
    pub(super) ranks: Vec<u32>,
    texts: Vec<&'a str>,
}

impl<'a> Ranked<'a> {
    fn new(texts: impl Iterator<Item = Option<&'a str>>) -> Self {
        Self::of(distinct(texts))
    }

    /// Ranks the values of a column.
    pub(super) fn of(column: Column<&'a str>) -> Self {
        let Column { codes, values } = column;
        let mut order: Vec<u32> = (0..index(values.len())).collect();
        order.sort_unstable_by_key(|code| values[*code as usize]);
        let mut rank_of = vec![0; values.len()];
        for (rank, code) in (0..).zip(&order) {
            rank_of[*code as usize] = rank;
        }
        let ranks = codes.iter().map(|code| rank_of.get(*code as usize).copied().unwrap_or(NULL)).collect();
        Self { ranks, texts: order.iter().map(|code| values[*code as usize]).collect() }
    }

    /// Returns the texts in their order.
    pub(super) fn texts(&self) -> &[&'a str] {
        &self.texts
    }

    fn range(&self) -> Option<(String, String)> {
        Some(((*self.texts.first()?).to_owned(), (*self.texts.last()?).to_owned()))
    }
}

/// Returns a number below 2³². The offsets of an arena have 32 bits, and each event and row takes at least a byte of
/// it, so no partition has more.
fn index(n: usize) -> u32 {
    n as u32
}

/// Returns a column with each value once.
fn distinct<V: Copy + Eq + Hash>(values: impl Iterator<Item = Option<V>>) -> Column<V> {
    gather(values, usize::MAX)
}

/// Returns a column. After [`PROBE`] values of which most are new, every further value gets a code of its own.
pub(super) fn column<V: Copy + Eq + Hash>(values: impl Iterator<Item = Option<V>>) -> Column<V> {
    gather(values, PROBE)
}

fn gather<V: Copy + Eq + Hash>(rows: impl Iterator<Item = Option<V>>, probe: usize) -> Column<V> {
    let mut known: HashMap<V, u32> = HashMap::new();
    let (mut codes, mut values, mut present) = (Vec::with_capacity(rows.size_hint().0), Vec::new(), 0);
    for value in rows {
        let Some(value) = value else {
            codes.push(NULL);
            continue;
        };
        present += 1;
        let next = index(values.len());
        let code =
            if present > probe && values.len() > present / 2 { next } else { *known.entry(value).or_insert(next) };
        if code == next {
            values.push(value);
        }
        codes.push(code);
    }
    Column { codes, values }
}

/// A row, and the buffer that holds its texts.
#[derive(Debug)]
pub(super) struct SortedRow {
    part: u32,
    /// The number of its event counts those of all buffers.
    row: RowEntry,
}

/// A partition's rows in their final order.
#[derive(Debug)]
pub(crate) struct Sorted<'a> {
    parts: &'a [Partition],
    /// Number of the first event of each buffer.
    first_events: Vec<u32>,
    /// The rows in their final order. They are copied once, because every column reads all of them in this order.
    rows: Vec<SortedRow>,
    /// By event.
    identities: Ranked<'a>,
    /// By event.
    datasets: Ranked<'a>,
    /// By row of the final order.
    keys: Ranked<'a>,
}

/// Returns a text of each event of all buffers.
fn event_spans(parts: &[Partition], span: fn(&EventEntry) -> Span) -> impl Iterator<Item = Option<&str>> {
    parts.iter().flat_map(move |part| part.events().iter().map(move |event| part.get(span(event))))
}

impl<'a> Sorted<'a> {
    /// Sorts the rows of a partition's buffers.
    pub(super) fn new(parts: &'a [Partition]) -> Self {
        let identities = Ranked::new(event_spans(parts, |event| event.identity_id));
        let datasets = Ranked::new(event_spans(parts, |event| event.dataset_name));
        let mut keys = Ranked::new(parts.iter().flat_map(|part| part.rows().iter().map(|row| part.get(row.key))));
        let first_events: Vec<u32> = parts
            .iter()
            .scan(0, |next, part| Some(std::mem::replace(next, *next + index(part.events().len()))))
            .collect();
        let mut places = Vec::with_capacity(keys.ranks.len());
        for (part, first) in (0..).zip(&first_events) {
            for (at, row) in (0..).zip(parts[part as usize].rows()) {
                let event = (first + row.event) as usize;
                let dataset = u64::from(identities.ranks[event]) << 32 | u64::from(datasets.ranks[event]);
                // Null is the largest code, and sorts first.
                let key = keys.ranks[places.len()].wrapping_add(1);
                places.push((dataset, key, Reverse(row.sync_count), Reverse(row.last_modified_date), (part, at)));
            }
        }
        places.sort_unstable();
        keys.ranks = places.iter().map(|place| place.1.wrapping_sub(1)).collect();
        let row = |(part, at): (u32, u32)| {
            let row = parts[part as usize].rows()[at as usize];
            SortedRow { part, row: RowEntry { event: first_events[part as usize] + row.event, ..row } }
        };
        let rows = places.iter().map(|place| row(place.4)).collect();
        Self { parts, first_events, rows, identities, datasets, keys }
    }

    /// Returns the event of a row.
    pub(super) fn event(&self, row: &SortedRow) -> &'a EventEntry {
        let part = row.part as usize;
        &self.parts[part].events()[(row.row.event - self.first_events[part]) as usize]
    }

    /// Returns the text of a span of a row; `None` for null.
    fn get(&self, row: &SortedRow, span: Span) -> Option<&'a str> {
        self.parts[row.part as usize].get(span)
    }

    /// Writes the column `extra` of a row; returns `false` for null.
    pub(super) fn extra(&self, row: &SortedRow, text: &mut String) -> bool {
        let extra = self.get(row, row.row.extra);
        write_extra(text, extra, self.event(row).extra.as_deref(), row.row.flags)
    }

    /// Returns the number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns the approximate bytes of the rows.
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(Partition::text_bytes).sum::<usize>() + self.len() * size_of::<RowEntry>()
    }

    /// Returns rows of the final order.
    pub(super) fn rows(&self, range: Range<usize>) -> std::slice::Iter<'_, SortedRow> {
        self.rows[range].iter()
    }

    /// Splits the rows into consecutive ranges, one per row group. A range has at most `rows_max` rows, and at most
    /// `bytes_max` bytes as a reader decodes them, or one row.
    pub(super) fn groups(&self, rows_max: usize, bytes_max: usize) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let (mut end, mut bytes) = (start, 0);
            for row in self.rows(start..self.len()).take(rows_max) {
                bytes += self.row_bytes(row);
                if end > start && bytes > bytes_max {
                    break;
                }
                end += 1;
            }
            let group = start..end;
            start = end;
            (!group.is_empty()).then_some(group)
        })
    }

    /// Returns the bytes of a row as a reader gets it, with those of its event.
    fn row_bytes(&self, row: &SortedRow) -> usize {
        let (event, row) = (self.event(row), &row.row);
        let spans = [row.key, row.value, row.op, row.extra, event.dataset_name, event.operation];
        let text: usize = spans.iter().map(|span| span.len()).sum();
        text + event.extra.as_deref().map_or(0, str::len) + ROW_BYTES
    }

    /// Returns the identity of each row.
    pub(super) fn identities(&self, range: Range<usize>) -> Coded<'_, &'a str> {
        Coded { codes: self.of_events(range, &self.identities.ranks), values: &self.identities.texts }
    }

    /// Returns the dataset of each row.
    pub(super) fn datasets(&self, range: Range<usize>) -> Coded<'_, &'a str> {
        Coded { codes: self.of_events(range, &self.datasets.ranks), values: &self.datasets.texts }
    }

    /// Returns the key of each row.
    pub(super) fn keys(&self, range: Range<usize>) -> Coded<'_, &'a str> {
        Coded { codes: self.keys.ranks[range].to_vec(), values: &self.keys.texts }
    }

    /// Returns a column of the events for each row.
    pub(super) fn spread<'b, V>(&self, range: Range<usize>, events: &'b Column<V>) -> Coded<'b, V> {
        Coded { codes: self.of_events(range, &events.codes), values: &events.values }
    }

    /// Returns the number of the event of each row.
    pub(super) fn events(&self, range: Range<usize>) -> Vec<u32> {
        self.rows(range).map(|row| row.row.event).collect()
    }

    fn of_events(&self, range: Range<usize>, codes: &[u32]) -> Vec<u32> {
        self.rows(range).map(|row| codes[row.row.event as usize]).collect()
    }

    /// Returns a text of each event.
    pub(super) fn event_texts(&self, span: fn(&EventEntry) -> Span) -> Column<&'a str> {
        column(event_spans(self.parts, span))
    }

    /// Returns the sequence number of each event.
    pub(super) fn sequence_numbers(&self) -> Vec<&'a str> {
        event_spans(self.parts, |event| event.sequence_number).map(Option::unwrap_or_default).collect()
    }

    /// Returns a number of each event.
    pub(super) fn event_numbers(&self, number: fn(&EventEntry) -> Option<i64>) -> Column<i64> {
        column(self.parts.iter().flat_map(|part| part.events()).map(number))
    }

    /// Returns the operation of each row: mostly that of its event, of which `operations` has the codes.
    pub(super) fn ops(&self, range: Range<usize>, operations: &Column<&'a str>) -> Column<&'a str> {
        let mut values = operations.values.clone();
        let code = |row: &SortedRow| {
            if row.row.op.is(self.event(row).operation) {
                return operations.codes[row.row.event as usize];
            }
            let Some(op) = self.get(row, row.row.op) else { return NULL };
            // There are only a few operations.
            let known = values.iter().position(|value| *value == op).unwrap_or_else(|| {
                values.push(op);
                values.len() - 1
            });
            index(known)
        };
        Column { codes: self.rows(range).map(code).collect(), values }
    }

    /// Returns a text of each row.
    pub(super) fn row_texts(&self, range: Range<usize>, span: fn(&RowEntry) -> Span) -> Column<&'a str> {
        column(self.rows(range).map(|row| self.get(row, span(&row.row))))
    }

    /// Returns a number of each row.
    pub(super) fn row_numbers<V: Copy + Eq + Hash>(
        &self,
        range: Range<usize>,
        number: fn(&RowEntry) -> Option<V>,
    ) -> Column<V> {
        column(self.rows(range).map(|row| number(&row.row)))
    }

    /// Returns statistics for the log. They are exact, because they are computed from the rows themselves.
    pub(super) fn statistics(&self) -> Statistics {
        let rows = &self.rows;
        let range = |value: fn(&RowEntry) -> Option<i64>| {
            let values = rows.iter().filter_map(|row| value(&row.row));
            values.fold(None, |range: Option<(i64, i64)>, v| {
                Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
            })
        };
        let nulls = |is_null: fn(&RowEntry) -> bool| rows.iter().filter(|row| is_null(&row.row)).count();
        Statistics {
            rows: rows.len(),
            identity_id: self.identities.range(),
            dataset_name: self.datasets.range(),
            sync_count: range(|r| Some(r.sync_count)),
            last_modified_date: range(|r| Some(r.last_modified_date)),
            device_last_modified_date: range(|r| r.device_last_modified_date),
            null_identities: 0,
            null_datasets: 0,
            null_sync_counts: 0,
            null_dates: 0,
            null_keys: nulls(|r| r.key.is_null()),
            null_values: nulls(|r| r.value.is_null()),
            null_device_dates: nulls(|r| r.device_last_modified_date.is_none()),
        }
    }
}

/// Ranges (lowest, highest) and null counts of one file.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Statistics {
    /// Number of rows.
    pub rows: usize,
    /// Range of identity_id.
    pub identity_id: Option<(String, String)>,
    /// Range of dataset_name.
    pub dataset_name: Option<(String, String)>,
    /// Range of sync_count.
    pub sync_count: Option<(i64, i64)>,
    /// Range of last_modified_date, µs.
    pub last_modified_date: Option<(i64, i64)>,
    /// Range of device_last_modified_date, µs.
    pub device_last_modified_date: Option<(i64, i64)>,
    /// Rows without an identity.
    pub null_identities: usize,
    /// Rows without a dataset.
    pub null_datasets: usize,
    /// Rows without a sync count.
    pub null_sync_counts: usize,
    /// Rows without a server date.
    pub null_dates: usize,
    /// Rows without a key.
    pub null_keys: usize,
    /// Rows without a value.
    pub null_values: usize,
    /// Rows without a device date.
    pub null_device_dates: usize,
}
