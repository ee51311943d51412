//! Names of shards and positions, and where reading of a shard begins.

use std::fmt;
use std::sync::Arc;

/// A non-negative decimal integer of at most 72 digits: a Kinesis sequence number, or a position of a file.
///
/// Sequence numbers are larger than every machine integer (56 digits today), so they stay text and compare as integers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SequenceNumber(Arc<str>);

impl SequenceNumber {
    /// Maximum digits of a sequence number that a checkpoint can hold.
    pub const DIGITS_MAX: usize = 72;

    /// Parses digits without leading zeros; returns `None` for anything else, or for more than [`Self::DIGITS_MAX`]
    /// digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.len() <= Self::DIGITS_MAX && text.bytes().all(|b| b.is_ascii_digit());
        (digits && (text == "0" || !text.starts_with('0'))).then(|| Self(text.into()))
    }

    /// Converts a machine integer.
    pub fn from_u64(value: u64) -> Self {
        Self(value.to_string().into())
    }

    /// Returns the position past every record of a shard: the shard was read to its end, and all of it is committed.
    pub fn shard_end() -> Self {
        Self("9".repeat(Self::DIGITS_MAX).into())
    }

    /// Returns whether this is [`Self::shard_end`].
    pub fn is_shard_end(&self) -> bool {
        self.0.len() == Self::DIGITS_MAX && self.0.bytes().all(|b| b == b'9')
    }

    /// Returns whether a shard with this position was read to its end.
    pub fn is_end_of(position: &Option<Self>) -> bool {
        position.as_ref().is_some_and(Self::is_shard_end)
    }

    /// Returns the number before this one; `None` for zero.
    pub fn before(&self) -> Option<Self> {
        let mut digits = self.0.as_bytes().to_vec();
        for digit in digits.iter_mut().rev() {
            if *digit == b'0' {
                *digit = b'9';
            } else {
                *digit -= 1;
                let text = String::from_utf8(digits).ok()?;
                let text = text.trim_start_matches('0');
                return Self::parse(if text.is_empty() { "0" } else { text });
            }
        }
        None
    }

    /// Returns the number after this one; `None` if it would be too long.
    pub fn next(&self) -> Option<Self> {
        let mut digits = self.0.as_bytes().to_vec();
        for digit in digits.iter_mut().rev() {
            if *digit == b'9' {
                *digit = b'0';
            } else {
                *digit += 1;
                return Self::parse(&String::from_utf8(digits).ok()?);
            }
        }
        Self::parse(&format!("1{}", String::from_utf8(digits).ok()?))
    }

    /// Returns the digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A shard of a stream, under names that are safe inside a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardKey {
    stream: Arc<str>,
    shard: Arc<str>,
}

/// The name that all files have in place of a stream.
pub const FILES: &str = "file";

impl ShardKey {
    /// Creates a key. Both names must be 1 to 128 of `[a-zA-Z0-9_.-]`, and the shard must have no `.`; otherwise
    /// returns `None`.
    pub fn new(stream: &str, shard: &str) -> Option<Self> {
        let plain = |s: &str| {
            (1..=128).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        (plain(stream) && plain(shard) && !shard.contains('.'))
            .then(|| Self { stream: stream.into(), shard: shard.into() })
    }

    /// Returns the name of the stream; `file` for files.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Returns the id of the shard inside its stream.
    pub fn shard(&self) -> &str {
        &self.shard
    }

    /// Returns what the rows came from: the name of the stream, or the id of the file.
    pub fn source(&self) -> &str {
        if &*self.stream == FILES { &self.shard } else { &self.stream }
    }
}

impl fmt::Display for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stream, self.shard)
    }
}

/// Returns the creation time of the incarnation of `stream` that is called `name` in the lake, in milliseconds since
/// the epoch. The first incarnation has the stream's own name and the time 0. Returns `None` for the name of another
/// stream.
pub fn incarnation_of(stream: &str, name: &str) -> Option<i64> {
    match name.strip_prefix(stream)?.strip_prefix('.') {
        // Times have 13 digits until the year 2286, which is after every creation time of a stream.
        Some(ms) if ms.len() == 13 && ms.bytes().all(|b| b.is_ascii_digit()) => ms.parse().ok(),
        Some(_) => None,
        None => (name == stream).then_some(0),
    }
}

/// Where to begin a shard that has no position yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// The oldest record that the stream still holds.
    TrimHorizon,
    /// The first record at or after this time, in milliseconds since the epoch.
    Timestamp(i64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_compare_as_integers() {
        let n = |s| SequenceNumber::parse(s).unwrap();
        assert!(n("9") < n("10"));
        assert!(n("49590338271490256608559692538361571095921575989136588898") > n("4"));
        assert!(n("49590338271490256608559692538361571095921575989136588898") < SequenceNumber::shard_end());
        for bad in ["", "01", "-1", "1.5", "a", &"9".repeat(73)] {
            assert_eq!(SequenceNumber::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_number_before() {
        let before = |s: &str| SequenceNumber::parse(s).unwrap().before().map(|n| n.to_string());
        assert_eq!(before("0"), None);
        assert_eq!(before("1").as_deref(), Some("0"));
        assert_eq!(before("1000").as_deref(), Some("999"));
        assert_eq!(before("4960").as_deref(), Some("4959"));
        let next = |s: &str| SequenceNumber::parse(s).unwrap().next().map(|n| n.to_string());
        assert_eq!(
            (next("0").as_deref(), next("4959").as_deref(), next("999").as_deref()),
            (Some("1"), Some("4960"), Some("1000"))
        );
        assert_eq!(next(&"9".repeat(72)), None);
    }

    #[test]
    fn incarnations_have_names() {
        assert_eq!(incarnation_of("s", "s"), Some(0));
        assert_eq!(incarnation_of("s", "s.1767225600123"), Some(1_767_225_600_123));
        assert_eq!(incarnation_of("s", "s.0000000002000"), Some(2_000));
        for other in ["t", "s.1", "s.x", "st", "s2.1767225600123", "s.1767225600123.1767225600123"] {
            assert_eq!(incarnation_of("s", other), None, "{other}");
        }
    }

    #[test]
    fn shard_keys_are_safe_in_file_names() {
        assert!(ShardKey::new("s", "../x").is_none());
        assert!(ShardKey::new("s/t", "x").is_none());
        assert!(ShardKey::new("s", "a.b").is_none());
        assert!(ShardKey::new("", "a").is_none());
        assert_eq!(ShardKey::new("s.1", "a").unwrap().to_string(), "s.1.a");
    }
}
