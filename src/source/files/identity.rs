//! The name of a file's shard, and the format of a position: an offset together with a digest.

use sha2::{Digest as _, Sha256};

use super::shape::{Value, first_value};
use crate::ids::{SequenceNumber, ShardKey};
use crate::source::SourceError;

/// Stream name of every file.
pub use crate::ids::FILES as STREAM;
const DIGEST_DIGITS: usize = 54;
/// White space that a first line may have gained since it was read without a line break, in bytes.
const GROWN_BYTES_MAX: usize = 16;

/// Digest of the bytes at the beginning of a file.
///
/// Positions hold BLAKE3, which is several times faster than the SHA-256 that positions of older lakes hold. Both are
/// computed while a file is opened, so that a file of an older lake continues where it was.
#[derive(Clone)]
pub(super) struct Digest {
    hasher: Box<blake3::Hasher>,
    older: Option<Sha256>,
}

impl Digest {
    /// Returns the digest of no bytes.
    pub(super) fn new() -> Self {
        Self { hasher: Box::default(), older: Some(Sha256::new()) }
    }

    /// Returns the digest of no bytes, of the same kinds.
    pub(super) fn fresh(&self) -> Self {
        Self { hasher: Box::default(), older: self.older.as_ref().map(|_| Sha256::new()) }
    }

    /// Adds bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if let Some(older) = &mut self.older {
            older.update(bytes);
        }
    }

    /// Computes BLAKE3 alone from now on.
    pub(super) fn forget_older(&mut self) {
        self.older = None;
    }

    /// Returns whether both are digests of the same bytes.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.hasher.finalize() == other.hasher.finalize()
    }
}

/// A shard of the lake whose file began with the same first line.
pub(super) struct KnownFile {
    pub(super) shard: ShardKey,
    pub(super) position: SequenceNumber,
    pub(super) offset: u64,
    digest: String,
}

impl KnownFile {
    /// Returns the file of a shard, at the position that the lake has of it.
    pub(super) fn new(shard: ShardKey, position: SequenceNumber) -> Self {
        let (offset, digest) = split_position(&position);
        Self { shard, position, offset, digest }
    }

    /// Returns whether the file that was read up to here is this file.
    pub(super) fn is_at(&self, read: &Digest) -> bool {
        let older = read.older.as_ref().map(|older| digits(&older.clone().finalize()));
        self.digest == digits(read.hasher.finalize().as_bytes()) || older.as_ref() == Some(&self.digest)
    }
}

/// Returns the shards whose files began with this first line, and a free shard key.
pub(super) fn known(
    first_line: &[u8],
    committed: impl Fn(&ShardKey) -> Option<SequenceNumber>,
) -> Result<(Vec<KnownFile>, ShardKey), SourceError> {
    let mut found = Vec::new();
    let mut free = None;
    for name in names(first_line) {
        for attempt in 0.. {
            let shard = shard_key(&name, attempt)?;
            let Some(position) = committed(&shard) else {
                // The first name is the name of the line as it is now.
                free.get_or_insert(shard);
                break;
            };
            found.push(KnownFile::new(shard, position));
        }
    }
    let free = free.ok_or_else(|| SourceError::Invalid("no name is free for the shard of a file".to_owned()))?;
    Ok((found, free))
}

/// Returns the names under which the lake may hold a file with this first line. These are the name of the line, and the
/// names that it had while it was still without a line break. A line without a line break is read only if it is a whole
/// object. So it was that object then, with some or none of the white space behind it.
fn names(first_line: &[u8]) -> Vec<String> {
    let mut names = vec![shard_name(first_line)];
    if let Value::Whole(end) = first_value(first_line) {
        let grown =
            first_line[end..].iter().take(GROWN_BYTES_MAX).take_while(|byte| byte.is_ascii_whitespace()).count();
        for length in (end..=end + grown).filter(|length| *length < first_line.len()) {
            let name = shard_name(&first_line[..length]);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

fn shard_name(first_line: &[u8]) -> String {
    let digest = Sha256::digest(first_line);
    digest.iter().take(8).fold(String::from("file-"), |name, byte| format!("{name}{byte:02x}"))
}

fn shard_key(base: &str, attempt: usize) -> Result<ShardKey, SourceError> {
    let name = if attempt == 0 { base.to_owned() } else { format!("{base}-{attempt}") };
    ShardKey::new(STREAM, &name).ok_or_else(|| SourceError::Invalid(format!("shard name {name}")))
}

/// Returns 54 decimal digits of a digest of 32 bytes.
fn digits(digest: &[u8]) -> String {
    // Three groups of 18 digits, each from eight bytes: too many for a match by chance.
    let limb = |n: usize| digest[n * 8..n * 8 + 8].iter().fold(0u64, |v, b| v << 8 | u64::from(*b));
    (0..3).map(|n| format!("{:018}", limb(n) % 1_000_000_000_000_000_000)).collect()
}

/// Returns the position of a file whose first `offset` bytes have this digest.
pub(super) fn join_position(offset: u64, read: &Digest) -> SequenceNumber {
    let digits = format!("{offset}{}", digits(read.hasher.finalize().as_bytes()));
    SequenceNumber::parse(digits.trim_start_matches('0')).unwrap_or_else(|| SequenceNumber::from_u64(0))
}

/// Returns the offset in a file's position, as the sequence number of the record that ends there.
pub fn offset_of(position: &SequenceNumber) -> SequenceNumber {
    SequenceNumber::from_u64(split_position(position).0)
}

fn split_position(position: &SequenceNumber) -> (u64, String) {
    let text = position.as_str();
    let (offset, digest) = text.split_at(text.len().saturating_sub(DIGEST_DIGITS));
    (offset.parse().unwrap_or(0), digest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_older_lakes_are_known_by_their_sha_256() {
        let known = |digest: &[u8]| {
            let position = SequenceNumber::parse(&format!("5{}", digits(digest))).unwrap();
            let (offset, digest) = split_position(&position);
            KnownFile { shard: ShardKey::new(STREAM, "file-1").unwrap(), position, offset, digest }
        };
        let (older, newer) = (known(&Sha256::digest(b"line\n")), known(blake3::hash(b"line\n").as_bytes()));
        let mut read = Digest::new();
        read.update(b"line");
        assert!(!older.is_at(&read) && !newer.is_at(&read));
        read.update(b"\n");
        assert!(older.is_at(&read) && newer.is_at(&read));
        assert_eq!(join_position(5, &read), newer.position);
        read.forget_older();
        assert!(!older.is_at(&read) && newer.is_at(&read));
    }
}
