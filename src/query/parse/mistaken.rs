//! Syntax that DataFusion understands differently from other databases: rewritten to its usual meaning, or refused.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident,
    Query, SelectItem, SetExpr, SetOperator, SetQuantifier, Statement, Value, ValueWithSpan, VisitMut, VisitorMut,
};

use crate::query::rules::recursive;

type Found = ControlFlow<Box<str>>;

/// Rewrites a statement so that DataFusion understands it correctly.
///
/// # Errors
/// The misunderstood syntax that cannot be rewritten, and what to write instead.
pub(super) fn mend(statement: &mut Statement) -> Result<(), String> {
    match VisitMut::visit(statement, &mut Mender) {
        ControlFlow::Break(found) => Err(found.into()),
        ControlFlow::Continue(()) => Ok(()),
    }
}

fn refused(message: impl Into<Box<str>>) -> Found {
    ControlFlow::Break(message.into())
}

struct Mender;

impl VisitorMut for Mender {
    type Break = Box<str>;

    fn pre_visit_query(&mut self, query: &mut Query) -> Found {
        if let Some(with) = query.with.as_mut().filter(|with| with.recursive) {
            with.cte_tables.iter_mut().for_each(|cte| mark(&mut cte.query.body));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> Found {
        // In ANY and ALL, the planner takes a column of the outer query for the subquery's column of the same name.
        let (left, op, right, negated) = match expr {
            Expr::AnyOp { left, compare_op, right, .. } => (left, compare_op, right, false),
            Expr::AllOp { left, compare_op, right } => (left, compare_op, right, true),
            _ => return ControlFlow::Continue(()),
        };
        let mut inner = right.as_mut();
        while let Expr::Nested(nested) = inner {
            inner = nested;
        }
        let Expr::Subquery(subquery) = inner else { return ControlFlow::Continue(()) };
        match (op, negated) {
            (BinaryOperator::Eq, false) | (BinaryOperator::NotEq, true) => {}
            (op, negated) => {
                let word = if negated { "ALL" } else { "ANY" };
                let of = match (&op, negated) {
                    (BinaryOperator::Lt | BinaryOperator::LtEq, false)
                    | (BinaryOperator::Gt | BinaryOperator::GtEq, true) => "max",
                    _ => "min",
                };
                return refused(format!(
                    "{op} {word} (SELECT …) is not possible; write {op} (SELECT {of}(…) …), and handle NULLs and \
                     empty results"
                ));
            }
        }
        let placeholder = Box::new(Expr::Value(Value::Null.into()));
        let (expr_of, subquery) = (std::mem::replace(left, placeholder), subquery.clone());
        *expr = Expr::InSubquery { expr: expr_of, subquery, negated };
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut datafusion::sql::sqlparser::ast::Select) -> Found {
        let mut names = HashSet::new();
        for (at, item) in select.projection.iter_mut().enumerate() {
            match item {
                SelectItem::UnnamedExpr(expr) => {
                    if names.insert(planned_name(expr)) {
                        continue;
                    }
                    // The planner refuses two columns of one name, and it names a cast after its operand.
                    let mut name = expr.to_string();
                    if !names.insert(name.clone()) {
                        name = format!("{name}:{}", at + 1);
                        names.insert(name.clone());
                    }
                    let placeholder = Expr::Value(Value::Null.into());
                    let expr = std::mem::replace(expr, placeholder);
                    *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
                }
                SelectItem::ExprWithAlias { expr, alias } => {
                    let is_number = matches!(expr, Expr::Value(ValueWithSpan { value: Value::Number(..), .. }));
                    if alias.quote_style == Some('\'') {
                        return refused(format!(
                            "{expr} {alias}: adjacent strings are not joined; write ||, or put a name into \" \""
                        ));
                    }
                    if is_number && alias.quote_style.is_none() && alias.value.starts_with('_') {
                        return refused(format!("{expr}{alias} is no number; write it without _"));
                    }
                    names.insert(alias.value.clone());
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }
}

/// Marks the columns of the second part of a recursive query.
fn mark(body: &mut SetExpr) {
    let SetExpr::SetOperation { op: SetOperator::Union, right, .. } = body else { return };
    let SetExpr::Select(select) = right.as_mut() else { return };
    for item in &mut select.projection {
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else { continue };
        let value = std::mem::replace(expr, Expr::Value(Value::Null.into()));
        let args = vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(value))];
        *expr = Expr::Function(Function {
            name: Ident::new(recursive::MARK).into(),
            uses_odbc_syntax: false,
            parameters: FunctionArguments::None,
            args: FunctionArguments::List(FunctionArgumentList {
                duplicate_treatment: None,
                args,
                clauses: Vec::new(),
            }),
            filter: None,
            null_treatment: None,
            over: None,
            within_group: Vec::new(),
        });
    }
}

/// Returns the name that the planner gives to a column.
fn planned_name(expr: &Expr) -> String {
    match expr {
        Expr::Cast { expr, .. } | Expr::Nested(expr) => planned_name(expr),
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.as_slice() {
                [SelectItem::UnnamedExpr(expr)] => planned_name(expr),
                [SelectItem::ExprWithAlias { alias, .. }] => alias.value.clone(),
                _ => expr.to_string(),
            },
            _ => expr.to_string(),
        },
        other => other.to_string(),
    }
}

/// Refuses an operator or a literal that has another meaning here than elsewhere.
pub(super) fn expression(expr: &Expr) -> Found {
    match expr {
        Expr::BinaryOp { op: BinaryOperator::BitwiseXor, .. } => {
            refused("^ means bitwise XOR here and a power elsewhere; write power(a, b), or (a | b) - (a & b) for XOR")
        }
        Expr::Value(ValueWithSpan { value: Value::Number(text, _), .. }) => number(text),
        Expr::Value(ValueWithSpan { value: Value::HexStringLiteral(digits), span }) => {
            // `0x…` is two characters longer than its digits; `x'…'` is three characters longer.
            let length = span.end.column.saturating_sub(span.start.column);
            match length > 0 && length < digits.len() as u64 + 3 {
                true => refused(format!("0x{digits} would be the bytes x'{digits}'; write the number in decimal")),
                false => ControlFlow::Continue(()),
            }
        }
        _ => ControlFlow::Continue(()),
    }
}

/// Refuses INTERSECT ALL and EXCEPT ALL: the planner compares values and ignores the number of copies.
pub(super) fn set_operation(body: &SetExpr) -> Found {
    let SetExpr::SetOperation { op, set_quantifier, left, right } = body else { return ControlFlow::Continue(()) };
    let by_copies = matches!(set_quantifier, SetQuantifier::All | SetQuantifier::AllByName);
    if by_copies && matches!(op, SetOperator::Intersect | SetOperator::Except | SetOperator::Minus) {
        return refused(format!(
            "{op} ALL is not possible; number the copies on both sides by row_number() OVER (PARTITION BY …), and leave ALL out"
        ));
    }
    set_operation(left)?;
    set_operation(right)
}

/// Refuses a number that would become another number. Beyond bigint, an integer would become a double.
fn number(text: &str) -> Found {
    if text.contains(['e', 'E']) || text.parse::<u64>().is_ok() {
        return ControlFlow::Continue(());
    }
    let plain = |text: &str| {
        let text = text.trim_start_matches('0');
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
        text.to_owned()
    };
    let is_exact = text.parse::<f64>().is_ok_and(|value| plain(&format!("{value}")) == plain(text));
    match is_exact && text.contains('.') {
        true => ControlFlow::Continue(()),
        false => {
            let scale = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
            refused(format!(
                "{text} has more digits than a number in SQL keeps here; write '{text}'::decimal(38,{scale})"
            ))
        }
    }
}
