//! Exact `sum` of integers and decimals, which fails when the total does not fit its type.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Decimal128Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, FieldRef, Int64Type, UInt64Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};
use datafusion::scalar::ScalarValue;

use super::decimals;
use crate::query::UserError;

/// `sum` that adds in a wider type: integers as decimals, decimals of 128 bits as decimals of 256 bits.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct CheckedSum {
    inner: Arc<AggregateUDF>,
}

impl Default for CheckedSum {
    fn default() -> Self {
        Self { inner: sum_udaf() }
    }
}

/// Returns the type in which a total is added, if that is not its own type.
fn wide(of: &DataType) -> Option<DataType> {
    match of {
        DataType::Int64 => Some(DataType::Decimal128(38, 0)),
        DataType::Decimal128(_, scale) => Some(DataType::Decimal256(76, *scale)),
        _ => None,
    }
}

/// Returns the type of a total that is added in a wider type, and the arguments for the inner `sum`.
fn exact(args: AccumulatorArgs<'_>) -> (Option<DataType>, AccumulatorArgs<'_>) {
    let of = args.return_field.data_type().clone();
    match wide(&of) {
        Some(wide) => {
            let return_field = Arc::new(args.return_field.as_ref().clone().with_data_type(wide));
            (Some(of), AccumulatorArgs { return_field, ..args })
        }
        None => (None, args),
    }
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        "sum"
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Int64 | DataType::UInt64] => Ok(DataType::Int64),
            _ => self.inner.return_type(types),
        }
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let (of, args) = exact(args);
        let inner = self.inner.accumulator(args)?;
        Ok(match of {
            Some(of) => Box::new(Exact { inner, of }),
            None => inner,
        })
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let return_field = match wide(args.return_field.data_type()) {
            Some(wide) => Arc::new(args.return_field.as_ref().clone().with_data_type(wide)),
            None => args.return_field.clone(),
        };
        self.inner.state_fields(StateFieldsArgs { return_field, ..args })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let (of, args) = exact(args);
        let inner = self.inner.create_groups_accumulator(args)?;
        Ok(match of {
            Some(of) => Box::new(ExactGroups { inner, of }),
            None => inner,
        })
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let (of, args) = exact(args);
        if of == Some(DataType::Int64) && args.is_distinct {
            return Ok(Box::<SlidingDistinct>::default());
        }
        let inner = self.inner.create_sliding_accumulator(args)?;
        Ok(match of {
            Some(of) => Box::new(Exact { inner, of }),
            None => inner,
        })
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

fn widened(values: &ArrayRef) -> Result<ArrayRef> {
    let wide: Decimal128Array = match values.data_type() {
        DataType::UInt64 => values.as_primitive::<UInt64Type>().unary(i128::from),
        DataType::Decimal128(_, scale) => return Ok(cast(values, &DataType::Decimal256(76, *scale))?),
        _ => values.as_primitive::<Int64Type>().unary(i128::from),
    };
    Ok(Arc::new(wide.with_precision_and_scale(38, 0)?))
}

/// Converts totals to their declared type.
fn narrowed(sums: &ArrayRef, of: &DataType) -> Result<ArrayRef> {
    if of == &DataType::Int64 {
        let narrow = sums.as_primitive::<Decimal128Type>().try_unary::<_, Int64Type, DataFusionError>(narrow)?;
        return Ok(Arc::new(narrow));
    }
    let wide = sums.as_primitive::<Decimal256Type>();
    let narrow =
        wide.try_unary::<_, Decimal128Type, DataFusionError>(|sum| sum.to_i128().ok_or_else(|| too_large(of)))?;
    let narrow: ArrayRef = Arc::new(narrow.with_data_type(of.clone()));
    decimals::check(&narrow)?;
    Ok(narrow)
}

fn too_large(of: &DataType) -> DataFusionError {
    let shown = match of {
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        other => other.to_string(),
    };
    UserError(format!("overflow in sum: the total has more digits than {shown}; cast its argument to a smaller scale"))
        .into()
}

fn narrow(sum: i128) -> Result<i64> {
    i64::try_from(sum).map_err(|_| {
        UserError(format!("bigint overflow in sum, which is {sum}; cast its argument to decimal(38,0)")).into()
    })
}

#[derive(Debug)]
struct Exact {
    inner: Box<dyn Accumulator>,
    of: DataType,
}

impl Accumulator for Exact {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.update_batch(&[widened(&values[0])?])
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(&[widened(&values[0])?])
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = self.inner.evaluate()?.to_array()?;
        ScalarValue::try_from_array(&narrowed(&sum, &self.of)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}

struct ExactGroups {
    inner: Box<dyn GroupsAccumulator>,
    of: DataType,
}

impl GroupsAccumulator for ExactGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.inner.update_batch(&[widened(&values[0])?], groups, filter, total)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        narrowed(&self.inner.evaluate(emit_to)?, &self.of)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.inner.state(emit_to)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.inner.merge_batch(values, groups, total)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.inner.convert_to_state(&[widened(&values[0])?], filter)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }
}

/// `sum(DISTINCT …)` over a sliding frame.
#[derive(Debug, Default)]
struct SlidingDistinct {
    counts: HashMap<i128, usize>,
    sum: i128,
}

impl Accumulator for SlidingDistinct {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in widened(&values[0])?.as_primitive::<Decimal128Type>().iter().flatten() {
            let count = self.counts.entry(value).or_default();
            if *count == 0 {
                self.sum += value;
            }
            *count += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in widened(&values[0])?.as_primitive::<Decimal128Type>().iter().flatten() {
            let Some(count) = self.counts.get_mut(&value) else { continue };
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&value);
                self.sum -= value;
            }
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64((!self.counts.is_empty()).then(|| narrow(self.sum)).transpose()?))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Err(DataFusionError::Internal("a window's frame has no state".to_owned()))
    }

    fn merge_batch(&mut self, _: &[ArrayRef]) -> Result<()> {
        Err(DataFusionError::Internal("a window's frame has no state".to_owned()))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.counts.capacity() * size_of::<(i128, usize)>()
    }
}
