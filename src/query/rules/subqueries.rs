//! Evaluates subqueries used as conditions in three-valued logic, wherever they stand.
//!
//! DataFusion answers `x IN (…)` correctly where it alone decides whether a row stays: there it becomes a join. Inside
//! another expression, DataFusion uses a mark, which is true or false, and so takes unknown for false. Outside of
//! filters, DataFusion does not answer such conditions. So this rule rewrites them before DataFusion plans them:
//!
//! ```text
//! x IN (S)      CASE WHEN EXISTS (S with y = x) THEN true
//!                    WHEN EXISTS (S with y IS NULL) OR (x IS NULL AND EXISTS (S)) THEN NULL  ELSE false END
//! EXISTS (S)    without outer columns: a scalar subquery, evaluated once
//!               with outer columns: the mark of a join below; in filters DataFusion makes it
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, JoinType, Result, Spans};
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::expr::{Case, Exists, InSubquery};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::logical_plan::{Aggregate, Join, Projection, Sort, Subquery, Window};
use datafusion::logical_expr::utils::{conjunction, merge_schema, split_conjunction_owned};
use datafusion::logical_expr::{Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder, lit, not};
use datafusion::optimizer::AnalyzerRule;
use datafusion::optimizer::decorrelate::PullUpCorrelatedExpr;
use datafusion::scalar::ScalarValue;

/// The analyzer rule that rewrites these subqueries. Runs after types are coerced.
#[derive(Debug, Default)]
pub(crate) struct Subqueries;

impl AnalyzerRule for Subqueries {
    fn name(&self) -> &str {
        "subqueries"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            if asks(&plan)? { answered(plan).map(Transformed::yes) } else { Ok(Transformed::no(plan)) }
        })
        .data()
    }
}

fn asks(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_expressions(|expr| {
        if has_lost_sets(expr)? {
            return unsupported("a subquery with grouping sets about columns of the outer query");
        }
        found |= is_asked(expr);
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Returns whether a correlated subquery has grouping sets, which are lost in a join (apache/datafusion#25519).
fn has_lost_sets(expr: &Expr) -> Result<bool> {
    let is_set = |expr: &Expr| matches!(expr, Expr::GroupingSet(_));
    let has_set = |plan: &LogicalPlan| match plan {
        LogicalPlan::Aggregate(aggregate) => Ok(aggregate.group_expr.iter().any(is_set)),
        _ => Ok(false),
    };
    expr.exists(|part| match part {
        Expr::Exists(Exists { subquery, .. })
        | Expr::InSubquery(InSubquery { subquery, .. })
        | Expr::ScalarSubquery(subquery) => {
            Ok(!subquery.outer_ref_columns.is_empty() && subquery.subquery.exists(has_set)?)
        }
        _ => Ok(false),
    })
}

fn is_question(expr: &Expr) -> bool {
    matches!(expr, Expr::Exists(_) | Expr::InSubquery(_))
}

fn is_asked(expr: &Expr) -> bool {
    expr.exists(|expr| Ok(is_question(expr))).unwrap_or(true)
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(DataFusionError::NotImplemented(format!("{what} is not supported here; write it as a join, or in WHERE")))
}

/// Returns a unique name.
fn name(kind: &str) -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    format!("__{kind}_{}", LAST.fetch_add(1, Ordering::Relaxed))
}

fn answered(plan: LogicalPlan) -> Result<LogicalPlan> {
    let schema = merge_schema(&plan.inputs());
    match plan {
        LogicalPlan::Filter(filter) => {
            let conditions = split_conjunction_owned(filter.predicate).into_iter();
            let conditions = conditions.map(|c| if is_join(&c) { Ok(c) } else { of_three_values(c, &schema) });
            let predicate = conjunction(conditions.collect::<Result<Vec<_>>>()?).unwrap_or_else(|| lit(true));
            Ok(LogicalPlan::Filter(Filter::try_new(predicate, filter.input)?))
        }
        LogicalPlan::Projection(projection) => answered_projection(projection, &schema),
        LogicalPlan::Aggregate(Aggregate { input, group_expr, aggr_expr, .. }) => {
            let mut below = Below::new(&input);
            let groups = group_expr.into_iter().map(|group| match is_asked(&group) {
                true if matches!(group, Expr::GroupingSet(_)) => unsupported("a subquery in a grouping set"),
                true => Ok(below.whole(group)),
                false => Ok(group),
            });
            let groups = groups.collect::<Result<_>>()?;
            let aggregates = aggr_expr.into_iter().map(|expr| below.parts(expr)).collect::<Result<_>>()?;
            Ok(LogicalPlan::Aggregate(Aggregate::try_new(below.build(input)?, groups, aggregates)?))
        }
        LogicalPlan::Window(Window { input, window_expr, .. }) => {
            let mut below = Below::new(&input);
            let columns = columns(&input);
            let windows: Vec<Expr> = window_expr.into_iter().map(|expr| below.parts(expr)).collect::<Result<_>>()?;
            let windows_only: Vec<Expr> = windows
                .iter()
                .map(Expr::qualified_name)
                .map(|(relation, name)| Expr::Column(Column::new(relation, name)))
                .collect();
            let plan = LogicalPlan::Window(Window::try_new(windows, below.build(input)?)?);
            project(plan, columns.into_iter().chain(windows_only))
        }
        LogicalPlan::Sort(Sort { mut expr, input, fetch }) => {
            let columns = columns(&input);
            let asked = expr.iter().flat_map(|by| questions(&by.expr)).flat_map(|question| about(&question));
            let input = with_columns(input, asked)?;
            let mut below = Below::new(&input);
            for by in &mut expr {
                by.expr = below.parts(std::mem::take(&mut by.expr))?;
            }
            project(LogicalPlan::Sort(Sort { expr, input: below.build(input)?, fetch }), columns)
        }
        LogicalPlan::Join(join) => answered_join(join),
        _ => unsupported("a subquery"),
    }
}

/// Answers the subqueries of a projection by marks of joins below it.
fn answered_projection(Projection { expr, input, .. }: Projection, schema: &DFSchema) -> Result<LogicalPlan> {
    let names = NamePreserver::new_for_projection();
    let (mut below, mut projected) = (Arc::unwrap_or_clone(input), Vec::new());
    for expr in expr {
        let name = names.save(&expr);
        let expr = of_three_values(expr, schema)?;
        let expr = expr.transform_up(|expr| match expr {
            Expr::Exists(exists) => {
                let marked = mark(below.clone(), &exists)?;
                below = marked.0;
                Ok(Transformed::yes(marked.1))
            }
            other => Ok(Transformed::no(other)),
        });
        projected.push(name.restore(expr.data()?));
    }
    Ok(LogicalPlan::Projection(Projection::try_new(projected, Arc::new(below))?))
}

/// Moves subquery conditions of a join above the join, or below it to the side whose columns they use.
fn answered_join(mut join: Join) -> Result<LogicalPlan> {
    let columns = columns_of(&join.schema);
    let (asked, plain): (Vec<_>, Vec<_>) =
        join.filter.take().map_or_else(Vec::new, split_conjunction_owned).into_iter().partition(is_asked);
    if join.join_type == JoinType::Inner {
        join.filter = conjunction(plain);
        let filter =
            Filter::try_new(conjunction(asked).unwrap_or_else(|| lit(true)), Arc::new(LogicalPlan::Join(join)))?;
        return answered(LogicalPlan::Filter(filter));
    }
    let (mut left, mut right, mut conditions) = (Below::new(&join.left), Below::new(&join.right), plain);
    for condition in asked {
        let rewritten = condition.transform_down(|expr| {
            if !is_question(&expr) {
                return Ok(Transformed::no(expr));
            }
            let about = about(&expr);
            let is_of = |side: &LogicalPlan| about.iter().all(|column| side.schema().has_column(column));
            let side = match (is_of(&join.left), is_of(&join.right)) {
                (true, _) => &mut left,
                (_, true) => &mut right,
                _ => return unsupported("a subquery about both sides of an outer join"),
            };
            Ok(Transformed::new(side.part(expr), true, TreeNodeRecursion::Jump))
        });
        conditions.push(rewritten.data()?);
    }
    let (left, right) = (left.build(join.left)?, right.build(join.right)?);
    let joined = Join::try_new(
        left,
        right,
        join.on,
        conjunction(conditions),
        join.join_type,
        join.join_constraint,
        join.null_equality,
        join.null_aware,
    )?;
    project(LogicalPlan::Join(joined), columns)
}

/// Returns the columns of the outer query that a subquery condition uses.
fn about(question: &Expr) -> Vec<Column> {
    let (subquery, expr) = match question {
        Expr::InSubquery(InSubquery { subquery, expr, .. }) => (subquery, Some(expr)),
        Expr::Exists(Exists { subquery, .. }) => (subquery, None),
        _ => return Vec::new(),
    };
    let outer = subquery.outer_ref_columns.iter().filter_map(|expr| match expr {
        Expr::OuterReferenceColumn(_, column) => Some(column.clone()),
        _ => None,
    });
    outer.chain(expr.iter().flat_map(|expr| expr.column_refs()).cloned()).collect()
}

fn questions(expr: &Expr) -> Vec<Expr> {
    let mut found = Vec::new();
    let _ = expr.apply(|part| {
        found.extend(is_question(part).then(|| part.clone()));
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

/// Adds the wanted columns that a projection left out.
fn with_columns(plan: Arc<LogicalPlan>, wanted: impl Iterator<Item = Column>) -> Result<Arc<LogicalPlan>> {
    let LogicalPlan::Projection(projection) = plan.as_ref() else { return Ok(plan) };
    let missing =
        wanted.filter(|column| !plan.schema().has_column(column) && projection.input.schema().has_column(column));
    let missing: BTreeSet<Column> = missing.collect();
    let exprs = projection.expr.iter().cloned().chain(missing.into_iter().map(Expr::Column));
    Ok(Arc::new(LogicalPlan::Projection(Projection::try_new(exprs.collect(), projection.input.clone())?)))
}

fn columns_of(schema: &DFSchema) -> Vec<Expr> {
    schema.columns().into_iter().map(Expr::Column).collect()
}

fn columns(plan: &LogicalPlan) -> Vec<Expr> {
    columns_of(plan.schema())
}

fn project(plan: LogicalPlan, exprs: impl IntoIterator<Item = Expr>) -> Result<LogicalPlan> {
    Ok(LogicalPlan::Projection(Projection::try_new(exprs.into_iter().collect(), Arc::new(plan))?))
}

/// A projection below a node, which answers the node's subquery conditions.
struct Below {
    exprs: Vec<Expr>,
    is_needed: bool,
}

impl Below {
    fn new(input: &LogicalPlan) -> Self {
        Self { exprs: columns(input), is_needed: false }
    }

    fn push(&mut self, expr: Expr, name: String) -> Expr {
        self.is_needed = true;
        self.exprs.push(expr.alias(name.clone()));
        Expr::Column(Column::new_unqualified(name))
    }

    /// Moves a whole expression into the projection, under the expression's name.
    fn whole(&mut self, expr: Expr) -> Expr {
        let name = expr.schema_name().to_string();
        self.push(expr, name)
    }

    fn part(&mut self, question: Expr) -> Expr {
        self.push(question, name("asked"))
    }

    /// Moves the subquery conditions of an expression into the projection; the expression keeps its name.
    fn parts(&mut self, expr: Expr) -> Result<Expr> {
        let name = NamePreserver::new_for_projection().save(&expr);
        let expr = expr.transform_down(|expr| match is_question(&expr) {
            true => Ok(Transformed::new(self.part(expr), true, TreeNodeRecursion::Jump)),
            false => Ok(Transformed::no(expr)),
        });
        Ok(name.restore(expr.data()?))
    }

    fn build(self, input: Arc<LogicalPlan>) -> Result<Arc<LogicalPlan>> {
        if !self.is_needed {
            return Ok(input);
        }
        answered(LogicalPlan::Projection(Projection::try_new(self.exprs, input)?)).map(Arc::new)
    }
}

/// Returns whether the condition becomes a join that answers correctly; in a filter, unknown counts as false. (NOT IN
/// does not: a join that knows NULLs is correct only for a single key that is a column.)
fn is_join(condition: &Expr) -> bool {
    let (condition, is_negated) = match condition {
        Expr::Not(inner) => (inner.as_ref(), true),
        other => (other, false),
    };
    match condition {
        Expr::Exists(Exists { subquery, .. }) => !is_one_row(&subquery.subquery),
        Expr::InSubquery(asked) => {
            asked.negated == is_negated && !is_asked(&asked.expr) && !is_one_row(&asked.subquery.subquery)
        }
        _ => !is_asked(condition),
    }
}

/// Replaces each IN by its three-valued answer, and evaluates each EXISTS without outer columns once.
fn of_three_values(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    let rewritten = expr.transform_up(|expr| match expr {
        Expr::InSubquery(asked) => Ok(Transformed::yes(known(asked, schema)?)),
        Expr::Exists(Exists { subquery, negated }) if is_one_row(&subquery.subquery) => {
            Ok(Transformed::yes(lit(!negated)))
        }
        Expr::Exists(Exists { subquery, negated }) if subquery.outer_ref_columns.is_empty() => {
            let any = any(Arc::unwrap_or_clone(subquery.subquery))?;
            Ok(Transformed::yes(if negated { not(any) } else { any }))
        }
        other => Ok(Transformed::no(other)),
    });
    rewritten.data()
}

/// Returns whether a subquery always has one row. As a join, it would have no row where the outer row has no match.
fn is_one_row(rows: &LogicalPlan) -> bool {
    match rows {
        LogicalPlan::Projection(projection) => is_one_row(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => is_one_row(&alias.input),
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
        _ => false,
    }
}

fn known(asked: InSubquery, schema: &DFSchema) -> Result<Expr> {
    let InSubquery { expr, subquery, negated } = asked;
    if expr.contains_outer() || expr.exists(|part| Ok(matches!(part, Expr::ScalarSubquery(_))))? {
        return unsupported("IN of a subquery");
    }
    if is_one_row(&subquery.subquery) {
        let value = Expr::ScalarSubquery(subquery);
        return Ok(if negated { (*expr).not_eq(value) } else { (*expr).eq(value) });
    }
    // The column gets a unique name, because the outer query may have a column of the same name.
    let rows = Arc::unwrap_or_clone(subquery.subquery);
    let alias = name("in");
    let value = Expr::Column(Column::from(rows.schema().qualified_field(0))).alias(alias.clone());
    let rows = project(rows, [value])?;
    let value = Expr::Column(Column::new_unqualified(alias));
    let mut outer = subquery.outer_ref_columns.clone();
    let inside = (*expr).clone().transform_up(|part| match part {
        Expr::Column(column) => {
            let field = schema.qualified_field_from_column(&column)?.1.clone();
            let column = Expr::OuterReferenceColumn(field, column);
            if !outer.contains(&column) {
                outer.push(column.clone());
            }
            Ok(Transformed::yes(column))
        }
        other => Ok(Transformed::no(other)),
    });
    let with = |condition: Expr| LogicalPlanBuilder::from(rows.clone()).filter(condition)?.build();
    let exists = |rows: LogicalPlan, outer: Vec<Expr>| match outer.is_empty() {
        true => any(rows),
        false => Ok(Expr::Exists(Exists {
            subquery: Subquery { subquery: Arc::new(rows), outer_ref_columns: outer, spans: Spans::new() },
            negated: false,
        })),
    };
    let then = |known: Option<bool>| Box::new(lit(ScalarValue::Boolean(known)));
    let matched = exists(with(value.clone().eq(inside.data()?))?, outer)?;
    let mut branches = vec![(Box::new(matched), then(Some(!negated)))];
    if value.nullable(rows.schema())? {
        let has_null = exists(with(value.is_null())?, subquery.outer_ref_columns.clone())?;
        branches.push((Box::new(has_null), then(None)));
    }
    if expr.nullable(schema)? {
        let has_row = exists(rows.clone(), subquery.outer_ref_columns)?;
        branches.push((Box::new(expr.is_null().and(has_row)), then(None)));
    }
    Ok(Expr::Case(Case::new(None, branches, Some(then(Some(negated))))))
}

/// Builds a condition that holds if there is any row. It is evaluated once.
fn any(rows: LogicalPlan) -> Result<Expr> {
    let number = count(lit(1_i64)).alias("n");
    let counted = LogicalPlanBuilder::from(rows).limit(0, Some(1))?.aggregate(Vec::<Expr>::new(), vec![number])?;
    let any = counted.project(vec![Expr::Column(Column::new_unqualified("n")).gt(lit(0_i64)).alias("any")])?.build()?;
    Ok(Expr::ScalarSubquery(Subquery { subquery: Arc::new(any), outer_ref_columns: Vec::new(), spans: Spans::new() }))
}

/// Joins a mark to each row for which the subquery has rows. Returns the plan and the mark.
fn mark(plan: LogicalPlan, exists: &Exists) -> Result<(LogicalPlan, Expr)> {
    let mut pulled = PullUpCorrelatedExpr::new().with_exists_sub_query(true);
    let rows = exists.subquery.subquery.as_ref().clone().rewrite(&mut pulled).data()?;
    let Some(condition) =
        conjunction(pulled.join_filters).filter(|_| pulled.can_pull_up && pulled.pull_up_having_expr.is_none())
    else {
        return unsupported("a subquery of this form about columns of the outer query");
    };
    let alias = name("exists");
    let rows = LogicalPlanBuilder::from(rows).alias(alias.as_str())?.build()?;
    let own: BTreeSet<Column> = pulled.correlated_subquery_cols_map.into_values().flatten().collect();
    let condition = condition.transform_up(|expr| match expr {
        Expr::Column(column) if own.contains(&column) => {
            Ok(Transformed::yes(Expr::Column(Column::new(Some(alias.as_str()), column.name))))
        }
        other => Ok(Transformed::no(other)),
    });
    let condition = condition.data()?;
    let is_known = |column: &&Column| plan.schema().has_column(column) || rows.schema().has_column(column);
    if !condition.column_refs().iter().all(is_known) || pulled.pulled_up_scalar_agg {
        return unsupported("a subquery of this form about columns of the outer query");
    }
    let needed: Vec<Expr> = columns(&rows)
        .into_iter()
        .filter(|column| matches!(column, Expr::Column(c) if condition.column_refs().contains(c)))
        .collect();
    let rows = LogicalPlanBuilder::from(rows).project(needed)?.build()?;
    let plan = LogicalPlanBuilder::from(plan).join_on(rows, JoinType::LeftMark, [condition])?.build()?;
    let mark = Expr::Column(Column::new(Some(alias), "mark"));
    Ok((plan, if exists.negated { not(mark) } else { mark }))
}
