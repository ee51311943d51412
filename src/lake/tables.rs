//! Creation and loading of the lake's tables.

use std::time::Instant;

use deltalake::kernel::StructType;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::operations::create::CreateBuilder;
use deltalake::{DeltaTable, DeltaTableError};

use super::{LakeError, Store, fault, log, paths};
use crate::backoff::Backoff;
use crate::schema::{COPIES, FORMAT, FORMAT_PROPERTY, Table};
use crate::timeouts::COMMIT_TIMEOUT;

impl Table {
    /// Returns the store of the table's own root.
    pub fn store(self, lake: &Store) -> Store {
        lake.child(self.name())
    }

    /// Returns whether the table exists, without loading it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn exists(self, lake: &Store) -> Result<bool, LakeError> {
        log::exists(&self.store(lake)).await
    }

    /// Returns whether the table has the column that counts collapsed copies.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn has_copies(self, lake: &Store) -> Result<bool, LakeError> {
        let known = log::read_transactions(&self.store(lake)).await?;
        Ok(known.is_some_and(|known| known.requirements.has_column(COPIES)))
    }

    /// Creates the table if it does not exist. Races are safe: the first writer's version 0 wins.
    ///
    /// # Errors
    /// The store failed, the location holds something that is no Delta table, or `sync_records` is missing beside
    /// tables derived from it.
    pub async fn ensure(self, lake: &Store) -> Result<(), LakeError> {
        if self.exists(lake).await? {
            return Ok(());
        }
        if self == Self::SyncRecords {
            Self::check_that_lake_is_new(lake).await?;
        }
        let store = self.store(lake);
        let (began, mut backoff) = (Instant::now(), Backoff::new(50, 5_000));
        // A store does not repeat a conditional write whose connection broke, so this repeats it.
        loop {
            let Err(error) = self.create(&store).await else { return Ok(()) };
            // Another worker, or an earlier try, created the table.
            if let Ok(Some(_)) = store.get(&paths::commit(0)).await {
                return Ok(());
            }
            if fault::is_permanent(&error) || began.elapsed() > COMMIT_TIMEOUT {
                return Err(error);
            }
            tracing::warn!(table = self.name(), %error, "cannot create the table, trying again");
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Writes version 0 of the table.
    async fn create(self, store: &Store) -> Result<(), LakeError> {
        let fail = |source| LakeError::delta("create", store, source);
        let columns: StructType =
            self.schema().as_ref().try_into_kernel().map_err(|e| fail(DeltaTableError::Arrow { source: e }))?;
        CreateBuilder::new()
            .with_log_store(super::snapshot::log_store(store)?)
            .with_table_name(self.name())
            .with_columns(columns.fields().cloned())
            .with_partition_columns(self.partition_columns().iter().copied())
            .with_configuration([(FORMAT_PROPERTY, Some(FORMAT.to_string()))])
            // deltalake knows the properties of the protocol only.
            .with_raise_if_key_not_exists(false)
            .await
            .map(drop)
            .map_err(fail)
    }

    /// Rejects a new `sync_records` beside tables that were derived from another one: nobody would notice its missing
    /// rows.
    async fn check_that_lake_is_new(lake: &Store) -> Result<(), LakeError> {
        for other in Self::ALL.into_iter().filter(|table| *table != Self::SyncRecords) {
            let version = log::read_transactions(&other.store(lake)).await?.map_or(0, |known| known.version);
            // The second check is needed: another worker creates all tables of a new lake before it commits to any of
            // them.
            if version > 0 && !Self::SyncRecords.exists(lake).await? {
                return Err(LakeError::Invalid(format!(
                    "{lake} has no table {}, but it has a table {} that was derived from one (version {version}); \
                     restore the missing folder from a copy, or give another --lake; to start over here, delete the \
                     other tables too",
                    Self::SyncRecords.name(),
                    other.name()
                )));
            }
        }
        Ok(())
    }

    /// Loads the table at a version, or at the newest one. Returns `None` if the table does not exist.
    ///
    /// # Errors
    /// The log cannot be read or is inconsistent.
    pub async fn load(self, lake: &Store, version: Option<u64>) -> Result<Option<DeltaTable>, LakeError> {
        super::snapshot::load(&self.store(lake), version).await
    }
}
