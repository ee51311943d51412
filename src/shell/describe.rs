//! What `\d` shows: the tables and views, and the columns of one of them.

use arrow::datatypes::DataType;

use crate::query::{Engine, QueryError, views};
use crate::schema::Table;

/// Returns a line for each table and view.
pub(super) fn relations() -> String {
    let tables = Table::ALL.map(|table| {
        let about = match table {
            Table::SyncRecords => "every change as it arrived",
            Table::Quarantine => "records that could not be decoded, and why",
            Table::DailyState => "daily extracts, as stored",
            Table::Gaps => "records that the stream lost before they were read",
            Table::State => "state of the last `synclake refresh`; key_state is up to date",
        };
        ("table", table.name(), about)
    });
    let views = views::VIEWS.map(|(name, _, about)| ("view", name, about));
    let key_state = ("view", "key_state", "latest change of each key, removed keys included, up to date");
    tables
        .into_iter()
        .chain([key_state])
        .chain(views)
        .map(|(kind, name, about)| format!("{kind:5}  {name:16}  {about}\n"))
        .collect()
}

/// Returns a line for each column of a table or view.
///
/// # Errors
/// There is none of this name, or the lake cannot be read.
pub(super) async fn columns(engine: &Engine, name: &str) -> Result<String, QueryError> {
    let unknown = || QueryError::Refused(format!("there is no table or view {name:?}; \\d lists them"));
    let schema = engine.columns(name).await?.ok_or_else(unknown)?;
    Ok(schema.fields().iter().map(|f| format!("{:26}  {}\n", f.name(), type_name(f.data_type()))).collect())
}

/// Returns the SQL name of a type.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "varchar".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::Int32 => "integer".to_owned(),
        DataType::UInt64 => "bigint unsigned".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Binary | DataType::BinaryView | DataType::LargeBinary => "varbinary".to_owned(),
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone".to_owned(),
        DataType::Dictionary(_, value) => type_name(value),
        other => other.to_string(),
    }
}
