//! Refuses comparisons between kinds of values that DataFusion would convert silently. `event_date = 2026-02-01` is
//! arithmetic. Text compared with a number fails on the first value that is no number.

use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, Operator, TryCast};
use datafusion::optimizer::AnalyzerRule;
use datafusion::scalar::ScalarValue;

use crate::query::UserError;

/// The analyzer rule that refuses such comparisons. Runs before type coercion.
#[derive(Debug)]
pub(crate) struct SameKinds;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Date,
    Number,
    Text,
    Other,
}

fn kind(of: &DataType) -> Kind {
    match of {
        DataType::Date32 | DataType::Date64 => Kind::Date,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Text,
        DataType::Dictionary(_, value) => kind(value),
        of if of.is_numeric() => Kind::Number,
        _ => Kind::Other,
    }
}

impl AnalyzerRule for SameKinds {
    fn name(&self) -> &str {
        "same_kinds"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.apply_with_subqueries(|node| {
            let mut schema = merge_schema(&node.inputs());
            if let LogicalPlan::TableScan(scan) = node {
                schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
            }
            node.apply_expressions(|expr| {
                expr.apply(|expr| check(expr, &schema).map(|()| TreeNodeRecursion::Continue))
            })?;
            match node {
                LogicalPlan::Join(join) => join.on.iter().try_for_each(|(l, r)| compare(l, r, &schema))?,
                LogicalPlan::Union(union) => sides(&union.inputs)?,
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(plan)
    }
}

fn sides(inputs: &[std::sync::Arc<LogicalPlan>]) -> Result<()> {
    let Some((first, others)) = inputs.split_first() else { return Ok(()) };
    for (a, b) in others.iter().flat_map(|input| first.schema().fields().iter().zip(input.schema().fields())) {
        let kinds = [kind(a.data_type()), kind(b.data_type())];
        if kinds.contains(&Kind::Date) && kinds.contains(&Kind::Number) {
            let name = a.name();
            let what =
                format!("{name} is a date in one part of the UNION and a number in another; quote the date: {DAY}");
            return Err(UserError(what).into());
        }
    }
    Ok(())
}

const DAY: &str = "date '2026-02-01'";

fn check(expr: &Expr, schema: &DFSchema) -> Result<()> {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    match expr {
        Expr::BinaryExpr(b)
            if matches!(b.op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom) =>
        {
            compare(&b.left, &b.right, schema)
        }
        Expr::Between(b) => {
            compare(&b.expr, &b.low, schema)?;
            compare(&b.expr, &b.high, schema)
        }
        Expr::InList(list) => list.list.iter().try_for_each(|item| compare(&list.expr, item, schema)),
        Expr::InSubquery(i) => {
            let of = i.subquery.subquery.schema().field(0).data_type();
            compare_types(&i.expr, &i.expr.get_type(schema)?, None, of)
        }
        Expr::SetComparison(s) => {
            let of = s.subquery.subquery.schema().field(0).data_type();
            compare_types(&s.expr, &s.expr.get_type(schema)?, None, of)
        }
        Expr::Case(case) => {
            if let Some(of) = &case.expr {
                case.when_then_expr.iter().try_for_each(|(when, _)| compare(of, when, schema))?;
            }
            let thens = case.when_then_expr.iter().map(|(_, then)| then.as_ref());
            mixed(thens.chain(case.else_expr.as_deref()), schema)
        }
        Expr::ScalarFunction(f) if ["coalesce", "nvl", "nullif", "greatest", "least"].contains(&f.func.name()) => {
            mixed(f.args.iter(), schema)
        }
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })
            if kind(field.data_type()) == Kind::Date =>
        {
            match kind(&expr.get_type(schema)?) {
                Kind::Number => Err(date(None, expr)),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn mixed<'a>(exprs: impl Iterator<Item = &'a Expr>, schema: &DFSchema) -> Result<()> {
    let (mut one, mut number) = (None, None);
    for expr in exprs {
        match kind(&expr.get_type(schema)?) {
            Kind::Date => one = Some(expr),
            Kind::Number => number = Some(expr),
            _ => {}
        }
    }
    match (one, number) {
        (Some(one), Some(number)) => Err(date(Some(one), number)),
        _ => Ok(()),
    }
}

fn compare(left: &Expr, right: &Expr, schema: &DFSchema) -> Result<()> {
    compare_types(left, &left.get_type(schema)?, Some(right), &right.get_type(schema)?)
}

fn compare_types(left: &Expr, l: &DataType, right: Option<&Expr>, r: &DataType) -> Result<()> {
    let name = |expr: Option<&Expr>| expr.map_or_else(|| "the subquery".to_owned(), shown);
    let is_literal = |expr: Option<&Expr>| matches!(expr, Some(Expr::Literal(..)));
    match (kind(l), kind(r)) {
        (Kind::Date, Kind::Number) => Err(date(Some(left), right.unwrap_or(left))),
        (Kind::Number, Kind::Date) => Err(date(right, left)),
        (Kind::Text, Kind::Number) if !is_literal(Some(left)) => Err(text(&name(Some(left)), &name(right))),
        (Kind::Number, Kind::Text) if !is_literal(right) => Err(text(&name(right), &name(Some(left)))),
        _ => Ok(()),
    }
}

fn shown(expr: &Expr) -> String {
    match expr {
        Expr::Column(c) => c.name.clone(),
        Expr::Literal(value, _) => value.to_string(),
        other => other.schema_name().to_string(),
    }
}

fn text(text: &str, number: &str) -> DataFusionError {
    let way = format!("compare it with text, as in '{number}', or write try_cast({text} as bigint)");
    UserError(format!("{text} is text and {number} is a number: {way}")).into()
}

fn date(of: Option<&Expr>, number: &Expr) -> DataFusionError {
    let of = of.map_or_else(|| "the other side".to_owned(), shown);
    let what = match meant(number) {
        Some(day) => {
            let sum = day.replace('-', " - ");
            format!("{sum} without quotes is arithmetic, and {of} is a date: quote it, as in date '{day}'")
        }
        None => format!("{of} is a date and {} is a number: write a date as {DAY}", shown(number)),
    };
    UserError(what).into()
}

/// Returns the date that the user meant by `2026-02-01`, which parses as subtractions, or by `20260201`.
fn meant(expr: &Expr) -> Option<String> {
    let number = |expr: &Expr| match expr {
        Expr::Literal(ScalarValue::Int64(Some(n)), _) => Some(*n),
        _ => None,
    };
    let minus = |expr: &Expr| match expr {
        Expr::BinaryExpr(b) if b.op == Operator::Minus => Some((b.left.clone(), b.right.clone())),
        _ => None,
    };
    let (y, m, d) = match minus(expr) {
        Some((rest, d)) => {
            let (y, m) = minus(&rest)?;
            (number(&y)?, number(&m)?, number(&d)?)
        }
        None => {
            let n = number(expr)?;
            (n / 10_000, n / 100 % 100, n % 100)
        }
    };
    let is_day = (1000..=9999).contains(&y) && (1..=12).contains(&m) && (1..=31).contains(&d);
    is_day.then(|| format!("{y:04}-{m:02}-{d:02}"))
}
