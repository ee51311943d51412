//! `date_diff(unit, from, to)`: how often a unit begins between two times, as in DuckDB.
//!
//! A unit begins by the clock of each argument's time zone. From a day to an hour less than a day later, in a night
//! when clocks are set forward, it is one day.

use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, AsArray, Int64Builder};
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Datelike, NaiveDate, Offset, TimeZone};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::{columnar, is_text, rows_of, types_of};
use crate::query::UserError;

const MICROS: i64 = 1_000_000;
const DAY: i64 = 86_400 * MICROS;
/// Names of all units, for the message.
const UNITS: &str = "microsecond, millisecond, second, minute, hour, day, week, month, quarter, year";

/// Returns the function, which is also known as `datediff`.
pub(super) fn difference() -> ScalarUDF {
    let signature = Signature::variadic_any(Volatility::Immutable);
    ScalarUDF::new_from_impl(Difference { signature, aliases: ["datediff".to_owned()] })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// A number of microseconds, by the instant.
    Micros(i64),
    /// A number of days, the first of which begins this many days after 1970-01-01.
    Days(i64, i64),
    Months(i64),
}

/// Returns whether a word names a unit.
pub(in crate::query) fn is_unit(word: &str) -> bool {
    unit(word).is_some()
}

fn unit(word: &str) -> Option<Unit> {
    let word = word.to_ascii_lowercase();
    Some(match word.strip_suffix('s').unwrap_or(&word) {
        "microsecond" => Unit::Micros(1),
        "millisecond" => Unit::Micros(1_000),
        "second" => Unit::Micros(MICROS),
        "minute" => Unit::Micros(60 * MICROS),
        "hour" => Unit::Micros(3_600 * MICROS),
        "day" => Unit::Days(1, 0),
        // A week begins on Monday: 1970-01-05 is one.
        "week" => Unit::Days(7, 4),
        "month" => Unit::Months(1),
        "quarter" => Unit::Months(3),
        "year" => Unit::Months(12),
        _ => return None,
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Difference {
    signature: Signature,
    aliases: [String; 1],
}

impl ScalarUDFImpl for Difference {
    fn name(&self) -> &'static str {
        "date_diff"
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        taken(&types_of(args.arg_fields))?;
        Ok(Arc::new(Field::new(self.name(), DataType::Int64, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (rows, is_scalar) = rows_of(&args);
        let types = taken(&types_of(&args.arg_fields))?;
        let column = |(arg, of): (&ColumnarValue, &DataType)| arg.cast_to(of, None)?.to_array(rows);
        let columns = args.args.iter().zip(&types).map(column).collect::<Result<Vec<_>>>()?;
        let [units, from, to] = columns.as_slice() else { return Err(usage()) };
        let (from, to) = (Times::new(from)?, Times::new(to)?);
        let mut known: Option<(&str, Unit)> = None;
        let mut found = Int64Builder::with_capacity(rows);
        for (row, word) in units.as_string::<i32>().iter().enumerate() {
            let (Some(word), Some(from), Some(to)) = (word, from.get(row)?, to.get(row)?) else {
                found.append_null();
                continue;
            };
            let unit = match known {
                Some((name, unit)) if name == word => unit,
                _ => unit(word).ok_or_else(|| UserError(format!("date_diff: unknown unit {word:?}; it is {UNITS}")))?,
            };
            known = Some((word, unit));
            found.append_value(between(unit, from, to)?);
        }
        let found: ArrayRef = Arc::new(found.finish());
        columnar(&found, is_scalar)
    }
}

/// Returns the types to which the arguments are cast: a text, and two timestamps.
fn taken(types: &[DataType]) -> Result<[DataType; 3]> {
    let [unit, from, to] = types else { return Err(usage()) };
    let time = |of: &DataType, other: &DataType| match (of, other) {
        (DataType::Date32 | DataType::Date64, _) => Ok(DataType::Timestamp(TimeUnit::Microsecond, None)),
        (DataType::Timestamp(_, zone), _) => Ok(DataType::Timestamp(TimeUnit::Microsecond, zone.clone())),
        // A text has the zone of the other argument, as beside a comparison.
        (of, DataType::Timestamp(_, zone)) if is_text(of) => {
            Ok(DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))
        }
        (of, _) if is_text(of) => Ok(DataType::Timestamp(TimeUnit::Microsecond, None)),
        _ => Err(usage()),
    };
    match is_text(unit) {
        true => Ok([DataType::Utf8, time(from, to)?, time(to, from)?]),
        false => Err(usage()),
    }
}

fn usage() -> DataFusionError {
    UserError("date_diff takes a unit and two dates or timestamps: date_diff('day', from, to)".to_owned()).into()
}

/// A time, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Time {
    instant: i64,
    /// Distance of the zone's clock from UTC.
    offset: i64,
}

/// Times of a column, and their zone.
struct Times {
    values: ArrayRef,
    zone: Option<Tz>,
}

impl Times {
    fn new(array: &ArrayRef) -> Result<Self> {
        let zone = match array.data_type() {
            DataType::Timestamp(_, Some(zone)) if &**zone != "UTC" => Some(zone.parse()?),
            _ => None,
        };
        Ok(Self { values: array.clone(), zone })
    }

    fn get(&self, row: usize) -> Result<Option<Time>> {
        let Some(values) = self.values.as_primitive_opt::<TimestampMicrosecondType>() else { return Err(usage()) };
        if values.is_null(row) {
            return Ok(None);
        }
        let instant = values.value(row);
        let offset = match &self.zone {
            None => 0,
            Some(zone) => {
                let utc = date_time(instant)?.naive_utc();
                i64::from(zone.offset_from_utc_datetime(&utc).fix().local_minus_utc()) * MICROS
            }
        };
        Ok(Some(Time { instant, offset }))
    }
}

fn date_time(micros: i64) -> Result<DateTime<chrono::Utc>> {
    DateTime::from_timestamp_micros(micros).ok_or_else(out_of_range)
}

fn out_of_range() -> DataFusionError {
    UserError("date_diff: a time is out of range; filter it out".to_owned()).into()
}

/// Returns how often a unit begins between two times; less than zero if the second is the earlier one.
fn between(unit: Unit, from: Time, to: Time) -> Result<i64> {
    let clock = |time: Time| time.instant.checked_add(time.offset).ok_or_else(out_of_range);
    let (from_clock, to_clock) = (clock(from)?, clock(to)?);
    let difference = match unit {
        Unit::Micros(micros) => {
            let begin = |time: Time, clock: i64| time.instant.checked_sub(clock.rem_euclid(micros));
            let (from, to) = (begin(from, from_clock), begin(to, to_clock));
            from.zip(to).and_then(|(from, to)| to.checked_sub(from)).map(|span| span.div_euclid(micros))
        }
        Unit::Days(days, first) => {
            let number = |clock: i64| (clock.div_euclid(DAY) - first).div_euclid(days);
            number(to_clock).checked_sub(number(from_clock))
        }
        Unit::Months(months) => {
            let number = |clock: i64| -> Result<i64> {
                let date: NaiveDate = date_time(clock)?.date_naive();
                Ok((i64::from(date.year()) * 12 + i64::from(date.month0())).div_euclid(months))
            };
            number(to_clock)?.checked_sub(number(from_clock)?)
        }
    };
    difference.ok_or_else(out_of_range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Time {
        let time: DateTime<chrono::FixedOffset> = text.parse().unwrap();
        Time { instant: time.timestamp_micros(), offset: i64::from(time.offset().local_minus_utc()) * MICROS }
    }

    #[test]
    fn units_begin_by_the_clock() {
        let count = |word: &str, from: &str, to: &str| between(unit(word).unwrap(), at(from), at(to)).unwrap();
        assert_eq!(count("day", "2026-01-01T23:59:59Z", "2026-01-02T00:00:00Z"), 1);
        assert_eq!(count("day", "2026-01-02T00:00:00Z", "2026-01-01T23:59:59Z"), -1);
        assert_eq!(count("days", "2026-01-02T00:00:00Z", "2026-01-02T23:59:59Z"), 0);
        // The clocks of Berlin are set forward: this day has 23 hours.
        assert_eq!(count("day", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"), 1);
        assert_eq!(count("hour", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"), 23);
        assert_eq!(count("hour", "2026-01-01T00:40:00+05:30", "2026-01-01T01:10:00+05:30"), 1);
        assert_eq!(count("week", "2026-01-04T00:00:00Z", "2026-01-05T00:00:00Z"), 1);
        assert_eq!(count("week", "1969-12-29T00:00:00Z", "1970-01-05T00:00:00Z"), 1);
        assert_eq!(count("month", "2026-01-31T00:00:00Z", "2026-02-01T00:00:00Z"), 1);
        assert_eq!(count("quarter", "2026-03-31T00:00:00Z", "2025-12-31T00:00:00Z"), -1);
        assert_eq!(count("year", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z"), 1);
        assert_eq!(count("millisecond", "1970-01-01T00:00:00Z", "1969-12-31T23:59:59.9999Z"), -1);
        assert!(between(Unit::Days(1, 0), Time { instant: i64::MIN, offset: -1 }, at("2026-01-01T00:00:00Z")).is_err());
        assert!(unit("fortnight").is_none());
    }
}
