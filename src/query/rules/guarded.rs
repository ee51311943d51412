//! Keeps conditions in front of the expressions that they guard, as written. `a and b and c` evaluates `c` on rows
//! where `a` and `b` hold. `case when a then c end` and `f(c) filter (where a)` evaluate `c` on rows where `a` holds.
//!
//! DataFusion promises none of that. It turns a boolean CASE into AND and OR, and reorders the conditions of an AND. It
//! moves conditions to where the conditions before them have not been applied yet. It evaluates both sides of AND on
//! all rows of a batch if more than a fifth of them meet the first.
//!
//! Only a CASE with branches that are not boolean is evaluated branch by branch, and nothing is moved out of it. So
//! conditions that can fail are rewritten as such a CASE, and filters that can fail stay where they are.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::{AggregateFunctionParams, Case, WindowFunctionParams};
use datafusion::logical_expr::utils::{conjunction, merge_schema, split_conjunction_owned};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Filter, LogicalPlan, Operator, cast, lit, not};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::{AnalyzerRule, OptimizerConfig, OptimizerRule};
use datafusion::scalar::ScalarValue;

use super::fallible::can_fail;
use super::keeping_names;
use crate::query::UserError;

/// Largest condition, in nodes.
const NODES_MAX: usize = 50_000;

/// The analyzer rule that keeps expressions that can fail behind their guards. Runs after types are coerced.
#[derive(Debug, Default)]
pub(crate) struct Guarded;

impl AnalyzerRule for Guarded {
    fn name(&self) -> &str {
        "guarded"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(guarded).data()
    }
}

fn guarded(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    if matches!(plan, LogicalPlan::TableScan(_)) {
        return Ok(Transformed::no(plan));
    }
    let schema = merge_schema(&plan.inputs());
    match plan {
        LogicalPlan::Filter(Filter { predicate, input, .. }) => {
            let conditions = split_conjunction_owned(predicate).into_iter();
            let conditions: Vec<Expr> = conditions.map(|c| written(c, &schema, true)).collect::<Result<_>>()?;
            Ok(Transformed::yes(Arc::unwrap_or_clone(stacked(conditions, input, &schema)?)))
        }
        LogicalPlan::Join(mut join) => {
            let Some(filter) = join.filter.take() else { return Ok(Transformed::no(LogicalPlan::Join(join))) };
            let mut conditions = Vec::new();
            for condition in split_conjunction_owned(filter) {
                let condition = written(condition, &schema, true)?;
                let must_wait = !conditions.is_empty() && can_fail(&condition, &schema) && !is_key(&condition);
                conditions.push(match must_wait {
                    true => {
                        chain(Operator::And, conditions.iter().cloned().chain([condition]).collect(), &schema, true)?
                    }
                    false => condition,
                });
            }
            join.filter = conjunction(conditions);
            Ok(Transformed::yes(LogicalPlan::Join(join)))
        }
        plan => {
            let plan = keeping_names(plan, |expr| Ok(Transformed::yes(written(expr, &schema, false)?)))?;
            plan.map_data(LogicalPlan::recompute_schema)
        }
    }
}

/// Stacks the conditions as filters. Those that can fail come above the others, in their order.
fn stacked(conditions: Vec<Expr>, input: Arc<LogicalPlan>, schema: &DFSchema) -> Result<Arc<LogicalPlan>> {
    let (last, first): (Vec<_>, Vec<_>) = conditions.into_iter().partition(|c| can_fail(c, schema) && !is_key(c));
    let filters = conjunction(first).into_iter().chain(last);
    filters
        .into_iter()
        .try_fold(input, |input, filter| Ok(Arc::new(LogicalPlan::Filter(Filter::try_new(filter, input)?))))
}

/// Returns whether a condition may become a join key. (A join evaluates each side of a key on all rows of that input.)
fn is_key(condition: &Expr) -> bool {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = condition else { return false };
    let (left, right) = (left.column_refs(), right.column_refs());
    let are_apart = left
        .iter()
        .all(|l| right.iter().all(|r| l.relation.is_some() && r.relation.is_some() && l.relation != r.relation));
    !left.is_empty() && !right.is_empty() && are_apart
}

/// Rewrites an expression with all its guards. `only_truth`: whether unknown counts as false.
fn written(expr: Expr, schema: &DFSchema, only_truth: bool) -> Result<Expr> {
    if !can_fail(&expr, schema) {
        return Ok(expr);
    }
    // Below anything else (NOT, IS FALSE, a comparison), unknown differs from false.
    let only_truth = only_truth
        && matches!(&expr, Expr::Case(_) | Expr::BinaryExpr(BinaryExpr { op: Operator::And | Operator::Or, .. }));
    let rewritten = expr.transform_down(|expr| {
        let done = |expr| Ok(Transformed::new(expr, true, TreeNodeRecursion::Jump));
        match expr {
            Expr::BinaryExpr(BinaryExpr { op: op @ (Operator::And | Operator::Or), .. }) => {
                done(written_chain(expr, op, schema, only_truth)?)
            }
            Expr::Case(case) => done(written_case(case, schema, only_truth)?),
            Expr::ScalarFunction(function) if function.name() == "coalesce" => {
                let can_fail = function.args.iter().skip(1).any(|arg| can_fail(arg, schema));
                let expr = Expr::ScalarFunction(function.clone());
                if !can_fail || expr.get_type(schema)? != DataType::Boolean {
                    return Ok(Transformed::no(expr));
                }
                done(written_coalesce(function.args, schema)?)
            }
            Expr::AggregateFunction(mut aggregate) => {
                let AggregateFunctionParams { args, filter, order_by, .. } = &mut aggregate.params;
                filter_written(filter, schema)?;
                guard_arguments(
                    args.iter_mut().chain(order_by.iter_mut().map(|by| &mut by.expr)),
                    filter.as_deref(),
                    schema,
                );
                Ok(Transformed::yes(Expr::AggregateFunction(aggregate)))
            }
            Expr::WindowFunction(mut window) => {
                let WindowFunctionParams { args, filter, .. } = &mut window.params;
                filter_written(filter, schema)?;
                guard_arguments(args.iter_mut(), filter.as_deref(), schema);
                Ok(Transformed::yes(Expr::WindowFunction(window)))
            }
            other => Ok(Transformed::no(other)),
        }
    });
    rewritten.data()
}

/// Rewrites a chain of AND or OR.
fn written_chain(expr: Expr, op: Operator, schema: &DFSchema, only_truth: bool) -> Result<Expr> {
    let waits = !expr.is_volatile();
    let parts = split(expr, op);
    let waits = waits && parts.iter().skip(1).any(|part| can_fail(part, schema));
    let parts: Vec<Expr> = parts.into_iter().map(|part| written(part, schema, only_truth)).collect::<Result<_>>()?;
    if waits { chain(op, parts, schema, only_truth) } else { Ok(joined(op, parts)) }
}

/// Rewrites a CASE. If it is boolean and guards an expression that can fail, DataFusion must not take it apart.
fn written_case(case: Case, schema: &DFSchema, only_truth: bool) -> Result<Expr> {
    let Case { expr, when_then_expr, else_expr } = case;
    let (guards, then): (Vec<_>, Vec<_>) = when_then_expr.iter().map(|(when, then)| (when, then)).unzip();
    let guarded = guards.into_iter().skip(1).chain(then).chain(&else_expr);
    let is_guard = guarded.into_iter().any(|part| can_fail(part, schema));
    let is_bool =
        when_then_expr.first().is_some_and(|(_, then)| then.get_type(schema).is_ok_and(|of| of == DataType::Boolean));
    let part = |part: Box<Expr>, only_truth| written(*part, schema, only_truth).map(Box::new);
    let is_searched = expr.is_none();
    let case = Case {
        expr: expr.map(|expr| part(expr, false)).transpose()?,
        when_then_expr: when_then_expr
            .into_iter()
            .map(|(when, then)| Ok((part(when, is_searched)?, part(then, only_truth)?)))
            .collect::<Result<_>>()?,
        else_expr: else_expr.map(|expr| part(expr, only_truth)).transpose()?,
    };
    Ok(if is_guard && is_bool { hidden(case) } else { Expr::Case(case) })
}

/// Rewrites a boolean coalesce as a CASE.
fn written_coalesce(args: Vec<Expr>, schema: &DFSchema) -> Result<Expr> {
    let mut args = args.into_iter().map(|arg| written(arg, schema, false)).collect::<Result<Vec<_>>>()?;
    let last = args.pop().map(Box::new);
    let branches = args.into_iter().map(|arg| (Box::new(arg.clone().is_not_null()), Box::new(arg))).collect();
    Ok(hidden(Case::new(None, branches, last)))
}

fn filter_written(filter: &mut Option<Box<Expr>>, schema: &DFSchema) -> Result<()> {
    *filter = filter.take().map(|filter| written(*filter, schema, true).map(Box::new)).transpose()?;
    Ok(())
}

/// Wraps the arguments of an aggregate, so that they are evaluated only where its filter holds.
fn guard_arguments<'a>(arguments: impl Iterator<Item = &'a mut Expr>, filter: Option<&Expr>, schema: &DFSchema) {
    let Some(filter) = filter.filter(|filter| !filter.is_volatile()) else { return };
    for argument in arguments.filter(|argument| can_fail(argument, schema)) {
        let guarded = vec![(Box::new(filter.clone()), Box::new(std::mem::take(argument)))];
        *argument = Expr::Case(Case::new(None, guarded, None));
    }
}

/// Returns the operands of a chain of one operator, in order. (A loop needs no deep stack for a chain of thousands.)
pub(super) fn split(expr: Expr, by: Operator) -> Vec<Expr> {
    let (mut open, mut parts) = (vec![expr], Vec::new());
    while let Some(next) = open.pop() {
        match next {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if op == by => open.extend([*right, *left]),
            part => parts.push(part),
        }
    }
    parts
}

pub(super) fn joined(op: Operator, parts: Vec<Expr>) -> Expr {
    let binary = |left, right| Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)));
    parts.into_iter().reduce(binary).unwrap_or_else(|| lit(op == Operator::And))
}

/// Builds AND or OR of parts. A part is evaluated only where the parts before it leave the answer open.
fn chain(op: Operator, parts: Vec<Expr>, schema: &DFSchema, only_truth: bool) -> Result<Expr> {
    if !only_truth {
        let mut nodes = 0_usize;
        for part in &parts {
            part.apply(|_| {
                nodes += 1;
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        // The code below writes each part twice.
        if nodes > NODES_MAX {
            return Err(
                UserError("a condition is nested too deep; write its parts into a WITH query".to_owned()).into()
            );
        }
    }
    let is_and = op == Operator::And;
    let branch =
        |when: Expr, then: Option<bool>| (Box::new(when), Box::new(lit(ScalarValue::Int8(then.map(i8::from)))));
    let mut branches = Vec::new();
    for part in &parts {
        branches.push(match (is_and, only_truth) {
            (true, true) => branch(part.clone().is_not_true(), Some(false)),
            (true, false) => branch(not(part.clone()), Some(false)),
            (false, _) => branch(part.clone(), Some(true)),
        });
    }
    if !only_truth {
        for part in parts.into_iter().filter(|part| part.nullable(schema).unwrap_or(true)) {
            branches.push(branch(part.is_null(), None));
        }
    }
    let last = Box::new(lit(ScalarValue::Int8(Some(i8::from(is_and)))));
    Ok(cast(Expr::Case(Case::new(None, branches, Some(last))), DataType::Boolean))
}

/// Rewrites a boolean CASE as a CASE of numbers, which DataFusion does not take apart.
fn hidden(case: Case) -> Expr {
    let number = |expr: Box<Expr>| Box::new(cast(*expr, DataType::Int8));
    let branches = case.when_then_expr.into_iter().map(|(when, then)| (when, number(then))).collect();
    cast(Expr::Case(Case::new(case.expr, branches, case.else_expr.map(number))), DataType::Boolean)
}

/// Filter pushdown as in DataFusion, except that filters that can fail stay above the nodes they were written above.
#[derive(Debug, Default)]
pub(crate) struct PushDownSafeFilter(PushDownFilter);

impl OptimizerRule for PushDownSafeFilter {
    fn name(&self) -> &str {
        "push_down_filter"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Filter(filter) = plan else { return self.0.rewrite(plan, config) };
        let (stay, move_on) = parted(&filter);
        if let LogicalPlan::Filter(below) = filter.input.as_ref() {
            let (stay_below, move_below) = parted(below);
            if (stay.is_empty() && stay_below.is_empty()) || move_on.is_empty() {
                return match move_on.is_empty() {
                    true => Ok(Transformed::no(LogicalPlan::Filter(filter))),
                    false => self.0.rewrite(LogicalPlan::Filter(filter), config),
                };
            }
            let filters =
                [conjunction(move_below.into_iter().chain(move_on)), conjunction(stay_below), conjunction(stay)];
            return Ok(Transformed::yes(Arc::unwrap_or_clone(above(
                filters.into_iter().flatten(),
                below.input.clone(),
            )?)));
        }
        match (stay.is_empty(), conjunction(move_on)) {
            (true, _) => self.0.rewrite(LogicalPlan::Filter(filter), config),
            (false, None) => Ok(Transformed::no(LogicalPlan::Filter(filter))),
            (false, Some(move_on)) => {
                let moved = self.0.rewrite(LogicalPlan::Filter(Filter::try_new(move_on, filter.input)?), config)?.data;
                Ok(Transformed::yes(Arc::unwrap_or_clone(above(stay, Arc::new(moved))?)))
            }
        }
    }
}

fn above(filters: impl IntoIterator<Item = Expr>, input: Arc<LogicalPlan>) -> Result<Arc<LogicalPlan>> {
    let filter = |input, filter| Ok(Arc::new(LogicalPlan::Filter(Filter::try_new(filter, input)?)));
    filters.into_iter().try_fold(input, filter)
}

/// Splits the conditions into those that stay and those that may move down.
fn parted(filter: &Filter) -> (Vec<Expr>, Vec<Expr>) {
    let schema = filter.input.schema();
    // Further down, a computed column becomes its expression again. If that can fail, the condition stays.
    let computed: &[Expr] = match filter.input.as_ref() {
        LogicalPlan::Projection(projection) => &projection.expr,
        LogicalPlan::Aggregate(aggregate) => &aggregate.group_expr,
        _ => &[],
    };
    let below: Vec<&Arc<DFSchema>> = filter.input.inputs().iter().map(|input| input.schema()).collect();
    let fails = |expr: &Expr| below.first().is_some_and(|schema| can_fail(expr, schema));
    let failing: Vec<usize> = (0..computed.len()).filter(|&n| fails(&computed[n])).collect();
    let stays = |condition: &Expr| {
        let touches = || {
            condition
                .column_refs()
                .iter()
                .any(|c| schema.maybe_index_of_column(c).is_some_and(|n| failing.contains(&n)))
        };
        (can_fail(condition, schema) && !is_key(condition)) || (!failing.is_empty() && touches())
    };
    split_conjunction_owned(filter.predicate.clone()).into_iter().partition(stays)
}
