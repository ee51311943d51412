//! The unpacked bytes of an input: a regular file, or an input that can be read only once.
//!
//! The bytes that identify a file are read again afterwards. A regular file is read again through its open descriptor,
//! because its name may lead to another file by then. The bytes of an input that can be read only once are kept until
//! then. They stay in memory, and beyond [`KEPT_BYTES`] in an unnamed temporary file.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use tempfile::SpooledTempFile;

use super::ahead::{Ahead, BUFFER_BYTES};
use super::packed::{Format, Gunzip, Unzstd, sniff};
use super::pipe::Pipe;
use super::{ReadOptions, shown};

/// Bytes kept in memory of an input that can be read only once.
const KEPT_BYTES: usize = 8 << 20;

type Reader = Box<dyn BufRead + Send>;

pub(super) struct Input {
    reader: Reader,
    origin: Origin,
    format: Format,
    name: String,
    window_log_max: u32,
}

enum Origin {
    Regular(Arc<File>),
    Once {
        is_gone: bool,
        /// Start offset and content of the bytes kept for a rewind; `None` once no rewind can follow.
        kept: Option<(u64, SpooledTempFile)>,
    },
}

/// The result of opening an input.
pub(super) enum Begun {
    Input(Input),
    /// A signal came before the first bytes. The bytes read until then are lost.
    Stopped {
        bytes: u64,
    },
}

impl Input {
    /// Opens a file; `-` is standard input. Opening a named pipe does not wait for its writer.
    pub(super) fn open(path: &Path, options: &ReadOptions) -> Result<Begun> {
        let name = shown(path);
        let pipe = if path == Path::new("-") {
            Pipe::stdin(options.stop.clone())?
        } else {
            // Without the flag, opening a named pipe waits for its writer. Regular files ignore the flag.
            let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
            let meta = file.metadata()?;
            if meta.is_dir() {
                return Err(ErrorKind::IsADirectory.into());
            }
            if meta.is_file() {
                let file = Arc::new(file);
                let mut input = Ahead::new(Shared(file.clone()));
                let format = sniff(&mut input)?;
                let reader = unpack(input, format, &name, options.window_log_max)?;
                let window_log_max = options.window_log_max;
                return Ok(Begun::Input(Self { reader, origin: Origin::Regular(file), format, name, window_log_max }));
            }
            Pipe::new(file, options.stop.clone())
        };
        let is_gone = pipe.is_gone();
        let mut input = Ahead::new(pipe);
        let format = loop {
            // Check the signal before the read: bytes that arrive between a read and a signal must still be read.
            let is_stopped = options.stop.is_cancelled();
            match sniff(&mut input) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                Err(_) if is_stopped => {
                    return Ok(Begun::Stopped { bytes: if is_gone { input.buffered() as u64 } else { 0 } });
                }
                Err(_) => {}
                Ok(format) => break format,
            }
        };
        let reader = unpack(input, format, &name, options.window_log_max)?;
        let kept = Some((0, SpooledTempFile::new(KEPT_BYTES)));
        let window_log_max = options.window_log_max;
        Ok(Begun::Input(Self { reader, origin: Origin::Once { is_gone, kept }, format, name, window_log_max }))
    }

    /// Reads the bytes of an object.
    ///
    /// # Errors
    /// The first bytes cannot be read; [`ErrorKind::WouldBlock`] after a signal.
    pub(super) fn of_object(name: &str, bytes: impl Read + Send + 'static, options: &ReadOptions) -> Result<Self> {
        let mut input = Ahead::new(bytes);
        let format = sniff(&mut input)?;
        let window_log_max = options.window_log_max;
        let reader = unpack(input, format, name, window_log_max)?;
        let origin = Origin::Once { is_gone: false, kept: None };
        Ok(Self { reader, origin, format, name: name.to_owned(), window_log_max })
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Returns whether the bytes arrive when their writer sends them, and not all at once.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.origin, Origin::Once { .. })
    }

    /// Returns whether another run cannot read the same bytes again.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.origin, Origin::Once { is_gone: true, .. })
    }

    /// Returns the next bytes; an empty slice at the end.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] if no bytes have arrived yet; other kinds if the input cannot be read or unpacked.
    pub(super) fn fill_buf(&mut self) -> Result<&[u8]> {
        self.reader.fill_buf()
    }

    /// Consumes bytes that [`Input::fill_buf`] returned.
    pub(super) fn consume(&mut self, count: usize) -> Result<()> {
        if let Origin::Once { kept: Some((_, kept)), .. } = &mut self.origin {
            let buffer = self.reader.fill_buf()?;
            kept.write_all(&buffer[..count])?;
        }
        self.reader.consume(count);
        Ok(())
    }

    /// Goes back to `offset`. Returns the offset of the next byte: a regular file begins again at its start.
    pub(super) fn rewind(&mut self, offset: u64) -> Result<u64> {
        match &mut self.origin {
            Origin::Regular(file) => {
                (&**file).seek(SeekFrom::Start(0))?;
                let input = Ahead::new(Shared(file.clone()));
                self.reader = unpack(input, self.format, &self.name, self.window_log_max)?;
                Ok(0)
            }
            Origin::Once { kept, .. } => {
                let (from, mut bytes) = kept.take().ok_or_else(|| Error::other("nothing was kept to read again"))?;
                bytes.seek(SeekFrom::Start(offset.saturating_sub(from)))?;
                *kept = Some((offset, SpooledTempFile::new(KEPT_BYTES)));
                let rest = std::mem::replace(&mut self.reader, Box::new(std::io::empty()));
                self.reader = Box::new(BufReader::new(bytes).chain(rest));
                Ok(offset)
            }
        }
    }

    /// Promises never to go back below `offset`, which is the current offset of the reader.
    pub(super) fn forget_before(&mut self, offset: u64) {
        if let Origin::Once { kept: Some(kept), .. } = &mut self.origin {
            *kept = (offset, SpooledTempFile::new(KEPT_BYTES));
        }
    }

    /// Promises never to go back.
    pub(super) fn forget(&mut self) {
        if let Origin::Once { kept, .. } = &mut self.origin {
            *kept = None;
        }
    }
}

/// Returns whether another run cannot read the bytes of a path again.
pub fn is_gone(path: &Path) -> bool {
    let meta = match path == Path::new("-") {
        true => std::io::stdin().as_fd().try_clone_to_owned().and_then(|input| File::from(input).metadata()),
        false => std::fs::metadata(path),
    };
    meta.is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

fn unpack<R: Read + Send + 'static>(
    input: Ahead<R>,
    format: Format,
    name: &str,
    window_log_max: u32,
) -> Result<Reader> {
    Ok(match format {
        Format::Gzip => Box::new(BufReader::with_capacity(BUFFER_BYTES, Gunzip::new(input, name.to_owned()))),
        Format::Zstd => Box::new(BufReader::with_capacity(BUFFER_BYTES, Unzstd::new(input, window_log_max)?)),
        Format::Plain | Format::Foreign(..) => Box::new(input),
    })
}

/// A regular file whose descriptor other code may seek, too.
struct Shared(Arc<File>);

impl Read for Shared {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        (&*self.0).read(into)
    }
}
