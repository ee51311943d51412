//! Refuses by name syntax that the parser accepts and the planner drops: otherwise it would have no effect.

use std::ops::ControlFlow;

use datafusion::execution::FunctionRegistry;
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, DataType, DuplicateTreatment, ExactNumberInfo, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentClause, FunctionArguments, GroupByExpr, Join, JoinConstraint, JoinOperator, NamedWindowExpr,
    OrderByKind, PipeOperator, Query, Select, SelectItem, SetExpr, SetOperator, SetQuantifier, Statement, TableAlias,
    TableFactor, TypedString, Visit, Visitor, WindowType,
};

use super::mistaken;

type Found = ControlFlow<Box<str>>;

const WINDOW_NAME: &str =
    "a window's name is known in the SELECT list alone; write the window out: OVER (PARTITION BY …)";
/// Window functions that honor IGNORE NULLS.
const HEED_NULLS: [&str; 5] = ["lead", "lag", "first_value", "last_value", "nth_value"];
/// Aggregates that ignore DISTINCT.
const NO_DISTINCT: [&str; 6] = ["corr", "covar", "covar_pop", "covar_samp", "nth_value", "approx_percentile_cont"];
/// Keywords of other dialects that would be read as a table alias.
const NO_ALIAS: [&str; 6] = ["final", "positional", "any", "at", "before", "only"];

/// Refuses syntax that would be ignored.
///
/// # Errors
/// The name of the ignored syntax, and what to write instead.
pub(super) fn refuse(statement: &Statement, functions: &dyn FunctionRegistry) -> Result<(), String> {
    match statement.visit(&mut Finder { functions }) {
        ControlFlow::Break(found) => Err(found.into()),
        ControlFlow::Continue(()) => Ok(()),
    }
}

fn absent(is_there: bool, message: &str) -> Found {
    if is_there { ControlFlow::Break(message.into()) } else { ControlFlow::Continue(()) }
}

/// A visitor that finds windows referenced by name: at the node's own level, or in subqueries.
struct Windows {
    depth: usize,
    nested: bool,
}

impl Visitor for Windows {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let named = matches!(expr, Expr::Function(Function { over: Some(WindowType::NamedWindow(_)), .. }));
        if named && (self.depth > 0) == self.nested { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn names_window<T: Visit>(node: &T, nested: bool) -> bool {
    node.visit(&mut Windows { depth: 0, nested }).is_break()
}

struct Finder<'a> {
    functions: &'a dyn FunctionRegistry,
}

impl Visitor for Finder<'_> {
    type Break = Box<str>;

    fn pre_visit_query(&mut self, query: &Query) -> Found {
        absent(
            !query.locks.is_empty(),
            "FOR UPDATE and FOR SHARE lock nothing: the lake is read-only here; leave them out",
        )?;
        absent(query.for_clause.is_some(), "FOR JSON, FOR XML and FOR BROWSE have no effect; use --format")?;
        absent(query.settings.is_some(), "SETTINGS has no effect; leave it out")?;
        absent(query.format_clause.is_some(), "FORMAT has no effect in SQL; use --format or \\format")?;
        absent(query.fetch.is_some(), "FETCH is not possible; write LIMIT")?;
        if let Some(order) = &query.order_by {
            let all = matches!(order.kind, OrderByKind::All(_)) && !matches!(*query.body, SetExpr::Select(_));
            absent(all, "ORDER BY ALL has no effect after UNION, EXCEPT and INTERSECT; name the columns")?;
            absent(names_window(order, false), WINDOW_NAME)?;
        }
        if let Some(with) = &query.with {
            for cte in &with.cte_tables {
                absent(cte.from.is_some(), "FROM after WITH … AS (…) has no effect; leave it out")?;
                typed(&cte.alias)?;
                if with.recursive {
                    recursive(&cte.query)?;
                }
            }
        }
        mistaken::set_operation(&query.body)?;
        query.pipe_operators.iter().try_for_each(pipe)
    }

    fn pre_visit_select(&mut self, select: &Select) -> Found {
        absent(
            select.into.is_some(),
            "SELECT INTO is not possible: the lake is read-only here; write the result with -o FILE",
        )?;
        absent(select.prewhere.is_some(), "PREWHERE has no effect; write WHERE")?;
        absent(!select.connect_by.is_empty(), "CONNECT BY and START WITH have no effect; write WITH RECURSIVE")?;
        absent(select.exclude.is_some(), "EXCLUDE has an effect right after * alone; put it there")?;
        absent(select.value_table_mode.is_some(), "SELECT AS STRUCT and SELECT AS VALUE have no effect; leave AS out")?;
        absent(
            select.select_modifiers.as_ref().is_some_and(|m| m.is_any_set()),
            "MySQL's words after SELECT have no effect; leave them out",
        )?;
        absent(select.top.is_some(), "TOP is not possible; write LIMIT at the end")?;
        let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = &select.group_by;
        absent(
            !modifiers.is_empty(),
            "WITH ROLLUP, WITH CUBE, WITH TOTALS and a trailing GROUPING SETS have no effect; write GROUP BY ROLLUP (…), \
             CUBE (…) or GROUPING SETS (…)",
        )?;
        let elsewhere = names_window(&select.qualify, false)
            || names_window(&select.having, false)
            || names_window(&select.selection, false)
            || names_window(&select.distinct, false)
            || names_window(&select.group_by, false);
        absent(elsewhere || names_window(&select.projection, true), WINDOW_NAME)?;
        for window in &select.named_window {
            let builds_on = matches!(&window.1, NamedWindowExpr::WindowSpec(spec) if spec.window_name.is_some());
            absent(builds_on, "a window cannot build on another one by name; write it out")?;
        }
        for item in &select.projection {
            if let SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) = item {
                absent(options.opt_ilike.is_some(), "* ILIKE has no effect; name the columns")?;
            }
        }
        select.from.iter().flat_map(|table| &table.joins).try_for_each(join)
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Found {
        const SAMPLE: &str = "TABLESAMPLE and SAMPLE have no effect; write WHERE random() < 0.1";
        const ORDINALITY: &str = "WITH ORDINALITY has no effect; write row_number() OVER ()";
        match factor {
            TableFactor::Table {
                alias,
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
                ..
            } => {
                absent(sample.is_some(), SAMPLE)?;
                absent(*with_ordinality, ORDINALITY)?;
                absent(version.is_some(), "a version of a table cannot be asked for in SQL; use --as-of")?;
                absent(
                    !with_hints.is_empty() || !index_hints.is_empty(),
                    "table hints have no effect; leave them out",
                )?;
                absent(!partitions.is_empty(), "PARTITION (…) has no effect; write WHERE on pool and event_date")?;
                absent(json_path.is_some(), "a path after a table has no effect; leave it out")?;
                let settings = args.as_ref().is_some_and(|args| args.settings.is_some());
                absent(settings, "SETTINGS has no effect; leave it out")?;
                table_alias(alias)
            }
            TableFactor::Derived { alias, sample, .. } => {
                absent(sample.is_some(), SAMPLE)?;
                table_alias(alias)
            }
            TableFactor::Function { args, with_ordinality, alias, .. } => {
                absent(*with_ordinality, ORDINALITY)?;
                let named = args.iter().any(|arg| !matches!(arg, FunctionArg::Unnamed(_)));
                absent(named, "names of a table function's arguments have no effect; give them in order")?;
                table_alias(alias)
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                table_with_joins.joins.iter().try_for_each(join)?;
                table_alias(alias)
            }
            TableFactor::UNNEST { alias, .. } => table_alias(alias),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> Found {
        match expr {
            Expr::Function(function) => self.function(function),
            Expr::SimilarTo { .. } => {
                absent(true, "SIMILAR TO is not matched as SQL says; write ~ '^(…)$' with a regular expression")
            }
            Expr::Trim { trim_characters: Some(sets), .. } => {
                absent(sets.len() > 1, "trim takes one set of characters; put them into one string")
            }
            Expr::Cast { data_type: of, .. } | Expr::TypedString(TypedString { data_type: of, .. }) => data_type(of),
            other => mistaken::expression(other),
        }
    }
}

impl Finder<'_> {
    fn function(&self, function: &Function) -> Found {
        let call = Call::new(function)?;
        let name = call.name.as_str();
        if self.functions.udf(name).is_ok() || ["unnest", "unnest_outer"].contains(&name) {
            call.refuse_clauses()?;
        }
        absent(
            call.distinct && (NO_DISTINCT.contains(&name) || name.starts_with("regr_")),
            &format!("DISTINCT has no effect on {name}; select the distinct rows first"),
        )?;
        match &function.over {
            None => ControlFlow::Continue(()),
            Some(over) => self.window(&call, over),
        }
    }

    /// Refuses what a call with OVER would ignore.
    fn window(&self, call: &Call<'_>, over: &WindowType) -> Found {
        let name = call.name.as_str();
        if let WindowType::WindowSpec(spec) = over {
            absent(
                spec.window_name.is_some(),
                "OVER (name …) does not inherit the named window; write OVER name, or the whole definition",
            )?;
        }
        // The planner prefers an aggregate to a window function of the same name, except for these three.
        let aggregate = self.functions.udaf(name).ok();
        let is_window = aggregate.is_none() || HEED_NULLS[2..].contains(&name);
        if is_window {
            absent(
                call.function.filter.is_some(),
                &format!("FILTER has no effect on the window function {name}; filter in a subquery"),
            )?;
            absent(call.distinct, &format!("DISTINCT has no effect on the window function {name}; leave it out"))?;
        }
        let heeds_nulls = match is_window {
            true => HEED_NULLS.contains(&name),
            false => aggregate.is_some_and(|a| a.supports_null_handling_clause()),
        };
        absent(
            call.nulls && !heeds_nulls,
            &format!("IGNORE NULLS and RESPECT NULLS have no effect on {name}; leave them out"),
        )
    }
}

/// A call of a function, and which clauses it has.
struct Call<'a> {
    function: &'a Function,
    /// Name as functions are registered; empty if the name has several parts.
    name: String,
    distinct: bool,
    /// Whether the arguments have an ORDER BY.
    ordered: bool,
    /// Whether IGNORE NULLS or RESPECT NULLS is there, inside the parentheses or after them.
    nulls: bool,
}

impl<'a> Call<'a> {
    /// Reads a call. Refuses arguments that would be ignored or misunderstood in any function.
    fn new(function: &'a Function) -> ControlFlow<Box<str>, Self> {
        let shown = function.name.to_string();
        absent(
            !matches!(function.parameters, FunctionArguments::None),
            &format!("{shown}(…)(…): the first parentheses have no effect; leave them out"),
        )?;
        let nulls = function.null_treatment.is_some();
        let mut call = Self { function, name: registered_name(function), distinct: false, ordered: false, nulls };
        match &function.args {
            FunctionArguments::Subquery(_) => {
                absent(true, &format!("{shown}: put the subquery into parentheses of its own"))?;
            }
            FunctionArguments::None => {}
            FunctionArguments::List(list) => {
                call.distinct = list.duplicate_treatment == Some(DuplicateTreatment::Distinct);
                let has = |is: fn(&FunctionArgExpr) -> bool| {
                    list.args.iter().any(|arg| matches!(arg, FunctionArg::Unnamed(arg) if is(arg)))
                };
                absent(
                    has(|arg| matches!(arg, FunctionArgExpr::QualifiedWildcard(_))),
                    &format!("{shown}(t.*) counts rows that an outer join filled with NULL too; name a column"),
                )?;
                absent(
                    call.distinct && has(|arg| matches!(arg, FunctionArgExpr::Wildcard)),
                    &format!("{shown}(DISTINCT *) is always one; name the columns"),
                )?;
                for clause in &list.clauses {
                    match clause {
                        FunctionArgumentClause::OrderBy(_) => call.ordered = true,
                        FunctionArgumentClause::IgnoreOrRespectNulls(_) => call.nulls = true,
                        _ => {}
                    }
                }
            }
        }
        ControlFlow::Continue(call)
    }

    /// Refuses every clause, for a function that is neither an aggregate nor a window function.
    fn refuse_clauses(&self) -> Found {
        let clauses = [
            (self.function.over.is_some(), "OVER"),
            (self.function.filter.is_some(), "FILTER"),
            (self.distinct, "DISTINCT"),
            (self.ordered, "ORDER BY"),
            (!self.function.within_group.is_empty(), "WITHIN GROUP"),
            (self.nulls, "IGNORE NULLS or RESPECT NULLS"),
        ];
        let Some((_, clause)) = clauses.iter().find(|(is_there, _)| *is_there) else {
            return ControlFlow::Continue(());
        };
        let what = "which is no aggregate and no window function; leave it out";
        absent(true, &format!("{clause} has no effect on {}, {what}", self.name))
    }
}

fn registered_name(function: &Function) -> String {
    let name = match function.name.0.as_slice() {
        [part] => part.as_ident().map(|ident| match ident.quote_style {
            Some(_) => ident.value.clone(),
            None => ident.value.to_lowercase(),
        }),
        _ => None,
    };
    name.unwrap_or_default()
}

fn recursive(query: &Query) -> Found {
    let SetExpr::SetOperation { op: SetOperator::Union, set_quantifier, .. } = &*query.body else {
        return ControlFlow::Continue(());
    };
    let drops = query.order_by.is_some()
        || query.limit_clause.is_some()
        || query.with.is_some()
        || !query.pipe_operators.is_empty();
    absent(
        drops,
        "ORDER BY, LIMIT and WITH inside a WITH RECURSIVE have no effect; put them where it is read, or leave RECURSIVE out",
    )?;
    let by_name =
        matches!(set_quantifier, SetQuantifier::ByName | SetQuantifier::AllByName | SetQuantifier::DistinctByName);
    absent(by_name, "BY NAME has no effect in WITH RECURSIVE; leave it out")
}

fn pipe(operator: &PipeOperator) -> Found {
    absent(names_window(operator, false), WINDOW_NAME)?;
    match operator {
        PipeOperator::Aggregate { full_table_exprs, group_by_expr } => {
            let mut all = full_table_exprs.iter().chain(group_by_expr);
            let orders = all.any(|e| e.order_by.asc.is_some() || e.order_by.nulls_first.is_some());
            absent(orders, "ASC and DESC have no effect in |> AGGREGATE; add |> ORDER BY")
        }
        PipeOperator::Join(one) => join(one),
        _ => ControlFlow::Continue(()),
    }
}

fn join(join: &Join) -> Found {
    use JoinOperator as J;
    absent(join.global, "GLOBAL has no effect on a join; leave it out")?;
    let bare = matches!(
        &join.join_operator,
        J::Join(c) | J::Inner(c) | J::Left(c) | J::LeftOuter(c) | J::Right(c) | J::RightOuter(c) | J::FullOuter(c)
            | J::LeftSemi(c) | J::RightSemi(c) | J::LeftAnti(c) | J::RightAnti(c)
            if matches!(c, JoinConstraint::None)
    );
    absent(
        bare && !matches!(join.relation, TableFactor::UNNEST { .. }),
        "JOIN without ON or USING pairs every row with every row; add ON, or write CROSS JOIN",
    )?;
    let merges_right = matches!(
        &join.join_operator,
        J::Right(c) | J::RightOuter(c) | J::FullOuter(c) if matches!(c, JoinConstraint::Using(_) | JoinConstraint::Natural)
    );
    absent(
        merges_right,
        "RIGHT and FULL JOIN with USING or NATURAL would show the left column alone; write ON a.k = b.k, and \
         coalesce(a.k, b.k) for the merged column",
    )
}

fn typed(alias: &TableAlias) -> Found {
    let has_types = alias.columns.iter().any(|column| column.data_type.is_some());
    absent(has_types, "types in an alias have no effect; cast the columns")
}

fn table_alias(alias: &Option<TableAlias>) -> Found {
    let Some(alias) = alias else { return ControlFlow::Continue(()) };
    typed(alias)?;
    absent(alias.at.is_some(), "AT after an alias has no effect; leave it out")?;
    let name = &alias.name.value;
    let mistaken =
        !alias.explicit && alias.name.quote_style.is_none() && NO_ALIAS.contains(&name.to_lowercase().as_str());
    absent(
        mistaken,
        &format!(
            "{name} has no effect: it is read as an alias of the table before it; leave it out, or write AS {name}"
        ),
    )
}

fn data_type(of: &DataType) -> Found {
    match of {
        DataType::Varchar(Some(_)) | DataType::Char(Some(_)) | DataType::String(Some(_)) => {
            absent(true, &format!("the length of {of} has no effect; write varchar, and left(…) to cut"))
        }
        DataType::Float(ExactNumberInfo::Precision(bits)) => {
            absent(*bits > 24, &format!("{of} is a 32-bit number here; write double"))
        }
        DataType::Float(ExactNumberInfo::PrecisionAndScale(..)) => {
            absent(true, &format!("{of} has no effect; write decimal or double"))
        }
        DataType::Array(ArrayElemTypeDef::SquareBracket(inner, size)) => {
            absent(size.is_some(), "an array's length in its type is not possible; write []")?;
            data_type(inner)
        }
        DataType::Array(ArrayElemTypeDef::AngleBracket(inner)) => data_type(inner),
        DataType::Struct(fields, _) => fields.iter().try_for_each(|field| data_type(&field.field_type)),
        _ => ControlFlow::Continue(()),
    }
}
