//! Tables and views for other engines, filled in for a lake. `sql/<engine>/*.sql` declares the tables. The views in
//! `sql/ansi` are the same text for all engines.

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
pub fn render(engine: Engine, lake: &str, database: &str, is_collapsed: bool) -> Result<String, String> {
    let is_name = (1..=64).contains(&database.len())
        && database.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !is_name {
        return Err(format!("database {database:?} is not 1 to 64 of [a-z0-9_]"));
    }
    if lake.contains(['\'', '\\', '$', '*', '?', '[', ']']) || lake.chars().any(char::is_control) {
        return Err(format!(
            "lake {lake:?} contains one of ' \\ $ * ? [ ], or a control character; choose another place"
        ));
    }
    let schema = match engine {
        Engine::Duckdb | Engine::DuckdbParquet => String::new(),
        Engine::Trino => format!("delta.{database}."),
        _ => format!("{database}."),
    };
    // An external schema cannot hold views.
    let (views_in, ending) = match engine {
        Engine::Redshift => (String::new(), "\nWITH NO SCHEMA BINDING"),
        _ => (schema.clone(), ""),
    };
    // Perhaps no file of the manifests has the column.
    let no_row = "\nUNION ALL BY NAME SELECT NULL::BIGINT AS copies WHERE false";
    let (copies, copies_column, copies_row) = match is_collapsed {
        true => ("sum(coalesce(copies, 1))", ", copies bigint", no_row),
        false => ("count(*)", "", ""),
    };
    let fill = |text: &str, db: &str| {
        let text = text.replace("${copies}", copies).replace("${copies_column}", copies_column);
        let text = text.replace("${copies_row}", copies_row);
        text.replace("${lake}", lake).replace("${database}", database).replace("${db}", db).trim_end().to_owned()
    };
    let mut out = fill(engine.tables(), &schema) + "\n";
    for (name, text, of_rewritten) in VIEWS {
        if of_rewritten && !engine.reads_rewritten() {
            continue;
        }
        let text = VIEWS.iter().fold(text.to_owned(), |text, (view, ..)| {
            text.replace(&format!("${{db}}{view}"), &format!("{views_in}{view}"))
        });
        let (about, select): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("--"));
        let select = fill(&select.join("\n"), &schema);
        let view = format!("CREATE OR REPLACE VIEW {views_in}{name} AS");
        out += &format!("\n{}\n{view}\n{select}{ending};\n", about.join("\n"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn nothing_is_left_open() {
        for (engine, is_collapsed) in Engine::value_variants().iter().flat_map(|e| [(e, false), (e, true)]) {
            let text = render(*engine, "s3://bucket/lake", "cognito", is_collapsed).unwrap();
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
        assert!(render(Engine::Spark, "s3://bucket/it's", "cognito", false).is_err());
        assert!(render(Engine::Spark, "s3://bucket/lake", "a; drop table b", false).is_err());
    }
}
