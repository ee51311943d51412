//! Detects the shape of a file by its beginning: one event per line, or a shape that another tool converts to that.
//!
//! A file is refused only if it begins in another shape *as a whole*. One bad line among good lines goes to the
//! quarantine.

use std::fmt;
use std::io::Result;

use serde::de::IgnoredAny;
use tokio_util::sync::CancellationToken;

use super::LINE_BYTES_MAX;
use super::lines::{Line, Lines, Next};

/// Bytes read after the first line, at most, to find the end of its value.
const LOOK_BYTES: usize = 1 << 20;
const LOOK_LINES: usize = 10_000;
const BOM: &[u8] = "\u{feff}".as_bytes();

/// A shape other than one event per line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Array,
    Pretty,
    Concatenated,
    CarriageReturns,
    Commas,
    /// UTF-16 with a byte order mark.
    Utf16,
    Utf16Le,
    Utf16Be,
}

impl Shape {
    /// Returns the command that converts the file to one event per line, and the separator between command and file
    /// name.
    pub(super) fn remedy(self) -> (&'static str, &'static str) {
        match self {
            Self::Array => ("jq -c '.[]'", " "),
            Self::Pretty | Self::Concatenated => ("jq -c .", " "),
            Self::CarriageReturns => (r"tr '\r' '\n'", " < "),
            Self::Commas => ("sed 's/,[[:space:]]*$//'", " "),
            Self::Utf16 => ("iconv -f UTF-16 -t UTF-8", " "),
            Self::Utf16Le => ("iconv -f UTF-16LE -t UTF-8", " "),
            Self::Utf16Be => ("iconv -f UTF-16BE -t UTF-8", " "),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Array => "is a JSON array, not one event a line",
            Self::Pretty => "has events that span several lines, not one event a line",
            Self::Concatenated => "has several events on one line",
            Self::CarriageReturns => "has carriage returns where line breaks belong",
            Self::Commas => "has commas between its lines",
            Self::Utf16 | Self::Utf16Le | Self::Utf16Be => "is UTF-16, not UTF-8",
        })
    }
}

/// Returns the shape of an object that begins so, unless it holds events one after the other.
pub(super) fn shape_of_start(start: &[u8]) -> Option<Shape> {
    if let Some(shape) = utf16(start) {
        return Some(shape);
    }
    let text = start.strip_prefix(BOM).unwrap_or(start).trim_ascii_start();
    match text {
        [b'[', rest @ ..] if rest.trim_ascii_start().first() == Some(&b'{') => Some(Shape::Array),
        [b'{', rest @ ..] => {
            let gap = rest.iter().take_while(|byte| byte.is_ascii_whitespace());
            gap.into_iter().any(|byte| *byte == b'\n').then_some(Shape::Pretty)
        }
        _ => None,
    }
}

/// The beginning of a file.
pub(super) struct Look {
    /// First line, with or without a line break; `None` for an empty file.
    pub(super) first: Option<Line>,
    pub(super) shape: Option<Shape>,
}

/// Reads the first line, and as many more lines as the shape requires. After a signal, the available bytes must
/// suffice.
pub(super) fn look(lines: &mut Lines, stop: &CancellationToken) -> Result<Look> {
    let Some(first) = read(lines, stop)? else { return Ok(Look { first: None, shape: None }) };
    let shape = shape_of(&first, &mut || read(lines, stop))?;
    Ok(Look { first: Some(first), shape })
}

fn read(lines: &mut Lines, stop: &CancellationToken) -> Result<Option<Line>> {
    loop {
        let is_stopped = stop.is_cancelled();
        match lines.next()? {
            Next::Line(line) => return Ok(Some(line)),
            Next::Wait if !is_stopped => {}
            Next::Wait | Next::End => return Ok(lines.rest()),
        }
    }
}

type More<'a> = &'a mut dyn FnMut() -> Result<Option<Line>>;

fn shape_of(first: &Line, more: More<'_>) -> Result<Option<Shape>> {
    if let Some(shape) = utf16(&first.bytes) {
        return Ok(Some(shape));
    }
    let mut next = None;
    if is_blank(&first.bytes) {
        next = next_full(more)?;
        if next.is_none() {
            return Ok(None);
        }
    }
    let line = next.as_ref().unwrap_or(first);
    let text = trimmed(&line.bytes);
    match text.first() {
        Some(b'[') => {
            let mut inner = trimmed(&text[1..]).first().copied();
            if inner.is_none() {
                inner = next_full(more)?.and_then(|line| trimmed(&line.bytes).first().copied());
            }
            // Any other line that begins with a bracket is a bad line.
            Ok((inner == Some(b'{')).then_some(Shape::Array))
        }
        Some(b'{') => shape_of_object(line, text, more),
        _ => Ok(None),
    }
}

fn utf16(start: &[u8]) -> Option<Shape> {
    match start {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(Shape::Utf16),
        [b'{' | b'[', 0, ..] => Some(Shape::Utf16Le),
        [0, b'{' | b'[', ..] => Some(Shape::Utf16Be),
        _ => None,
    }
}

fn shape_of_object(line: &Line, text: &[u8], more: More<'_>) -> Result<Option<Shape>> {
    match first_value(text) {
        Value::Whole(end) => {
            let rest = &text[end..];
            let gap = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            match rest.get(gap) {
                Some(b',') if is_blank(&rest[gap + 1..]) => Ok(Some(Shape::Commas)),
                Some(b'{') if !line.ended || line.length > LINE_BYTES_MAX || next_full(more)?.is_none() => {
                    let by_returns = rest[..gap].contains(&b'\r');
                    Ok(Some(if by_returns { Shape::CarriageReturns } else { Shape::Concatenated }))
                }
                _ => Ok(None),
            }
        }
        Value::Unfinished if line.ended && line.length <= LINE_BYTES_MAX => {
            Ok(is_continued(text, more)?.then_some(Shape::Pretty))
        }
        _ => Ok(None),
    }
}

/// Returns whether the value that begins with `text` continues in the following lines.
fn is_continued(text: &[u8], more: More<'_>) -> Result<bool> {
    let mut joined = text.to_vec();
    let mut count = 0usize;
    loop {
        let is_within = count < LOOK_LINES && joined.len() < text.len() + LOOK_BYTES;
        let line = if is_within { next_full(more)? } else { None };
        let is_last = line.is_none();
        if let Some(line) = line {
            joined.push(b'\n');
            joined.extend_from_slice(&line.bytes);
            count += 1;
        }
        // Parse only at powers of two, so that many lines cost little.
        if is_last || count.is_power_of_two() {
            match first_value(&joined) {
                Value::Whole(_) => return Ok(true),
                Value::Broken => return Ok(false),
                Value::Unfinished if is_last => return Ok(count > 0),
                Value::Unfinished => {}
            }
        }
    }
}

/// Returns the next line that is not blank.
fn next_full(more: More<'_>) -> Result<Option<Line>> {
    for _ in 0..LOOK_LINES {
        match more()? {
            Some(line) if is_blank(&line.bytes) => {}
            line => return Ok(line),
        }
    }
    Ok(None)
}

/// The result of [`first_value`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// JSON object that ends before this byte.
    Whole(usize),
    /// Beginning of a JSON object.
    Unfinished,
    /// Anything else.
    Broken,
}

/// Finds a JSON object at the beginning of a text, after a byte order mark and white space.
pub(super) fn first_value(text: &[u8]) -> Value {
    let inner = text.strip_prefix(BOM).unwrap_or(text).trim_ascii_start();
    let skipped = text.len() - inner.len();
    if inner.first() != Some(&b'{') {
        return Value::Broken;
    }
    let mut values = serde_json::Deserializer::from_slice(inner).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => Value::Whole(skipped + values.byte_offset()),
        Some(Err(error)) if !error.is_eof() => Value::Broken,
        _ => Value::Unfinished,
    }
}

/// Returns whether a line is one whole JSON object, to which nothing can be added.
pub(super) fn is_whole_object(line: &[u8]) -> bool {
    matches!(first_value(line), Value::Whole(end) if is_blank(&line[end..]))
}

pub(super) fn is_blank(bytes: &[u8]) -> bool {
    trimmed(bytes).is_empty()
}

/// Returns the text without a byte order mark and without surrounding white space.
fn trimmed(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BOM).unwrap_or(bytes).trim_ascii()
}
