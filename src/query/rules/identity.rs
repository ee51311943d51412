//! Functions that return their argument under its name, and so carry facts about an expression through a plan.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

use super::{decimals, recursive};

/// Name of the function that keeps two expressions apart.
pub(super) const SAME: &str = "same";

/// The reason for an identity function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// Separation from other expressions with the same text. Functions with different numbers are different functions.
    Apart(usize),
    /// Failure on a decimal that has more digits than its type allows.
    Fits,
    /// A mark on a column of the second part of a recursive query.
    Recursive,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Identity {
    reason: Reason,
    signature: Signature,
}

/// Returns the identity function of a reason.
pub(super) fn function(reason: Reason) -> ScalarUDF {
    ScalarUDF::new_from_impl(Identity { reason, signature: Signature::any(1, Volatility::Immutable) })
}

/// Wraps a value in an identity function.
pub(super) fn same(value: Expr, reason: Reason) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(function(reason)), vec![value]))
}

impl ScalarUDFImpl for Identity {
    fn name(&self) -> &str {
        match self.reason {
            Reason::Apart(_) => SAME,
            Reason::Fits => "fitting_decimal",
            Reason::Recursive => recursive::MARK,
        }
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        args.first().map(|value| value.schema_name().to_string()).ok_or_else(nothing)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(nothing)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let value = args.args.into_iter().next().ok_or_else(nothing)?;
        match (self.reason, &value) {
            (Reason::Apart(_) | Reason::Recursive, _) => {}
            (Reason::Fits, ColumnarValue::Array(array)) => decimals::check(array)?,
            (Reason::Fits, ColumnarValue::Scalar(scalar)) => decimals::check(&ScalarValue::to_array(scalar)?)?,
        }
        Ok(value)
    }
}

fn nothing() -> DataFusionError {
    DataFusionError::Internal("nothing is given".to_owned())
}
