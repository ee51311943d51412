//! Names and types of the columns of the views. DataFusion plans the queries over empty tables, so the columns are those of
//! the SQL.

use std::sync::Arc;

use arrow::datatypes::Fields;
use datafusion::catalog::MemorySchemaProvider;
use datafusion::common::TableReference;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;

use super::{Engine, View, views_of};
use crate::schema::Table;

/// Returns the views of an engine whose tables exist, with their columns. Tables and views are in `database`.
///
/// # Errors
/// Returns one line about a view that cannot be planned, which is a bug.
pub(crate) async fn views_with_columns(
    engine: Engine,
    database: &str,
    tables: &[Table],
    is_collapsed: bool,
) -> Result<Vec<(View, Fields)>, String> {
    let fail = |error: DataFusionError| format!("a view cannot be planned, a bug: {error}");
    let context = SessionContext::new();
    let catalog = context.catalog("datafusion").ok_or("a session has no catalogue, a bug")?;
    catalog.register_schema(database, Arc::new(MemorySchemaProvider::new())).map_err(fail)?;
    for table in tables {
        let columns = if is_collapsed { table.query_schema() } else { table.schema() };
        let name = TableReference::partial(database, table.name());
        context.register_table(name, Arc::new(EmptyTable::new(columns))).map_err(fail)?;
    }
    let prefix = format!("{database}.");
    let mut planned = Vec::new();
    for view in views_of(engine, &prefix, &prefix, is_collapsed) {
        let misses =
            |table: &Table| !tables.contains(table) && view.select.contains(&format!("{prefix}{}", table.name()));
        if Table::ALL.iter().any(misses) {
            continue;
        }
        let query = context.sql(&view.select).await.map_err(fail)?;
        let columns = query.schema().fields().clone();
        let name = TableReference::partial(database, view.name);
        context.register_table(name, query.into_view()).map_err(fail)?;
        planned.push((view, columns));
    }
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn names(tables: &[Table], is_collapsed: bool) -> Vec<&'static str> {
        let planned = views_with_columns(Engine::Athena, "d", tables, is_collapsed).await.unwrap();
        planned.into_iter().map(|(view, _)| view.name).collect()
    }

    #[tokio::test]
    async fn views_are_planned_and_those_without_their_table_left_out() {
        let all = names(&Table::ALL, true).await;
        for name in ["cognito_raw_data", "changes", "current_state", "refreshed_state", "daily_extract"] {
            assert!(all.contains(&name), "{name}: {all:?}");
        }
        let some = names(&[Table::SyncRecords, Table::Quarantine, Table::Gaps], false).await;
        assert!(some.contains(&"current_state"), "{some:?}");
        assert!(!some.contains(&"refreshed_state") && !some.contains(&"daily_extract"), "{some:?}");
    }
}
