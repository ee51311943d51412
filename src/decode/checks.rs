//! Checks of single values of an event, and limits of what its rows cost.

use std::borrow::Cow;
use std::collections::HashSet;

use super::reject::{Reason, Reject, shown};
use super::rows::{Event, Row};

/// 9999-12-31T23:59:59.999Z, the last instant that every reader of the lake can show.
const MS_MAX: i64 = 253_402_300_799_999;
/// 0001-01-01T00:00:00Z.
const MS_MIN: i64 = -62_135_596_800_000;
/// 2200-01-01T00:00:00Z: no server's clock is that wrong, and every reader can show this time in nanoseconds.
const SERVER_MS_END: i64 = 7_258_118_400_000;

/// Longest dataset name, in bytes. The service's limit is 128 characters, and 184 after a merge of identities.
pub(super) const NAME_BYTES_MAX: usize = 1 << 10;
/// Longest `operation` or `op`, in bytes. The service writes `replace` and `remove`.
pub(super) const OPERATION_BYTES_MAX: usize = 1 << 10;
/// Longest key, in bytes. The service's limit is 1,024 characters.
pub(super) const KEY_BYTES_MAX: usize = 64 << 10;
/// Longest value, in bytes. The service's limit is 1,048,575 characters.
pub(super) const VALUE_BYTES_MAX: usize = 16 << 20;
/// Most UTC days that the rows of one event may span, because each day becomes a file: twice the records that the
/// service allows in a dataset.
const DAYS_MAX: usize = 2_048;
/// The texts of an event, repeated in all its rows, may have this many times the bytes of the record,
const REPEATED_FACTOR: usize = 16;
/// plus this many bytes.
const REPEATED_BYTES: usize = 64 << 10;

/// Rejects an event whose own texts, repeated in its rows, would outgrow the record.
///
/// In the table, each row repeats from its event the dataset name, the operation, `op` if it has none of its own, and
/// the unknown fields. A name of 128 characters still fits rows of 12 bytes, the shortest possible.
pub(super) fn repeated(event: &Event<'_>, rows: usize, bytes: usize) -> Result<(), Reject> {
    let operation = event.operation.as_deref().map_or(0, str::len);
    let text = event.dataset_name.len() + 2 * operation + event.extra.as_deref().map_or(0, str::len);
    let limit = REPEATED_FACTOR * bytes + REPEATED_BYTES;
    if rows * text > limit {
        let detail =
            format!("{text} bytes of its event would stand in each of {rows} rows, together more than {limit}");
        return Err(Reject::new(Reason::ExpandsTooMuch, detail));
    }
    Ok(())
}

/// Rejects an event whose rows lie in too many days.
pub(super) fn few_days(rows: &[Row<'_>]) -> Result<(), Reject> {
    // With fewer rows than `DAYS_MAX` there cannot be more days.
    if rows.len() > DAYS_MAX {
        let days = rows.iter().map(Row::day).collect::<HashSet<_>>().len();
        if days > DAYS_MAX {
            let detail = format!("its rows lie in {days} days, more than {DAYS_MAX}");
            return Err(Reject::new(Reason::ExpandsTooMuch, detail));
        }
    }
    Ok(())
}

/// Rejects a text of more than `max` bytes.
pub(super) fn no_longer(field: &str, text: &str, max: usize) -> Result<(), Reject> {
    if text.len() > max {
        let detail = format!("{field} has {} bytes, more than {max}", text.len());
        return Err(Reject::new(Reason::InvalidField, detail));
    }
    Ok(())
}

/// Returns the error for a required field that is missing or null.
pub(super) fn missing(field: &str) -> Reject {
    Reject::new(Reason::MissingField, format!("{field} is missing or null"))
}

/// Class of the bytes of a region.
const REGION: u8 = 1;
/// Class of the bytes of a GUID.
const GUID: u8 = 2;
/// Classes of each byte; those beyond ASCII have none.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0u8;
    while byte < 128 {
        let is_region = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let is_guid = byte.is_ascii_digit() || (b'a' <= byte && byte <= b'f') || byte == b'-';
        classes[byte as usize] = if is_region { REGION } else { 0 } | if is_guid { GUID } else { 0 };
        byte += 1;
    }
    classes
};

/// Checks `[\w-]+:[0-9a-f-]+` of at most 55 characters: the service's own pattern, which also keeps `/`, `=`, `%` and
/// `.` out of the folder names made from pool ids.
pub(super) fn service_id<'a>(field: &str, id: Option<Cow<'a, str>>) -> Result<Cow<'a, str>, Reject> {
    let id = id.ok_or_else(|| missing(field))?;
    let well_formed = id.len() <= 55
        && id.split_once(':').is_some_and(|(region, guid)| {
            let all = |text: &str, class: u8| {
                !text.is_empty() && text.bytes().fold(class, |all, byte| all & CLASSES[usize::from(byte)]) != 0
            };
            all(region, REGION) && all(guid, GUID)
        });
    if !well_formed {
        let detail = format!("{field} {} is not [\\w-]+:[0-9a-f-]+ of at most 55 characters", shown(&id));
        return Err(Reject::new(Reason::InvalidId, detail));
    }
    Ok(id)
}

/// Rejects a negative count.
pub(super) fn count(field: impl Fn() -> String, n: i64) -> Result<i64, Reject> {
    if n < 0 {
        let field = field();
        return Err(Reject::new(Reason::InvalidField, format!("{field} {n} is negative")));
    }
    Ok(n)
}

/// Converts a date of the server to µs since the epoch. Rejects a date that no server's clock shows.
pub(super) fn server_date(field: impl Fn() -> String, ms: i64) -> Result<i64, Reject> {
    if !(0..SERVER_MS_END).contains(&ms) {
        let field = field();
        return Err(Reject::new(Reason::InvalidField, format!("{field} {ms} is not between 1970 and 2200")));
    }
    Ok(ms * 1_000)
}

/// Converts a date of a client to µs since the epoch. Returns `None` if it is not representable.
pub(super) fn device_date(raw: &str) -> Option<i64> {
    let ms: i64 = raw.parse().ok()?;
    (MS_MIN..=MS_MAX).contains(&ms).then(|| ms * 1_000)
}
