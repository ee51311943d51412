//! Integers that are signed and checked: `bigint` arithmetic fails on overflow, and whatever counts gives a `bigint`.
//!
//! DataFusion wraps around silently, and gives row numbers and some counts as unsigned integers, whose difference wraps too.
//! The rewrite is a logical one, after type coercion: constants are folded by it as well, and no operator is left out.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array};
use arrow::compute::kernels::numeric::{add, mul, neg, sub};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type, UInt64Type};
use arrow::error::ArrowError;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::expr::{AggregateFunction, ScalarFunction, WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawAggregateExpr, RawWindowExpr};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, merge_schema};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, BinaryExpr, ColumnarValue, EmitTo, Expr, ExprSchemable,
    GroupsAccumulator, LogicalPlan, Operator, ReturnFieldArgs, ReversedUDAF, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility, cast,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr_common::datum::apply;
use datafusion::scalar::ScalarValue;

use crate::query::Told;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Negate,
}

/// Operators of one chain, which fail where the result is no integer of its type.
///
/// `a + b - c` is one call of three arguments: a chain is as deep as its deepest operand, however long it is, and what asks for
/// the type of each part of it does so in linear time.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    /// The operator before each argument but the first; or the sign of the only one.
    ops: Vec<Arithmetic>,
    signature: Signature,
}

impl Checked {
    fn udf(ops: Vec<Arithmetic>) -> Arc<ScalarUDF> {
        let count = if ops == [Arithmetic::Negate] { 1 } else { ops.len() + 1 };
        Arc::new(ScalarUDF::new_from_impl(Self { ops, signature: Signature::any(count, Volatility::Immutable) }))
    }
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    /// Columns are named as by the operators.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let (first, rest) = args.split_first().ok_or_else(operands)?;
        if rest.is_empty() {
            return Ok(Expr::Negative(Box::new(first.clone())).schema_name().to_string());
        }
        let mut name = first.schema_name().to_string();
        for (op, arg) in self.ops.iter().zip(rest) {
            let op = match op {
                Arithmetic::Add => Operator::Plus,
                Arithmetic::Subtract => Operator::Minus,
                _ => Operator::Multiply,
            };
            write!(name, " {op} {}", arg.schema_name())?;
        }
        Ok(name)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(operands)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        let of = args.arg_fields.first().ok_or_else(operands)?.data_type().clone();
        Ok(Arc::new(Field::new(self.name(), of, nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let of = args.return_field.data_type();
        let mut operands = args.args.into_iter();
        let mut value = operands.next().ok_or_else(self::operands)?;
        if self.ops == [Arithmetic::Negate] {
            return negated(&value).map_err(|error| overflow(error, of));
        }
        for (op, right) in self.ops.iter().zip(operands) {
            let done = match op {
                Arithmetic::Add => apply(&value, &right, add),
                Arithmetic::Subtract => apply(&value, &right, sub),
                _ => apply(&value, &right, mul),
            };
            value = done.map_err(|error| overflow(error, of))?;
        }
        Ok(value)
    }
}

fn negated(value: &ColumnarValue) -> Result<ColumnarValue> {
    match value {
        ColumnarValue::Array(array) => Ok(ColumnarValue::Array(neg(array.as_ref())?)),
        ColumnarValue::Scalar(value) => {
            let array = neg(value.to_array()?.as_ref())?;
            ScalarValue::try_from_array(&array, 0).map(ColumnarValue::Scalar)
        }
    }
}

fn operands() -> DataFusionError {
    DataFusionError::Internal("arithmetic has one or two operands".to_owned())
}

/// An overflow in the words of SQL.
fn overflow(error: DataFusionError, of: &DataType) -> DataFusionError {
    let DataFusionError::ArrowError(arrow, _) = &error else { return error };
    let ArrowError::ArithmeticOverflow(text) = arrow.as_ref() else { return error };
    let what = text.strip_prefix("Overflow happened on: ").unwrap_or(text);
    let name = match of {
        DataType::Int64 => "bigint",
        DataType::Int32 => "integer",
        DataType::Int16 => "smallint",
        DataType::Int8 => "tinyint",
        _ => "unsigned integer",
    };
    Told(format!("{name} overflow in {what}; cast an operand to decimal(38,0)")).into()
}

/// The analyzer rule that puts checked arithmetic in place of the operators.
#[derive(Debug)]
pub(crate) struct CheckedArithmetic;

/// The chain that an expression is.
fn chain(expr: &Expr) -> Option<(&Checked, &[Expr])> {
    let Expr::ScalarFunction(call) = expr else { return None };
    let checked = call.func.inner().as_ref() as &dyn Any;
    Some((checked.downcast_ref::<Checked>()?, &call.args))
}

fn type_of(expr: &Expr, schema: &DFSchema) -> Result<DataType> {
    match chain(expr) {
        Some((_, [first, ..])) => type_of(first, schema),
        _ => expr.get_type(schema),
    }
}

/// The chain that an operator makes longer, or begins.
fn longer(left: Expr, op: Arithmetic, right: Expr) -> Expr {
    let mut ops = match chain(&left) {
        Some((checked, _)) if checked.ops != [Arithmetic::Negate] => checked.ops.clone(),
        _ => Vec::new(),
    };
    let mut args = match left {
        Expr::ScalarFunction(call) if !ops.is_empty() => call.args,
        left => vec![left],
    };
    ops.push(op);
    args.push(right);
    Expr::ScalarFunction(ScalarFunction::new_udf(Checked::udf(ops), args))
}

fn checked(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    Ok(match expr {
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: op @ (Operator::Plus | Operator::Minus | Operator::Multiply),
            right,
        }) => {
            let of = type_of(&left, schema)?;
            if !of.is_integer() || of != type_of(&right, schema)? {
                return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })));
            }
            let op = match op {
                Operator::Plus => Arithmetic::Add,
                Operator::Minus => Arithmetic::Subtract,
                _ => Arithmetic::Multiply,
            };
            Transformed::yes(longer(*left, op, *right))
        }
        Expr::Negative(inner) if type_of(&inner, schema)?.is_integer() => {
            let negated = ScalarFunction::new_udf(Checked::udf(vec![Arithmetic::Negate]), vec![*inner]);
            Transformed::yes(Expr::ScalarFunction(negated))
        }
        other => Transformed::no(other),
    })
}

impl CheckedArithmetic {
    fn node(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        let mut schema = merge_schema(&plan.inputs());
        if let LogicalPlan::TableScan(scan) = &plan {
            schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
        }
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let done = expr.transform_up(|expr| checked(expr, &schema))?;
            Ok(done.update_data(|expr| name.restore(expr)))
        })
    }
}

impl AnalyzerRule for CheckedArithmetic {
    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(Self::node).map(|done| done.data)
    }
}

/// Functions that count, and give an unsigned integer.
const COUNTS: [&str; 6] = ["row_number", "rank", "dense_rank", "ntile", "approx_distinct", "regr_count"];

/// Plans what counts as a `bigint`.
#[derive(Debug)]
pub(crate) struct SignedCounts;

impl ExprPlanner for SignedCounts {
    fn plan_window(&self, raw: RawWindowExpr) -> Result<PlannerResult<RawWindowExpr>> {
        if !COUNTS.contains(&raw.func_def.name()) {
            return Ok(PlannerResult::Original(raw));
        }
        let RawWindowExpr {
            func_def: fun,
            args,
            partition_by,
            order_by,
            window_frame,
            filter,
            null_treatment,
            distinct,
        } = raw;
        let params =
            WindowFunctionParams { args, partition_by, order_by, window_frame, filter, null_treatment, distinct };
        Ok(PlannerResult::Planned(cast(Expr::from(WindowFunction { fun, params }), DataType::Int64)))
    }

    fn plan_aggregate(&self, raw: RawAggregateExpr) -> Result<PlannerResult<RawAggregateExpr>> {
        if !COUNTS.contains(&raw.func.name()) {
            return Ok(PlannerResult::Original(raw));
        }
        let RawAggregateExpr { func, args, distinct, filter, order_by, null_treatment } = raw;
        let counted = AggregateFunction::new_udf(func, args, distinct, filter, order_by, null_treatment);
        Ok(PlannerResult::Planned(cast(Expr::AggregateFunction(counted), DataType::Int64)))
    }
}

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

/// Functions of lists whose result is unsigned.
pub(crate) const UNSIGNED: [&str; 6] =
    ["array_length", "cardinality", "array_ndims", "array_position", "array_positions", "array_dims"];

/// A function with its result as signed integers.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Signed {
    inner: Arc<ScalarUDF>,
}

impl Signed {
    /// Wraps a function.
    pub(crate) fn new(inner: Arc<ScalarUDF>) -> Self {
        Self { inner }
    }
}

fn signed(of: &DataType) -> DataType {
    match of {
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::List(item) => {
            DataType::List(Arc::new(item.as_ref().clone().with_data_type(signed(item.data_type()))))
        }
        other => other.clone(),
    }
}

impl ScalarUDFImpl for Signed {
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
        self.inner.return_type(types).map(|of| signed(&of))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.inner().coerce_types(types)
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ours = args.return_field.data_type().clone();
        let types: Vec<DataType> = args.arg_fields.iter().map(|f| f.data_type().clone()).collect();
        let theirs = self.inner.return_type(&types)?;
        args.return_field = Arc::new(args.return_field.as_ref().clone().with_data_type(theirs));
        self.inner.invoke_with_args(args)?.cast_to(&ours, None)
    }
}
