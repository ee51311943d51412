//! Refuses large constants in columns: they would take their size times the rows of a batch, outside the memory pool.

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use crate::query::UserError;

/// Most bytes of a constant in a column of many rows.
const BYTES_MAX: usize = 32 << 10;

/// The optimizer rule that refuses large constants as columns of many rows. Runs after constants are folded.
#[derive(Debug)]
pub(crate) struct SmallConstants;

impl OptimizerRule for SmallConstants {
    fn name(&self) -> &str {
        "small_constants"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let has_many_rows = match &plan {
            LogicalPlan::Projection(projection) => !is_one_row(&projection.input),
            LogicalPlan::Aggregate(_) | LogicalPlan::Window(_) | LogicalPlan::Sort(_) => true,
            _ => false,
        };
        if has_many_rows {
            plan.apply_expressions(|expr| {
                expr.apply(|part| match part {
                    Expr::Literal(value, _) if value.size() > BYTES_MAX => {
                        let text = format!(
                            "a constant of {} bytes is too long for a column; the limit is {BYTES_MAX}; make it of the rows, or \
                             select it alone",
                            value.size()
                        );
                        Err(UserError(text).into())
                    }
                    _ => Ok(TreeNodeRecursion::Continue),
                })
            })?;
        }
        Ok(Transformed::no(plan))
    }
}

fn is_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::EmptyRelation(_) => true,
        LogicalPlan::Projection(projection) => is_one_row(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => is_one_row(&alias.input),
        LogicalPlan::Unnest(unnest) => is_one_row(&unnest.input),
        _ => false,
    }
}
