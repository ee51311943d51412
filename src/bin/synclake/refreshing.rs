//! `synclake ingest --refresh-every`: the refresh beside an ingest.

use std::time::Duration;

use anyhow::{Context, Result};
use synclake::aws::AwsSettings;
use synclake::lake::{Location, Store};
use synclake::query;
use synclake::query::state::refresh;

use crate::STACK_BYTES;

/// A background refresh of an ingest, on its own thread: DataFusion blocks the thread that it computes on, and the
/// ingest loop must not wait. A refresh that is dropped midway changes nothing.
pub(crate) struct Refreshing(Option<tokio::runtime::Runtime>);

impl Refreshing {
    /// Starts it.
    pub(crate) fn start(place: Location, aws: AwsSettings, every: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("refresh")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .context("start the runtime of the refresh")?;
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                refresh_once(&place, &aws).await;
            }
        });
        Ok(Self(Some(runtime)))
    }
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Refreshes the maintained state, with its own memory limit and one thread: ingest has priority.
async fn refresh_once(place: &Location, aws: &AwsSettings) {
    let limits = query::Limits { memory_bytes: 128 << 20, threads: 1, ..query::Limits::default() };
    let refreshed = async {
        // Connections belong to the runtime that created them, so the refresh opens its own store.
        let lake = Store::open(place, aws).await?;
        anyhow::Ok(refresh::run(&lake, &limits, false).await?)
    };
    match refreshed.await {
        Ok(report) => tracing::info!(covers = report.covers, rows = report.rows_written, "refreshed the state"),
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "cannot refresh the state; queries stay exact and get slower");
        }
    }
}
