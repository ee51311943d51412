//! JSON in text: `->`, `->>`, `?` and the functions `json_…`.
//!
//! The kernels are those of datafusion-functions-json. They differ in these points here:
//! - A value that is no JSON as a whole gives NULL. The kernels read only as far as the path leads.
//! - `->` and `json_get` return JSON as text, not a union of types, which no comparison and no result format knows.
//! - Every argument of a path may be a column.
//! - `?` follows PostgreSQL: a key of an object, or a text in an array.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::compute::kernels::boolean::or;
use arrow::compute::{is_null, nullif};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::DFSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use datafusion::sql::sqlparser::ast::BinaryOperator;
use datafusion_functions_json::udfs;
use serde::de::IgnoredAny;

use super::{bytes_of, check, columnar, rows_of, types_of};
use crate::query::UserError;

mod entries;

pub(super) use entries::entry_bytes;

/// Names of all functions here. None of them fails on a row.
pub(in crate::query) const NAMES: [&str; 13] = [
    "json_as_text",
    "json_contains",
    "json_entries",
    "json_get",
    "json_get_array",
    "json_get_bool",
    "json_get_float",
    "json_get_int",
    "json_get_str",
    "json_has_key",
    "json_length",
    "json_object_keys",
    "json_valid",
];

/// Registers the functions.
pub(super) fn register(context: &SessionContext) {
    let functions = [
        get(),
        text(),
        kernel("json_contains", udfs::json_contains_udf(), &[]),
        kernel("json_get_str", udfs::json_get_str_udf(), &[]),
        kernel("json_get_int", udfs::json_get_int_udf(), &[]),
        kernel("json_get_float", udfs::json_get_float_udf(), &[]),
        kernel("json_get_bool", udfs::json_get_bool_udf(), &[]),
        kernel("json_get_array", udfs::json_get_array_udf(), &[]),
        kernel("json_length", udfs::json_length_udf(), &["json_len"]),
        kernel("json_object_keys", udfs::json_object_keys_udf(), &["json_keys"]),
    ];
    for function in functions {
        context.register_udf(ScalarUDF::new_from_impl(function));
    }
    context.register_udf(entries::entries());
    context.register_udf(entries::has_key());
    context.register_udf(entries::valid());
}

fn get() -> Json {
    Json { operator: Some("->"), ..kernel("json_get", udfs::json_get_json_udf(), &["json_get_json"]) }
}

fn text() -> Json {
    Json { operator: Some("->>"), ..kernel("json_as_text", udfs::json_as_text_udf(), &[]) }
}

fn kernel(name: &'static str, kernel: Arc<ScalarUDF>, aliases: &[&str]) -> Json {
    let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
    Json { kernel, name, aliases, operator: None, signature: Signature::variadic_any(Volatility::Immutable) }
}

/// The planner of the operators.
#[derive(Debug)]
pub(in crate::query) struct Operators;

impl ExprPlanner for Operators {
    fn plan_binary_op(&self, raw: RawBinaryExpr, _: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let function = match raw.op {
            BinaryOperator::Arrow => ScalarUDF::new_from_impl(get()),
            BinaryOperator::LongArrow => ScalarUDF::new_from_impl(text()),
            BinaryOperator::Question => entries::has_key(),
            BinaryOperator::HashArrow | BinaryOperator::HashLongArrow => {
                let op = raw.op;
                return Err(UserError(format!(
                    "{op} is not possible; write one key after the other: v -> 'a' ->> 'b'"
                ))
                .into());
            }
            _ => return Ok(PlannerResult::Original(raw)),
        };
        let call = ScalarFunction::new_udf(Arc::new(function), vec![raw.left, raw.right]);
        Ok(PlannerResult::Planned(Expr::ScalarFunction(call)))
    }
}

/// A function of datafusion-functions-json, with the differences named above.
#[derive(Debug)]
struct Json {
    kernel: Arc<ScalarUDF>,
    name: &'static str,
    aliases: Vec<String>,
    /// Operator that the function is written as.
    operator: Option<&'static str>,
    signature: Signature,
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Json {}

impl std::hash::Hash for Json {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Json {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Names a column as its operators are written.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let spelled = |arg: &Expr| match arg {
            Expr::Literal(value, _) => match value.try_as_str() {
                Some(Some(text)) => format!("'{}'", text.replace('\'', "''")),
                _ => value.to_string(),
            },
            other => other.schema_name().to_string(),
        };
        let args: Vec<String> = args.iter().map(spelled).collect();
        Ok(match (self.operator, args.as_slice()) {
            (Some(operator), [json, key]) => format!("{json} {operator} {key}"),
            _ => format!("{}({})", self.name, args.join(",")),
        })
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(match self.kernel.return_type(types)? {
            DataType::UInt64 => DataType::Int64,
            other => other,
        })
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        for key in args.scalar_arguments.iter().skip(1).flatten() {
            if let Some(Some(key)) = key.try_as_str() {
                refuse_path(self.name, key)?;
            }
        }
        let types = taken(self.name, &types_of(args.arg_fields))?;
        Ok(Arc::new(Field::new(self.name, self.return_type(&types)?, true)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let of = args.return_field.data_type().clone();
        let types = taken(self.name, &types_of(&args.arg_fields))?;
        args.args = cast(&args, &types)?;
        args.return_field = Arc::new(Field::new(self.name, self.kernel.return_type(&types)?, true));
        if args.args.iter().any(|arg| matches!(arg, ColumnarValue::Scalar(value) if value.is_null())) {
            return ScalarValue::try_from(&of).map(ColumnarValue::Scalar);
        }
        let (rows, is_scalar) = rows_of(&args);
        let json = args.args.first().ok_or_else(|| no_arguments(self.name))?;
        check(self.name, bytes_of(json, rows), &args.args, rows)?;
        let json = whole(json.to_array(rows)?)?;
        args.args[0] = ColumnarValue::Array(json.clone());
        args.number_rows = rows;
        let keys: Vec<ColumnarValue> = args.args.iter().skip(1).cloned().collect();
        // The kernels take one column as the whole path, or constants.
        while args.args.len() > 2 && args.args.iter().skip(1).any(|arg| matches!(arg, ColumnarValue::Array(_))) {
            let step = args.args.remove(1);
            let json = std::mem::replace(&mut args.args[0], ColumnarValue::Scalar(ScalarValue::Null));
            args.args[0] = udfs::json_get_json_udf().invoke_with_args(ScalarFunctionArgs {
                args: vec![json, step],
                arg_fields: Vec::new(),
                return_field: Arc::new(Field::new(self.name, DataType::Utf8, true)),
                ..args.clone()
            })?;
        }
        let mut found = self.kernel.invoke_with_args(args)?.cast_to(&of, None)?.into_array(rows)?;
        if of == DataType::Boolean {
            // The kernel answers false for NULL.
            let unknown = keys.iter().try_fold(is_null(&json)?, |unknown, key| match key {
                ColumnarValue::Array(key) => or(&unknown, &is_null(key)?),
                ColumnarValue::Scalar(_) => Ok(unknown),
            })?;
            found = nullif(&found, &unknown)?;
        }
        columnar(&found, is_scalar)
    }
}

fn no_arguments(name: &str) -> DataFusionError {
    UserError(format!("{name} takes a JSON text and a path")).into()
}

/// Returns the types that the kernels take, for these arguments: a JSON text, and the steps of a path.
fn taken(name: &str, types: &[DataType]) -> Result<Vec<DataType>> {
    let text = |of: &DataType| match of {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(of.clone()),
        DataType::Dictionary(_, of) if of.is_string() => Some(of.as_ref().clone()),
        DataType::Null => Some(DataType::Utf8),
        _ => None,
    };
    let (json, path) = types.split_first().ok_or_else(|| no_arguments(name))?;
    let json = text(json).ok_or_else(|| UserError(format!("{name} reads JSON from text, not from {json}; cast it")))?;
    let step = |of: &DataType| match of {
        of if of.is_integer() => Ok(DataType::Int64),
        of => text(of)
            .ok_or_else(|| UserError(format!("{name}: a key is text and a place in an array is an integer, not {of}"))),
    };
    let path = path.iter().map(step);
    Ok(std::iter::once(Ok(json)).chain(path).collect::<Result<_, _>>()?)
}

/// Returns the arguments in the types that the kernels take.
fn cast(args: &ScalarFunctionArgs, types: &[DataType]) -> Result<Vec<ColumnarValue>> {
    args.args.iter().zip(types).map(|(arg, of)| arg.cast_to(of, None)).collect()
}

/// Refuses a path of JSONPath, which would be a key that no object has.
fn refuse_path(name: &str, key: &str) -> Result<()> {
    if key.starts_with("$.") || key.starts_with("$[") {
        let text = format!("{name}: {key:?} is one key here and no path; write one key after the other: v -> 'a' -> 0");
        return Err(UserError(text).into());
    }
    Ok(())
}

fn texts(array: &dyn Array) -> Box<dyn Iterator<Item = Option<&str>> + '_> {
    match array.data_type() {
        DataType::Utf8 => Box::new(array.as_string::<i32>().iter()),
        DataType::LargeUtf8 => Box::new(array.as_string::<i64>().iter()),
        DataType::Utf8View => Box::new(array.as_string_view().iter()),
        _ => Box::new(std::iter::repeat_n(None, array.len())),
    }
}

fn is_json(text: &str) -> bool {
    // This parser keeps no stack, so no nesting is too deep for it.
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Replaces texts that are no JSON by NULL.
fn whole(json: ArrayRef) -> Result<ArrayRef> {
    let is_other: BooleanArray = texts(&json).map(|text| Some(text.is_some_and(|text| !is_json(text)))).collect();
    Ok(if is_other.has_true() { nullif(&json, &is_other)? } else { json })
}
