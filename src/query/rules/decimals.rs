//! A decimal that has more digits than its type is an error: Arrow's arithmetic looks at its bits alone.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, DecimalType};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;

use crate::query::Told;

/// Gives a decimal that fits its type, and fails on another one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Fitting {
    signature: Signature,
}

/// The same value, which fails when it does not fit its type.
pub(super) fn fitting(value: Expr) -> Expr {
    let udf = ScalarUDF::new_from_impl(Fitting { signature: Signature::any(1, Volatility::Immutable) });
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![value]))
}

impl ScalarUDFImpl for Fitting {
    fn name(&self) -> &str {
        "fitting_decimal"
    }

    /// Columns are named as by the operators.
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
        match &value {
            ColumnarValue::Array(array) => check(array)?,
            ColumnarValue::Scalar(scalar) => check(&ScalarValue::to_array(scalar)?)?,
        }
        Ok(value)
    }
}

fn nothing() -> DataFusionError {
    DataFusionError::Internal("no decimal is given".to_owned())
}

/// Whether all values have at most as many digits as their type.
pub(super) fn check(values: &ArrayRef) -> Result<()> {
    fn of<T: DecimalType>(values: &ArrayRef, precision: u8, scale: i8) -> Result<()> {
        let values = values.as_primitive::<T>();
        let fits = |value: T::Native| T::is_valid_decimal_precision(value, precision);
        match (0..values.len()).find(|at| values.is_valid(*at) && !fits(values.value(*at))) {
            None => Ok(()),
            Some(_) => Err(Told(format!(
                "decimal({precision},{scale}) overflow: the result has more digits; cast to a smaller scale, or to double"
            ))
            .into()),
        }
    }
    match *values.data_type() {
        DataType::Decimal128(precision, scale) => of::<Decimal128Type>(values, precision, scale),
        DataType::Decimal256(precision, scale) => of::<Decimal256Type>(values, precision, scale),
        _ => Ok(()),
    }
}
