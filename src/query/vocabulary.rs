//! The words of a lake that an editor may offer: names, and values that the statistics of files and some rows hold.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::AsArray;
use arrow::datatypes::DataType;
use deltalake::DeltaTable;

use super::{Engine, QueryError, relations};
use crate::lake::{Store, snapshot};
use crate::schema::Table;

/// Columns whose values are offered.
const COLUMNS: [&str; 3] = ["identity_pool_id", "identity_id", "dataset_name"];
/// Most values of a column.
const VALUES_MAX: usize = 20_000;
/// Longest value, in bytes: a longer one may have been cut in the statistics.
const VALUE_BYTES_MAX: usize = 128;
/// Rows whose datasets are read. A file has many datasets, and its statistics name two of them.
const SAMPLE_ROWS: usize = 200_000;

/// Words that an editor may offer.
#[derive(Debug, Default)]
pub struct Vocabulary {
    /// Tables and views, each with its columns.
    pub relations: Vec<(String, Vec<String>)>,
    /// Functions.
    pub functions: Vec<String>,
    /// Some values of columns.
    pub values: BTreeMap<String, BTreeSet<String>>,
}

impl Engine {
    /// Reads the words of the lake. Values are the least and greatest ones of each file, as its log has them, and the
    /// datasets of some rows.
    ///
    /// # Errors
    /// There is no lake, or it cannot be read.
    pub async fn vocabulary(&self) -> Result<Vocabulary, QueryError> {
        let mut words = Vocabulary::default();
        let state = self.context.state();
        let loaded = self.relations.ensure(relations::all(), &state).await?;
        for name in relations::all() {
            let schema = self.context.table_provider(name).await?.schema();
            let columns = schema.fields().iter().map(|field| field.name().clone()).collect();
            words.relations.push((name.to_owned(), columns));
        }
        let names = state.scalar_functions().keys().chain(state.aggregate_functions().keys());
        let names: BTreeSet<&String> = names.chain(state.window_functions().keys()).collect();
        // Names that begin otherwise belong to the program itself.
        let is_plain = |name: &&&String| name.starts_with(|c: char| c.is_ascii_alphabetic());
        words.functions = names.iter().filter(is_plain).map(|name| (*name).clone()).collect();
        for (table, known) in loaded.of([Table::SyncRecords, Table::State]) {
            self.add_values(&table.store(self.relations.lake()), known, &mut words.values).await?;
        }
        // A statement loads its tables itself.
        drop(loaded);
        // Without rows that can be read, there are the values so far.
        if let Ok(datasets) = self.datasets().await {
            words.values.entry("dataset_name".to_owned()).or_default().extend(datasets);
        }
        Ok(words)
    }

    /// Returns the names of the datasets of some rows.
    async fn datasets(&self) -> Result<Vec<String>, QueryError> {
        let some = format!("select dataset_name from sync_records limit {SAMPLE_ROWS}");
        let sql = format!("select distinct cast(dataset_name as varchar) as name from ({some}) limit {VALUES_MAX}");
        let batches = self.sql(&sql).await?.collect().await?;
        let names = batches.iter().flat_map(|batch| {
            let names = arrow::compute::cast(batch.column(0), &DataType::Utf8).ok();
            let names =
                names.map(|names| names.as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>());
            names.unwrap_or_default()
        });
        Ok(names.filter(|name| name.len() <= VALUE_BYTES_MAX).collect())
    }

    async fn add_values(
        &self,
        store: &Store,
        loaded: &DeltaTable,
        values: &mut BTreeMap<String, BTreeSet<String>>,
    ) -> Result<(), QueryError> {
        let mut add = |column: &str, value: Option<&str>| {
            let known = values.entry(column.to_owned()).or_default();
            if let Some(value) = value.filter(|value| known.len() < VALUES_MAX && value.len() <= VALUE_BYTES_MAX) {
                known.insert(value.to_owned());
            }
        };
        snapshot::visit_files(store, loaded, |file| {
            let statistics = file.statistics.as_deref().and_then(|text| serde_json::from_str(text).ok());
            let statistics: serde_json::Value = statistics.unwrap_or_default();
            for column in COLUMNS {
                add(column, file.partition.get(column).and_then(Option::as_deref));
                for bound in ["minValues", "maxValues"] {
                    add(column, statistics.get(bound).and_then(|values| values.get(column)?.as_str()));
                }
            }
        })
        .await?;
        Ok(())
    }
}
