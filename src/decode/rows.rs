//! Turns the wire form of an event into rows.
//!
//! | `payloadType` | records | URL | result |
//! |---|---|---|---|
//! | not S3Url | one or more | none | a row each |
//! | not S3Url | `[]` | none | one row with a null key: a dataset tombstone for `remove`, else a marker |
//! | not S3Url | null, absent | none | `remove`: a dataset tombstone; `replace`: contradictory; unknown: a marker |
//! | not Inline | none or `[]` | yes | payload_not_fetched |
//! | anything else | | | contradictory |
//!
//! Without an `operation`, a row with a null key is rejected (missing_field). An unknown `payloadType` is flagged.
//!
//! # Cost of a record
//! **Invariant: the size of the decoded rows is bounded by the bytes of the record.** A text of the event is held once,
//! however many rows share it. A record with too many rows, days or copies of such a text is rejected
//! ([`Reason::ExpandsTooMuch`]) before any of them is made. Each text has a limit far above the service's own.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate};
use serde::de::IgnoredAny;

use super::checks::{
    KEY_BYTES_MAX, NAME_BYTES_MAX, OPERATION_BYTES_MAX, VALUE_BYTES_MAX, count, device_date, few_days, missing,
    no_longer, repeated, server_date, service_id,
};
use super::event::{DUPLICATE, MISSING, Records, TOO_MANY, WireEvent, WireRecord};
use super::extra::{Flags, members, write_extra};
use super::fast;
use super::reject::{Reason, Reject, shown};
use crate::redact::{self, redact_url};

/// Value of `op` and `operation` that removes.
pub(crate) const REMOVE: &str = "remove";
/// Value of `op` and `operation` that sets.
pub(crate) const REPLACE: &str = "replace";

/// A decoded event. Texts borrow from the record where possible.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a> {
    /// `us-east-1:…`, checked.
    pub identity_pool_id: Cow<'a, str>,
    /// `us-east-1:…`, checked.
    pub identity_id: Cow<'a, str>,
    /// Any text except the empty one; not used in any path.
    pub dataset_name: Cow<'a, str>,
    /// As received.
    pub operation: Option<Cow<'a, str>>,
    /// Sync count of the event itself.
    pub sync_count: Option<i64>,
    /// Date of the event itself, µs since the epoch.
    pub last_modified_date: Option<i64>,
    /// Unknown fields of the event, as members of a JSON object, redacted.
    pub extra: Option<Arc<str>>,
    /// At least one row.
    pub rows: Vec<Row<'a>>,
}

/// One change of one key, or (with a null key) of the dataset as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<'a> {
    /// Null for a tombstone or marker of the dataset.
    pub key: Option<Cow<'a, str>>,
    /// `""` differs from null.
    pub value: Option<Cow<'a, str>>,
    /// As received; `None` stands for the event's operation.
    pub op: Option<Cow<'a, str>>,
    /// Count of the record, else of the event.
    pub sync_count: i64,
    /// Server date of the record, else of the event, µs since the epoch.
    pub last_modified_date: i64,
    /// Client date in µs since the epoch; `None` if absent or not representable (then `extra` holds its text).
    pub device_last_modified_date: Option<i64>,
    /// Position in the event.
    pub record_index: i32,
    /// Anomalies of the row.
    pub flags: Flags,
    /// Unknown fields of the record, as members of a JSON object, redacted.
    pub extra: Option<String>,
}

impl<'a> Event<'a> {
    /// Returns the operation of a row: its own `op`, or the event's operation.
    pub fn op<'b>(&'b self, row: &'b Row<'_>) -> Option<&'b str> {
        row.op.as_deref().or(self.operation.as_deref())
    }

    /// Returns the column `extra` of a row.
    pub fn extra(&self, row: &Row<'_>) -> Option<String> {
        let mut text = String::new();
        write_extra(&mut text, row.extra.as_deref(), self.extra.as_deref(), row.flags).then_some(text)
    }

    /// Returns the rows sorted by UTC day, because each day is a partition.
    pub fn rows_by_day(&self) -> Vec<&Row<'a>> {
        let mut rows: Vec<&Row<'a>> = self.rows.iter().collect();
        rows.sort_by_key(|row| row.day());
        rows
    }
}

impl Row<'_> {
    /// Returns the server date in days since the epoch.
    pub fn day(&self) -> i64 {
        self.last_modified_date.div_euclid(86_400_000_000)
    }

    /// Returns the UTC day of the server date.
    pub fn event_date(&self) -> NaiveDate {
        DateTime::from_timestamp_micros(self.last_modified_date).unwrap_or_default().date_naive()
    }
}

/// Decodes one record.
///
/// # Errors
/// A [`Reject`] for every record that does not become at least one row. Never panics, whatever the bytes.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, Reject> {
    decode_with(bytes, None)
}

/// Decodes one record like [`decode`], with the contents behind the event's URL.
///
/// # Errors
/// As [`decode`].
pub fn decode_with<'a>(bytes: &'a [u8], payload: Option<&'a [u8]>) -> Result<Event<'a>, Reject> {
    check(wire_event(bytes)?, bytes.len(), payload)
}

/// End of the field's name, with its quote.
const URL_FIELD: &[u8] = b"kinesisSyncRecordsURL\"";

/// Returns the URL that holds an event's contents; `None` for a record that is complete or is no event.
pub fn payload_url(bytes: &[u8]) -> Option<String> {
    // A byte search decides most records: the field is absent in every spelling, or null.
    let named = memchr::memmem::find(bytes, URL_FIELD);
    // Without an escape, the name has only one spelling.
    let hidden = || memchr::memmem::find(bytes, b"\\u00").is_some() && redact::names_records_url(bytes);
    let null = named.is_some_and(|at| {
        let mut rest = bytes[at + URL_FIELD.len()..].iter().copied().filter(|b| !b.is_ascii_whitespace());
        rest.next() == Some(b':') && rest.take(4).eq(*b"null")
    });
    if null || (named.is_none() && !hidden()) {
        return None;
    }
    let wire = wire_event(bytes).ok()?;
    let url = wire.records_url.as_deref().filter(|url| !url.is_empty())?.to_owned();
    let asked = inline_records(wire.payload_type.as_deref(), wire.records, Some(&url), wire.operation.as_deref());
    matches!(asked, Err(Reject { reason: Reason::PayloadNotFetched, .. })).then_some(url)
}

fn wire_event(bytes: &[u8]) -> Result<WireEvent<'_>, Reject> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        Reject::new(Reason::NotUtf8, format!("byte {} of {} does not continue UTF-8", e.valid_up_to(), bytes.len()))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let trimmed = text.trim_matches([' ', '\t', '\r', '\n']);
    if trimmed.is_empty() {
        return Err(Reject::new(Reason::Empty, format!("{} bytes, none but white space", bytes.len())));
    }
    if !trimmed.starts_with('{') {
        return Err(match serde_json::from_str::<IgnoredAny>(trimmed) {
            Ok(_) => Reject::new(Reason::NotAnObject, format!("begins with {:?}", first_char(trimmed))),
            Err(e) => Reject::new(Reason::NotJson, e.to_string()),
        });
    }
    if let Some(event) = fast::event(trimmed) {
        return Ok(event);
    }
    serde_json::from_str(trimmed).map_err(|e| reject_of(&e, None))
}

/// Returns the records behind an event's URL: a bare array of records, or the whole event again.
fn fetched_records<'a>(payload: &'a [u8], envelope: &Event<'_>) -> Result<Vec<WireRecord<'a>>, Reject> {
    let invalid = |what: String| Reject::new(Reason::PayloadInvalid, format!("what its URL holds {what}"));
    let text = std::str::from_utf8(payload).map_err(|_| invalid("is not UTF-8".to_owned()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.trim_start().starts_with('{') {
        let records: Result<Records<'_>, _> = serde_json::from_str(text);
        return records.map(|records| records.0).map_err(|e| reject_of(&e, Some("what its URL holds are no records")));
    }
    let wire: WireEvent<'_> =
        serde_json::from_str(text).map_err(|e| reject_of(&e, Some("what its URL holds is no event")))?;
    let dataset = wire.data_set_name.as_deref().or(wire.dataset_name.as_deref());
    let same = [
        (wire.identity_pool_id.as_deref(), &*envelope.identity_pool_id),
        (wire.identity_id.as_deref(), &*envelope.identity_id),
        (dataset, &*envelope.dataset_name),
    ];
    if same.iter().any(|(inner, outer)| inner.is_some_and(|inner| inner != *outer)) {
        return Err(invalid("is another dataset's event".to_owned()));
    }
    wire.records.ok_or_else(|| invalid("is an event without records".to_owned()))
}

fn first_char(text: &str) -> String {
    text.chars().take(1).collect()
}

/// Converts an error of the parser. For a fetched payload, `of_payload` is the start of the detail.
fn reject_of(error: &serde_json::Error, of_payload: Option<&str>) -> Reject {
    let detail = error.to_string();
    let is_data = error.classify() == serde_json::error::Category::Data;
    let reason = match of_payload {
        _ if is_data && detail.starts_with(TOO_MANY) => Reason::ExpandsTooMuch,
        Some(_) => Reason::PayloadInvalid,
        None if is_data && detail.starts_with(DUPLICATE) => Reason::DuplicateField,
        None if is_data && detail.starts_with(MISSING) => Reason::MissingField,
        None if is_data => Reason::InvalidField,
        None => Reason::NotJson,
    };
    Reject::new(reason, of_payload.map_or_else(|| detail.clone(), |what| format!("{what}: {detail}")))
}

fn check<'a>(mut wire: WireEvent<'a>, bytes: usize, payload: Option<&'a [u8]>) -> Result<Event<'a>, Reject> {
    let mut event = envelope(&mut wire)?;
    let url = wire.records_url.as_deref().filter(|url| !url.is_empty());
    let asked = inline_records(wire.payload_type.as_deref(), wire.records, url, wire.operation.as_deref());
    let records = match (asked, payload) {
        (Err(Reject { reason: Reason::PayloadNotFetched, .. }), Some(payload)) => fetched_records(payload, &event)?,
        (asked, _) => asked?,
    };

    let unknown_operation = wire.operation.as_deref().is_some_and(|op| op != REPLACE && op != REMOVE);
    let unknown_type = wire
        .payload_type
        .as_deref()
        .is_some_and(|t| !t.eq_ignore_ascii_case("inline") && !t.eq_ignore_ascii_case("s3url"));
    let flags = Flags::default()
        .with(Flags::UNKNOWN_OPERATION, unknown_operation)
        .with(Flags::UNKNOWN_PAYLOAD_TYPE, unknown_type);
    event.extra = members(&wire.extra, None).map(Arc::from);
    let bytes = bytes + payload.map_or(0, <[u8]>::len);
    repeated(&event, records.len(), bytes)?;
    let Event { sync_count, last_modified_date, .. } = event;
    let shared = Shared { operation: wire.operation.as_deref(), sync_count, last_modified_date, flags };
    event.rows = if records.is_empty() {
        vec![row(0, WireRecord { op: wire.operation.clone(), ..Default::default() }, None, &shared)?]
    } else {
        rows_of(records, &shared)?
    };
    Ok(event)
}

/// Returns the event without its records and its unknown fields.
fn envelope<'a>(wire: &mut WireEvent<'a>) -> Result<Event<'a>, Reject> {
    let identity_pool_id = service_id("identityPoolId", wire.identity_pool_id.take())?;
    let identity_id = service_id("identityId", wire.identity_id.take())?;
    let dataset_name = match (wire.data_set_name.take(), wire.dataset_name.take()) {
        (Some(a), Some(b)) if a != b => {
            let detail = format!("dataSetName {} and datasetName {}", shown(&a), shown(&b));
            return Err(Reject::new(Reason::ConflictingDatasetName, detail));
        }
        (Some(name), _) | (None, Some(name)) if !name.is_empty() => name,
        _ => return Err(missing("dataSetName")),
    };
    no_longer("dataSetName", &dataset_name, NAME_BYTES_MAX)?;
    if let Some(operation) = &wire.operation {
        no_longer("operation", operation, OPERATION_BYTES_MAX)?;
    }
    let sync_count = wire.sync_count.map(|n| count(|| "syncCount".to_owned(), n)).transpose()?;
    let last_modified_date =
        wire.last_modified_date.map(|ms| server_date(|| "lastModifiedDate".to_owned(), ms)).transpose()?;
    let operation = wire.operation.clone();
    let (extra, rows) = (None, Vec::new());
    Ok(Event { identity_pool_id, identity_id, dataset_name, operation, sync_count, last_modified_date, extra, rows })
}

fn rows_of<'a>(records: Vec<WireRecord<'a>>, shared: &Shared<'_>) -> Result<Vec<Row<'a>>, Reject> {
    // Collected in place: a row is no larger than a wire record, so the rows reuse the memory of the wire records.
    let rows = records.into_iter().enumerate().map(|(index, mut record)| {
        // An event has at most `RECORDS_MAX` records.
        let index = index as i32;
        let key = record.key.take().ok_or_else(|| missing(&format!("kinesisSyncRecords[{index}].key")))?;
        if key.is_empty() {
            let detail = format!("kinesisSyncRecords[{index}].key has 0 characters");
            return Err(Reject::new(Reason::InvalidField, detail));
        }
        row(index, record, Some(key), shared)
    });
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    few_days(&rows)?;
    Ok(rows)
}

fn inline_records<'a>(
    payload_type: Option<&str>,
    records: Option<Vec<WireRecord<'a>>>,
    url: Option<&str>,
    operation: Option<&str>,
) -> Result<Vec<WireRecord<'a>>, Reject> {
    let contradiction = |detail: &str| Err(Reject::new(Reason::ContradictoryPayload, detail));
    let says = |name: &str| payload_type.is_some_and(|t| t.eq_ignore_ascii_case(name));
    let populated = records.as_ref().is_some_and(|r| !r.is_empty());
    match url {
        Some(_) if says("inline") => contradiction("payloadType Inline, and kinesisSyncRecordsURL is set"),
        Some(_) if populated => contradiction("kinesisSyncRecords and kinesisSyncRecordsURL are both populated"),
        Some(url) => Err(Reject::new(Reason::PayloadNotFetched, redact_url(url))),
        None if says("s3url") => contradiction("payloadType S3Url, and kinesisSyncRecordsURL is missing or empty"),
        None => match (records, operation) {
            (Some(records), _) => Ok(records),
            (None, Some(REPLACE)) => contradiction("operation replace, and neither records nor a URL"),
            (None, Some(_)) => Ok(Vec::new()),
            (None, None) => Err(missing("operation")),
        },
    }
}

/// Values that the rows of an event share.
struct Shared<'a> {
    operation: Option<&'a str>,
    sync_count: Option<i64>,
    last_modified_date: Option<i64>,
    flags: Flags,
}

fn row<'a>(
    index: i32,
    record: WireRecord<'a>,
    key: Option<Cow<'a, str>>,
    shared: &Shared<'_>,
) -> Result<Row<'a>, Reject> {
    let field = |name: &str| match key {
        Some(_) => format!("kinesisSyncRecords[{index}].{name}"),
        None => name.to_owned(),
    };
    let sync_count = match record.sync_count {
        Some(n) => count(|| field("syncCount"), n)?,
        None => shared.sync_count.ok_or_else(|| missing(&field("syncCount")))?,
    };
    let last_modified_date = match record.last_modified_date {
        Some(ms) => server_date(|| field("lastModifiedDate"), ms)?,
        None => shared.last_modified_date.ok_or_else(|| missing(&field("lastModifiedDate")))?,
    };
    let op = record.op.as_deref().or(shared.operation).ok_or_else(|| missing(&field("op")))?;
    for (name, text, max) in [
        ("key", key.as_deref(), KEY_BYTES_MAX),
        ("value", record.value.as_deref(), VALUE_BYTES_MAX),
        ("op", Some(op), OPERATION_BYTES_MAX),
    ] {
        if text.is_some_and(|text| text.len() > max) {
            no_longer(&field(name), text.unwrap_or_default(), max)?;
        }
    }
    let device = record.device_last_modified_date.map(|raw| (raw, device_date(raw)));
    let odd_device = device.and_then(|(raw, date)| date.is_none().then_some(raw));
    let unknown_op = key.is_some() && op != REPLACE && op != REMOVE;
    let flags =
        shared.flags.with(Flags::DEVICE_DATE_OUT_OF_RANGE, odd_device.is_some()).with(Flags::UNKNOWN_OP, unknown_op);
    Ok(Row {
        key,
        value: record.value,
        op: record.op,
        sync_count,
        last_modified_date,
        device_last_modified_date: device.and_then(|(_, date)| date),
        record_index: index,
        flags,
        extra: members(&record.extra, odd_device),
    })
}
