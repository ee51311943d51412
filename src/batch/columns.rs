//! The buffer of one partition.
//!
//! The rows of an event share most of their columns. So the buffer keeps events and rows apart, and all text in one
//! arena. The repeated columns exist only while they are encoded, one after the other.

use std::sync::Arc;

use chrono::NaiveDate;

use crate::decode::{Event, Flags, Reason, Row};
use crate::ids::{SequenceNumber, ShardKey};

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
pub(super) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    const NULL: Span = Span { start: u32::MAX, len: 0 };

    /// Returns the bytes of the text.
    pub(super) fn len(self) -> usize {
        self.len as usize
    }

    /// Returns whether both are the same text of one arena.
    pub(super) fn is(self, other: Span) -> bool {
        self.start == other.start && self.len == other.len
    }

    /// Returns whether this is null.
    pub(super) fn is_null(self) -> bool {
        self.start == u32::MAX
    }
}

/// What the rows of an event share.
#[derive(Debug)]
pub(super) struct EventEntry {
    pub identity_id: Span,
    pub dataset_name: Span,
    pub operation: Span,
    pub sequence_number: Span,
    pub sub_sequence: Option<i64>,
    pub arrived_at: i64,
    pub sync_count: Option<i64>,
    pub last_modified_date: Option<i64>,
    /// Shared by all partition buffers that hold rows of the event.
    pub extra: Option<Arc<str>>,
}

/// What a row has for itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowEntry {
    pub event: u32,
    pub record_index: i32,
    pub key: Span,
    pub value: Span,
    /// The event's own span, if the row's operation is the event's.
    pub op: Span,
    pub extra: Span,
    pub flags: Flags,
    pub sync_count: i64,
    pub last_modified_date: i64,
    pub device_last_modified_date: Option<i64>,
}

/// Rows of one partition in arrival order.
#[derive(Debug, Default)]
pub(crate) struct Partition {
    text: String,
    events: Vec<EventEntry>,
    rows: Vec<RowEntry>,
    /// Bytes of the events' `extra`.
    extra_bytes: usize,
}

/// Returns an offset into a buffer, or an index of its events, which are fewer than its bytes.
///
/// A buffer has a small multiple of the bytes of one chunk, and a record has at most 32 MiB and a payload.
fn offset(bytes: usize) -> u32 {
    debug_assert!(u32::try_from(bytes).is_ok());
    bytes as u32
}

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

    /// Returns the bytes of all texts.
    pub(super) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Returns the events.
    pub(super) fn events(&self) -> &[EventEntry] {
        &self.events
    }

    /// Returns the rows, in the order of their arrival.
    pub(super) fn rows(&self) -> &[RowEntry] {
        &self.rows
    }

    fn put(&mut self, text: &str) -> Span {
        let start = offset(self.text.len());
        self.text.push_str(text);
        Span { start, len: offset(text.len()) }
    }

    fn put_option(&mut self, text: Option<&str>) -> Span {
        text.map_or(Span::NULL, |text| self.put(text))
    }

    /// Returns the text of a span; `None` for null.
    pub(super) fn get(&self, span: Span) -> Option<&str> {
        let start = span.start as usize;
        (!span.is_null()).then(|| self.text.get(start..start + span.len as usize)).flatten()
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
        let index = offset(self.events.len());
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

    /// Gives back the memory that no row uses.
    pub(crate) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.events.shrink_to_fit();
        self.rows.shrink_to_fit();
    }
}
