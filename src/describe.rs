//! Meanings of tables, views and columns, from `schemas/columns.json`. A test compares that file with the programs and
//! makes docs/columns.md of it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
struct Descriptions {
    relations: Vec<Relation>,
    columns: BTreeMap<String, Column>,
    /// Meanings of columns that differ in one relation, by `relation.column`.
    in_relation: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Relation {
    name: String,
    row: String,
}

#[derive(Debug, Deserialize)]
struct Column {
    meaning: String,
}

static DESCRIPTIONS: LazyLock<Descriptions> =
    LazyLock::new(|| serde_json::from_str(include_str!("../schemas/columns.json")).unwrap_or_default());

/// Returns what a row of a table or view is.
pub(crate) fn row_of(relation: &str) -> Option<&'static str> {
    DESCRIPTIONS.relations.iter().find(|known| known.name == relation).map(|known| known.row.as_str())
}

/// Returns what a column means.
pub(crate) fn meaning_of(relation: &str, column: &str) -> Option<&'static str> {
    let special = DESCRIPTIONS.in_relation.get(&format!("{relation}.{column}"));
    special.or_else(|| DESCRIPTIONS.columns.get(column).map(|column| &column.meaning)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Table;

    #[test]
    fn every_column_of_a_table_has_a_meaning() {
        for table in Table::ALL {
            assert!(row_of(table.name()).is_some(), "{}", table.name());
            for field in table.query_schema().fields() {
                assert!(meaning_of(table.name(), field.name()).is_some(), "{}.{}", table.name(), field.name());
            }
        }
        assert!(meaning_of("dataset_state", "sync_count") != meaning_of("changes", "sync_count"));
        assert_eq!(meaning_of("changes", "no_such_column"), None);
    }
}
