//! From the wire form to rows: the checks, and what each reading of the contract means.
//!
//! | `payloadType` | records | URL | becomes |
//! |---|---|---|---|
//! | Inline or absent | one or more | none | a row each |
//! | Inline or absent | `[]` | none | one row with a null key: a dataset tombstone for `remove`, else a marker |
//! | Inline or absent | null or absent | none | `remove`: a dataset tombstone; unknown operation: a marker; else contradictory |
//! | S3Url or absent | none or `[]` | yes | payload_not_fetched |
//! | anything else | | | contradictory |

use std::borrow::Cow;

use chrono::{DateTime, NaiveDate};
use serde::de::IgnoredAny;

use super::event::{DUPLICATE, Extra, WireEvent, WireRecord};
use super::reject::{self, Reason, Reject, redact, redact_payload};

/// The value of `op` and `operation` that removes.
pub const REMOVE: &str = "remove";
/// The value of `op` and `operation` that sets.
pub const REPLACE: &str = "replace";

/// 9999-12-31T23:59:59.999Z, the last instant that every reader of the lake can show.
const MS_MAX: i64 = 253_402_300_799_999;
/// 0001-01-01T00:00:00Z.
const MS_MIN: i64 = -62_135_596_800_000;

/// A decoded event; all text borrows from the record where it can.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a> {
    /// `us-east-1:…`, checked.
    pub identity_pool_id: Cow<'a, str>,
    /// `us-east-1:…`, checked.
    pub identity_id: Cow<'a, str>,
    /// Any text but the empty one; it names nothing on disk.
    pub dataset_name: Cow<'a, str>,
    /// As it came.
    pub operation: Option<Cow<'a, str>>,
    /// The event's own count.
    pub sync_count: Option<i64>,
    /// The event's own date, µs since the epoch.
    pub last_modified_date: Option<i64>,
    /// At least one.
    pub rows: Vec<Row<'a>>,
}

/// One change of one key, or (null key) of the dataset as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<'a> {
    /// Null for a tombstone or marker of the dataset.
    pub key: Option<Cow<'a, str>>,
    /// `""` and null are two things.
    pub value: Option<Cow<'a, str>>,
    /// As it came; the event's operation where the record has none.
    pub op: Option<Cow<'a, str>>,
    /// Own count, else the event's.
    pub sync_count: i64,
    /// Server date in µs since the epoch: own, else the event's.
    pub last_modified_date: i64,
    /// Client date in µs since the epoch; null if absent or not representable (then its text is in `extra`).
    pub device_last_modified_date: Option<i64>,
    /// Position in the event.
    pub record_index: i32,
    /// Unknown fields and flags, as a JSON object.
    pub extra: Option<String>,
}

impl Event<'_> {
    /// The UTC days of its rows' server dates, each once: the partitions that it belongs to.
    pub fn dates(&self) -> Vec<NaiveDate> {
        let mut dates: Vec<NaiveDate> = self.rows.iter().map(Row::event_date).collect();
        dates.sort_unstable();
        dates.dedup();
        dates
    }
}

impl Row<'_> {
    /// The UTC day of the server date.
    pub fn event_date(&self) -> NaiveDate {
        DateTime::from_timestamp_micros(self.last_modified_date).unwrap_or_default().date_naive()
    }
}

/// Decodes one record.
///
/// # Errors
/// A [`Reject`] for everything that does not become at least one row. Never panics, whatever the bytes.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, Reject> {
    decode_with(bytes, None)
}

/// As [`decode`], with what was found behind the event's URL.
///
/// # Errors
/// As [`decode`].
pub fn decode_with<'a>(bytes: &'a [u8], payload: Option<&'a [u8]>) -> Result<Event<'a>, Reject> {
    check(wire_event(bytes)?, payload)
}

/// The end of the field's name, with its quote.
const URL_FIELD: &[u8] = b"kinesisSyncRecordsURL\"";

/// The URL behind which an event's contents lie; `None` for every record that is complete, or no event at all.
pub fn payload_url(bytes: &[u8]) -> Option<String> {
    // Most records are told by a look: the field is not there, under no spelling, or null.
    let named = memchr::memmem::find(bytes, URL_FIELD);
    let hidden = || reject::unescaped(bytes).is_some_and(|plain| memchr::memmem::find(&plain, URL_FIELD).is_some());
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
    serde_json::from_str(trimmed).map_err(|e| reject_of(&e))
}

/// The records behind an event's URL: a bare array of them, or the whole event again.
fn fetched_records<'a>(payload: &'a [u8], envelope: &Event<'_>) -> Result<Vec<WireRecord<'a>>, Reject> {
    let invalid = |what: String| Reject::new(Reason::PayloadInvalid, redact(&format!("what its URL holds {what}")));
    let text = std::str::from_utf8(payload).map_err(|_| invalid("is not UTF-8".to_owned()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|e| invalid(format!("are no records: {e}")));
    }
    let wire: WireEvent<'_> = serde_json::from_str(text).map_err(|e| invalid(format!("is no event: {e}")))?;
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

fn reject_of(error: &serde_json::Error) -> Reject {
    let detail = redact(&error.to_string());
    let reason = match error.classify() {
        serde_json::error::Category::Data if detail.starts_with(DUPLICATE) => Reason::DuplicateField,
        serde_json::error::Category::Data => Reason::InvalidField,
        _ => Reason::NotJson,
    };
    Reject::new(reason, detail)
}

fn check<'a>(wire: WireEvent<'a>, payload: Option<&'a [u8]>) -> Result<Event<'a>, Reject> {
    let identity_pool_id = service_id("identityPoolId", wire.identity_pool_id)?;
    let identity_id = service_id("identityId", wire.identity_id)?;
    let dataset_name = match (wire.data_set_name, wire.dataset_name) {
        (Some(a), Some(b)) if a != b => {
            let detail = format!("dataSetName {a:?} and datasetName {b:?}");
            return Err(Reject::new(Reason::ConflictingDatasetName, detail));
        }
        (Some(name), _) | (None, Some(name)) if !name.is_empty() => name,
        _ => return Err(missing("dataSetName")),
    };
    let sync_count = wire.sync_count.map(|n| count("syncCount", n)).transpose()?;
    let last_modified_date = wire.last_modified_date.map(|ms| server_date("lastModifiedDate", ms)).transpose()?;
    let url = wire.records_url.as_deref().filter(|url| !url.is_empty());
    let mut event = Event {
        identity_pool_id,
        identity_id,
        dataset_name,
        operation: wire.operation.clone(),
        sync_count,
        last_modified_date,
        rows: Vec::new(),
    };
    let asked = inline_records(wire.payload_type.as_deref(), wire.records, url, wire.operation.as_deref());
    let records = match (asked, payload) {
        (Err(Reject { reason: Reason::PayloadNotFetched, .. }), Some(payload)) => fetched_records(payload, &event)?,
        (asked, _) => asked?,
    };

    let mut flags = Vec::new();
    if wire.operation.as_deref().is_some_and(|op| op != REPLACE && op != REMOVE) {
        flags.push("unknown_operation");
    }
    let unknown_type = wire
        .payload_type
        .as_deref()
        .is_some_and(|t| !t.eq_ignore_ascii_case("inline") && !t.eq_ignore_ascii_case("s3url"));
    if unknown_type {
        flags.push("unknown_payload_type");
    }
    let shared = Shared { operation: wire.operation.clone(), sync_count, last_modified_date, extra: wire.extra, flags };
    let rows = if records.is_empty() {
        vec![row(0, WireRecord { op: shared.operation.clone(), ..Default::default() }, None, &shared)?]
    } else {
        let numbered = (0..).zip(records);
        numbered
            .map(|(index, mut record)| {
                let key = record.key.take().ok_or_else(|| missing(&format!("kinesisSyncRecords[{index}].key")))?;
                if key.is_empty() {
                    let detail = format!("kinesisSyncRecords[{index}].key has 0 characters");
                    return Err(Reject::new(Reason::InvalidField, detail));
                }
                row(index, record, Some(key), &shared)
            })
            .collect::<Result<Vec<_>, _>>()?
    };
    event.rows = rows;
    Ok(event)
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
        Some(url) => Err(Reject::new(Reason::PayloadNotFetched, redact(url))),
        None if says("s3url") => contradiction("payloadType S3Url, and kinesisSyncRecordsURL is missing or empty"),
        None => match (records, operation) {
            (Some(records), _) => Ok(records),
            (None, Some(REPLACE)) => contradiction("operation replace, and neither records nor a URL"),
            (None, Some(_)) => Ok(Vec::new()),
            (None, None) => Err(missing("operation")),
        },
    }
}

/// What the rows of an event have in common.
struct Shared<'a> {
    operation: Option<Cow<'a, str>>,
    sync_count: Option<i64>,
    last_modified_date: Option<i64>,
    extra: Extra<'a>,
    flags: Vec<&'static str>,
}

fn row<'a>(
    index: i32,
    record: WireRecord<'a>,
    key: Option<Cow<'a, str>>,
    shared: &Shared<'a>,
) -> Result<Row<'a>, Reject> {
    let field = |name: &str| match key {
        Some(_) => format!("kinesisSyncRecords[{index}].{name}"),
        None => name.to_owned(),
    };
    let sync_count = match record.sync_count {
        Some(n) => count(&field("syncCount"), n)?,
        None => shared.sync_count.ok_or_else(|| missing(&field("syncCount")))?,
    };
    let last_modified_date = match record.last_modified_date {
        Some(ms) => server_date(&field("lastModifiedDate"), ms)?,
        None => shared.last_modified_date.ok_or_else(|| missing(&field("lastModifiedDate")))?,
    };
    let op = record.op.or_else(|| shared.operation.clone()).ok_or_else(|| missing(&field("op")))?;
    let device = record.device_last_modified_date.map(|raw| (raw, device_date(raw.get())));
    let odd_device = device.and_then(|(raw, date)| date.is_none().then_some(raw.get()));
    let unknown_op = key.is_some() && op != REPLACE && op != REMOVE;
    let extra = extra_json(&record.extra, odd_device, unknown_op, shared);
    Ok(Row {
        key,
        value: record.value,
        op: Some(op),
        sync_count,
        last_modified_date,
        device_last_modified_date: device.and_then(|(_, date)| date),
        record_index: index,
        extra,
    })
}

/// `{"record":{…},"event":{…},"flags":[…]}` with only the parts that hold something.
fn extra_json(record: &Extra<'_>, odd_device: Option<&str>, unknown_op: bool, shared: &Shared<'_>) -> Option<String> {
    let mut parts = Vec::new();
    let field = |name: &str, raw: &str| format!("{}:{raw}", serde_json::Value::from(name));
    let mut fields: Vec<String> = record.iter().map(|(name, raw)| field(name, raw.get())).collect();
    let mut flags: Vec<&str> = shared.flags.clone();
    if let Some(raw) = odd_device {
        fields.push(field("deviceLastModifiedDate", raw));
        flags.push("device_date_out_of_range");
    }
    if unknown_op {
        flags.push("unknown_op");
    }
    if !fields.is_empty() {
        parts.push(format!("\"record\":{{{}}}", fields.join(",")));
    }
    if !shared.extra.is_empty() {
        let fields: Vec<String> = shared.extra.iter().map(|(name, raw)| field(name, raw.get())).collect();
        parts.push(format!("\"event\":{{{}}}", fields.join(",")));
    }
    if !flags.is_empty() {
        parts.push(format!("\"flags\":[\"{}\"]", flags.join("\",\"")));
    }
    (!parts.is_empty()).then(|| {
        let json = format!("{{{}}}", parts.join(","));
        String::from_utf8_lossy(&redact_payload(json.as_bytes())).into_owned()
    })
}

fn missing(field: &str) -> Reject {
    Reject::new(Reason::MissingField, format!("{field} is missing or null"))
}

/// `[\w-]+:[0-9a-f-]+`, at most 55 characters: the service's own pattern, which also keeps `/`, `=`, `%` and `.` out of
/// the folder names that a pool id becomes.
fn service_id<'a>(field: &str, id: Option<Cow<'a, str>>) -> Result<Cow<'a, str>, Reject> {
    let id = id.ok_or_else(|| missing(field))?;
    let well_formed = id.len() <= 55
        && id.split_once(':').is_some_and(|(region, guid)| {
            let region_ok = region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            let guid_ok = guid.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b) || b == b'-');
            !region.is_empty() && !guid.is_empty() && region_ok && guid_ok
        });
    if !well_formed {
        let shown: String = id.chars().take(80).collect();
        let detail = format!("{field} {shown:?} is not [\\w-]+:[0-9a-f-]+ of at most 55 characters");
        return Err(Reject::new(Reason::InvalidId, redact(&detail)));
    }
    Ok(id)
}

fn count(field: &str, n: i64) -> Result<i64, Reject> {
    if n < 0 {
        return Err(Reject::new(Reason::InvalidField, format!("{field} {n} is negative")));
    }
    Ok(n)
}

fn server_date(field: &str, ms: i64) -> Result<i64, Reject> {
    if !(0..=MS_MAX).contains(&ms) {
        return Err(Reject::new(Reason::InvalidField, format!("{field} {ms} is not between 1970 and 9999")));
    }
    Ok(ms * 1_000)
}

fn device_date(raw: &str) -> Option<i64> {
    let ms: i64 = raw.parse().ok()?;
    (MS_MIN..=MS_MAX).contains(&ms).then(|| ms * 1_000)
}
