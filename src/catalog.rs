//! The tables and views of a lake in the AWS Glue Data Catalog, where Athena and Redshift Spectrum find them.
//!
//! A synchronization first reads everything and decides, then changes. So a table of somebody else under the same name
//! is refused before anything is changed. What a synchronization sets, it compares; what others add to a table of the
//! catalogue stays.

use serde::Serialize;

use crate::aws::AwsSettings;
use crate::aws::call::CallError;
use crate::ddl;
use crate::lake::{LakeError, Store};
use crate::schema::Table;

mod entries;
mod glue;
mod partitions;
mod views;

use glue::Glue;

/// An engine that reads the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// Amazon Athena over the Delta tables, with the views.
    Athena,
    /// Amazon Redshift Spectrum over the files of manifests, with their partitions.
    Redshift,
}

impl Engine {
    /// Returns the name, as the command line takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Athena => "athena",
            Self::Redshift => "redshift",
        }
    }
}

/// Options of a synchronization.
#[derive(Debug, Clone)]
pub struct CatalogOptions {
    /// Engine that will read the tables.
    pub engine: Engine,
    /// Database of the catalogue.
    pub database: String,
    /// Whether tables and views that something else made under the same names are replaced.
    pub may_replace: bool,
    /// Whether to change the catalogue, or only to compare.
    pub is_dry_run: bool,
}

/// Kind of an entry of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Database.
    Database,
    /// Table.
    Table,
    /// View of Athena.
    View,
    /// All partitions of a table.
    Partitions,
}

/// Change that an entry of the catalogue needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is as it should be.
    None,
    /// It does not exist.
    Create,
    /// It differs.
    Update,
}

/// An entry of the catalogue: as it is, compared with the lake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryReport {
    /// Name, such as `cognito` or `cognito.sync_records`.
    pub name: String,
    /// Kind.
    pub kind: Kind,
    /// The change that it needs; after a synchronization, the change that was made.
    pub action: Action,
    /// How it differs from the lake, one line each.
    pub differences: Vec<String>,
}

/// The result of a synchronization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogReport {
    /// Lake.
    pub lake: String,
    /// Entries: the database, then tables, partitions and views.
    pub entries: Vec<EntryReport>,
    /// Tables that the lake does not have yet.
    pub missing: Vec<&'static str>,
    /// Whether the catalogue was changed accordingly.
    pub is_applied: bool,
}

impl CatalogReport {
    /// Returns the entries that differ, or differed.
    pub fn drift(&self) -> impl Iterator<Item = &EntryReport> {
        self.entries.iter().filter(|entry| entry.action != Action::None)
    }
}

/// An error of a synchronization.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Glue refuses or does not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The lake cannot be read.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// Something else has the name of a table or view.
    #[error(
        "{name} in the Glue catalogue is not of this lake: {reason}; give another --database, or replace it by --replace"
    )]
    Foreign {
        /// Name of the table or view.
        name: String,
        /// Difference from an entry of this lake.
        reason: String,
    },
    /// The lake has no manifests, which the engine reads.
    #[error(
        "{table} of {lake} has no manifests, and Redshift Spectrum reads no Delta log; run `synclake manifest --lake {lake}` first"
    )]
    NoManifests {
        /// Table.
        table: &'static str,
        /// Lake.
        lake: String,
    },
    /// The options or the lake cannot be registered.
    #[error("{0}")]
    Invalid(String),
}

/// Compares the catalogue with a lake, and changes it unless `options.is_dry_run`.
///
/// # Errors
/// The lake or the catalogue cannot be read, a name is taken, or a change fails. Changes that were made before stay; a
/// second run makes the rest.
pub async fn sync(lake: &Store, aws: &AwsSettings, options: &CatalogOptions) -> Result<CatalogReport, CatalogError> {
    ddl::check_database(&options.database).map_err(CatalogError::Invalid)?;
    if lake.folder().is_some() {
        let message = "the lake is a folder, which no engine of the Glue catalogue reads; give s3://bucket/prefix";
        return Err(CatalogError::Invalid(message.to_owned()));
    }
    let mut tables = Vec::new();
    let mut missing = Vec::new();
    for table in Table::ALL {
        match table.exists(lake).await? {
            true => tables.push(table),
            false => missing.push(table.name()),
        }
    }
    if !tables.contains(&Table::SyncRecords) {
        return Err(LakeError::NoLake(lake.to_string()).into());
    }
    let glue = Glue::new(aws).await;
    let has_database = glue.has_database(&options.database).await?;
    let planned = plan(lake, &glue, options, &tables, has_database).await?;
    if !options.is_dry_run {
        if !has_database {
            glue.create_database(&options.database).await?;
        }
        for Planned { entry, partitions } in &planned {
            entry.apply(&glue, &options.database).await?;
            if let Some(partitions) = partitions {
                partitions.apply(&glue, &options.database).await?;
            }
        }
    }
    let action = if has_database { Action::None } else { Action::Create };
    let database =
        EntryReport { name: options.database.clone(), kind: Kind::Database, action, differences: Vec::new() };
    let reports = planned
        .into_iter()
        .flat_map(|planned| [Some(planned.entry.report), planned.partitions.map(|partitions| partitions.report)]);
    let entries = std::iter::once(database).chain(reports.flatten()).collect();
    Ok(CatalogReport { lake: lake.to_string(), entries, missing, is_applied: !options.is_dry_run })
}

/// A table or view and what it needs, with its partitions.
struct Planned {
    entry: entries::Change,
    partitions: Option<partitions::Change>,
}

/// Compares everything, and changes nothing.
async fn plan(
    lake: &Store,
    glue: &Glue,
    options: &CatalogOptions,
    tables: &[Table],
    has_database: bool,
) -> Result<Vec<Planned>, CatalogError> {
    let CatalogOptions { engine, database, may_replace, .. } = options;
    let is_collapsed = Table::SyncRecords.has_copies(lake).await?;
    let find = async |name: &str| if has_database { glue.table(database, name).await } else { Ok(None) };
    let mut planned = Vec::new();
    for table in tables {
        let entry = entries::table(*engine, lake, *table, is_collapsed);
        let found = find(entry.name()).await?;
        let entry = entry.compare(database, found, *may_replace)?;
        let has_partitions = *engine == Engine::Redshift && !table.partition_columns().is_empty();
        let partitions = match has_partitions {
            true => Some(partitions::compare(glue, lake, database, *table, entry.exists()).await?),
            false => None,
        };
        planned.push(Planned { entry, partitions });
    }
    if *engine == Engine::Athena {
        for view in views::entries(&lake.to_string(), database, tables, is_collapsed).await? {
            let found = find(view.name()).await?;
            planned.push(Planned { entry: view.compare(database, found, *may_replace)?, partitions: None });
        }
    }
    Ok(planned)
}
