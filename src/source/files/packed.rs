//! Detects packed files by their first bytes, and unpacks them as `gzip -d` and `zstd -d` do.
//!
//! Both readers keep their state if the inner reader has no bytes yet ([`ErrorKind::WouldBlock`]). Damage is
//! [`ErrorKind::InvalidData`], and a missing end is [`ErrorKind::UnexpectedEof`]. A zstd window larger than allowed is
//! [`ErrorKind::Unsupported`].

use std::io::{BufRead, Error, ErrorKind, Read, Result};

use flate2::bufread::GzDecoder;
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::{DParameter, get_error_name};

use super::ahead::Ahead;

/// The format in which a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Plain,
    Gzip,
    Zstd,
    /// Format that another program unpacks: its name, and that program.
    Foreign(&'static str, &'static str),
}

/// The first bytes of each format, and the bits of the first byte that count.
const MAGICS: &[(&[u8], u8, Format)] = &[
    (b"\x1f\x8b", 0xff, Format::Gzip),
    (b"\x28\xb5\x2f\xfd", 0xff, Format::Zstd),
    // A skippable frame; pzstd writes one before each frame.
    (b"\x50\x2a\x4d\x18", 0xf0, Format::Zstd),
    (b"\xfd7zXZ\0", 0xff, Format::Foreign("xz", "xz -dc")),
    (b"BZh", 0xff, Format::Foreign("bzip2", "bzip2 -dc")),
    (b"\x04\x22\x4d\x18", 0xff, Format::Foreign("lz4", "lz4 -dc")),
    (b"PK\x03\x04", 0xff, Format::Foreign("zip", "unzip -p")),
    (b"\x1f\x9d", 0xff, Format::Foreign("compress", "gzip -dc")),
];

/// Returns the format of an input. The content decides, not the name: files get renamed, and standard input has no
/// name.
///
/// Reads no further than necessary, because the next byte of a pipe may take long to arrive.
pub(super) fn sniff<R: Read>(input: &mut Ahead<R>) -> Result<Format> {
    let mut wanted = 1;
    loop {
        let head = input.ahead(wanted)?;
        let agrees = |magic: &[u8], mask: u8| {
            let pairs = head.iter().zip(magic);
            pairs
                .enumerate()
                .all(|(at, (byte, expected))| if at == 0 { byte & mask == *expected } else { byte == expected })
        };
        let mut candidates = MAGICS.iter().filter(|(magic, mask, _)| agrees(magic, *mask));
        match candidates.find(|(magic, ..)| magic.len() <= head.len()) {
            Some((.., format)) => return Ok(*format),
            None if head.len() < wanted || !MAGICS.iter().any(|(magic, mask, _)| agrees(magic, *mask)) => {
                return Ok(Format::Plain);
            }
            None => wanted = head.len() + 1,
        }
    }
}

/// A reader that unpacks all members of a gzip file. It ignores the bytes after the last member: zeros silently, other
/// bytes with a warning.
pub(super) struct Gunzip<R> {
    state: Member<R>,
    name: String,
    trailing: Trailing,
}

enum Member<R> {
    Within(Box<GzDecoder<Ahead<R>>>),
    After(Ahead<R>),
    Trailing(Ahead<R>),
    Done,
}

#[derive(Default)]
struct Trailing {
    bytes: u64,
    is_garbage: bool,
}

impl<R: Read> Gunzip<R> {
    pub(super) fn new(input: Ahead<R>, name: String) -> Self {
        Self { state: Member::Within(Box::new(GzDecoder::new(input))), name, trailing: Trailing::default() }
    }

    /// Reads the bytes after the last member to their end.
    fn ignore(trailing: &mut Trailing, input: &mut Ahead<R>) -> Result<()> {
        loop {
            let buffer = input.fill_buf()?;
            let count = buffer.len();
            if count == 0 {
                return Ok(());
            }
            trailing.bytes += count as u64;
            trailing.is_garbage |= buffer.iter().any(|byte| *byte != 0);
            input.consume(count);
        }
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, Member::Done) {
                Member::Within(mut decoder) => match decoder.read(into) {
                    Ok(0) => self.state = Member::After(decoder.into_inner()),
                    Ok(count) => {
                        self.state = Member::Within(decoder);
                        return Ok(count);
                    }
                    Err(error) => {
                        self.state = Member::Within(decoder);
                        return Err(match error.kind() {
                            ErrorKind::InvalidInput => Error::new(ErrorKind::InvalidData, error.to_string()),
                            _ => error,
                        });
                    }
                },
                Member::After(mut input) => match input.ahead(2) {
                    Ok([]) => {}
                    Ok([0x1f, 0x8b, ..]) => self.state = Member::Within(Box::new(GzDecoder::new(input))),
                    // The next member has only the first byte of its header: its writer has not finished.
                    Ok([0x1f]) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(_) => self.state = Member::Trailing(input),
                    Err(error) => {
                        self.state = Member::After(input);
                        return Err(error);
                    }
                },
                Member::Trailing(mut input) => match Self::ignore(&mut self.trailing, &mut input) {
                    Ok(()) if self.trailing.is_garbage => {
                        let (file, bytes) = (&self.name, self.trailing.bytes);
                        tracing::warn!(file, bytes, "ignored what follows the gzip data, as gzip -d does");
                    }
                    Ok(()) => {}
                    Err(error) => {
                        self.state = Member::Trailing(input);
                        return Err(error);
                    }
                },
                Member::Done => return Ok(0),
            }
        }
    }
}

/// A reader that unpacks all frames of a zstd file.
pub(super) struct Unzstd<R> {
    input: R,
    decoder: Decoder<'static>,
    /// Whether the last frame has not ended yet.
    is_within: bool,
    /// Whether the last frame has ended and no other frame has begun.
    is_between: bool,
    /// Whether the last output filled the target: the decoder may then have more output without further input.
    is_full: bool,
}

impl<R: BufRead> Unzstd<R> {
    pub(super) fn new(input: R, window_log_max: u32) -> Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(window_log_max))?;
        Ok(Self { input, decoder, is_within: false, is_between: false, is_full: false })
    }
}

impl<R: BufRead> Read for Unzstd<R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            // The library treats a call that can do nothing as an error of the caller, so this loop makes no such call.
            let input = if self.is_full { &[][..] } else { self.input.fill_buf()? };
            if input.is_empty() && !self.is_full {
                return if self.is_within { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(0) };
            }
            if std::mem::take(&mut self.is_between) {
                self.decoder.reinit()?;
            }
            let mut source = InBuffer::around(input);
            let mut target = OutBuffer::around(&mut *into);
            let hint = self.decoder.run(&mut source, &mut target).map_err(zstd_error)?;
            let (taken, count) = (source.pos(), target.pos());
            self.is_within = hint != 0;
            self.is_between = hint == 0;
            self.is_full = self.is_within && count == into.len();
            self.input.consume(taken);
            if count > 0 {
                return Ok(count);
            }
        }
    }
}

fn zstd_error(error: Error) -> Error {
    // `ZSTD_error_frameParameter_windowTooLarge` of zstd_errors.h; the crate passes on only the text of an error.
    const WINDOW_TOO_LARGE: usize = 16;
    let text = error.to_string();
    let is_window = text == get_error_name(0usize.wrapping_sub(WINDOW_TOO_LARGE));
    Error::new(if is_window { ErrorKind::Unsupported } else { ErrorKind::InvalidData }, text)
}
