//! Lines of a file, with the offset and the digest of all bytes before each line.

use std::io::{Error, ErrorKind, Result};

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::LINE_BYTES_MAX;
use super::identity::Digest;
use super::input::Input;
use super::values::Values;

/// Bytes of a block that holds lines.
const BLOCK_BYTES: usize = 1 << 20;

/// A line without its line break, cut to one byte more than the limit.
pub(super) struct Line {
    pub(super) bytes: Bytes,
    /// Length in the file, with the line break.
    pub(super) length: usize,
    /// Whether the line has a line break.
    pub(super) ended: bool,
}

/// The result of [`Lines::next`].
pub(super) enum Next {
    Line(Line),
    /// The writer has not sent more bytes yet.
    Wait,
    /// No further line break follows; [`Lines::rest`] returns the bytes after the last one.
    End,
}

pub(super) struct Lines {
    input: Input,
    /// Bytes of the input's buffer that belong to accepted lines and are not consumed yet. They are hashed together,
    /// because a hash of many bytes at once is several times faster.
    pending: usize,
    /// Bytes of all consumed bytes.
    consumed_bytes: u64,
    /// Digest of all consumed bytes.
    consumed: Digest,
    /// Bytes of all accepted lines.
    offset: u64,
    /// Digest of the first `offset` bytes, if the bytes consumed since then belong to a line that is not accepted.
    digest: Digest,
    /// Bytes of the line that is being read. The lines of a chunk are slices of a few blocks, because one allocation per
    /// line would cost as much as reading it.
    line: BytesMut,
    length: usize,
    /// Finds the ends of records that need no line break; `None` for a file of lines.
    values: Option<Values>,
}

impl Lines {
    /// Creates a reader at the beginning of an input.
    pub(super) fn new(input: Input, start: Digest) -> Self {
        let (consumed, digest) = (start.clone(), start);
        let line = BytesMut::new();
        Self { input, pending: 0, consumed_bytes: 0, consumed, offset: 0, digest, line, length: 0, values: None }
    }

    /// As [`Self::new`], for an input whose records need no line break between them. A line is then a record.
    pub(super) fn of_values(input: Input, start: Digest) -> Self {
        Self { values: Some(Values::default()), ..Self::new(input, start) }
    }

    /// Returns bytes at the current place, as many as one read gives, and consumes none.
    pub(super) fn start(&mut self) -> Result<&[u8]> {
        self.input.fill_buf()
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    /// Returns the bytes of all accepted lines.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the digest of the first [`Lines::offset`] bytes.
    ///
    /// # Errors
    /// The input cannot keep the bytes for a second reading.
    pub(super) fn digest(&mut self) -> Result<&Digest> {
        self.consume_pending()?;
        if self.consumed_bytes == self.offset {
            self.digest = self.consumed.clone();
        }
        Ok(&self.digest)
    }

    fn consume_pending(&mut self) -> Result<()> {
        if self.pending > 0 {
            self.consume(self.pending)?;
            self.pending = 0;
        }
        Ok(())
    }

    /// Hashes and consumes the next `count` bytes, which are in the input's buffer.
    fn consume(&mut self, count: usize) -> Result<()> {
        self.consumed.update(&self.input.fill_buf()?[..count]);
        self.input.consume(count)?;
        self.consumed_bytes += count as u64;
        Ok(())
    }

    /// Returns the next line that has a line break, and accepts it.
    pub(super) fn next(&mut self) -> Result<Next> {
        loop {
            let buffer = match self.input.fill_buf() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Wait),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                buffer => buffer?,
            };
            if buffer.is_empty() {
                return Ok(Next::End);
            }
            let rest = &buffer[self.pending..];
            if rest.is_empty() {
                self.consume_pending()?;
                continue;
            }
            let end = match &mut self.values {
                None => memchr::memchr(b'\n', rest).map(|at| at + 1),
                Some(values) => values.end(rest),
            };
            let count = end.unwrap_or(rest.len());
            // The rest of a line that is too long enters the digest, but not memory.
            let room = (LINE_BYTES_MAX + 1).saturating_sub(self.line.len());
            let kept = &rest[..count.min(room)];
            if self.line.is_empty() && self.line.capacity() < kept.len() {
                self.line = BytesMut::with_capacity(kept.len().max(BLOCK_BYTES));
            }
            self.line.extend_from_slice(kept);
            if end.is_some() {
                self.pending += count;
                self.length += count;
                let line = self.take(true);
                self.offset += line.length as u64;
                return Ok(Next::Line(line));
            }
            if self.length == 0 {
                // The digest at the beginning of the line, before any of its bytes.
                self.digest()?;
            }
            self.length += count;
            self.consume(count)?;
        }
    }

    /// Returns the bytes after the last line break, if there are any. Only [`Lines::accept`] accepts them.
    pub(super) fn rest(&mut self) -> Option<Line> {
        (self.length > 0).then(|| self.take(false))
    }

    /// Accepts the line that [`Lines::rest`] returned.
    pub(super) fn accept(&mut self, line: &Line) {
        self.offset += line.length as u64;
    }

    fn take(&mut self, ended: bool) -> Line {
        let mut bytes = self.line.split().freeze();
        for end in [b'\n', b'\r'] {
            if bytes.last() == Some(&end) {
                bytes.truncate(bytes.len() - 1);
            }
        }
        Line { bytes, length: std::mem::take(&mut self.length), ended }
    }

    /// Advances towards `offset`, by one buffer at most.
    pub(super) fn step_to(&mut self, offset: u64) -> Result<Step> {
        self.consume_pending()?;
        if self.offset < offset {
            let buffer = match self.input.fill_buf() {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Ok(Step::Under);
                }
                buffer => buffer?,
            };
            if buffer.is_empty() {
                return Ok(Step::End);
            }
            // At most the length of the buffer, which is a usize.
            let count = (buffer.len() as u64).min(offset - self.offset) as usize;
            self.consume(count)?;
            self.offset += count as u64;
        }
        if self.offset < offset {
            return Ok(Step::Under);
        }
        Ok(Step::There)
    }

    /// Goes back to an offset whose digest is known. Returns `false` if `stop` was cancelled meanwhile.
    ///
    /// # Errors
    /// The beginning of the file has changed, or the file cannot be read.
    pub(super) fn rewind(&mut self, offset: u64, digest: &Digest, stop: &CancellationToken) -> Result<bool> {
        self.consume_pending()?;
        let from = self.input.rewind(offset)?;
        (self.line, self.length) = (BytesMut::new(), 0);
        self.consumed = if from == offset { digest.clone() } else { digest.fresh() };
        (self.offset, self.consumed_bytes) = (from, from);
        loop {
            match self.step_to(offset)? {
                Step::There => break,
                Step::Under if stop.is_cancelled() => return Ok(false),
                Step::Under => {}
                Step::End => return Err(changed()),
            }
        }
        if self.digest()?.is_same(digest) { Ok(true) } else { Err(changed()) }
    }

    /// Promises never to go back below the current offset.
    pub(super) fn forget_before(&mut self) {
        self.input.forget_before(self.offset);
    }

    /// Promises never to go back, and forgets the digest that only older versions used.
    pub(super) fn forget(&mut self) {
        self.consumed.forget_older();
        self.digest.forget_older();
        self.input.forget();
    }
}

/// The result of [`Lines::step_to`].
pub(super) enum Step {
    There,
    Under,
    End,
}

fn changed() -> Error {
    Error::other("its beginning changed while it was read; run again")
}
