//! Tests of answers that the underlying libraries get wrong without a guard.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{ingest_file, ok, query, refused, synclake, text};

const START_MS: i64 = 1_767_225_600_000;

fn event(identity: &str, dataset: &str, sync_count: i64, day: i64, records: &[(&str, Option<&str>)]) -> String {
    let at = START_MS + day * 86_400_000;
    let record = |(key, value): &(&str, Option<&str>)| {
        json!({"key": key, "value": value, "op": if value.is_some() { "replace" } else { "remove" },
               "syncCount": sync_count, "lastModifiedDate": at, "deviceLastModifiedDate": at})
    };
    let records: Vec<Value> = records.iter().map(record).collect();
    let operation = if records.is_empty() { "remove" } else { "replace" };
    let mut event = json!({
        "identityPoolId": "us-east-1:00aa", "identityId": identity, "dataSetName": dataset, "operation": operation,
        "lastModifiedDate": at, "syncCount": sync_count,
    });
    if operation == "replace" {
        event["kinesisSyncRecords"] = Value::from(records);
    }
    event.to_string()
}

fn lake(folder: &Path, events: &[String]) -> PathBuf {
    let (file, lake) = (folder.join("events.ndjson"), folder.join("lake"));
    std::fs::write(&file, events.join("\n") + "\n").unwrap();
    ingest_file(&file, &lake);
    lake
}

fn csv(lake: &Path, sql: &str) -> String {
    ok(query().arg("--lake").arg(lake).args(["--format", "csv", "-c", sql]))
}

/// Returns a lake of five identities and one row without a key. Only values of `score` are numbers.
fn small(folder: &Path) -> PathBuf {
    let mut events: Vec<String> = (0..5)
        .map(|n| event(&format!("us-east-1:0{n}"), "d", 1, n % 2, &[("score", Some("50")), ("name", Some("anna"))]))
        .collect();
    events.push(event("us-east-1:00", "gone", 2, 1, &[]));
    lake(folder, &events)
}

/// A filter of a join applies to its own column, not to another column of the same name.
#[test]
fn filters_find_their_column_among_others_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut events: Vec<String> = (0..300)
        .map(|n| {
            event(&format!("us-east-1:{n:04x}"), "prefs", 1, n / 100, &[("colour", Some(&format!("c{}", n % 30)))])
        })
        .collect();
    events.push(event("us-east-1:0005", "vip", 1, 0, &[("tier", Some("gold"))]));
    let lake = lake(folder.path(), &events);
    for table in ["sync_records", "changes", "current_state"] {
        let of = format!(
            "from {table} a join {table} b on a.key = b.key and a.value = b.value join {table} c on \
             b.identity_id = c.identity_id where a.dataset_name = 'prefs' and b.dataset_name = 'prefs' and c.dataset_name = 'vip'"
        );
        assert_eq!(csv(&lake, &format!("select count(*) as n {of}")), "n\n10\n", "{table}");
        let pairs = csv(&lake, &format!("select a.identity_id, b.identity_id as vip {of} order by 1"));
        assert_eq!(pairs.lines().count(), 11, "{table}\n{pairs}");
        let first = csv(&lake, &format!("select a.identity_id as who {of} order by 1 limit 3"));
        assert_eq!(first, "who\nus-east-1:0005\nus-east-1:0023\nus-east-1:0041\n", "{table}");
    }
}

/// Conditions follow SQL's three-valued logic, evaluate guards first, and count alike in WHERE and SELECT.
#[test]
fn conditions_mean_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let lake = small(folder.path());
    for (table, condition, expected) in [
        // Unknown is not false below IS FALSE, NOT or a comparison, even if another part of the condition can fail.
        ("sync_records", "(op = 'x' or case when key = 'score' then value::int > 60 end) is false", 5),
        ("sync_records", "not (op = 'x' or case when key = 'score' then value::int > 60 end)", 5),
        ("sync_records", "(op = 'x' or case when key = 'score' then value::int > 60 end) = false", 5),
        (
            "sync_records",
            "(op <> 'x' and case when key = 'score' then value::int > 60 end) is not distinct from false",
            5,
        ),
        // A condition that simplifies to NULL matches no row.
        ("sync_records", "key not in ('a', null)", 0),
        ("changes", "key <> 'a' and key <> null", 0),
        ("current_state", "key <> 'a' and null", 0),
        // Conditions over partition columns alone, in forms that the Delta kernel does not support.
        ("sync_records", "case when pool = 'x' then true else false end", 0),
        ("sync_records", "(event_date <= date '2020-01-01') is not distinct from true", 0),
        ("sync_records", "(event_date = date '2026-01-01') <> (pool = 'x')", 6),
        ("sync_records", "(pool <= 'x') is true", 11),
        // A guard is evaluated before the expression that it guards.
        ("sync_records", "case when key = 'score' then cast(value as int) > 40 end", 5),
        ("sync_records", "value <> '' and key <> 'name' and cast(value as int) > 40", 5),
        ("sync_records", "key = 'name' or cast(value as int) > 40", 10),
        // Unknown is not false.
        ("sync_records", "key = 'zz' or key not in (select s.key from sync_records s where s.key is null)", 0),
        ("sync_records", "(key in (select s.key from sync_records s where s.key is null)) is null", 11),
        (
            "sync_records",
            "not (case when op = 'replace' then key in (select s.key from sync_records s where s.key is null) else true end)",
            0,
        ),
        ("sync_records", "key is distinct from 'name' and op = 'replace'", 5),
    ] {
        let filtered = csv(&lake, &format!("select count(*) as n from {table} where {condition}"));
        assert_eq!(filtered, format!("n\n{expected}\n"), "{table} where {condition}");
        let counted = format!(
            "select coalesce(sum(case when p then 1 else 0 end), 0) as n from (select ({condition}) as p from {table}) r"
        );
        assert_eq!(csv(&lake, &counted), format!("n\n{expected}\n"), "{counted}");
    }
    let counted = "select count(*) filter (where key in (select key from current_state)) as n, \
                   count(*) filter (where exists (select 1 from current_state c where c.key = r.key)) as e from sync_records r";
    assert_eq!(csv(&lake, counted), "n,e\n10,10\n");
    let distinct = "select count(*) as n, count(distinct (identity_id, key, value)) as d from sync_records";
    assert_eq!(csv(&lake, distinct), "n,d\n11,11\n");
}

/// Integer overflow is an error with advice, never a wrong number.
#[test]
fn numbers_do_not_wrap_around() {
    let folder = tempfile::tempdir().unwrap();
    let most = i64::MAX;
    let events = ["us-east-1:01", "us-east-1:02"].map(|who| event(who, "d", most, 0, &[("k", Some("v"))]));
    let lake = lake(folder.path(), &events);
    let run = |sql: &str| query().arg("--lake").arg(&lake).args(["-c", sql]).output().unwrap();
    for sql in [
        "select sum(sync_count) from sync_records",
        "select sum(sync_count) over () from sync_records",
        "select sync_count + 1 from sync_records",
        "select -sync_count - 2 from sync_records",
        "select sync_count * 2 from sync_records",
        "select 9223372036854775807 + 1",
    ] {
        refused(&run(sql), 1, &["bigint overflow", "decimal(38,0)"]);
    }
    assert_eq!(
        csv(&lake, "select sum(cast(sync_count as decimal(38,0))) as s from sync_records"),
        "s\n18446744073709551614\n"
    );
    let differences = "select min(a.copies - b.copies - 1) as c, min(row_number) as r from changes a join changes b on a.key = b.key, \
                       (select row_number() over (order by key) - 5 as row_number from changes) n";
    assert_eq!(csv(&lake, differences), "c,r\n-1,-4\n");
}

/// SQL that would be ignored or misunderstood is rejected, and `--as-of` applies to every table or is rejected.
#[test]
fn what_would_be_ignored_or_mistaken_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lake = small(folder.path());
    let run = |args: &[&str]| query().arg("--lake").arg(&lake).args(args).output().unwrap();
    for (sql, parts) in [
        ("select * from sync_records tablesample (10 percent)", ["TABLESAMPLE", "random()"]),
        ("select * from sync_records for update", ["FOR UPDATE", "leave them out"]),
        ("select top 1 * from sync_records", ["TOP", "LIMIT"]),
        ("select sum(sync_count ignore nulls) from sync_records", ["IGNORE", "NULLS are not permitted for sum"]),
        ("select * from sync_records where event_date = 2026-02-01", ["2026", "'2026-02-01'"]),
        ("select * from sync_records where value > 40", ["value", "cast"]),
        ("select k from (values (1)) a(k) full join (values (2)) b(k) using (k)", ["USING", "coalesce(a.k, b.k)"]),
        ("select k from (values (1)) a(k) natural right join (values (2)) b(k)", ["NATURAL", "coalesce(a.k, b.k)"]),
    ] {
        refused(&run(&["-c", sql]), 1, &parts);
    }
    for table in ["state", "quarantine"] {
        refused(&run(&["--as-of", "2026-01-01", "-c", &format!("select * from {table}")]), 1, &[table, "--as-of"]);
    }
    ok(synclake().args(["extract", "--date", "2026-01-01", "--lake"]).arg(&lake));
    ok(synclake().args(["extract", "--date", "2026-01-02", "--lake"]).arg(&lake));
    let days = "select distinct extract_date as d from daily_state order by 1";
    let as_of = run(&["--as-of", "2026-01-01", "--format", "csv", "-c", days]);
    assert_eq!(text(&as_of.stdout), "d\n2026-01-01\n");
}

/// SQL that DataFusion understands differently from other databases is answered as they answer it, or rejected with an
/// alternative.
#[test]
fn what_others_understand_otherwise_is_understood_as_they_do() {
    let folder = tempfile::tempdir().unwrap();
    let lake = small(folder.path());
    let one = |sql: &str| csv(&lake, sql).lines().nth(1).unwrap_or_default().to_owned();
    for (sql, expected) in [
        // The column of the subquery has the same name as the outer column.
        ("select count(*) from sync_records where key = any (select key from sync_records where key = 'name')", "5"),
        ("select count(*) from sync_records where key <> all (select key from sync_records where key = 'name')", "5"),
        (
            "select count(*) from changes where key = 'x' or key = some (select key from changes where key = 'name')",
            "5",
        ),
        // Lists compare values, however they are written, and unknown is not false.
        (
            "select count(*) from (values ('q'), ('r'), (null)) t(a) cross join (values ('q')) s(b) where a not in ('q', 'z') and a in (b, 'w')",
            "0",
        ),
        (
            "select count(*) from (values ('x'), ('y'), ('z')) t(a) cross join (values ('y')) s(b) where a in ('x', 'y') and a in (b, 'x')",
            "2",
        ),
        (
            "select count(*) from (values ('x'), ('y'), ('z')) t(a) cross join (values ('y')) s(b) where (a = 'x' or a = 'y') and a in (b, 'x')",
            "2",
        ),
        (
            "select count(*) from (select a as c from (values ('x'), ('y'), ('z')) t(a) where a in ('x', 'y')) u cross join (values ('y')) s(b) where c in (b, 'x')",
            "2",
        ),
        ("select count(*) from (values ('x'), (null)) t(a) where (a in ('x', 'y') and a in ('z', 'w')) is null", "1"),
        (
            "select count(*) from (values ('x'), (null)) t(a) where ((a = 'x' or a = 'y') and (a = 'z' or a = 'w')) is null",
            "1",
        ),
        (
            "select count(*) from (values ('x'), (null)) t(a) where (a not in ('x', 'y') and a in ('z', 'w', null)) is false",
            "1",
        ),
        (
            "select count(*) from (values ('q'), ('r')) t(a) cross join (values ('q')) s(b) where a not in (b, 'x') or a not in ('q', 'x')",
            "1",
        ),
        (
            "select count(*) from (select 'y' as b) s join changes t on t.key in ('score', 'y', b) where t.key in ('name', b, 'score') and t.key in ('name', 'score', t.op)",
            "5",
        ),
        (
            "select count(*) from sync_records t where t.key in ('a', 'name') and t.key in (t.key, 'a') and t.key in (t.key, 'b') and t.key in (t.key, 'c')",
            "5",
        ),
        // Intervals compare by their length.
        ("select count(*) from sync_records where now() - last_modified_date < interval '7 days'", "0"),
        (
            "select count(*) from sync_records where timestamptz '2026-01-08 00:00:00Z' - last_modified_date > interval '6 days'",
            "6",
        ),
        (
            "select count(*) from sync_records where now() - last_modified_date between interval '1 day' and interval '2 days'",
            "0",
        ),
        ("select interval '40 days' > interval '1 month'", "true"),
        ("select interval '36 hours' > interval '1 day'", "true"),
        ("select interval '24 hours' = interval '1 day'", "true"),
        ("select interval '24 hours' in (interval '1 day')", "true"),
        ("select i from (values (interval '36 hours'), (interval '1 day')) t(i) order by i limit 1", "1 day"),
        // Decimal arithmetic is exact or an error.
        (
            "select sum(x) from (values ('9999999999999999999.5'::decimal(38,18)), ('0.5'::decimal(38,18))) t(x)",
            "10000000000000000000.000000000000000000",
        ),
        (
            "select sum(x) over (order by x rows between 1 preceding and current row) as s from (values ('1.5'::decimal(38,18)), ('2'::decimal(38,18))) t(x) order by s desc limit 1",
            "3.500000000000000000",
        ),
        ("select 12345678901234567890::decimal(38,0)", "12345678901234567890"),
        ("select 0.1 + 3.141592653589793 > 3.24", "true"),
        // Two columns with the same name for the planner.
        (
            "select sum(x), sum(x::decimal(38,0)), sum(x) from (values (9223372036854775800), (1)) t(x)",
            "9223372036854775801,9223372036854775801,9223372036854775801",
        ),
        ("select max(x::varchar), max(x), x::varchar, x from (values (9), (9)) t(x) group by x", "9,9,9,9"),
        ("select count(*), count(*) from (values (1)) t(x)", "1,1"),
        // Printed lists keep their elements distinguishable.
        (
            "select array['a, b'], array['a', 'b'], array[null], array['']",
            "\"[\"\"a, b\"\"]\",\"[\"\"a\"\",\"\"b\"\"]\",[null],\"[\"\"\"\"]\"",
        ),
    ] {
        assert_eq!(one(sql), expected, "{sql}");
    }
    for (sql, parts) in [
        (
            "select count(*) from sync_records where sync_count > any (select sync_count from sync_records)",
            ["ANY", "min("],
        ),
        (
            "select count(*) from sync_records where sync_count >= all (select sync_count from sync_records)",
            ["ALL", "max("],
        ),
        ("select 1 intersect all select 1", ["INTERSECT ALL", "row_number()"]),
        ("(select 1 except all select 2) union all select 3", ["EXCEPT ALL", "row_number()"]),
        ("select 2 ^ 3", ["^", "power(a, b)"]),
        ("select 1_000", ["1_000", "without _"]),
        ("select 0x1F", ["0x1F", "decimal"]),
        ("select 'a' 'b'", ["'b'", "||"]),
        (
            "select 12345678901234567890123::decimal(38,0)",
            ["12345678901234567890123", "'12345678901234567890123'::decimal(38,0)"],
        ),
        ("select 18446744073709551616 = 18446744073709551617", ["18446744073709551616", "decimal"]),
        ("select 12345678901234567890.25::decimal(38,2)", ["12345678901234567890.25", "decimal(38,2)"]),
        (
            "select sum('99999999999999999999'::decimal(38,18)) from (values (1), (2)) t(x)",
            ["overflow in sum", "scale"],
        ),
        ("select '99999999999999999999999999999999999999'::decimal(38,0) + 1", ["decimal(38,0) overflow", "digits"]),
        ("select distinct i from (values (interval '1 day'), (interval '24 hours')) t(i)", ["DISTINCT", "epoch"]),
        ("select max(i) from (values (interval '1 day'), (interval '36 hours')) t(i)", ["max", "epoch"]),
    ] {
        refused(&query().arg("--lake").arg(&lake).args(["-c", sql]).output().unwrap(), 1, &parts);
    }
}

/// A key of a GROUP BY and its cast to text are two columns.
#[test]
fn a_column_and_its_cast_are_two_groups() {
    let folder = tempfile::tempdir().unwrap();
    let lake = small(folder.path());
    let sql = "select live_keys as n, cast(live_keys as varchar) as t, min(dataset_name) as d from dataset_state \
               where (pool = 'p') is distinct from (identity_id is not null) group by 1, 2 order by 1";
    assert_eq!(csv(&lake, sql), "n,t,d\n0,0,gone\n2,2,d\n");
    let sql = "select live_keys as n, cast(live_keys as varchar) as t, count(distinct dataset_name) as d from \
               dataset_state group by 1, 2 order by 1";
    assert_eq!(csv(&lake, sql), "n,t,d\n0,0,1\n2,2,1\n");
}

/// A filter reads its own column, also if a column of the same name is selected above it.
#[test]
fn a_filter_below_a_projection_reads_its_own_column() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = crate::harness::simulate(folder.path(), &["--events", "300", "--days", "2"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    ok(synclake().args(["extract", "--date", "2026-01-02", "--lake"]).arg(&lake));
    let joined = "from daily_state t1 join daily_state t2 on t1.identity_id = t2.identity_id \
                  right join resolved t3 on t1.identity_id = t3.identity_id and t1.value = t3.value";
    let rows = |condition: &str| {
        let sql = format!(
            "select case when t3.sync_count between 0 and 5 then t2.sync_count end as n, t1.last_modified_date as at \
             {joined} where (t2.last_modified_date - t2.last_modified_date) {condition} interval '4 minutes'"
        );
        csv(&lake, &sql).lines().count() - 1
    };
    let all = csv(&lake, &format!("select count(t2.last_modified_date) as n {joined}"));
    assert_eq!((rows(">="), format!("n\n{}\n", rows("<"))), (0, all.clone()));
    assert_ne!(all, "n\n0\n");
}

/// A scalar subquery and another column of its name are two columns.
#[test]
fn a_subquery_beside_a_column_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let lake = small(folder.path());
    let sql = "select count(*), (select count(*) from current_state) from sync_records";
    assert_eq!(csv(&lake, sql).lines().last(), Some("11,10"));
}

/// Parquet holds the types that the result has, and intervals as text.
#[test]
fn parquet_holds_results_of_every_type() {
    let folder = tempfile::tempdir().unwrap();
    let lake = small(folder.path());
    let file = folder.path().join("x.parquet");
    for (sql, value) in [
        ("select case when op = 'remove' then 1 else 1.5 end as x from sync_records where key = 'name' limit 1", "1.5"),
        ("select x from (select null as x union all select 1) t where x is not null", "1"),
        ("select interval '90 minutes' as x", "'01:30:00'"),
    ] {
        ok(query().arg("--lake").arg(&lake).args(["--format", "parquet", "-c", sql, "-o"]).arg(&file));
        let script = "import sys, pyarrow.parquet as p; print(repr(p.read_table(sys.argv[1])['x'][0].as_py()))";
        let mut python = crate::harness::python();
        assert_eq!(ok(python.args(["-c", script]).arg(&file)).trim(), value, "{sql}");
    }
}

/// The second part of a recursive query keeps its values, or the query is refused.
#[test]
fn recursion_keeps_its_values() {
    let folder = tempfile::tempdir().unwrap();
    let lake = small(folder.path());
    let run = |first: &str, next: &str| {
        let sql = format!(
            "with recursive r(n) as (select {first} union all select {next} from r where n < 4) select n from r"
        );
        query().arg("--lake").arg(&lake).args(["--format", "csv", "-c", &sql]).output().unwrap()
    };
    refused(&run("1", "n + 1.7"), 1, &["WITH RECURSIVE", "n + ", "cast it"]);
    assert_eq!(text(&run("1", "n + 1").stdout), "n\n1\n2\n3\n4\n");
    assert_eq!(text(&run("1.0", "n + 1.5").stdout), "n\n1.0\n2.5\n4.0\n");
    assert_eq!(text(&run("1.5", "cast(n + 1 as bigint)").stdout), "n\n1.5\n2.0\n3.0\n4.0\n");
    assert_eq!(text(&run("1", "cast(n + 1.7 as bigint)").stdout), "n\n1\n2\n3\n4\n");
}

/// Lists of a partition column, which are cast each in its own way, are conditions of their own too.
#[test]
fn lists_of_a_partition_column_stay_apart() {
    let folder = tempfile::tempdir().unwrap();
    let lake = small(folder.path());
    for table in ["sync_records", "changes", "current_state"] {
        let all = csv(&lake, &format!("select count(*) as n from {table} where pool in ('name', 'us-east-1_00aa')"));
        assert_ne!(all, "n\n0\n", "{table}");
        for condition in ["is true", "", "is not distinct from true"] {
            let both = format!("(pool not in ('x', null) and pool in ('name', 'us-east-1_00aa')) {condition}");
            assert_eq!(
                csv(&lake, &format!("select count(*) as n from {table} where {both}")),
                "n\n0\n",
                "{table} {both}"
            );
        }
    }
}
