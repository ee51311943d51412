//! Errors of the parser and the planner, in the words of the user: what was not understood, where it stands, and what may
//! have been meant.

use std::sync::LazyLock;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateDefaults;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};
use regex::Regex;

use super::{QueryError, relations};
use crate::text::{cut_values, short};

/// Columns that a message lists.
const LISTED_MAX: usize = 12;
/// Characters of the line that an excerpt shows.
const EXCERPT_MAX: usize = 76;

/// First words of statements that write.
pub(super) const WRITING: [&str; 22] = [
    "alter", "analyze", "attach", "begin", "call", "commit", "copy", "create", "delete", "drop", "export", "grant",
    "import", "insert", "load", "merge", "optimize", "replace", "revoke", "truncate", "update", "vacuum",
];

/// A place in a statement; lines and columns count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character of the line.
    pub column: usize,
}

impl Default for Place {
    fn default() -> Self {
        Self { line: 1, column: 1 }
    }
}

impl Place {
    /// Returns a place that the parser states; it states zeros where it knows none.
    pub(super) fn of(location: Location) -> Option<Self> {
        Self::at(location.line, location.column)
    }

    fn at(line: u64, column: u64) -> Option<Self> {
        let number = |number: u64| usize::try_from(number).ok().filter(|number| *number > 0);
        Some(Self { line: number(line)?, column: number(column)? })
    }

    /// Returns a place of a part as one of the text in which the part begins here.
    pub(crate) fn then(self, place: Self) -> Self {
        let column = if place.line == 1 { self.column + place.column - 1 } else { place.column };
        Self { line: self.line + place.line - 1, column }
    }
}

/// A statement as the user wrote it, and as it was planned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written<'a> {
    pub(super) statement: &'a str,
    pub(super) planned: Planned,
}

/// What was planned for a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planned {
    /// The statement behind this many characters.
    Behind(usize),
    /// Another text.
    Other,
}

impl Written<'_> {
    /// Returns the place of an error: the planner's, or that of an unknown name which stands in the statement once.
    fn place_of(&self, error: &DataFusionError, name: &str) -> Option<Place> {
        let stated = error.diagnostic().and_then(|told| told.span).map(|span| span.start);
        let stated = stated.and_then(|start| Place::at(start.line, start.column));
        match (stated, self.planned) {
            (Some(Place { line: 1, column }), Planned::Behind(added)) => {
                Some(Place { line: 1, column: column.saturating_sub(added).max(1) })
            }
            (Some(place), Planned::Behind(_)) => Some(place),
            _ => self.only(name),
        }
    }

    /// Returns the place of a name that stands in the statement once.
    fn only(&self, name: &str) -> Option<Place> {
        let mut places = self.words().into_iter().filter(|word| word.name == name).map(|word| word.place);
        places.next().filter(|_| places.next().is_none()).flatten()
    }

    /// Returns whether the statement names a table, or gives a table this name.
    fn has_table(&self, name: &str) -> bool {
        self.words().iter().any(|word| word.name == name && !word.is_qualifier)
    }

    /// Returns the names and keywords of the statement.
    fn words(&self) -> Vec<Word> {
        let tokens = Tokenizer::new(&GenericDialect {}, self.statement).tokenize_with_location().unwrap_or_default();
        let next = tokens.iter().skip(1).map(|token| &token.token).chain([&Token::EOF]);
        let words = tokens.iter().zip(next).filter_map(|(token, next)| match &token.token {
            Token::Word(word) => Some(Word {
                name: if word.quote_style.is_some() { word.value.clone() } else { word.value.to_lowercase() },
                place: Place::of(token.span.start),
                is_qualifier: *next == Token::Period,
            }),
            _ => None,
        });
        words.collect()
    }
}

/// A name or keyword of a statement.
struct Word {
    /// As the planner writes it.
    name: String,
    place: Option<Place>,
    /// Whether a dot follows.
    is_qualifier: bool,
}

/// Returns an error of the planner in the user's words; `None` if it is not one that this module knows.
pub(super) fn told(error: &DataFusionError, written: &Written<'_>) -> Option<QueryError> {
    let placed = |name: &str, (what, hint)| {
        let place = written.place_of(error, name);
        QueryError::Placed { what, hint, place, excerpt: String::new() }
    };
    match error.find_root() {
        DataFusionError::SQL(error, _) => Some(match error.as_ref() {
            ParserError::ParserError(message) | ParserError::TokenizerError(message) => syntax(message),
            ParserError::RecursionLimitExceeded => return None,
        }),
        DataFusionError::SchemaError(error, _) => match error.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let of = field.relation.as_ref().map(|of| of.table());
                let known: Vec<(Option<&str>, &str)> = valid_fields
                    .iter()
                    .map(|known| (known.relation.as_ref().map(|of| of.table()), known.name.as_str()))
                    .collect();
                // A query around this one may have the table: its columns are not known here.
                match of.filter(|of| !known.iter().any(|(table, _)| *table == Some(*of))) {
                    Some(of) if written.has_table(of) => {
                        let what = format!("there is no column {} in {}", short(&field.name), short(of));
                        Some(placed(&field.name, (what, String::new())))
                    }
                    Some(of) => Some(placed(of, no_alias(of, known.iter().filter_map(|(table, _)| *table)))),
                    None => {
                        let names = known.iter().filter(|(table, _)| of.is_none() || *table == of);
                        let of = of.map(|of| format!(" in {}", short(of))).unwrap_or_default();
                        Some(placed(&field.name, no_column(&field.name, &of, names.map(|(_, name)| *name))))
                    }
                }
            }
            _ => None,
        },
        DataFusionError::Plan(message) => planned(message).map(|(name, told)| placed(&name, told)),
        _ => None,
    }
}

/// Names of all functions. (DataFusion's own guess does not know exchanged letters.)
static FUNCTIONS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let scalars =
        SessionStateDefaults::default_scalar_functions().into_iter().map(|function| function.name().to_owned());
    let aggregates = SessionStateDefaults::default_aggregate_functions().into_iter();
    let windows = SessionStateDefaults::default_window_functions().into_iter();
    let own = super::functions::json::NAMES.map(str::to_owned).into_iter();
    let aggregates = aggregates.map(|function| function.name().to_owned());
    scalars.chain(aggregates).chain(windows.map(|function| function.name().to_owned())).chain(own).collect()
});

/// Returns the name that a message of a planner is about, and the message without the engine's words, and a hint.
fn planned(message: &str) -> Option<(String, (String, String))> {
    static TABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("^table '(?:.*\\.)?([^'.]*)' not found$").ok());
    static FUNCTION: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new("^Invalid function '([^']*)'\\.\\s+Did you mean '([^']*)'\\?$").ok());
    static UNGROUPED: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new("column \"(?:[^\"]*\\.)?([^\".]*)\" must appear in the GROUP BY clause").ok());
    if let Some(found) = TABLE.as_ref().and_then(|table| table.captures(message)) {
        return Some((found[1].to_owned(), no_relation(&found[1])));
    }
    if let Some(found) = UNGROUPED.as_ref().and_then(|column| column.captures(message)) {
        let name = short(&found[1]);
        let what = format!("the column {name} is neither in GROUP BY nor in an aggregate function");
        return Some((found[1].to_owned(), (what, format!("; add GROUP BY {name}, or write max({name})"))));
    }
    let found = FUNCTION.as_ref()?.captures(message)?;
    let near = nearest(&found[1], FUNCTIONS.iter().map(String::as_str)).unwrap_or(&found[2]);
    let what = format!("there is no function {}", short(&found[1]));
    Some((found[1].to_owned(), (what, format!("; did you mean {near}?"))))
}

fn no_relation(name: &str) -> (String, String) {
    let hint = nearest(name, relations::all()).map(|near| format!("; did you mean {near}?"));
    let hint = hint.unwrap_or_else(|| "; \\d lists them".to_owned());
    (format!("there is no table or view {}", short(name)), hint)
}

/// Returns the error of a statement that shows the columns of a table or view which is not there.
pub(crate) fn unknown_relation(name: &str, statement: &str) -> QueryError {
    let written = Written { statement, planned: Planned::Other };
    let (what, hint) = no_relation(name);
    QueryError::Placed { what, hint, place: written.only(name), excerpt: String::new() }
}

/// Returns the error of a column whose table is not one of those that the query reads.
fn no_alias<'a>(of: &str, tables: impl Iterator<Item = &'a str>) -> (String, String) {
    let mut tables: Vec<&str> = tables.collect();
    tables.sort_unstable();
    tables.dedup();
    let what = format!("the query reads no table {}", short(of));
    let only = tables.first().copied().filter(|_| tables.len() == 1);
    let hint = match (nearest(of, tables.iter().copied()).or(only), tables.as_slice()) {
        (Some(near), _) => format!("; did you mean {near}?"),
        (None, []) => String::new(),
        (None, tables) => format!("; it reads {}", tables.join(", ")),
    };
    (what, hint)
}

fn no_column<'a>(name: &str, of: &str, names: impl Iterator<Item = &'a str>) -> (String, String) {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    let shown = short(name);
    let what = format!("there is no column {shown}{of}");
    match nearest(name, names.iter().copied()) {
        Some(near) if near.eq_ignore_ascii_case(name) => (
            format!("there is no column \"{shown}\"{of}"),
            format!("; write {near}: names in double quotes keep their capitals"),
        ),
        Some(near) => (what, format!("; did you mean {near}?")),
        None if names.is_empty() => (what, ": nothing is read here that has columns".to_owned()),
        None => {
            let more = if names.len() > LISTED_MAX { ", …" } else { "" };
            names.truncate(LISTED_MAX);
            (what, format!("; there are {}{more}", names.join(", ")))
        }
    }
}

/// Returns the name that was most likely meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    // A long name is wrong in more places than a short one.
    let limit = (name.chars().count() / 3).max(1);
    let near = known.into_iter().map(|known| (strsim::damerau_levenshtein(&name, &known.to_lowercase()), known));
    near.filter(|(distance, _)| *distance <= limit).min().map(|(_, known)| known)
}

/// Returns an error of the parser, with its place.
pub(super) fn syntax(message: &str) -> QueryError {
    static PLACE: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new("(?s)^(.*?),? at Line: (\\d+), Column:? (\\d+)\\.?(.*)$").ok());
    let placed = PLACE.as_ref().and_then(|place| place.captures(message));
    let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number > 0);
    let place = placed.as_ref().and_then(|found| Some(Place { line: number(&found[2])?, column: number(&found[3])? }));
    let what = placed.as_ref().map_or(message.to_owned(), |found| format!("{}{}", &found[1], &found[4]));
    let what = what
        .trim_start_matches("sql parser error: ")
        .replace("Expected: ", "expected ")
        .replace(", found: ", ", found ");
    let what = what.replace("found EOF", AT_END).replace("end of statement", "the end of the statement");
    QueryError::Placed { what: cut_values(&what), hint: String::new(), place, excerpt: String::new() }
}

/// Adds to an error the line of the statement where it stands, and a caret below it.
pub(super) fn pointed(error: QueryError, statement: &str) -> QueryError {
    match error {
        QueryError::Placed { what, hint, place, .. } => {
            let place = place.or_else(|| what.ends_with(AT_END).then(|| end_of(statement)));
            let excerpt = place.map_or_else(String::new, |place| excerpt(statement, place));
            QueryError::Placed { what, hint, place, excerpt }
        }
        error => error,
    }
}

/// What the parser found where the statement ends; it states no place there.
const AT_END: &str = "found the end";

/// Returns the place behind the last character.
fn end_of(statement: &str) -> Place {
    let line = statement.lines().count().max(1);
    Place { line, column: statement.lines().last().map_or(0, |line| line.chars().count()) + 1 }
}

/// Returns a line of a statement and a caret below it, without characters that steer a terminal.
fn excerpt(statement: &str, place: Place) -> String {
    let Some(line) = statement.lines().nth(place.line - 1) else { return String::new() };
    let plain = |c: char| if crate::text::steers(c) { ' ' } else { c };
    let before = (place.column - 1).min(line.chars().count());
    // A long line is shown around the place.
    let skipped = before.saturating_sub(EXCERPT_MAX / 2);
    let shown: String = line.chars().skip(skipped).take(EXCERPT_MAX).map(plain).collect();
    let indent: String = shown.chars().take(before - skipped).collect();
    let width = unicode_width::UnicodeWidthStr::width(indent.as_str());
    format!("  {shown}\n  {}^", " ".repeat(width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_is_answered_with_what_was_meant() {
        assert_eq!(nearest("chnges", ["changes", "resolved"]), Some("changes"));
        assert_eq!(nearest("selct", ["select", "show"]), Some("select"));
        assert_eq!(nearest("orders", ["changes", "state"]), None);
        let told = |(what, hint): (String, String)| format!("{what}{hint}");
        let planned = |message| planned(message).map(|(_, message)| told(message)).unwrap();
        let table = planned("table 'datafusion.public.chnges' not found");
        assert_eq!(table, "there is no table or view chnges; did you mean changes?");
        let function = planned("Invalid function 'cuont'.\nDid you mean 'cot'?");
        assert_eq!(function, "there is no function cuont; did you mean count?");
        assert_eq!(told(no_alias("z", ["c", "c"].into_iter())), "the query reads no table z; did you mean c?");
        assert_eq!(
            told(no_alias("z", ["orders", "c_2"].into_iter())),
            "the query reads no table z; it reads c_2, orders"
        );
        let column = |name, of| told(no_column(name, of, ["identity_id", "value"].into_iter()));
        assert_eq!(column("valeu", " in c"), "there is no column valeu in c; did you mean value?");
        assert_eq!(column("price", ""), "there is no column price; there are identity_id, value");
        assert!(column("VALUE", "").contains("write value"));
    }

    #[test]
    fn a_caret_stands_below_what_is_wrong() {
        let statement = "select *\nform changes";
        let error = pointed(syntax("Expected: end of statement, found: form at Line: 2, Column: 1"), statement);
        assert_eq!(error.to_string(), "expected the end of the statement, found form at line 2, column 1");
        let QueryError::Placed { place, excerpt, .. } = error else { panic!("{error}") };
        assert_eq!(place, Some(Place { line: 2, column: 1 }));
        assert_eq!(excerpt, "  form changes\n  ^");
        let long = format!("select '{}', form", "東".repeat(100));
        let shown = super::excerpt(&long, Place { line: 1, column: 112 });
        assert!(shown.ends_with('^') && shown.lines().all(|line| line.chars().count() <= 130), "{shown}");
        assert_eq!(super::excerpt("a", Place { line: 9, column: 9 }), "");
        let QueryError::Placed { place, excerpt, .. } = pointed(syntax("Expected: ), found: EOF"), "select\n(1") else {
            panic!("no place")
        };
        assert_eq!((place, excerpt.as_str()), (Some(Place { line: 2, column: 3 }), "  (1\n    ^"));
    }
}
