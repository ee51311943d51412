//! Exact text for times and intervals: an instant has the offset of its zone, and all its digits.
//!
//! Neither chrono's formats nor arrow's JSON writer can express "at least three digits". So temporal columns become
//! text before a text format sees them. Parquet keeps the types.

use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, GenericListArray, Int64Array, MapArray, OffsetSizeTrait, RecordBatch,
    RecordBatchOptions, StringArray, StructArray,
};
use arrow::datatypes::{
    DataType, FieldRef, Fields, IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType,
    Schema, TimeUnit,
};
use arrow::error::ArrowError;
use arrow::temporal_conversions::NANOSECONDS_IN_DAY;
use chrono::{DateTime, Datelike, Offset, Utc};

/// Returns the batch with all its times and intervals as text.
pub(super) fn batch(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().map(array).collect::<Result<Vec<_>, _>>()?;
    let fields: Fields = batch.schema().fields().iter().zip(&columns).map(|(f, column)| renewed(f, column)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

fn renewed(field: &FieldRef, column: &ArrayRef) -> FieldRef {
    Arc::new(field.as_ref().clone().with_data_type(column.data_type().clone()))
}

fn is_temporal(of: &DataType) -> bool {
    matches!(of, DataType::Timestamp(..) | DataType::Duration(_) | DataType::Interval(_))
}

fn raw(array: &ArrayRef) -> Result<Int64Array, ArrowError> {
    Ok(Int64Array::from(array.to_data().into_builder().data_type(DataType::Int64).build()?))
}

fn list<O: OffsetSizeTrait>(array: &ArrayRef, field: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let list = array.as_list::<O>();
    let values = self::array(list.values())?;
    let (field, offsets, nulls) = (renewed(field, &values), list.offsets().clone(), list.nulls().cloned());
    Ok(Arc::new(GenericListArray::<O>::try_new(field, offsets, values, nulls)?))
}

fn structs(array: &StructArray) -> Result<StructArray, ArrowError> {
    let columns = array.columns().iter().map(self::array).collect::<Result<Vec<_>, _>>()?;
    let fields = array.fields().iter().zip(&columns).map(|(field, column)| renewed(field, column)).collect();
    StructArray::try_new_with_length(fields, columns, array.nulls().cloned(), array.len())
}

fn array(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let text = |cells: StringArray| Ok::<ArrayRef, ArrowError>(Arc::new(cells));
    match array.data_type() {
        DataType::Timestamp(unit, zone) => {
            let zone = zone.as_deref().map(Zone::new).transpose()?;
            text(raw(array)?.iter().map(|v| v.map(|v| instant(v, *unit, zone.as_ref()))).collect())
        }
        DataType::Duration(unit) => {
            let spelled = |v: i64| {
                let nanos = i128::from(v) * nanos_of(*unit);
                interval(0, nanos / i128::from(NANOSECONDS_IN_DAY), nanos % i128::from(NANOSECONDS_IN_DAY))
            };
            text(raw(array)?.iter().map(|v| v.map(spelled)).collect())
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let values = array.as_primitive::<IntervalMonthDayNanoType>().iter();
            text(values.map(|v| v.map(|v| interval(v.months.into(), v.days.into(), v.nanoseconds.into()))).collect())
        }
        DataType::Interval(IntervalUnit::DayTime) => {
            let values = array.as_primitive::<IntervalDayTimeType>().iter();
            let spelled = |v: arrow::datatypes::IntervalDayTime| {
                interval(0, v.days.into(), i128::from(v.milliseconds) * 1_000_000)
            };
            text(values.map(|v| v.map(spelled)).collect())
        }
        DataType::Interval(IntervalUnit::YearMonth) => {
            let values = array.as_primitive::<IntervalYearMonthType>().iter();
            text(values.map(|v| v.map(|v| interval(v.into(), 0, 0))).collect())
        }
        DataType::Dictionary(_, value) if is_temporal(value) => self::array(&arrow::compute::cast(array, value)?),
        DataType::List(field) => list::<i32>(array, field),
        DataType::LargeList(field) => list::<i64>(array, field),
        DataType::FixedSizeList(field, size) => {
            let list = array.as_fixed_size_list();
            let values = self::array(list.values())?;
            let field = renewed(field, &values);
            Ok(Arc::new(FixedSizeListArray::try_new(field, *size, values, list.nulls().cloned())?))
        }
        DataType::Struct(_) => Ok(Arc::new(structs(array.as_struct())?)),
        DataType::Map(field, ordered) => {
            let map = array.as_map();
            let entries = structs(map.entries())?;
            let field = Arc::new(field.as_ref().clone().with_data_type(entries.data_type().clone()));
            let (offsets, nulls) = (map.offsets().clone(), map.nulls().cloned());
            Ok(Arc::new(MapArray::try_new(field, offsets, entries, nulls, *ordered)?))
        }
        _ => Ok(array.clone()),
    }
}

fn nanos_of(unit: TimeUnit) -> i128 {
    match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    }
}

struct Zone {
    is_utc: bool,
    tz: Tz,
}

impl Zone {
    fn new(name: &str) -> Result<Self, ArrowError> {
        let is_utc = ["UTC", "Etc/UTC", "Z", "+00:00", "+00", "+0000"].contains(&name);
        Ok(Self { is_utc, tz: name.parse()? })
    }
}

/// Formats a fraction with three digits for whole milliseconds, six for whole microseconds, and nine otherwise.
fn fraction(nanos: u32) -> String {
    match nanos {
        whole if whole.is_multiple_of(1_000_000) => format!(".{:03}", nanos / 1_000_000),
        whole if whole.is_multiple_of(1_000) => format!(".{:06}", nanos / 1_000),
        _ => format!(".{nanos:09}"),
    }
}

fn instant(value: i64, unit: TimeUnit, zone: Option<&Zone>) -> String {
    let nanos = i128::from(value) * nanos_of(unit);
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).ok();
    let below = u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default();
    let at = seconds.and_then(|s| DateTime::<Utc>::from_timestamp(s, below)).filter(|at| at.year().abs() < 250_000);
    // A time out of range must not make the other rows unreadable.
    let Some(at) = at else { return format!("{value} {unit:?}s since 1970") };
    const SECONDS: &str = "%Y-%m-%dT%H:%M:%S";
    match zone {
        None => format!("{}{}", at.format(SECONDS), fraction(below)),
        Some(zone) if zone.is_utc => format!("{}{}Z", at.format(SECONDS), fraction(below)),
        Some(zone) => {
            let local = at.with_timezone(&zone.tz);
            let offset = local.offset().fix().local_minus_utc();
            // Before standard time, offsets have seconds. Without them, the text would name another instant.
            let colons = if offset % 60 == 0 { "%:z" } else { "%::z" };
            format!("{}{}{}", local.format(SECONDS), fraction(below), local.format(colons))
        }
    }
}

/// Formats an interval as DuckDB and PostgreSQL do: `1 year 2 months 3 days -00:00:00.000001`.
fn interval(months: i64, days: i128, nanos: i128) -> String {
    let counted = |n: i128, name: &str| (n != 0).then(|| format!("{n} {name}{}", if n.abs() == 1 { "" } else { "s" }));
    let counts = [(i128::from(months / 12), "year"), (i128::from(months % 12), "month"), (days, "day")];
    let mut parts: Vec<String> = counts.into_iter().filter_map(|(n, name)| counted(n, name)).collect();
    if nanos != 0 || parts.is_empty() {
        let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
        let (seconds, below) = (nanos / 1_000_000_000, u32::try_from(nanos % 1_000_000_000).unwrap_or_default());
        let below = if below == 0 { String::new() } else { fraction(below) };
        parts.push(format!("{sign}{:02}:{:02}:{:02}{below}", seconds / 3600, seconds / 60 % 60, seconds % 60));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_keep_their_zone_and_their_digits() {
        let at = |micros: i64, zone: Option<&str>| {
            instant(micros, TimeUnit::Microsecond, zone.map(|zone| Zone::new(zone).unwrap()).as_ref())
        };
        let noon = 1_782_907_200_000_000;
        assert_eq!(at(noon, Some("UTC")), "2026-07-01T12:00:00.000Z");
        assert_eq!(at(noon + 1, Some("UTC")), "2026-07-01T12:00:00.000001Z");
        assert_eq!(at(noon, Some("+02:00")), "2026-07-01T14:00:00.000+02:00");
        assert_eq!(at(noon + 1_000, None), "2026-07-01T12:00:00.001");
        assert_eq!(at(-1, Some("UTC")), "1969-12-31T23:59:59.999999Z");
        assert_eq!(at(i64::MAX, Some("UTC")), "9223372036854775807 Microseconds since 1970");
    }

    #[test]
    fn intervals_are_exact() {
        assert_eq!(interval(14, 3, -1_000), "1 year 2 months 3 days -00:00:00.000001");
        assert_eq!(interval(0, 0, 0), "00:00:00");
        assert_eq!(interval(-1, -1, 3_600_000_000_000), "-1 month -1 day 01:00:00");
    }
}
