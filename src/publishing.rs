//! Bulk publishes compared with the lake: what arrived of one, and whether everything has.

use chrono::{DateTime, SecondsFormat, Utc};
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use serde::Serialize;

use crate::cognito::{BulkPublish, PoolId};
use crate::lake::{LakeError, Store};
use crate::query::{Engine, Limits, QueryError, Scope};
use crate::status::{self, StatusOptions};

/// What the lake got of a pool since its bulk publish began. Changes of the pool's users are among it: the service does
/// not mark what a bulk publish sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Received {
    /// Start of the bulk publish.
    pub since: DateTime<Utc>,
    /// Datasets of which a change arrived.
    pub datasets: i64,
    /// Those of them that the lake did not have before.
    pub new_datasets: i64,
    /// Keys of which a change arrived.
    pub keys: i64,
    /// Changes that arrived, each once.
    pub changes: i64,
    /// Those of them that the lake had before.
    pub copies: i64,
    /// Rows of these changes: a change that was delivered twice counts twice.
    pub delivered: i64,
    /// Datasets that are live in the lake and of which nothing arrived: removed in Cognito, or not published.
    pub live_datasets_absent: i64,
    /// Time up to which every shard of the pool's stream was read; null if unknown.
    pub read_to: Option<DateTime<Utc>>,
    /// Whether the bulk publish has ended, and the lake has everything that arrived until then.
    pub is_complete: bool,
}

/// The reason why a lake cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum PublishingError {
    /// An error of the lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// An error of the query.
    #[error(transparent)]
    Query(#[from] QueryError),
}

/// Returns what the lake got of a pool since its bulk publish began; `None` if none was started. `stream` is the pool's
/// stream.
///
/// # Errors
/// There is no lake, or it cannot be read.
pub async fn received(
    lake: &Store,
    pool: &PoolId,
    stream: &str,
    publish: &BulkPublish,
) -> Result<Option<Received>, PublishingError> {
    let Some(since) = publish.started_at else { return Ok(None) };
    // The watermarks are read before the rows: rows that come between the two reads are more than promised.
    let read_to = read_to(lake, stream).await?;
    let is_complete = is_complete(publish, read_to);
    let folder = pool.as_str().replace(':', "_");
    let sql = include_str!("../sql/bulk_publish.sql").replace("${pool}", &folder);
    let sql = sql.replace("${since}", &since.to_rfc3339_opts(SecondsFormat::Millis, true));
    let engine = Engine::open(lake, &Limits::default(), Scope::default())?;
    let batches = engine.sql(&sql).await?.collect().await.map_err(QueryError::from)?;
    let row = batches.iter().find(|batch| batch.num_rows() > 0);
    let number = |column: &str| {
        let values = row.and_then(|batch| batch.column_by_name(column)?.as_primitive_opt::<Int64Type>());
        values.map_or(0, |values| values.value(0))
    };
    Ok(Some(Received {
        since,
        datasets: number("datasets"),
        new_datasets: number("new_datasets"),
        keys: number("keys"),
        changes: number("changes"),
        copies: number("copies"),
        delivered: number("delivered"),
        live_datasets_absent: number("live_datasets_absent"),
        read_to,
        is_complete,
    }))
}

/// Returns up to when the stream was read, from the log alone; `None` if unknown.
///
/// # Errors
/// There is no lake, or its logs cannot be read.
pub async fn read_to(lake: &Store, stream: &str) -> Result<Option<DateTime<Utc>>, LakeError> {
    let options = StatusOptions { lake: lake.to_string(), commits_max: 1, verbose: false, now: Utc::now() };
    Ok(status::run(lake, &options).await?.read_to(stream).map(|moment| moment.at))
}

/// Returns whether a bulk publish has ended, and its stream was read past that time.
pub fn is_complete(publish: &BulkPublish, read_to: Option<DateTime<Utc>>) -> bool {
    publish.completed_at.is_some_and(|completed| read_to.is_some_and(|to| to >= completed))
}
