//! Reads standard input, named pipes and other inputs that can be read only once, as bytes arrive, until a signal.
//!
//! # Cancellation
//! No read blocks: each waits for at most [`TICK`], then it returns [`ErrorKind::WouldBlock`]. After `stop` is
//! cancelled, reads return the bytes that are already in the pipe, and then only [`ErrorKind::WouldBlock`]. The
//! descriptor is polled and its flags stay unchanged, because other processes may share them.

use std::fs::File;
use std::io::{ErrorKind, Read, Result};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use tokio_util::sync::CancellationToken;

/// Time that one read waits for bytes, and thus the longest delay until a signal is noticed.
const TICK: Duration = Duration::from_millis(100);
/// Bytes read after a signal, at most: more than a pipe can hold, unless its owner is privileged.
const DRAIN_BYTES: usize = 1 << 20;

pub(super) struct Pipe {
    file: File,
    stop: CancellationToken,
    /// Bytes that may still be read; set by the first read after a signal.
    left: Option<usize>,
}

impl Pipe {
    pub(super) fn new(file: File, stop: CancellationToken) -> Self {
        Self { file, stop, left: None }
    }

    /// Returns a reader of standard input, which stays open.
    pub(super) fn stdin(stop: CancellationToken) -> Result<Self> {
        Ok(Self::new(File::from(std::io::stdin().as_fd().try_clone_to_owned()?), stop))
    }

    /// Returns whether the bytes cannot be read again. Standard input may also be a regular file.
    pub(super) fn is_gone(&self) -> bool {
        !self.file.metadata().is_ok_and(|meta| meta.is_file())
    }

    fn is_readable(&self, wait: Duration) -> Result<bool> {
        let mut descriptors = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        match poll(&mut descriptors, wait) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let is_stopped = self.stop.is_cancelled();
        if is_stopped && self.left.is_none() {
            self.left = Some(if self.is_gone() { DRAIN_BYTES } else { 0 });
        }
        let room = self.left.map_or(into.len(), |left| left.min(into.len()));
        let wait = if is_stopped { Duration::ZERO } else { TICK };
        if room == 0 || !self.is_readable(wait)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = self.file.read(&mut into[..room])?;
        if let Some(left) = &mut self.left {
            *left -= count;
        }
        Ok(count)
    }
}
