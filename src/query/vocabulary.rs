//! The words of a lake that an editor may offer: names, and values that the statistics of files hold.

use std::collections::{BTreeMap, BTreeSet};

use deltalake::DeltaTable;

use super::{Engine, QueryError, relations};
use crate::lake::{Store, snapshot};
use crate::schema::Table;

/// Columns whose values are offered.
const COLUMNS: [&str; 3] = ["identity_pool_id", "identity_id", "dataset_name"];
/// Most values of a column.
const VALUES_MAX: usize = 20_000;

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
    /// Reads the words of the lake. Values are the least and greatest ones of each file, as its log has them.
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
        Ok(words)
    }

    async fn add_values(
        &self,
        store: &Store,
        loaded: &DeltaTable,
        values: &mut BTreeMap<String, BTreeSet<String>>,
    ) -> Result<(), QueryError> {
        let mut add = |column: &str, value: Option<&str>| {
            let known = values.entry(column.to_owned()).or_default();
            // A long value may have been cut in the statistics.
            if let Some(value) = value.filter(|value| known.len() < VALUES_MAX && value.len() <= 128) {
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
