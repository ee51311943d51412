//! Merges sorted files into one, in bounded memory. Pure: bytes in, bytes out.
//!
//! ```text
//! small files ──decode──▶ chunk in memory ──sort──▶ run (an encoded file in memory)  ─┐
//!                             └── no run so far: one file, and done                   ├─ merge ─▶ one file
//! large files, in order ──────────────────────────────────────────────────────────▶ ─┘
//! ```
//!
//! Runs are merged a row group at a time. Each cursor holds some rows of its run. Rows that do not sort after the
//! lowest last row of the cursors cannot be preceded by rows that are not read yet, so they are sorted and written.
//!
//! The order of a file is checked while it is read. A file that is out of order is sorted like a small one.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;

use bytes::Bytes;
use parquet::errors::ParquetError;
use serde_json::Value;

use crate::batch::file::stored::StoredWriter;
use crate::batch::file::{COMPRESSED_BYTES_MIN, GROUP_BYTES, GROUP_ROWS};
use crate::batch::stored::{Ordered, StoredReader, StoredRows, Unfit};
use crate::lake::files::sha256_of;

/// A file to merge.
#[derive(Debug, Clone)]
pub(super) struct Input {
    /// Its path in the table.
    pub path: String,
    /// Its content.
    pub bytes: Bytes,
    /// The rows that the log claims, if it does.
    pub rows: Option<u64>,
    /// The SHA-256 that the log claims, if it does.
    pub sha256: Option<String>,
}

impl Input {
    /// Checks the bytes against the digest in the log. Damage that is merged gets a digest of its own, and nobody could
    /// find it any more.
    ///
    /// # Errors
    /// They are other bytes than were committed.
    pub(super) fn check_digest(&self) -> Result<(), MergeError> {
        match &self.sha256 {
            Some(committed) if sha256_of(&self.bytes) != *committed => {
                let reason = "holds other bytes than were committed, by their SHA-256; run `synclake verify --deep`";
                Err(MergeError::Damaged { path: self.path.clone(), reason: reason.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Checks the rows of the footer against those that the log claims.
    ///
    /// # Errors
    /// They differ.
    pub(super) fn check_rows(&self, rows: u64) -> Result<(), MergeError> {
        match self.rows.filter(|claimed| *claimed != rows) {
            Some(claimed) => {
                let reason = format!("holds {rows} rows, the log claims {claimed}; run `synclake verify`");
                Err(MergeError::Damaged { path: self.path.clone(), reason })
            }
            None => Ok(()),
        }
    }
}

/// Limits of a merge.
#[derive(Debug, Clone, Copy)]
pub(super) struct MergeLimits {
    /// Bytes of decoded rows that are sorted into a run.
    pub chunk_bytes: usize,
    /// Bytes of decoded rows that become a row group, if they are not enough rows.
    pub rows_bytes: usize,
    /// Files of at least this size are not sorted again if they are in order.
    pub large_bytes: usize,
    /// Runs that are merged at a time; at least two.
    pub fan_in: usize,
    /// Rows of a row group.
    pub group_rows: usize,
}

impl MergeLimits {
    /// Returns limits under which merging `input_bytes` needs about `work_bytes` beside input and output.
    pub(super) fn new(input_bytes: u64, work_bytes: u64) -> Self {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Self {
            chunk_bytes: bytes(work_bytes / 8 * 5),
            rows_bytes: bytes(work_bytes / 4 * 3),
            large_bytes: bytes(input_bytes / 8).max(1 << 20),
            fan_in: 16,
            group_rows: GROUP_ROWS,
        }
    }

    fn batch_bytes(&self) -> usize {
        (self.chunk_bytes / 64).clamp(64 << 10, 4 << 20)
    }
}

/// A merged file, which is not written yet.
#[derive(Debug)]
pub(super) struct MergedFile {
    /// Its content.
    pub bytes: Bytes,
    /// Its statistics for the log.
    pub statistics: Value,
    /// Its rows.
    pub rows: u64,
    /// Rows that were dropped, because another row counts them.
    pub rows_collapsed: u64,
    /// Whether it has the column `copies`.
    pub has_copies: bool,
}

/// The result of a merge.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// The new file; `None` if fewer than two files could be merged.
    pub file: Option<MergedFile>,
    /// Paths of the merged files.
    pub paths: Vec<String>,
    /// Files that must stay as they are, and why.
    pub left: Vec<(String, String)>,
}

/// The reason why files were not merged. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub(super) enum MergeError {
    /// A file cannot be read, or holds other rows than the log claims.
    #[error("{path} {reason}")]
    Damaged { path: String, reason: String },
    /// The new file has not the rows of the old ones (a bug).
    #[error("the merged file has {written} rows, its sources have {read}; this is a bug, and nothing was changed")]
    Lost { read: u64, written: u64 },
    /// The encoder rejects the rows (a bug, never the data).
    #[error(transparent)]
    Encode(#[from] ParquetError),
}

/// Merges files.
///
/// **Invariant: the new file has exactly as many rows as the old ones have by their own count and by the log's.**
///
/// # Errors
/// See [`MergeError`].
pub(super) fn merge(inputs: Vec<Input>, limits: MergeLimits) -> Result<Merged, MergeError> {
    let mut merged = Merged::default();
    let input_bytes = inputs.iter().map(|input| input.bytes.len()).sum::<usize>();
    let mut sorter = Sorter::new(limits);
    let mut expected = 0;
    for input in inputs {
        input.check_digest()?;
        let reader = match StoredReader::open(input.bytes.clone(), limits.batch_bytes()) {
            Ok(reader) => reader,
            Err(Unfit::Foreign(reason)) => {
                merged.left.push((input.path, reason));
                continue;
            }
            Err(Unfit::Damaged(error)) => return Err(damaged(&input.path, &error)),
        };
        let rows = reader.rows();
        input.check_rows(rows)?;
        expected += rows;
        sorter.has_copies |= reader.has_copies();
        merged.paths.push(input.path.clone());
        if input.bytes.len() >= limits.large_bytes {
            sorter.runs.push(Run { bytes: input.bytes, rows, source: Some(input.path) });
        } else {
            sorter.add(&input.path, reader)?;
        }
    }
    if merged.paths.len() < 2 {
        return Ok(merged);
    }
    let file = sorter.finish(input_bytes)?;
    if file.rows != expected {
        return Err(MergeError::Lost { read: expected, written: file.rows });
    }
    merged.file = Some(file);
    Ok(merged)
}

pub(super) fn damaged(path: &str, error: &ParquetError) -> MergeError {
    MergeError::Damaged { path: path.to_owned(), reason: format!("is no readable Parquet file: {error}") }
}

/// A sorted file in memory.
struct Run {
    bytes: Bytes,
    rows: u64,
    /// The path of a file of the lake. Its order is not known yet.
    source: Option<String>,
}

/// Sorts rows in chunks.
struct Sorter {
    limits: MergeLimits,
    chunk: Vec<StoredRows>,
    /// The buffers of the chunk that were counted.
    seen: HashSet<usize>,
    bytes: usize,
    runs: Vec<Run>,
    /// Whether a file has the column `copies`. Then all runs have it.
    has_copies: bool,
}

impl Sorter {
    fn new(limits: MergeLimits) -> Self {
        Self { limits, chunk: Vec::new(), seen: HashSet::new(), bytes: 0, runs: Vec::new(), has_copies: false }
    }

    /// Adds all rows of a file.
    fn add(&mut self, path: &str, reader: StoredReader) -> Result<(), MergeError> {
        let (rows, mut found) = (reader.rows(), 0);
        for batch in reader {
            let batch = batch.map_err(|error| damaged(path, &error))?;
            found += batch.len() as u64;
            self.bytes += batch.bytes(&mut self.seen);
            self.chunk.push(batch);
            if self.bytes >= self.limits.chunk_bytes {
                self.flush()?;
            }
        }
        if found != rows {
            let reason = format!("has {found} rows, but its footer states {rows}");
            return Err(MergeError::Damaged { path: path.to_owned(), reason });
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MergeError> {
        let chunk = std::mem::take(&mut self.chunk);
        self.seen.clear();
        if !chunk.is_empty() {
            let (bytes, _, rows) = self.encode(&chunk, self.bytes / 8, true)?;
            self.runs.push(Run { bytes, rows, source: None });
        }
        self.bytes = 0;
        Ok(())
    }

    fn encode(
        &self,
        chunk: &[StoredRows],
        capacity: usize,
        is_compressed: bool,
    ) -> Result<(Bytes, Value, u64), MergeError> {
        let mut writer = StoredWriter::new(capacity, is_compressed, self.has_copies)?;
        write_groups(&mut writer, &Ordered::new(chunk), self.limits.group_rows, true)?;
        Ok(writer.finish()?)
    }

    /// Merges everything into one file.
    fn finish(mut self, input_bytes: usize) -> Result<MergedFile, MergeError> {
        let is_compressed = input_bytes >= COMPRESSED_BYTES_MIN;
        let has_copies = self.has_copies;
        let file = |(bytes, statistics, rows)| MergedFile { bytes, statistics, rows, rows_collapsed: 0, has_copies };
        if self.runs.is_empty() {
            return self.encode(&self.chunk, input_bytes, is_compressed).map(file);
        }
        self.flush()?;
        loop {
            let is_last = self.runs.len() <= self.limits.fan_in;
            let some: Vec<Run> = self.runs.drain(..self.runs.len().min(self.limits.fan_in)).collect();
            match merge_runs(&some, self.limits, is_compressed, has_copies)? {
                ControlFlow::Continue(encoded) if is_last => return Ok(file(encoded)),
                ControlFlow::Continue((bytes, _, rows)) => self.runs.push(Run { bytes, rows, source: None }),
                ControlFlow::Break(unsorted) => {
                    for (index, run) in some.into_iter().enumerate() {
                        match run.source {
                            Some(path) if index == unsorted => {
                                let reader = open(&run.bytes, self.limits).map_err(|error| damaged(&path, &error))?;
                                self.add(&path, reader)?;
                            }
                            source => self.runs.push(Run { source, ..run }),
                        }
                    }
                    self.flush()?;
                }
            }
        }
    }
}

pub(super) fn open(bytes: &Bytes, limits: MergeLimits) -> Result<StoredReader, ParquetError> {
    StoredReader::open(bytes.clone(), limits.batch_bytes()).map_err(|unfit| match unfit {
        Unfit::Damaged(error) => error,
        Unfit::Foreign(reason) => ParquetError::General(reason),
    })
}

/// Writes rows as row groups, the last one too if `is_end`. Returns the number of written rows.
pub(super) fn write_groups(
    writer: &mut StoredWriter,
    rows: &Ordered<'_>,
    group_rows: usize,
    is_end: bool,
) -> Result<usize, MergeError> {
    let mut start = 0;
    while start < rows.len() {
        let (end, is_full) = rows.group(start, group_rows, GROUP_BYTES);
        if !is_full && !is_end {
            break;
        }
        writer.write(rows, start..end)?;
        start = end;
    }
    Ok(start)
}

/// A position in a run, and the rows that were read from there.
struct Cursor<'a> {
    run: &'a Run,
    reader: StoredReader,
    batches: VecDeque<StoredRows>,
    /// The last row that was read, while the order of the run is not known.
    last: Option<StoredRows>,
    found: u64,
    is_done: bool,
}

/// The rows are not in order.
struct OutOfOrder;

impl<'a> Cursor<'a> {
    fn new(run: &'a Run, limits: MergeLimits) -> Result<Self, MergeError> {
        let reader = open(&run.bytes, limits).map_err(|error| failed(run, &error))?;
        Ok(Self { run, reader, batches: VecDeque::new(), last: None, found: 0, is_done: false })
    }

    /// Reads the next rows of the run.
    fn read(&mut self) -> Result<Result<(), OutOfOrder>, MergeError> {
        let Some(batch) = self.reader.next() else {
            self.is_done = true;
            if self.found != self.run.rows {
                let (found, rows) = (self.found, self.run.rows);
                let error = ParquetError::General(format!("{found} of {rows} rows"));
                return Err(failed(self.run, &error));
            }
            return Ok(Ok(()));
        };
        let batch = batch.map_err(|error| failed(self.run, &error))?;
        if batch.len() == 0 {
            return Ok(Ok(()));
        }
        if self.run.source.is_some() {
            let is_after = self.last.as_ref().is_none_or(|last| last.compare(0, &batch, 0).is_le());
            if !is_after || (1..batch.len()).any(|row| batch.compare(row - 1, &batch, row).is_gt()) {
                return Ok(Err(OutOfOrder));
            }
            self.last = Some(batch.slice(batch.len() - 1, 1));
        }
        self.found += batch.len() as u64;
        self.batches.push_back(batch);
        Ok(Ok(()))
    }

    /// Returns the rows that do not sort after a row.
    fn until(&self, bound: &StoredRows, at: usize) -> Vec<StoredRows> {
        let mut slices = Vec::new();
        for batch in &self.batches {
            let rows = partition_point(batch.len(), |row| batch.compare(row, bound, at).is_le());
            if rows == 0 {
                break;
            }
            slices.push(batch.slice(0, rows));
            if rows < batch.len() {
                break;
            }
        }
        slices
    }

    /// Drops the first rows.
    fn skip(&mut self, mut rows: usize) {
        while rows > 0 {
            let Some(batch) = self.batches.pop_front() else { break };
            if batch.len() > rows {
                self.batches.push_front(batch.slice(rows, batch.len() - rows));
                break;
            }
            rows -= batch.len();
        }
    }
}

fn failed(run: &Run, error: &ParquetError) -> MergeError {
    match &run.source {
        Some(path) => damaged(path, error),
        None => MergeError::Encode(ParquetError::General(format!("cannot read a sorted run: {error}"))),
    }
}

fn partition_point(len: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

type Encoded = (Bytes, Value, u64);

/// Merges runs into one. Breaks with the index of a run that is out of order.
fn merge_runs(
    runs: &[Run],
    limits: MergeLimits,
    is_compressed: bool,
    has_copies: bool,
) -> Result<ControlFlow<usize, Encoded>, MergeError> {
    let capacity = runs.iter().map(|run| run.bytes.len()).sum();
    let mut writer = StoredWriter::new(capacity, is_compressed, has_copies)?;
    let mut cursors = runs.iter().map(|run| Cursor::new(run, limits)).collect::<Result<Vec<_>, _>>()?;
    loop {
        for (index, cursor) in cursors.iter_mut().enumerate() {
            while cursor.batches.is_empty() && !cursor.is_done {
                if cursor.read()?.is_err() {
                    return Ok(ControlFlow::Break(index));
                }
            }
        }
        // The lowest last row of the runs that have more rows.
        let lasts = (0..cursors.len()).filter(|index| !cursors[*index].is_done);
        let lowest = lasts.min_by(|a, b| match (cursors[*a].batches.back(), cursors[*b].batches.back()) {
            (Some(a), Some(b)) => a.compare(a.len() - 1, b, b.len() - 1),
            _ => std::cmp::Ordering::Equal,
        });
        let bound = lowest.and_then(|index| Some((index, cursors[index].batches.back()?.clone())));
        let slices: Vec<Vec<StoredRows>> = match &bound {
            Some((_, last)) => cursors.iter().map(|cursor| cursor.until(last, last.len() - 1)).collect(),
            None => cursors.iter().map(|cursor| cursor.batches.iter().cloned().collect()).collect(),
        };
        if let Some((lowest, _)) = bound
            && !is_enough(&slices, limits)
        {
            if cursors[lowest].read()?.is_err() {
                return Ok(ControlFlow::Break(lowest));
            }
            continue;
        }
        let counts: Vec<usize> = slices.iter().map(Vec::len).collect();
        let rows: Vec<StoredRows> = slices.into_iter().flatten().collect();
        let ordered = Ordered::new(&rows);
        // Rows that fill memory but no row group become a smaller row group.
        let mut written = write_groups(&mut writer, &ordered, limits.group_rows, bound.is_none())?;
        if written == 0 {
            written = write_groups(&mut writer, &ordered, limits.group_rows, true)?;
        }
        let mut taken = ordered.rows_of_batches(0..written).into_iter();
        for (cursor, slices) in cursors.iter_mut().zip(counts) {
            cursor.skip(taken.by_ref().take(slices).sum());
        }
        if bound.is_none() {
            return Ok(ControlFlow::Continue(writer.finish()?));
        }
    }
}

/// Returns whether rows fill a row group, or as much memory as rows may take.
pub(super) fn is_enough(slices: &[Vec<StoredRows>], limits: MergeLimits) -> bool {
    let mut seen = HashSet::new();
    let (mut rows, mut bytes) = (0, 0);
    for batch in slices.iter().flatten() {
        rows += batch.len();
        bytes += batch.bytes(&mut seen);
    }
    rows >= limits.group_rows || bytes >= limits.rows_bytes
}

#[cfg(test)]
pub(super) mod tests;
