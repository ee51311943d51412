//! Finds the end of a URL, and cuts the secrets out of it: user name, password, parameters, query and fragment.

use super::units::{How, Unit, Units, named};
use super::{AMZ, CUT, Cut, KEY_ID, Kind, Text, amz_tail};

/// Longest authority of a URL inside another URL.
const AUTHORITY_MAX: usize = 512;

impl<'a> Text<'a> {
    /// Returns the cut for a URL in text of this program: `scheme://…`, and whatever else `Url::parse` accepts as http.
    pub(super) fn url(&mut self, colon: Unit, after: Units<'a>, before: u64) -> Option<Cut> {
        if self.kind != Kind::Text || colon.char != b':' || !(before as u8).is_ascii_alphanumeric() {
            return None;
        }
        let is_http = before & 0xff_ffff_ffff == u64::from_be_bytes(*b"\0\0\0https")
            || before & 0xffff_ffff == u64::from_be_bytes(*b"\0\0\0\0http");
        let mut ahead = after;
        let first = ahead.next()?;
        let is_url = if is_http { !ends_text_url(first) } else { first.char == b'/' && ahead.next()?.char == b'/' };
        if !is_url {
            return None;
        }
        self.url_cut(after, ends_text_url, false)
    }

    /// Cuts user name, password, parameters, query and fragment out of a URL. `units` starts at the scheme, or after
    /// its colon.
    pub(super) fn url_cut(&mut self, units: Units<'_>, ends: impl Fn(Unit) -> bool, has_scheme: bool) -> Option<Cut> {
        let start = units.at;
        let mut end = units.bytes.len();
        // Inside a URL that was already scanned, only the start of this URL can hold a secret.
        let units_max = if start < self.quiet_until { AUTHORITY_MAX } else { usize::MAX };
        let mut scan = Scan::new(units, if has_scheme { Place::Scheme } else { Place::Slashes });
        for (n, unit) in units.enumerate() {
            if ends(unit) {
                end = unit.start;
                break;
            }
            if scan.tail.is_none() && is_parameter(Units { at: unit.start, ..units }, unit) {
                scan.open_parameter(unit);
                continue;
            }
            if n >= units_max && scan.finds_nothing() {
                return None;
            }
            if scan.tail.is_none() && !unit.is_dropped() {
                scan.pass(unit, &ends);
            }
        }
        // In text of this program, trailing punctuation is not part of the URL.
        while !has_scheme && end > start && matches!(self.bytes[end - 1], b':' | b',' | b'.' | b')') {
            end -= 1;
        }
        // A sign at the very end hides nothing.
        scan.tail = scan.tail.filter(|tail| tail.opened < end);
        if scan.finds_nothing() {
            self.quiet_until = self.quiet_until.max(end);
            return None;
        }
        Some(Cut { start, end, with: scan.redacted(self.bytes, start, end) })
    }
}

/// Part of a URL.
#[derive(Clone, Copy)]
enum Place {
    Scheme,
    Slashes,
    Authority,
    Path,
}

/// The part of a URL that is secret up to the end of the URL.
struct Tail {
    /// Start of the part.
    start: usize,
    /// End of the character that opens the part.
    opened: usize,
    /// The sign that opens the part. `None` if the name of a parameter opens it. The name is cut as well: the only
    /// reason to write such a name into a path is to hide it.
    sign: Option<u8>,
}

impl Tail {
    fn of_sign(sign: Unit) -> Self {
        Self { start: sign.start, opened: sign.end, sign: Some(sign.char) }
    }
}

/// The scan of one URL.
struct Scan<'a> {
    units: Units<'a>,
    place: Place,
    /// Start of the authority.
    authority: usize,
    /// End of the last `@` in the authority.
    credentials_end: Option<usize>,
    tail: Option<Tail>,
    /// Next `@` of the authority, once searched.
    next_at: usize,
}

impl<'a> Scan<'a> {
    fn new(units: Units<'a>, place: Place) -> Self {
        Self { units, place, authority: units.at, credentials_end: None, tail: None, next_at: units.at }
    }

    fn finds_nothing(&self) -> bool {
        self.credentials_end.is_none() && self.tail.is_none()
    }

    /// Begins the tail at the name of a secret parameter.
    fn open_parameter(&mut self, first: Unit) {
        // Before the path, the name may be part of a password: then everything but the scheme is cut.
        let start = if matches!(self.place, Place::Path) {
            first.start
        } else {
            self.credentials_end = None;
            self.authority
        };
        self.tail = Some(Tail { start, opened: first.end, sign: None });
    }

    /// Updates the scan for a character before the tail. `ends` tells the end of the URL.
    fn pass(&mut self, unit: Unit, ends: impl Fn(Unit) -> bool) {
        let opens_tail = match unit.char {
            // An encoded `?` in a path would be harmless, but the only reason to write it is to hide a query.
            b'?' => true,
            b'#' | b';' => unit.how != How::Percent,
            _ => false,
        };
        match (self.place, unit.char) {
            (Place::Scheme, b':') => self.place = Place::Slashes,
            (Place::Scheme | Place::Authority, b'/') => self.place = Place::Path,
            (Place::Slashes, b'/') => {}
            (Place::Slashes, _) => {
                (self.authority, self.place) = (unit.start, Place::Authority);
                self.tail = opens_tail.then(|| Tail::of_sign(unit));
            }
            (Place::Authority, b'@') if unit.how != How::Percent => self.credentials_end = Some(unit.end),
            // A password may contain `;`. Without a later `@`, the `;` ends the host.
            (Place::Authority, b';') if opens_tail => {
                self.tail = (!self.is_before_at(unit, ends)).then(|| Tail::of_sign(unit));
            }
            _ => self.tail = opens_tail.then(|| Tail::of_sign(unit)),
        }
    }

    /// Returns whether an `@` of the authority follows the character. Searches the text between two `@` only once.
    fn is_before_at(&mut self, unit: Unit, ends: impl Fn(Unit) -> bool) -> bool {
        if unit.start >= self.next_at {
            let mut ahead = Units { at: unit.end, ..self.units };
            let found = ahead.find(|unit| ends(*unit) || matches!(unit.char, b'@' | b'/' | b'?' | b'#'));
            self.next_at = found.filter(|unit| unit.is(b'@')).map_or(0, |unit| unit.start);
        }
        unit.start < self.next_at
    }

    /// Returns the replacement of the URL from `start` to `end`.
    fn redacted(&self, bytes: &[u8], start: usize, end: usize) -> Vec<u8> {
        let head = self.tail.as_ref().map_or(end, |tail| tail.start);
        let mut with = Vec::new();
        if let Some(credentials_end) = self.credentials_end {
            with.extend_from_slice(&bytes[start..self.authority]);
            with.extend_from_slice(CUT);
            with.push(b'@');
            with.extend_from_slice(&bytes[credentials_end..head]);
        } else {
            with.extend_from_slice(&bytes[start..head]);
        }
        if let Some(tail) = &self.tail {
            with.extend(tail.sign);
            with.extend_from_slice(CUT);
        }
        with
    }
}

/// Returns whether the name of a secret parameter and its `=` start here.
fn is_parameter(here: Units<'_>, first: Unit) -> bool {
    let after = match first.char.to_ascii_lowercase() {
        b'x' => named(here, AMZ).map(amz_tail),
        b'a' => named(here, KEY_ID),
        _ => None,
    };
    after.is_some_and(|mut after| after.next().is_some_and(|unit| unit.char == b'='))
}

fn ends_text_url(unit: Unit) -> bool {
    unit.is_space() || unit.is(b'"') || unit.is(b'<') || unit.is(b'>') || unit.is(b'`')
}
