//! `regexp_extract(text, pattern[, group])`: the first match, or one of its groups, as in DuckDB.
//!
//! It is no call of `regexp_match`, because that one leaves out groups that took no part in the match.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use regex::Regex;

use super::{bytes_of, check, columnar, is_text, rows_of, types_of};
use crate::query::UserError;

/// Patterns that a batch keeps compiled.
const PATTERNS_MAX: usize = 100;

/// Returns the function.
pub(super) fn extract() -> ScalarUDF {
    ScalarUDF::new_from_impl(Extract { signature: Signature::variadic_any(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Extract {
    signature: Signature,
}

impl ScalarUDFImpl for Extract {
    fn name(&self) -> &'static str {
        "regexp_extract"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let taken = match types_of(args.arg_fields).as_slice() {
            [text, pattern] => is_text(text) && is_text(pattern),
            [text, pattern, group] => {
                is_text(text) && is_text(pattern) && (group.is_integer() || *group == DataType::Null)
            }
            _ => false,
        };
        match taken {
            true => Ok(Arc::new(Field::new(self.name(), DataType::Utf8, true))),
            false => Err(usage()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (rows, is_scalar) = rows_of(&args);
        let column = |at: usize, of: DataType| -> Result<Option<ArrayRef>> {
            let Some(arg) = args.args.get(at) else { return Ok(None) };
            Ok(Some(cast(&arg.to_array(rows)?, &of)?))
        };
        let (Some(texts), Some(patterns)) = (column(0, DataType::LargeUtf8)?, column(1, DataType::LargeUtf8)?) else {
            return Err(usage());
        };
        let made = args.args.first().map_or(0, |text| bytes_of(text, rows));
        check("regexp_extract", made, &args.args, rows)?;
        let groups = column(2, DataType::Int64)?;
        let groups = groups.as_ref().map(|groups| groups.as_primitive::<Int64Type>());
        let mut compiled: HashMap<&str, Regex> = HashMap::new();
        let mut found = StringBuilder::new();
        for (row, (text, pattern)) in texts.as_string::<i64>().iter().zip(patterns.as_string::<i64>()).enumerate() {
            let group = groups.map_or(Some(0), |groups| groups.is_valid(row).then(|| groups.value(row)));
            let (Some(text), Some(pattern), Some(group)) = (text, pattern, group) else {
                found.append_null();
                continue;
            };
            if compiled.len() > PATTERNS_MAX {
                compiled.clear();
            }
            let regex = match compiled.entry(pattern) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(free) => free.insert(compile(pattern)?),
            };
            let groups = regex.captures_len() - 1;
            let group = usize::try_from(group).ok().filter(|group| *group <= groups).ok_or_else(|| {
                UserError(format!("regexp_extract: no group {group} in the pattern {pattern:?}, which has {groups}"))
            })?;
            let captures = regex.captures(text);
            found.append_value(captures.and_then(|found| found.get(group)).map_or("", |group| group.as_str()));
        }
        let found: ArrayRef = Arc::new(found.finish());
        columnar(&found, is_scalar)
    }
}

fn usage() -> DataFusionError {
    let text = "regexp_extract takes a text, a regular expression and the number of a group: \
                regexp_extract(key, '^(.)-(.)$', 2)";
    UserError(text.to_owned()).into()
}

fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| {
        let why = crate::text::joined(&error.to_string());
        UserError(format!("regexp_extract: {pattern:?} is no regular expression: {why}")).into()
    })
}
