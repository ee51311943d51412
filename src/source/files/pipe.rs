//! Standard input, named pipes and everything else that can be read only once: read as it comes, until a signal.
//!
//! # Cancellation
//! No read blocks: each waits for at most [`TICK`], then it returns [`ErrorKind::WouldBlock`]. After `stop` is cancelled
//! it gives what already is in the pipe, and then only [`ErrorKind::WouldBlock`]. The descriptor is polled and its flags
//! stay as they are, because other processes may share them.

use std::fs::File;
use std::io::{ErrorKind, Read, Result};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use tokio_util::sync::CancellationToken;

/// How long one read waits for bytes: a signal is noticed this soon.
const TICK: Duration = Duration::from_millis(100);
/// After a signal at most this much is read: more than a pipe can hold, unless its owner is privileged.
const DRAIN_BYTES: usize = 1 << 20;

pub(super) struct Pipe {
    file: File,
    stop: CancellationToken,
    /// Bytes that may still be read; known once there was a signal.
    left: Option<usize>,
}

impl Pipe {
    pub(super) fn new(file: File, stop: CancellationToken) -> Self {
        Self { file, stop, left: None }
    }

    /// Standard input, which stays open.
    pub(super) fn stdin(stop: CancellationToken) -> Result<Self> {
        Ok(Self::new(File::from(std::io::stdin().as_fd().try_clone_to_owned()?), stop))
    }

    /// Whether what was read cannot be read again. Standard input may also be a regular file.
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
        let room = self.left.unwrap_or(usize::MAX).min(into.len());
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
