//! A text as the shell reads it: statements and backslash commands, in the order given.

use crate::query::{QueryError, guard};

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// A statement, without its semicolon.
    Statement(String),
    /// A line that begins with a backslash, between two statements.
    Command(String),
}

/// Returns whether a line is a backslash command where a statement could begin.
pub(super) fn is_command(line: &str) -> bool {
    line.trim_start().starts_with('\\')
}

/// Splits a text.
///
/// # Errors
/// The text is too long, or a literal or comment does not end.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, QueryError> {
    let statements =
        |text: &str| Ok::<_, QueryError>(guard::split(text)?.into_iter().map(Piece::Statement).collect::<Vec<_>>());
    // The tokenizer of SQL cannot read past a command: what it holds may be no SQL.
    if !text.lines().any(is_command) {
        return statements(text);
    }
    let mut found = Vec::new();
    let mut pending = String::new();
    for line in text.split_inclusive('\n') {
        if is_command(line) && guard::is_blank(&pending) {
            pending.clear();
            found.push(Piece::Command(line.trim().to_owned()));
            continue;
        }
        pending.push_str(line);
        if line.contains(';') && guard::is_complete(&pending) {
            found.extend(statements(&std::mem::take(&mut pending))?);
        }
    }
    found.extend(statements(&pending)?);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_and_commands_keep_their_order() {
        let text =
            "\\timing\nselect 1; select\n  2;\n-- it's a note\n\\i it's.sql\nselect '\n\\d';\n\\d changes\nselect 3";
        let s = |text: &str| Piece::Statement(text.to_owned());
        let c = |text: &str| Piece::Command(text.to_owned());
        let expected = [
            c("\\timing"),
            s("select 1"),
            s("select\n  2"),
            c("\\i it's.sql"),
            s("select '\n\\d'"),
            c("\\d changes"),
            s("select 3"),
        ];
        assert_eq!(pieces(text).unwrap(), expected);
        assert_eq!(pieces("select 1;;").unwrap(), [s("select 1")]);
        assert!(pieces("\\d\nselect 'open").is_err());
    }
}
