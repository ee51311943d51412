//! `synclake ingest --refresh-every` and `--care`: work on the lake beside an ingest.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::Utc;
use synclake::aws::AwsSettings;
use synclake::compact::CompactOptions;
use synclake::lake::ledger::Ledger;
use synclake::lake::{Location, Store};
use synclake::query::Limits;
use synclake::query::state::refresh::{self, RefreshError};
use synclake::schema::Table;
use synclake::vacuum::VacuumOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::STACK_BYTES;
use crate::care::{CareReport, Round};

/// Transaction id in the log of `sync_records`: when the last round of care began, in milliseconds since the epoch.
const TURN: &str = "care/turn";
/// Memory of a step beside an ingest.
const MEMORY_BYTES: u64 = 128 << 20;
/// Workers look this often whether a round is due, or ten times in its interval.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Time for a step to end after the ingest.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What an ingest does for the lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Care {
    /// Nothing.
    Off,
    /// Merge small files.
    Light,
    /// Refresh the state, merge small files, and delete old ones.
    Full,
}

/// What runs beside an ingest.
pub(crate) struct Plan {
    pub(crate) refresh_every: Option<Duration>,
    pub(crate) care: Care,
    pub(crate) care_every: Duration,
}

/// Work beside an ingest, on its own thread: DataFusion blocks the thread that it computes on, and the ingest loop must
/// not wait.
pub(crate) struct Beside {
    runtime: tokio::runtime::Runtime,
    work: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Beside {
    /// Starts it.
    pub(crate) fn start(place: Location, aws: AwsSettings, plan: &Plan) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("beside")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .context("start the runtime of the work beside the ingest")?;
        let (stop, mut work) = (CancellationToken::new(), Vec::new());
        if let Some(every) = plan.refresh_every {
            let (place, aws, stop) = (place.clone(), aws.clone(), stop.clone());
            work.push(runtime.spawn(async move {
                while is_over(every, &stop).await {
                    refresh_once(&place, &aws, &stop).await;
                }
            }));
        }
        if plan.care != Care::Off {
            let (care, every, stop) = (plan.care, plan.care_every, stop.clone());
            let mut caring = Caring { place, aws, care, every, stop, opened: None };
            work.push(runtime.spawn(async move {
                while is_over(LOOK_EVERY.min(every / 10), &caring.stop).await {
                    if let Err(error) = caring.look().await {
                        caring.opened = None;
                        let error = format!("{error:#}");
                        tracing::warn!(error, "cannot care for the lake; the next round tries again");
                    }
                }
            }));
        }
        Ok(Self { runtime, work, stop })
    }

    /// Ends it. What does not end soon is dropped: it changes nothing, or leaves a file that a later round deletes.
    pub(crate) async fn finish(self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(END_TIMEOUT, futures::future::join_all(self.work)).await;
        if ended.is_err() {
            tracing::info!("left the care for the lake to the next round");
        }
        self.runtime.shutdown_background();
    }
}

/// Waits. Returns `false` if an end is wanted.
async fn is_over(pause: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(pause) => true,
        () = stop.cancelled() => false,
    }
}

/// Returns limits for a query beside an ingest, which has priority.
fn limits() -> Limits {
    Limits { memory_bytes: MEMORY_BYTES as usize, threads: 1, ..Limits::default() }
}

/// Refreshes the maintained state.
async fn refresh_once(place: &Location, aws: &AwsSettings, stop: &CancellationToken) {
    let refreshed = async {
        // Connections belong to the runtime that created them, so the refresh opens its own store.
        let lake = Store::open(place, aws).await?;
        refresh::run_until(&lake, &limits(), false, stop).await
    };
    match refreshed.await {
        Err(RefreshError::Stopped) => {}
        Ok(report) => tracing::info!(covers = report.covers, rows = report.rows_written, "refreshed the state"),
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(error, "cannot refresh the state; queries stay exact and get slower");
        }
    }
}

/// The care of a worker.
struct Caring {
    place: Location,
    aws: AwsSettings,
    care: Care,
    every: Duration,
    stop: CancellationToken,
    /// The lake and its ledger, which is only read forward.
    opened: Option<(Store, Ledger)>,
}

impl Caring {
    /// Makes a round of care if the last one of all workers began long enough ago.
    async fn look(&mut self) -> Result<()> {
        if self.opened.is_none() {
            let lake = Store::open(&self.place, &self.aws).await?;
            if !Table::SyncRecords.exists(&lake).await? {
                return Ok(());
            }
            let ledger = Ledger::open(&lake, Table::SyncRecords).await?;
            self.opened = Some((lake, ledger));
        }
        let Some((lake, ledger)) = &mut self.opened else { return Ok(()) };
        match ledger.take_turn(TURN, Utc::now().timestamp_millis(), self.every).await? {
            true => round(lake, self.care, &self.stop).await,
            false => Ok(()),
        }
    }
}

/// Makes a round of care, within the memory of a step beside an ingest.
async fn round(lake: &Store, care: Care, stop: &CancellationToken) -> Result<()> {
    let is_full = care == Care::Full;
    let round = Round {
        refresh: is_full.then(limits),
        compact: CompactOptions {
            target_bytes: MEMORY_BYTES / 4,
            memory_bytes: MEMORY_BYTES,
            ..CompactOptions::default()
        },
        vacuum: is_full.then(VacuumOptions::default),
    };
    let mut report = CareReport::default();
    let done = round.run(lake, stop, &mut report, |_| ()).await;
    let merged = report.compact.as_ref().map_or(0, |compact| compact.files_removed);
    let deleted = report.vacuum.iter().flat_map(|vacuum| vacuum.tables.values()).map(|table| table.files).sum::<u64>();
    tracing::info!(merged, deleted, "cared for the lake");
    done
}
