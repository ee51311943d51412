//! The bytes of a file or pipe, unpacked.
//!
//! A pipe is read by a thread of its own, because a read of one may wait for ever: whoever takes the blocks can stop waiting,
//! and sees whether there are more. A block that the thread has taken from the pipe is never dropped by a stop: the blocks that
//! are there are handed out first.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::list::is_pipe;

const BUFFER: usize = 1 << 18;
/// Blocks of a pipe that wait to be taken.
const BLOCKS: usize = 4;
const BLOCK_BYTES: usize = 1 << 16;
/// How often a reader that waits for a pipe looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);
/// zstd's own default: a frame with a larger window needs more memory than is promised.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The unpacked bytes of a file.
pub(super) struct Input {
    bytes: BufReader<Box<dyn Read + Send>>,
    /// Blocks that wait, if this is a pipe.
    waiting: Option<Arc<AtomicUsize>>,
}

impl Input {
    /// Opens a path. For a pipe nothing is waited for once `stop` is cancelled: what is there is read to its end.
    pub(super) fn open(path: &Path, stop: &CancellationToken) -> io::Result<Self> {
        if !is_pipe(path) {
            let file = BufReader::with_capacity(BUFFER, std::fs::File::open(path)?);
            return Ok(Self { bytes: unpacked(file)?, waiting: None });
        }
        let waiting = Arc::new(AtomicUsize::new(0));
        let blocks = Blocks {
            taken: read_pipe(path, waiting.clone(), stop.clone())?,
            waiting: waiting.clone(),
            stop: stop.clone(),
            rest: Vec::new(),
            at: 0,
        };
        let bytes = unpacked(BufReader::with_capacity(BLOCK_BYTES, blocks))?;
        Ok(Self { bytes, waiting: Some(waiting) })
    }

    /// Whether the bytes come from a pipe, which cannot be read again.
    pub(super) fn is_pipe(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether the next line may have to be waited for.
    pub(super) fn may_wait(&self) -> bool {
        let is_dry = |waiting: &Arc<AtomicUsize>| waiting.load(Ordering::Acquire) == 0;
        self.waiting.as_ref().is_some_and(is_dry) && memchr::memchr(b'\n', self.bytes.buffer()).is_none()
    }
}

impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(out)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.bytes.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.bytes.consume(amount);
    }
}

/// Starts the thread that reads a pipe. It is not waited for: it may hang in a read, or in opening a pipe without a writer.
fn read_pipe(
    path: &Path,
    waiting: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> io::Result<Receiver<io::Result<Vec<u8>>>> {
    let (send, taken) = sync_channel(BLOCKS);
    let path = path.to_owned();
    let read = move || {
        let input: io::Result<Box<dyn Read>> = match path == Path::new("-") {
            true => Ok(Box::new(io::stdin())),
            false => std::fs::File::open(&path).map(|file| Box::new(file) as Box<dyn Read>),
        };
        match input {
            Ok(input) => pump(input, &send, &waiting, &stop),
            Err(error) => drop(send.send(Err(error))),
        }
    };
    std::thread::Builder::new().name("pipe".to_owned()).spawn(read)?;
    Ok(taken)
}

fn pump(
    mut input: Box<dyn Read>,
    send: &SyncSender<io::Result<Vec<u8>>>,
    waiting: &AtomicUsize,
    stop: &CancellationToken,
) {
    // A writer that never pauses must not keep a stopped run alive.
    while !stop.is_cancelled() {
        let mut block = vec![0; BLOCK_BYTES];
        let read = match input.read(&mut block) {
            Ok(0) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(length) => {
                block.truncate(length);
                Ok(block)
            }
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        waiting.fetch_add(1, Ordering::AcqRel);
        if send.send(read).is_err() || failed {
            return;
        }
    }
}

/// The blocks of a pipe as one stream.
struct Blocks {
    taken: Receiver<io::Result<Vec<u8>>>,
    waiting: Arc<AtomicUsize>,
    stop: CancellationToken,
    rest: Vec<u8>,
    at: usize,
}

impl Read for Blocks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() {
            match self.taken.recv_timeout(LOOK) {
                Ok(block) => {
                    self.waiting.fetch_sub(1, Ordering::AcqRel);
                    (self.rest, self.at) = (block?, 0);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
                Err(RecvTimeoutError::Timeout) if self.stop.is_cancelled() => return Ok(0),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let length = (self.rest.len() - self.at).min(out.len());
        out[..length].copy_from_slice(&self.rest[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Unpacks by the content, not by the name: files are renamed, and a pipe has no name.
fn unpacked<R: BufRead + Send + 'static>(mut input: R) -> io::Result<BufReader<Box<dyn Read + Send>>> {
    let head = input.fill_buf()?;
    let head: [u8; 4] = std::array::from_fn(|n| head.get(n).copied().unwrap_or(0));
    // A frame, or a frame to be skipped, which tools put first.
    let is_zstd = head == [0x28, 0xb5, 0x2f, 0xfd] || (head[0] & 0xf0 == 0x50 && head[1..] == [0x2a, 0x4d, 0x18]);
    let bytes: Box<dyn Read + Send> = if head.starts_with(&[0x1f, 0x8b]) {
        Box::new(Gzip { member: Some(flate2::bufread::GzDecoder::new(input)) })
    } else if is_zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Box::new(Zstd(decoder))
    } else {
        // What is buffered here is all that a pipe has given so far: it must be seen by `may_wait`.
        Box::new(input)
    };
    Ok(BufReader::with_capacity(BUFFER, bytes))
}

/// Members one after the other, as `gzip -d` reads them: zeros behind the last one are padding, anything else is ignored.
struct Gzip<R> {
    member: Option<flate2::bufread::GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let length = member.read(out)?;
            if length > 0 || out.is_empty() {
                return Ok(length);
            }
            let Some(mut input) = self.member.take().map(flate2::bufread::GzDecoder::into_inner) else { return Ok(0) };
            loop {
                let rest = input.fill_buf()?;
                let zeros = rest.iter().take_while(|byte| **byte == 0).count();
                match rest.get(zeros) {
                    None if rest.is_empty() => return Ok(0),
                    None => input.consume(zeros),
                    Some(0x1f) => {
                        input.consume(zeros);
                        self.member = Some(flate2::bufread::GzDecoder::new(input));
                        break;
                    }
                    Some(_) => {
                        tracing::warn!(
                            "bytes behind the end of a gzip file are no gzip, and are ignored, as gzip does"
                        );
                        return Ok(0);
                    }
                }
            }
        }
        Ok(0)
    }
}

/// Says what to do where zstd's own tool could go on.
struct Zstd<R: Read>(R);

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => error,
            kind => {
                let way = "if `zstd -dc --long=31 FILE` reads it, pipe it: zstd -dc --long=31 FILE | synclake ingest --source file:-";
                io::Error::new(kind, format!("{error}; {way}"))
            }
        })
    }
}
