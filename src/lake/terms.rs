//! The requirements of a table on its readers and writers, by the newest protocol and metadata of its log.
//!
//! **Invariant: no commit is made to a table that requires something which this version does not support.** Each commit
//! is checked against the requirements at the version right before it. So changed requirements apply at once, even
//! while a worker runs.
//!
//! | required by the table | reaction |
//! |---|---|
//! | in-commit timestamps | written |
//! | append-only | respected: commits that remove rows are rejected |
//! | change data feed, deletion vectors, v2 checkpoints, domain metadata, new nullable columns | none needed |
//! | timestampNtz, checkpoint protection, vacuum protocol check | none needed |
//! | suspended row tracking | none needed |
//! | type widening, which deltalake cannot read | rejected, by readers, too |
//! | column mapping, constraints, invariants, generated, identity and default columns | rejected where used |
//! | transaction ids that expire | rejected where used |
//! | a column missing that came with a later format of synclake | added by the next commit ([`TableRequirements::upgrade`]) |
//! | another column missing or renamed | rejected, by readers, too |
//! | a column of another type; other partition columns; a NOT NULL column | rejected |
//! | `copies`, the count of collapsed copies | added by the first compaction that collapses some ([`TableRequirements::with_copies`]) |
//! | a later format of synclake | rejected |
//! | any other feature, a newer version | rejected |

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::schema::{COPIES, FORMAT, FORMAT_COLLAPSED, FORMAT_EXPIRED, FORMAT_MAX, FORMAT_PROPERTY, Table};

mod columns;

use columns::{Schema, delta_type};

/// The newest supported versions of the protocol.
const READER_VERSION: i64 = 3;
const WRITER_VERSION: i64 = 7;
/// Features under which synclake's commits are correct, unless the table uses something that is rejected below.
const FEATURES: [&str; 15] = [
    "allowColumnDefaults",
    "appendOnly",
    "changeDataFeed",
    "checkConstraints",
    "checkpointProtection",
    "columnMapping",
    "deletionVectors",
    "domainMetadata",
    "generatedColumns",
    "identityColumns",
    "inCommitTimestamp",
    "invariants",
    "timestampNtz",
    "v2Checkpoint",
    "vacuumProtocolCheck",
];
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protocol {
    min_reader_version: i64,
    min_writer_version: i64,
    #[serde(default)]
    reader_features: Option<Vec<String>>,
    #[serde(default)]
    writer_features: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    schema_string: String,
    #[serde(default)]
    partition_columns: Vec<String>,
    #[serde(default)]
    configuration: HashMap<String, Option<String>>,
    /// The whole action.
    #[serde(skip)]
    action: Value,
}

/// The protocol and the metadata of a table, as far as they require something of readers and writers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct TableRequirements {
    protocol: Option<Protocol>,
    metadata: Option<Metadata>,
}

impl TableRequirements {
    /// Applies the protocol or metadata that an action of the log holds.
    ///
    /// # Errors
    /// The action does not have the form that the Delta protocol defines.
    pub fn apply_action(&mut self, action: &Value) -> Result<(), serde_json::Error> {
        if let Some(protocol) = action.get("protocol") {
            self.protocol = Some(Protocol::deserialize(protocol)?);
        }
        if let Some(metadata) = action.get("metaData") {
            self.metadata = Some(Metadata { action: metadata.clone(), ..Metadata::deserialize(metadata)? });
        }
        Ok(())
    }

    /// Returns whether both the protocol and the metadata are known.
    pub fn are_known(&self) -> bool {
        self.protocol.is_some() && self.metadata.is_some()
    }

    /// Returns whether every commit must carry its own timestamp.
    pub fn have_in_commit_timestamps(&self) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| metadata.is("delta.enableInCommitTimestamps"))
    }

    /// Returns why the table cannot be read, or `None` if it can.
    pub fn unreadable(&self) -> Option<String> {
        let protocol = self.protocol.as_ref()?;
        let (version, features) = (protocol.min_reader_version, protocol.reader_features.iter().flatten());
        newer("reader", version, READER_VERSION)
            .or_else(|| unknown("reader", features))
            .or_else(|| newer_format(self.metadata.as_ref()?.get(FORMAT_PROPERTY)))
    }

    /// Returns why the rows of a table cannot be read, or `None` if they can.
    pub(crate) fn unreadable_rows(&self, table: Table) -> Option<String> {
        self.unreadable().or_else(|| {
            let schema = self.metadata.as_ref()?.schema().ok()?;
            schema.lacking(table)
        })
    }

    /// Returns the metadata that adds the columns which the table lacks because an older version of synclake made it, and
    /// their names; `None` if it lacks none.
    ///
    /// # Errors
    /// The columns of the table cannot be read.
    pub(crate) fn upgrade(&self, table: Table) -> Result<Option<(Value, Vec<String>)>, serde_json::Error> {
        let Some(metadata) = &self.metadata else { return Ok(None) };
        let mut schema: Value = serde_json::from_str(&metadata.schema_string)?;
        let Some(columns) = schema["fields"].as_array_mut() else { return Ok(None) };
        let table_schema = table.schema();
        let has = |columns: &[Value], name: &str| columns.iter().any(|column| column["name"] == name);
        let lacking = table_schema.fields().iter().filter(|f| table.is_added(f.name()) && !has(columns, f.name()));
        let lacking: Vec<_> = lacking.collect();
        if lacking.is_empty() {
            return Ok(None);
        }
        for field in &lacking {
            let of_type = delta_type(field.data_type());
            columns.push(json!({"name": field.name(), "type": of_type, "nullable": true, "metadata": {}}));
        }
        let mut action = metadata.action.clone();
        action["schemaString"] = schema.to_string().into();
        let properties = metadata.configuration.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let mut properties: BTreeMap<&str, &str> = properties.map(|(name, value)| (&**name, &**value)).collect();
        let format = self.format().max(FORMAT).to_string();
        properties.insert(FORMAT_PROPERTY, &format);
        action["configuration"] = json!(properties);
        Ok(Some((action, lacking.iter().map(|field| field.name().clone()).collect())))
    }

    /// Returns the format that the table states.
    fn format(&self) -> u64 {
        let stated = self.metadata.as_ref().and_then(|metadata| metadata.get(FORMAT_PROPERTY)?.parse().ok());
        stated.unwrap_or(1)
    }

    /// Returns the metadata that states the format of a table from which rows left by retention; `None` if it does.
    pub(crate) fn with_expired_rows(&self) -> Option<Value> {
        let format = FORMAT_EXPIRED.to_string();
        if self.format() < FORMAT_EXPIRED { self.with_property(FORMAT_PROPERTY, Some(&format)) } else { None }
    }

    /// Returns the metadata as it is, for a commit that repeats it.
    pub(crate) fn same_metadata(&self) -> Option<Value> {
        self.metadata.as_ref().map(|metadata| metadata.action.clone())
    }

    /// Returns whether the table has a column.
    pub(crate) fn has_column(&self, name: &str) -> bool {
        let schema = self.metadata.as_ref().and_then(|metadata| metadata.schema().ok());
        schema.is_some_and(|schema| schema.has(name))
    }

    /// Returns the metadata of a table with the column `copies`, in the format that says so; `None` if it has both.
    ///
    /// # Errors
    /// Returns one line about a column of another writer that has this name.
    pub(crate) fn with_copies(&self) -> Result<Option<Value>, String> {
        let Some(metadata) = &self.metadata else { return Ok(None) };
        let unreadable = |error: serde_json::Error| format!("its columns cannot be read: {error}");
        let mut schema: Value = serde_json::from_str(&metadata.schema_string).map_err(unreadable)?;
        let Some(columns) = schema["fields"].as_array_mut() else { return Ok(None) };
        let is_known = self.format() >= FORMAT_COLLAPSED;
        let name_of = |column: &Value| column["name"].as_str().map(str::to_owned);
        let found = columns.iter().filter_map(name_of).find(|name| name.eq_ignore_ascii_case(COPIES));
        match found {
            Some(_) if is_known => return Ok(None),
            Some(name) => {
                return Err(format!(
                    "its column {name}, of another writer, has the name of the column {COPIES}, which counts collapsed \
                     copies; rename or drop it in the engine that added it"
                ));
            }
            None => columns.push(json!({"name": COPIES, "type": "long", "nullable": true, "metadata": {}})),
        }
        let format = self.format().max(FORMAT_COLLAPSED).to_string();
        let mut action = self.with_property(FORMAT_PROPERTY, Some(&format)).unwrap_or_else(|| metadata.action.clone());
        action["schemaString"] = schema.to_string().into();
        Ok(Some(action))
    }

    /// Returns the table properties.
    pub(crate) fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.metadata.iter().flat_map(|metadata| &metadata.configuration);
        all.filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
    }

    /// Returns the metadata in which one property has another value, or is absent. Everything else stays as it is.
    /// Returns `None` if the property is like that already, or the metadata is unknown.
    pub(crate) fn with_property(&self, name: &str, value: Option<&str>) -> Option<Value> {
        let metadata = self.metadata.as_ref().filter(|metadata| metadata.get(name) != value)?;
        let mut action = metadata.action.clone();
        let mut properties = action["configuration"].as_object().cloned().unwrap_or_default();
        match value {
            Some(value) => drop(properties.insert(name.to_owned(), value.into())),
            None => drop(properties.remove(name)),
        }
        action["configuration"] = properties.into();
        Some(action)
    }

    /// Returns why a commit cannot be made, or `None` if it can. `takes_out` says whether the commit removes rows.
    pub fn refusal(&self, table: Table, takes_out: bool) -> Option<String> {
        let (Some(protocol), Some(metadata)) = (&self.protocol, &self.metadata) else {
            return Some("its log holds no protocol, or no metadata".to_owned());
        };
        // The Delta protocol defines this property: it suspends row tracking.
        let is_suspended = metadata.is("delta.rowTrackingSuspended");
        let features = protocol.writer_features.iter().flatten();
        let features = features.filter(|feature| !(is_suspended && *feature == "rowTracking"));
        self.unreadable()
            .or_else(|| newer("writer", protocol.min_writer_version, WRITER_VERSION))
            .or_else(|| unknown("writer", features))
            .or_else(|| metadata.refusal(takes_out))
            .or_else(|| metadata.other_columns(table))
    }
}

/// Returns why a table whose property [`FORMAT_PROPERTY`] has this value cannot be used, or `None` if it can.
pub(crate) fn newer_format(format: Option<&str>) -> Option<String> {
    let format = format?;
    let is_known = format.parse::<u64>().is_ok_and(|format| format <= FORMAT_MAX);
    (!is_known).then(|| {
        format!(
            "it has format {format:?} of synclake, but this version knows only formats up to {FORMAT_MAX}; upgrade synclake \
             wherever it uses this lake"
        )
    })
}

fn newer(side: &str, version: i64, known: i64) -> Option<String> {
    (version > known).then(|| {
        format!(
            "it requires Delta {side} version {version}, but this version of synclake supports only version {known}; \
             upgrade synclake"
        )
    })
}

fn unknown<'a>(side: &str, features: impl Iterator<Item = &'a String>) -> Option<String> {
    let unknown: Vec<&str> = features.map(String::as_str).filter(|feature| !FEATURES.contains(feature)).collect();
    // Delta 4.0 cannot drop row tracking, but suspend it.
    let remedy = match unknown[..] {
        ["rowTracking"] => {
            "suspend it with ALTER TABLE … SET TBLPROPERTIES ('delta.enableRowTracking' = 'false', \
             'delta.rowTrackingSuspended' = 'true'), for which Delta 4.0 needs SET \
             spark.databricks.delta.allowArbitraryProperties.enabled = true"
        }
        ["typeWidening"] => {
            "take the table back to a version before a column was widened, if one was (RESTORE TABLE … TO VERSION AS OF \
             n), and remove the feature with ALTER TABLE … DROP FEATURE typeWidening"
        }
        _ => "remove it with ALTER TABLE … DROP FEATURE in the engine that added it, or upgrade synclake",
    };
    (!unknown.is_empty()).then(|| {
        format!(
            "it requires the Delta {side} feature {}, which this version of synclake does not support; {remedy}",
            unknown.join(", ")
        )
    })
}

impl Metadata {
    fn get(&self, property: &str) -> Option<&str> {
        self.configuration.get(property)?.as_deref()
    }

    fn schema(&self) -> Result<Schema, serde_json::Error> {
        serde_json::from_str(&self.schema_string)
    }

    /// Returns why the table's columns forbid a commit.
    fn other_columns(&self, table: Table) -> Option<String> {
        let schema = match self.schema() {
            Ok(schema) => schema,
            Err(error) => return Some(format!("its columns cannot be read: {error}")),
        };
        if self.partition_columns != table.partition_columns() {
            let (found, expected) = (&self.partition_columns, table.partition_columns());
            return Some(format!("it is partitioned by {found:?}, not by {expected:?}"));
        }
        schema.refusal(table)
    }

    fn is(&self, property: &str) -> bool {
        self.get(property).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// Returns why the table properties forbid a commit.
    fn refusal(&self, takes_out: bool) -> Option<String> {
        if let Some(mode) = self.get("delta.columnMapping.mode").filter(|mode| *mode != "none") {
            return Some(format!(
                "its columns are mapped (delta.columnMapping.mode = {mode}), which synclake does not support; remove \
                 the mapping with ALTER TABLE … DROP FEATURE columnMapping"
            ));
        }
        let constraint = self.configuration.keys().filter_map(|name| name.strip_prefix("delta.constraints.")).min();
        if let Some(name) = constraint {
            return Some(format!(
                "it has the CHECK constraint {name}, which synclake does not check; remove it with ALTER TABLE … DROP \
                 CONSTRAINT {name}"
            ));
        }
        if takes_out && self.is("delta.appendOnly") {
            return Some(
                "it is append-only, but this command removes rows; allow that with ALTER TABLE … UNSET TBLPROPERTIES \
                 ('delta.appendOnly')"
                    .to_owned(),
            );
        }
        // Checkpoints of other writers omit expired ids, but those ids hold the positions of all shards.
        let ids = "delta.setTransactionRetentionDuration";
        self.get(ids).map(|_| {
            format!(
                "its transaction ids expire ({ids}), but they hold the position of each shard; prevent that with \
                 ALTER TABLE … UNSET TBLPROPERTIES ('{ids}')"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the requirements of a new table, with changes.
    fn requirements(protocol: Value, properties: Value, change: impl FnOnce(&mut Vec<Value>)) -> TableRequirements {
        let columns = Table::SyncRecords.schema();
        let column = |field: &arrow::datatypes::FieldRef| json!({"name": field.name(), "type": delta_type(field.data_type()), "nullable": true, "metadata": {}});
        let mut columns: Vec<Value> = columns.fields().iter().map(column).collect();
        change(&mut columns);
        let mut requirements = TableRequirements::default();
        let schema = json!({"type": "struct", "fields": columns}).to_string();
        let partition = Table::SyncRecords.partition_columns();
        requirements.apply_action(&json!({ "protocol": protocol })).unwrap();
        let metadata = json!({"schemaString": schema, "partitionColumns": partition, "configuration": properties});
        requirements.apply_action(&json!({ "metaData": metadata })).unwrap();
        requirements
    }

    fn modern(features: &[&str]) -> Value {
        json!({"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": features})
    }

    #[test]
    fn a_table_of_an_older_format_gets_the_missing_columns() {
        let as_made = || json!({"minReaderVersion": 1, "minWriterVersion": 2});
        let lacks = |columns: &mut Vec<Value>| columns.retain(|column| column["name"] != "source");
        let old = requirements(as_made(), json!({"delta.logRetentionDuration": "interval 9 days", "x": null}), lacks);
        assert_eq!(old.refusal(Table::SyncRecords, false), None);
        let (action, names) = old.upgrade(Table::SyncRecords).unwrap().unwrap();
        assert_eq!(names, ["source"]);
        let mut new = old;
        new.apply_action(&json!({ "metaData": action })).unwrap();
        assert_eq!(new.upgrade(Table::SyncRecords).unwrap(), None);
        let whole = requirements(as_made(), json!({}), |_| {}).metadata.unwrap().schema_string;
        let columns = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(columns(&new.metadata.unwrap().schema_string), columns(&whole), "at the end");
        let properties = json!({"delta.logRetentionDuration": "interval 9 days", "synclake.format": "2"});
        assert_eq!(action["configuration"], properties);
    }

    #[test]
    fn the_first_collapsed_copies_add_their_column_and_state_the_format() {
        let as_made = || json!({"minReaderVersion": 1, "minWriterVersion": 2});
        let mut of = requirements(as_made(), json!({"synclake.format": "2", "x": "y"}), |_| {});
        assert!(!of.has_column("copies"));
        let action = of.with_copies().unwrap().unwrap();
        assert_eq!(action["configuration"], json!({"synclake.format": "4", "x": "y"}));
        of.apply_action(&json!({ "metaData": action })).unwrap();
        assert!(of.has_column("copies") && of.has_column("source"));
        assert_eq!((of.with_copies().unwrap(), of.with_expired_rows()), (None, None), "once");
        assert_eq!(of.refusal(Table::SyncRecords, false), None);
        for name in ["copies", "Copies"] {
            let column = json!({"name": name, "type": "long", "nullable": true, "metadata": {}});
            let foreign = requirements(as_made(), json!({}), |columns| columns.push(column));
            let why = foreign.with_copies().unwrap_err();
            assert!(why.contains(&format!("its column {name}, of another writer")), "{why}");
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_name() {
        let as_made = || json!({"minReaderVersion": 1, "minWriterVersion": 2});
        let judge = |of: TableRequirements| of.refusal(Table::SyncRecords, false);
        assert_eq!(judge(requirements(as_made(), json!({}), |_| {})), None);
        assert_eq!(
            judge(requirements(modern(&["deletionVectors", "appendOnly", "checkConstraints"]), json!({}), |_| {})),
            None
        );
        let added = json!({"name": "note", "type": {"type": "array"}, "nullable": true, "metadata": {}});
        assert_eq!(judge(requirements(as_made(), json!({}), |columns| columns.push(added))), None, "it is null");
        let timed =
            requirements(modern(&["inCommitTimestamp"]), json!({"delta.enableInCommitTimestamps": "true"}), |_| {});
        assert!(timed.have_in_commit_timestamps());
        assert_eq!(judge(timed), None);
        let append_only = requirements(as_made(), json!({"delta.appendOnly": "true"}), |_| {});
        assert_eq!(append_only.refusal(Table::SyncRecords, false), None);
        assert!(append_only.refusal(Table::SyncRecords, true).unwrap().contains("append-only"));
        let refused = [
            (
                requirements(json!({"minReaderVersion": 1, "minWriterVersion": 9}), json!({}), |_| {}),
                "writer version 9, but",
            ),
            (
                requirements(json!({"minReaderVersion": 9, "minWriterVersion": 2}), json!({}), |_| {}),
                "reader version 9, but",
            ),
            (requirements(modern(&["rowTracking", "domainMetadata"]), json!({}), |_| {}), "feature rowTracking,"),
            (requirements(modern(&["fromTheFuture"]), json!({}), |_| {}), "fromTheFuture"),
            (requirements(as_made(), json!({"synclake.format": "5"}), |_| {}), "format \"5\" of synclake"),
            (requirements(as_made(), json!({"synclake.format": "two"}), |_| {}), "upgrade synclake"),
            (
                requirements(as_made(), json!({}), |columns| {
                    let source = columns.iter_mut().find(|column| column["name"] == "source").unwrap();
                    source["name"] = "Source".into();
                }),
                "its column Source has the name",
            ),
            (requirements(modern(&["columnMapping"]), json!({"delta.columnMapping.mode": "name"}), |_| {}), "mapped"),
            (requirements(as_made(), json!({"delta.constraints.old": "sync_count > 0"}), |_| {}), "constraint old"),
            (
                requirements(as_made(), json!({"delta.setTransactionRetentionDuration": "interval 1 day"}), |_| {}),
                "expire",
            ),
            (requirements(as_made(), json!({}), |columns| columns[9]["name"] = "n".into()), "sync_count was dropped"),
            (
                requirements(as_made(), json!({}), |columns| columns[9]["type"] = "string".into()),
                "sync_count is of type",
            ),
            (
                requirements(as_made(), json!({}), |columns| columns[6]["nullable"] = false.into()),
                "key must not be null",
            ),
            (
                requirements(as_made(), json!({}), |columns| columns[9]["metadata"]["delta.invariants"] = "…".into()),
                "delta.invariants",
            ),
        ];
        for (of, part) in refused {
            let why = judge(of).unwrap_or_default();
            assert!(why.contains(part), "{part:?} is not in {why:?}");
        }
        assert_eq!(
            judge(requirements(modern(&["rowTracking"]), json!({"delta.rowTrackingSuspended": "true"}), |_| {})),
            None
        );
    }
}
