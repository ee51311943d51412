//! The status of a lake, for an operator: sizes, growth, positions, what is behind, and what to do next.
//!
//! **Invariant: the logs alone are read.** No data file is opened. The active files are visited one after the other,
//! so that memory holds sums by partition and not the files.
//!
//! Derived tables are read before `sync_records`, so that none covers more than the version that is read.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

use crate::ids::incarnation_of;
use crate::lake::ledger::CARE_TURN;
use crate::lake::log::{self, Transactions};
use crate::lake::{LakeError, Store, snapshot};
use crate::query::reading::Reading;
use crate::retain::{self, PolicyReport, TablePolicy};
use crate::schema::Table;

mod advice;
mod derived;
mod files;
mod history;
mod positions;
mod text;

pub use advice::Advice;
pub use derived::{Behind, ConsumerStatus, ExtractStatus, StateStatus};
pub use files::{FileSums, PoolStatus};
pub use history::DayGrowth;
pub use positions::{ShardStatus, SourceStatus};

use files::TableFiles;
use history::History;

/// A point in time, and its age by the local clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// The time, UTC.
    #[serde(serialize_with = "instant")]
    pub at: DateTime<Utc>,
    /// Seconds from that time to now, by the local clock; negative if that time is in the future.
    pub age_seconds: i64,
}

impl Moment {
    fn new(ms: i64, now: DateTime<Utc>) -> Option<Self> {
        let at = DateTime::from_timestamp_millis(ms)?;
        Some(Self { at, age_seconds: (now - at).num_seconds() })
    }
}

fn instant<S: Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// What to read and to report.
#[derive(Debug, Clone)]
pub struct StatusOptions {
    /// The lake as the operator names it, for the suggested commands.
    pub lake: String,
    /// Commits of each log that are read at most.
    pub commits_max: usize,
    /// Whether to list each file that was read, and epochs, owners and positions.
    pub verbose: bool,
    /// The local clock.
    pub now: DateTime<Utc>,
}

/// The status of a lake.
#[derive(Debug, Serialize, PartialEq)]
pub struct StatusReport {
    /// The lake as the operator names it.
    pub lake: String,
    /// The local clock, to which all ages refer.
    #[serde(serialize_with = "instant")]
    pub now: DateTime<Utc>,
    /// Status by table; a table that does not exist yet is missing.
    pub tables: BTreeMap<&'static str, TableStatus>,
    /// Pools of `sync_records`.
    pub pools: Vec<PoolStatus>,
    /// New rows of the last seven days, by the UTC day of their commit, oldest first.
    pub growth: Vec<DayGrowth>,
    /// Commits of `sync_records` that were read for `growth`, for the last commits of shards, and for what is behind.
    pub commits_read: u64,
    /// The oldest of these commits; null if the log does not state its time.
    pub commits_read_from: Option<Moment>,
    /// Streams, and all files together.
    pub sources: Vec<SourceStatus>,
    /// What an operator should look at.
    pub attention: Attention,
    /// When an ingest last began to care for the lake; null if none did.
    pub care: Option<Moment>,
    /// The maintained state; null before the first refresh.
    pub state: Option<StateStatus>,
    /// The daily extracts; null before the first one.
    pub extracts: Option<ExtractStatus>,
    /// The consumers of deliveries.
    pub consumers: Vec<ConsumerStatus>,
    /// How long rows stay, and what has left.
    pub retention: RetentionStatus,
    /// What to do next; empty if there is nothing to do.
    pub next: Vec<Advice>,
}

/// How long rows stay, and what has left.
#[derive(Debug, Default, Serialize, PartialEq)]
pub struct RetentionStatus {
    /// The policy, and from which date on each pool has all its rows.
    #[serde(flatten)]
    pub policy: PolicyReport,
    /// Why the policy cannot be used, so that nothing leaves; null if it can.
    pub problem: Option<String>,
    /// Why queries of the current state are refused, because rows have left that no usable state holds; null if they are
    /// answered.
    pub refused: Option<String>,
}

/// The status of a table.
#[derive(Debug, Serialize, PartialEq)]
pub struct TableStatus {
    /// Newest version.
    pub version: u64,
    /// Sums over the active files.
    #[serde(flatten)]
    pub sums: FileSums,
    /// Time of the newest commit; null if the log does not state it.
    pub last_commit: Option<Moment>,
    /// Version of the newest readable checkpoint of the log.
    pub checkpoint: Option<u64>,
    /// Commits since that checkpoint, or of the whole log.
    pub commits_since_checkpoint: u64,
    /// Objects of the log that are missing, damaged or have impossible names. The table is read without them.
    pub unusable_log_objects: usize,
    /// The first of them.
    pub unusable_log_object: Option<String>,
}

/// Records that did not become rows.
#[derive(Debug, Default, Serialize, PartialEq)]
pub struct Attention {
    /// Quarantined records.
    pub quarantined: u64,
    /// Those of them that came after the last redrive of the whole quarantine, as far as the commits that were read tell.
    pub quarantined_since_redrive: u64,
    /// The newest date on which one of them arrived.
    pub quarantined_newest_date: Option<NaiveDate>,
    /// Time at which the newest file of the quarantine was written.
    pub quarantined_last_written: Option<Moment>,
    /// Gaps: rows of the table `gaps`.
    pub gaps: u64,
    /// Time at which the newest file of `gaps` was written.
    pub gaps_last_written: Option<Moment>,
}

/// A table as it was read.
struct Read {
    store: Store,
    known: Transactions,
    files: TableFiles,
    last_commit_ms: Option<i64>,
}

impl Read {
    async fn load(table: Table, lake: &Store) -> Result<Option<Self>, LakeError> {
        let store = table.store(lake);
        let read = Self::read(&store, table).await.map_err(|source| match table {
            Table::State if source.is_damage() => {
                LakeError::Derived { table: store.to_string(), source: Box::new(source) }
            }
            _ => source,
        });
        Ok(read?.map(|(known, files, last_commit_ms)| Self { store, known, files, last_commit_ms }))
    }

    async fn read(store: &Store, table: Table) -> Result<Option<(Transactions, TableFiles, Option<i64>)>, LakeError> {
        let Some(known) = log::read_transactions(store).await? else { return Ok(None) };
        let Some(loaded) = snapshot::load(store, Some(known.version)).await? else { return Ok(None) };
        let mut files = TableFiles::default();
        snapshot::visit_files(store, &loaded, |file| files.add(table, &file)).await?;
        let newest = log::read_commit(store, known.version).await?;
        let last_commit_ms = newest.as_deref().and_then(crate::lake::past::time_of);
        Ok(Some((known, files, last_commit_ms)))
    }

    fn status(&self, now: DateTime<Utc>) -> TableStatus {
        let (version, checkpoint) = (self.known.version, self.known.checkpoint);
        TableStatus {
            version,
            sums: self.files.sums(),
            last_commit: self.last_commit_ms.and_then(|ms| Moment::new(ms, now)),
            checkpoint,
            commits_since_checkpoint: checkpoint.map_or(version + 1, |checkpoint| version - checkpoint),
            unusable_log_objects: self.known.unusable.len(),
            unusable_log_object: self.known.unusable.first().cloned(),
        }
    }
}

/// Reads the status of a lake.
///
/// # Errors
/// There is no lake, or a log of it cannot be read.
pub async fn run(lake: &Store, options: &StatusOptions) -> Result<StatusReport, LakeError> {
    let now = options.now;
    let state = match Read::load(Table::State, lake).await {
        // Nobody may be told to delete a state that holds rows which have left.
        Err(error @ LakeError::Derived { .. }) => {
            return Err(crate::query::reading::undamaged(&Table::SyncRecords.store(lake), error).await?);
        }
        read => read?,
    };
    let daily = Read::load(Table::DailyState, lake).await?;
    let quarantine = Read::load(Table::Quarantine, lake).await?;
    let gaps = Read::load(Table::Gaps, lake).await?;
    let records = Read::load(Table::SyncRecords, lake).await?.ok_or_else(|| LakeError::NoLake(lake.to_string()))?;
    let mut sources = positions::sources(&records.known, options);
    let derived = derived::Covered::new(state.as_ref(), daily.as_ref());
    let history = History::read(&records, &sources, derived.oldest(), options).await?;
    positions::enter_commits(&mut sources, &history, options);
    let mut report = StatusReport {
        lake: options.lake.clone(),
        now,
        tables: BTreeMap::from([(Table::SyncRecords.name(), records.status(now))]),
        pools: records.files.pools(),
        growth: history.growth(&records.files.written, now),
        commits_read: history.commits,
        commits_read_from: history.oldest_ms().and_then(|ms| Moment::new(ms, now)),
        sources,
        attention: attention(quarantine.as_ref(), gaps.as_ref(), options).await?,
        care: records.known.ids.get(CARE_TURN).and_then(|ms| Moment::new(*ms, now)),
        state: derived::state(state.as_ref(), &history, now).await?,
        extracts: derived::extracts(daily.as_ref(), &records, &history, now).await?,
        consumers: derived::consumers(daily.as_ref(), &history, options).await?,
        retention: retention(lake, &records, daily.as_ref()).await?,
        next: Vec::new(),
    };
    let others =
        [(Table::State, state), (Table::DailyState, daily), (Table::Quarantine, quarantine), (Table::Gaps, gaps)];
    for (table, read) in others {
        report.tables.extend(read.map(|read| (table.name(), read.status(now))));
    }
    report.next = advice::advice(&report);
    Ok(report)
}

/// Returns the policy. One that cannot be used is shown with the reason.
async fn retention(lake: &Store, records: &Read, daily: Option<&Read>) -> Result<RetentionStatus, LakeError> {
    let of_records = TablePolicy::read(Table::SyncRecords, &records.known);
    let of_extracts =
        daily.map_or_else(|| Ok(TablePolicy::default()), |daily| TablePolicy::read(Table::DailyState, &daily.known));
    let problem = of_records.as_ref().err().or(of_extracts.as_ref().err()).map(ToString::to_string);
    let (sync_records, daily_state) = (of_records.unwrap_or_default(), of_extracts.unwrap_or_default());
    let complete_from = retain::complete_from(&records.known);
    let loaded = match complete_from.is_empty() {
        true => Ok(None),
        false => Reading::load(lake).await.map(|reading| reading.refusal()),
    };
    let refused = match loaded {
        Err(error @ LakeError::Expired(_)) => Some(error),
        loaded => loaded?,
    };
    let refused = refused.map(|error| error.to_string());
    Ok(RetentionStatus { policy: PolicyReport { sync_records, daily_state, complete_from }, problem, refused })
}

async fn attention(
    quarantine: Option<&Read>,
    gaps: Option<&Read>,
    options: &StatusOptions,
) -> Result<Attention, LakeError> {
    let rows = |read: Option<&Read>| read.map_or(0, |read| read.files.sums().rows);
    let written = |read: Option<&Read>| Moment::new(read?.files.last_written_ms?, options.now);
    let quarantined_since_redrive = match quarantine {
        Some(read) => history::rows_since_redrive(read, options).await?,
        None => 0,
    };
    Ok(Attention {
        quarantined: rows(quarantine),
        quarantined_since_redrive,
        quarantined_newest_date: quarantine.and_then(|read| read.files.newest_date()),
        quarantined_last_written: written(quarantine),
        gaps: rows(gaps),
        gaps_last_written: written(gaps),
    })
}

impl StatusReport {
    /// Returns the watermark of a stream, of all its incarnations: every record that arrived before this time was read.
    /// `None` if no shard of it is open, or one has no watermark.
    pub fn read_to(&self, stream: &str) -> Option<Moment> {
        let is_of_stream = |source: &SourceStatus| incarnation_of(stream, &source.source).is_some();
        let sources = self.sources.iter().filter(|s| !s.is_files && s.open > 0 && is_of_stream(s));
        let watermarks = sources.map(|source| source.read_to).collect::<Option<Vec<Moment>>>();
        watermarks?.into_iter().min_by_key(|moment| moment.at)
    }

    /// Returns the report as text for people; with `is_verbose`, all pools and shards.
    pub fn to_text(&self, is_verbose: bool) -> String {
        text::render(self, is_verbose)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::aws::AwsSettings;
    use crate::ids::{SequenceNumber, ShardKey, StartAt};
    use crate::lake::Location;
    use crate::lake::files;
    use crate::lake::ledger::{Ledger, Step, new_token};
    use crate::lake::store::tests::{Request, watched};

    /// A lake of 60 commits: the files that they list do not exist.
    async fn lake(folder: &std::path::Path) -> Store {
        let lake = Store::create(&Location::Folder(folder.to_owned()), &AwsSettings::default()).await.unwrap();
        for table in Table::ALL {
            table.ensure(&lake).await.unwrap();
        }
        let shard = ShardKey::new("stream", "shard").unwrap();
        let mut ledger = Ledger::open(&lake, Table::SyncRecords).await.unwrap();
        let fenced = ledger.fence(&[(shard.clone(), StartAt::TrimHorizon)], new_token()).await.unwrap();
        let mut state = fenced[&shard].clone();
        for n in 1..=60_u64 {
            let partition = [("pool", "p".to_owned()), ("event_date", format!("2026-01-{:02}", n % 28 + 1))];
            let statistics = serde_json::json!({ "numRecords": n });
            let add = files::add(format!("pool=p/part-{n}.parquet"), &partition, 100, 1, statistics);
            let position = Some(SequenceNumber::from_u64(n));
            let next = crate::lake::ledger::ShardState { epoch: state.epoch + 1, position, ..state.clone() };
            let step = Step { shard: shard.clone(), expected: Some(state), next: next.clone() };
            ledger.commit(vec![add], &[step]).await.unwrap();
            state = next;
        }
        snapshot::checkpoint(&ledger_store(&lake)).await.unwrap();
        lake
    }

    fn ledger_store(lake: &Store) -> Store {
        Table::SyncRecords.store(lake)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn logs_alone_are_read_with_few_requests() {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path()).await;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let before_request = {
            let requests = requests.clone();
            move |request| {
                requests.lock().unwrap().push(request);
                Box::pin(async {}) as futures::future::BoxFuture<'static, ()>
            }
        };
        let lake = watched(&lake, Box::new(before_request));
        let options = StatusOptions { lake: "lake".into(), commits_max: 20, verbose: false, now: Utc::now() };
        let report = run(&lake, &options).await.unwrap();
        let sums = report.tables["sync_records"].sums;
        assert_eq!((sums.files, sums.rows, sums.mergeable_files), (60, 60 * 61 / 2, 60));
        assert_eq!((report.commits_read, report.pools.len(), report.sources[0].open), (20, 1, 1));
        assert_eq!(report.tables["sync_records"].commits_since_checkpoint, 0);
        let requests = requests.lock().unwrap();
        let is_log = |request: &&Request| match request {
            Request::List(path) | Request::Read(path) | Request::Write(path) => {
                path.split('/').any(|part| part == "_delta_log")
            }
        };
        assert_eq!(requests.iter().filter(|request| !is_log(request)).collect::<Vec<_>>(), Vec::<&Request>::new());
        // Twenty of them are the newest commits; the others do not grow with the files.
        assert!((20..150).contains(&requests.len()), "{}", requests.len());
    }
    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_whose_name_ends_in_a_number_is_no_later_incarnation() {
        let folder = tempfile::tempdir().unwrap();
        let options = StatusOptions { lake: "lake".into(), commits_max: 20, verbose: false, now: Utc::now() };
        let mut report = run(&lake(folder.path()).await, &options).await.unwrap();
        let read_to = |ms| Moment::new(ms, options.now);
        report.sources[0].read_to = read_to(3_000);
        for (name, ms) in [("stream.1", 1_000), ("stream.eu", 1_000), ("stream.1767225600000", 2_000)] {
            let other = SourceStatus { source: name.to_owned(), read_to: read_to(ms), ..report.sources[0].clone() };
            report.sources.push(other);
        }
        assert_eq!(report.read_to("stream"), read_to(2_000), "the older of the two incarnations");
        assert_eq!(report.read_to("stream.1"), read_to(1_000));
    }
}
