//! Text that is JSON and not one event a line: told by its shape before anything is read of it, because each of its lines would
//! go to the quarantine.

use serde::de::IgnoredAny;

/// Says what the beginning of a file holds in place of one event a line, and how to turn it into that; `None` when it may be
/// lines of events.
pub(super) fn other_than_lines(head: &[u8], name: &str) -> Option<String> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text = text.trim_ascii_start();
    let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
    let from = if name == "-" { "jq -c FILTER" } else { "jq -c FILTER FILE" };
    let piped = |filter: &str| {
        format!("{} | synclake ingest --source file:-", from.replace("FILTER", filter).replace("FILE", name))
    };
    if text.first() == Some(&b'[') && text[1..].trim_ascii_start().first() == Some(&b'{') {
        return Some(format!("holds one JSON array, not an event a line; turn it into lines: {}", piped("'.[]'")));
    }
    if text.first() == Some(&b'{') && line.len() < text.len() {
        // A value that goes on behind the first line break.
        let mut values = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
        let spans = match values.next() {
            Some(Ok(_)) => values.byte_offset() > line.len() + 1,
            // Too long to see its end here; every break so far lies inside of it.
            Some(Err(error)) => error.is_eof() && text.len() >= HEAD_BYTES / 2 && line.len() < 1_024,
            None => false,
        };
        if spans {
            return Some(format!(
                "holds JSON that spans lines, not an event a line; turn it into lines: {}",
                piped("'.'")
            ));
        }
    }
    let body = line.strip_suffix(b"\r").unwrap_or(line);
    if text.first() == Some(&b'{') && body.windows(2).any(|pair| pair[0] == b'\r' && matches!(pair[1], b'{' | b'\r')) {
        let file = if name == "-" { "" } else { name };
        return Some(format!(
            "ends its lines with CR alone; turn them into lines: tr '\\r' '\\n' < {file} | synclake ingest --source file:-"
        ));
    }
    None
}

/// Bytes of a file that decide.
pub(super) const HEAD_BYTES: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let told = |text: &str| other_than_lines(text.as_bytes(), "f.json");
        for lines in [
            "",
            "x\n",
            "{\"a\":1}\n{\"b\":2}\n",
            "{\"a\":1}",
            "[]\n",
            "[1]\n",
            "{\"a\":\n",
            "{\"torn\n{\"a\":1}\n",
            "\u{feff}{\"a\":1}\r\n{}\r\n",
            "{\"a\":\"\\r{\"}\n",
            " {\"a\":1} \n",
        ] {
            assert_eq!(told(lines), None, "{lines:?}");
        }
        assert!(told("[{\"a\":1},{\"b\":2}]\n").unwrap().contains("jq -c '.[]' f.json"));
        assert!(told("\u{feff}[\n  {\"a\":1}\n]").unwrap().contains("array"));
        assert!(told("{\n  \"a\": 1\n}\n{\n  \"a\": 2\n}\n").unwrap().contains("jq -c '.' f.json"));
        assert!(told(&format!("{{\n  \"a\": [\n{}", "1,\n".repeat(HEAD_BYTES / 3))).unwrap().contains("spans lines"));
        assert!(told("{\"a\":1}\r{\"b\":2}\r").unwrap().contains("tr '\\r' '\\n' < f.json"));
    }
}
