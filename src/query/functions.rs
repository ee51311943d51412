//! Functions of DataFusion that may make far more than they are given, with a bound on what one call makes of one batch.
//!
//! What a function returns is outside of the memory pool, so `--memory` does not hold it. Before such a function is called its
//! result is measured (`sizes.rs`). A call may make [`BYTES_MAX`], and four times what it is given up to [`CALL_BYTES_MAX`].

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::error::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::prelude::SessionContext;

use super::Told;

mod sizes;

use sizes::Measure;
pub(super) use sizes::bytes_of;

/// What a call may make of any batch.
const BYTES_MAX: u64 = 64 << 20;
/// What a call may make of a batch of large values.
const CALL_BYTES_MAX: u64 = 512 << 20;

/// Puts a bound on the functions that need one.
///
/// # Errors
/// Two functions cannot have one name (never in practice).
pub(super) fn register(context: &SessionContext) -> Result<()> {
    for (name, measure) in sizes::MEASURES {
        // One that this build of DataFusion does not have needs no bound.
        if let Ok(inner) = FunctionRegistry::udf(context, name) {
            context.register_udf(ScalarUDF::new_from_impl(Bounded { inner, name, measure: *measure }));
        }
    }
    Ok(())
}

/// Refuses to make so many bytes of what is given.
///
/// # Errors
/// It is too much.
pub(super) fn check(name: &str, made: u64, args: &[ColumnarValue], rows: usize) -> Result<()> {
    // A constant is held once.
    let rows_of = |arg: &ColumnarValue| if matches!(arg, ColumnarValue::Scalar(_)) { 1 } else { rows };
    let given = args.iter().fold(0, |sum: u64, arg| sum.saturating_add(bytes_of(arg, rows_of(arg))));
    let limit = BYTES_MAX.max(given.saturating_mul(4).min(CALL_BYTES_MAX));
    if made <= limit {
        return Ok(());
    }
    let text = format!(
        "{name}: {made} bytes for {rows} rows are too long; the limit is {limit}; make less of each, or of fewer rows"
    );
    Err(Told(text).into())
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
