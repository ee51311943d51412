//! Random SQL over all tables and views that DataFusion and DuckDB must answer alike.
//!
//! Not generated, because the engines define it differently and neither is wrong: division, sorting without NULLS
//! FIRST or LAST, casts of non-numeric text (outside of a guard), and sums beyond 64 bits.

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::lake::literals;

mod relations;

use relations::Type::{self, Bool, Date, Int, Text, Time};
use relations::{CHANGES, Columns, RECORDS, RELATIONS, STATE};

/// A query and the properties that the oracles check.
pub(super) struct Query {
    pub sql: String,
    /// Whether the query determines the order of its rows.
    pub ordered: bool,
    /// FROM clause and predicate, for the oracles that need no other engine.
    pub filter: Option<(String, String)>,
}

/// A relation of a FROM clause: its alias and its columns.
#[derive(Clone)]
struct Relation {
    alias: String,
    columns: Columns,
}

pub(super) struct Generator {
    rng: ChaCha8Rng,
    aliases: usize,
}

impl Generator {
    pub(super) fn new(rng: ChaCha8Rng) -> Self {
        Self { rng, aliases: 0 }
    }

    fn chance(&mut self, of: f64) -> bool {
        self.rng.random_bool(of)
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all.choose(&mut self.rng).unwrap().clone()
    }

    fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    fn relation(&mut self) -> (&'static str, Relation) {
        let (name, columns) = self.pick(&RELATIONS);
        self.aliases += 1;
        (name, Relation { alias: format!("t{}", self.aliases), columns })
    }

    pub(super) fn query(&mut self) -> Query {
        self.aliases = 0;
        match self.below(10) {
            0..3 => self.plain(),
            3..5 => self.aggregate(),
            5 => self.window(),
            6 => self.set_operation(),
            7 => self.counted(),
            8 => self.joined_on_values(),
            _ => self.differences(),
        }
    }

    /// Returns a FROM clause of one to `most` relations.
    fn from(&mut self, most: usize) -> (String, Vec<Relation>) {
        let (name, first) = self.relation();
        let mut sql = format!("{name} {}", first.alias);
        let mut relations = vec![first];
        let count = if self.chance(0.5) { 1 } else { 1 + self.below(most) };
        while relations.len() < count {
            let (name, next) = if self.chance(0.3) {
                self.aliases += 1;
                let name = sql.split(' ').next().unwrap_or_default();
                let (name, columns) = RELATIONS.into_iter().find(|(known, _)| *known == name).unwrap();
                (name, Relation { alias: format!("t{}", self.aliases), columns })
            } else {
                self.relation()
            };
            let left = self.pick(&relations);
            let shared: Vec<&str> = { left.columns.iter() }
                .filter(|(name, of)| *of == Text && next.columns.contains(&(name, Text)))
                .map(|(name, _)| *name)
                .collect();
            if shared.is_empty() {
                continue;
            }
            // Join on the selective columns that both relations have, so that no join is only on values that most rows
            // share.
            let mut on: Vec<&str> =
                ["identity_id", "dataset_name", "key"].into_iter().filter(|name| shared.contains(name)).collect();
            if self.chance(0.4) {
                on.push(self.pick(&shared));
            }
            if on.is_empty() {
                on.push(self.pick(&shared));
            }
            let kind = self.pick(&["join", "join", "left join", "full join", "right join"]);
            let equal: Vec<String> =
                on.iter().map(|name| format!("{}.{name} = {}.{name}", left.alias, next.alias)).collect();
            sql += &format!(" {kind} {name} {} on {}", next.alias, equal.join(" and "));
            relations.push(next);
        }
        (sql, relations)
    }

    fn column(&mut self, of: &[Relation], wanted: Option<Type>) -> Option<(String, &'static str, Type)> {
        let all: Vec<(String, &'static str, Type)> = { of.iter() }
            .flat_map(|r| r.columns.iter().map(|(name, t)| (format!("{}.{name}", r.alias), *name, *t)))
            .filter(|(_, _, t)| wanted.is_none_or(|wanted| wanted == *t))
            .collect();
        all.choose(&mut self.rng).cloned()
    }

    fn literal(&mut self, name: &str, of: Type) -> String {
        match of {
            Int => self.rng.random_range(-1..10).to_string(),
            Text => format!("'{}'", self.pick(&literals(name))),
            Bool => self.pick(&["true", "false", "cast(null as boolean)"]).to_owned(),
            Date => format!("date '2026-01-0{}'", 1 + self.below(6)),
            Time => format!("timestamp '2026-01-0{} 0{}:00:00'", 1 + self.below(6), self.below(10)),
        }
    }

    /// Returns a scalar expression of any type.
    fn scalar(&mut self, of: &[Relation]) -> (String, Type) {
        let Some((column, name, t)) = self.column(of, None) else { return ("1".to_owned(), Int) };
        let sql = match (t, self.below(8)) {
            (Int, 0) => return (format!("({column} + {})", self.below(5)), Int),
            (Int, 1) => return (format!("cast({column} as varchar)"), Text),
            (Int, 2) => return (format!("abs(3 - {column})"), Int),
            (Text, 0) => return (format!("length({column})"), Int),
            (Text, 1) => format!("coalesce({column}, '-')"),
            (Text, 2) => format!("nullif({column}, {})", self.literal(name, Text)),
            (Text, 3) => format!("({column} || '|')"),
            (Text, 4) => format!("substr({column}, 1, 2)"),
            (Time, 0) => return (format!("cast({column} as date)"), Date),
            (Date, 0) => return (format!("extract(day from {column})"), Int),
            (_, 5) => {
                let condition = self.predicate(of, 1);
                format!("case when {condition} then {column} end")
            }
            (_, 6) if of.len() == 1 && self.chance(0.3) => return (self.predicate(of, 1), Bool),
            _ => column,
        };
        (sql, t)
    }

    /// Returns a condition; `depth` limits how deep conditions nest.
    fn predicate(&mut self, of: &[Relation], depth: usize) -> String {
        let deeper = depth.saturating_sub(1);
        let choice = if depth == 0 { self.below(6) } else { self.below(19) };
        let Some((column, name, t)) = self.column(of, None) else { return "true".to_owned() };
        match choice {
            0 | 1 | 6 => self.comparison(column, name, t),
            2 => format!("{column} is {}null", self.pick(&["", "not "])),
            3 => self.membership(of),
            4 => match self.column(of, Some(Text)) {
                Some((column, ..)) => {
                    let pattern = self.pick(&["a%", "%e", "_", "%_00b%", "us-east%", "", "%"]);
                    format!("{column} {}like '{pattern}'", self.pick(&["", "not "]))
                }
                None => "true".to_owned(),
            },
            5 => match self.column(of, Some(Int)) {
                Some((column, ..)) => format!("{column} between {} and {}", self.below(4), 2 + self.below(6)),
                None => "true".to_owned(),
            },
            7 | 8 => format!("({} and {})", self.predicate(of, deeper), self.predicate(of, deeper)),
            9 => format!("({} or {})", self.predicate(of, deeper), self.predicate(of, deeper)),
            10 => format!("not ({})", self.predicate(of, deeper)),
            11 => {
                let (a, b, c) = (self.predicate(of, deeper), self.predicate(of, deeper), self.predicate(of, deeper));
                format!("case when {a} then {b} else {c} end")
            }
            12 => {
                let test = self.pick(&["is true", "is not true", "is false", "is not false", "is null"]);
                format!("({}) {test}", self.predicate(of, deeper))
            }
            13 => {
                let test = self.pick(&["is distinct from", "is not distinct from", "=", "<>"]);
                format!("({}) {test} ({})", self.predicate(of, deeper), self.predicate(of, deeper))
            }
            14 => {
                let other = self.pick(&["null", "cast(null as boolean)", "key_is_null"]);
                match other {
                    "key_is_null" => format!("({} and {column} is null)", self.predicate(of, deeper)),
                    "null" => format!("({} and {column} = null)", self.predicate(of, deeper)),
                    null => format!("({} {} {null})", self.predicate(of, deeper), self.pick(&["and", "or"])),
                }
            }
            15 => self.guarded_cast(of).unwrap_or_else(|| format!("{column} is not null")),
            16 => self.interval(of).unwrap_or_else(|| format!("{column} is not null")),
            _ => self.subquery(of),
        }
    }

    /// Returns a comparison of a column with a literal.
    fn comparison(&mut self, column: String, name: &str, t: Type) -> String {
        let compare = self.pick(&["=", "<>", "<", "<=", ">", ">="]);
        let literal = self.literal(name, t);
        match t {
            Time => format!("cast({column} as timestamp) {compare} {literal}"),
            Bool => column,
            _ => format!("{column} {compare} {literal}"),
        }
    }

    /// Returns an IN list, or two of them on one column.
    fn membership(&mut self, of: &[Relation]) -> String {
        let not = self.pick(&["", "not "]);
        let Some((column, name, _)) = self.column(of, Some(Text)) else { return "true".to_owned() };
        let mut list: Vec<String> = (0..1 + self.below(3)).map(|_| self.literal(name, Text)).collect();
        if self.chance(0.3) {
            list.push("null".to_owned());
        }
        if self.chance(0.3) {
            list.extend(self.column(of, Some(Text)).map(|(other, ..)| other));
        }
        if self.chance(0.3) {
            let other = self.literal(name, Text);
            let how = self.pick(&["and", "or"]);
            return format!("({column} {not}in ({}) {how} {column} in ('name', {other}))", list.join(", "));
        }
        format!("{column} {not}in ({})", list.join(", "))
    }

    /// Returns a cast of a value behind a guard, if a relation has keys and values. Only the values of the key `score`
    /// are integers: an engine that casts another value has ignored the guard.
    fn guarded_cast(&mut self, of: &[Relation]) -> Option<String> {
        let r = of.iter().find(|r| r.columns.contains(&("value", Text)) && r.columns.contains(&("key", Text)))?;
        let (alias, than) = (&r.alias, self.below(60));
        let guard = format!("{alias}.key = 'score'");
        Some(match self.below(2) {
            0 => format!("case when {guard} then cast({alias}.value as bigint) > {than} end"),
            _ => format!("({guard} and {alias}.value is not null and cast({alias}.value as bigint) > {than})"),
        })
    }

    /// Returns a comparison of an interval between two times, if a relation has times. Comparisons of intervals take a
    /// month as 30 days and a day as 24 hours.
    fn interval(&mut self, of: &[Relation]) -> Option<String> {
        let (later, earlier) = (self.column(of, Some(Time)), self.column(of, Some(Time)));
        let ((later, ..), (earlier, ..)) = (later?, earlier?);
        let compare = self.pick(&["=", "<>", "<", "<=", ">", ">="]);
        let (count, unit) = (self.below(12), self.pick(&["hours", "days", "months", "minutes"]));
        Some(format!("({later} - {earlier}) {compare} interval '{count} {unit}'"))
    }

    fn subquery(&mut self, of: &[Relation]) -> String {
        let (name, inner) = self.relation();
        let inner = [inner];
        let mut condition = self.predicate(&inner, 1);
        let (alias, outer) = (inner[0].alias.clone(), self.column(of, Some(Text)));
        let Some((outer, outer_name, _)) = outer else { return "true".to_owned() };
        let column = match inner[0].columns.contains(&(outer_name, Text)) {
            true => outer_name,
            false => { inner[0].columns.iter() }.find(|(_, t)| *t == Text).map_or("pool", |(name, _)| *name),
        };
        if self.chance(0.3) {
            condition = format!("{alias}.{column} is null");
        }
        let not = self.pick(&["", "not "]);
        match self.below(5) {
            3 => format!("{outer} = any (select {alias}.{column} from {name} {alias} where {condition})"),
            4 => format!("{outer} <> all (select {alias}.{column} from {name} {alias} where {condition})"),
            0 => format!("{not}exists (select 1 from {name} {alias} where {alias}.{column} = {outer} and {condition})"),
            _ => format!("{outer} {not}in (select {alias}.{column} from {name} {alias} where {condition})"),
        }
    }

    fn ending(&mut self, columns: usize) -> (String, bool) {
        if self.chance(0.6) {
            return (String::new(), false);
        }
        let by = |n: usize, desc: bool| {
            format!("{n}{} nulls {}", if desc { " desc" } else { "" }, if desc { "last" } else { "first" })
        };
        let mut order: Vec<usize> = (1..=columns).collect();
        let turned = self.below(columns);
        order.rotate_left(turned);
        let order: Vec<String> = order.into_iter().map(|n| by(n, self.chance(0.3))).collect();
        let mut sql = format!(" order by {}", order.join(", "));
        if self.chance(0.6) {
            sql += &format!(" limit {}", self.below(12));
            if self.chance(0.3) {
                sql += &format!(" offset {}", self.below(5));
            }
        }
        (sql, true)
    }

    fn listed(&mut self, of: &[Relation], most: usize) -> Vec<String> {
        (0..1 + self.below(most)).map(|n| format!("{} as c{n}", self.scalar(of).0)).collect()
    }

    fn plain(&mut self) -> Query {
        let (from, of) = self.from(4);
        let list = self.listed(&of, 4);
        let predicate = self.predicate(&of, 2);
        let (end, ordered) = self.ending(list.len());
        let distinct = if self.chance(0.25) { "distinct " } else { "" };
        let sql = format!("select {distinct}{} from {from} where {predicate}{end}", list.join(", "));
        Query { sql, ordered, filter: Some((from, predicate)) }
    }

    fn counted(&mut self) -> Query {
        let (from, of) = self.from(2);
        let predicate = self.predicate(&of, 3);
        Query {
            sql: format!("select count(*) as c0 from {from} where {predicate}"),
            ordered: false,
            filter: Some((from, predicate)),
        }
    }

    fn summary(&mut self, of: &[Relation]) -> String {
        let int = self.column(of, Some(Int)).map_or("1".to_owned(), |(column, ..)| column);
        let (any, t) = self.scalar(of);
        let any = if t == Bool { int.clone() } else { any };
        match self.below(9) {
            0 => "count(*)".to_owned(),
            1 => format!("count({any})"),
            2 => format!("count(distinct {any})"),
            3 => format!("sum({int})"),
            4 => format!("min({any})"),
            5 => format!("max({any})"),
            6 => format!("avg({int})"),
            7 => {
                let condition = self.predicate(of, 1);
                format!("count(*) filter (where {condition})")
            }
            _ => format!("(min({int}) - count({any}))"),
        }
    }

    fn aggregate(&mut self) -> Query {
        let (from, of) = self.from(3);
        let keys: Vec<String> = (0..self.below(3)).map(|_| self.scalar(&of).0).collect();
        let mut list: Vec<String> = keys.iter().enumerate().map(|(n, key)| format!("{key} as g{n}")).collect();
        list.extend((0..1 + self.below(3)).map(|n| format!("{} as c{n}", self.summary(&of))));
        let predicate = self.predicate(&of, 2);
        let group: Vec<String> = (1..=keys.len()).map(|n| n.to_string()).collect();
        let group = if keys.is_empty() { String::new() } else { format!(" group by {}", group.join(", ")) };
        let having = match keys.is_empty() || self.chance(0.7) {
            true => String::new(),
            false => format!(" having count(*) > {}", self.below(3)),
        };
        let (end, ordered) = self.ending(list.len());
        let sql = format!("select {} from {from} where {predicate}{group}{having}{end}", list.join(", "));
        Query { sql, ordered, filter: Some((from, predicate)) }
    }

    /// Returns an ORDER BY list of every column, so that only rows that are equal in all of them may change places.
    fn total_order(of: &Relation) -> String {
        let names: Vec<String> =
            of.columns.iter().map(|(name, _)| format!("{}.{name} nulls first", of.alias)).collect();
        names.join(", ")
    }

    fn window(&mut self) -> Query {
        let (name, relation) = self.relation();
        let of = [relation];
        let (alias, order) = (&of[0].alias, Self::total_order(&of[0]));
        let part = self.column(&of, Some(Text)).map_or(String::new(), |(column, ..)| format!("partition by {column} "));
        let int = self.column(&of, Some(Int)).map_or("1".to_owned(), |(column, ..)| column);
        let over = format!("over ({part}order by {order})");
        let call = match self.below(5) {
            0 => format!("row_number() {over}"),
            1 => format!("rank() {over}"),
            2 => format!("sum({int}) {over}"),
            3 => format!("lag({int}) {over}"),
            _ => format!("(count(*) {over} - row_number() {over})"),
        };
        let predicate = self.predicate(&of, 1);
        let sql = format!("select {int} as c0, {call} as c1 from {name} {alias} where {predicate}");
        Query { sql, ordered: false, filter: None }
    }

    fn set_operation(&mut self) -> Query {
        let mut side = || {
            let (name, relation) = self.relation();
            let of = [relation];
            let column = |g: &mut Self, t| g.column(&of, Some(t)).map(|(column, ..)| column);
            let text = column(self, Text).unwrap_or_else(|| "'-'".to_owned());
            let int = column(self, Int).unwrap_or_else(|| "0".to_owned());
            let predicate = self.predicate(&of, 1);
            format!("select {text} as c0, {int} as c1 from {name} {} where {predicate}", of[0].alias)
        };
        let (a, b) = (side(), side());
        let how = self.pick(&["union", "union all", "intersect", "except"]);
        let sql = format!("select c0, c1 from ({a} {how} {b}) u");
        Query { sql, ordered: false, filter: None }
    }

    /// Joins three relations that share column names, on values. A filter that is passed on by column name alone
    /// reaches the wrong column here.
    fn joined_on_values(&mut self) -> Query {
        let view = self.pick(&["sync_records", "sync_records", "changes", "current_state"]);
        let on =
            self.pick(&["a.key = b.key and a.value = b.value", "a.value = b.value", "a.key = b.key and a.op = b.op"]);
        let from = format!("{view} a join {view} b on {on} join {view} c on b.identity_id = c.identity_id");
        let columns = if view == "current_state" { STATE } else { CHANGES };
        let columns = &columns[..columns.len() - 1];
        let c = [Relation { alias: "c".to_owned(), columns }];
        let narrow = [self.predicate(&c, 0), self.predicate(&c, 0)].join(" and ");
        let list = "a.identity_id as c0, b.identity_id as c1, c.key as c2";
        let (end, ordered) = match self.chance(0.5) {
            true => (" order by 1, 2, 3 nulls first limit 20".to_owned(), true),
            false => (String::new(), false),
        };
        let narrow = format!("{narrow} and a.dataset_name <> '..' and c.dataset_name = 'prefs'");
        Query { sql: format!("select {list} from {from} where {narrow}{end}"), ordered, filter: Some((from, narrow)) }
    }

    /// Subtracts counts and row numbers, so that results may be negative.
    fn differences(&mut self) -> Query {
        let same = "a.identity_id = b.identity_id and a.dataset_name = b.dataset_name and a.key = b.key";
        let sql = match self.below(5) {
            0 => format!("select a.copies - b.copies as c0 from changes a join changes b on {same}"),
            1 => format!(
                "select a.changes_in_day - b.changes_in_day - 1 as c0 from daily_changes a join daily_changes b on {same}"
            ),
            2 => {
                let order =
                    RECORDS.iter().map(|(name, _)| format!("{name} nulls first")).collect::<Vec<_>>().join(", ");
                format!(
                    "select rank() over (order by {order}) - rank() over (partition by pool order by {order}) - 2 \
                     as c0 from sync_records"
                )
            }
            3 => {
                let big = self.pick(&["9223372036854775807", "9223372036854775800"]);
                let sign = self.pick(&["+", "- -"]);
                format!("select sync_count {sign} {big} as c0 from sync_records where sync_count > {}", self.below(9))
            }
            _ => "select max(copies) - 5 as c0, min(copies) - max(copies) as c1 from changes group by identity_id"
                .to_owned(),
        };
        Query { sql, ordered: false, filter: None }
    }
}
