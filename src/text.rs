//! Text for people: on one line, and without characters that could steer a terminal.

/// Returns whether a character could steer a terminal: controls C0 and C1, DEL, and characters that set the text
/// direction.
pub(crate) fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}')
}

/// Escapes every such character of a text, except those in `kept`.
pub(crate) fn escaped(text: &str, kept: &str) -> String {
    let escape = |c: char| match steers(c) && !kept.contains(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Joins a message into one line. (DataFusion puts the context of an error on separate lines.)
pub(crate) fn joined(text: &str) -> String {
    text.replace("\ncaused by\n", ": ").split_whitespace().collect::<Vec<_>>().join(" ")
}
