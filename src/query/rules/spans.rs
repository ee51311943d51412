//! Compares intervals by their length: a day has 24 hours and a month 30 days, as in PostgreSQL and DuckDB.
//!
//! Arrow compares months, days and nanoseconds one after the other. So 48 hours are less than one day, and a difference
//! of two instants is less than any interval in days. Where Arrow's order cannot be replaced, intervals are refused.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Decimal128Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, IntervalMonthDayNanoType, IntervalUnit};
use arrow::temporal_conversions::NANOSECONDS_IN_DAY;
use datafusion::common::DFSchema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::{Between, InList, InSubquery, ScalarFunction};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Distinct, Expr, ExprSchemable, LogicalPlan, Operator, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::scalar::ScalarValue;

use super::keeping_names;
use crate::query::UserError;

const LENGTH: DataType = DataType::Decimal128(38, 0);

/// A function that returns the length of an interval in nanoseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Length {
    signature: Signature,
}

impl ScalarUDFImpl for Length {
    fn name(&self) -> &str {
        "interval_length"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(LENGTH)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let span =
            args.args.into_iter().next().ok_or_else(|| DataFusionError::Internal("no span is given".to_owned()))?;
        let is_scalar = matches!(span, ColumnarValue::Scalar(_));
        let spans = span.into_array(if is_scalar { 1 } else { args.number_rows })?;
        let spans = cast(&spans, &DataType::Interval(IntervalUnit::MonthDayNano))?;
        let lengths: Decimal128Array =
            spans.as_primitive::<IntervalMonthDayNanoType>().unary::<_, Decimal128Type>(|span| {
                (i128::from(span.months) * 30 + i128::from(span.days)) * i128::from(NANOSECONDS_IN_DAY)
                    + i128::from(span.nanoseconds)
            });
        let lengths: ArrayRef = Arc::new(lengths.with_precision_and_scale(38, 0)?);
        Ok(match is_scalar {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&lengths, 0)?),
            false => ColumnarValue::Array(lengths),
        })
    }
}

fn is_span(expr: &Expr, schema: &DFSchema) -> Result<bool> {
    Ok(matches!(expr.get_type(schema)?, DataType::Interval(_)))
}

fn length(span: Expr) -> Expr {
    let udf = ScalarUDF::new_from_impl(Length { signature: Signature::any(1, Volatility::Immutable) });
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![span]))
}

fn compares(op: Operator) -> bool {
    use Operator as O;
    matches!(op, O::Eq | O::NotEq | O::Lt | O::LtEq | O::Gt | O::GtEq | O::IsDistinctFrom | O::IsNotDistinctFrom)
}

fn compared(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    Ok(match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if compares(op) && is_span(&left, schema)? => {
            let sides = BinaryExpr { left: Box::new(length(*left)), op, right: Box::new(length(*right)) };
            Transformed::yes(Expr::BinaryExpr(sides))
        }
        Expr::Between(Between { expr, negated, low, high }) if is_span(&expr, schema)? => {
            let [expr, low, high] = [expr, low, high].map(|span| Box::new(length(*span)));
            Transformed::yes(Expr::Between(Between { expr, negated, low, high }))
        }
        Expr::InList(InList { expr, list, negated }) if is_span(&expr, schema)? => {
            let list = list.into_iter().map(length).collect();
            Transformed::yes(Expr::InList(InList { expr: Box::new(length(*expr)), list, negated }))
        }
        Expr::InSubquery(InSubquery { expr, .. }) if is_span(&expr, schema)? => return Err(refused("IN (SELECT …)")),
        Expr::Case(case) => {
            if let Some(of) = &case.expr
                && is_span(of, schema)?
            {
                return Err(refused("CASE … WHEN"));
            }
            Transformed::no(Expr::Case(case))
        }
        Expr::AggregateFunction(call) => {
            let of_spans = call.params.args.iter().map(|arg| is_span(arg, schema)).collect::<Result<Vec<_>>>()?;
            if of_spans.contains(&true)
                && (call.params.distinct || ["min", "max", "median"].contains(&call.func.name()))
            {
                return Err(refused(call.func.name()));
            }
            Transformed::no(Expr::AggregateFunction(call))
        }
        other => Transformed::no(other),
    })
}

fn refused(what: &str) -> DataFusionError {
    UserError(format!(
        "{what} does not know the order of intervals; use extract(epoch FROM …), which is a number of seconds"
    ))
    .into()
}

/// The analyzer rule that compares intervals by their lengths. Runs after types are coerced.
#[derive(Debug)]
pub(crate) struct Spans;

impl Spans {
    fn node(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        let inputs = plan.inputs();
        let schema = merge_schema(&inputs);
        let any = |exprs: &[Expr]| -> Result<bool> {
            exprs.iter().try_fold(false, |found, expr| Ok(found || is_span(expr, &schema)?))
        };
        let has_spans = |plan: &LogicalPlan| {
            plan.schema().fields().iter().any(|field| matches!(field.data_type(), DataType::Interval(_)))
        };
        match &plan {
            LogicalPlan::Aggregate(aggregate) if any(&aggregate.group_expr)? => return Err(refused("GROUP BY")),
            LogicalPlan::Distinct(Distinct::All(input)) if has_spans(input) => return Err(refused("DISTINCT")),
            LogicalPlan::Distinct(Distinct::On(on)) if any(&on.on_expr)? => return Err(refused("DISTINCT ON")),
            LogicalPlan::Window(window) => {
                for expr in &window.window_expr {
                    let Expr::WindowFunction(call) = expr else { continue };
                    let by = call.params.order_by.iter().map(|by| by.expr.clone());
                    let of = call.params.partition_by.iter().cloned().chain(by).collect::<Vec<_>>();
                    if any(&of)? {
                        return Err(refused("OVER"));
                    }
                    if ["min", "max"].contains(&call.fun.name()) && any(&call.params.args)? {
                        return Err(refused(call.fun.name()));
                    }
                }
            }
            LogicalPlan::Join(join) => {
                let keys: Vec<Expr> = join.on.iter().map(|(left, _)| left.clone()).collect();
                if any(&keys)? {
                    return Err(refused("a join"));
                }
            }
            LogicalPlan::Sort(sort) => {
                let by: Vec<Expr> = sort.expr.iter().map(|by| by.expr.clone()).collect();
                if any(&by)? {
                    let mut sort = sort.clone();
                    for by in &mut sort.expr {
                        if is_span(&by.expr, &schema)? {
                            by.expr = length(by.expr.clone());
                        }
                    }
                    return Ok(Transformed::yes(LogicalPlan::Sort(sort)));
                }
            }
            _ => {}
        }
        drop(inputs);
        keeping_names(plan, |expr| expr.transform_up(|expr| compared(expr, &schema)))
    }
}

impl AnalyzerRule for Spans {
    fn name(&self) -> &str {
        "spans"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(Self::node).map(|done| done.data)
    }
}
