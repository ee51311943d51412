//! Tests docs/sql.md: its commands make a lake, and each question has an answer there. Tests the views of the questions on
//! rows that no file can have.

use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::SessionContext;
use synclake::query::views;

use crate::harness::{ok, query};
use crate::readme::run_blocks_in;

const DOCUMENT: &str = include_str!("../../docs/sql.md");
/// Heading of the questions that need at most five lines each.
const SHORT: &str = "\n## Twelve questions of analysts\n";

/// Returns the text between two marks, without them.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    Some(text.split_once(from)?.1.split_once(to)?.0)
}

/// Returns title, SQL and first rows of each question below headings of the third level.
fn questions(document: &str) -> Vec<(&str, &str, Vec<String>)> {
    let sections = document.split("\n### ").skip(1).map(|section| section.split("\n## ").next().unwrap());
    sections
        .map(|section| {
            let title = section.lines().next().unwrap();
            let sql = between(section, "```sql\n", "\n```").unwrap_or_else(|| panic!("{title} has no SQL"));
            let shown = between(section, "```text\n", "\n```").unwrap_or_default();
            (title, sql, cells(shown))
        })
        .collect()
}

/// Returns the lines of a ruled table that hold cells, without the padding, because it depends on the rows that are left out.
fn cells(table: &str) -> Vec<String> {
    let lines = table.lines().filter(|line| line.starts_with('|'));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Each question has an answer, which begins with the rows that the document shows.
#[test]
fn every_question_has_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    run_blocks_in(folder.path(), DOCUMENT, 1);
    let asked = questions(DOCUMENT);
    assert_eq!(asked.len(), 30);
    assert_eq!(DOCUMENT.matches("```sql\n").count(), asked.len(), "a block of SQL is outside of a question");
    let mut shown_rows = 0;
    for (title, sql, shown) in asked {
        let answer = ok(query().arg("--lake").arg(folder.path().join("lake")).args(["-c", sql]));
        let answer = cells(&answer);
        // The first line has the names of the columns.
        assert!(answer.len() > 1, "{title} has no answer");
        assert_eq!(shown, answer[..shown.len().min(answer.len())], "{title}");
        shown_rows += shown.len().saturating_sub(1);
    }
    assert!(shown_rows >= 15, "the document shows only {shown_rows} rows");
}

/// The twelve questions of analysts are short.
#[test]
fn questions_of_analysts_are_short() {
    let rest = DOCUMENT.split_once(SHORT).unwrap().1;
    let asked = questions(rest.split("\n## ").next().unwrap());
    assert_eq!(asked.len(), 12);
    for (title, sql, _) in asked {
        assert!(sql.lines().count() <= 5, "{title} has {} lines", sql.lines().count());
    }
}

/// Returns the answer of a query over one view, whose only table is `table`, filled by `rows`.
async fn answer(table: &str, rows: &str, view: &str, sql: &str) -> Vec<String> {
    let context = SessionContext::new();
    context.sql(&format!("create table {table} as {rows}")).await.unwrap().collect().await.unwrap();
    views::register(&context, &[view]).await.unwrap();
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    cells(&pretty_format_batches(&batches).unwrap().to_string()).split_off(1)
}

/// The first copy of a change decides whether it is late. A copy is equal in `op` and `value` too.
#[tokio::test]
async fn late_changes_arrived_on_a_later_day() {
    let rows =
        "select 'p' as pool, cast('2026-01-05' as date) as event_date, 'p:' as identity_pool_id, 'i' as identity_id,
          'd' as dataset_name, column1 as key, column2 as op, column3 as value, 1 as sync_count,
          cast('2026-01-05T12:00:00Z' as timestamp with time zone) as last_modified_date,
          cast(column4 as timestamp with time zone) as arrived_at, cast(column5 as bigint) as copies
        from (values
          ('in time', 'replace', 'v', '2026-01-05T23:59:59Z', null),
          ('ahead', 'replace', 'v', '2026-01-04T01:00:00Z', null),
          ('late', 'replace', 'v', '2026-01-06T00:00:00Z', 3),
          ('published', 'replace', 'v', '2026-01-05T12:00:01Z', null),
          ('published', 'replace', 'v', '2026-01-09T12:00:00Z', null),
          ('late and published', 'replace', 'v', '2026-01-09T12:00:00Z', null),
          ('late and published', 'replace', 'v', '2026-01-07T12:00:00Z', 2),
          ('other value', 'replace', 'v', '2026-01-05T12:00:01Z', null),
          ('other value', 'replace', null, '2026-01-08T12:00:00Z', null),
          ('null', 'replace', null, '2026-01-05T12:00:01Z', null),
          ('null', 'replace', null, '2026-01-08T12:00:00Z', null),
          (null, 'remove', null, '2026-01-07T01:00:00Z', null),
          (null, 'replace', null, '2026-01-07T02:00:00Z', null))";
    let sql = "select coalesce(key, '(dataset)') as key, coalesce(value, '(null)') as value, days_late,
          date_part('day', arrived_at) as day, late_copies
        from late_changes order by 1";
    let expected = [
        "| (dataset) | (null) | 2 | 7 | 1 |",
        "| late | v | 1 | 6 | 3 |",
        "| late and published | v | 2 | 7 | 3 |",
        "| other value | (null) | 3 | 8 | 1 |",
    ];
    assert_eq!(answer("sync_records", rows, "late_changes", sql).await, expected);
}

/// Each limit is the nearest one for some identity. Removed keys and removed datasets use nothing.
#[tokio::test]
async fn usage_names_the_nearest_limit() {
    let rows = "select 'p' as pool, 'p:' as identity_pool_id, identity_id, dataset_name, key, value, op, is_after_removal from (
          select 'keys' as identity_id, 'd' as dataset_name, cast(unnest(range(0, 512)) as varchar) as key, 'v' as value,
            'replace' as op, true as is_after_removal
          union all select 'datasets', cast(unnest(range(0, 25)) as varchar), 'k', '', 'replace', true
          union all select 'bytes', 'd', 'k', repeat('é', 524287), 'replace', true
          union all select 'full', cast(unnest(range(0, 20)) as varchar), 'kk', repeat('é', 524287), 'replace', true
          union all select 'removed', 'd', 'k', repeat('x', 1048575), 'replace', false
          union all select 'removed', 'd', null, null, 'remove', false
          union all select 'removed', 'e', 'k', null, 'remove', true)";
    let sql = "select identity_id, datasets, live_keys, bytes, largest_dataset_keys as keys, nearest_limit,
          round(share_of_limits, 3) as share
        from identity_usage order by identity_id";
    let expected = [
        "| bytes | 1 | 1 | 1048575 | 1 | bytes of a dataset | 1.0 |",
        "| datasets | 25 | 25 | 25 | 1 | datasets of the identity | 1.25 |",
        "| full | 20 | 20 | 20971520 | 1 | bytes of the identity | 1.0 |",
        "| keys | 1 | 512 | 1938 | 512 | keys of a dataset | 0.5 |",
        "| removed | 1 | 0 | 0 | 0 | datasets of the identity | 0.05 |",
    ];
    assert_eq!(answer("key_state", rows, "identity_usage", sql).await, expected);
}
