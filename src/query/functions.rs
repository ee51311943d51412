//! Functions that DataFusion lacks, and limits for the output of functions that may return far more than they are given.
//!
//! The memory pool does not count what a function returns, so `--memory` does not bound it. The result of such a
//! function is measured before the call (`sizes.rs`). A call may return [`BYTES_MAX`], and four times its input up to
//! [`CALL_BYTES_MAX`].
//!
//! The functions of this module check the types of their arguments when they name their result, not by a signature:
//! DataFusion would put a list of types in front of the user's message.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::error::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;

use super::UserError;

mod dates;
mod extract;
pub(super) mod json;
mod patterns;
mod sizes;

pub(super) use dates::is_unit;
use sizes::Measure;
pub(super) use sizes::bytes_of;

/// Bytes that a call may return for any batch.
const BYTES_MAX: u64 = 64 << 20;
/// Bytes that a call may return for a batch of large values.
const CALL_BYTES_MAX: u64 = 512 << 20;

/// Registers the functions of this module, and replaces the functions that need a limit by bounded ones.
///
/// # Errors
/// DataFusion lacks a function that one of these builds on (never in practice).
pub(super) fn register(context: &SessionContext) -> Result<()> {
    json::register(context);
    context.register_udf(dates::difference());
    context.register_udf(extract::extract());
    context.register_udf(patterns::spelled(FunctionRegistry::udf(context, "to_char")?));
    for (name, measure) in sizes::MEASURES {
        // A function that this build of DataFusion lacks needs no limit.
        if let Ok(inner) = FunctionRegistry::udf(context, name) {
            context.register_udf(ScalarUDF::new_from_impl(Bounded { inner, name, measure: *measure }));
        }
    }
    Ok(())
}

/// Checks that a function may return `made` bytes for these arguments.
///
/// # Errors
/// The result would exceed the limit.
pub(super) fn check(name: &str, made: u64, args: &[ColumnarValue], rows: usize) -> Result<()> {
    // A constant is stored once.
    let rows_of = |arg: &ColumnarValue| if matches!(arg, ColumnarValue::Scalar(_)) { 1 } else { rows };
    let given = args.iter().fold(0, |sum: u64, arg| sum.saturating_add(bytes_of(arg, rows_of(arg))));
    let limit = BYTES_MAX.max(given.saturating_mul(4).min(CALL_BYTES_MAX));
    if made <= limit {
        return Ok(());
    }
    let text = format!(
        "{name}: {made} bytes for {rows} rows are too long; the limit is {limit}; make less of each, or of fewer rows"
    );
    Err(UserError(text).into())
}

/// Returns the number of rows of a call, and whether all its arguments are constants.
fn rows_of(args: &ScalarFunctionArgs) -> (usize, bool) {
    let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
    (if is_scalar { 1 } else { args.number_rows }, is_scalar)
}

/// Returns a column, or its only value if all arguments of the call were constants.
fn columnar(array: &ArrayRef, is_scalar: bool) -> Result<ColumnarValue> {
    match is_scalar {
        true => ScalarValue::try_from_array(array, 0).map(ColumnarValue::Scalar),
        false => Ok(ColumnarValue::Array(array.clone())),
    }
}

/// Returns the types of a call's arguments.
fn types_of(fields: &[FieldRef]) -> Vec<DataType> {
    fields.iter().map(|field| field.data_type().clone()).collect()
}

/// Returns whether values of a type are texts, also if a dictionary holds them.
fn is_text(of: &DataType) -> bool {
    match of {
        DataType::Dictionary(_, of) => is_text(of),
        of => of.is_string() || *of == DataType::Null,
    }
}

#[derive(Debug)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    name: &'static str,
    measure: Measure,
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl std::hash::Hash for Bounded {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.inner().coerce_types(types)
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.inner().schema_name(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (rows, _) = rows_of(&args);
        check(self.name, (self.measure)(&args.args, rows), &args.args, rows)?;
        self.inner.invoke_with_args(args)
    }
}
