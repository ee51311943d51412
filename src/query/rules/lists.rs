//! Keeps value lists about one column apart, so that DataFusion does not merge them.
//!
//! DataFusion merges two lists about one column by the text of their values: `a not in ('q') and a in (b)` becomes `a
//! in (b)`. That differs where `b` is `'q'`. Lists with no value in common become `false`, where the answer may be
//! unknown.
//!
//! So no two lists of a plan have the same operand: each list but the first has its own `same(a)`.

use std::collections::HashSet;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Alias, InList};
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, LogicalPlan, Operator, TryCast};
use datafusion::optimizer::AnalyzerRule;

use super::guarded::{joined, split};
use super::identity::{self, Reason};
use super::keeping_names;

/// The analyzer rule that keeps lists apart. Runs after types are coerced.
#[derive(Debug)]
pub(crate) struct Lists;

impl AnalyzerRule for Lists {
    fn name(&self) -> &str {
        "lists"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let mut apart = Apart { seen: HashSet::new(), has_other_names: false, made: 0 };
        // Only an order stands above the projection that names the result's columns, so its aliases do not matter.
        let mut is_result = true;
        plan.apply_with_subqueries(|plan| {
            if matches!(plan, LogicalPlan::Projection(_)) && std::mem::take(&mut is_result) {
                return Ok(TreeNodeRecursion::Continue);
            }
            plan.apply_expressions(|expr| {
                expr.apply(|part| {
                    apart.has_other_names |= matches!(
                        part,
                        Expr::Alias(Alias { expr, name, .. }) if matches!(expr.as_ref(), Expr::Column(of) if of.name != *name)
                    );
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        })?;
        plan.transform_up_with_subqueries(|plan| keeping_names(plan, |expr| Ok(Transformed::yes(apart.kept(expr)?))))
            .data()
    }
}

struct Apart {
    /// Keys of the operands of earlier lists.
    seen: HashSet<String>,
    /// Whether a column has several names in the plan. Then a name does not identify a column.
    has_other_names: bool,
    /// Number of `same` calls made.
    made: usize,
}

impl Apart {
    fn same(&mut self, of: Expr) -> Expr {
        self.made += 1;
        identity::same(of, Reason::Apart(self.made))
    }

    fn key(&self, of: &Expr) -> String {
        match of {
            Expr::Column(column) if !self.has_other_names => column.name.clone(),
            // The optimizer may remove the cast, as that of a partition column.
            Expr::Cast(Cast { expr, .. }) | Expr::TryCast(TryCast { expr, .. }) => self.key(expr),
            _ => String::new(),
        }
    }

    fn kept(&mut self, expr: Expr) -> Result<Expr> {
        expr.transform_down(|expr| match expr {
            Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) => {
                // Parts that DataFusion merges into one list count as one list.
                let (mut keys, mut parts) = (Vec::new(), Vec::new());
                for part in split(expr, Operator::Or) {
                    parts.push(match part {
                        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right })
                            if is_of_column(&left, &right) =>
                        {
                            let [left, right] = [left, right].map(|side| self.part(*side, &mut keys));
                            Expr::BinaryExpr(BinaryExpr::new(Box::new(left), Operator::Eq, Box::new(right)))
                        }
                        Expr::InList(InList { expr, list, negated: false }) => {
                            let expr = Box::new(self.part(*expr, &mut keys));
                            Expr::InList(InList { expr, list, negated: false })
                        }
                        other => self.kept(other)?,
                    });
                }
                self.seen.extend(keys);
                Ok(Transformed::new(joined(Operator::Or, parts), true, TreeNodeRecursion::Jump))
            }
            Expr::InList(InList { expr, list, negated }) => {
                let expr = match self.seen.insert(self.key(&expr)) {
                    true => expr,
                    false => Box::new(self.same(*expr)),
                };
                Ok(Transformed::yes(Expr::InList(InList { expr, list, negated })))
            }
            other => Ok(Transformed::no(other)),
        })
        .data()
    }

    /// Returns the operand of one part of an OR, wrapped if an earlier list has it.
    fn part(&mut self, of: Expr, keys: &mut Vec<String>) -> Expr {
        if matches!(of, Expr::Literal(..)) {
            return of;
        }
        let key = self.key(&of);
        let is_seen = self.seen.contains(&key);
        keys.push(key);
        if is_seen { self.same(of) } else { of }
    }
}

fn is_of_column(left: &Expr, right: &Expr) -> bool {
    matches!((left, right), (side, Expr::Literal(..)) | (Expr::Literal(..), side) if is_column(side))
}

/// Returns whether an expression is a column, perhaps cast.
fn is_column(expr: &Expr) -> bool {
    match expr {
        Expr::Cast(Cast { expr, .. }) | Expr::TryCast(TryCast { expr, .. }) => is_column(expr),
        other => matches!(other, Expr::Column(_)),
    }
}
