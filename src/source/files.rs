//! Files of events, one JSON object a line; `.gz` and `.zst` are unpacked on the way.
//!
//! # What a position means
//! A file has no name that stays: it is copied, moved, rotated and appended to. So a file is known by its content. Its
//! shard is named after the digest of its first line, a record's sequence number is the offset just past its line, and a
//! checkpoint is that offset together with a digest of everything before it:
//!
//! ```text
//! position = offset × 10^54 + (digest of the first `offset` bytes, as 54 decimal digits)
//! ```
//!
//! **Invariant: a file is continued only if all that was committed from it is still there, byte for byte.** One that
//! merely begins alike is another shard (`…-1`, `…-2`). Offsets count unpacked bytes.
//!
//! A pipe is read once, and its lines go on as they come.
//!
//! A last line without a line break is taken if it is a whole JSON object, for nothing can be added to one; otherwise
//! it is left for the next run, because somebody may still be writing it.

use std::io::{BufRead, Read};
use std::path::Path;

use bytes::Bytes;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{Chunk, Record, SequenceNumber, ShardKey, SourceError};
use crate::payload::Payloads;

mod input;
mod list;
mod shape;

use input::Input;
pub use list::{expand, is_pipe};

/// Stream name of every file.
pub const STREAM: &str = "file";
/// A line longer than this is not held in memory; it goes to the quarantine with its beginning.
const LINE_BYTES_MAX: usize = 32 << 20;
/// Bytes of a line that is too long which the quarantine keeps.
const CUT_BYTES: usize = 1 << 20;
/// Bytes of records in a chunk.
const CHUNK_BYTES: usize = 1 << 20;
/// What reading, unpacking and decoding a chunk of ordinary lines takes in all; one long line may take more.
pub const CHUNK_BYTES_MAX: usize = 4 * CHUNK_BYTES;
/// Lines in a chunk.
const CHUNK_LINES: usize = 10_000;
const DIGEST_DIGITS: usize = 54;

/// Reads one file from where the lake has come to.
pub struct FileReader {
    name: String,
    input: Input,
    hasher: Sha256,
    offset: u64,
    /// What was read to name the shard and not handed over yet: the first line, with its line break.
    first: Vec<u8>,
    shard: ShardKey,
    skip_to: u64,
    torn_bytes: Option<usize>,
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader").field("name", &self.name).field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl FileReader {
    /// Opens a file and finds its shard. `committed` answers the position of a shard in the lake. Once `stop` is cancelled a
    /// pipe ends with what it has given.
    ///
    /// Returns `None` for a file without a first line.
    ///
    /// # Errors
    /// The file cannot be read, or is no lines of events; or a pipe began like something committed and then differed, which
    /// cannot be told in time to start over.
    pub fn open(
        path: &Path,
        stop: &CancellationToken,
        committed: impl Fn(&ShardKey) -> Option<SequenceNumber>,
    ) -> Result<Option<Self>, SourceError> {
        let name = path.display().to_string();
        let fail = |source| SourceError::File { path: name.clone(), source };
        let mut input = Input::open(path, stop).map_err(fail)?;
        let head = input.fill_buf().map_err(fail)?;
        let other = shape::other_than_lines(&head[..head.len().min(shape::HEAD_BYTES)], &name);
        let first = read_first(&mut input).map_err(fail)?;
        if first.is_empty() {
            return Ok(None);
        }
        let base = shard_name(content(&first));
        // Every shard that began with this line, until one that is free.
        let mut known = Vec::new();
        let free = loop {
            let shard = shard_key(&base, known.len())?;
            match committed(&shard).as_ref().map(split_position) {
                Some(at) => known.push((shard, at.0, at.1)),
                None => break shard,
            }
        };
        let mut reader = Self {
            name: name.clone(),
            input,
            hasher: Sha256::new(),
            offset: 0,
            first,
            shard: free,
            skip_to: 0,
            torn_bytes: None,
        };
        if known.is_empty() {
            return match other {
                Some(what) => Err(SourceError::Invalid(format!("{name} {what}"))),
                None => Ok(Some(reader)),
            };
        }
        let mut matched: Option<(ShardKey, u64)> = None;
        let mut marks: Vec<u64> = known.iter().map(|(_, offset, _)| *offset).collect();
        marks.sort_unstable();
        marks.dedup();
        for mark in marks {
            if !reader.hash_to(mark).map_err(fail)? {
                break;
            }
            let digest = digest_digits(&reader.hasher);
            if let Some((shard, offset, _)) = known.iter().find(|(_, o, d)| *o == mark && *d == digest) {
                matched = Some((shard.clone(), *offset));
            }
        }
        if reader.input.is_pipe() {
            // What was read is gone; only the longest match, which is where we stand, can be continued.
            return match matched {
                Some((shard, offset)) if offset == reader.offset => {
                    reader.shard = shard;
                    reader.skip_to = offset;
                    Ok(Some(reader))
                }
                _ if stop.is_cancelled() => Ok(None),
                _ => Err(SourceError::Invalid(format!(
                    "{} begins like a file that is in the lake and then differs; save it to a file and ingest that",
                    if name == "-" { "standard input" } else { &name }
                ))),
            };
        }
        let (shard, offset) = matched.unwrap_or((reader.shard.clone(), 0));
        let mut again = Self {
            name: name.clone(),
            input: Input::open(path, stop).map_err(fail)?,
            hasher: Sha256::new(),
            offset: 0,
            first: Vec::new(),
            shard,
            skip_to: offset,
            torn_bytes: None,
        };
        again.hash_to(offset).map_err(fail)?;
        Ok(Some(again))
    }

    /// Whether what is read here cannot be read again.
    pub fn is_pipe(&self) -> bool {
        self.input.is_pipe()
    }

    /// The file's shard.
    pub fn shard(&self) -> &ShardKey {
        &self.shard
    }

    /// Unpacked bytes read so far, those of earlier runs included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Unpacked bytes that earlier runs had committed.
    pub fn resumed_at(&self) -> u64 {
        self.skip_to
    }

    /// Path, as the user named it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of a last line that was left for the next run; known once [`FileReader::next_chunk`] has returned `None`.
    pub fn torn_bytes(&self) -> Option<usize> {
        self.torn_bytes
    }

    /// Reads and hashes up to `offset`; `false` if the file ends before. An offset may lie inside the first line: where an
    /// earlier run took it without its line break.
    fn hash_to(&mut self, offset: u64) -> std::io::Result<bool> {
        let length_to = |at: u64| usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
        let take = self.first.len().min(length_to(self.offset));
        self.hasher.update(&self.first[..take]);
        self.first.drain(..take);
        self.offset += take as u64;
        while self.offset < offset {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(false);
            }
            let take = buffer.len().min(length_to(self.offset));
            self.hasher.update(&buffer[..take]);
            self.input.consume(take);
            self.offset += take as u64;
        }
        Ok(true)
    }

    /// The next records; `None` at the end of the file. `now` is when they count as arrived, µs since the epoch.
    ///
    /// # Errors
    /// The file cannot be read or unpacked.
    pub fn next_chunk(&mut self, now: i64) -> Result<Option<Chunk>, SourceError> {
        let mut records = Vec::new();
        let mut bytes = 0;
        while bytes < CHUNK_BYTES && records.len() < CHUNK_LINES {
            // What a pipe has given is handed over, and not held until there is more.
            if !records.is_empty() && self.input.may_wait() {
                break;
            }
            let first = std::mem::take(&mut self.first);
            let line = read_line(&mut first.as_slice().chain(&mut self.input), &self.hasher);
            let line = line.map_err(|source| SourceError::File { path: self.name.clone(), source })?;
            let Some(line) = line else { break };
            if !line.ended && !is_whole_object(&line.bytes) {
                self.torn_bytes = Some(line.length);
                break;
            }
            self.hasher = line.hasher;
            self.offset += line.length as u64;
            if line.bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let cut = (line.length > LINE_BYTES_MAX).then(|| {
                let (length, end) = (line.length, self.offset);
                format!(
                    "line of {length} bytes, of which the first {CUT_BYTES} are kept; it ends at byte {end} of its file"
                )
            });
            let mut content = line.bytes;
            if cut.is_some() {
                content.truncate(CUT_BYTES);
            }
            bytes += content.len() + 256;
            let sequence_number = SequenceNumber::from_u64(self.offset);
            let record =
                Record { sequence_number, arrived_at: now, bytes: Bytes::from(content), cut, payloads: Vec::new() };
            // What a record points at is fetched before the next one is read: one at a time is held.
            let points = Payloads::concern(&record);
            records.push(record);
            if points {
                break;
            }
        }
        if records.is_empty() {
            return Ok(None);
        }
        let position = join_position(self.offset, &digest_digits(&self.hasher));
        Ok(Some(Chunk { shard: self.shard.clone(), records, position }))
    }
}

/// Bytes of the file if it is not packed, for a progress bar; `None` when that cannot be known.
pub fn plain_bytes(path: &Path) -> Option<u64> {
    let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
    std::fs::metadata(path).ok().filter(|m| m.is_file() && !packed).map(|m| m.len())
}

/// The first line with its line break; of one that is too long, as much as is held.
fn read_first(input: &mut Input) -> std::io::Result<Vec<u8>> {
    let mut first = Vec::new();
    input.take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut first)?;
    Ok(first)
}

/// A line without its line break.
fn content(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

struct Line {
    /// Without its line break, and no longer than the limit.
    bytes: Vec<u8>,
    /// The digest of the file up to the end of this line.
    hasher: Sha256,
    /// With its line break.
    length: usize,
    ended: bool,
}

/// Reads a line; `before` is the digest of all that precedes it.
fn read_line(input: &mut impl BufRead, before: &Sha256) -> std::io::Result<Option<Line>> {
    let mut bytes = Vec::new();
    let mut length = input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    let mut hasher = before.clone();
    hasher.update(&bytes);
    let mut ended = bytes.last() == Some(&b'\n');
    // The rest of a line that is too long is digested and not held.
    while !ended && length > LINE_BYTES_MAX {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        let end = buffer.iter().position(|b| *b == b'\n');
        let take = end.map_or(buffer.len(), |at| at + 1);
        hasher.update(&buffer[..take]);
        input.consume(take);
        length += take;
        ended = end.is_some();
    }
    bytes.truncate(content(&bytes).len());
    Ok(Some(Line { bytes, hasher, length, ended }))
}

fn is_whole_object(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
        && serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}

fn shard_name(first_line: &[u8]) -> String {
    let digest = Sha256::digest(first_line);
    digest.iter().take(8).fold(String::from("file-"), |name, byte| format!("{name}{byte:02x}"))
}

fn shard_key(base: &str, attempt: usize) -> Result<ShardKey, SourceError> {
    let name = if attempt == 0 { base.to_owned() } else { format!("{base}-{attempt}") };
    ShardKey::new(STREAM, &name).ok_or_else(|| SourceError::Invalid(format!("shard name {name}")))
}

/// 54 decimal digits of the digest of what was read so far.
fn digest_digits(hasher: &Sha256) -> String {
    let digest = hasher.clone().finalize();
    // Three times 18 digits, from three times eight bytes: far more than chance can hit.
    let limb = |n: usize| digest[n * 8..n * 8 + 8].iter().fold(0u64, |v, b| v << 8 | u64::from(*b));
    (0..3).map(|n| format!("{:018}", limb(n) % 1_000_000_000_000_000_000)).collect()
}

fn join_position(offset: u64, digest: &str) -> SequenceNumber {
    let digits = format!("{offset}{digest}");
    SequenceNumber::parse(digits.trim_start_matches('0')).unwrap_or_else(|| SequenceNumber::from_u64(0))
}

/// The offset in a position of a file, as the sequence number of the record that ends there.
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
    use std::io::Write;

    fn drain(reader: &mut FileReader) -> (Vec<String>, Option<SequenceNumber>) {
        let (mut lines, mut position) = (Vec::new(), None);
        while let Some(chunk) = reader.next_chunk(0).unwrap() {
            lines.extend(chunk.records.iter().map(|r| String::from_utf8_lossy(&r.bytes).into_owned()));
            position = Some(chunk.position);
        }
        (lines, position)
    }

    #[test]
    fn a_grown_file_is_continued_and_a_different_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ndjson");
        std::fs::write(&path, "{\"a\":1}\n{\"b\":2}\n").unwrap();
        let mut reader = FileReader::open(&path, &CancellationToken::new(), |_| None).unwrap().unwrap();
        let shard = reader.shard().clone();
        let (lines, position) = drain(&mut reader);
        assert_eq!(lines, ["{\"a\":1}", "{\"b\":2}"]);
        let lake = |key: &ShardKey| (*key == shard).then(|| position.clone().unwrap());

        let mut again = FileReader::open(&path, &CancellationToken::new(), lake).unwrap().unwrap();
        assert_eq!((again.shard(), again.resumed_at()), (&shard, 16));
        assert!(drain(&mut again).0.is_empty());

        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"c\":3}\n{\"torn").unwrap();
        let mut grown = FileReader::open(&path, &CancellationToken::new(), lake).unwrap().unwrap();
        assert_eq!(drain(&mut grown).0, ["{\"c\":3}"]);
        assert_eq!(grown.torn_bytes(), Some(6));

        let other = folder.path().join("b.ndjson");
        std::fs::write(&other, "{\"a\":1}\n{\"x\":2}\n{\"c\":3}\n").unwrap();
        let mut other = FileReader::open(&other, &CancellationToken::new(), lake).unwrap().unwrap();
        assert_eq!(other.shard().shard(), format!("{}-1", shard.shard()));
        assert_eq!(drain(&mut other).0.len(), 3);

        let shorter = folder.path().join("c.ndjson");
        std::fs::write(&shorter, "{\"a\":1}\n").unwrap();
        let mut shorter = FileReader::open(&shorter, &CancellationToken::new(), lake).unwrap().unwrap();
        assert_eq!(drain(&mut shorter).0.len(), 1, "a shorter file holds a record that was never seen under its shard");
    }

    #[test]
    fn packed_files_have_unpacked_offsets() {
        let folder = tempfile::tempdir().unwrap();
        let text = "{\"a\":1}\r\n\n{\"b\":2}";
        let plain = folder.path().join("a");
        std::fs::write(&plain, text).unwrap();
        let gz = folder.path().join("a.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        std::fs::write(&gz, encoder.finish().unwrap()).unwrap();
        let zst = folder.path().join("a.zst");
        std::fs::write(&zst, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
        let read = |path: &Path| {
            let mut reader = FileReader::open(path, &CancellationToken::new(), |_| None).unwrap().unwrap();
            (reader.shard().clone(), drain(&mut reader))
        };
        assert_eq!(read(&plain).1.0, ["{\"a\":1}", "{\"b\":2}"]);
        assert_eq!(read(&plain), read(&gz));
        assert_eq!(read(&plain), read(&zst));
    }
}
