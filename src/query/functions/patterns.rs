//! `to_char(time, pattern)`, also known as `strftime` and `date_format`: a time as text.
//!
//! A pattern with `%` is one of strftime, another one is one of PostgreSQL's `to_char`. DataFusion hands the pattern to
//! chrono, which copies what it does not know, so that `YYYY` would be printed. Here such a pattern is an error.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature};
use datafusion::scalar::ScalarValue;

use super::is_text;
use crate::query::UserError;

/// Longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1_000;

/// Fields of strftime, and chrono's spelling of each.
const STRFTIME: [(&str, &str); 26] = [
    ("-d", "%-d"),
    ("-m", "%-m"),
    ("-H", "%-H"),
    ("-I", "%-I"),
    ("-M", "%-M"),
    ("-S", "%-S"),
    ("a", "%a"),
    ("A", "%A"),
    ("b", "%b"),
    ("B", "%B"),
    ("d", "%d"),
    ("D", "%D"),
    ("f", "%6f"),
    ("F", "%F"),
    ("G", "%G"),
    ("H", "%H"),
    ("I", "%I"),
    ("j", "%j"),
    ("m", "%m"),
    ("M", "%M"),
    ("p", "%p"),
    ("S", "%S"),
    ("T", "%T"),
    ("u", "%u"),
    ("V", "%V"),
    ("w", "%w"),
];
/// More fields of strftime.
const STRFTIME_MORE: [(&str, &str); 7] =
    [("U", "%U"), ("W", "%W"), ("y", "%y"), ("Y", "%Y"), ("z", "%z"), ("R", "%R"), ("%", "%%")];

/// Fields of PostgreSQL, longer ones first, and chrono's spelling of each.
const TO_CHAR: [(&str, &str); 22] = [
    ("FMMonth", "%B"),
    ("FMDay", "%A"),
    ("IYYY", "%G"),
    ("YYYY", "%Y"),
    ("HH24", "%H"),
    ("HH12", "%I"),
    ("FMDD", "%-d"),
    ("FMMM", "%-m"),
    ("DDD", "%j"),
    ("Mon", "%b"),
    ("Dy", "%a"),
    ("YY", "%y"),
    ("MM", "%m"),
    ("DD", "%d"),
    ("HH", "%I"),
    ("MI", "%M"),
    ("SS", "%S"),
    ("MS", "%3f"),
    ("US", "%6f"),
    ("ID", "%u"),
    ("IW", "%V"),
    ("AM", "%p"),
];

/// Returns the function.
pub(super) fn spelled(inner: Arc<ScalarUDF>) -> ScalarUDF {
    let aliases = ["strftime".to_owned(), "date_format".to_owned()];
    ScalarUDF::new_from_impl(Spelled { inner, aliases })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Spelled {
    inner: Arc<ScalarUDF>,
    aliases: [String; 2],
}

impl ScalarUDFImpl for Spelled {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_span = matches!(args.args.first().map(ColumnarValue::data_type), Some(DataType::Duration(_)));
        let rows = args.number_rows;
        let ([time, pattern], false) = (args.args.as_mut_slice(), is_span) else {
            return self.inner.invoke_with_args(args);
        };
        if matches!(pattern, ColumnarValue::Array(_)) {
            // With one time for all rows, DataFusion would use the first pattern for all rows.
            *time = ColumnarValue::Array(time.to_array(rows)?);
        }
        let mut known: HashMap<String, String> = HashMap::new();
        let mut renewed = |pattern: &str| -> Result<String> {
            if let Some(known) = known.get(pattern) {
                return Ok(known.clone());
            }
            let renewed = chrono_pattern(pattern).map_err(UserError)?;
            known.insert(pattern.to_owned(), renewed.clone());
            Ok(renewed)
        };
        *pattern = match &*pattern {
            ColumnarValue::Scalar(value) => match value.try_as_str() {
                Some(Some(text)) => ColumnarValue::Scalar(ScalarValue::Utf8(Some(renewed(text)?))),
                _ => ColumnarValue::Scalar(ScalarValue::Utf8(None)),
            },
            ColumnarValue::Array(patterns) if is_text(patterns.data_type()) => {
                let patterns: ArrayRef = cast(patterns, &DataType::Utf8)?;
                let patterns = patterns.as_string::<i32>().iter();
                let patterns: StringArray =
                    patterns.map(|of| of.map(&mut renewed).transpose()).collect::<Result<_>>()?;
                ColumnarValue::Array(Arc::new(patterns))
            }
            other => other.clone(),
        };
        self.inner.invoke_with_args(args)
    }
}

/// Returns chrono's spelling of a pattern.
fn chrono_pattern(pattern: &str) -> std::result::Result<String, String> {
    let renewed = match pattern {
        long if long.len() > PATTERN_BYTES_MAX => {
            return Err(format!("to_char: a pattern of {} bytes; the limit is {PATTERN_BYTES_MAX}", long.len()));
        }
        strftime if strftime.contains('%') => from_strftime(strftime),
        other => from_to_char(other),
    };
    renewed
        .map_err(|why| format!("to_char: {why}; a pattern is written '%Y-%m-%d %H:%M:%S' or 'YYYY-MM-DD HH24:MI:SS'"))
}

fn from_strftime(pattern: &str) -> std::result::Result<String, String> {
    let mut made = String::new();
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        made.push_str(&rest[..at]);
        let field = &rest[at + 1..];
        let known = STRFTIME.iter().chain(&STRFTIME_MORE).find(|(name, _)| field.starts_with(name));
        let Some((name, chrono)) = known else {
            let unknown: String = field.chars().take(1).collect();
            let hint = match unknown.as_str() {
                "i" => " (minutes are %M)",
                "s" => " (seconds are %S)",
                _ => "",
            };
            return Err(format!("unknown field %{unknown}{hint} in {pattern:?}"));
        };
        made.push_str(chrono);
        rest = &field[name.len()..];
    }
    made.push_str(rest);
    Ok(made)
}

fn from_to_char(pattern: &str) -> std::result::Result<String, String> {
    // Numbers may be written in small letters. Mixed ones may be Java's, where mm are minutes.
    let plain: String = pattern.split('"').step_by(2).collect();
    let is_small = plain.chars().any(char::is_lowercase) && !plain.chars().any(char::is_uppercase);
    let (mut made, mut fields) = (String::new(), Vec::new());
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            let Some(end) = rest[1..].find('"') else { return Err(format!("a \" does not end in {pattern:?}")) };
            made.push_str(&rest[1..=end]);
            rest = &rest[end + 2..];
            continue;
        }
        if !first.is_alphanumeric() {
            made.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let starts = |name: &str| match is_small && name.chars().all(|c| !c.is_ascii_lowercase()) {
            true => rest.get(..name.len()).is_some_and(|text| text.eq_ignore_ascii_case(name)),
            false => rest.starts_with(name),
        };
        if let Some(word) = ["Month", "Day"].into_iter().find(|word| rest.starts_with(word)) {
            return Err(format!(
                "unknown field {word:?} (write FM{word}; without FM, PostgreSQL pads it) in {pattern:?}"
            ));
        }
        let known = TO_CHAR.iter().find(|(name, _)| starts(name));
        let known = known.or_else(|| if starts("PM") { Some(&("PM", "%p")) } else { None });
        let Some((name, chrono)) = known else {
            let word: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            return Err(format!("unknown field {word:?} (put text into \" \") in {pattern:?}"));
        };
        if *name == "MM" && matches!(fields.last(), Some(&"HH24" | &"HH12" | &"HH")) {
            return Err(format!("MM is the month, and minutes are MI, in {pattern:?}"));
        }
        fields.push(*name);
        made.push_str(chrono);
        rest = &rest[name.len()..];
    }
    match fields.is_empty() {
        true => Err(format!("no field in {pattern:?}")),
        false => Ok(made),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_languages_are_understood() {
        for (pattern, chrono) in [
            ("%Y-%m", "%Y-%m"),
            ("%H:%M:%S.%f", "%H:%M:%S.%6f"),
            ("100%%", "100%%"),
            ("week %V of %G, %-d %B", "week %V of %G, %-d %B"),
            ("YYYY-MM-DD", "%Y-%m-%d"),
            ("yyyy-mm-dd hh24:mi:ss", "%Y-%m-%d %H:%M:%S"),
            ("YYYY-MM-DD\"T\"HH24:MI:SS.US", "%Y-%m-%dT%H:%M:%S.%6f"),
            ("DDD IYYY IW HH12 AM", "%j %G %V %I %p"),
            ("Dy, DD Mon YYYY", "%a, %d %b %Y"),
            ("FMDD FMMonth", "%-d %B"),
            ("YYYYMMDD", "%Y%m%d"),
            ("\"é\"YYYY", "é%Y"),
        ] {
            assert_eq!(chrono_pattern(pattern).as_deref(), Ok(chrono), "{pattern}");
        }
    }

    #[test]
    fn letters_are_never_copied() {
        for (pattern, part) in [
            ("%Y-%i", "minutes are %M"),
            ("%Y-%", "unknown field %"),
            ("yyyy-MM-dd", "unknown field"),
            ("HH24:MM:SS", "minutes are MI"),
            ("HH:mm:ss", "unknown field"),
            ("YYYY-MM-DDTHH24", "put text into"),
            ("Month", "FMMonth"),
            ("-", "no field"),
            ("", "no field"),
            ("\"YYYY", "does not end"),
            ("année", "unknown field"),
        ] {
            let error = chrono_pattern(pattern).unwrap_err();
            assert!(error.contains(part) && error.contains("'YYYY-MM-DD HH24:MI:SS'"), "{pattern}: {error}");
        }
        assert!(chrono_pattern(&"Y".repeat(2_000)).is_err());
    }
}
