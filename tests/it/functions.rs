//! Functions and statements beyond DataFusion's, by the files in `functions/`: JSON, dates, calls of other engines,
//! DESCRIBE, SHOW and SUMMARIZE; and parameters.

use std::path::{Path, PathBuf};

use synclake::aws::AwsSettings;
use synclake::lake::{Location, Store};
use synclake::query::{Engine, Limits, Parameters, QueryError, Scope};

use crate::harness::{ingest_file, simulate};
use crate::views::Lake;

fn lake(folder: &Path) -> PathBuf {
    let lake = folder.join("lake");
    ingest_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden.ndjson"), &lake);
    lake
}

async fn engine(lake: &Path, parameters: &[&str]) -> Engine {
    let store = Store::open(&Location::Folder(lake.to_path_buf()), &AwsSettings::default()).await.unwrap();
    let engine = Engine::open(&store, &Limits::default(), Scope::default()).unwrap();
    engine.with_parameters(Parameters::read(parameters).unwrap())
}

/// Returns the cells of an answer, row by row.
async fn cells(engine: &Engine, sql: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for batch in engine.sql(sql).await.unwrap().collect().await.unwrap() {
        for row in 0..batch.num_rows() {
            let cell = |column| arrow::util::display::array_value_to_string(column, row).unwrap();
            rows.push(batch.columns().iter().map(|column| cell(column)).collect());
        }
    }
    rows
}

/// Each file's answers are those that the engine gives.
#[tokio::test(flavor = "multi_thread")]
async fn every_file() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path());
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/functions");
    let mut files: Vec<_> = std::fs::read_dir(files).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4);
    for file in files {
        let mut runner = sqllogictest::Runner::new(|| async { Ok(Lake(engine(&lake, &[]).await)) });
        runner.run_file_async(&file).await.unwrap();
    }
}

/// SHOW TABLES lists what `\d` lists, and nothing of the engine.
#[tokio::test(flavor = "multi_thread")]
async fn tables_and_views_are_shown_with_their_purpose() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(&lake(folder.path()), &[]).await;
    let shown = cells(&engine, "show tables").await;
    let known: Vec<_> = synclake::query::catalog::relations()
        .iter()
        .map(|known| vec![known.name.to_owned(), known.kind.to_owned(), known.about.to_owned()])
        .collect();
    assert_eq!(shown, known);
    assert!(known.iter().any(|row| row[0] == "key_state" && row[1] == "view"));
    let views: Vec<_> = known.into_iter().filter(|row| row[1] == "view").collect();
    assert_eq!(cells(&engine, "show views").await, views);
    assert_eq!(cells(&engine, "show columns in Gaps").await, cells(&engine, "describe gaps").await);
}

/// A parameter means what a literal in its place means, and a text in it is no SQL.
#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_literals() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path());
    let engine = engine(&lake, &["day=2026-01-03", "n=1", "who=x' or 'a' = 'a", "few=-1.5"]).await;
    let one = async |sql: &str| cells(&engine, sql).await.concat().concat();
    let days = "(values (date '2026-01-02'), (date '2026-01-03')) t(day)";
    assert_eq!(one(&format!("select count(*) from {days} where day >= $day")).await, "1");
    assert_eq!(one("select date_diff('day', $day::date, date '2026-01-05') + $n").await, "3");
    assert_eq!(one("select count(*) from sync_records where identity_id = $who").await, "0");
    assert_eq!(one("select 2 * $few").await, "-3.0");
    assert_eq!(one("select count(*) from (select * from sync_records limit $n)").await, "1");
    assert_eq!(cells(&engine, "summarize select $n as n").await[0][..3], ["n", "bigint", "1"]);
    for (sql, part) in [
        ("select $nothing", "parameter $nothing has no value; add --param nothing=value"),
        ("select ?", "write $name"),
        ("select * from sync_records where value > $n", "text"),
    ] {
        let answered = async { Ok::<_, QueryError>(engine.sql(sql).await?.collect().await?) };
        let error = answered.await.unwrap_err().to_string();
        assert!(error.contains(part), "{sql}: {error}");
    }
}

/// Completion offers each dataset of a lake of some thousand rows, though statistics name only two of each file.
#[tokio::test]
async fn the_words_of_a_lake_have_all_its_datasets() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    let (events, _) = simulate(folder.path(), &["--seed", "7", "--events", "5000"]);
    ingest_file(&events, &lake);
    let engine = engine(&lake, &[]).await;
    let words = engine.vocabulary().await.unwrap();
    let all = cells(&engine, "select distinct dataset_name from sync_records").await;
    assert!(all.len() > 5, "{all:?}");
    for name in all.iter().flatten() {
        assert!(words.values["dataset_name"].contains(name), "{name}: {:?}", words.values);
    }
}
