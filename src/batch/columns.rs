//! The buffer of one partition, and its Arrow form.
//!
//! The rows of an event share most of their columns. So the buffer keeps events and rows apart, and all text in one
//! arena. The wide, repeated columns exist only for the few thousand rows that are being encoded, and never for more
//! rows than fit into a few megabytes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Int32Array, Int64Array, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::Int32Type;
use arrow::error::ArrowError;
use chrono::NaiveDate;

use crate::decode::{Event, Flags, Reason, Row, write_extra};
use crate::ids::{SequenceNumber, ShardKey};
use crate::schema::Table;

/// The partition that rows belong to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PartitionKey {
    /// The shard that delivered the rows.
    pub shard: ShardKey,
    /// The pool's true id.
    pub identity_pool_id: Arc<str>,
    /// UTC day of the server date.
    pub event_date: NaiveDate,
}

/// Arrival of a record.
#[derive(Debug, Clone)]
pub(crate) struct Meta<'a> {
    /// Sequence number of the record.
    pub sequence_number: &'a SequenceNumber,
    /// Number inside a KPL aggregate.
    pub sub_sequence: Option<i64>,
    /// Arrival, in µs since the epoch.
    pub arrived_at: i64,
}

/// A quarantined record.
#[derive(Debug, Clone)]
pub(crate) struct Rejected {
    /// Sequence number of the record.
    pub sequence_number: SequenceNumber,
    /// Number inside a KPL aggregate.
    pub sub_sequence: Option<i64>,
    /// Arrival, in µs since the epoch.
    pub arrived_at: i64,
    /// Kind of the decode error.
    pub reason: Reason,
    /// Details of the decode error.
    pub detail: String,
    /// The record's bytes, without secrets.
    pub raw: Vec<u8>,
}

/// A range of the arena. A start of `u32::MAX` means null.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    const NULL: Span = Span { start: u32::MAX, len: 0 };
}

#[derive(Debug)]
struct EventEntry {
    identity_id: Span,
    dataset_name: Span,
    operation: Span,
    sequence_number: Span,
    sub_sequence: Option<i64>,
    arrived_at: i64,
    sync_count: Option<i64>,
    last_modified_date: Option<i64>,
    /// Shared by all partition buffers that hold rows of the event.
    extra: Option<Arc<str>>,
}

#[derive(Debug)]
struct RowEntry {
    event: u32,
    record_index: i32,
    key: Span,
    value: Span,
    /// The event's own span, if the row's operation is the event's.
    op: Span,
    extra: Span,
    flags: Flags,
    sync_count: i64,
    last_modified_date: i64,
    device_last_modified_date: Option<i64>,
}

/// Approximate bytes of a row's columns, without its text.
const ROW_BYTES: usize = 256;

/// Rows of one partition in arrival order.
#[derive(Debug, Default)]
pub(crate) struct Partition {
    text: String,
    events: Vec<EventEntry>,
    rows: Vec<RowEntry>,
    /// Bytes of the events' `extra`.
    extra_bytes: usize,
}

/// Arrow's offsets are 31-bit; a partition is written long before it gets there.
const TEXT_MAX: usize = i32::MAX as usize;

impl Partition {
    /// Returns the bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.text.capacity()
            + self.extra_bytes
            + self.events.capacity() * size_of::<EventEntry>()
            + self.rows.capacity() * size_of::<RowEntry>()
    }

    /// Returns the number of rows held.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether no row is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns whether another `bytes` of text would overflow the arena.
    pub(crate) fn is_full(&self, bytes: usize) -> bool {
        self.text.len() + bytes > TEXT_MAX
    }

    fn put(&mut self, text: &str) -> Span {
        let start = u32::try_from(self.text.len()).unwrap_or(u32::MAX - 1);
        self.text.push_str(text);
        Span { start, len: u32::try_from(text.len()).unwrap_or(0) }
    }

    fn put_option(&mut self, text: Option<&str>) -> Span {
        text.map_or(Span::NULL, |text| self.put(text))
    }

    fn get(&self, span: Span) -> Option<&str> {
        let start = span.start as usize;
        (span.start != u32::MAX).then(|| self.text.get(start..start + span.len as usize)).flatten()
    }

    /// Adds rows of an event.
    pub(crate) fn push<'a: 'r, 'r>(
        &mut self,
        meta: &Meta<'_>,
        event: &Event<'a>,
        rows: impl IntoIterator<Item = &'r Row<'a>>,
    ) {
        let entry = EventEntry {
            identity_id: self.put(&event.identity_id),
            dataset_name: self.put(&event.dataset_name),
            operation: self.put_option(event.operation.as_deref()),
            sequence_number: self.put(meta.sequence_number.as_str()),
            sub_sequence: meta.sub_sequence,
            arrived_at: meta.arrived_at,
            sync_count: event.sync_count,
            last_modified_date: event.last_modified_date,
            extra: event.extra.clone(),
        };
        let index = u32::try_from(self.events.len()).unwrap_or(u32::MAX);
        let operation = entry.operation;
        self.extra_bytes += event.extra.as_deref().map_or(0, str::len);
        self.events.push(entry);
        for row in rows {
            let row = RowEntry {
                event: index,
                record_index: row.record_index,
                key: self.put_option(row.key.as_deref()),
                value: self.put_option(row.value.as_deref()),
                op: match row.op.as_deref() {
                    Some(op) if event.operation.as_deref() != Some(op) => self.put(op),
                    _ => operation,
                },
                extra: self.put_option(row.extra.as_deref()),
                flags: row.flags,
                sync_count: row.sync_count,
                last_modified_date: row.last_modified_date,
                device_last_modified_date: row.device_last_modified_date,
            };
            self.rows.push(row);
        }
    }

    /// Takes over all rows of `other`, which arrived later.
    pub(crate) fn append(&mut self, other: Partition) {
        if self.rows.is_empty() {
            *self = other;
            return;
        }
        let base = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        let event_base = u32::try_from(self.events.len()).unwrap_or(u32::MAX);
        let moved = |span: Span| match span.start {
            u32::MAX => span,
            start => Span { start: start.saturating_add(base), ..span },
        };
        self.text.push_str(&other.text);
        self.extra_bytes += other.extra_bytes;
        self.events.extend(other.events.into_iter().map(|e| EventEntry {
            identity_id: moved(e.identity_id),
            dataset_name: moved(e.dataset_name),
            operation: moved(e.operation),
            sequence_number: moved(e.sequence_number),
            ..e
        }));
        self.rows.extend(other.rows.into_iter().map(|r| RowEntry {
            event: r.event + event_base,
            key: moved(r.key),
            value: moved(r.value),
            op: moved(r.op),
            extra: moved(r.extra),
            ..r
        }));
    }
}

/// A partition's rows in their final order, ready to become Arrow batches.
///
/// The order is identity_id, dataset_name, key (nulls first), sync_count descending. Point lookups prune by it, and the
/// newest row of a key comes first.
#[derive(Debug)]
pub(crate) struct Sorted {
    partition: Partition,
    key: PartitionKey,
    order: Vec<u32>,
    /// Ranks of the identity and the dataset of each event.
    ranks: Vec<(i32, i32)>,
    identities: ArrayRef,
    datasets: ArrayRef,
}

impl Sorted {
    /// Sorts a partition.
    pub(crate) fn new(key: PartitionKey, partition: Partition) -> Self {
        let (identity_ranks, identities) = rank(&partition, |e| e.identity_id);
        let (dataset_ranks, datasets) = rank(&partition, |e| e.dataset_name);
        let ranks: Vec<(i32, i32)> = identity_ranks.into_iter().zip(dataset_ranks).collect();
        let mut order: Vec<u32> = (0..u32::try_from(partition.rows.len()).unwrap_or(u32::MAX)).collect();
        let at = |row: u32| &partition.rows[row as usize];
        order.sort_unstable_by(|&a, &b| {
            let (x, y) = (at(a), at(b));
            ranks[x.event as usize]
                .cmp(&ranks[y.event as usize])
                .then_with(|| partition.get(x.key).cmp(&partition.get(y.key)))
                .then_with(|| y.sync_count.cmp(&x.sync_count))
                .then_with(|| y.last_modified_date.cmp(&x.last_modified_date))
                .then_with(|| a.cmp(&b))
        });
        Self { partition, key, order, ranks, identities, datasets }
    }

    /// Returns the number of rows.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns the approximate bytes of the rows.
    pub(crate) fn bytes(&self) -> usize {
        self.partition.text.len() + self.len() * size_of::<RowEntry>()
    }

    /// Returns the number of distinct identities, for the size of the Bloom filter.
    pub(crate) fn identities(&self) -> usize {
        self.identities.len()
    }

    fn rows(&self, range: Range<usize>) -> impl Iterator<Item = &RowEntry> {
        self.order[range].iter().map(|&row| &self.partition.rows[row as usize])
    }

    fn event(&self, row: &RowEntry) -> &EventEntry {
        &self.partition.events[row.event as usize]
    }

    /// Splits the rows into consecutive ranges, one per batch, and returns with each range its bytes as a reader gets
    /// them. A range has at most `rows_max` rows, and at most `bytes_max` bytes or one row.
    pub(crate) fn stretches(&self, rows_max: usize, bytes_max: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let (mut end, mut bytes) = (start, 0);
            for row in self.rows(start..self.len()).take(rows_max) {
                let next = self.row_bytes(row);
                if end > start && bytes + next > bytes_max {
                    break;
                }
                (end, bytes) = (end + 1, bytes + next);
            }
            let stretch = (start..end, bytes);
            start = end;
            (bytes > 0).then_some(stretch)
        })
    }

    /// Returns the bytes of a row as a reader gets it, with those of its event.
    fn row_bytes(&self, row: &RowEntry) -> usize {
        let event = self.event(row);
        let spans = [row.key, row.value, row.op, row.extra, event.dataset_name, event.operation];
        let text: usize = spans.iter().map(|span| span.len as usize).sum();
        text + event.extra.as_deref().map_or(0, str::len) + ROW_BYTES
    }

    /// Returns the rows `range` of the final order, as one batch of the file schema of `sync_records`.
    ///
    /// # Errors
    /// Fails if Arrow rejects the columns (a bug in this code, never the data).
    pub(crate) fn batch(&self, range: Range<usize>) -> Result<RecordBatch, ArrowError> {
        let rows: Vec<&RowEntry> = self.rows(range).collect();
        let events: Vec<&EventEntry> = rows.iter().map(|r| self.event(r)).collect();
        let constant = |value: &str| -> Result<ArrayRef, ArrowError> {
            let keys = Int32Array::from(vec![0; rows.len()]);
            Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(StringArray::from(vec![value])))?))
        };
        let ranked = |rank: fn(&(i32, i32)) -> i32, values: &ArrayRef| -> Result<ArrayRef, ArrowError> {
            let keys: Int32Array = rows.iter().map(|r| Some(rank(&self.ranks[r.event as usize]))).collect();
            Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values.clone())?))
        };
        let by_row = |span: fn(&RowEntry) -> Span| self.text(rows.iter().map(|r| span(r)));
        let by_event = |span: fn(&EventEntry) -> Span| self.text(events.iter().map(|e| span(e)));
        let instants = |values: Vec<Option<i64>>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
        };
        let columns: Vec<ArrayRef> = vec![
            constant(&self.key.identity_pool_id)?,
            ranked(|r| r.0, &self.identities)?,
            ranked(|r| r.1, &self.datasets)?,
            by_event(|e| e.operation),
            by_row(|r| r.key),
            by_row(|r| r.value),
            by_row(|r| r.op),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.sync_count))),
            instants(rows.iter().map(|r| Some(r.last_modified_date)).collect()),
            instants(rows.iter().map(|r| r.device_last_modified_date).collect()),
            Arc::new(Int64Array::from_iter(events.iter().map(|e| e.sync_count))),
            instants(events.iter().map(|e| e.last_modified_date).collect()),
            constant(self.key.shard.shard())?,
            by_event(|e| e.sequence_number),
            Arc::new(Int64Array::from_iter(events.iter().map(|e| e.sub_sequence))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.record_index))),
            instants(events.iter().map(|e| Some(e.arrived_at)).collect()),
            self.extra(&rows),
        ];
        let fields = Table::SyncRecords.file_schema();
        let fields = fields
            .fields()
            .iter()
            .zip(&columns)
            .map(|(f, c)| Arc::new(f.as_ref().clone().with_data_type(c.data_type().clone())));
        RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>())), columns)
    }

    fn text(&self, spans: impl ExactSizeIterator<Item = Span>) -> ArrayRef {
        let mut builder = StringBuilder::with_capacity(spans.len(), spans.len() * 16);
        for span in spans {
            builder.append_option(self.partition.get(span));
        }
        Arc::new(builder.finish())
    }

    fn extra(&self, rows: &[&RowEntry]) -> ArrayRef {
        let mut builder = StringBuilder::with_capacity(rows.len(), 0);
        let mut text = String::new();
        for row in rows {
            text.clear();
            let event = self.event(row).extra.as_deref();
            let is_any = write_extra(&mut text, self.partition.get(row.extra), event, row.flags);
            builder.append_option(is_any.then_some(text.as_str()));
        }
        Arc::new(builder.finish())
    }

    /// Returns statistics for the log. They are exact, because they are computed from the rows themselves.
    pub(crate) fn statistics(&self) -> Statistics {
        let first = |values: &ArrayRef, last: bool| {
            let values = values.as_any().downcast_ref::<StringArray>()?;
            let index = if last { values.len().checked_sub(1)? } else { 0 };
            (!values.is_empty()).then(|| values.value(index).to_owned())
        };
        let rows = &self.partition.rows;
        let range = |value: fn(&RowEntry) -> Option<i64>| {
            let values = rows.iter().filter_map(value);
            values.fold(None, |range: Option<(i64, i64)>, v| {
                Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
            })
        };
        let nulls = |is_null: fn(&RowEntry) -> bool| rows.iter().filter(|r| is_null(r)).count();
        Statistics {
            rows: rows.len(),
            identity_id: first(&self.identities, false).zip(first(&self.identities, true)),
            dataset_name: first(&self.datasets, false).zip(first(&self.datasets, true)),
            sync_count: range(|r| Some(r.sync_count)),
            last_modified_date: range(|r| Some(r.last_modified_date)),
            device_last_modified_date: range(|r| r.device_last_modified_date),
            null_keys: nulls(|r| r.key.start == u32::MAX),
            null_values: nulls(|r| r.value.start == u32::MAX),
            null_device_dates: nulls(|r| r.device_last_modified_date.is_none()),
        }
    }
}

/// Ranges (lowest, highest) and null counts of one file.
#[derive(Debug, Clone, PartialEq)]
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
    /// Rows without a key.
    pub null_keys: usize,
    /// Rows without a value.
    pub null_values: usize,
    /// Rows without a device date.
    pub null_device_dates: usize,
}

/// Returns the rank of each event's text among the distinct texts, and the distinct texts in order.
fn rank(partition: &Partition, span: fn(&EventEntry) -> Span) -> (Vec<i32>, ArrayRef) {
    let mut seen: HashMap<&str, i32> = HashMap::new();
    let mut distinct: Vec<&str> = Vec::new();
    let first_seen: Vec<i32> = partition
        .events
        .iter()
        .map(|event| {
            let text = partition.get(span(event)).unwrap_or_default();
            *seen.entry(text).or_insert_with(|| {
                distinct.push(text);
                i32::try_from(distinct.len() - 1).unwrap_or(i32::MAX)
            })
        })
        .collect();
    let mut order: Vec<usize> = (0..distinct.len()).collect();
    order.sort_unstable_by_key(|&i| distinct[i]);
    let mut rank_of = vec![0; distinct.len()];
    for (rank, &i) in (0..).zip(&order) {
        rank_of[i] = rank;
    }
    let values: ArrayRef = Arc::new(StringArray::from_iter_values(order.iter().map(|&i| distinct[i])));
    (first_seen.into_iter().map(|i| rank_of[i as usize]).collect(), values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;
    use arrow::array::AsArray;
    use arrow::compute::cast;
    use arrow::datatypes::{DataType, Int64Type};

    fn key() -> PartitionKey {
        PartitionKey {
            shard: ShardKey::new("s", "shardId-0").unwrap(),
            identity_pool_id: "us-east-1:0a".into(),
            event_date: NaiveDate::from_ymd_opt(1970, 1, 1).unwrap(),
        }
    }

    fn event(identity: &str, records: &str) -> String {
        format!(
            r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:{identity}","dataSetName":"d","operation":"replace","kinesisSyncRecords":{records},"lastModifiedDate":5,"syncCount":9}}"#
        )
    }

    #[test]
    fn rows_come_out_sorted_and_whole_after_merging() {
        let seq = SequenceNumber::parse("42").unwrap();
        let meta = Meta { sequence_number: &seq, sub_sequence: None, arrived_at: 7 };
        let mut first = Partition::default();
        let json = event(
            "b",
            r#"[{"key":"k","value":"1","syncCount":1,"op":"replace"},{"key":"a","value":"","op":"replace"}]"#,
        );
        let one = decode(json.as_bytes()).unwrap();
        first.push(&meta, &one, &one.rows);
        let mut second = Partition::default();
        let json = event("a", r#"[{"key":"z","op":"remove"}]"#);
        let two = decode(json.as_bytes()).unwrap();
        second.push(&meta, &two, &two.rows);
        let json = event("b", r#"[{"key":"k","value":"2","syncCount":2,"op":"replace"}]"#);
        let three = decode(json.as_bytes()).unwrap();
        second.push(&meta, &three, &three.rows);
        first.append(second);
        let sorted = Sorted::new(key(), first);
        let batch = sorted.batch(0..4).unwrap();
        let column = |name: &str| cast(batch.column_by_name(name).unwrap(), &DataType::Utf8).unwrap();
        let text = |name: &str| -> Vec<Option<String>> {
            column(name).as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect()
        };
        let some = |v: [&str; 4]| v.map(|s| Some(s.to_owned())).to_vec();
        assert_eq!(text("identity_id"), some(["us-east-1:a", "us-east-1:b", "us-east-1:b", "us-east-1:b"]));
        assert_eq!(text("key"), some(["z", "a", "k", "k"]));
        assert_eq!(text("value"), vec![None, Some(String::new()), Some("2".into()), Some("1".into())]);
        assert_eq!(text("sequence_number"), some(["42"; 4]));
        let counts = batch.column_by_name("sync_count").unwrap();
        assert_eq!(counts.as_primitive::<Int64Type>().values(), &[9, 9, 2, 1]);
        let names: Vec<_> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        let contract: Vec<_> = Table::SyncRecords.file_schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(names, contract);
        let statistics = sorted.statistics();
        assert_eq!(statistics.identity_id, Some(("us-east-1:a".into(), "us-east-1:b".into())));
        assert_eq!((statistics.sync_count, statistics.null_values, statistics.rows), (Some((1, 9)), 1, 4));
        assert_eq!(batch.column_by_name("value").unwrap().null_count(), 1);
    }
}
