//! The pager of the shell: `$PAGER`, or `less` without line breaks.

use std::io;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Long lines are cut, a short result needs no key, and colours pass.
const DEFAULT: &str = "less -SFRX";

/// A running pager. When this value is dropped, its input ends, and the shell waits until the user leaves it.
pub(super) struct Pager {
    child: Child,
}

impl Pager {
    /// Starts the pager.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(super) fn start() -> io::Result<Self> {
        let asked = std::env::var("PAGER").ok().filter(|asked| !asked.trim().is_empty());
        let command = asked.unwrap_or_else(|| DEFAULT.to_owned());
        Ok(Self { child: Command::new("sh").args(["-c", &command]).stdin(Stdio::piped()).spawn()? })
    }

    /// Returns what the pager reads.
    pub(super) fn input(&mut self) -> impl io::Write + Send + use<> {
        Input(self.child.stdin.take())
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // The user has seen what the pager showed; its exit code says nothing about the result.
        let _ = self.child.wait();
    }
}

struct Input(Option<ChildStdin>);

impl io::Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_mut().map_or(Err(io::ErrorKind::BrokenPipe.into()), |input| input.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), io::Write::flush)
    }
}
