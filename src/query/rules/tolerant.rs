//! Rules that DataFusion can do without, and that fail on some plans: such a plan stays as it is.
//!
//! Both fail on `GROUP BY x, cast(x as text)`: a cast has the name of its operand, and the projection that they add has two
//! columns of one name then.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

/// The names of these rules.
pub(super) const NAMES: [&str; 2] = ["eliminate_group_by_constant", "single_distinct_aggregation_to_group_by"];

/// A rule whose planning errors leave the plan unchanged.
#[derive(Debug)]
pub(super) struct Tolerant(pub Arc<dyn OptimizerRule + Send + Sync>);

impl OptimizerRule for Tolerant {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match self.0.rewrite(plan.clone(), config) {
            Err(DataFusionError::Plan(_) | DataFusionError::SchemaError(..)) => Ok(Transformed::no(plan)),
            done => done,
        }
    }
}
