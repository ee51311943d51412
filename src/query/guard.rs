//! Pre-parse checks that reject statements which a parser or planner could not survive.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Whitespace};

use super::{Place, QueryError, teach};

/// Longest text of one statement, in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting that the parser follows.
pub const DEPTH_MAX: usize = 200;
/// Most words and signs in a statement, without literals and commas. A long IN list is harmless, but a long chain of
/// operators is a deep tree.
pub const TOKENS_MAX: usize = 3_000;

/// First words of statements that only read.
const READING: [&str; 9] = ["select", "with", "from", "values", "explain", "show", "describe", "desc", "summarize"];
/// First words of statements that change settings.
const SETTING: [&str; 3] = ["set", "reset", "pragma"];

/// Checks one statement.
///
/// # Errors
/// The statement is empty, too long or too deep, holds a NUL, or does not begin like a statement that only reads.
pub fn check(statement: &str) -> Result<(), QueryError> {
    let refuse = |message: String| Err(QueryError::Refused(message));
    if statement.len() > TEXT_BYTES_MAX {
        return refuse(format!("SQL text of {} bytes is too long; the limit is {TEXT_BYTES_MAX}", statement.len()));
    }
    if statement.contains('\0') {
        return refuse("SQL text holds a NUL byte; remove it".to_owned());
    }
    let tokens = match Tokenizer::new(&GenericDialect {}, statement).tokenize_with_location() {
        Ok(tokens) => tokens,
        Err(error) => return Err(teach::pointed(teach::syntax(&error.to_string()), statement)),
    };
    let place = tokens.iter().find(|t| !matches!(t.token, Token::Whitespace(_)));
    let place = place.and_then(|first| Place::of(first.span.start));
    let tokens: Vec<Token> = tokens.into_iter().map(|token| token.token).collect();
    let counted = |token: &&Token| {
        !matches!(
            token,
            Token::Whitespace(_) | Token::Comma | Token::Number(..) | Token::SingleQuotedString(_) | Token::SemiColon
        )
    };
    if tokens.iter().all(|t| matches!(t, Token::Whitespace(_) | Token::SemiColon)) {
        return refuse("the SQL text is empty".to_owned());
    }
    let first = tokens.iter().find(|t| !matches!(t, Token::Whitespace(_)));
    let reads = match first {
        Some(Token::Word(word)) => READING.contains(&word.value.to_ascii_lowercase().as_str()),
        first => matches!(first, Some(Token::LParen)),
    };
    let sets = matches!(first, Some(Token::Word(w)) if SETTING.contains(&w.value.to_ascii_lowercase().as_str()));
    if sets {
        return refuse(refused_setting(statement));
    }
    if !reads {
        let first = first.map(ToString::to_string).unwrap_or_default();
        let word = first.to_ascii_lowercase();
        let words = READING.join(", ");
        if teach::WRITING.contains(&word.as_str()) {
            return refuse(format!(
                "{first} is not possible: the lake is read-only here. A statement begins with {words}"
            ));
        }
        let hint = match teach::nearest(&word, READING) {
            Some(near) => format!("; did you mean {near}?"),
            None => format!("; it begins with {words}"),
        };
        let what = format!("no statement begins with {first}");
        return Err(teach::pointed(QueryError::Placed { what, hint, place, excerpt: String::new() }, statement));
    }
    let count = tokens.iter().filter(counted).count();
    if count > TOKENS_MAX {
        return refuse(format!(
            "statement of {count} words and operators is too deep to plan; the limit is {TOKENS_MAX}"
        ));
    }
    Ok(())
}

/// Returns why a setting is no statement here, and what to do.
///
/// A time zone of the session would move the dates of views, which are those of UTC, and the meaning of casts in them.
fn refused_setting(statement: &str) -> String {
    let text = statement.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let remedy = match () {
        () if has(&["time zone", "timezone", "time_zone"]) => {
            "all times are UTC; write ts AT TIME ZONE 'Europe/Berlin' for the time elsewhere"
        }
        () if has(&["memory"]) => "the flag --memory is the limit",
        () if has(&["thread", "partitions"]) => "the flag --threads is the limit",
        () => "settings are flags of the program; --help lists them",
    };
    format!("no setting can be changed by a statement; {remedy}")
}

/// Returns whether a text ends with a semicolon outside of literals and comments.
pub fn is_complete(text: &str) -> bool {
    match Tokenizer::new(&GenericDialect {}, text).tokenize() {
        Ok(tokens) => tokens.iter().rev().find(|t| !matches!(t, Token::Whitespace(_))) == Some(&Token::SemiColon),
        // An open literal or comment may continue. Any other error is reported when the statement runs.
        Err(error) => !(error.message.contains("Unterminated") || error.message.contains("EOF")),
    }
}

/// Returns whether a text has no words, only spaces and comments.
pub fn is_blank(text: &str) -> bool {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize();
    tokens.is_ok_and(|tokens| tokens.iter().all(|token| matches!(token, Token::Whitespace(_))))
}

/// Splits a text into statements at the semicolons outside of literals and comments. Each has the place of its first
/// character in the text.
///
/// # Errors
/// The text is too long, or a literal or comment does not end.
pub fn split(text: &str) -> Result<Vec<(Place, String)>, QueryError> {
    if text.len() > 8 * TEXT_BYTES_MAX {
        let limit = 8 * TEXT_BYTES_MAX;
        return Err(QueryError::Refused(format!("SQL text of {} bytes is too long; the limit is {limit}", text.len())));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location();
    let tokens = tokens.map_err(|error| teach::pointed(teach::syntax(&error.to_string()), text))?;
    let mut lines = vec![0];
    lines.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1));
    // Locations count characters in a line, slices need bytes. Locations come in order, so each line is walked once.
    let mut walked = (0, 0, 0);
    let mut offset = |line: u64, column: u64| {
        let line = usize::try_from(line).unwrap_or(1).saturating_sub(1);
        let start = lines.get(line).copied().unwrap_or(text.len());
        let column = usize::try_from(column).unwrap_or(1).saturating_sub(1);
        let (known_line, known_column, known_at) = walked;
        let (from, at) =
            if known_line == line && known_column <= column { (known_column, known_at) } else { (0, start) };
        let at = text[at..].char_indices().nth(column - from).map_or(text.len(), |(more, _)| at + more);
        walked = (line, column, at);
        at
    };
    let mut found = Vec::new();
    let mut begin = 0;
    let mut first = None;
    let mut has_words = false;
    for token in &tokens {
        let is_text = !matches!(
            token.token,
            Token::Whitespace(Whitespace::Space | Whitespace::Newline | Whitespace::Tab) | Token::EOF
        );
        match token.token {
            Token::SemiColon => {
                let end = offset(token.span.start.line, token.span.start.column);
                if has_words {
                    found.push((first.unwrap_or_default(), text[begin..end].trim().to_owned()));
                }
                begin = end + 1;
                (first, has_words) = (None, false);
                continue;
            }
            Token::Whitespace(_) | Token::EOF => {}
            _ => has_words = true,
        }
        if is_text {
            first = first.or_else(|| Place::of(token.span.start));
        }
    }
    if has_words {
        found.push((first.unwrap_or_default(), text[begin..].trim().to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_at_semicolons_outside_literals() {
        let split = |text| split(text).unwrap().into_iter().map(|(_, statement)| statement).collect::<Vec<_>>();
        assert_eq!(
            split("select 1; select ';' -- a;b\n;\n\nselect \"ü;\" ;;"),
            ["select 1", "select ';' -- a;b", "select \"ü;\""]
        );
        assert_eq!(split("-- only a comment"), [""; 0]);
        assert_eq!(split("select /* ; */ 'é;ü'; select 2"), ["select /* ; */ 'é;ü'", "select 2"]);
    }

    #[test]
    fn statements_know_where_they_begin() {
        let found = split("select 'é'; select 2;\n\n  -- c\n select 3;").unwrap();
        let places = found.iter().map(|(place, _)| (place.line, place.column));
        assert_eq!(places.collect::<Vec<_>>(), [(1, 1), (1, 13), (3, 3)]);
    }

    #[test]
    fn what_would_overflow_is_refused() {
        assert!(check(&format!("select {}", vec!["1"; 20_000].join("+"))).is_err());
        assert!(check(&vec!["select 1"; 5_000].join(" union all ")).is_err());
        assert!(check(&format!("select {}", vec!["1"; 20_000].join(","))).is_ok());
        assert!(check("select '\0'").is_err());
        assert!(check(" -- nothing\n").is_err());
        for (text, remedy) in [
            ("SET TIME ZONE 'Europe/Berlin'", "AT TIME ZONE"),
            ("set timezone = 'UTC'", "AT TIME ZONE"),
            ("set memory_limit = '1GB'", "--memory"),
            ("PRAGMA threads = 4", "--threads"),
            ("reset x", "--help"),
        ] {
            assert!(check(text).unwrap_err().to_string().contains(remedy), "{text}");
        }
        for (text, complete) in [
            ("select 1;", true),
            ("select 1; -- done", true),
            ("select 'a;", false),
            ("/* note; ", false),
            ("select 1", false),
            ("select ';'", false),
            ("-- only;", false),
        ] {
            assert_eq!(is_complete(text), complete, "{text}");
        }
        let many = format!("select 1 {}", "; ".repeat(1 << 20));
        assert_eq!(split(&many).unwrap().len(), 1, "linear, also in one line");
        assert!(check(&" ".repeat(10_000_000)).is_err());
    }
}
