//! The backslash commands: what a line means, and what it changes in the settings.

use std::path::PathBuf;
use std::time::Duration;

use chrono::NaiveDate;
use clap::ValueEnum;

use super::Settings;
use crate::print::Format;
use crate::query::{Moment, QueryError};

/// Shown by `\?`.
pub(super) const HELP: &str = "\
\\d             list tables and views       \\x              a line a column (on/off)
\\d NAME        list columns of NAME        \\all            all rows of a result (on/off)
\\i FILE        run a file                  \\pager          results through $PAGER (on/off)
\\o FILE        results to FILE; \\o ends    \\timing         time of each statement (on/off)
\\watch 5       repeat the last statement   \\format NAME    as results are written; alone, lists the names
\\e             edit the last statement     \\as-of DATE     rows that the server had seen by then; \\as-of ends
\\?             show this help              \\at MOMENT      the lake at a version or time; \\at ends
\\set NAME=VALUE  $NAME in statements       \\q              quit (also exit, quit)
Tab completes names, keywords and values, Ctrl-R searches the history, Ctrl-C ends a query.
A statement ends with a semicolon and may span lines. Everything is read-only.
";

/// Names of the commands, as completion offers them.
pub(super) const NAMES: [&str; 16] = [
    "\\?", "\\all", "\\as-of", "\\at", "\\d", "\\e", "\\format", "\\help", "\\i", "\\o", "\\pager", "\\q", "\\set",
    "\\timing", "\\watch", "\\x",
];

/// What `\format` takes for no format of its own: the name of a file decides.
pub(super) const BY_NAME: &str = "auto";
/// Shortest interval of `\watch`.
const WATCH_MIN: Duration = Duration::from_millis(100);

/// A backslash command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Quit,
    Relations,
    Columns(String),
    Timing(Switch),
    /// A format, or which one it is.
    Format(Option<String>),
    Expanded(Switch),
    AllRows(Switch),
    Pager(Switch),
    Include(PathBuf),
    Output(Option<PathBuf>),
    Watch(Duration),
    Edit,
    AsOf(Option<NaiveDate>),
    At(Option<Moment>),
    Set(String),
}

impl Command {
    /// Reads a line that begins with a backslash.
    ///
    /// # Errors
    /// There is no such command, or its argument is missing or wrong.
    pub(super) fn parse(line: &str) -> Result<Self, QueryError> {
        let line = line.trim().trim_end_matches(';').trim_end();
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = unquoted(rest.trim());
        let argument = (!rest.is_empty()).then(|| rest.to_owned());
        let missing = |what: &str| QueryError::Refused(format!("{name} needs {what}; \\? lists the commands"));
        Ok(match (name, argument) {
            ("\\q" | "\\quit" | "\\exit", _) => Self::Quit,
            ("\\?" | "\\h" | "\\help", _) => Self::Help,
            ("\\d" | "\\dt" | "\\dv", None) => Self::Relations,
            ("\\d", Some(name)) => Self::Columns(name),
            ("\\timing", to) => Self::Timing(Switch::parse(name, to.as_deref())?),
            ("\\format", format) => Self::Format(format),
            ("\\x", to) => Self::Expanded(Switch::parse(name, to.as_deref())?),
            ("\\all", to) => Self::AllRows(Switch::parse(name, to.as_deref())?),
            ("\\pager", to) => Self::Pager(Switch::parse(name, to.as_deref())?),
            ("\\i", Some(path)) => Self::Include(path.into()),
            ("\\i", None) => return Err(missing("a file")),
            ("\\o", path) => Self::Output(path.map(PathBuf::from)),
            ("\\watch", every) => Self::Watch(interval(every.as_deref().unwrap_or("2"))?),
            ("\\e", _) => Self::Edit,
            ("\\as-of", None) => Self::AsOf(None),
            ("\\as-of", Some(day)) => Self::AsOf(Some(
                crate::extract::parse_date(&day).map_err(|e| QueryError::Refused(format!("\\as-of: {e}")))?,
            )),
            ("\\set", Some(given)) if given.contains('=') => Self::Set(given),
            ("\\set", Some(given)) => Self::Set(given.replacen(char::is_whitespace, "=", 1)),
            ("\\set", None) => return Err(missing("name=value")),
            ("\\at", None) => Self::At(None),
            ("\\at", Some(moment)) => {
                Self::At(Some(moment.parse().map_err(|e| QueryError::Refused(format!("\\at: {e}")))?))
            }
            (other, _) => return Err(QueryError::Refused(format!("{other} is no command; \\? lists them"))),
        })
    }

    /// Changes the settings, and returns what to tell the user; `None` if this command does something else.
    ///
    /// # Errors
    /// There is no format of this name.
    pub(super) fn apply(&self, settings: &mut Settings) -> Result<Option<String>, QueryError> {
        let turn = |flag: &mut bool, to: &Switch, on: &str, off: &str| {
            *flag = to.0.unwrap_or(!*flag);
            if *flag { on } else { off }.to_owned()
        };
        Ok(Some(match self {
            Self::Timing(to) => turn(&mut settings.timing, to, "timing is on", "timing is off"),
            Self::Expanded(to) => turn(&mut settings.expanded, to, "a line a column", "a line a row"),
            Self::AllRows(to) => turn(&mut settings.all_rows, to, "all rows are shown", "the first rows are shown"),
            Self::Pager(to) => turn(&mut settings.pager, to, "the pager is on", "the pager is off"),
            Self::Format(None) => {
                let names: Vec<String> = Format::value_variants().iter().map(|format| format.name()).collect();
                format!("format {}; there are {}, and {BY_NAME}", settings.result_format().name(), names.join(", "))
            }
            Self::Format(Some(name)) if name.eq_ignore_ascii_case(BY_NAME) => {
                settings.format = None;
                "format table, or what the name of a file stands for".to_owned()
            }
            Self::Format(Some(name)) => {
                let unknown = |_| QueryError::Refused(format!("unknown format {name:?}; \\? lists the formats"));
                settings.format = Some(Format::from_str(name, true).map_err(unknown)?);
                format!("format {}", name.to_lowercase())
            }
            Self::AsOf(day) => {
                settings.scope.as_of = *day;
                match day {
                    Some(day) => format!("as of the end of {day} (UTC)"),
                    None => "as of now".to_owned(),
                }
            }
            Self::Set(given) => {
                settings.parameters.set(given).map_err(QueryError::Refused)?;
                format!("${given}")
            }
            Self::At(moment) => {
                settings.scope.at = *moment;
                match moment {
                    Some(moment) => format!("the lake as it was at {moment}"),
                    None => "the lake as it is now".to_owned(),
                }
            }
            _ => return Ok(None),
        }))
    }
}

/// What becomes of a setting that is on or off; `None` for the other of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Switch(Option<bool>);

impl Switch {
    fn parse(name: &str, word: Option<&str>) -> Result<Self, QueryError> {
        match word {
            None => Ok(Self(None)),
            Some("on") => Ok(Self(Some(true))),
            Some("off") => Ok(Self(Some(false))),
            Some(other) => Err(QueryError::Refused(format!("{name} {other}: write on or off, or nothing"))),
        }
    }
}

fn interval(text: &str) -> Result<Duration, QueryError> {
    let seconds = text.trim_end_matches('s').parse::<f64>().ok();
    let interval = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    interval
        .filter(|interval| *interval >= WATCH_MIN)
        .ok_or_else(|| QueryError::Refused(format!("\\watch {text}: give a number of seconds, at least 0.1")))
}

/// Returns an argument without the quotes around it.
fn unquoted(text: &str) -> &str {
    let inner = |quote| text.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    inner('\'').or_else(|| inner('"')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_with_one_argument() {
        let parse = |line| Command::parse(line).ok();
        assert_eq!(parse("\\d"), Some(Command::Relations));
        assert_eq!(parse("  \\d changes ; "), Some(Command::Columns("changes".to_owned())));
        assert_eq!(parse("\\i 'my report.sql'"), Some(Command::Include("my report.sql".into())));
        assert_eq!(parse("\\o"), Some(Command::Output(None)));
        assert_eq!(parse("\\watch 0.5"), Some(Command::Watch(Duration::from_millis(500))));
        assert_eq!(parse("\\watch"), Some(Command::Watch(Duration::from_secs(2))));
        assert_eq!(parse("\\as-of 2026-11-20"), Some(Command::AsOf(NaiveDate::from_ymd_opt(2026, 11, 20))));
        for name in NAMES {
            let refused = Command::parse(name).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!refused.contains("is no command"), "{name}");
        }
        for wrong in ["\\nothing", "\\i", "\\timing maybe", "\\watch 0", "\\watch -1", "\\watch x", "\\as-of monday"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
