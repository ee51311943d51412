//! Planning rules: DataFusion's, and synclake's where DataFusion's give wrong answers.
//!
//! Each rule of synclake documents the wrong answer that it prevents. [`Guards`] switches the rules off
//! one by one, so that a test can show that random queries find each fault again.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::analyzer::resolve_grouping_function::ResolveGroupingFunction;
use datafusion::optimizer::analyzer::type_coercion::TypeCoercion;
use datafusion::optimizer::{AnalyzerRule, Optimizer, OptimizerRule};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;

use super::Guards;

mod arithmetic;
pub(super) mod casts;
mod constants;
mod decimals;
mod fallible;
mod guarded;
mod identity;
pub(super) mod integers;
mod kinds;
mod lists;
mod projections;
pub(super) mod recursive;
mod rows;
mod spans;
mod subqueries;
pub(super) mod sums;
mod tolerant;
mod unordered;

/// Rewrites the expressions of a plan, whose columns keep their names.
fn keeping_names(
    plan: LogicalPlan,
    mut rewrite: impl FnMut(Expr) -> Result<Transformed<Expr>>,
) -> Result<Transformed<LogicalPlan>> {
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expr| {
        let name = names.save(&expr);
        Ok(rewrite(expr)?.update_data(|expr| name.restore(expr)))
    })
}

/// Returns the analyzer's rules, in order.
pub(super) fn analyzer(guards: Guards) -> Vec<Arc<dyn AnalyzerRule + Send + Sync>> {
    let mut rules: Vec<Arc<dyn AnalyzerRule + Send + Sync>> = vec![
        Arc::new(recursive::Recursive),
        Arc::new(kinds::SameKinds),
        Arc::new(ResolveGroupingFunction::new()),
        Arc::new(TypeCoercion::new()),
    ];
    rules.push(Arc::new(spans::Spans));
    rules.push(Arc::new(lists::Lists));
    if guards.subqueries {
        rules.push(Arc::new(subqueries::Subqueries));
    }
    rules.push(Arc::new(rows::DistinctRows::default()));
    if guards.checked_integers {
        rules.push(Arc::new(arithmetic::CheckedArithmetic));
    }
    if guards.ordered_conditions {
        rules.push(Arc::new(guarded::Guarded));
    }
    rules
}

/// Returns the logical optimizer's rules, in order.
pub(super) fn logical(guards: Guards) -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let ours = |rule: Arc<dyn OptimizerRule + Send + Sync>| -> Arc<dyn OptimizerRule + Send + Sync> {
        match rule.name() {
            "push_down_filter" if guards.ordered_conditions => Arc::new(guarded::PushDownSafeFilter::default()),
            name if tolerant::NAMES.contains(&name) => Arc::new(tolerant::Tolerant(rule)),
            _ => rule,
        }
    };
    let rules = Optimizer::new().rules.into_iter().map(ours);
    rules.chain([Arc::new(constants::SmallConstants) as _]).collect()
}

/// Returns the physical optimizer's rules, in order.
pub(super) fn physical(guards: Guards) -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    if guards.fixed_filters {
        // These rules find columns by name, but joins and views share names (apache/datafusion#25244).
        rules.retain(|rule| !rule.name().starts_with("FilterPushdown"));
    }
    if guards.ordered_conditions {
        for rule in rules.iter_mut().filter(|rule| rule.name() == "ProjectionPushdown") {
            *rule = Arc::new(projections::SafeProjectionPushdown::default());
        }
    }
    if guards.unordered_builds {
        let place = rules.iter().position(|rule| rule.name() == "EnsureRequirements").unwrap_or(0);
        rules.insert(place, Arc::new(unordered::UnorderedBuilds));
    }
    rules
}

/// Sets the optimizer's options that act like rules.
pub(super) fn settings(guards: Guards, options: &mut ConfigOptions) {
    let optimizer = &mut options.optimizer;
    // Filters found at run time are passed down by column name as well.
    optimizer.enable_dynamic_filter_pushdown = !guards.fixed_filters;
    optimizer.enable_join_dynamic_filter_pushdown = !guards.fixed_filters;
    optimizer.enable_topk_dynamic_filter_pushdown = !guards.fixed_filters;
    optimizer.enable_aggregate_dynamic_filter_pushdown = !guards.fixed_filters;
    // This pushdown moves struct accesses below the filter that guards them.
    optimizer.enable_leaf_expression_pushdown = !guards.ordered_conditions;
    // Reordering may pair the keys of one join with the order that another join needs.
    optimizer.top_down_join_key_reordering = false;
    // The check compares nullability, of which the rules above know more than the plan below.
    options.execution.skip_physical_aggregate_schema_check = true;
}
