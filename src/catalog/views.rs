//! The views as Athena keeps them in the catalogue: the query, and the names and types of its columns.

use arrow::datatypes::DataType;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::CatalogError;
use super::entries::{self, Entry};
use crate::ddl::{self, Engine};
use crate::schema::Table;

/// The catalogue under which Athena knows Glue.
const CATALOG: &str = "awsdatacatalog";

/// Returns the entries of the views whose tables exist.
pub(super) async fn entries(
    lake: &str,
    database: &str,
    tables: &[Table],
    is_collapsed: bool,
) -> Result<Vec<Entry>, CatalogError> {
    let views = ddl::views_with_columns(Engine::Athena, database, tables, is_collapsed).await;
    let mut entries = Vec::new();
    for (view, fields) in views.map_err(CatalogError::Invalid)? {
        let columns = fields.iter().map(|field| entries::column(view.name, field.name(), field.data_type()));
        let types = fields.iter().map(|field| json!({ "name": field.name(), "type": presto_type(field.data_type()) }));
        let definition = json!({
            "originalSql": view.select,
            "catalog": CATALOG,
            "schema": database,
            "columns": types.collect::<Vec<_>>(),
            "runAsInvoker": true,
            "path": [],
        });
        let text = format!("/* Presto View: {} */", STANDARD.encode(definition.to_string()));
        entries.push(entries::view(lake, view.name, text, columns.collect()));
    }
    Ok(entries)
}

fn presto_type(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Boolean => "boolean",
        DataType::Int32 => "integer",
        DataType::Int64 | DataType::UInt64 => "bigint",
        DataType::Date32 => "date",
        DataType::Timestamp(..) => "timestamp(3) with time zone",
        DataType::Binary => "varbinary",
        _ => "varchar",
    }
}
