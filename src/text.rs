//! Text for people: on one line, and with nothing in it that could steer a terminal.

/// Whether a character could steer a terminal: controls C0 and C1, DEL, and what turns the direction of text.
pub(crate) fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}')
}

/// The text with every such character escaped, but for those in `kept`.
pub(crate) fn escaped(text: &str, kept: &str) -> String {
    let escape = |c: char| match steers(c) && !kept.contains(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// A message on one line. (DataFusion tells the context of an error on lines of its own.)
pub(crate) fn joined(text: &str) -> String {
    text.replace("\ncaused by\n", ": ").split_whitespace().collect::<Vec<_>>().join(" ")
}
