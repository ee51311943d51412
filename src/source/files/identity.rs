//! The name of a file's shard, and the format of a position: an offset together with a digest.

use sha2::{Digest, Sha256};

use super::shape::{Value, first_value};
use crate::ids::{SequenceNumber, ShardKey};
use crate::source::SourceError;

/// Stream name of every file.
pub const STREAM: &str = "file";
const DIGEST_DIGITS: usize = 54;
/// White space that a first line may have gained since it was read without a line break, in bytes.
const GROWN_BYTES_MAX: usize = 16;

/// A shard of the lake whose file began with the same first line.
pub(super) struct KnownFile {
    pub(super) shard: ShardKey,
    pub(super) position: SequenceNumber,
    pub(super) offset: u64,
    digest: String,
}

impl KnownFile {
    pub(super) fn is_at(&self, hasher: &Sha256) -> bool {
        self.digest == digest_digits(hasher)
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
            let (offset, digest) = split_position(&position);
            found.push(KnownFile { shard, position, offset, digest });
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

/// Returns 54 decimal digits of the digest of all bytes read so far.
fn digest_digits(hasher: &Sha256) -> String {
    let digest = hasher.clone().finalize();
    // Three groups of 18 digits, each from eight bytes: too many for a match by chance.
    let limb = |n: usize| digest[n * 8..n * 8 + 8].iter().fold(0u64, |v, b| v << 8 | u64::from(*b));
    (0..3).map(|n| format!("{:018}", limb(n) % 1_000_000_000_000_000_000)).collect()
}

/// Returns the position of a file whose first `offset` bytes have this digest.
pub(super) fn join_position(offset: u64, hasher: &Sha256) -> SequenceNumber {
    let digits = format!("{offset}{}", digest_digits(hasher));
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
