//! Why a record could not be decoded: a fixed list, which users filter by and dashboards count by.

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use regex::bytes::Regex;

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
}

impl Reason {
    /// All of them, for documentation and tests.
    pub const ALL: [Reason; 17] = [
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

impl Reject {
    /// A reject of that kind.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// For text of our own making: the query of every URL and every signing parameter becomes `REDACTED`.
pub fn redact(text: &str) -> String {
    let text = replace(&URL_QUERY, text.as_bytes(), b"$1?REDACTED");
    String::from_utf8_lossy(&redact_payload(&text)).into_owned()
}

/// For bytes that must otherwise stay as they are: the query of `kinesisSyncRecordsURL`, and signing parameters
/// wherever they stand. A presigned query is a credential; every other URL is data.
///
/// A secret may be hidden from a plain look: in UTF-16, or with its letters escaped (`\u0058-Amz-…`). Bytes in which one
/// is found only after undoing that are kept in the undone form, so that the secret can be cut.
pub fn redact_payload(bytes: &[u8]) -> Cow<'_, [u8]> {
    if let Some(text) = utf16(bytes) {
        let clean = redact_bytes(text.as_bytes());
        if clean != text.as_bytes() {
            return Cow::Owned(clean.into_owned());
        }
    }
    let clean = redact_bytes(bytes);
    if let Some(plain) = unescaped(&clean) {
        let cleaner = redact_bytes(&plain);
        if cleaner != plain {
            return Cow::Owned(cleaner.into_owned());
        }
    }
    clean
}

/// The text of bytes that look like UTF-16.
fn utf16(bytes: &[u8]) -> Option<String> {
    let nulls = |odd: usize| bytes.iter().skip(odd).step_by(2).filter(|b| **b == 0).count();
    let mostly = bytes.len() / 4;
    let unit: fn([u8; 2]) -> u16 = match (nulls(0), nulls(1)) {
        (_, little) if little > mostly => u16::from_le_bytes,
        (big, _) if big > mostly => u16::from_be_bytes,
        _ => return None,
    };
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    Some(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

/// The bytes with every escaped letter, digit, `-` and `=` (`\u0058`) written out; `None` when there is none.
pub(super) fn unescaped(bytes: &[u8]) -> Option<Vec<u8>> {
    // Asked of every record: without an escape nothing is copied.
    memchr::memmem::find(bytes, b"\\u00")?;
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    let mut found = false;
    while let Some(at) = memchr::memmem::find(rest, b"\\u00") {
        let digits = rest.get(at + 4..at + 6).and_then(|d| std::str::from_utf8(d).ok());
        let letter = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
        let letter = letter.filter(|l| l.is_ascii_alphanumeric() || matches!(l, b'-' | b'=' | b'?' | b'&' | b'%'));
        out.extend_from_slice(&rest[..at]);
        match letter {
            Some(letter) => {
                out.push(letter);
                rest = &rest[at + 6..];
                found = true;
            }
            None => {
                out.extend_from_slice(b"\\u00");
                rest = &rest[at + 4..];
            }
        }
    }
    out.extend_from_slice(rest);
    found.then_some(out)
}

fn redact_bytes(bytes: &[u8]) -> Cow<'_, [u8]> {
    match replace(&RECORDS_URL, bytes, b"$1?REDACTED") {
        Cow::Borrowed(same) => replace(&SIGNING_PARAMETER, same, b"REDACTED"),
        Cow::Owned(changed) => Cow::Owned(replace(&SIGNING_PARAMETER, &changed, b"REDACTED").into_owned()),
    }
}

type Pattern = LazyLock<Option<Regex>>;

// JSON may write `/` as `\/` and `=` as `\u003d`; both forms are met here, before anything is decoded.
static URL_QUERY: Pattern = LazyLock::new(|| Regex::new(r#"(?i-u)(https?:(?:\\?/){2}[^\s"?]*)\?[^\s"]*"#).ok());
static RECORDS_URL: Pattern = LazyLock::new(|| {
    Regex::new(r#"(?i-u)("kinesisSyncRecordsURL"\s*:\s*"[^"?%\\]*(?:(?:\\/|%[0-24-9a-f]|%3[0-9a-e]|\\u00(?:[0-24-9a-f].|3[0-9a-e]))[^"?%\\]*)*)(?:\?|%|\\)[^"]*"#).ok()
});
static SIGNING_PARAMETER: Pattern = LazyLock::new(|| {
    Regex::new(r#"(?i-u)(?:X-Amz-[a-z0-9-]+|AWSAccessKeyId|Signature)(?:=|\\+u003d|%(?:25)*3d)[^&\s"\\]*"#).ok()
});

fn replace<'a>(pattern: &Pattern, bytes: &'a [u8], with: &[u8]) -> Cow<'a, [u8]> {
    match pattern.as_ref() {
        Some(pattern) => pattern.replace_all(bytes, with),
        // Unreachable, as the tests compile every pattern; and if not, rather nothing than a secret.
        None => Cow::Borrowed(b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_urls_are_secrets() {
        for (text, clean) in [
            (r#"{"u":"https://b.s3/k?X-Amz-Signature=abc&x=1","n":1}"#, r#"{"u":"https://b.s3/k?REDACTED","n":1}"#),
            (r#"https:\/\/b\/k?X-Amz-Credential=AK"#, r#"https:\/\/b\/k?REDACTED"#),
            (r#"half of one: X-Amz-Signature\u003dsecret\u0026"#, r#"half of one: REDACTED\u0026"#),
            ("plain? yes", "plain? yes"),
            ("https://host/path", "https://host/path"),
        ] {
            assert_eq!(redact(text), clean);
        }
    }

    #[test]
    fn payloads_keep_all_but_the_secret() {
        for (text, clean) in [
            (
                r#"{"kinesisSyncRecordsURL" : "https://b/k?a=SECRET"}"#,
                r#"{"kinesisSyncRecordsURL" : "https://b/k?REDACTED"}"#,
            ),
            (
                r#"{"kinesisSyncRecordsURL":"https:\/\/b\/k\u003fx\u0058=SECRET","n":1}"#,
                r#"{"kinesisSyncRecordsURL":"https:\/\/b\/k?REDACTED","n":1}"#,
            ),
            (
                r#"{"Data":"{\\\"u\\\":\\\"k?X-Amz-Signature\\u003dSECRET\\\"}"}"#,
                r#"{"Data":"{\\\"u\\\":\\\"k?REDACTED\\\"}"}"#,
            ),
            (r#"{"value":"https://b/k?page=1"}"#, r#"{"value":"https://b/k?page=1"}"#),
            (r#"{"value":"\u0041 and \u00e4 stay"}"#, r#"{"value":"\u0041 and \u00e4 stay"}"#),
            (
                r#"{"\u006binesisSyncRecordsURL":"https://b/k?a=SECRET"}"#,
                r#"{"kinesisSyncRecordsURL":"https://b/k?REDACTED"}"#,
            ),
            (r#"{"u":"https://b/k?X-Amz-\u0053ignature=SECRET"}"#, r#"{"u":"https://b/k?REDACTED"}"#),
            (r#"torn https://b/k?X-Amz-Signature=SECRET&b=1"#, r#"torn https://b/k?REDACTED&b=1"#),
        ] {
            assert_eq!(redact_payload(text.as_bytes()), clean.as_bytes());
        }
        let hidden = r#"{"kinesisSyncRecordsURL":"https://b/k?a=SECRET"}"#;
        for unit in [u16::to_le_bytes, u16::to_be_bytes] {
            let wide: Vec<u8> = hidden.encode_utf16().flat_map(unit).collect();
            assert_eq!(&*redact_payload(&wide), br#"{"kinesisSyncRecordsURL":"https://b/k?REDACTED"}"#);
        }
    }
}
