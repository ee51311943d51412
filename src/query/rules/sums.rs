//! `sum` of integers: exact, and an error when the total is no `bigint`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Decimal128Array};
use arrow::datatypes::{DataType, Decimal128Type, FieldRef, Int64Type, UInt64Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};
use datafusion::scalar::ScalarValue;

use crate::query::Told;

/// `sum`, which adds integers as decimals and fails when the total is no `bigint`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct CheckedSum {
    inner: Arc<AggregateUDF>,
}

impl Default for CheckedSum {
    fn default() -> Self {
        Self { inner: sum_udaf() }
    }
}

fn wide(field: &FieldRef) -> FieldRef {
    Arc::new(field.as_ref().clone().with_data_type(DataType::Decimal128(38, 0)))
}

/// Whether this is a sum of integers (only those are `bigint`), and what the sum of decimals is asked then.
fn exact(args: AccumulatorArgs<'_>) -> (bool, AccumulatorArgs<'_>) {
    match args.return_field.data_type() == &DataType::Int64 {
        true => (true, AccumulatorArgs { return_field: wide(&args.return_field), ..args }),
        false => (false, args),
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
        let (integers, args) = exact(args);
        let inner = self.inner.accumulator(args)?;
        Ok(if integers { Box::new(Exact { inner }) } else { inner })
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let integers = args.return_field.data_type() == &DataType::Int64;
        let return_field = if integers { wide(&args.return_field) } else { args.return_field.clone() };
        self.inner.state_fields(StateFieldsArgs { return_field, ..args })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let (integers, args) = exact(args);
        let inner = self.inner.create_groups_accumulator(args)?;
        Ok(if integers { Box::new(ExactGroups { inner }) } else { inner })
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let (integers, args) = exact(args);
        if integers && args.is_distinct {
            return Ok(Box::<SlidingDistinct>::default());
        }
        let inner = self.inner.create_sliding_accumulator(args)?;
        Ok(if integers { Box::new(Exact { inner }) } else { inner })
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
        _ => values.as_primitive::<Int64Type>().unary(i128::from),
    };
    Ok(Arc::new(wide.with_precision_and_scale(38, 0)?))
}

fn narrow(sum: i128) -> Result<i64> {
    i64::try_from(sum)
        .map_err(|_| Told(format!("bigint overflow in sum, which is {sum}; cast its argument to decimal(38,0)")).into())
}

#[derive(Debug)]
struct Exact {
    inner: Box<dyn Accumulator>,
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
        match self.inner.evaluate()? {
            ScalarValue::Decimal128(sum, ..) => Ok(ScalarValue::Int64(sum.map(narrow).transpose()?)),
            other => Err(DataFusionError::Internal(format!("a sum of integers is {other}"))),
        }
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
        let sums = self.inner.evaluate(emit_to)?;
        Ok(Arc::new(sums.as_primitive::<Decimal128Type>().try_unary::<_, Int64Type, DataFusionError>(narrow)?))
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

/// `sum(DISTINCT …)` over a moving frame.
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
