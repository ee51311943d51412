//! Lines of a file, with the offset and the digest of all bytes before each line.

use std::io::{Error, ErrorKind, Result};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::LINE_BYTES_MAX;
use super::input::Input;

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
    /// Bytes of all accepted lines.
    offset: u64,
    /// Digest of the first `offset` bytes.
    digest: Sha256,
    /// Digest of all consumed bytes.
    consumed: Sha256,
    /// Bytes of the line that is being read. The lines of a chunk are slices of a few blocks, because one allocation per
    /// line would cost as much as reading it.
    line: BytesMut,
    length: usize,
}

impl Lines {
    pub(super) fn new(input: Input) -> Self {
        Self { input, offset: 0, digest: Sha256::new(), consumed: Sha256::new(), line: BytesMut::new(), length: 0 }
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    /// Returns the bytes of all accepted lines.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the digest of the first [`Lines::offset`] bytes.
    pub(super) fn digest(&self) -> &Sha256 {
        &self.digest
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
            let end = memchr::memchr(b'\n', buffer);
            let count = end.map_or(buffer.len(), |at| at + 1);
            self.consumed.update(&buffer[..count]);
            // The rest of a line that is too long enters the digest, but not memory.
            let room = (LINE_BYTES_MAX + 1).saturating_sub(self.line.len());
            let kept = &buffer[..count.min(room)];
            if self.line.is_empty() && self.line.capacity() < kept.len() {
                self.line = BytesMut::with_capacity(kept.len().max(BLOCK_BYTES));
            }
            self.line.extend_from_slice(kept);
            self.length += count;
            self.input.consume(count)?;
            if end.is_some() {
                let line = self.take(true);
                self.accept(&line);
                return Ok(Next::Line(line));
            }
        }
    }

    /// Returns the bytes after the last line break, if there are any. Only [`Lines::accept`] accepts them.
    pub(super) fn rest(&mut self) -> Option<Line> {
        (self.length > 0).then(|| self.take(false))
    }

    pub(super) fn accept(&mut self, line: &Line) {
        self.offset += line.length as u64;
        self.digest = self.consumed.clone();
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
            self.consumed.update(&buffer[..count]);
            self.input.consume(count)?;
            self.offset += count as u64;
        }
        if self.offset < offset {
            return Ok(Step::Under);
        }
        self.digest = self.consumed.clone();
        Ok(Step::There)
    }

    /// Goes back to an offset whose digest is known. Returns `false` if `stop` was cancelled meanwhile.
    ///
    /// # Errors
    /// The beginning of the file has changed, or the file cannot be read.
    pub(super) fn rewind(&mut self, offset: u64, digest: &Sha256, stop: &CancellationToken) -> Result<bool> {
        let from = self.input.rewind(offset)?;
        (self.line, self.length) = (BytesMut::new(), 0);
        (self.offset, self.consumed) = if from == offset { (offset, digest.clone()) } else { (0, Sha256::new()) };
        self.digest = self.consumed.clone();
        loop {
            match self.step_to(offset)? {
                Step::There => break,
                Step::Under if stop.is_cancelled() => return Ok(false),
                Step::Under => {}
                Step::End => return Err(changed()),
            }
        }
        if self.digest.clone().finalize() == digest.clone().finalize() { Ok(true) } else { Err(changed()) }
    }

    /// Promises never to go back below the current offset.
    pub(super) fn forget_before(&mut self) {
        self.input.forget_before(self.offset);
    }

    /// Promises never to go back.
    pub(super) fn forget(&mut self) {
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
