//! Moves projections down as DataFusion does, except two kinds:
//!
//! - Projections that can fail. Below a filter, they would be evaluated on rows that the filter excludes.
//! - Projections above a filter that selects columns itself. DataFusion 55 takes columns of the filter's output for
//!   columns of its input, so that the filter reads another column, or the plan is rejected.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal, NotExpr,
    TryCastExpr,
};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::projection_pushdown::ProjectionPushdown;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::NestedLoopJoinExec;
use datafusion::physical_plan::projection::{ProjectionExec, remove_unnecessary_projections};

use super::fallible::{can_operator_fail, is_total, is_total_function};

/// Projection pushdown that leaves projections that can fail in place.
#[derive(Debug, Default)]
pub(crate) struct SafeProjectionPushdown(ProjectionPushdown);

impl PhysicalOptimizerRule for SafeProjectionPushdown {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if !plan.exists(|node| Ok(must_stay(node.as_ref()) || is_above_selecting_filter(node.as_ref())))? {
            return self.0.optimize(plan, config);
        }
        let moved = |node: Arc<dyn ExecutionPlan>| match is_of_one_that_stays(node.as_ref())
            || is_above_selecting_filter(node.as_ref())
        {
            true => Ok(Transformed::no(node)),
            false => remove_unnecessary_projections(node),
        };
        plan.transform_down(moved).data()
    }
}

/// Returns whether pushdown would move a part that can fail: a whole projection, or one side of a join's filter.
fn must_stay(node: &dyn ExecutionPlan) -> bool {
    if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
        let schema = projection.input().schema();
        return projection.expr().iter().any(|projected| can_fail(&projected.expr, &schema));
    }
    let filter = node.downcast_ref::<NestedLoopJoinExec>().and_then(NestedLoopJoinExec::filter);
    filter.is_some_and(|filter| can_fail(filter.expression(), filter.schema()))
}

/// Returns whether the node is a projection right above a filter that selects columns.
fn is_above_selecting_filter(node: &dyn ExecutionPlan) -> bool {
    let filter =
        node.downcast_ref::<ProjectionExec>().and_then(|projection| projection.input().downcast_ref::<FilterExec>());
    filter.is_some_and(|filter| filter.projection().is_some())
}

/// Returns whether the node is a projection that must stay, or that would be merged with such a projection below.
fn is_of_one_that_stays(node: &dyn ExecutionPlan) -> bool {
    let projection = node.downcast_ref::<ProjectionExec>();
    projection.is_some_and(|projection| must_stay(node) || is_of_one_that_stays(projection.input().as_ref()))
}

fn can_fail(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> bool {
    expr.exists(|part| Ok(fails_itself(part.as_ref(), schema))).unwrap_or(true)
}

fn fails_itself(expr: &dyn PhysicalExpr, schema: &Schema) -> bool {
    if let Some(cast) = expr.downcast_ref::<CastExpr>() {
        return cast.expr().data_type(schema).map_or(true, |from| !is_total(&from, cast.cast_type()));
    }
    if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
        let constant = binary.right().downcast_ref::<Literal>().map(Literal::value);
        return can_operator_fail(*binary.op(), || expr.data_type(schema).ok(), constant);
    }
    if let Some(function) = expr.downcast_ref::<ScalarFunctionExpr>() {
        let variable = function.args().iter().filter(|arg| !arg.is::<Literal>()).count();
        return !is_total_function(function.name(), variable);
    }
    !(expr.is::<Column>()
        || expr.is::<Literal>()
        || expr.is::<CaseExpr>()
        || expr.is::<InListExpr>()
        || expr.is::<IsNullExpr>()
        || expr.is::<IsNotNullExpr>()
        || expr.is::<LikeExpr>()
        || expr.is::<NotExpr>()
        || expr.is::<TryCastExpr>())
}
