//! Reasons for decode errors: a fixed list that users filter by and dashboards count by.

use std::fmt;

use crate::redact::redact;

/// The reason of a decode error, as in the column `reason` of the quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// No bytes, or only white space.
    Empty,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// Text that is not one JSON value.
    NotJson,
    /// JSON that is not an object.
    NotAnObject,
    /// A contract field that occurs twice.
    DuplicateField,
    /// A field with the wrong type or a value out of range.
    InvalidField,
    /// A required field that is missing or null.
    MissingField,
    /// `dataSetName` and `datasetName` that differ.
    ConflictingDatasetName,
    /// A pool or identity id that does not match the service's own pattern.
    InvalidId,
    /// `payloadType` contradicts the fields that are populated.
    ContradictoryPayload,
    /// Contents behind a URL that was not fetched.
    PayloadNotFetched,
    /// A URL that may not be fetched: another scheme, another host, a private address, a redirect.
    PayloadRefused,
    /// A URL with nothing behind it any more (403, 404, …).
    PayloadGone,
    /// Contents that are larger than the limit, or decompress to more.
    PayloadTooLarge,
    /// A URL behind which there are no contents of an event.
    PayloadInvalid,
    /// Contents that could not be fetched within the retry time.
    PayloadUnavailable,
    /// A record that is longer than this program holds in memory.
    TooLong,
    /// A record that would expand far beyond its bytes: too many records or days, or a long text of the event in too
    /// many rows.
    ExpandsTooMuch,
}

impl Reason {
    /// All reasons, for documentation and tests.
    pub const ALL: [Reason; 18] = [
        Self::Empty,
        Self::NotUtf8,
        Self::NotJson,
        Self::NotAnObject,
        Self::DuplicateField,
        Self::InvalidField,
        Self::MissingField,
        Self::ConflictingDatasetName,
        Self::InvalidId,
        Self::ContradictoryPayload,
        Self::PayloadNotFetched,
        Self::PayloadRefused,
        Self::PayloadGone,
        Self::PayloadTooLarge,
        Self::PayloadInvalid,
        Self::PayloadUnavailable,
        Self::TooLong,
        Self::ExpandsTooMuch,
    ];

    /// Returns the reason with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Returns the value in the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::NotAnObject => "not_an_object",
            Self::DuplicateField => "duplicate_field",
            Self::InvalidField => "invalid_field",
            Self::MissingField => "missing_field",
            Self::ConflictingDatasetName => "conflicting_dataset_name",
            Self::InvalidId => "invalid_id",
            Self::ContradictoryPayload => "contradictory_payload",
            Self::PayloadNotFetched => "payload_not_fetched",
            Self::PayloadRefused => "payload_refused",
            Self::PayloadGone => "payload_gone",
            Self::PayloadTooLarge => "payload_too_large",
            Self::PayloadInvalid => "payload_invalid",
            Self::PayloadUnavailable => "payload_unavailable",
            Self::TooLong => "too_long",
            Self::ExpandsTooMuch => "expands_too_much",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A decode error: the reason, and what exactly was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Kind of error.
    pub reason: Reason,
    /// One line for a human; never contains a secret.
    pub detail: String,
}

/// Longest detail, in bytes.
const DETAIL_BYTES_MAX: usize = 512;

impl Reject {
    /// Creates a decode error. Shortens the detail and redacts its secrets, so callers need not.
    pub fn new(reason: Reason, detail: impl AsRef<str>) -> Self {
        let detail = detail.as_ref();
        // Shortening comes first: then a long quote of a parser costs nothing, and every secret that remains still has
        // the name by which it is found.
        let short = &detail[..detail.floor_char_boundary(DETAIL_BYTES_MAX)];
        let end = if short.len() < detail.len() { "…" } else { "" };
        Self { reason, detail: redact(short) + end }
    }
}

/// Returns a text of a record as a detail shows it: its beginning, in quotes.
pub(super) fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    if short.len() < text.len() { format!("{short:?}… ({} bytes)", text.len()) } else { format!("{short:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_short_and_hold_no_secret() {
        let long = format!("{:?} and X-Amz-Signature=SECRET{}", "é".repeat(200), "x".repeat(10_000));
        let detail = Reject::new(Reason::InvalidField, long).detail;
        assert!(detail.len() < DETAIL_BYTES_MAX + 4 && detail.ends_with("and REDACTED…"), "{detail}");
        assert_eq!(Reason::ALL.map(|reason| Reason::parse(reason.as_str())), Reason::ALL.map(Some));
    }
}
