//! Calls that other engines know by another name or form: rewritten to what DataFusion has.
//!
//! A column of a SELECT list keeps the name that was written.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CaseWhen, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments,
    Ident, OrderByExpr, OrderByOptions, Select, SelectFlavor, SelectItem, Statement, TableFactor, Value, VisitMut,
    VisitorMut, WildcardAdditionalOptions,
};

use crate::query::functions::is_unit;

type Found = ControlFlow<Box<str>>;

/// Functions of other engines that take a path of JSONPath.
const PATHS: [&str; 6] =
    ["json_extract", "json_extract_string", "json_extract_scalar", "json_value", "json_query", "get_json_object"];
/// Table functions of other engines that make rows of JSON.
const ROWS: [&str; 6] =
    ["json_each", "json_each_text", "json_array_elements", "json_array_elements_text", "json_table", "flatten"];

/// Rewrites the calls of a statement, and `FROM x` without SELECT.
///
/// # Errors
/// A call that has several meanings elsewhere, and what to write instead.
pub(super) fn rewrite(statement: &mut Statement) -> Result<(), String> {
    match VisitMut::visit(statement, &mut Rewriter::default()) {
        ControlFlow::Break(found) => Err(found.into()),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// The visitor, with the SELECT lists that it is in, as they were written.
#[derive(Default)]
struct Rewriter {
    written: Vec<Vec<String>>,
}

impl VisitorMut for Rewriter {
    type Break = Box<str>;

    fn pre_visit_select(&mut self, select: &mut Select) -> Found {
        if select.flavor == SelectFlavor::FromFirstNoSelect {
            select.flavor = SelectFlavor::Standard;
            select.projection = vec![SelectItem::Wildcard(WildcardAdditionalOptions::default())];
        }
        self.written.push(select.projection.iter().map(ToString::to_string).collect());
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> Found {
        let written = self.written.pop().unwrap_or_default();
        let mut names = HashSet::new();
        for (at, (item, mut name)) in select.projection.iter_mut().zip(written).enumerate() {
            let SelectItem::UnnamedExpr(expr) = item else { continue };
            if expr.to_string() != name {
                if !names.insert(name.clone()) {
                    name = format!("{name}:{}", at + 1);
                }
                let expr = std::mem::replace(expr, Expr::Value(Value::Null.into()));
                *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> Found {
        let name = match factor {
            TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } => name.to_string(),
            TableFactor::JsonTable { .. } => "json_table".to_owned(),
            _ => return ControlFlow::Continue(()),
        };
        match ROWS.contains(&name.to_lowercase().as_str()) {
            true => refused(format!(
                "{name} in FROM is not possible; write FROM (SELECT *, unnest(json_entries(value)) AS e FROM …), which \
                 has e['key'] and e['value']"
            )),
            false => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> Found {
        let Expr::Function(call) = expr else { return ControlFlow::Continue(()) };
        let [name] = call.name.0.as_slice() else { return ControlFlow::Continue(()) };
        let Some(name) = name.as_ident().map(|name| name.value.to_lowercase()) else {
            return ControlFlow::Continue(());
        };
        match name.as_str() {
            "if" | "iff" => match condition(call) {
                Some(case) => *expr = case,
                None => return refused(format!("{name} takes three arguments: {name}(condition, then, else)")),
            },
            "arg_max" | "max_by" | "argmax" => extreme(call, &name, false)?,
            "arg_min" | "min_by" | "argmin" => extreme(call, &name, true)?,
            "listagg" | "group_concat" => joined(call, &name)?,
            "date_diff" | "datediff" => difference(call, &name)?,
            name if PATHS.contains(&name) => {
                return refused(format!(
                    "{name} is not possible; write one key after the other: value -> 'a' -> 0 for JSON, value ->> 'a' for text"
                ));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn refused(message: impl Into<Box<str>>) -> Found {
    ControlFlow::Break(message.into())
}

/// Returns the arguments of a call, if all of them are expressions.
fn arguments(call: &Function) -> Option<Vec<&Expr>> {
    let FunctionArguments::List(list) = &call.args else { return None };
    let plain = |arg: &'_ FunctionArg| matches!(arg, FunctionArg::Unnamed(FunctionArgExpr::Expr(_)));
    list.args.iter().all(plain).then(|| {
        let exprs = list.args.iter().filter_map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        });
        exprs.collect()
    })
}

/// Returns whether a call has nothing but its arguments.
fn is_bare(call: &Function) -> bool {
    let FunctionArguments::List(list) = &call.args else { return false };
    list.clauses.is_empty()
        && list.duplicate_treatment.is_none()
        && call.filter.is_none()
        && call.over.is_none()
        && call.null_treatment.is_none()
        && call.within_group.is_empty()
}

/// `if(a, b, c)` is a CASE.
fn condition(call: &Function) -> Option<Expr> {
    let arguments = arguments(call).filter(|_| is_bare(call))?;
    let [condition, result, other] = arguments.as_slice() else { return None };
    Some(Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: None,
        conditions: vec![CaseWhen { condition: (*condition).clone(), result: (*result).clone() }],
        else_result: Some(Box::new((*other).clone())),
    })
}

/// `arg_max(a, b)` is the first `a` in the order of `b`. Rows whose `a` or `b` is NULL do not count, as in DuckDB.
fn extreme(call: &mut Function, name: &str, ascending: bool) -> Found {
    let of = arguments(call).map(|arguments| arguments.into_iter().cloned().collect::<Vec<_>>());
    let usage = || refused(format!("{name} takes the value and its order: {name}(value, sync_count)"));
    let Some(Ok([value, by])) = of.map(<[Expr; 2]>::try_from) else { return usage() };
    if call.over.is_some() {
        let order = if ascending { "" } else { " DESC" };
        return refused(format!(
            "{name} with OVER is not possible; write first_value({value}) OVER (PARTITION BY … ORDER BY {by}{order})"
        ));
    }
    let FunctionArguments::List(list) = &mut call.args else { return usage() };
    if !list.clauses.is_empty() || list.duplicate_treatment.is_some() || call.null_treatment.is_some() {
        return refused(format!("{name} takes no DISTINCT, ORDER BY or treatment of NULLs; leave it out"));
    }
    list.args.truncate(1);
    list.clauses = vec![FunctionArgumentClause::OrderBy(vec![OrderByExpr {
        expr: by.clone(),
        options: OrderByOptions { asc: Some(ascending), nulls_first: Some(false) },
        with_fill: None,
    }])];
    let and = |left: Expr, right: Expr| Expr::BinaryOp {
        left: Box::new(left),
        op: BinaryOperator::And,
        right: Box::new(right),
    };
    let known = and(Expr::IsNotNull(Box::new(value)), Expr::IsNotNull(Box::new(by)));
    call.filter = Some(Box::new(match call.filter.take() {
        Some(filter) => and(Expr::Nested(filter), known),
        None => known,
    }));
    call.name = Ident::new("first_value").into();
    ControlFlow::Continue(())
}

/// `listagg(a, b) WITHIN GROUP (ORDER BY c)` is `string_agg(a, b ORDER BY c)`.
fn joined(call: &mut Function, name: &str) -> Found {
    if arguments(call).is_none_or(|arguments| arguments.len() != 2) {
        // Without a separator, some engines join by a comma and others by nothing.
        return refused(format!("{name} takes the text and a separator: {name}(key, ', ')"));
    }
    let FunctionArguments::List(list) = &mut call.args else { return ControlFlow::Continue(()) };
    let order = std::mem::take(&mut call.within_group);
    if !order.is_empty() {
        list.clauses.push(FunctionArgumentClause::OrderBy(order));
    }
    call.name = Ident::new("string_agg").into();
    ControlFlow::Continue(())
}

/// `date_diff(day, a, b)` is `date_diff('day', a, b)`.
fn difference(call: &mut Function, name: &str) -> Found {
    if arguments(call).is_none_or(|arguments| arguments.len() != 3) {
        // With two arguments, MySQL and Spark subtract the second one from the first one.
        return refused(format!("{name} takes a unit and two times: {name}('day', from, to)"));
    }
    let FunctionArguments::List(list) = &mut call.args else { return ControlFlow::Continue(()) };
    if let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(unit))) = list.args.first_mut()
        && let Expr::Identifier(word) = unit
        && word.quote_style.is_none()
        && is_unit(&word.value)
    {
        *unit = Expr::Value(Value::SingleQuotedString(word.value.clone()).into());
    }
    call.name = Ident::new("date_diff").into();
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;
    use crate::query::parse::dialect::LakeDialect;

    fn rewritten(text: &str) -> Result<String, String> {
        let mut parsed = Parser::parse_sql(&LakeDialect::default(), text).unwrap();
        let mut statement = parsed.remove(0);
        rewrite(&mut statement)?;
        Ok(statement.to_string())
    }

    #[test]
    fn calls_become_what_datafusion_has() {
        for (text, expected) in [
            ("SELECT if(a, b, c)", "SELECT CASE WHEN a THEN b ELSE c END AS \"if(a, b, c)\""),
            ("SELECT a FROM t WHERE if(a, b, c)", "SELECT a FROM t WHERE CASE WHEN a THEN b ELSE c END"),
            (
                "SELECT if(a, if(b, 1, 2), 3) AS x",
                "SELECT CASE WHEN a THEN CASE WHEN b THEN 1 ELSE 2 END ELSE 3 END AS x",
            ),
            (
                "SELECT max_by(a, b) FILTER (WHERE c) AS x",
                "SELECT first_value(a ORDER BY b DESC NULLS LAST) FILTER (WHERE (c) AND a IS NOT NULL AND b IS NOT NULL) AS x",
            ),
            ("SELECT listagg(a, ',') WITHIN GROUP (ORDER BY b) AS x", "SELECT string_agg(a, ',' ORDER BY b) AS x"),
            ("SELECT datediff(DAY, a, b) AS x", "SELECT date_diff('DAY', a, b) AS x"),
            ("SELECT datediff(\"day\", a, b) AS x", "SELECT date_diff(\"day\", a, b) AS x"),
            (
                "SELECT if(a, b, c), if(a, b, c)",
                "SELECT CASE WHEN a THEN b ELSE c END AS \"if(a, b, c)\", CASE WHEN a THEN b ELSE c END AS \"if(a, b, c):2\"",
            ),
            ("FROM t", "SELECT * FROM t"),
            ("SELECT count(*) FROM (FROM t)", "SELECT count(*) FROM (SELECT * FROM t)"),
            ("SELECT upper(a)", "SELECT upper(a)"),
        ] {
            assert_eq!(rewritten(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn calls_with_several_meanings_are_refused() {
        for (text, part) in [
            ("SELECT if(a, b)", "three arguments"),
            ("SELECT arg_max(a, b, 3)", "the value and its order"),
            ("SELECT arg_min(a, b) OVER (PARTITION BY c)", "first_value(a) OVER (PARTITION BY … ORDER BY b)"),
            ("SELECT arg_max(DISTINCT a, b)", "DISTINCT"),
            ("SELECT listagg(a)", "a separator"),
            ("SELECT json_extract(a, '$.b')", "value -> 'a' -> 0"),
            ("SELECT * FROM t, json_each(t.a)", "unnest(json_entries(value))"),
            ("SELECT * FROM t, LATERAL json_each(t.a) AS e", "unnest(json_entries(value))"),
            ("SELECT datediff(a, b)", "('day', from, to)"),
        ] {
            let error = rewritten(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
