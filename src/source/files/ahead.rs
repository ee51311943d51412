//! A buffered reader that can look some bytes ahead without consuming them.

use std::io::{BufRead, ErrorKind, Read, Result};

/// Bytes that one read may return at most.
pub(super) const BUFFER_BYTES: usize = 1 << 18;

/// A `BufReader` that also has [`Ahead::ahead`].
pub(super) struct Ahead<R> {
    inner: R,
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

impl<R: Read> Ahead<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), from: 0, to: 0 }
    }

    /// Returns the next bytes: at least `count` of them, or all that are left. `count` must be far below the buffer
    /// size.
    ///
    /// # Errors
    /// The error of the inner reader. Bytes read before the error stay in the buffer, so the call can be repeated.
    pub(super) fn ahead(&mut self, count: usize) -> Result<&[u8]> {
        while self.to - self.from < count {
            if self.from > 0 {
                self.buffer.copy_within(self.from..self.to, 0);
                self.to -= self.from;
                self.from = 0;
            }
            match self.inner.read(&mut self.buffer[self.to..]) {
                Ok(0) => break,
                Ok(read) => self.to += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[self.from..self.to])
    }

    /// Returns the number of bytes in the buffer.
    pub(super) fn buffered(&self) -> usize {
        self.to - self.from
    }
}

impl<R: Read> Read for Ahead<R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let buffer = self.fill_buf()?;
        let count = buffer.len().min(into.len());
        into[..count].copy_from_slice(&buffer[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Ahead<R> {
    fn fill_buf(&mut self) -> Result<&[u8]> {
        self.ahead(1)
    }

    fn consume(&mut self, count: usize) {
        self.from = (self.from + count).min(self.to);
    }
}
