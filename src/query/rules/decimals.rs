//! Checks that decimals have no more digits than their type allows: Arrow's arithmetic considers only the bits.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, DecimalType};
use datafusion::error::Result;

use crate::query::UserError;

/// Fails if a value has more digits than its type allows.
pub(super) fn check(values: &ArrayRef) -> Result<()> {
    fn of<T: DecimalType>(values: &ArrayRef, precision: u8, scale: i8) -> Result<()> {
        let values = values.as_primitive::<T>();
        let fits = |value: T::Native| T::is_valid_decimal_precision(value, precision);
        match (0..values.len()).find(|at| values.is_valid(*at) && !fits(values.value(*at))) {
            None => Ok(()),
            Some(_) => Err(UserError(format!(
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
