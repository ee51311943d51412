//! Limits the output of DataFusion functions that may return far more than they are given.
//!
//! The memory pool does not count what a function returns, so `--memory` does not bound it. The result of such a
//! function is measured before the call (`sizes.rs`). A call may return [`BYTES_MAX`], and four times its input up to
//! [`CALL_BYTES_MAX`].

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::error::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::prelude::SessionContext;

use super::UserError;

mod sizes;

use sizes::Measure;
pub(super) use sizes::bytes_of;

/// Bytes that a call may return for any batch.
const BYTES_MAX: u64 = 64 << 20;
/// Bytes that a call may return for a batch of large values.
const CALL_BYTES_MAX: u64 = 512 << 20;

/// Replaces the functions that need a limit by bounded ones.
///
/// # Errors
/// Two functions have one name (never in practice).
pub(super) fn register(context: &SessionContext) -> Result<()> {
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
        let has_rows = args.args.iter().any(|arg| matches!(arg, ColumnarValue::Array(_)));
        let rows = if has_rows { args.number_rows } else { 1 };
        check(self.name, (self.measure)(&args.args, rows), &args.args, rows)?;
        self.inner.invoke_with_args(args)
    }
}
