//! Tests every view with sqllogictest, over a lake that the real program wrote.

use std::path::Path;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use sqllogictest::{DBOutput, DefaultColumnType};
use synclake::aws::AwsSettings;
use synclake::lake::{Location, Store};
use synclake::query::{Engine, Limits, QueryError, Scope};

use crate::harness::ingest_file;

pub(crate) struct Lake(pub(crate) Engine);

#[async_trait::async_trait]
impl sqllogictest::AsyncDB for Lake {
    type Error = QueryError;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, QueryError> {
        let frame = self.0.sql(sql).await?;
        let types = vec![DefaultColumnType::Any; frame.schema().fields().len()];
        let options = FormatOptions::default().with_null("NULL");
        let mut rows = Vec::new();
        for batch in frame.collect().await? {
            let columns: Vec<_> =
                batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
            for row in 0..batch.num_rows() {
                let cell = |f: &ArrayFormatter<'_>| match f.value(row).to_string() {
                    empty if empty.is_empty() => "(empty)".to_owned(),
                    text => text.replace(' ', "␠"),
                };
                rows.push(columns.iter().map(cell).collect());
            }
        }
        Ok(DBOutput::Rows { types, rows })
    }

    async fn shutdown(&mut self) {}
}

/// Every view has a `.slt` file, and its answers match that file, also without the code that answers instead of its SQL.
#[tokio::test(flavor = "multi_thread")]
async fn every_view() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    ingest_file(&fixtures.join("fixtures/golden.ndjson"), &lake);
    crate::harness::ok(crate::harness::synclake().args(["extract", "--date", "2026-01-02", "--lake"]).arg(&lake));
    let mut files: Vec<_> = std::fs::read_dir(fixtures.join("it/sql")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let views: Vec<_> = synclake::query::views::VIEWS.iter().map(|(name, ..)| *name).collect();
    for view in views {
        assert!(files.iter().any(|f| f.file_stem().unwrap() == view), "{view} has no .slt file");
    }
    // As users have it; in many groups of partitions; by the definitions in sql/views alone.
    let ways = [
        Limits::default(),
        Limits { group_rows: 1, ..Limits::default() },
        Limits { has_shortcuts: false, ..Limits::default() },
    ];
    for (file, limits) in files.iter().flat_map(|file| ways.iter().map(move |limits| (file, limits))) {
        let mut runner = sqllogictest::Runner::new(|| async {
            let store = Store::open(&Location::Folder(lake.clone()), &AwsSettings::default()).await.unwrap();
            Ok(Lake(Engine::open(&store, limits, Scope::default())?))
        });
        runner.run_file_async(file).await.unwrap_or_else(|error| panic!("{limits:?}: {error}"));
    }
}
