//! Names casts in arguments: DataFusion gives `sum(x)` and `sum(x::bigint)` one name, but refuses two such columns.

use datafusion::common::tree_node::TreeNode;
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawAggregateExpr, RawWindowExpr};

/// A planner that gives each argument with a cast a name that shows the cast.
#[derive(Debug)]
pub(crate) struct NamedCasts;

fn named(argument: Expr) -> Result<Expr> {
    let has_cast = argument.exists(|expr| Ok(matches!(expr, Expr::Cast(_) | Expr::TryCast(_))))?;
    let name = argument.to_string();
    Ok(if has_cast { argument.alias(name) } else { argument })
}

fn all_named(arguments: Vec<Expr>) -> Result<Vec<Expr>> {
    arguments.into_iter().map(named).collect()
}

impl ExprPlanner for NamedCasts {
    fn plan_window(&self, mut raw: RawWindowExpr) -> Result<PlannerResult<RawWindowExpr>> {
        raw.args = all_named(raw.args)?;
        Ok(PlannerResult::Original(raw))
    }

    fn plan_aggregate(&self, mut raw: RawAggregateExpr) -> Result<PlannerResult<RawAggregateExpr>> {
        raw.args = all_named(raw.args)?;
        Ok(PlannerResult::Original(raw))
    }
}
