//! The partitions of a table that Redshift Spectrum reads: one for each manifest. Spectrum sees no other.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::glue::{Glue, Write};
use super::{Action, CatalogError, EntryReport, Kind, entries};
use crate::aws::call::CallError;
use crate::lake::{Store, manifest};
use crate::schema::Table;

/// The partitions of a table and what they need.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) report: EntryReport,
    table: Table,
    writes: Vec<(Write, Vec<Value>)>,
}

/// Compares the partitions of a table with its manifests.
///
/// # Errors
/// The table has no manifests, or the catalogue cannot be read.
pub(super) async fn compare(
    glue: &Glue,
    lake: &Store,
    database: &str,
    table: Table,
    exists: bool,
) -> Result<Change, CatalogError> {
    let folders = manifest::partitions(lake, table).await?;
    let folders = folders.ok_or_else(|| CatalogError::NoManifests { table: table.name(), lake: lake.to_string() })?;
    let wanted: BTreeMap<Vec<String>, Value> = folders
        .into_iter()
        .map(|(values, folder)| {
            let place = format!("{lake}/{}/{folder}/", table.name());
            let input = json!({ "Values": values, "StorageDescriptor": entries::manifests(Vec::new(), &place) });
            (values, input)
        })
        .collect();
    let found = if exists { glue.partitions(database, table.name()).await? } else { Vec::new() };
    let found: BTreeMap<Vec<String>, Value> = found
        .into_iter()
        .map(|partition| {
            let values = partition["Values"].as_array().map(Vec::as_slice).unwrap_or_default();
            (values.iter().map(|value| value.as_str().unwrap_or_default().to_owned()).collect(), partition)
        })
        .collect();
    let is_right = |wanted: &Value, found: &Value| {
        let part = |partition: &Value, key: &str| partition["StorageDescriptor"][key].clone();
        let serde = |partition: &Value| part(partition, "SerdeInfo")["SerializationLibrary"].clone();
        part(wanted, "Location") == part(found, "Location")
            && part(wanted, "InputFormat") == part(found, "InputFormat")
            && serde(wanted) == serde(found)
    };
    let missing = wanted.iter().filter(|(values, _)| !found.contains_key(*values)).map(|(_, input)| input.clone());
    let wrong = wanted.iter().filter(|(values, input)| found.get(*values).is_some_and(|found| !is_right(input, found)));
    // A manifest never leaves, so such a partition belongs to nothing of this lake.
    let unknown = found.iter().filter(|(values, _)| !wanted.contains_key(*values));
    let unknown = unknown.map(|(values, _)| json!({ "Values": values }));
    let writes = [
        (Write::Create, missing.collect::<Vec<_>>()),
        (Write::Update, wrong.map(|(_, input)| input.clone()).collect()),
        (Write::Delete, unknown.collect()),
    ];
    let told = writes.iter().filter(|(_, some)| !some.is_empty()).map(|(write, some)| {
        let what = match write {
            Write::Create => "missing",
            Write::Update => "at another place or in another format",
            Write::Delete => "not of the lake",
        };
        format!("{} of {} partitions {what}", some.len(), wanted.len().max(found.len()))
    });
    let differences: Vec<String> = told.collect();
    let action = match (differences.is_empty(), found.is_empty()) {
        (true, _) => Action::None,
        (false, true) => Action::Create,
        (false, false) => Action::Update,
    };
    let name = format!("{database}.{}", table.name());
    let report = EntryReport { name, kind: Kind::Partitions, action, differences };
    Ok(Change { report, table, writes: writes.into() })
}

impl Change {
    pub(super) async fn apply(&self, glue: &Glue, database: &str) -> Result<(), CallError> {
        for (write, some) in &self.writes {
            glue.write_partitions(database, self.table.name(), *write, some).await?;
        }
        Ok(())
    }
}
