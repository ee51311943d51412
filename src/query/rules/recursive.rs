//! The two parts of a recursive query must agree in their types. DataFusion casts the rows of the second part to the types of the
//! first one, so that `SELECT 1 UNION ALL SELECT n + 1.7 …` would count by ones.
//!
//! A cast that the planner adds looks like one of the user's. So the parser wraps each column of the second part in a call of
//! [`MARK`]: a cast around the mark is the planner's. The rule removes the marks before anything else looks at the plan.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, ScalarUDF};
use datafusion::optimizer::AnalyzerRule;

use super::identity::{self, Reason};
use super::keeping_names;
use crate::query::UserError;

/// Name of the function that marks a column of the second part.
pub(crate) const MARK: &str = "recursive_value";

/// Returns the function.
pub(crate) fn mark() -> ScalarUDF {
    identity::function(Reason::Recursive)
}

/// The analyzer rule that removes the marks, and refuses a cast that would change values.
#[derive(Debug)]
pub(crate) struct Recursive;

impl AnalyzerRule for Recursive {
    fn name(&self) -> &str {
        "recursive"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_down_with_subqueries(|plan| {
            let schema = merge_schema(&plan.inputs());
            keeping_names(plan, |expr| {
                expr.transform_down(|expr| match expr {
                    Expr::Cast(Cast { expr, field }) => {
                        let inner = match marked(*expr) {
                            Ok(inner) => inner,
                            Err(expr) => return Ok(Transformed::no(Expr::Cast(Cast { expr: Box::new(expr), field }))),
                        };
                        let from = inner.get_type(&schema)?;
                        if !keeps_values(&from, field.data_type()) {
                            let what = format!(
                                "WITH RECURSIVE: {inner} is {from} in the second part and {} in the first one; cast it in \
                                 one of them",
                                field.data_type()
                            );
                            return Err(UserError(what).into());
                        }
                        Ok(Transformed::yes(Expr::Cast(Cast { expr: Box::new(inner), field })))
                    }
                    expr => Ok(match marked(expr) {
                        Ok(inner) => Transformed::yes(inner),
                        Err(expr) => Transformed::no(expr),
                    }),
                })
            })
        })
        .data()
    }
}

/// Returns the expression below a mark, or the expression itself if it has none.
fn marked(expr: Expr) -> std::result::Result<Expr, Expr> {
    match expr {
        Expr::ScalarFunction(ScalarFunction { func, mut args }) if func.name() == MARK && args.len() == 1 => {
            Ok(args.remove(0))
        }
        other => Err(other),
    }
}

/// Returns whether a cast changes no value, or fails on the values that it would change.
fn keeps_values(from: &DataType, to: &DataType) -> bool {
    let is_text = |of: &DataType| matches!(of, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    from == to
        || from.is_null()
        || (from.is_integer() && to.is_numeric())
        || (is_text(from) && is_text(to))
        || (from.is_decimal() && to.is_floating())
        || (from.is_floating() && *to == DataType::Float64)
}
