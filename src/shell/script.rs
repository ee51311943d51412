//! A text as the shell reads it: statements and backslash commands, in the order given.

use std::path::Path;

use crate::query::{Place, QueryError, guard};

/// A text of statements and backslash commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The file that holds it, if one does.
    file: Option<String>,
    text: String,
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its first character in the text.
    begin: Place,
    pub(super) part: Part,
}

/// What a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// A statement, without its semicolon.
    Statement(String),
    /// A line that begins with a backslash, between two statements.
    Command(String),
}

/// Returns whether a line is a backslash command where a statement could begin.
pub(super) fn is_command(line: &str) -> bool {
    line.trim_start().starts_with('\\')
}

impl Script {
    /// Names a text of no file.
    pub fn of(text: String) -> Self {
        Self { file: None, text }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, QueryError> {
        let shown = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| QueryError::Script { path: shown.clone(), source })?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { file: Some(shown), text }),
            Err(_) => Err(QueryError::Refused(format!("{shown} is not UTF-8; convert it with iconv"))),
        }
    }

    /// Splits the text.
    ///
    /// # Errors
    /// The text is too long, or a literal or comment does not end.
    pub(super) fn pieces(&self) -> Result<Vec<Piece>, QueryError> {
        let statements = |text: &str, begin: Place| {
            let found = guard::split(text).map_err(|error| self.placed(error, begin))?;
            let piece = |(place, statement)| Piece { begin: begin.then(place), part: Part::Statement(statement) };
            Ok::<Vec<_>, QueryError>(found.into_iter().map(piece).collect())
        };
        // The tokenizer of SQL cannot read past a command: what it holds may be no SQL.
        if !self.text.lines().any(is_command) {
            return statements(&self.text, Place::default());
        }
        let mut found = Vec::new();
        let (mut pending, mut begin) = (String::new(), Place::default());
        for (line, text) in (1..).zip(self.text.split_inclusive('\n')) {
            if pending.is_empty() {
                begin = Place { line, column: 1 };
            }
            if is_command(text) && guard::is_blank(&pending) {
                pending.clear();
                let part = Part::Command(text.trim().to_owned());
                found.push(Piece { begin: Place { line, column: 1 }, part });
                continue;
            }
            pending.push_str(text);
            if text.contains(';') && guard::is_complete(&pending) {
                found.extend(statements(&std::mem::take(&mut pending), begin)?);
            }
        }
        found.extend(statements(&pending, begin)?);
        Ok(found)
    }

    /// Returns an error of a piece as one of this text: with the place in it, and with its file.
    pub(super) fn error(&self, error: QueryError, piece: &Piece) -> QueryError {
        self.placed(error, piece.begin)
    }

    fn placed(&self, error: QueryError, begin: Place) -> QueryError {
        let error = error.moved(begin);
        // A file that another one includes has named itself.
        match &self.file {
            Some(path) if !matches!(error, QueryError::InFile { .. }) => {
                let line = (!error.has_place()).then_some(begin.line);
                QueryError::InFile { path: path.clone(), line, source: Box::new(error) }
            }
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_and_commands_keep_their_order() {
        let text =
            "\\timing\nselect 1; select\n  2;\n-- it's a note\n\\i it's.sql\nselect '\n\\d';\n\\d changes\nselect 3";
        let at = |line, column, part| Piece { begin: Place { line, column }, part };
        let s = |text: &str| Part::Statement(text.to_owned());
        let c = |text: &str| Part::Command(text.to_owned());
        let expected = [
            at(1, 1, c("\\timing")),
            at(2, 1, s("select 1")),
            at(2, 11, s("select\n  2")),
            at(5, 1, c("\\i it's.sql")),
            at(6, 1, s("select '\n\\d'")),
            at(8, 1, c("\\d changes")),
            at(9, 1, s("select 3")),
        ];
        let pieces = |text: &str| Script::of(text.to_owned()).pieces();
        assert_eq!(pieces(text).unwrap(), expected);
        assert_eq!(pieces("select 1;;").unwrap(), [at(1, 1, s("select 1"))]);
        assert!(pieces("\\d\nselect 'open").unwrap_err().to_string().contains("line 2, column 8"));
    }

    #[test]
    fn an_error_names_the_file_and_the_line_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.sql");
        std::fs::write(&path, "select 1;\n\nselect key,\n  nope\nfrom changes;").unwrap();
        let script = Script::read(&path).unwrap();
        let pieces = script.pieces().unwrap();
        let place = Some(Place { line: 2, column: 3 });
        let error = QueryError::Placed { what: "wrong".to_owned(), hint: String::new(), place, excerpt: String::new() };
        let told = crate::terminal::chain(&script.error(error, &pieces[1]));
        assert_eq!(told, format!("{}: wrong at line 4, column 3", path.display()));
        let told = crate::terminal::chain(&script.error(QueryError::Memory("x".to_owned()), &pieces[1]));
        assert!(told.starts_with(&format!("{}, line 3: out of memory", path.display())), "{told}");
    }
}
