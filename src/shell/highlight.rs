//! Kinds of words in SQL as it is typed, and their colours.

use std::ops::Range;

/// Words that SQL reserves, and those of statements that the shell knows, in lower case and in order.
pub(super) const KEYWORDS: [&str; 76] = [
    "all",
    "analyze",
    "and",
    "any",
    "as",
    "asc",
    "between",
    "by",
    "case",
    "cast",
    "cross",
    "date",
    "desc",
    "describe",
    "distinct",
    "else",
    "end",
    "escape",
    "except",
    "exists",
    "explain",
    "extract",
    "false",
    "filter",
    "first",
    "following",
    "from",
    "full",
    "group",
    "having",
    "ilike",
    "in",
    "inner",
    "intersect",
    "interval",
    "is",
    "join",
    "last",
    "left",
    "like",
    "limit",
    "not",
    "null",
    "nulls",
    "offset",
    "on",
    "or",
    "order",
    "outer",
    "over",
    "partition",
    "preceding",
    "qualify",
    "recursive",
    "right",
    "row",
    "rows",
    "select",
    "show",
    "similar",
    "summarize",
    "tables",
    "then",
    "timestamp",
    "to",
    "true",
    "try_cast",
    "unbounded",
    "union",
    "unnest",
    "using",
    "values",
    "when",
    "where",
    "window",
    "with",
];

/// A kind of word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Keyword,
    Word,
    Number,
    /// A literal in single quotes, perhaps without its end.
    Text,
    /// A name in double quotes, perhaps without its end.
    Name,
    Comment,
    Other,
}

/// Returns the words of a text in order, without the spaces between them.
pub(super) fn words(text: &str) -> Vec<(Kind, Range<usize>)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let rest = &text[at..];
        let length = |ends: fn(char) -> bool| rest.find(ends).unwrap_or(rest.len());
        let (kind, count) = match byte {
            b'\'' => (Kind::Text, quoted(rest, '\'')),
            b'"' => (Kind::Name, quoted(rest, '"')),
            b'-' if rest.starts_with("--") => (Kind::Comment, length(|c| c == '\n')),
            b'/' if rest.starts_with("/*") => (Kind::Comment, rest.find("*/").map_or(rest.len(), |end| end + 2)),
            b'0'..=b'9' => (Kind::Number, length(|c| !(c.is_ascii_alphanumeric() || c == '.'))),
            b if b.is_ascii_alphabetic() || *b == b'_' => {
                let count = length(|c| !(c.is_ascii_alphanumeric() || c == '_'));
                let is_keyword = KEYWORDS.binary_search(&rest[..count].to_ascii_lowercase().as_str()).is_ok();
                (if is_keyword { Kind::Keyword } else { Kind::Word }, count)
            }
            b if b.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            _ => (Kind::Other, rest.chars().next().map_or(1, char::len_utf8)),
        };
        found.push((kind, at..at + count));
        at += count;
    }
    found
}

/// Returns the length of what begins with a quote, with its end if it has one. Two quotes stand for one.
fn quoted(text: &str, quote: char) -> usize {
    let mut at = 1;
    while let Some(end) = text[at..].find(quote) {
        at += end + 1;
        if !text[at..].starts_with(quote) {
            return at;
        }
        at += 1;
    }
    text.len()
}

/// Returns a text in colours.
pub(super) fn coloured(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut at = 0;
    for (kind, range) in words(text) {
        let colour = match kind {
            Kind::Keyword => "1;34",
            Kind::Number => "36",
            Kind::Text => "32",
            Kind::Comment => "2",
            Kind::Word | Kind::Name | Kind::Other => continue,
        };
        out.push_str(&text[at..range.start]);
        out.push_str(&format!("\x1b[{colour}m{}\x1b[0m", &text[range.clone()]));
        at = range.end;
    }
    out.push_str(&text[at..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keywords_are_in_order() {
        assert!(KEYWORDS.is_sorted());
    }

    #[test]
    fn literals_and_comments_hold_no_keywords() {
        assert_eq!(coloured("select 'it''s or' x"), "\x1b[1;34mselect\x1b[0m \x1b[32m'it''s or'\x1b[0m x");
        assert_eq!(coloured("'\nor' or"), "\x1b[32m'\nor'\x1b[0m \x1b[1;34mor\x1b[0m");
        assert_eq!(coloured("1 -- or 'x"), "\x1b[36m1\x1b[0m \x1b[2m-- or 'x\x1b[0m");
    }

    proptest! {
        #[test]
        fn colours_change_no_character(text in "[a-z0-9'\"/*é -]{0,40}") {
            let plain = regex::Regex::new("\x1b\\[[0-9;]*m").unwrap();
            let made = coloured(&text);
            prop_assert_eq!(plain.replace_all(&made, ""), text.as_str());
        }
    }
}
