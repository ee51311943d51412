//! Characters of a text as the innermost parser sees them, whatever escapes and encodings spell them.

/// One character as the innermost parser sees it: an ASCII code, or a byte above ASCII for any other character.
#[derive(Clone, Copy)]
pub(super) struct Unit {
    pub(super) char: u8,
    /// Range of the bytes that encode the character.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Backslashes before the character. For a quote, the nesting depth of the JSON string that it opens or closes.
    pub(super) depth: usize,
    pub(super) how: How,
}

/// Encoding of a character, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Raw,
    Escaped,
    Percent,
}

impl Unit {
    pub(super) fn is(self, char: u8) -> bool {
        self.char == char && self.how != How::Percent
    }

    pub(super) fn is_quote(self) -> bool {
        self.is(b'"') || self.is(b'\'')
    }

    /// Returns whether `Url::parse` drops the character.
    pub(super) fn is_dropped(self) -> bool {
        matches!(self.char, b'\t' | b'\n' | b'\r') && self.how != How::Percent
    }

    pub(super) fn is_space(self) -> bool {
        self.char.is_ascii_whitespace() && self.how == How::Raw
    }

    /// Returns whether the character closes a string that encloses the string of the quote `mark`.
    pub(super) fn closes_around(self, mark: Unit) -> bool {
        self.closes(mark) && self.depth % (2 * mark.depth + 2) != mark.depth
    }

    /// Returns whether the character closes the string that `open` opened, or an enclosing one. (Nesting in a string
    /// doubles the backslashes.)
    pub(super) fn closes(self, open: Unit) -> bool {
        if !(self.is(open.char) || self.is(b'"')) {
            return false;
        }
        let mut level = 1;
        loop {
            if self.depth % (2 * level) == level - 1 {
                return true;
            }
            if level > open.depth {
                return false;
            }
            level *= 2;
        }
    }
}

/// Iterator over the characters of a text. Undoes JSON escapes first, then percent-encoding, each as often as it was
/// applied. Skips NUL, which is the other half of a character in UTF-16.
#[derive(Clone, Copy)]
pub(super) struct Units<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Units<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns the next character with JSON escapes undone.
    fn unescaped(&mut self) -> Option<Unit> {
        #[cfg(test)]
        super::tests::STEPS.with(|steps| steps.set(steps.get() + 1));
        let start = self.at + self.bytes[self.at..].iter().position(|b| *b != 0)?;
        let first = self.bytes[start];
        let unit = |char, end, depth, how| Unit { char, start, end, depth, how };
        let unit = if first == b'\\' {
            let run = self.bytes[start..].iter().take_while(|b| **b == b'\\').count();
            let end = start + run;
            match self.bytes.get(end) {
                Some(quote @ (b'"' | b'\'')) => unit(*quote, end + 1, run, How::Escaped),
                Some(b'/') => unit(b'/', end + 1, run, How::Escaped),
                Some(b'n') if run % 2 == 1 => unit(b'\n', end + 1, run, How::Escaped),
                Some(b'r') if run % 2 == 1 => unit(b'\r', end + 1, run, How::Escaped),
                Some(b't') if run % 2 == 1 => unit(b'\t', end + 1, run, How::Escaped),
                Some(b'u') => match self.bytes.get(end + 1..end + 5).and_then(code) {
                    // A quote written as `\u0022` is content of the string: it is one level deeper than its backslashes
                    // indicate.
                    Some(code) => unit(u8::try_from(code).unwrap_or(0x80), end + 5, 2 * run - 1, How::Escaped),
                    None => unit(b'/', end, run, How::Escaped),
                },
                // `Url::parse` treats a backslash as a slash.
                _ => unit(b'/', end, run, How::Escaped),
            }
        } else {
            unit(first, start + 1, 0, How::Raw)
        };
        self.at = unit.end;
        Some(unit)
    }
}

fn code(digits: &[u8]) -> Option<u16> {
    let all = digits.iter().all(u8::is_ascii_hexdigit);
    all.then(|| std::str::from_utf8(digits).ok().and_then(|text| u16::from_str_radix(text, 16).ok())).flatten()
}

impl Iterator for Units<'_> {
    type Item = Unit;

    fn next(&mut self) -> Option<Unit> {
        let first = self.unescaped()?;
        if first.char != b'%' {
            return Some(first);
        }
        let mut rest = *self;
        loop {
            let mut ahead = rest;
            let mut digit = || ahead.unescaped().and_then(|unit| char::from(unit.char).to_digit(16));
            match (digit(), digit()) {
                // `%25` is an encoded percent sign.
                (Some(2), Some(5)) => rest = ahead,
                (Some(high), Some(low)) => {
                    *self = ahead;
                    let char = u8::try_from(high * 16 + low).unwrap_or(0x80);
                    return Some(Unit { char, end: ahead.at, how: How::Percent, ..first });
                }
                _ => break,
            }
        }
        *self = rest;
        Some(Unit { end: rest.at, ..first })
    }
}

/// Returns the rest after `name` if `name` comes next, in letters of any case.
pub(super) fn named<'a>(mut units: Units<'a>, name: &[u8]) -> Option<Units<'a>> {
    for (n, wanted) in name.iter().enumerate() {
        let mut unit = units.next()?;
        while n > 0 && unit.is_dropped() {
            unit = units.next()?;
        }
        if !unit.char.eq_ignore_ascii_case(wanted) {
            return None;
        }
    }
    Some(units)
}
