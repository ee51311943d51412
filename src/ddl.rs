//! Tables and views for other engines, filled in for a lake. `sql/<engine>/*.sql` declares the tables. The views in
//! `sql/ansi` are the same text for all engines.

use std::path::Path;

mod columns;
mod dbt;

pub(crate) use columns::views_with_columns;

/// An engine that reads the lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// Amazon Athena over the Delta tables.
    Athena,
    /// Amazon Athena over the files of manifests, with partition projection.
    AthenaHive,
    /// Apache Spark with Delta Lake.
    Spark,
    /// Apache Spark over plain Parquet.
    SparkParquet,
    /// Trino with its Delta Lake connector.
    Trino,
    /// DuckDB with its extension delta.
    Duckdb,
    /// DuckDB over the files of manifests.
    DuckdbParquet,
    /// Amazon Redshift Spectrum over the files of manifests.
    Redshift,
    /// dbt: a `sources.yml` of the tables and views that another engine's statements have made.
    Dbt,
}

/// Name and text of the views, in the order of their dependencies, and whether the view reads a table that is
/// rewritten.
const VIEWS: [(&str, &str, bool); 9] = [
    ("cognito_raw_data", include_str!("../sql/ansi/cognito_raw_data.sql"), false),
    ("changes", include_str!("../sql/ansi/changes.sql"), false),
    ("daily_changes", include_str!("../sql/ansi/daily_changes.sql"), false),
    ("resolved", include_str!("../sql/ansi/resolved.sql"), false),
    ("key_state", include_str!("../sql/ansi/key_state.sql"), false),
    ("current_state", include_str!("../sql/ansi/current_state.sql"), false),
    ("dataset_state", include_str!("../sql/ansi/dataset_state.sql"), false),
    ("refreshed_state", include_str!("../sql/ansi/refreshed_state.sql"), true),
    ("daily_extract", include_str!("../sql/ansi/daily_extract.sql"), true),
];

impl Engine {
    fn tables(self) -> &'static str {
        match self {
            Self::Athena => include_str!("../sql/athena/tables.sql"),
            Self::AthenaHive => include_str!("../sql/athena/hive.sql"),
            Self::Spark => include_str!("../sql/spark/tables.sql"),
            Self::SparkParquet => include_str!("../sql/spark/parquet.sql"),
            Self::Trino => include_str!("../sql/trino/tables.sql"),
            Self::Duckdb => include_str!("../sql/duckdb/tables.sql"),
            Self::DuckdbParquet => include_str!("../sql/duckdb/parquet.sql"),
            Self::Redshift => include_str!("../sql/redshift/tables.sql"),
            Self::Dbt => "",
        }
    }

    /// Returns whether the engine reads a lake in a local folder.
    pub fn reads_folders(self) -> bool {
        !matches!(self, Self::Athena | Self::AthenaHive | Self::Redshift)
    }

    /// Returns whether the tables include those that are rewritten: the engine reads the log, or manifests.
    fn reads_rewritten(self) -> bool {
        !matches!(self, Self::SparkParquet | Self::DuckdbParquet)
    }
}

/// Returns the statements for an engine. `lake` is the lake's URL or folder, without a slash at its end. `is_collapsed` says
/// whether its `sync_records` has the column `copies`.
///
/// # Errors
/// Returns one line about a name or place that cannot be written into SQL unchanged.
pub async fn render(engine: Engine, lake: &str, database: &str, is_collapsed: bool) -> Result<String, String> {
    check_database(database)?;
    if engine == Engine::Dbt {
        return dbt::sources(database, is_collapsed).await;
    }
    if lake.contains(['\'', '\\', '$', '*', '?', '[', ']']) || lake.chars().any(char::is_control) {
        return Err(format!(
            "lake {lake:?} contains one of ' \\ $ * ? [ ], or a control character; choose another place"
        ));
    }
    // Trino's file system of local folders takes URLs.
    let of_trino = format!("local://{lake}");
    let lake = if engine == Engine::Trino && lake.starts_with('/') { of_trino.as_str() } else { lake };
    let schema = match engine {
        Engine::Duckdb | Engine::DuckdbParquet => String::new(),
        Engine::Trino => format!("delta.{database}."),
        _ => format!("{database}."),
    };
    // An external schema cannot hold views.
    let (views_in, ending) = match engine {
        Engine::Redshift => ("", "\nWITH NO SCHEMA BINDING"),
        _ => (schema.as_str(), ""),
    };
    // Perhaps no file of the manifests has the column.
    let no_row = "\nUNION ALL BY NAME SELECT NULL::BIGINT AS copies WHERE false";
    let (copies_column, copies_row) = if is_collapsed { (", copies bigint", no_row) } else { ("", "") };
    let fill = |text: &str, db: &str| {
        let text = text.replace("${copies_column}", copies_column).replace("${copies_row}", copies_row);
        text.replace("${lake}", lake).replace("${database}", database).replace("${db}", db).trim_end().to_owned()
    };
    let mut out = fill(engine.tables(), &schema) + "\n";
    for view in views_of(engine, &schema, views_in, is_collapsed) {
        let create = format!("CREATE OR REPLACE VIEW {views_in}{} AS", view.name);
        out += &format!("\n{}\n{create}\n{}{ending};\n", view.about, view.select);
    }
    Ok(out)
}

/// Splits statements into those that a runner takes one at a time: each with the name of its file, and without the
/// semicolon at its end.
pub fn split(text: &str) -> Vec<(String, String)> {
    let mut statements: Vec<String> = Vec::new();
    let mut statement = String::new();
    for line in text.lines() {
        statement.push_str(line);
        match line.ends_with(';') && !line.trim_start().starts_with("--") {
            true => statements.push(std::mem::take(&mut statement)),
            false => statement.push('\n'),
        }
    }
    let named = statements.into_iter().enumerate();
    named.map(|(n, text)| (format!("{:02}-{}.sql", n + 1, name_of(&text)), clean(&text))).collect()
}

fn clean(statement: &str) -> String {
    format!("{}\n", statement.trim().trim_end_matches(';'))
}

/// Returns what a statement makes, such as `sync_records`.
fn name_of(statement: &str) -> String {
    let code = statement.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join(" ");
    let quoted = code.split_once("table_name => '").and_then(|(_, rest)| rest.split('\'').next());
    let kinds = ["DATABASE", "SCHEMA", "TABLE", "VIEW", "VARIABLE"];
    let mut words = code.split_whitespace().skip_while(|word| !kinds.contains(word)).skip(1);
    let made = words.find(|word| !["IF", "NOT", "EXISTS"].contains(word));
    let name = quoted.or(made).unwrap_or("statement").rsplit('.').next().unwrap_or_default();
    name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// Writes the statements into a folder, a file for each, and returns the number of files.
///
/// # Errors
/// The folder cannot be made, is not empty, or cannot be written.
pub fn write_split(text: &str, folder: &Path) -> std::io::Result<usize> {
    std::fs::create_dir_all(folder)?;
    if std::fs::read_dir(folder)?.next().is_some() {
        return Err(std::io::Error::other("the folder is not empty; name another one, or empty it"));
    }
    let statements = split(text);
    for (name, statement) in &statements {
        std::fs::write(folder.join(name), statement)?;
    }
    Ok(statements.len())
}

/// Checks the name of a database.
///
/// # Errors
/// Returns one line about a name that SQL would not take unquoted.
pub(crate) fn check_database(name: &str) -> Result<(), String> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    match (1..=64).contains(&name.len()) && name.bytes().all(is_plain) {
        true => Ok(()),
        false => Err(format!("database {name:?} is not 1 to 64 of [a-z0-9_]")),
    }
}

/// A view for an engine.
pub(crate) struct View {
    pub name: &'static str,
    /// Comment lines.
    about: String,
    /// The query that defines it.
    pub select: String,
}

/// Returns the views of an engine, in the order of their dependencies. `schema` is put before the name of a table,
/// `views_in` before that of a view, both with the dot.
pub(crate) fn views_of(engine: Engine, schema: &str, views_in: &str, is_collapsed: bool) -> Vec<View> {
    let copies = if is_collapsed { "sum(coalesce(copies, 1))" } else { "count(*)" };
    let of_engine = VIEWS.iter().filter(|(.., of_rewritten)| !of_rewritten || engine.reads_rewritten());
    of_engine
        .map(|(name, text, _)| {
            let text = VIEWS.iter().fold((*text).to_owned(), |text, (view, ..)| {
                text.replace(&format!("${{db}}{view}"), &format!("{views_in}{view}"))
            });
            let (about, select): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("--"));
            let select = select.join("\n").replace("${copies}", copies).replace("${db}", schema);
            View { name, about: about.join("\n"), select: select.trim_end().to_owned() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[tokio::test]
    async fn nothing_is_left_open() {
        let engines = Engine::value_variants().iter().filter(|engine| **engine != Engine::Dbt);
        for (engine, is_collapsed) in engines.flat_map(|e| [(e, false), (e, true)]) {
            let text = render(*engine, "s3://bucket/lake", "cognito", is_collapsed).await.unwrap();
            assert_eq!(text.contains("coalesce(copies"), is_collapsed, "{engine:?} counts what was collapsed");
            // Athena fills in these itself.
            let of_athena = ["${pool}", "${event_date}", "${extract_date}", "${arrived_date}"];
            let open = of_athena.iter().fold(text.clone(), |text, name| text.replace(name, ""));
            assert!(!open.contains("${"), "{engine:?}\n{text}");
            assert!(text.contains("s3://bucket/lake"), "{text}");
            let is_plain = *engine == Engine::SparkParquet;
            assert_eq!(text.contains("NOT EXACT"), is_plain, "{engine:?} says whether it is exact");
            assert_eq!(text.contains("refreshed_state"), engine.reads_rewritten());
        }
        assert!(render(Engine::Spark, "s3://bucket/it's", "cognito", false).await.is_err());
        assert!(render(Engine::Spark, "s3://bucket/lake", "a; drop table b", false).await.is_err());
    }

    #[tokio::test]
    async fn statements_are_split_for_runners_of_one() {
        let text = render(Engine::Athena, "s3://bucket/lake", "cognito", false).await.unwrap();
        let files = split(&text);
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(&names[..3], ["01-cognito.sql", "02-sync_records.sql", "03-state.sql"]);
        assert_eq!(files.len(), 6 + VIEWS.len());
        for (name, statement) in &files {
            let code: Vec<&str> = statement.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
            assert!(code[0].starts_with("CREATE ") && !code.concat().contains(';'), "{name}: {statement}");
        }
        let names: Vec<String> = split(&render(Engine::Trino, "/lake", "c", false).await.unwrap())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(&names[..2], ["01-c.sql", "02-sync_records.sql"]);
    }

    #[tokio::test]
    async fn sources_of_dbt_have_every_relation_with_its_meaning() {
        let text = render(Engine::Dbt, "s3://bucket/lake", "cognito", true).await.unwrap();
        for name in
            crate::schema::Table::ALL.map(crate::schema::Table::name).into_iter().chain(VIEWS.map(|view| view.0))
        {
            assert!(text.contains(&format!("- name: {name}\n        description: '")), "{name}");
        }
        assert!(!text.contains("description: ''\n"), "{text}");
    }
}
