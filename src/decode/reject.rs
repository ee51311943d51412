//! Why a record could not be decoded: a fixed list, which users filter by and dashboards count by.

use std::fmt;

use crate::redact::redact;

/// The reason in the quarantine's column of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// No bytes, or white space only.
    Empty,
    /// The bytes are not UTF-8.
    NotUtf8,
    /// The text is not one JSON value.
    NotJson,
    /// It is JSON, and not an object.
    NotAnObject,
    /// A field of the contract is there twice.
    DuplicateField,
    /// A field has another type or a value out of range.
    InvalidField,
    /// A field that the row cannot do without is missing or null.
    MissingField,
    /// `dataSetName` and `datasetName` differ.
    ConflictingDatasetName,
    /// A pool or identity id does not match the service's own pattern.
    InvalidId,
    /// `payloadType` and what is populated contradict each other.
    ContradictoryPayload,
    /// The contents lie behind a URL that was not fetched.
    PayloadNotFetched,
    /// The URL may not be fetched: another scheme, another host, an inner address, a redirect.
    PayloadRefused,
    /// Nothing is behind the URL any more (403, 404, …).
    PayloadGone,
    /// The contents are larger than the limit, or unpack to more.
    PayloadTooLarge,
    /// What is behind the URL are not an event's contents.
    PayloadInvalid,
    /// The contents could not be fetched for as long as it was tried.
    PayloadUnavailable,
    /// The record is longer than this program holds in memory.
    TooLong,
    /// It would become far more than its bytes: too many records or days, or a long text of the event in too many rows.
    ExpandsTooMuch,
}

impl Reason {
    /// All of them, for documentation and tests.
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

    /// The reason of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// The value in the column.
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

/// A reason, and what exactly was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Which kind.
    pub reason: Reason,
    /// One line for a human; never holds a secret.
    pub detail: String,
}

/// Longest detail, in bytes.
const DETAIL_BYTES_MAX: usize = 512;

impl Reject {
    /// A reject of that kind. The detail is shortened, and cleared of secrets: nobody else needs to.
    pub fn new(reason: Reason, detail: impl AsRef<str>) -> Self {
        let detail = detail.as_ref();
        // Shortened first: then what a parser quotes of a record costs nothing, and no secret loses what it is known by.
        let short = &detail[..detail.floor_char_boundary(DETAIL_BYTES_MAX)];
        let end = if short.len() < detail.len() { "…" } else { "" };
        Self { reason, detail: redact(short) + end }
    }
}

/// A text of a record as a detail shows it: its beginning, in quotes.
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
