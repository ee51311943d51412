//! Corrections: the effect of late rows on the state of a day that was extracted before.
//!
//! ```text
//! corrections = the keys whose live row differs from that in the extract before, and the keys of earlier corrections:
//!               the row that is live now, or a `remove`
//! ```
//!
//! **Invariant: any earlier extract of the day, with the corrections applied by key, equals the newest extract.** So
//! earlier corrections are carried on, and a reader that loaded any version of the day needs only these rows.

use std::collections::BTreeSet;

use datafusion::prelude::{DataFrame, SessionContext};

use super::plan::Plan;
use super::{ExtractError, LIVE, ORDER, rows_of};
use crate::query::QueryError;
use crate::schema::Table;

/// Returns all keys as corrections, for an extract before that cannot be read. Superfluous corrections do no harm.
pub(super) async fn all(context: &SessionContext) -> Result<DataFrame, ExtractError> {
    let sql = format!("SELECT {} FROM key_state WHERE key IS NOT NULL {ORDER}", correction());
    Ok(context.sql(&sql).await.map_err(QueryError::from)?)
}

/// Returns the columns of a key's row as a correction: the live row, or a `remove`.
fn correction() -> String {
    format!(
        "'correction' AS kind, pool, identity_pool_id, identity_id, dataset_name, key,
        CASE WHEN {LIVE} THEN value END AS value, CASE WHEN {LIVE} THEN op ELSE 'remove' END AS op,
        sync_count, last_modified_date, device_last_modified_date"
    )
}

const ROW: &str = "pool, identity_id, dataset_name, key, value, op, sync_count, last_modified_date, \
                   device_last_modified_date";

/// Returns the corrections of a day whose state is `key_state` in `context`; `None` if there can be none.
pub(super) async fn rows(context: &SessionContext, plan: &Plan) -> Result<Option<DataFrame>, ExtractError> {
    let Some(replaced) = &plan.replaced else { return Ok(None) };
    if !replaced.is_as_written {
        return all(context).await.map(Some);
    }
    if replaced.corrections.is_empty() && replaced.unknown.as_ref().is_some_and(BTreeSet::is_empty) {
        return Ok(None);
    }
    let session = context.state();
    let register = async |name: &str, of: Table, files: &BTreeSet<String>| -> Result<(), ExtractError> {
        let loaded = if of == Table::DailyState { &plan.daily } else { &plan.records };
        let rows = rows_of(of, loaded, &session, files).await?;
        context.register_table(name, rows).map_err(QueryError::from)?;
        Ok(())
    };
    register("before_state", Table::DailyState, &replaced.state).await?;
    register("before_corrections", Table::DailyState, &replaced.corrections).await?;
    // Only datasets of unknown rows can have changed.
    let touched = match &replaced.unknown {
        Some(files) => {
            register("unknown", Table::SyncRecords, files).await?;
            "LEFT SEMI JOIN (SELECT DISTINCT pool, identity_id, dataset_name FROM unknown) AS t \
             ON s.pool = t.pool AND s.identity_id = t.identity_id AND s.dataset_name = t.dataset_name"
        }
        None => "",
    };
    // A row that is on both sides is counted twice.
    let sql = format!(
        "WITH both_sides AS (
            SELECT {ROW} FROM (SELECT * FROM before_state WHERE kind = 'state') AS s {touched}
            UNION ALL
            SELECT {ROW} FROM (SELECT * FROM key_state WHERE {LIVE}) AS s {touched}
        ), changed AS (
            SELECT pool, identity_id, dataset_name, key FROM both_sides GROUP BY {ROW} HAVING count(*) = 1
            UNION
            SELECT pool, identity_id, dataset_name, key FROM before_corrections WHERE kind = 'correction'
        )
        SELECT {}
        FROM key_state AS s LEFT SEMI JOIN changed AS c
        ON s.pool = c.pool AND s.identity_id = c.identity_id AND s.dataset_name = c.dataset_name AND s.key = c.key
        {ORDER}",
        correction()
    );
    Ok(Some(context.sql(&sql).await.map_err(QueryError::from)?))
}
