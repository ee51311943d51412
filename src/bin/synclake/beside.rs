//! `synclake ingest --refresh-every` and `--care`: work on the lake beside an ingest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::Utc;
use synclake::aws::AwsSettings;
use synclake::compact::CompactOptions;
use synclake::ingest::Counters;
use synclake::lake::ledger::{CARE_TURN, Ledger, Turns};
use synclake::lake::{Location, Store};
use synclake::query::Limits;
use synclake::query::state::refresh::{self, RefreshError};
use synclake::schema::Table;
use synclake::vacuum::VacuumOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::STACK_BYTES;
use crate::care::{CareReport, Round};

/// Memory of a step beside an ingest.
const MEMORY_BYTES: u64 = 128 << 20;
/// A round is due after so many versions of `sync_records`, whatever the time: each may add a file to every partition of
/// today, and a view takes up to a millisecond more for each small file (docs/benchmarks.md, "Care along the way").
const VERSIONS: u64 = 64;
/// Workers look this often whether a round is due by the time, or ten times in its interval.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Workers look this often how many versions they made, which costs no request.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// Time for a step to end after the ingest.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What an ingest does for the lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Care {
    /// Nothing.
    Off,
    /// Merge small files.
    Light,
    /// Refresh the state, let old rows leave, merge small files, and delete old ones.
    Full,
}

/// What runs beside an ingest.
pub(crate) struct Plan {
    pub(crate) refresh_every: Option<Duration>,
    pub(crate) care: Care,
    pub(crate) care_every: Duration,
}

/// Transaction id in the log of `sync_records`: when a round of care last began a vacuum.
const VACUUM_TURN: &str = "care/vacuum";
/// A vacuum looks at every object of the lake, and what it deletes is a week old.
const VACUUM_EVERY: Duration = Duration::from_secs(86_400);

/// Work beside an ingest, on its own thread: DataFusion blocks the thread that it computes on, and the ingest loop must
/// not wait.
pub(crate) struct Beside {
    runtime: tokio::runtime::Runtime,
    work: Vec<JoinHandle<()>>,
    stop: CancellationToken,
    /// The care after an ingest that ended by itself.
    last: Option<Caring>,
}

impl Beside {
    /// Starts it.
    pub(crate) fn start(place: Location, aws: AwsSettings, plan: &Plan, all: Vec<Arc<Counters>>) -> Result<Self> {
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
                while pauses(every, &stop).await {
                    refresh_once(&place, &aws, &stop).await;
                }
            }));
        }
        let mut last = None;
        if plan.care != Care::Off {
            let caring = |stop| Caring { place: place.clone(), aws: aws.clone(), care: plan.care, stop, opened: None };
            work.push(runtime.spawn(caring(stop.clone()).while_it_runs(plan.care_every, all)));
            last = Some(caring(CancellationToken::new()));
        }
        Ok(Self { runtime, work, stop, last })
    }

    /// Ends it. What does not end soon is dropped: it changes nothing, or leaves a file that a later round deletes.
    ///
    /// If the ingest `is_done`, a round of care follows that is due by its versions, until `stop`: nothing else would care
    /// for a lake that is fed by short runs.
    pub(crate) async fn finish(self, is_done: bool, stop: &CancellationToken) {
        self.stop.cancel();
        let ended = tokio::time::timeout(END_TIMEOUT, futures::future::join_all(self.work)).await;
        if ended.is_err() {
            tracing::info!("left the care for the lake to the next round");
        } else if let Some(mut last) = self.last.filter(|_| is_done && !stop.is_cancelled()) {
            last.stop = stop.clone();
            // The task fails only by a panic, which has already been reported.
            let _ = self.runtime.spawn(async move { last.look(None).await }).await;
        }
        self.runtime.shutdown_background();
    }
}

/// Pauses. Returns `false` if an end is wanted.
async fn pauses(pause: Duration, stop: &CancellationToken) -> bool {
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
    stop: CancellationToken,
    /// The lake and its ledger, which is only read forward.
    opened: Option<(Store, Ledger)>,
}

impl Caring {
    /// Makes the rounds that are due while an ingest runs.
    ///
    /// The ledger is read when a round may be due: by the time, or by the version that this ingest reached.
    async fn while_it_runs(mut self, every: Duration, all: Vec<Arc<Counters>>) {
        let version = || all.iter().map(|counters| counters.numbers().version).max().unwrap_or_default();
        let look_every = LOOK_EVERY.min(every / 10);
        let (mut looked, mut turn_version) = (Instant::now(), version());
        while pauses(look_every.min(COUNT_EVERY), &self.stop).await {
            let is_due = version() >= turn_version.saturating_add(VERSIONS);
            if is_due || looked.elapsed() >= look_every {
                turn_version = self.look(Some(every)).await.unwrap_or(turn_version);
                looked = Instant::now();
            }
        }
    }

    /// Makes a round of care if one is due. Returns the version from which the next one counts.
    async fn look(&mut self, every: Option<Duration>) -> Option<u64> {
        let error = match self.round_if_due(every).await {
            Ok(turn_version) => return turn_version,
            Err(error) => format!("{error:#}"),
        };
        self.opened = None;
        tracing::warn!(error, "cannot care for the lake; the next round tries again");
        None
    }

    async fn round_if_due(&mut self, every: Option<Duration>) -> Result<Option<u64>> {
        if self.opened.is_none() {
            let lake = Store::open(&self.place, &self.aws).await?;
            if !Table::SyncRecords.exists(&lake).await? {
                return Ok(None);
            }
            let ledger = Ledger::open(&lake, Table::SyncRecords).await?;
            self.opened = Some((lake, ledger));
        }
        let Some((lake, ledger)) = &mut self.opened else { return Ok(None) };
        let turns = Turns { every, versions: VERSIONS };
        let now_ms = Utc::now().timestamp_millis();
        if ledger.take_turn(CARE_TURN, now_ms, turns).await? {
            let is_full = self.care == Care::Full;
            let daily = Turns { every: Some(VACUUM_EVERY), versions: u64::MAX };
            let is_vacuuming = is_full && ledger.take_turn(VACUUM_TURN, now_ms, daily).await?;
            let done = round(lake, is_full, is_vacuuming, &self.stop).await;
            ledger.end_turn(CARE_TURN).await?;
            done?;
        }
        Ok(ledger.turn_version(CARE_TURN))
    }
}

/// Makes a round of care, within the memory of a step beside an ingest.
async fn round(lake: &Store, is_full: bool, is_vacuuming: bool, stop: &CancellationToken) -> Result<()> {
    let round = Round {
        refresh: is_full.then(limits),
        is_expiring: is_full,
        compact: CompactOptions {
            target_bytes: MEMORY_BYTES / 4,
            memory_bytes: MEMORY_BYTES,
            ..CompactOptions::default()
        },
        vacuum: is_vacuuming.then(VacuumOptions::default),
    };
    tracing::info!("caring for the lake");
    let mut report = CareReport::default();
    let done = round.run(lake, stop, &mut report, |_| ()).await;
    let merged = report.compactions().map(|compact| compact.files_removed).sum::<u64>();
    let deleted = report.vacuum.iter().flat_map(|vacuum| vacuum.tables.values()).map(|table| table.files).sum::<u64>();
    let expired = report.expire.as_ref().map_or(0, |expire| expire.sync_records.files + expire.daily_state.files);
    tracing::info!(expired, merged, deleted, "cared for the lake");
    done
}
