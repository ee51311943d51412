//! Reads files of events, one JSON object per line; unpacks `.gz` and `.zst` files.
//!
//! # Meaning of a position
//! A file has no permanent name: files are copied, moved, rotated and appended to. So the content identifies a file.
//! The digest of the first line names the shard. The sequence number of a record is the offset just past its line. A
//! checkpoint is that offset together with a digest of all bytes before it:
//!
//! ```text
//! position = offset × 10^54 + (digest of the first `offset` bytes, as 54 decimal digits)
//! ```
//!
//! **Invariant: a file is continued only if all bytes that were committed from it are still there, byte for byte.** A
//! file that merely begins with the same line is another shard (`…-1`, `…-2`). So is a file that is shorter than the
//! committed bytes. Offsets count unpacked bytes.
//!
//! # The last line
//! A last line without a line break is read if it is a whole JSON object, because nothing can be added to one. Any
//! other such line is left for the next run, because its writer may not have finished. A position may therefore lie
//! inside a line, even inside the first line. What follows later on that line is white space, or a separate record.
//!
//! # Inputs that can be read only once
//! Standard input, named pipes and similar inputs are opened once and read as their bytes arrive (`pipe`). The bytes
//! that identify them are read ahead and kept (`input`).

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
mod values;

pub use folder::{Found, expand};
pub use identity::{STREAM, offset_of};
pub use input::is_gone;

use identity::{Digest, KnownFile, join_position, known};
use input::{Begun, Input};
use lines::{Line, Lines, Next, Step};
use packed::Format;
use shape::{is_blank, is_whole_object, look, shape_of_start};

/// Longest line held in memory, in bytes; of a longer line the quarantine keeps the beginning.
const LINE_BYTES_MAX: usize = 32 << 20;
/// Bytes that the quarantine keeps of a line that is too long.
const CUT_BYTES: usize = 1 << 20;
/// Bytes of records at which a chunk is full.
const CHUNK_BYTES: usize = 1 << 20;
/// Memory for reading, unpacking and decoding a chunk of ordinary lines; one long line may take more.
pub const CHUNK_BYTES_MAX: usize = 4 * CHUNK_BYTES;
/// Lines at which a chunk is full.
const CHUNK_LINES: usize = 10_000;
/// Time after which the lines of a slow input are delivered.
const LINGER: Duration = Duration::from_millis(200);

/// Options for reading files.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Largest window of a zstd file, as a power of two; the default of zstd is 27 (128 MiB).
    pub window_log_max: u32,
    /// Cancellation of all waiting.
    pub stop: CancellationToken,
}

impl ReadOptions {
    /// Returns options whose windows are at most as large as the memory of the run, but at least the default of zstd.
    pub fn new(memory_bytes: usize, stop: CancellationToken) -> Self {
        Self { window_log_max: memory_bytes.max(1).ilog2().clamp(27, 31), stop }
    }
}

/// The result of opening a file.
#[derive(Debug)]
pub enum Opened {
    /// Reader of the lines.
    Reader(Box<FileReader>),
    /// Empty file.
    Empty,
    /// A signal that came first.
    Stopped {
        /// Bytes that were read, are not in the lake, and cannot be read again.
        bytes: u64,
    },
}

/// A reader of one file, from the position that is committed in the lake.
pub struct FileReader {
    path: PathBuf,
    lines: Lines,
    shard: ShardKey,
    resumed: Option<(SequenceNumber, u64)>,
    options: ReadOptions,
    /// Error that the next call of [`FileReader::next_chunk`] returns.
    failed: Option<SourceError>,
    is_done: bool,
    torn_bytes: Option<usize>,
    /// Whether the reader was stopped before the end of its file.
    is_stopped: bool,
    /// Whether nothing is added to the bytes behind the last line.
    is_final: bool,
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader").field("path", &self.path).field("offset", &self.offset()).finish_non_exhaustive()
    }
}

impl FileReader {
    /// Opens a file and finds its shard. `committed` returns the position of a shard in the lake.
    ///
    /// Blocks until enough bytes have arrived to find the shard, or until `options.stop`.
    ///
    /// # Errors
    /// The file cannot be read or unpacked, or does not hold one event per line.
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
        let start = Digest::new();
        let mut lines = Lines::new(input, start.clone());
        let seen = look(&mut lines, stop).map_err(fail)?;
        let Some(first) = seen.first else { return Ok(Opened::Empty) };
        let (known, free) = known(&first.bytes, committed)?;
        drop(first);
        if !lines.rewind(0, &start, stop).map_err(fail)? {
            return Ok(Opened::Stopped { bytes: 0 });
        }
        let best = match find_committed(&mut lines, &known, stop).map_err(fail)? {
            Search::Found(file, digest) => Some((file, digest)),
            Search::Unknown => None,
            Search::Stopped => {
                // The file may still continue a shard of the lake, so none of its bytes may be committed yet.
                let bytes = if lines.input().is_gone() { lines.offset() } else { 0 };
                return Ok(Opened::Stopped { bytes });
            }
        };
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
        let is_final = false;
        let reader = Self { path, lines, shard, resumed, options, failed, is_done, torn_bytes, is_stopped, is_final };
        Ok(Opened::Reader(Box::new(reader)))
    }

    /// Reads an object of a bucket, behind what the lake has of it (`position`). Its records need no line break between
    /// them, and its last one is read as it is, because an object does not grow. Returns `None` after `options.stop`.
    ///
    /// # Errors
    /// The bytes cannot be read or unpacked, do not begin with what was committed, or hold no events one after the other.
    pub fn of_object(
        name: &str,
        bytes: impl Read + Send + 'static,
        shard: ShardKey,
        position: Option<SequenceNumber>,
        options: &ReadOptions,
    ) -> Result<Option<Self>, SourceError> {
        let path = PathBuf::from(name);
        let stopped = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        let input = match Input::of_object(name, bytes, options) {
            Err(error) if stopped(&error) => return Ok(None),
            input => input.map_err(|error| failure(&path, Format::Plain, error))?,
        };
        let format = input.format();
        if let Format::Foreign(kind, command) = format {
            return Err(refusal(&path, Format::Plain, format!("is packed as {kind}"), (command, " ")));
        }
        let mut lines = Lines::of_values(input, Digest::new());
        let shape = match lines.start() {
            Err(error) if stopped(&error) => return Ok(None),
            start => shape_of_start(start.map_err(|error| failure(&path, format, error))?),
        };
        if let (None, Some(shape)) = (&position, shape) {
            return Err(refusal(&path, format, shape.to_string(), shape.remedy()));
        }
        let known = position.map(|position| KnownFile::new(shard.clone(), position));
        if let Some(known) = &known {
            loop {
                match lines.step_to(known.offset).map_err(|error| failure(&path, format, error))? {
                    Step::Under if options.stop.is_cancelled() => return Ok(None),
                    Step::Under => {}
                    Step::There => break,
                    Step::End => return Err(SourceError::CutOff { path: shown(&path) }),
                }
            }
            if !known.is_at(lines.digest().map_err(|error| failure(&path, format, error))?) {
                let reason = "its beginning is not what the lake has of it".to_owned();
                return Err(SourceError::Damaged { path: shown(&path), reason });
            }
        }
        lines.forget();
        let resumed = known.map(|known| (known.position, known.offset));
        Ok(Some(Self {
            path,
            lines,
            shard,
            resumed,
            options: options.clone(),
            failed: None,
            is_done: false,
            torn_bytes: None,
            is_stopped: false,
            is_final: true,
        }))
    }

    /// Returns the shard of the file.
    pub fn shard(&self) -> &ShardKey {
        &self.shard
    }

    /// Returns the unpacked bytes read so far, including those of earlier runs.
    pub fn offset(&self) -> u64 {
        self.lines.offset()
    }

    /// Returns the unpacked bytes that earlier runs have committed.
    pub fn resumed_at(&self) -> u64 {
        self.resumed.as_ref().map_or(0, |(_, offset)| *offset)
    }

    /// Returns the shard's position in the lake from which this reader continues.
    pub fn resumed_position(&self) -> Option<&SequenceNumber> {
        self.resumed.as_ref().map(|(position, _)| position)
    }

    /// Returns the path as the user named it.
    pub fn name(&self) -> String {
        shown(&self.path)
    }

    /// Returns whether every record was delivered.
    pub fn is_complete(&self) -> bool {
        self.is_done && !self.is_stopped && self.failed.is_none()
    }

    /// Returns whether another run cannot read the same bytes again.
    pub fn is_gone(&self) -> bool {
        self.lines.input().is_gone()
    }

    /// Returns the bytes of a last line that was not read; known once [`FileReader::next_chunk`] has returned `None`.
    pub fn torn_bytes(&self) -> Option<usize> {
        self.torn_bytes
    }

    /// Returns the bytes that were read, were not delivered, and cannot be read again; known at the end. The loss of
    /// packed data may be larger than can be counted, so zero bytes are a loss, too.
    pub fn lost_bytes(&self) -> Option<u64> {
        let is_cut = self.is_stopped && self.lines.input().format() != Format::Plain;
        let torn = self.torn_bytes.map(|bytes| bytes as u64).or(is_cut.then_some(0));
        torn.filter(|_| self.is_gone())
    }

    /// Returns the next records. Returns `None` at the end of the file, and after `stop` once all bytes that had
    /// arrived are delivered. `now` is the arrival time of the records, in µs since the Unix epoch.
    ///
    /// # Errors
    /// The file cannot be read or unpacked. The records before the error have been delivered.
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
            // Check the signal before the read: bytes that arrive between a read and a signal must still be read.
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
            // The payloads of a record are fetched before the next record is read, so that memory holds those of one
            // record.
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
        let (offset, format) = (self.offset(), self.lines.input().format());
        let digest = self.lines.digest().map_err(|error| failure(&self.path, format, error))?;
        let position = join_position(offset, digest);
        Ok(Some(Chunk { shard: self.shard.clone(), records, position }))
    }

    /// Returns the bytes after the last line break, if they are to be read.
    fn last_line(&mut self) -> Option<Line> {
        if self.is_final && self.is_stopped {
            return None;
        }
        let line = self.lines.rest()?;
        if self.is_final || is_whole_object(&line.bytes) {
            self.lines.accept(&line);
            return Some(line);
        }
        self.torn_bytes = (!is_blank(&line.bytes)).then_some(line.length);
        None
    }

    /// Returns the record of the line that was accepted last.
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
        Record { sequence_number, arrived_at: now, bytes: content, cut, payloads: Vec::new() }
    }
}

/// Result of the search for the file in the lake.
enum Search<'a> {
    /// The longest committed beginning of the file, and its digest.
    Found(&'a KnownFile, Digest),
    /// The lake holds no beginning of the file.
    Unknown,
    /// A signal came first.
    Stopped,
}

/// Reads the file up to the committed offset of each known file, and compares the digests there.
fn find_committed<'a>(
    lines: &mut Lines,
    known: &'a [KnownFile],
    stop: &CancellationToken,
) -> std::io::Result<Search<'a>> {
    let mut best = Search::Unknown;
    let mut marks: Vec<u64> = known.iter().map(|known| known.offset).collect();
    marks.sort_unstable();
    marks.dedup();
    for mark in marks {
        loop {
            match lines.step_to(mark)? {
                Step::Under if stop.is_cancelled() => return Ok(Search::Stopped),
                Step::Under => {}
                Step::End => return Ok(best),
                Step::There => break,
            }
        }
        let digest = lines.digest()?;
        if let Some(found) = known.iter().find(|known| known.offset == mark && known.is_at(digest)) {
            best = Search::Found(found, digest.clone());
            lines.forget_before();
        }
    }
    Ok(best)
}

/// Returns the bytes of a file that is not packed, for a progress bar; `None` if they cannot be known.
pub fn plain_bytes(path: &Path) -> Option<u64> {
    let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst") || path == Path::new("-");
    std::fs::metadata(path).ok().filter(|m| m.is_file() && !packed).map(|m| m.len())
}

/// Returns a path as messages show it.
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

/// Returns the error for a file in another shape. The last argument is the command that converts the file to one event
/// per line, and the separator between command and file name.
fn refusal(path: &Path, format: Format, what: String, (command, takes): (&str, &str)) -> SourceError {
    let is_object = path.as_os_str().as_encoded_bytes().starts_with(b"s3:");
    let feed = if is_object { format!("aws s3 cp {} - | ", quoted(path)) } else { String::new() };
    let file = if is_object || path == Path::new("-") { String::new() } else { quoted(path) };
    let given = |takes: &str| if file.is_empty() { String::new() } else { format!("{takes}{file}") };
    let lines = match format {
        Format::Gzip => format!("gzip -dc{} | {command}", given(" ")),
        Format::Zstd => format!("zstd -dc{} | {command}", given(" ")),
        Format::Plain | Format::Foreign(..) => format!("{command}{}", given(takes)),
    };
    SourceError::Refused { path: shown(path), what, remedy: format!("{feed}{lines} | synclake ingest --source file:-") }
}

/// Returns a path as a shell accepts it.
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
