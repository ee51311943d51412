//! Built-in views: `sql/views/*.sql`, each a SELECT under its file's name.

use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;

/// Name, definition and purpose of each view. A view may build on the views before it.
pub const VIEWS: [(&str, &str, &str); 13] = [
    ("changes", include_str!("../../sql/views/changes.sql"), "every change once, with the number of its copies"),
    ("resolved", include_str!("../../sql/views/resolved.sql"), "every change, and whether it is the latest and live"),
    ("current_state", include_str!("../../sql/views/current_state.sql"), "the live keys, each with its latest value"),
    (
        "dataset_state",
        include_str!("../../sql/views/dataset_state.sql"),
        "per dataset: live keys, last change, removed",
    ),
    ("daily_changes", include_str!("../../sql/views/daily_changes.sql"), "the net change of each key on each day"),
    (
        "key_history",
        include_str!("../../sql/views/key_history.sql"),
        "every change of a key, the value before it, the time after it",
    ),
    (
        "daily_datasets",
        include_str!("../../sql/views/daily_datasets.sql"),
        "per pool, day, identity and dataset: number of changes",
    ),
    (
        "daily_identities",
        include_str!("../../sql/views/daily_identities.sql"),
        "per pool, day and identity: datasets, changes",
    ),
    (
        "daily_active",
        include_str!("../../sql/views/daily_active.sql"),
        "per pool and day: identities, new ones, datasets, changes",
    ),
    ("late_changes", include_str!("../../sql/views/late_changes.sql"), "changes that arrived on a later day, how late"),
    (
        "identity_usage",
        include_str!("../../sql/views/identity_usage.sql"),
        "per identity: datasets, keys, bytes, share of the limits",
    ),
    ("daily_extract", include_str!("../../sql/views/daily_extract.sql"), "what `synclake extract` wrote, by day"),
    ("cognito_raw_data", include_str!("../../sql/views/cognito_raw_data.sql"), "the predecessor's table and names"),
];

/// Registers the views of these names in a session that has the tables under them.
///
/// # Errors
/// A definition does not fit the tables (a bug).
pub async fn register(context: &SessionContext, names: &[&str]) -> Result<(), DataFusionError> {
    for (name, definition, _) in VIEWS.into_iter().filter(|(name, ..)| names.contains(name)) {
        let view = context.sql(definition).await?.into_view();
        context.register_table(name, view)?;
    }
    Ok(())
}
