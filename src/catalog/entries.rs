//! Tables and views as Glue describes them: as they should be, compared with what is there.

use arrow::datatypes::DataType;
use serde_json::{Map, Value, json};

use super::glue::Glue;
use super::{Action, CatalogError, Engine, EntryReport, Kind};
use crate::aws::call::CallError;
use crate::describe;
use crate::lake::Store;
use crate::schema::Table;

/// Parameter by which an entry states its lake. An entry without it was made by something else.
const OWNER: &str = "synclake.lake";
/// Parameter by which a table states the engine for which it was registered.
const ENGINE: &str = "synclake.engine";
/// Comment of every view of Athena and Trino.
const VIEW_COMMENT: &str = "Presto View";
/// Longest comment of a column that Glue takes, in characters.
const COMMENT_CHARS_MAX: usize = 255;

/// A table or view as it should be, as `TableInput`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    kind: Kind,
    input: Value,
}

/// An entry and what it needs.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) report: EntryReport,
    name: String,
    /// The `TableInput` to write.
    input: Value,
    /// The version that was read.
    version: Option<String>,
}

/// Returns the entry of a table.
pub(super) fn table(engine: Engine, lake: &Store, table: Table, is_collapsed: bool) -> Entry {
    let schema = if is_collapsed { table.query_schema() } else { table.schema() };
    let column = |field: &arrow::datatypes::FieldRef| column(table.name(), field.name(), field.data_type());
    let keys = table.partition_columns();
    let is_key = |field: &&arrow::datatypes::FieldRef| keys.contains(&field.name().as_str());
    let place = format!("{lake}/{}", table.name());
    let mut parameters = json!({ "EXTERNAL": "TRUE", OWNER: lake.to_string(), ENGINE: engine.name() });
    let (storage, partition_keys) = match engine {
        Engine::Athena => {
            // Athena knows a Delta table by the first parameter, Spark and Trino by the second and the path.
            parameters["table_type"] = "DELTA".into();
            parameters["spark.sql.sources.provider"] = "delta".into();
            let storage = json!({
                "Columns": schema.fields().iter().map(column).collect::<Vec<_>>(),
                "Location": format!("{place}/"),
                "InputFormat": "org.apache.hadoop.mapred.SequenceFileInputFormat",
                "OutputFormat": "org.apache.hadoop.hive.ql.io.HiveSequenceFileOutputFormat",
                "SerdeInfo": {
                    "SerializationLibrary": "org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe",
                    "Parameters": { "path": place, "serialization.format": "1" },
                },
            });
            (storage, Vec::new())
        }
        Engine::Redshift => {
            let fields = || schema.fields().iter();
            let of_keys = keys.iter().filter_map(|key| fields().find(|field| field.name() == key));
            let columns = fields().filter(|field| !is_key(field)).map(column).collect::<Vec<_>>();
            (manifests(columns, &format!("{place}/_symlink_format_manifest/")), of_keys.map(column).collect())
        }
    };
    let input = json!({
        "Name": table.name(),
        "Description": describe::row_of(table.name()).unwrap_or_default(),
        "TableType": "EXTERNAL_TABLE",
        "Parameters": parameters,
        "StorageDescriptor": storage,
        "PartitionKeys": partition_keys,
    });
    Entry { kind: Kind::Table, input }
}

/// Returns the storage of Parquet files that the manifests in a folder list.
pub(super) fn manifests(columns: Vec<Value>, folder: &str) -> Value {
    json!({
        "Columns": columns,
        "Location": folder,
        "InputFormat": "org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat",
        "OutputFormat": "org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat",
        "SerdeInfo": {
            "SerializationLibrary": "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe",
            "Parameters": { "serialization.format": "1" },
        },
    })
}

/// Returns the entry of a view of Athena. `text` is its definition in Athena's encoding.
pub(super) fn view(lake: &str, name: &str, text: String, columns: Vec<Value>) -> Entry {
    let input = json!({
        "Name": name,
        // Trino knows a view by this comment, and takes the description for the comment.
        "Description": VIEW_COMMENT,
        "TableType": "VIRTUAL_VIEW",
        "Parameters": {
            "presto_view": "true", "comment": VIEW_COMMENT, OWNER: lake, ENGINE: Engine::Athena.name(),
        },
        "StorageDescriptor": { "Columns": columns, "Location": "", "SerdeInfo": {} },
        "PartitionKeys": [],
        "ViewOriginalText": text,
        "ViewExpandedText": "/* Presto View */",
    });
    Entry { kind: Kind::View, input }
}

/// Returns a column as Glue describes it.
pub(super) fn column(relation: &str, name: &str, data_type: &DataType) -> Value {
    let meaning = describe::meaning_of(relation, name).unwrap_or_default();
    let comment: String = match meaning.chars().count() <= COMMENT_CHARS_MAX {
        true => meaning.to_owned(),
        false => meaning.chars().take(COMMENT_CHARS_MAX - 1).chain(['…']).collect(),
    };
    json!({ "Name": name, "Type": hive_type(data_type), "Comment": comment })
}

fn hive_type(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Boolean => "boolean",
        DataType::Int32 => "int",
        DataType::Int64 | DataType::UInt64 => "bigint",
        DataType::Date32 => "date",
        DataType::Timestamp(..) => "timestamp",
        DataType::Binary => "binary",
        _ => "string",
    }
}

impl Entry {
    pub(super) fn name(&self) -> &str {
        self.input["Name"].as_str().unwrap_or_default()
    }

    /// Decides what to do about an entry, given what stands there under its name.
    ///
    /// # Errors
    /// Something else stands there, and may not be replaced.
    pub(super) fn compare(
        self,
        database: &str,
        found: Option<Value>,
        may_replace: bool,
    ) -> Result<Change, CatalogError> {
        let (short, kind) = (self.name().to_owned(), self.kind);
        let name = format!("{database}.{short}");
        let change = |action, differences, input, version| Change {
            report: EntryReport { name: name.clone(), kind, action, differences },
            name: short.clone(),
            input,
            version,
        };
        let Some(found) = found else {
            return Ok(change(Action::Create, Vec::new(), self.input, None));
        };
        if let Some(reason) = self.stranger(&found).filter(|_| !may_replace) {
            return Err(CatalogError::Foreign { name, reason });
        }
        let mut differences = Vec::new();
        differ("", &self.input, &found, &mut differences);
        let version = found["VersionId"].as_str().map(str::to_owned);
        let action = if differences.is_empty() { Action::None } else { Action::Update };
        Ok(change(action, differences, merged(self.input, &found), version))
    }

    /// Returns why the entry that was found is not ours to change.
    fn stranger(&self, found: &Value) -> Option<String> {
        let lake = self.input["Parameters"][OWNER].as_str();
        match found["Parameters"][OWNER].as_str() {
            Some(owner) if Some(owner) == lake => {
                let engine = found["Parameters"][ENGINE].as_str();
                let is_other = engine != self.input["Parameters"][ENGINE].as_str();
                return is_other.then(|| format!("it is registered for {}", engine.unwrap_or("another engine")));
            }
            Some(owner) => return Some(format!("it is of the lake {owner}")),
            None => {}
        }
        // The statements of `synclake ddl` make the same tables and views, without the parameter.
        let type_of = |table: &Value| table["TableType"].as_str().unwrap_or("of an unknown kind").to_owned();
        let place = |table: &Value| {
            table["StorageDescriptor"]["Location"].as_str().unwrap_or_default().trim_end_matches('/').to_owned()
        };
        if type_of(found) != type_of(&self.input) {
            return Some(format!("it is {}", type_of(found)));
        }
        match self.kind {
            Kind::View => (found["ViewOriginalText"] != self.input["ViewOriginalText"])
                .then(|| "it is a view with another definition".to_owned()),
            _ => (place(found) != place(&self.input)).then(|| format!("its location is {:?}", place(found))),
        }
    }
}

/// Collects how `found` differs in what `wanted` sets. Other members of `found` are others' business.
fn differ(path: &str, wanted: &Value, found: &Value, into: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            for (key, value) in wanted {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differ(&path, value, found.get(key).unwrap_or(&Value::Null), into);
            }
        }
        (Value::Array(wanted), Value::Array(found)) => columns_differ(path, wanted, found, into),
        (wanted, found) if is_same(wanted, found) => {}
        // The text of a view is long, and encoded.
        (Value::String(_), _) if path == "ViewOriginalText" => {
            into.push("the definition of the view differs".to_owned());
        }
        (wanted, Value::Null) => into.push(format!("{path} is missing; it should be {wanted}")),
        (wanted, found) => into.push(format!("{path} is {found}; it should be {wanted}")),
    }
}

/// Compares columns: names, types and comments in their order.
fn columns_differ(path: &str, wanted: &[Value], found: &[Value], into: &mut Vec<String>) {
    let name = |column: &Value| column["Name"].as_str().unwrap_or_default().to_owned();
    let before = into.len();
    for column in wanted {
        match found.iter().find(|known| name(known) == name(column)) {
            None => into.push(format!("column {} is missing", name(column))),
            Some(known) => differ(&format!("column {}", name(column)), column, known, into),
        }
    }
    let unknown = found.iter().filter(|column| !wanted.iter().any(|known| name(known) == name(column)));
    into.extend(unknown.map(|column| format!("column {} is not of the lake", name(column))));
    let order = |columns: &[Value]| columns.iter().map(name).collect::<Vec<_>>();
    if into.len() == before && order(wanted) != order(found) {
        into.push(format!("{path} are in another order"));
    }
}

/// Glue leaves out what is empty.
fn is_same(wanted: &Value, found: &Value) -> bool {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(some) => some.is_empty(),
        Value::Object(some) => some.is_empty(),
        _ => false,
    };
    wanted == found || is_empty(wanted) && is_empty(found)
}

/// Returns the input that sets what is wanted and keeps what others have set.
fn merged(wanted: Value, found: &Value) -> Value {
    let mut input = wanted;
    if let (Some(ours), Some(theirs)) = (input["Parameters"].as_object_mut(), found["Parameters"].as_object()) {
        let mut all: Map<String, Value> = theirs.clone();
        all.append(ours);
        *ours = all;
    }
    for key in ["Owner", "Retention", "LastAccessTime", "LastAnalyzedTime"] {
        if let Some(value) = found.get(key).filter(|value| !value.is_null()) {
            input[key] = value.clone();
        }
    }
    input
}

impl Change {
    /// Returns whether something has the name of the entry.
    pub(super) fn exists(&self) -> bool {
        self.report.action != Action::Create
    }

    pub(super) async fn apply(&self, glue: &Glue, database: &str) -> Result<(), CallError> {
        match self.report.action {
            Action::None => Ok(()),
            Action::Create => glue.create_table(database, &self.name, &self.input).await,
            Action::Update => glue.update_table(database, &self.name, &self.input, self.version.as_deref()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(columns: &[(&str, DataType)]) -> Entry {
        let columns = columns.iter().map(|(name, data_type)| column("changes", name, data_type)).collect();
        view("s3://b/lake", "changes", "/* Presto View: x */".to_owned(), columns)
    }

    fn columns() -> Vec<(&'static str, DataType)> {
        vec![("pool", DataType::Utf8), ("copies", DataType::Int64)]
    }

    fn differences(found: &Value) -> Vec<String> {
        wanted(&columns()).compare("d", Some(found.clone()), false).unwrap().report.differences
    }

    #[test]
    fn what_others_add_is_no_difference_and_stays() {
        let mut found = wanted(&columns()).input;
        found["Parameters"]["by_somebody"] = "x".into();
        found["Owner"] = "hadoop".into();
        found["CreateTime"] = 1.into();
        found["StorageDescriptor"].as_object_mut().unwrap().remove("SerdeInfo");
        assert_eq!(differences(&found), Vec::<String>::new());
        found["ViewExpandedText"] = "old".into();
        let change = wanted(&columns()).compare("d", Some(found), false).unwrap();
        assert_eq!(change.report.action, Action::Update);
        assert_eq!(
            (&change.input["Owner"], &change.input["Parameters"]["by_somebody"]),
            (&"hadoop".into(), &"x".into())
        );
        assert!(change.input.get("CreateTime").is_none(), "no member of TableInput");
    }

    #[test]
    fn each_difference_is_told() {
        let mut found = wanted(&[("copies", DataType::Int32), ("gone", DataType::Utf8)]).input;
        found["ViewOriginalText"] = "/* Presto View: y */".into();
        let text = differences(&found).join("\n");
        for part in ["column pool is missing", "column copies.Type is \"int\"", "column gone is not", "definition"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let turned: Vec<_> = columns().into_iter().rev().collect();
        assert_eq!(differences(&wanted(&turned).input), ["StorageDescriptor.Columns are in another order"]);
    }

    #[test]
    fn an_entry_of_somebody_else_is_refused_unless_it_may_be_replaced() {
        let mut found = wanted(&columns()).input;
        found["Parameters"].as_object_mut().unwrap().remove(OWNER);
        // As `synclake ddl` would have made it.
        assert_eq!(wanted(&columns()).compare("d", Some(found.clone()), false).unwrap().report.action, Action::Update);
        found["ViewOriginalText"] = "/* Presto View: y */".into();
        let error = wanted(&columns()).compare("d", Some(found.clone()), false).unwrap_err().to_string();
        assert!(error.contains("d.changes") && error.contains("another definition") && error.contains("--replace"));
        assert_eq!(wanted(&columns()).compare("d", Some(found.clone()), true).unwrap().report.action, Action::Update);
        found["Parameters"][OWNER] = "s3://other/lake".into();
        let error = wanted(&columns()).compare("d", Some(found), false).unwrap_err().to_string();
        assert!(error.contains("of the lake s3://other/lake"), "{error}");
    }
}
