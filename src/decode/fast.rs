//! Parses the events that the service writes, in one pass over their bytes.
//!
//! **Invariant: what this parser accepts, the parser of [`super::event`] accepts with the same result.** It accepts an
//! object with fields of the contract only, each at most once, in which texts are strings, numbers are integers of at
//! most 18 digits, and each record has a key. For any other input it returns `None`. The caller then parses the input
//! again with the other parser, which also finds the reason of a decode error.

use std::borrow::Cow;

use super::event::{RECORDS_MAX, WireEvent, WireRecord};

/// Parses an event that has no white space around it.
pub(crate) fn event(text: &str) -> Option<WireEvent<'_>> {
    let mut parser = Parser { text, bytes: text.as_bytes(), at: 0 };
    let event = parser.event()?;
    (parser.at == text.len()).then_some(event)
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn event(&mut self) -> Option<WireEvent<'a>> {
        let mut event = WireEvent::default();
        let mut seen = 0;
        self.fields(|parser, name| match name {
            "identityPoolId" => parser.set(&mut seen, 0, &mut event.identity_pool_id, Self::text),
            "identityId" => parser.set(&mut seen, 1, &mut event.identity_id, Self::text),
            "dataSetName" => parser.set(&mut seen, 2, &mut event.data_set_name, Self::text),
            "datasetName" => parser.set(&mut seen, 3, &mut event.dataset_name, Self::text),
            "operation" => parser.set(&mut seen, 4, &mut event.operation, Self::text),
            "kinesisSyncRecords" => parser.set(&mut seen, 5, &mut event.records, Self::records),
            "lastModifiedDate" => parser.set(&mut seen, 6, &mut event.last_modified_date, Self::integer),
            "kinesisSyncRecordsURL" => parser.set(&mut seen, 7, &mut event.records_url, Self::text),
            "payloadType" => parser.set(&mut seen, 8, &mut event.payload_type, Self::text),
            "syncCount" => parser.set(&mut seen, 9, &mut event.sync_count, Self::integer),
            _ => None,
        })?;
        Some(event)
    }

    fn records(&mut self) -> Option<Option<Vec<WireRecord<'a>>>> {
        if self.null()? {
            return Some(None);
        }
        self.take(b'[')?;
        let mut records = Vec::new();
        if self.is_next(b']') {
            return Some(Some(records));
        }
        loop {
            let record = self.record()?;
            if record.key.is_none() || records.len() == RECORDS_MAX {
                return None;
            }
            records.push(record);
            if !self.is_next(b',') {
                self.take(b']')?;
                return Some(Some(records));
            }
        }
    }

    fn record(&mut self) -> Option<WireRecord<'a>> {
        let mut record = WireRecord::default();
        let mut seen = 0;
        self.fields(|parser, name| match name {
            "key" => parser.set(&mut seen, 0, &mut record.key, Self::text),
            "value" => parser.set(&mut seen, 1, &mut record.value, Self::text),
            "syncCount" => parser.set(&mut seen, 2, &mut record.sync_count, Self::integer),
            "lastModifiedDate" => parser.set(&mut seen, 3, &mut record.last_modified_date, Self::integer),
            "deviceLastModifiedDate" => parser.set(&mut seen, 4, &mut record.device_last_modified_date, Self::digits),
            "op" => parser.set(&mut seen, 5, &mut record.op, Self::text),
            _ => None,
        })?;
        Some(record)
    }

    /// Parses an object; `field` parses the value of each field.
    fn fields(&mut self, mut field: impl FnMut(&mut Self, &str) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        if self.is_next(b'}') {
            return Some(());
        }
        loop {
            self.take(b'"')?;
            let start = self.at;
            let name = self.text.get(start..self.plain_end()?)?;
            self.at += 1;
            self.take(b':')?;
            field(self, name)?;
            if !self.is_next(b',') {
                return self.take(b'}');
            }
        }
    }

    /// Parses the value of a field; `None` if the object has the field already.
    fn set<T>(&mut self, seen: &mut u32, bit: u32, field: &mut T, value: fn(&mut Self) -> Option<T>) -> Option<()> {
        let is_new = *seen & (1 << bit) == 0;
        *seen |= 1 << bit;
        *field = value(self).filter(|_| is_new)?;
        Some(())
    }

    /// Parses a string or null.
    fn text(&mut self) -> Option<Option<Cow<'a, str>>> {
        if self.null()? {
            return Some(None);
        }
        self.take(b'"')?;
        let start = self.at;
        self.at = special(self.bytes, start)?;
        if self.bytes.get(self.at) == Some(&b'"') {
            let text = self.text.get(start..self.at)?;
            self.at += 1;
            return Some(Some(Cow::Borrowed(text)));
        }
        // A string with escapes.
        while self.bytes.get(self.at) == Some(&b'\\') {
            self.at = special(self.bytes, self.at + 2)?;
        }
        self.take_here(b'"')?;
        let quoted = self.text.get(start - 1..self.at)?;
        Some(Some(Cow::Owned(serde_json::from_str(quoted).ok()?)))
    }

    /// Returns the end of a name without escapes, and moves there.
    fn plain_end(&mut self) -> Option<usize> {
        self.at = special(self.bytes, self.at)?;
        (self.bytes.get(self.at) == Some(&b'"')).then_some(self.at)
    }

    /// Parses an integer or null.
    fn integer(&mut self) -> Option<Option<i64>> {
        Some(if self.null()? { None } else { Some(self.number()?.0) })
    }

    /// Parses an integer or null. Returns the integer as it is written.
    fn digits(&mut self) -> Option<Option<&'a str>> {
        Some(if self.null()? { None } else { Some(self.number()?.1) })
    }

    /// Parses an integer of at most 18 digits.
    fn number(&mut self) -> Option<(i64, &'a str)> {
        let start = self.at;
        let is_negative = self.bytes.get(self.at) == Some(&b'-');
        self.at += usize::from(is_negative);
        let first = self.at;
        let mut value = 0i64;
        while let Some(digit) = self.bytes.get(self.at).map(|byte| byte.wrapping_sub(b'0')).filter(|d| *d < 10) {
            if self.at - first == 18 {
                return None;
            }
            value = value * 10 + i64::from(digit);
            self.at += 1;
        }
        let length = self.at - first;
        // JSON has no integers with leading zeros, and -0 is no integer.
        let is_odd = length == 0 || (self.bytes[first] == b'0' && (length > 1 || is_negative));
        if is_odd || matches!(self.bytes.get(self.at), Some(b'.' | b'e' | b'E')) {
            return None;
        }
        Some((if is_negative { -value } else { value }, self.text.get(start..self.at)?))
    }

    /// Skips white space, and consumes `null` if it is next. `None` at the end of the input.
    fn null(&mut self) -> Option<bool> {
        self.skip();
        if *self.bytes.get(self.at)? != b'n' {
            return Some(false);
        }
        if self.bytes.get(self.at..self.at + 4)? != b"null" {
            return None;
        }
        self.at += 4;
        Some(true)
    }

    fn skip(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// Consumes `byte` if it is next after white space.
    fn is_next(&mut self, byte: u8) -> bool {
        self.skip();
        let is_next = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.is_next(byte).then_some(())
    }

    fn take_here(&mut self, byte: u8) -> Option<()> {
        let is_here = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(is_here);
        is_here.then_some(())
    }
}

/// The byte 1 in each byte of a word.
const ONES: u64 = 0x0101_0101_0101_0101;
/// The highest bit of each byte of a word.
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Returns the index of the first quote, backslash or control character from `at` on.
fn special(bytes: &[u8], mut at: usize) -> Option<usize> {
    // In each of the three terms, the lowest bit that is set marks a true hit; higher bits may be false.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let hits = quote | backslash | below(word, 0x20);
        if hits != 0 {
            return Some(at + hits.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = bytes.get(at..)?;
    rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20)).map(|found| at + found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn agrees(text: &str) -> bool {
        let fast = event(text);
        let Some(fast) = &fast else { return false };
        let slow: WireEvent<'_> = serde_json::from_str(text).unwrap();
        assert_eq!(format!("{fast:?}"), format!("{slow:?}"), "{text}");
        true
    }

    const EVENT: &str = r#"{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:1","dataSetName":"d\u00e9\n","operation":"replace","kinesisSyncRecords":[{"key":"k","value":"{\"a\":\"é\\\\\"}","syncCount":1,"lastModifiedDate":1500000000000,"deviceLastModifiedDate":-5,"op":"replace"},{"key":"","value":null}],"lastModifiedDate":5,"kinesisSyncRecordsURL":null,"payloadType":"Inline","syncCount":9}"#;

    #[test]
    fn events_of_the_service_take_the_fast_path() {
        for text in [EVENT, "{}", r#"{ "kinesisSyncRecords" : [ ] , "syncCount" : 0 }"#] {
            assert!(agrees(text), "{text}");
        }
        for text in [
            r#"{"extra":1}"#,
            r#"{"syncCount":1,"syncCount":1}"#,
            r#"{"syncCount":01}"#,
            r#"{"syncCount":-0}"#,
            r#"{"syncCount":1.0}"#,
            r#"{"syncCount":1e3}"#,
            r#"{"syncCount":1234567890123456789}"#,
            r#"{"syncCount":"1"}"#,
            r#"{"kinesisSyncRecords":[{"value":"no key"}]}"#,
            r#"{"kinesisSyncRecords":[{"key":"k"},]}"#,
            r#"{"operation":"\ud800"}"#,
            r#"{"operation":"\x"}"#,
            "{\"operation\":\"\u{1}\"}",
            r#"{"operation":nul}"#,
            r#"{"operation":"a"#,
            r#"{"operation":"a\"#,
            r#"{"syncCount":1}x"#,
            r#"{"syncCount":1"#,
            r#"{"syncCount":-}"#,
            "[]",
            "",
        ] {
            assert!(event(text).is_none(), "{text}");
        }
    }

    #[test]
    fn specials_are_found_at_every_offset() {
        for length in 0..40 {
            for byte in [b'"', b'\\', 0, 0x1f, b'\n'] {
                let mut bytes = vec![b'!'; length];
                bytes.extend([byte, 0xff, b'"']);
                assert_eq!(special(&bytes, 0), Some(length));
                assert_eq!(special(&bytes, length), Some(length));
            }
        }
        let plain: Vec<u8> = (0x20..=0xff).filter(|b| !matches!(b, b'"' | b'\\')).collect();
        assert_eq!(special(&plain, 0), None);
        assert_eq!(special(&plain, plain.len() + 2), None);
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_what_serde_reads(
            text in ".*",
            number in any::<i64>(),
            spaces in "[ \t\r\n]{0,3}",
            cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), "[\"\\\\{}\\[\\],:0-9a-z\u{0}-\u{1f}é]{0,2}"), 0..3),
        ) {
            let whole = json!({
                "identityId": &text, "syncCount": number, "operation": null, "dataSetName": "d",
                "kinesisSyncRecords": [{"key": &text, "value": &text, "deviceLastModifiedDate": number, "op": "remove"}],
            });
            let mut text = if spaces.len() == 3 { EVENT.to_owned() } else { whole.to_string() };
            text = text.replace(':', &format!("{spaces}:{spaces}"));
            for (at, length, with) in cuts {
                let at = (0..=at.index(text.len() + 1)).rev().find(|at| text.is_char_boundary(*at)).unwrap();
                let end = (at + length.index(4)).min(text.len());
                let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap();
                text.replace_range(at..end, &with);
            }
            agrees(&text);
        }
    }
}
