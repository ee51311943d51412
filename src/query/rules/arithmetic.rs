//! Arithmetic of integers and decimals that fails on overflow, and `||` that fails if its result is too long.
//!
//! DataFusion wraps around silently. The rewrite is logical and runs after type coercion, so it also applies to
//! constants that are folded later, and omits no operator.

use std::any::Any;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::kernels::numeric::{add, mul, neg, sub};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::error::ArrowError;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr as PhysicalBinary, Column};
use datafusion::physical_expr_common::datum::apply;
use datafusion::scalar::ScalarValue;

use super::identity::{self, Reason};
use super::keeping_names;
use crate::query::UserError;
use crate::query::functions::{bytes_of, check};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Negate,
    /// `||`, which is also a chain and may return too much. `checked` does not create it.
    Concat,
}

/// A chain of operators that fails where the result does not fit its integer type.
///
/// `a + b - c` is one call with three arguments. So a chain is only as deep as its deepest operand, however long it is.
/// The types of all its parts are found in linear time.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    /// Operator before each argument except the first; for a single argument, its sign.
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
        if self.ops.first() == Some(&Arithmetic::Concat) { "checked_concat" } else { "checked_arithmetic" }
    }

    /// Names columns as the plain operators would.
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
                Arithmetic::Concat => Operator::StringConcat,
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
                Arithmetic::Concat => concatenated(value, right, args.number_rows),
                _ => apply(&value, &right, mul),
            };
            value = done.map_err(|error| overflow(error, of))?;
        }
        Ok(value)
    }
}

fn concatenated(left: ColumnarValue, right: ColumnarValue, rows: usize) -> Result<ColumnarValue> {
    let is_scalar = matches!((&left, &right), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
    let rows = if is_scalar { 1 } else { rows };
    let operands = [left, right];
    let made = operands.iter().fold(0, |sum: u64, operand| sum.saturating_add(bytes_of(operand, rows)));
    check("||", made, &operands, rows)?;
    let columns = operands.into_iter().map(|operand| operand.into_array(rows)).collect::<Result<Vec<_>>>()?;
    let fields: Vec<Field> = ["left", "right"]
        .iter()
        .zip(&columns)
        .map(|(name, of)| Field::new(*name, of.data_type().clone(), true))
        .collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
    let [left, right] = [("left", 0), ("right", 1)].map(|(name, at)| Arc::new(Column::new(name, at)));
    let joined = PhysicalBinary::new(left, Operator::StringConcat, right).evaluate(&batch)?;
    match joined {
        ColumnarValue::Array(array) if is_scalar => ScalarValue::try_from_array(&array, 0).map(ColumnarValue::Scalar),
        joined => Ok(joined),
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

/// Converts an overflow error to SQL terms.
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
    UserError(format!("{name} overflow in {what}; cast an operand to decimal(38,0)")).into()
}

/// The analyzer rule that replaces operators by checked arithmetic.
#[derive(Debug)]
pub(crate) struct CheckedArithmetic;

/// Returns the chain that an expression consists of.
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

/// Appends an operator to the chain on its left, or begins a chain.
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
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
            let of = type_of(&left, schema)?;
            match of.is_string() && of == type_of(&right, schema)? {
                true => Transformed::yes(longer(*left, Arithmetic::Concat, *right)),
                false => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right })),
            }
        }
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: op @ (Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide),
            right,
        }) => {
            let of = type_of(&left, schema)?;
            if of.is_decimal() || op == Operator::Divide {
                let value = Expr::BinaryExpr(BinaryExpr { left, op, right });
                // A type of fewer digits always has room for the result.
                return Ok(match type_of(&value, schema)? {
                    DataType::Decimal128(38, _) | DataType::Decimal256(76, _) => {
                        Transformed::yes(identity::same(value, Reason::Fits))
                    }
                    _ => Transformed::no(value),
                });
            }
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
        keeping_names(plan, |expr| expr.transform_up(|expr| checked(expr, &schema)))
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
