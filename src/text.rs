//! Text for people: on one line, without characters that could steer a terminal, and without the words of an engine.

use std::sync::LazyLock;

use regex::Regex;

/// Characters of a quoted value in a message.
const VALUE_MAX: usize = 80;

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

/// Removes from a message what only the engine's authors can use: the kinds of its errors, the rules that found them, and
/// the names of its catalogue.
pub(crate) fn plain(message: &str) -> String {
    static ENGINE: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let kinds = "(?:Error during planning|Schema error|Execution error|SQL error|Arrow error|Cast error): ";
        let rules = "Optimizer rule '[a-z_]+' failed: |^(?:same_kinds|type_coercion): ";
        Regex::new(&format!("{kinds}|{rules}|datafusion\\.public\\.")).ok()
    });
    let mut text = message.to_owned();
    // What is removed may stand one before the other.
    while let Some(next) = ENGINE.as_ref().map(|engine| engine.replace_all(&text, "").into_owned()) {
        if next == text {
            break;
        }
        text = next;
    }
    cut_values(&text)
}

/// Shortens a name that a user typed.
pub(crate) fn short(name: &str) -> String {
    let mut chars = name.chars();
    let shown: String = chars.by_ref().take(VALUE_MAX).collect();
    if chars.next().is_some() { format!("{shown}…") } else { shown }
}

/// Shortens the quoted values of a message: the whole of a long value helps nobody, and may be private.
pub(crate) fn cut_values(message: &str) -> String {
    static QUOTED: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("(?s)'[^']{81,}'|\"[^\"]{81,}\"").ok());
    let cut = |found: &regex::Captures<'_>| {
        let value = &found[0];
        let quote = &value[..1];
        format!("{quote}{}{quote}", short(&value[1..value.len() - 1]))
    };
    QUOTED.as_ref().map_or(message.into(), |quoted| quoted.replace_all(message, cut)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut() {
        let long = format!("cannot cast '{}' to an integer", "x".repeat(500));
        assert_eq!(cut_values(&long), format!("cannot cast '{}…' to an integer", "x".repeat(80)));
        assert_eq!(cut_values("it's short"), "it's short");
    }

    #[test]
    fn an_engine_speaks_of_the_query_alone() {
        let told = "Optimizer rule 'simplify_expressions' failed: Arrow error: Cast error: Cannot cast string 'x'";
        assert_eq!(plain(told), "Cannot cast string 'x'");
        assert_eq!(plain("same_kinds: Error during planning: a is no b"), "a is no b");
        assert_eq!(plain("date_diff: no unit"), "date_diff: no unit");
    }
}
