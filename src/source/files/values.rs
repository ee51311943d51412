//! Where a record ends in a text of JSON objects that need no line break between them.
//!
//! Firehose writes `{…}{…}` by default. A record ends behind the bracket that closes its object, and at every line
//! break: JSON has none inside of a text, so a broken record spoils no record on the next line.

/// The state between two parts of a text.
#[derive(Debug, Default, Clone)]
pub(super) struct Values {
    depth: usize,
    is_text: bool,
    is_escaped: bool,
}

impl Values {
    /// Returns the number of bytes up to and with the end of the record; `None` if it does not end in this part.
    pub(super) fn end(&mut self, part: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < part.len() {
            if self.is_escaped {
                self.is_escaped = false;
                // A line break ends a record wherever it stands.
                at += usize::from(part[at] != b'\n');
                if part.get(at) != Some(&b'\n') {
                    continue;
                }
            } else if self.is_text {
                at += memchr::memchr3(b'"', b'\\', b'\n', &part[at..])?;
            } else {
                at += part[at..].iter().position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']' | b'\n'))?;
            }
            let byte = part[at];
            at += 1;
            match byte {
                b'\n' => {
                    *self = Self::default();
                    return Some(at);
                }
                b'"' => self.is_text = !self.is_text,
                b'\\' => self.is_escaped = true,
                b'{' | b'[' => self.depth += 1,
                // A closing bracket without its opening one is a broken record; it ends at the line break.
                _ if self.depth == 0 => {}
                _ => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at);
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits a text that arrives in parts of some bytes.
    fn split(text: &str, part: usize) -> Vec<String> {
        let (mut values, mut records, mut record) = (Values::default(), Vec::new(), Vec::new());
        for mut part in text.as_bytes().chunks(part) {
            while let Some(end) = values.end(part) {
                record.extend_from_slice(&part[..end]);
                records.push(String::from_utf8(std::mem::take(&mut record)).unwrap());
                part = &part[end..];
            }
            record.extend_from_slice(part);
        }
        records.push(String::from_utf8(record).unwrap());
        records
    }

    #[test]
    fn records_end_with_their_object_or_their_line() {
        for (text, expected) in [
            (r#"{"a":1}{"b":{"c":[{}]}}"#, vec![r#"{"a":1}"#, r#"{"b":{"c":[{}]}}"#, ""]),
            ("{\"a\":\"}{\"}\n{}", vec!["{\"a\":\"}{\"}", "\n", "{}", ""]),
            (r#"{"a":"\"}\\"}{}"#, vec![r#"{"a":"\"}\\"}"#, "{}", ""]),
            // A broken record ends with its line.
            ("{\"a\":\"x\n{\"b\":1}\n", vec!["{\"a\":\"x\n", "{\"b\":1}", "\n", ""]),
            ("{\"a\":\"\\\n{}", vec!["{\"a\":\"\\\n", "{}", ""]),
            ("no } json\n{}", vec!["no } json\n", "{}", ""]),
            ("{\"a\":[1}\n{}x", vec!["{\"a\":[1}\n", "{}", "x"]),
        ] {
            for part in 1..=text.len() {
                assert_eq!(split(text, part), expected, "{text:?} in parts of {part}");
            }
        }
    }
}
