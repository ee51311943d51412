//! Completion: what the word before the cursor may become.

use clap::ValueEnum;

use super::commands;
use super::highlight::{KEYWORDS, Kind, words};
use crate::print::Format;
use crate::query::Vocabulary;

/// Words after which a table or view is named.
const BEFORE_RELATIONS: [&str; 5] = ["from", "join", "describe", "summarize", "table"];
/// Words with which a statement begins.
const BEGINNINGS: [&str; 8] = ["describe", "explain", "from", "select", "show", "summarize", "values", "with"];
/// Most words that are offered.
const OFFERED_MAX: usize = 500;

/// Words that may replace the end of a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    /// Bytes of the text that a word replaces.
    pub(super) replaced: usize,
    pub(super) words: Vec<String>,
}

/// Returns what the end of `before` may become. `after` is the rest of the statement.
pub(super) fn offer(before: &str, after: &str, known: &Vocabulary) -> Offer {
    if before.trim_start().starts_with('\\') {
        return command(before.trim_start(), known);
    }
    let found = words(before);
    if let Some(offer) = value(before, &found, known) {
        return offer;
    }
    let typed = match found.last() {
        Some((Kind::Word | Kind::Keyword, range)) if range.end == before.len() => &before[range.clone()],
        Some((Kind::Text | Kind::Name | Kind::Comment | Kind::Number, range)) if range.end == before.len() => {
            return Offer::default();
        }
        _ => "",
    };
    let earlier = &found[..found.len() - usize::from(!typed.is_empty())];
    let mut offered: Vec<String> = Vec::new();
    let mut add = |words: &mut dyn Iterator<Item = &str>| {
        let fits = |word: &&str| word.len() >= typed.len() && word.is_char_boundary(typed.len());
        let fits = words.filter(fits).filter(|word| word[..typed.len()].eq_ignore_ascii_case(typed));
        for word in fits {
            if !offered.iter().any(|known| known == word) {
                offered.push(word.to_owned());
            }
        }
    };
    let relations = || known.relations.iter().map(|(name, _)| name.as_str());
    let last = earlier.last().map(|(_, range)| before[range.clone()].to_ascii_lowercase()).unwrap_or_default();
    if let Some(columns) = qualified(before, earlier, after, known) {
        add(&mut columns.iter().map(String::as_str));
    } else if earlier.is_empty() {
        let upper = BEGINNINGS.map(str::to_ascii_uppercase);
        match is_upper(typed) {
            true => add(&mut upper.iter().map(String::as_str)),
            false => add(&mut BEGINNINGS.into_iter()),
        }
    } else if BEFORE_RELATIONS.contains(&last.as_str()) {
        add(&mut relations());
    } else {
        let statement = format!("{before}{after}");
        let named = named(&statement, known);
        let is_of = |name: &str| named.is_empty() || named.contains(&name);
        let columns = known.relations.iter().filter(|(name, _)| is_of(name)).flat_map(|(_, columns)| columns);
        add(&mut columns.map(String::as_str));
        if !typed.is_empty() {
            let upper = KEYWORDS.map(str::to_ascii_uppercase);
            match is_upper(typed) {
                true => add(&mut upper.iter().map(String::as_str)),
                false => add(&mut KEYWORDS.into_iter()),
            }
            add(&mut relations());
            let calls: Vec<String> = known.functions.iter().map(|name| format!("{name}(")).collect();
            add(&mut calls.iter().map(String::as_str));
        }
    }
    offered.truncate(OFFERED_MAX);
    Offer { replaced: typed.len(), words: offered }
}

/// Returns whether a word is written in capitals.
fn is_upper(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase())
}

fn command(before: &str, known: &Vocabulary) -> Offer {
    let (name, rest) = before.split_once(' ').map_or((before, None), |(name, rest)| (name, Some(rest.trim_start())));
    let fitting = |typed: &str, words: &mut dyn Iterator<Item = &str>| Offer {
        replaced: typed.len(),
        words: words.filter(|word| word.starts_with(typed)).map(str::to_owned).collect(),
    };
    match (name, rest) {
        (typed, None) => fitting(typed, &mut commands::NAMES.into_iter()),
        ("\\d", Some(typed)) => fitting(typed, &mut known.relations.iter().map(|(name, _)| name.as_str())),
        ("\\format", Some(typed)) => {
            let names: Vec<String> = Format::value_variants().iter().map(|format| format.name()).collect();
            fitting(typed, &mut names.iter().map(String::as_str).chain([commands::BY_NAME]))
        }
        _ => Offer::default(),
    }
}

/// Returns the values that may stand at the cursor: after `column =`, or in the list of `column in (`.
fn value(before: &str, found: &[(Kind, std::ops::Range<usize>)], known: &Vocabulary) -> Option<Offer> {
    let text = |(_, range): &(Kind, std::ops::Range<usize>)| &before[range.clone()];
    let (typed, earlier) = match found.split_last() {
        // A literal with an end is not being typed.
        Some(((Kind::Text, range), earlier)) if range.end == before.len() => {
            let typed = &before[range.clone()];
            let is_open = typed.len() == 1 || !typed.ends_with('\'');
            (is_open.then(|| &typed[1..])?, earlier)
        }
        _ => ("", found),
    };
    let is_quoted = earlier.len() < found.len();
    let mut back = earlier.iter().rev();
    let mut last = back.next()?;
    // The items of a list before this one.
    while matches!(text(last), ",") {
        let item = back.next()?;
        (item.0 == Kind::Text).then_some(())?;
        last = back.next()?;
    }
    let column = match text(last).to_ascii_lowercase().as_str() {
        "=" => back.next()?,
        "(" => {
            text(back.next()?).eq_ignore_ascii_case("in").then_some(())?;
            let before_in = back.next()?;
            if text(before_in).eq_ignore_ascii_case("not") { back.next()? } else { before_in }
        }
        // `<>` and `!=` are two signs here.
        ">" => (text(back.next()?) == "<").then(|| back.next())??,
        _ => return None,
    };
    let values = known.values.get(text(column).to_ascii_lowercase().as_str())?;
    let from = values.range(typed.to_owned()..).take_while(|value| value.starts_with(typed)).take(OFFERED_MAX);
    let words = from.map(|value| format!("'{}'", value.replace('\'', "''"))).collect();
    Some(Offer { replaced: typed.len() + usize::from(is_quoted), words })
}

/// Returns the columns of the relation whose name or alias stands before a dot at the cursor.
fn qualified<'a>(
    before: &str,
    earlier: &[(Kind, std::ops::Range<usize>)],
    after: &str,
    known: &'a Vocabulary,
) -> Option<&'a [String]> {
    let [.., (_, name), (_, dot)] = earlier else { return None };
    (&before[dot.clone()] == ".").then_some(())?;
    let name = &before[name.clone()];
    let columns_of = |name: &str| {
        let is_it = |(known, _): &&(String, Vec<String>)| known.eq_ignore_ascii_case(name);
        known.relations.iter().find(is_it).map(|(_, columns)| columns.as_slice())
    };
    columns_of(name).or_else(|| {
        let statement = format!("{before}{after}");
        let found: Vec<&str> = words(&statement).into_iter().map(|(_, range)| &statement[range]).collect();
        let is_alias = |word: &str| word.eq_ignore_ascii_case(name);
        let with_as = found.windows(3).filter(|w| w[1].eq_ignore_ascii_case("as") && is_alias(w[2]));
        let without = found.windows(2).filter(|w| is_alias(w[1]));
        with_as.chain(without).find_map(|window| columns_of(window[0]))
    })
}

/// Returns the relations that a statement names.
fn named<'a>(statement: &str, known: &'a Vocabulary) -> Vec<&'a str> {
    let found = words(statement);
    let is_named = |name: &str| found.iter().any(|(_, range)| statement[range.clone()].eq_ignore_ascii_case(name));
    known.relations.iter().map(|(name, _)| name.as_str()).filter(|name| is_named(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vocabulary {
        let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Vocabulary {
            relations: vec![
                ("changes".to_owned(), columns(&["identity_id", "dataset_name", "value"])),
                ("quarantine".to_owned(), columns(&["reason", "detail"])),
            ],
            functions: columns(&["sum", "substr"]),
            values: [
                ("identity_id".to_owned(), ["eu:1", "eu:2", "us:'9"].map(str::to_owned).into()),
                ("dataset_name".to_owned(), ["prefs", "scores"].map(str::to_owned).into()),
            ]
            .into(),
        }
    }

    /// Completes at `|`, and returns the replaced text and the words.
    fn at(text: &str) -> (String, Vec<String>) {
        let (before, after) = text.split_once('|').unwrap();
        let Offer { replaced, words } = offer(before, after, &known());
        (before[before.len() - replaced..].to_owned(), words)
    }

    fn words_at(text: &str) -> Vec<String> {
        at(text).1
    }

    #[test]
    fn words_are_those_that_can_stand_there() {
        assert_eq!(at("sel|"), ("sel".to_owned(), vec!["select".to_owned()]));
        assert_eq!(words_at("SEL|"), ["SELECT"]);
        assert_eq!(words_at("select * from cha|"), ["changes"]);
        assert_eq!(words_at("select * from |"), ["changes", "quarantine"]);
        assert_eq!(words_at("select rea| from quarantine"), ["reason"]);
        assert_eq!(words_at("select id| from quarantine"), [""; 0]);
        assert_eq!(words_at("select su|"), ["summarize", "sum(", "substr("]);
        assert_eq!(words_at("select c.da| from changes c"), ["dataset_name"]);
        assert_eq!(words_at("select c.da| from changes as c"), ["dataset_name"]);
        assert_eq!(words_at("select * from changes where changes.v|"), ["value"]);
        assert_eq!(words_at("select 'from |"), [""; 0]);
        assert_eq!(words_at("select 1 -- fro|"), [""; 0]);
    }

    #[test]
    fn values_come_from_the_lake() {
        let where_ = |rest: &str| words_at(&format!("select * from changes where {rest}"));
        assert_eq!(where_("identity_id = 'eu|"), ["'eu:1'", "'eu:2'"]);
        assert_eq!(where_("identity_id = |"), ["'eu:1'", "'eu:2'", "'us:''9'"]);
        assert_eq!(where_("dataset_name in ('prefs', 's|"), ["'scores'"]);
        assert_eq!(where_("dataset_name not in (|"), ["'prefs'", "'scores'"]);
        assert_eq!(where_("dataset_name <> 'p|"), ["'prefs'"]);
        assert_eq!(where_("identity_id = 'eu:1'|"), [""; 0]);
        assert_eq!(at("where c.identity_id = 'u|").0, "'u");
    }

    #[test]
    fn commands_and_their_arguments() {
        assert_eq!(words_at("\\wa|"), ["\\watch"]);
        assert_eq!(words_at("\\d qua|"), ["quarantine"]);
        assert_eq!(at("\\format nd|"), ("nd".to_owned(), vec!["ndjson".to_owned()]));
    }
}
