//! Redacts secrets: presigned queries, signing parameters, user names and passwords of URLs. No other module does.
//!
//! A secret can be written in many ways: `\/`, `\u002f`, `%2F`, JSON inside a JSON string, UTF-16, a tab in the middle
//! of a name (which `Url::parse` drops). So the raw bytes are not searched. `Units` yields the characters one by one
//! as the innermost parser sees them, each with the bytes that encode it. A secret is cut out of those bytes; all other
//! bytes stay unchanged.
//!
//! | function | for | what it cuts |
//! |---|---|---|
//! | [`redact_payload`] | kept bytes of a record | `kinesisSyncRecordsURL` after its path; presigned parameters |
//! | [`redact`] | text of this program (errors, logs) | the same of every URL; credentials in headers and settings |
//! | [`redact_url`] | the URL of a record, inside such a text | all but scheme, host, port and path |
//!
//! Time and memory of all functions are proportional to the text. **JSON stays JSON**: in JSON, no cut extends past the
//! end of the string in which it starts.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use url::Url;

mod units;
mod urls;

use units::{How, Unit, Units, named};

/// Replacement of a secret.
const CUT: &[u8] = b"REDACTED";
/// Field that holds a presigned URL.
const RECORDS_URL: &[u8] = b"kinesisSyncRecordsURL";
/// Prefix of every parameter of a current presigned URL.
const AMZ: &[u8] = b"x-amz-";
/// Longest rest of a name that starts with [`AMZ`].
const AMZ_TAIL_MAX: usize = 64;
/// Key id parameter of older presigned URLs.
const KEY_ID: &[u8] = b"AWSAccessKeyId";
/// Signature parameter of older presigned URLs. User data may have a field of this name.
const SIGNATURE: &[u8] = b"Signature";
/// Names of credentials. They are cut only from text of this program: in a record they would be user data.
const CREDENTIALS: [&[u8]; 10] = [
    SIGNATURE,
    b"authorization",
    b"proxy-authorization",
    b"aws_secret_access_key",
    b"aws_session_token",
    b"secret_access_key",
    b"session_token",
    b"secretAccessKey",
    b"sessionToken",
    b"SignatureProvided",
];

/// Origin of a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Text of this program: rather cut too much than too little.
    Text,
    /// A record: everything except a presigned query is data.
    Payload,
    /// A record that is JSON.
    Json,
}

/// Redacts text of this program.
pub fn redact(text: &str) -> String {
    let clean = clean(text.as_bytes(), Kind::Text);
    String::from_utf8_lossy(&clean).into_owned()
}

/// Redacts bytes that must otherwise stay unchanged.
///
/// UTF-16 that contains a secret is kept as UTF-8, so that the cut leaves no half of a character.
pub fn redact_payload(bytes: &[u8]) -> Cow<'_, [u8]> {
    if let Some(text) = utf16(bytes)
        && let Cow::Owned(clean) = clean(text.as_bytes(), Kind::Payload)
    {
        return Cow::Owned(clean);
    }
    match clean(bytes, Kind::Payload) {
        Cow::Owned(_) if serde_json::from_slice::<IgnoredAny>(bytes).is_ok() => clean(bytes, Kind::Json),
        clean => clean,
    }
}

/// Redacts the URL of a record for a text of this program: keeps scheme, host, port and path. A text that is no URL is
/// not shown at all.
pub fn redact_url(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return format!("a text of {} bytes that is no URL", url.len()) };
    if parsed.cannot_be_a_base() {
        return format!("{}:REDACTED", parsed.scheme());
    }
    let has_secret = parsed.query().is_some() || parsed.fragment().is_some();
    // The setters fail for a URL that can hold neither.
    let _ = parsed.set_username("");
    let _ = parsed.set_password(None);
    parsed.set_query(None);
    parsed.set_fragment(None);
    let shown: String = redact(parsed.as_str()).chars().take(300).collect();
    if has_secret && !shown.ends_with("REDACTED") { format!("{shown}?REDACTED") } else { shown }
}

/// Returns whether the name of the URL field occurs anywhere, in any spelling.
pub(crate) fn names_records_url(bytes: &[u8]) -> bool {
    let mut units = Units::new(bytes);
    loop {
        if named(units, RECORDS_URL).is_some() {
            return true;
        }
        if units.next().is_none() {
            return false;
        }
    }
}

/// Returns the text of bytes that look like UTF-16.
fn utf16(bytes: &[u8]) -> Option<String> {
    let nulls = |odd: usize| bytes.iter().skip(odd).step_by(2).filter(|b| **b == 0).count();
    let mostly = bytes.len() / 4;
    let unit: fn([u8; 2]) -> u16 = match (nulls(0), nulls(1)) {
        (_, little) if little > mostly => u16::from_le_bytes,
        (big, _) if big > mostly => u16::from_be_bytes,
        _ => return None,
    };
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    Some(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

/// A range of the text, and its replacement.
struct Cut {
    start: usize,
    end: usize,
    with: Vec<u8>,
}

fn clean(bytes: &[u8], kind: Kind) -> Cow<'_, [u8]> {
    let mut text = Text { bytes, kind, has_key_id: None, quiet_until: 0, string_end: None };
    let mut out: Option<Vec<u8>> = None;
    let mut copied = 0;
    let mut units = Units::new(bytes);
    // The previous characters in lower case, the last one in the lowest byte.
    let mut before = 0u64;
    loop {
        let rest = &bytes[units.at..];
        let dull = rest.iter().position(|b| matters(*b, kind)).unwrap_or(rest.len());
        for char in &rest[dull.saturating_sub(8)..dull] {
            before = before << 8 | u64::from(char.to_ascii_lowercase());
        }
        units.at += dull;
        let here = units;
        let Some(unit) = units.next() else { break };
        let Some(cut) = text.secret(here, before).or_else(|| text.url(unit, units, before)) else {
            before = before << 8 | u64::from(unit.char.to_ascii_lowercase());
            text.pass(unit, units);
            continue;
        };
        if bytes[cut.start..cut.end] != cut.with {
            let out = out.get_or_insert_with(|| Vec::with_capacity(bytes.len()));
            out.extend_from_slice(&bytes[copied..cut.start]);
            out.extend_from_slice(&cut.with);
            copied = cut.end;
        }
        units.at = cut.end.max(unit.end);
        text.jump(units);
        before = 0;
    }
    match out {
        None => Cow::Borrowed(bytes),
        Some(mut out) => {
            out.extend_from_slice(&bytes[copied..]);
            Cow::Owned(out)
        }
    }
}

/// Returns whether a byte may start a searched name, an escape or a string, or follow the scheme of a URL.
fn matters(byte: u8, kind: Kind) -> bool {
    matches!(byte, b'k' | b'K' | b'x' | b'X' | b'a' | b'A' | b's' | b'S' | b'p' | b'P' | b'\\' | b'%' | b':' | 0)
        || (byte == b'"' && kind == Kind::Json)
}

struct Text<'a> {
    bytes: &'a [u8],
    kind: Kind,
    /// Whether [`KEY_ID`] occurs anywhere; computed once.
    has_key_id: Option<bool>,
    /// Up to this offset a URL was scanned that contains no secret.
    quiet_until: usize,
    /// In JSON, the end of the string that the scan is in.
    string_end: Option<usize>,
}

impl<'a> Text<'a> {
    /// Updates the string state after the scan passes a character; `rest` follows the character.
    fn pass(&mut self, unit: Unit, mut rest: Units<'_>) {
        let is_end = |unit: &Unit| unit.char == b'"' && unit.depth.is_multiple_of(2) && unit.how != How::Percent;
        if self.kind != Kind::Json || !is_end(&unit) {
            return;
        }
        self.string_end = match self.string_end {
            Some(end) if unit.start >= end => None,
            Some(end) => Some(end),
            None => rest.find(is_end).map(|unit| unit.start),
        };
    }

    /// Updates the string state after the scan jumps to `rest`. A jump past the end of a string leads only to the end
    /// of another string, or outside all strings.
    fn jump(&mut self, mut rest: Units<'_>) {
        let at = rest.at;
        if self.string_end.is_some_and(|end| at > end) {
            let next = rest.next().filter(|unit| unit.char == b'"' && unit.depth.is_multiple_of(2));
            self.string_end = next.map(|_| at);
        }
    }

    /// Returns the text after a name. In JSON it stops at the end of the name's string, unless the name ends there
    /// itself, as a key does.
    fn after(&self, named: Units<'_>) -> Units<'a> {
        let end = self.string_end.filter(|end| named.at < *end).unwrap_or(self.bytes.len());
        Units { bytes: &self.bytes[..end], at: named.at }
    }

    /// Returns the cut for the value of the secret whose name starts here.
    fn secret(&mut self, here: Units<'_>, before: u64) -> Option<Cut> {
        let start = here.at;
        match { here }.next()?.char.to_ascii_lowercase() {
            b'k' => return named(here, RECORDS_URL).and_then(|after| self.records_url(self.after(after))),
            b'x' => return named(here, AMZ).and_then(|after| self.value(start, self.after(amz_tail(after)), true)),
            b'a' => {
                if let Some(after) = named(here, KEY_ID) {
                    return self.value(start, self.after(after), true);
                }
            }
            b's' | b'p' => {}
            // Most characters start no searched name.
            _ => return None,
        }
        let previous = before as u8;
        if previous.is_ascii_alphanumeric() || previous == b'_' {
            return None;
        }
        if self.kind == Kind::Text {
            return CREDENTIALS.iter().find_map(|name| self.value(start, self.after(named(here, name)?), true));
        }
        // As a URL parameter, `Signature` is a secret. As a JSON key it may be user data, unless a key id occurs too.
        let after = named(here, SIGNATURE)?;
        let is_sure = self.has_key_id();
        self.value(start, self.after(after), is_sure)
    }

    fn has_key_id(&mut self) -> bool {
        let bytes = self.bytes;
        *self.has_key_id.get_or_insert_with(|| {
            let mut units = Units::new(bytes);
            std::iter::from_fn(|| {
                let here = units;
                units.next().map(|_| here)
            })
            .any(|here| named(here, KEY_ID).is_some())
        })
    }

    /// Returns the cut for the value after a name: `name=value`, `"name": "value"`, `name: value`, `<name>value<`.
    fn value(&self, start: usize, after: Units<'_>, as_key: bool) -> Option<Cut> {
        let mut units = after;
        let mut next = units.next()?;
        let mut quote = None;
        if next.is_quote() {
            quote = Some(next);
            next = units.next()?;
        }
        while next.is_space() || next.is_dropped() {
            next = units.next()?;
        }
        match next.char {
            // Ruby syntax: `name=>value`.
            b'=' if units.clone().next().is_some_and(|unit| unit.is(b'>')) => {
                units.next();
                as_key.then(|| self.member(units, quote))
            }
            b'=' => Some(self.parameter(start, units, next)),
            b':' if as_key && next.how != How::Percent => Some(self.member(units, quote)),
            b'>' if as_key && next.how == How::Raw && self.bytes[..start].ends_with(b"<") => {
                Some(self.until(next.end, next.end, units, |unit| unit.is(b'<'), CUT.to_vec()))
            }
            _ => None,
        }
    }

    /// Returns the cut for `name=value` as a whole. For a quoted value, it covers only the text inside the quotes.
    fn parameter(&self, start: usize, units: Units<'_>, equals: Unit) -> Cut {
        let mut ahead = units;
        if let Some(open) = ahead.next().filter(|unit| unit.is_quote() && opens(ahead)) {
            return self.until(open.end, open.end, ahead, |unit| unit.closes(open), CUT.to_vec());
        }
        let ends = |unit: Unit| unit.is_space() || unit.is(b'&') || unit.is_quote() || unit.is(b'<') || unit.is(b'>');
        self.until(start, equals.end, units, ends, CUT.to_vec())
    }

    /// Returns the cut for the value after `name:`. `quote` is the closing quote of the name, if the name is quoted.
    fn member(&self, mut units: Units<'_>, quote: Option<Unit>) -> Cut {
        let here = loop {
            let here = units;
            match units.next() {
                Some(unit) if unit.is_space() || (quote.is_some() && unit.is_dropped()) => {}
                _ => break here,
            }
        };
        // Rust syntax.
        let here = named(here, b"Some(").unwrap_or(here);
        let mut units = here;
        let quoted = |mark: Option<Unit>| {
            let mark = mark.map_or(&b""[..], |unit| &self.bytes[unit.start..unit.end]);
            [mark, CUT, mark].concat()
        };
        let Some(first) = units.next() else { return Cut { start: here.at, end: here.at, with: Vec::new() } };
        if first.is_quote() && quote.is_none() && !opens(units) {
            return Cut { start: here.at, end: here.at, with: Vec::new() };
        }
        if first.is_quote() {
            return self.until(first.end, first.end, units, |unit| unit.closes(first), CUT.to_vec());
        }
        if let Some(name) = quote
            && (first.is(b'[') || first.is(b'{'))
        {
            return Cut { start: first.start, end: brackets_end(units, name), with: quoted(quote) };
        }
        match quote {
            // A JSON number or word.
            Some(_) => {
                let ends =
                    |unit: Unit| unit.is_space() || unit.is(b',') || unit.is(b'}') || unit.is(b']') || unit.is_quote();
                self.until(first.start, first.start, here, ends, quoted(quote))
            }
            // A header value extends to the end of its line, or of the string that contains it.
            None => {
                let ends = |unit: Unit| unit.is(b'\n') || unit.is(b'\r') || unit.is(b'"') || unit.is(b'<');
                self.until(first.start, first.start, here, ends, CUT.to_vec())
            }
        }
    }

    /// Cuts from `start` to the first character at or after `from` that satisfies `ends`.
    fn until(&self, start: usize, from: usize, units: Units<'_>, ends: impl Fn(Unit) -> bool, with: Vec<u8>) -> Cut {
        let units = Units { at: from, ..units };
        let end = { units }.find(|unit| ends(*unit)).map_or(units.bytes.len(), |unit| unit.start);
        Cut { start, end, with }
    }

    /// Returns the cut for the value of the field that holds a presigned URL.
    fn records_url(&mut self, after: Units<'_>) -> Option<Cut> {
        let mut units = after;
        let mut next = units.next()?;
        let quote = next.is_quote().then_some(next);
        if quote.is_some() {
            next = units.next()?;
        }
        while next.is_space() {
            next = units.next()?;
        }
        if !(next.is(b':') || next.is(b'=')) {
            return None;
        }
        let here = loop {
            let here = units;
            if !units.next()?.is_space() {
                break here;
            }
        };
        let mut inside = here;
        let first = inside.next()?;
        if first.is(b'[') || first.is(b'{') {
            return Some(self.member(here, quote));
        }
        match first.is_quote() && (quote.is_some() || opens(inside)) {
            true => self.url_cut(inside, |unit| unit.closes(first), true),
            false => self.url_cut(here, |unit| unit.is_space() || unit.is_quote(), true),
        }
    }
}

/// Returns the end of an array or object whose opening bracket is before `units`, or of the string that contains the
/// quote `name`, if that string ends first.
fn brackets_end(units: Units<'_>, name: Unit) -> usize {
    let mut depth = 1usize;
    let mut open: Option<Unit> = None;
    for unit in units {
        if unit.closes_around(name) {
            return unit.start;
        }
        match open {
            Some(mark) if unit.closes(mark) => open = None,
            Some(_) => {}
            None if unit.is_quote() => open = Some(unit),
            None if unit.is(b'[') || unit.is(b'{') => depth += 1,
            None if unit.is(b']') || unit.is(b'}') => depth -= 1,
            None => {}
        }
        if depth == 0 {
            return unit.end;
        }
    }
    units.bytes.len()
}

/// Returns whether the quote before `units` opens a string, and does not close the string that contains the name.
fn opens(mut units: Units<'_>) -> bool {
    let next = units.find(|unit| !unit.is_space());
    next.is_some_and(|unit| !(unit.is_quote() || matches!(unit.char, b',' | b':' | b'}' | b']')))
}

/// Returns the text after a name that starts with [`AMZ`].
fn amz_tail(mut units: Units<'_>) -> Units<'_> {
    for _ in 0..AMZ_TAIL_MAX {
        let here = units;
        match units.next() {
            Some(unit) if unit.char.is_ascii_alphanumeric() || unit.char == b'-' || unit.is_dropped() => {}
            _ => return here,
        }
    }
    units
}

#[cfg(test)]
mod tests;
