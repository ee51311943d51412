//! Standard output that stops when the query is cancelled.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use tokio_util::sync::CancellationToken;

/// Bytes written at a time: a cancelled query stops between two writes.
const WRITE_BYTES: usize = 8 << 10;

/// Standard output that stops when the query is cancelled.
///
/// It has its own file descriptor, so an abandoned query holds no lock that the next query needs.
pub(in crate::shell) struct Stoppable {
    file: File,
    cancel: CancellationToken,
}

impl Stoppable {
    pub(in crate::shell) fn stdout(cancel: &CancellationToken) -> io::Result<Self> {
        Ok(Self { file: io::stdout().as_fd().try_clone_to_owned()?.into(), cancel: cancel.clone() })
    }
}

impl Write for Stoppable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.file.write(&bytes[..bytes.len().min(WRITE_BYTES)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
