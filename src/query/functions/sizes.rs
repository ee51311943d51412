//! Upper bounds for the bytes that a function will return, from its arguments: as tight as they are cheap to compute.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::compute::kernels::length::length;
use arrow::datatypes::{DataType, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit};
use arrow::temporal_conversions::NANOSECONDS_IN_DAY;
use datafusion::logical_expr::ColumnarValue;

/// Function that returns the bytes of all rows.
pub(super) type Measure = fn(&[ColumnarValue], usize) -> u64;

/// Bytes that a list needs per element, in addition to the element's own.
const ELEMENT_BYTES: u64 = 8;

/// Functions that may return far more than they are given.
pub(super) const MEASURES: &[(&str, Measure)] = &[
    ("repeat", |args, rows| products(args, rows, 0)),
    ("lpad", padded),
    ("rpad", padded),
    ("replace", replaced),
    ("regexp_replace", regexp_replaced),
    ("overlay", joined),
    ("concat", joined),
    ("concat_ws", joined_with_first),
    ("make_array", joined),
    ("array_concat", joined),
    ("array_append", joined),
    ("array_prepend", joined),
    ("array_repeat", |args, rows| products(args, rows, ELEMENT_BYTES)),
    ("array_resize", resized),
    ("array_to_string", array_to_string),
    ("range", ranged),
    ("generate_series", ranged),
    ("json_entries", super::json::entry_bytes),
];

/// One value for each row, or one value for all rows.
struct Column(Vec<i64>);

impl Column {
    fn get(&self, row: usize) -> u64 {
        let value = if self.0.len() == 1 { self.0.first() } else { self.0.get(row) };
        value.map_or(0, |value| u64::try_from(*value).unwrap_or(0))
    }
}

fn array(arg: &ColumnarValue) -> Option<ArrayRef> {
    match arg {
        ColumnarValue::Array(array) => Some(array.clone()),
        ColumnarValue::Scalar(value) => value.to_array().ok(),
    }
}

fn integers(array: &dyn Array) -> Vec<i64> {
    let Ok(wide) = cast(array, &DataType::Int64) else { return vec![0; array.len()] };
    wide.as_primitive::<Int64Type>().iter().map(Option::unwrap_or_default).collect()
}

/// Converts a number of bytes. Saturation is right here: a measure is an upper bound, and `i64::MAX` bytes exceed every
/// limit.
fn saturated(bytes: usize) -> i64 {
    bytes.min(i64::MAX as usize) as i64
}

/// Returns the integers of an argument.
fn numbers(args: &[ColumnarValue], at: usize) -> Column {
    Column(args.get(at).and_then(array).map_or_else(|| vec![0], |array| integers(&array)))
}

fn of_array(array: &ArrayRef) -> Vec<i64> {
    use DataType::{Binary, BinaryView, LargeBinary, LargeUtf8, Utf8, Utf8View};
    match array.data_type() {
        Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView => {
            length(array).map_or_else(|_| vec![0; array.len()], |lengths| integers(&lengths))
        }
        of => match of.primitive_width() {
            Some(width) => vec![saturated(width); array.len()],
            // Other types have no cheap size for a single row, so each row counts as the average.
            None => {
                let bytes = array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size());
                vec![saturated(bytes / array.len().max(1)); array.len()]
            }
        },
    }
}

/// Returns the bytes of an argument over this many rows.
pub(in crate::query) fn bytes_of(arg: &ColumnarValue, rows: usize) -> u64 {
    let column = bytes(std::slice::from_ref(arg), 0);
    total(rows, |row| column.get(row))
}

fn bytes(args: &[ColumnarValue], at: usize) -> Column {
    Column(args.get(at).and_then(array).map_or_else(|| vec![0], |array| of_array(&array)))
}

fn total(rows: usize, of_row: impl Fn(usize) -> u64) -> u64 {
    (0..rows).fold(0, |sum: u64, row| sum.saturating_add(of_row(row)))
}

/// Measures the first argument, repeated as often as the second says, with `each` more bytes per copy.
fn products(args: &[ColumnarValue], rows: usize, each: u64) -> u64 {
    let (of, times) = (bytes(args, 0), numbers(args, 1));
    total(rows, |row| (of.get(row) + each).saturating_mul(times.get(row)))
}

/// Measures padding: as many characters as the second argument says, of at most four bytes each.
fn padded(args: &[ColumnarValue], rows: usize) -> u64 {
    let (of, wide) = (bytes(args, 0), numbers(args, 1));
    total(rows, |row| of.get(row).max(wide.get(row).saturating_mul(4)))
}

fn texts(args: &[ColumnarValue], at: usize) -> Option<ArrayRef> {
    cast(&array(args.get(at)?)?, &DataType::LargeUtf8).ok()
}

fn text_at(texts: &Option<ArrayRef>, row: usize) -> &str {
    let Some(texts) = texts else { return "" };
    let row = if texts.len() == 1 { 0 } else { row };
    let texts = texts.as_string::<i64>();
    if row < texts.len() && texts.is_valid(row) { texts.value(row) } else { "" }
}

fn replaced(args: &[ColumnarValue], rows: usize) -> u64 {
    let (of, from, to) = (texts(args, 0), texts(args, 1), texts(args, 2));
    total(rows, |row| {
        let (of, from, to) = (text_at(&of, row), text_at(&from, row), text_at(&to, row));
        let count = if to.len() <= from.len() { 0 } else { of.matches(from).count() };
        of.len() as u64 + count as u64 * to.len() as u64
    })
}

/// Measures `regexp_replace`. There is at most one match per position between characters. Each reference in the
/// replacement inserts at most the whole text, over all matches.
fn regexp_replaced(args: &[ColumnarValue], rows: usize) -> u64 {
    let (of, by, flags) = (texts(args, 0), texts(args, 2), texts(args, 3));
    let patterns = texts(args, 1);
    let pattern = patterns.as_ref().filter(|patterns| patterns.len() == 1).map(|_| text_at(&patterns, 0));
    let regex = pattern.and_then(|pattern| regex::Regex::new(pattern).ok());
    total(rows, |row| {
        let (of, by) = (text_at(&of, row), text_at(&by, row));
        let references = by.matches(['\\', '$']).count() as u64;
        let count = match (text_at(&flags, row).contains('g'), &regex) {
            (false, _) => 1,
            (true, Some(regex)) if text_at(&flags, row) == "g" => regex.find_iter(of).count() as u64,
            _ => of.chars().count() as u64 + 1,
        };
        let whole = (of.len() as u64).saturating_mul(references.saturating_add(1));
        whole.saturating_add(count.saturating_mul(by.len() as u64))
    })
}

fn joined(args: &[ColumnarValue], rows: usize) -> u64 {
    let columns: Vec<Column> = (0..args.len()).map(|at| bytes(args, at)).collect();
    total(rows, |row| columns.iter().fold(0, |sum: u64, column| sum.saturating_add(column.get(row))))
}

fn joined_with_first(args: &[ColumnarValue], rows: usize) -> u64 {
    let separator = bytes(args, 0);
    let between = args.len().saturating_sub(1) as u64;
    joined(args, rows).saturating_add(total(rows, |row| separator.get(row).saturating_mul(between)))
}

fn array_to_string(args: &[ColumnarValue], rows: usize) -> u64 {
    let lists = args.first().and_then(array);
    let counts = Column(lists.and_then(|lists| length(&lists).ok()).map_or_else(|| vec![0], |n| integers(&n)));
    let (of, separator) = (bytes(args, 0), bytes(args, 1));
    total(rows, |row| of.get(row).saturating_add(counts.get(row).saturating_mul(separator.get(row))))
}

fn resized(args: &[ColumnarValue], rows: usize) -> u64 {
    let (of, count, filler) = (bytes(args, 0), numbers(args, 1), bytes(args, 2));
    total(rows, |row| of.get(row).saturating_add(count.get(row).saturating_mul(filler.get(row).max(ELEMENT_BYTES))))
}

/// Measures a list from the first to the second argument in steps of the third.
fn ranged(args: &[ColumnarValue], rows: usize) -> u64 {
    let (first, last) = match args {
        [_] => (vec![0], moments(args, 0)),
        _ => (moments(args, 0), moments(args, 1)),
    };
    let steps = moments(args, 2);
    let at = |column: &[i128], row: usize, otherwise: i128| match column {
        [] => otherwise,
        [one] => *one,
        all => all.get(row).copied().unwrap_or(otherwise),
    };
    total(rows, |row| {
        let span = at(&last, row, 0) - at(&first, row, 0);
        let step = at(&steps, row, 1);
        // A step of zero, or away from the end, makes an empty list.
        let count = if step == 0 { 0 } else { (span / step).max(-1) + 1 };
        // The widest range has one element more than `u64` can count; saturation is right for an upper bound. No count is
        // negative.
        let count = count.min(i128::from(u64::MAX)) as u64;
        count.saturating_mul(ELEMENT_BYTES)
    })
}

/// Returns integers, instants and intervals as numbers that can be divided by one another: of instants and intervals,
/// the nanoseconds. In 64 bits, these reach only from 1677 to 2262.
fn moments(args: &[ColumnarValue], at: usize) -> Vec<i128> {
    let Some(array) = args.get(at).and_then(array) else { return Vec::new() };
    let nanos = match array.data_type() {
        DataType::Date32 => i128::from(NANOSECONDS_IN_DAY),
        DataType::Date64 | DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000_000,
        DataType::Timestamp(TimeUnit::Second, _) => 1_000_000_000,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000,
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let nanos = array.as_primitive::<IntervalMonthDayNanoType>().iter().map(|interval| {
                interval.map_or(0, |i| {
                    let days = i128::from(i.months) * 28 + i128::from(i.days);
                    days * i128::from(NANOSECONDS_IN_DAY) + i128::from(i.nanoseconds)
                })
            });
            return nanos.collect();
        }
        _ => 1,
    };
    integers(&array).into_iter().map(|number| i128::from(number) * nanos).collect()
}

#[cfg(test)]
mod tests {
    use datafusion::scalar::ScalarValue;

    use super::*;

    fn text(text: &str) -> ColumnarValue {
        ColumnarValue::Scalar(ScalarValue::from(text))
    }

    fn number(number: i64) -> ColumnarValue {
        ColumnarValue::Scalar(ScalarValue::from(number))
    }

    #[test]
    fn what_is_made_is_measured() {
        let of = |name: &str, args: &[ColumnarValue]| MEASURES.iter().find(|(n, _)| *n == name).unwrap().1(args, 3);
        assert_eq!(of("repeat", &[text("ab"), number(5)]), 30);
        assert_eq!(of("repeat", &[text("ab"), number(-5)]), 0);
        assert_eq!(of("repeat", &[text("ab"), number(i64::MAX)]), u64::MAX);
        assert_eq!(of("replace", &[text("aXbX"), text("X"), text("12345")]), 3 * (4 + 10));
        assert_eq!(of("replace", &[text("ab"), text(""), text("12345")]), 3 * (2 + 15));
        assert_eq!(of("regexp_replace", &[text("aXbX"), text("X"), text("123"), text("g")]), 3 * (4 + 6));
        assert_eq!(of("concat", &[text("a"), text("bc")]), 9);
        assert_eq!(of("range", &[number(10)]), 3 * 11 * 8);
        assert_eq!(of("range", &[number(0), number(100), number(10)]), 3 * 11 * 8);
        assert_eq!(of("range", &[number(0), number(100), number(-1)]), 0);
        assert_eq!(of("range", &[number(i64::MIN), number(i64::MAX)]), u64::MAX);
        // The days from year 1 to year 9999, which as nanoseconds exceed 64 bits.
        let day = |days: i32| ColumnarValue::Scalar(ScalarValue::Date32(Some(days)));
        let second = |seconds: i64| ColumnarValue::Scalar(ScalarValue::TimestampSecond(Some(seconds), None));
        let (first, last) = (-719_162, 2_932_896);
        let daily = ColumnarValue::Scalar(ScalarValue::new_interval_mdn(0, 1, 0));
        let days = (i64::from(last) - i64::from(first) + 1) as u64;
        assert_eq!(of("range", &[day(first), day(last), daily.clone()]), 3 * days * 8);
        let seconds = [first, last].map(|days| second(i64::from(days) * 86_400));
        assert_eq!(of("generate_series", &[seconds[0].clone(), seconds[1].clone(), daily]), 3 * days * 8);
        assert_eq!(of("array_repeat", &[text("ab"), number(5)]), 3 * 50);
        assert!(of("array_resize", &[text("ab"), number(1 << 40)]) > 1 << 40);
    }
}
