//! Each list of values stands for itself.
//!
//! DataFusion puts two lists of one column together by how their values are written: `a not in ('q') and a in (b)` becomes
//! `a in (b)`, which is another condition where `b` is `'q'`, and so is `false` in place of unknown what two lists have not in
//! common. So no two lists of a plan are about the same expression: all but the first are about a `same(a)` of their own.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::{Alias, InList, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, LogicalPlan, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::optimizer::AnalyzerRule;

use super::guarded::{joined, split};

/// The name of the function that gives what it is given.
pub(super) const SAME: &str = "same";

#[derive(Debug, PartialEq, Eq, Hash)]
struct Same {
    /// Two of different numbers are two functions.
    number: usize,
    signature: Signature,
}

impl ScalarUDFImpl for Same {
    fn name(&self) -> &str {
        SAME
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        args.first().map(|of| of.schema_name().to_string()).ok_or_else(nothing)
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(nothing)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        args.args.into_iter().next().ok_or_else(nothing)
    }
}

fn nothing() -> DataFusionError {
    DataFusionError::Internal("nothing is given".to_owned())
}

/// The analyzer rule that keeps lists apart. It runs after types are coerced.
#[derive(Debug)]
pub(crate) struct Lists;

impl AnalyzerRule for Lists {
    fn name(&self) -> &str {
        "lists"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let mut apart = Apart { seen: HashSet::new(), has_other_names: false, made: 0 };
        // Nothing but an order stands above the names that the result has.
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
        plan.transform_up_with_subqueries(|plan| {
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                Ok(Transformed::yes(name.restore(apart.kept(expr)?)))
            })
        })
        .data()
    }
}

struct Apart {
    /// What lists are about already.
    seen: HashSet<String>,
    /// Whether a column has several names in the plan, so that a name tells nothing.
    has_other_names: bool,
    /// How often the function was called for.
    made: usize,
}

impl Apart {
    fn same(&mut self, of: Expr) -> Expr {
        self.made += 1;
        let signature = Signature::any(1, Volatility::Immutable);
        let udf = ScalarUDF::new_from_impl(Same { number: self.made, signature });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![of]))
    }

    fn key(&self, of: &Expr) -> String {
        match of {
            Expr::Column(column) if !self.has_other_names => column.name.clone(),
            _ => String::new(),
        }
    }

    fn kept(&mut self, expr: Expr) -> Result<Expr> {
        expr.transform_down(|expr| match expr {
            Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) => {
                // What is made one list of is one.
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

    /// What one part of an OR is about.
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
    matches!((left, right), (Expr::Column(_), Expr::Literal(..)) | (Expr::Literal(..), Expr::Column(_)))
}
