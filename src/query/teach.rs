//! Errors of the parser and the planner, in the words of the user: what was not understood, where it stands, and what may
//! have been meant.

use std::sync::LazyLock;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateDefaults;
use datafusion::sql::sqlparser::parser::ParserError;
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

/// Returns the place that a planner's error states.
fn place_of(error: &DataFusionError) -> Option<Place> {
    let start = error.diagnostic()?.span?.start;
    let number = |number: u64| usize::try_from(number).ok().filter(|number| *number > 0);
    Some(Place { line: number(start.line)?, column: number(start.column)? })
}

/// Returns the error in the user's words; `None` if it is not one that this module knows.
pub(super) fn told(error: &DataFusionError) -> Option<QueryError> {
    let place = place_of(error);
    let placed = |(what, hint)| QueryError::Placed { what, hint, place, excerpt: String::new() };
    match error.find_root() {
        DataFusionError::SQL(error, _) => Some(match error.as_ref() {
            ParserError::ParserError(message) | ParserError::TokenizerError(message) => syntax(message),
            ParserError::RecursionLimitExceeded => return None,
        }),
        DataFusionError::SchemaError(error, _) => match error.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let names: Vec<String> = valid_fields.iter().map(|known| known.name.clone()).collect();
                let of = field.relation.as_ref().map(|of| format!(" in {}", of.table())).unwrap_or_default();
                Some(placed(no_column(&field.name, &of, &names)))
            }
            _ => None,
        },
        DataFusionError::Plan(message) => planned(message).map(placed),
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

/// Returns a message of a planner without the engine's words, and a hint.
fn planned(message: &str) -> Option<(String, String)> {
    static TABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("^table '(?:.*\\.)?([^'.]*)' not found$").ok());
    static FUNCTION: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new("^Invalid function '([^']*)'\\.\\s+Did you mean '([^']*)'\\?$").ok());
    if let Some(found) = TABLE.as_ref().and_then(|table| table.captures(message)) {
        let name = &found[1];
        let hint = nearest(name, relations::all()).map(|near| format!("; did you mean {near}?"));
        let hint = hint.unwrap_or_else(|| "; \\d lists them".to_owned());
        return Some((format!("there is no table or view {}", short(name)), hint));
    }
    let found = FUNCTION.as_ref()?.captures(message)?;
    let near = nearest(&found[1], FUNCTIONS.iter().map(String::as_str)).unwrap_or(&found[2]);
    Some((format!("there is no function {}", short(&found[1])), format!("; did you mean {near}?")))
}

fn no_column(name: &str, of: &str, names: &[String]) -> (String, String) {
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
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
    let what = what.replace("found EOF", "found the end").replace("end of statement", "the end of the statement");
    QueryError::Placed { what: cut_values(&what), hint: String::new(), place, excerpt: String::new() }
}

/// Adds to an error the line of the statement where it stands, and a caret below it.
pub(super) fn pointed(error: QueryError, statement: &str) -> QueryError {
    match error {
        QueryError::Placed { what, hint, place: Some(place), .. } => {
            QueryError::Placed { what, hint, place: Some(place), excerpt: excerpt(statement, place) }
        }
        error => error,
    }
}

/// Moves the place of an error by the characters that stood before the first line when it was planned.
pub(super) fn moved(error: QueryError, by: usize) -> QueryError {
    match error {
        QueryError::Placed { what, hint, place: Some(Place { line: 1, column }), excerpt } => {
            let place = Some(Place { line: 1, column: column.saturating_sub(by).max(1) });
            QueryError::Placed { what, hint, place, excerpt }
        }
        error => error,
    }
}

/// Returns an error without its place, which is one of another text than the user's.
pub(super) fn without_place(error: QueryError) -> QueryError {
    match error {
        QueryError::Placed { what, hint, excerpt, .. } => QueryError::Placed { what, hint, place: None, excerpt },
        error => error,
    }
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
        let table = planned("table 'datafusion.public.chnges' not found").map(told).unwrap();
        assert_eq!(table, "there is no table or view chnges; did you mean changes?");
        let function = planned("Invalid function 'cuont'.\nDid you mean 'cot'?").map(told).unwrap();
        assert_eq!(function, "there is no function cuont; did you mean count?");
        let names = ["identity_id", "value"].map(str::to_owned);
        let column = |name, of| told(no_column(name, of, &names));
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
    }
}
