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
//! merely begins alike is another shard (`…-1`, `…-2`). So is one that is shorter than what was committed. Offsets count
//! unpacked bytes.
//!
//! # The last line
//! A last line without a line break is taken if it is a whole JSON object, for nothing can be added to one; otherwise
//! it is left for the next run, because somebody may still be writing it. A position may therefore lie inside a line,
//! also inside the first one: what follows on that line later is white space, or a record of its own.
//!
//! # What can be read only once
//! Standard input, named pipes and the like are opened once and read as their bytes come ([`pipe`]). What identifies them
//! is read ahead and kept ([`input`]).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{Chunk, SourceError};
use crate::ids::{SequenceNumber, ShardKey};
use crate::payload::Payloads;
use crate::record::Record;

mod ahead;
mod folder;
mod identity;
mod input;
mod lines;
mod packed;
mod pipe;
mod shape;
#[cfg(test)]
mod tests;

pub use folder::{Found, expand};
pub use identity::{STREAM, offset_of};
pub use input::is_gone;

use identity::{Known, join_position, known};
use input::{Begun, Input};
use lines::{Line, Lines, Next, Step};
use packed::Format;
use shape::{is_blank, is_whole_object, look};

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
/// Lines that came slowly are handed over after this long.
const LINGER: Duration = Duration::from_millis(200);

/// How files are read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// The largest window of a zstd file, as a power of two; zstd's own default is 27 (128 MiB).
    pub window_log_max: u32,
    /// Ends all waiting.
    pub stop: CancellationToken,
}

impl ReadOptions {
    /// Windows may be as large as the memory that the run may use, and at least as large as zstd allows by default.
    pub fn new(memory_bytes: usize, stop: CancellationToken) -> Self {
        Self { window_log_max: memory_bytes.max(1).ilog2().clamp(27, 31), stop }
    }
}

/// How the opening of a file ended.
#[derive(Debug)]
pub enum Opened {
    /// There are lines to read.
    Reader(Box<FileReader>),
    /// The file is empty.
    Empty,
    /// A signal came first.
    Stopped {
        /// Bytes that were read, are not in the lake, and cannot be read again.
        bytes: u64,
    },
}

/// Reads one file from where the lake has come to.
pub struct FileReader {
    path: PathBuf,
    lines: Lines,
    shard: ShardKey,
    resumed: Option<(SequenceNumber, u64)>,
    options: ReadOptions,
    /// Why the next call of [`FileReader::next_chunk`] fails.
    failed: Option<SourceError>,
    is_done: bool,
    torn_bytes: Option<usize>,
    /// The reader was stopped before the end of its file.
    is_stopped: bool,
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader").field("path", &self.path).field("offset", &self.offset()).finish_non_exhaustive()
    }
}

impl FileReader {
    /// Opens a file and finds its shard. `committed` answers the position of a shard in the lake.
    ///
    /// Blocks until enough is there to know the shard, and no longer than until `options.stop`.
    ///
    /// # Errors
    /// The file cannot be read or unpacked, or has another shape than one event a line.
    pub fn open(
        path: &Path,
        options: &ReadOptions,
        committed: impl Fn(&ShardKey) -> Option<SequenceNumber>,
    ) -> Result<Opened, SourceError> {
        let stop = &options.stop;
        let input = match Input::open(path, options).map_err(|error| failure(path, Format::Plain, error))? {
            Begun::Input(input) => input,
            Begun::Stopped { bytes } => return Ok(Opened::Stopped { bytes }),
        };
        let format = input.format();
        let fail = |error| failure(path, format, error);
        if let Format::Foreign(kind, command) = format {
            return Err(refusal(path, Format::Plain, format!("is packed as {kind}"), (command, " ")));
        }
        let mut lines = Lines::new(input);
        let seen = look(&mut lines, stop).map_err(fail)?;
        let Some(first) = seen.first else { return Ok(Opened::Empty) };
        let (known, free) = known(&first.bytes, committed)?;
        drop(first);
        let start = Sha256::new();
        if !lines.rewind(0, &start, stop).map_err(fail)? {
            return Ok(Opened::Stopped { bytes: 0 });
        }
        let mut best: Option<(&Known, Sha256)> = None;
        let mut marks: Vec<u64> = known.iter().map(|known| known.offset).collect();
        marks.sort_unstable();
        marks.dedup();
        for mark in marks {
            let step = loop {
                match lines.step_to(mark).map_err(fail)? {
                    // Whether it goes on like something in the lake is not known yet, so nothing of it may be committed.
                    Step::Under if stop.is_cancelled() => {
                        let bytes = if lines.input().is_gone() { lines.offset() } else { 0 };
                        return Ok(Opened::Stopped { bytes });
                    }
                    Step::Under => {}
                    step => break step,
                }
            };
            if matches!(step, Step::End) {
                break;
            }
            if let Some(found) = known.iter().find(|known| known.offset == mark && known.is_at(lines.digest())) {
                best = Some((found, lines.digest().clone()));
                lines.forget_before();
            }
        }
        if let (None, Some(shape)) = (&best, seen.shape) {
            return Err(refusal(path, format, shape.to_string(), shape.remedy()));
        }
        let (offset, digest) = best.as_ref().map_or((0, &start), |(found, digest)| (found.offset, digest));
        if lines.offset() != offset && !lines.rewind(offset, digest, stop).map_err(fail)? {
            return Ok(Opened::Stopped { bytes: 0 });
        }
        lines.forget();
        let resumed = best.as_ref().map(|(found, _)| (found.position.clone(), found.offset));
        let shard = best.map_or(free, |(found, _)| found.shard.clone());
        let options = options.clone();
        let (failed, is_done, torn_bytes, is_stopped) = (None, false, None, false);
        let path = path.to_owned();
        let reader = Self { path, lines, shard, resumed, options, failed, is_done, torn_bytes, is_stopped };
        Ok(Opened::Reader(Box::new(reader)))
    }

    /// The file's shard.
    pub fn shard(&self) -> &ShardKey {
        &self.shard
    }

    /// Unpacked bytes read so far, those of earlier runs included.
    pub fn offset(&self) -> u64 {
        self.lines.offset()
    }

    /// Unpacked bytes that earlier runs had committed.
    pub fn resumed_at(&self) -> u64 {
        self.resumed.as_ref().map_or(0, |(_, offset)| *offset)
    }

    /// The position of the shard in the lake from which this reader goes on.
    pub fn resumed_position(&self) -> Option<&SequenceNumber> {
        self.resumed.as_ref().map(|(position, _)| position)
    }

    /// Path, as the user named it.
    pub fn name(&self) -> String {
        shown(&self.path)
    }

    /// Whether what was read cannot be read again by another run.
    pub fn is_gone(&self) -> bool {
        self.lines.input().is_gone()
    }

    /// Bytes of a last line that was not taken; known once [`FileReader::next_chunk`] has returned `None`.
    pub fn torn_bytes(&self) -> Option<usize> {
        self.torn_bytes
    }

    /// Bytes that were read, were not handed over, and cannot be read again; known at the end. Of packed data this may
    /// be more than can be counted, so zero bytes are a loss, too.
    pub fn lost_bytes(&self) -> Option<u64> {
        let is_cut = self.is_stopped && self.lines.input().format() != Format::Plain;
        let torn = self.torn_bytes.map(|bytes| bytes as u64).or(is_cut.then_some(0));
        torn.filter(|_| self.is_gone())
    }

    /// The next records; `None` at the end of the file, and after `stop` once everything that was there is handed over.
    /// `now` is when they count as arrived, µs since the epoch.
    ///
    /// # Errors
    /// The file cannot be read or unpacked. What was read before has been handed over.
    pub fn next_chunk(&mut self, now: i64) -> Result<Option<Chunk>, SourceError> {
        if let Some(error) = self.failed.take() {
            self.is_done = true;
            return Err(error);
        }
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut since: Option<Instant> = None;
        while !self.is_done && bytes < CHUNK_BYTES && records.len() < CHUNK_LINES {
            if since.is_some_and(|since| self.lines.input().is_live() && since.elapsed() >= LINGER) {
                break;
            }
            // Asked before the read: a signal that comes after it may come after more bytes, too.
            let is_stopped = self.options.stop.is_cancelled();
            let line = match self.lines.next() {
                Ok(Next::Line(line)) => line,
                Ok(Next::Wait) if !records.is_empty() => break,
                Ok(Next::Wait) if !is_stopped => continue,
                Ok(next) => {
                    self.is_done = true;
                    self.is_stopped = matches!(next, Next::Wait);
                    match self.last_line() {
                        Some(line) => line,
                        None => break,
                    }
                }
                Err(error) => {
                    self.failed = Some(failure(&self.path, self.lines.input().format(), error));
                    break;
                }
            };
            if line.bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            since.get_or_insert_with(Instant::now);
            let record = self.record(line, now);
            bytes += record.weight() + 256;
            // What a record points at is fetched before the next one is read: one at a time is held.
            let points = Payloads::concern(&record);
            records.push(record);
            if points {
                break;
            }
        }
        if records.is_empty() {
            return match self.failed.take() {
                Some(error) => {
                    self.is_done = true;
                    Err(error)
                }
                None => Ok(None),
            };
        }
        let position = join_position(self.offset(), self.lines.digest());
        Ok(Some(Chunk { shard: self.shard.clone(), records, position }))
    }

    /// What follows the last line break, if it is to be taken.
    fn last_line(&mut self) -> Option<Line> {
        let line = self.lines.rest()?;
        if is_whole_object(&line.bytes) {
            self.lines.accept(&line);
            return Some(line);
        }
        self.torn_bytes = (!is_blank(&line.bytes)).then_some(line.length);
        None
    }

    /// The record of a line that was accepted last.
    fn record(&self, line: Line, now: i64) -> Record {
        let cut = (line.length > LINE_BYTES_MAX).then(|| {
            let (length, end) = (line.length, self.offset());
            format!(
                "line of {length} bytes, of which the first {CUT_BYTES} are kept; it ends at byte {end} of its file"
            )
        });
        let mut content = line.bytes;
        if cut.is_some() {
            content.truncate(CUT_BYTES);
        }
        let sequence_number = SequenceNumber::from_u64(self.offset());
        Record { sequence_number, arrived_at: now, bytes: Bytes::from(content), cut, payloads: Vec::new() }
    }
}

/// Bytes of the file if it is not packed, for a progress bar; `None` when that cannot be known.
pub fn plain_bytes(path: &Path) -> Option<u64> {
    let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst") || path == Path::new("-");
    std::fs::metadata(path).ok().filter(|m| m.is_file() && !packed).map(|m| m.len())
}

/// A path as messages show it.
pub fn shown(path: &Path) -> String {
    if path == Path::new("-") {
        return "standard input".to_owned();
    }
    crate::text::escaped(&path.display().to_string(), "")
}

fn failure(path: &Path, format: Format, error: std::io::Error) -> SourceError {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::UnexpectedEof => SourceError::CutOff { path: shown(path) },
        ErrorKind::InvalidData => SourceError::Damaged { path: shown(path), reason: error.to_string() },
        ErrorKind::Unsupported if format == Format::Zstd => {
            let what = "needs a zstd window larger than --memory (--memory 2GiB suffices for any)".to_owned();
            refusal(path, Format::Plain, what, ("zstd -dc --long=31", " "))
        }
        _ => SourceError::File { path: shown(path), source: error },
    }
}

/// A file that is refused as it is, and the command that makes lines of events of it: its text, and how it takes a file.
fn refusal(path: &Path, format: Format, what: String, (command, takes): (&str, &str)) -> SourceError {
    let file = if path == Path::new("-") { String::new() } else { quoted(path) };
    let given = |takes: &str| if file.is_empty() { String::new() } else { format!("{takes}{file}") };
    let lines = match format {
        Format::Gzip => format!("gzip -dc{} | {command}", given(" ")),
        Format::Zstd => format!("zstd -dc{} | {command}", given(" ")),
        Format::Plain | Format::Foreign(..) => format!("{command}{}", given(takes)),
    };
    SourceError::Refused { path: shown(path), what, remedy: format!("{lines} | synclake ingest --source file:-") }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let dash = if path.as_os_str().as_encoded_bytes().starts_with(b"-") { "./" } else { "" };
    let text = format!("{dash}{}", path.display());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./,+=@%:".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    let text = text.replace('\'', r"'\''");
    format!("'{}'", crate::text::escaped(&text, ""))
}
