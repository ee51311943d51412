//! Names and purposes of the tables and views, and the SQL names of types.

use arrow::datatypes::DataType;

use super::views;
use crate::schema::Table;

/// A table or a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation {
    /// `table` or `view`.
    pub kind: &'static str,
    /// Name in SQL.
    pub name: &'static str,
    /// What it holds.
    pub about: &'static str,
}

/// Returns all tables and views.
pub fn relations() -> Vec<Relation> {
    let tables = Table::ALL.map(|table| {
        let about = match table {
            Table::SyncRecords => "every change as it arrived",
            Table::Quarantine => "records that could not be decoded, and why",
            Table::DailyState => "daily extracts, as stored",
            Table::Gaps => "records that the stream lost before they were read",
            Table::State => "state of the last `synclake refresh`; key_state is up to date",
        };
        Relation { kind: "table", name: table.name(), about }
    });
    let key_state = Relation {
        kind: "view",
        name: super::relations::KEY_STATE,
        about: "latest change of each key, removed keys included, up to date",
    };
    let views = views::VIEWS.into_iter().map(|(name, _, about)| Relation { kind: "view", name, about });
    tables.into_iter().chain([key_state]).chain(views).collect()
}

/// Returns the SQL name of a type.
pub fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "varchar".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::Int32 => "integer".to_owned(),
        DataType::UInt64 => "bigint unsigned".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Binary | DataType::BinaryView | DataType::LargeBinary => "varbinary".to_owned(),
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone".to_owned(),
        DataType::Timestamp(_, None) => "timestamp".to_owned(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::Interval(_) => "interval".to_owned(),
        DataType::List(item) => format!("{}[]", type_name(item.data_type())),
        DataType::Dictionary(_, value) => type_name(value),
        other => other.to_string(),
    }
}
