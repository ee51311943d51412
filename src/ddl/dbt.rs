//! The tables and views as sources of dbt, with what their columns mean and with tests.

use std::fmt::Write as _;

use super::columns::views_with_columns;
use super::{Engine, View};
use crate::describe;
use crate::schema::Table;

/// Columns that are never null, in every relation that has them.
const NOT_NULL: [&str; 5] = ["pool", "identity_pool_id", "identity_id", "dataset_name", "event_date"];
/// Known operations on a key. The lake keeps any other as it came, so another one is a warning of dbt and no failure.
const OPERATIONS: &str = "['replace', 'remove']";

/// Returns the text of a `sources.yml`. dbt reads the tables and views that the statements of another engine have made.
///
/// # Errors
/// Returns one line about a view that cannot be planned, which is a bug.
pub(super) async fn sources(database: &str, is_collapsed: bool) -> Result<String, String> {
    let mut text = format!(
        "# Sources of dbt over a lake of synclake. The statements of `synclake ddl` for your engine make the tables and views.\n\
         # DuckDB makes them in its current schema: run `CREATE SCHEMA {database}; USE {database};` before its statements.\n\
         version: 2\nsources:\n  - name: {database}\n    schema: {database}\n    tables:\n"
    );
    for table in Table::ALL {
        let schema = if is_collapsed { table.query_schema() } else { table.schema() };
        let columns = schema.fields().iter().map(|field| field.name().as_str());
        relation(&mut text, table.name(), describe::row_of(table.name()).unwrap_or_default(), columns);
    }
    for (view, columns) in views_with_columns(Engine::Athena, database, &Table::ALL, is_collapsed).await? {
        relation(&mut text, view.name, &about(&view), columns.iter().map(|field| field.name().as_str()));
    }
    Ok(text)
}

/// Returns what a row of a view is.
fn about(view: &View) -> String {
    let lines = || view.about.lines().map(|line| line.trim_start_matches(['-', ' ']));
    describe::row_of(view.name).map_or_else(|| lines().collect::<Vec<_>>().join(" "), str::to_owned)
}

fn relation<'a>(text: &mut String, name: &str, about: &str, columns: impl Iterator<Item = &'a str>) {
    // Nothing that is written into a String fails.
    let _ = writeln!(text, "      - name: {name}\n        description: {}\n        columns:", quoted(about));
    for column in columns {
        let meaning = describe::meaning_of(name, column).unwrap_or_default();
        let _ = writeln!(text, "          - name: {column}\n            description: {}", quoted(meaning));
        // Any part of a record that could not be decoded may be missing in the other tables.
        let is_of_rows = !["quarantine", "gaps"].contains(&name);
        if is_of_rows && NOT_NULL.contains(&column) {
            text.push_str("            data_tests: [not_null]\n");
        }
        if is_of_rows && column == "op" {
            let _ = writeln!(
                text,
                "            data_tests:\n              - accepted_values:\n                  arguments: {{values: {OPERATIONS}}}\n                  config: {{severity: warn}}"
            );
        }
    }
}

/// Returns a text as YAML quotes it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''").replace('\n', " "))
}
