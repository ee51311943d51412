//! The columns of a table: those that synclake needs, and rules of others about them.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use serde::Deserialize;
use serde_json::Value;

use crate::schema::Table;

/// Prefixes of keys in a column's metadata that a writer must obey.
const COLUMN_RULES: [&str; 4] =
    ["delta.invariants", "delta.generationExpression", "delta.identity.", "CURRENT_DEFAULT"];

/// The schema of a table, as its metadata has it.
#[derive(Deserialize)]
pub(super) struct Schema {
    fields: Vec<Column>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    of_type: Value,
    nullable: bool,
    #[serde(default)]
    metadata: BTreeMap<String, Value>,
}

impl Schema {
    /// Returns whether the table has a column.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|column| column.name == name)
    }

    /// Returns why the rows of the table cannot be read: it lacks a column that no later format of synclake added.
    pub(super) fn lacking(&self, table: Table) -> Option<String> {
        let table_schema = table.schema();
        let mut names = table_schema.fields().iter().map(|field| field.name());
        let name = names.find(|name| !table.is_added(name) && !self.has(name))?;
        Some(format!(
            "its column {name} was dropped or renamed; rename it back, or take the table back to a version before: \
             RESTORE TABLE … TO VERSION AS OF n"
        ))
    }

    /// Returns why the columns forbid a commit.
    pub(super) fn refusal(&self, table: Table) -> Option<String> {
        self.lacking(table).or_else(|| self.of_another_type(table)).or_else(|| self.ruled())
    }

    fn of_another_type(&self, table: Table) -> Option<String> {
        table.schema().fields().iter().find_map(|field| {
            let (name, expected) = (field.name(), delta_type(field.data_type()));
            let Some(column) = self.fields.iter().find(|column| column.name == *name) else {
                // A column of a later format of synclake.
                let other = self.fields.iter().find(|column| column.name.eq_ignore_ascii_case(name))?;
                return Some(format!(
                    "its column {} has the name of the column {name} of synclake in another case; rename or drop it in \
                     the engine that added it",
                    other.name
                ));
            };
            (column.of_type != expected).then(|| {
                format!(
                    "its column {name} is of type {}, not {expected}; take the table back to a version before: RESTORE \
                     TABLE … TO VERSION AS OF n",
                    column.of_type
                )
            })
        })
    }

    fn ruled(&self) -> Option<String> {
        self.fields.iter().find_map(|column| {
            let name = &column.name;
            let rule = column.metadata.keys().find(|key| COLUMN_RULES.iter().any(|rule| key.starts_with(rule)));
            match (rule, column.nullable) {
                (Some(rule), _) => Some(format!("its column {name} has the rule {rule}, which is not supported here")),
                (None, false) => {
                    Some(format!("its column {name} must not be null; ALTER TABLE … ALTER COLUMN {name} DROP NOT NULL"))
                }
                (None, true) => None,
            }
        })
    }
}

/// Returns the Delta protocol's name of an Arrow type that the lake's tables use.
pub(super) fn delta_type(of: &DataType) -> &'static str {
    match of {
        DataType::Utf8 => "string",
        DataType::Date32 => "date",
        DataType::Int64 => "long",
        DataType::Int32 => "integer",
        DataType::Boolean => "boolean",
        DataType::Binary => "binary",
        DataType::Timestamp(..) => "timestamp",
        _ => "another",
    }
}
