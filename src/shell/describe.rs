//! What `\d` shows: the tables and views, and the columns of one of them.

use crate::query::catalog::{self, type_name};
use crate::query::{Engine, QueryError};

/// Returns a line for each table and view.
pub(super) fn relations() -> String {
    let relations = catalog::relations().into_iter();
    relations.map(|known| format!("{:5}  {:16}  {}\n", known.kind, known.name, known.about)).collect()
}

/// Returns a line for each column of a table or view.
///
/// # Errors
/// There is none of this name, or the lake cannot be read.
pub(super) async fn columns(engine: &Engine, name: &str) -> Result<String, QueryError> {
    let unknown = || crate::query::unknown_relation(name, "");
    let schema = engine.columns(name).await?.ok_or_else(unknown)?;
    Ok(schema.fields().iter().map(|f| format!("{:26}  {}\n", f.name(), type_name(f.data_type()))).collect())
}
