//! The plan of a day: the newest extract of an earlier day, and the files of `sync_records` that it does not cover.
//!
//! ```text
//! base    the extract of day B < D, which covers version c of sync_records
//! tail    the files of the days after B and up to D, and those of days up to B that were added after c (late rows)
//! day D = latest(base ∪ tail)
//! ```
//! **Invariant: base and tail together hold every row up to the end of day D that the newest version holds, and no
//! other.** A file holds rows of one day only, so whole files are chosen, by the log alone. An extract is no base if
//! another writer removed or changed rows that it was computed from, or rows of the extract itself. Rows that left by
//! retention are in the base, or there is no answer. They alone are taken from an extract that is no base otherwise.
//!
//! The statistics of an extract's file tell which kinds of rows it may hold; the rows themselves decide. A compaction
//! of the table renames files and mixes the kinds.

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDate;
use deltalake::DeltaTable;
use serde::Serialize;

use crate::failpoint;
use crate::ids::ShardKey;
use crate::lake::expired::Expired;
use crate::lake::ledger::decode_state;
use crate::lake::log::{self, Transactions};
use crate::lake::since::{Partition, RemovedFile, TableChanges, changes_between};
use crate::lake::snapshot::{self, ActiveFile};
use crate::lake::{LakeError, Store};
use crate::schema::Table;
use crate::source::files;

use super::base::{AsWritten, check, use_of};

/// Returns the transaction id, in the log of `daily_state`, of the version of `sync_records` that a day's extract
/// covers.
pub(super) fn covers_id(date: NaiveDate) -> String {
    format!("extract/{date}")
}

/// Returns the transaction id of the version of `daily_state` that committed a day's extract.
pub(super) fn extracted_id(date: NaiveDate) -> String {
    format!("extracted/{date}")
}

/// Returns the transaction id of the version of `sync_records` at which a day's extract was found to hold other rows
/// than `sync_records`.
pub(super) fn stale_id(date: NaiveDate) -> String {
    format!("stale/{date}")
}

/// Returns the transaction ids of an extract that left `daily_state`: their value is no version, so nobody builds on it.
pub(crate) fn forgotten_ids(date: NaiveDate) -> [(String, i64); 3] {
    [covers_id(date), extracted_id(date), stale_id(date)].map(|id| (id, -1))
}

/// The extracts that the log of `daily_state` records, by day.
pub(crate) struct RecordedExtracts {
    /// The version of `sync_records` that each extract covers.
    pub covers: BTreeMap<NaiveDate, u64>,
    /// The version of `daily_state` that committed each extract.
    pub committed: BTreeMap<NaiveDate, u64>,
    /// Days that were found stale and not extracted since.
    pub stale: Vec<NaiveDate>,
}

/// Returns the extracts that the log of `daily_state` records.
pub(crate) fn recorded(known: &Transactions) -> RecordedExtracts {
    let (covers, stale) = (days(known, "extract/"), days(known, "stale/"));
    let is_stale = |(day, covers): &(&NaiveDate, &u64)| stale.get(day).is_some_and(|version| version > *covers);
    let stale = covers.iter().filter(is_stale).map(|(day, _)| *day).collect();
    RecordedExtracts { covers, committed: days(known, "extracted/"), stale }
}

/// The watermark of a shard when a day was extracted.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct ShardWatermark {
    /// `<stream>.<shard>`.
    pub shard: String,
    /// The watermark, in milliseconds since the epoch: everything that arrived before it was read. `None` at the end of
    /// a shard.
    pub read_to_ms: Option<i64>,
    /// Whether the watermark is the end of the day or later.
    pub is_complete: bool,
}

/// The extract of a day that is about to be replaced.
pub(super) struct ReplacedExtract {
    /// Whether it still holds the rows that it was written with. If not, its missing rows prove nothing.
    pub is_as_written: bool,
    /// Files that may hold its live keys.
    pub state: BTreeSet<String>,
    /// Files that may hold its corrections.
    pub corrections: BTreeSet<String>,
    /// Files of `sync_records`, of days up to this one, that may hold rows unknown to the extract. `None` if they do
    /// not cover all changes.
    pub unknown: Option<BTreeSet<String>>,
}

/// The inputs of a day's extract.
pub(super) struct Plan {
    /// The day.
    pub date: NaiveDate,
    /// `sync_records` as it was loaded.
    pub records: DeltaTable,
    /// The version of `sync_records`.
    pub version: u64,
    /// `daily_state` as it was loaded.
    pub daily: DeltaTable,
    /// The day of the extract that this one builds on.
    pub base: Option<NaiveDate>,
    /// What has left `sync_records`, if the base serves only for that: then its other rows do not count, and the tail has
    /// all files of days up to this one.
    pub only: Option<Expired>,
    /// The files of the base that may hold its state.
    pub base_files: BTreeSet<String>,
    /// The rows and the bytes of each of those files.
    pub base_sizes: Vec<(u64, u64)>,
    /// The extract of this day that this one replaces.
    pub replaced: Option<ReplacedExtract>,
    /// The files of `sync_records` that the base does not cover.
    pub tail: Vec<ActiveFile>,
    /// Rows of days up to the base's day that were added after the base was extracted, by day.
    pub late: BTreeMap<NaiveDate, u64>,
    /// Extracted days that hold other rows than `sync_records` does now, oldest first.
    pub stale: Vec<NaiveDate>,
    /// The watermark of each shard.
    pub shards: Vec<ShardWatermark>,
}

/// The tables of a lake that a plan is made of.
struct Tables {
    store: Store,
    /// Transaction ids of `sync_records`, at the version that is read.
    read: Transactions,
    records: DeltaTable,
    files: Vec<ActiveFile>,
    daily_store: Store,
    /// Transaction ids of `daily_state`.
    known: Transactions,
    daily: DeltaTable,
    extracts: Vec<ActiveFile>,
}

impl Tables {
    async fn load(lake: &Store) -> Result<Self, LakeError> {
        let none = || LakeError::NoLake(lake.to_string());
        if !Table::SyncRecords.exists(lake).await? {
            return Err(none());
        }
        Table::DailyState.ensure(lake).await?;
        // The extracts are read first, so that they never cover more than the version of sync_records that is read.
        let daily_store = Table::DailyState.store(lake);
        let known = log::read_transactions(&daily_store).await?.unwrap_or_default();
        known.admit(Table::DailyState, &daily_store, true)?;
        let daily = snapshot::load(&daily_store, Some(known.version)).await?.ok_or_else(none)?;
        let store = Table::SyncRecords.store(lake);
        // The watermarks are those of the version whose rows are read.
        let read = log::read_transactions(&store).await?.ok_or_else(none)?;
        failpoint::hit("extract/planned");
        let records = snapshot::load(&store, Some(read.version)).await?.ok_or_else(none)?;
        let files = snapshot::files(&store, &records).await?;
        let extracts = snapshot::files(&daily_store, &daily).await?;
        Ok(Self { store, read, records, files, daily_store, known, daily, extracts })
    }

    async fn as_written(&self, days: impl IntoIterator<Item = NaiveDate>) -> Result<AsWritten, LakeError> {
        AsWritten::read(&self.daily_store, &self.known, days).await
    }

    /// Returns the extract of a day that covers a version of `sync_records`.
    async fn replaced(&self, date: NaiveDate, covers: u64, is_as_written: bool) -> Result<ReplacedExtract, LakeError> {
        // Removed or changed rows cannot be derived from new rows.
        let changes = changes_between(&self.store, covers, self.read.version).await?;
        let changes = changes.filter(|changes| !removes_rows(changes, covers, date));
        let unknown = |changes: TableChanges| {
            let added = changes.files();
            let is_of = |file: &&ActiveFile| day_of(file, "event_date").is_none_or(|day| day <= date);
            let unknown = self.files.iter().filter(is_of).filter(|file| added.contains_key(&file.path));
            unknown.map(|file| file.path.clone()).collect()
        };
        Ok(ReplacedExtract {
            is_as_written,
            state: of_day(&self.extracts, date, &["state"]),
            corrections: of_day(&self.extracts, date, &["correction"]),
            unknown: changes.map(unknown),
        })
    }
}

/// Returns the rows of days up to the base's that came after it, by day.
fn late(changes: &TableChanges, base: NaiveDate) -> BTreeMap<NaiveDate, u64> {
    let mut late = BTreeMap::new();
    for file in changes.new.values() {
        if let Some(day) = day_in(&file.partition, "event_date").filter(|day| *day <= base) {
            let rows: &mut u64 = late.entry(day).or_default();
            // The log of a foreign writer may state any number.
            *rows = rows.saturating_add(file.rows);
        }
    }
    late
}

impl Plan {
    /// Plans the extract of a day.
    ///
    /// # Errors
    /// Fails if there is no lake, or if the lake cannot be read.
    pub(super) async fn new(lake: &Store, date: NaiveDate) -> Result<Self, LakeError> {
        let tables = Tables::load(lake).await?;
        let version = tables.read.version;
        let mut extracted = days(&tables.known, "extract/");
        // A version beyond the newest belongs to another sync_records, of which this one is an older copy.
        extracted.retain(|_, covers| *covers <= version);
        let recorded_stale = days(&tables.known, "stale/");
        let base = extracted.range(..date).next_back().map(|(day, covers)| (*day, *covers));
        let as_written = tables.as_written(base.iter().map(|(day, _)| *day).chain([date])).await?;
        let replaced = match extracted.get(&date) {
            Some(covers) => Some(tables.replaced(date, *covers, as_written.is(date)).await?),
            None => None,
        };
        let after_base = match base {
            Some((day, covers)) => {
                changes_between(&tables.store, covers, version).await?.map(|changes| (day, covers, changes))
            }
            None => None,
        };
        let late = after_base.as_ref().map(|(day, _, changes)| late(changes, *day)).unwrap_or_default();
        let left = Expired::of(&tables.read);
        // Without a base, or if the log does not reach back to it, a day is computed from all rows.
        let (base, only) = match &after_base {
            Some(after_base) => use_of(after_base, &as_written, &left),
            None => (None, None),
        };
        check(&left, date, base)?;
        let added = base.filter(|_| only.is_none()).map(|(.., changes)| changes.files()).unwrap_or_default();
        let base = base.map(|(day, ..)| *day);
        let base_files = base.map(|day| of_day(&tables.extracts, day, &["state", "removed"])).unwrap_or_default();
        let of_base = tables.extracts.iter().filter(|file| base_files.contains(&file.path));
        let base_sizes = of_base.map(ActiveFile::rows_and_bytes).collect();
        let is_new = |file: &ActiveFile| match (day_of(file, "event_date"), base) {
            (Some(day), Some(base)) if day <= base && only.is_none() => added.contains_key(&file.path),
            (Some(day), _) => day <= date,
            (None, _) => true,
        };
        let tail = tables.files.iter().filter(|file| is_new(file)).cloned().collect();
        let shards = watermarks(&tables.read, date);
        let Tables { store, records, daily, files, .. } = tables;
        let (stale_of, stale) = (after_base.map(|(.., changes)| changes), Vec::new());
        let mut plan = Self {
            date,
            records,
            version,
            daily,
            base,
            only,
            base_files,
            base_sizes,
            replaced,
            tail,
            late,
            stale,
            shards,
        };
        plan.stale = self::stale(&store, &plan, stale_of.as_ref(), (&extracted, &recorded_stale), &files).await?;
        Ok(plan)
    }

    /// Returns the tail files of the day itself.
    pub(super) fn of_the_day(&self) -> BTreeSet<String> {
        let of_day = self.tail.iter().filter(|file| day_of(file, "event_date") == Some(self.date));
        of_day.map(|file| file.path.clone()).collect()
    }
}

/// Returns the files of an extracted day that may hold rows of some kinds.
fn of_day(extracts: &[ActiveFile], day: NaiveDate, kinds: &[&str]) -> BTreeSet<String> {
    let is_of = |file: &&ActiveFile| day_of(file, "extract_date") == Some(day) && may_hold(file, kinds);
    extracts.iter().filter(is_of).map(|file| file.path.clone()).collect()
}

fn may_hold(file: &ActiveFile, kinds: &[&str]) -> bool {
    let bound = |side: &str| file.statistics[side]["kind"].as_str();
    match (bound("minValues"), bound("maxValues")) {
        (Some(low), Some(high)) => kinds.iter().any(|kind| (low..=high).contains(kind)),
        _ => true,
    }
}

fn day_of(file: &ActiveFile, column: &str) -> Option<NaiveDate> {
    day_in(&file.partition, column)
}

pub(super) fn day_in(partition: &Partition, column: &str) -> Option<NaiveDate> {
    partition.get(column)?.as_ref()?.parse().ok()
}

/// Returns whether rows of days up to `day`, which `version` had, were removed or changed since.
pub(super) fn removes_rows(changes: &TableChanges, version: u64, day: NaiveDate) -> bool {
    let day_of = |file: &RemovedFile| day_in(file.partition.as_ref()?, "event_date");
    changes.removed_with_rows_of(version).any(|file| day_of(file).is_none_or(|of| of <= day))
}

/// Returns the transaction ids of days, `<prefix><day>`, and the versions that they hold.
pub(super) fn days(known: &Transactions, prefix: &str) -> BTreeMap<NaiveDate, u64> {
    let day = |id: &str| id.strip_prefix(prefix)?.parse::<NaiveDate>().ok();
    known.ids.iter().filter_map(|(id, version)| Some((day(id)?, u64::try_from(*version).ok()?))).collect()
}

/// Returns extracted days that hold other rows than `sync_records` does now:
///
/// - days that were found stale before and not extracted since;
/// - earlier days that late rows change;
/// - later days, if rows up to their day were added after their extract;
/// - days whose rows another writer has removed or changed.
///
/// For earlier days, only rows added since the base are examined; the effects of other rows were found before. A stale
/// day is recorded as a transaction id in the commit of the day whose extract found it.
async fn stale(
    store: &Store,
    plan: &Plan,
    after_base: Option<&TableChanges>,
    (extracted, recorded_stale): (&BTreeMap<NaiveDate, u64>, &BTreeMap<NaiveDate, u64>),
    files: &[ActiveFile],
) -> Result<Vec<NaiveDate>, LakeError> {
    let mut stale: BTreeSet<NaiveDate> = extracted
        .iter()
        .filter(|(day, covers)| recorded_stale.get(day).is_some_and(|version| version > covers))
        .map(|(day, _)| *day)
        .collect();
    if let Some((earliest, _)) = plan.late.first_key_value() {
        stale.extend(
            extracted.range(*earliest..plan.date).filter(|(_, covers)| **covers < plan.version).map(|(day, _)| *day),
        );
    }
    if let Some(changes) = after_base {
        let earlier = extracted.range(..plan.date).filter(|(day, covers)| removes_rows(changes, **covers, **day));
        stale.extend(earlier.map(|(day, _)| *day));
    }
    let later: Vec<(NaiveDate, u64)> = extracted
        .range(plan.date..)
        .skip_while(|(day, _)| **day == plan.date)
        .map(|(day, covers)| (*day, *covers))
        .collect();
    if let Some(changes) = since_extracts(store, &later, plan.version).await? {
        let added = changes.files();
        let is_stale = |(day, covers): &(NaiveDate, u64)| {
            let came_after = |file: &ActiveFile| added.get(&file.path).is_some_and(|version| version > covers);
            let is_of = |file: &ActiveFile| day_of(file, "event_date").is_some_and(|date| date <= *day);
            removes_rows(&changes, *covers, *day) || files.iter().any(|file| is_of(file) && came_after(file))
        };
        stale.extend(later.iter().filter(|later| is_stale(later)).map(|(day, _)| *day));
    }
    stale.remove(&plan.date);
    Ok(stale.into_iter().collect())
}

/// Returns what changed since the oldest of some extracts, given by day. If the log does not reach back that far, what
/// changed since the newest one: the extracts of the days in between found what changed before.
async fn since_extracts(
    store: &Store,
    extracts: &[(NaiveDate, u64)],
    version: u64,
) -> Result<Option<TableChanges>, LakeError> {
    let Some(oldest) = extracts.iter().map(|(_, covers)| *covers).min() else { return Ok(None) };
    let changes = changes_between(store, oldest, version).await?;
    match extracts.last().filter(|(_, newest)| changes.is_none() && *newest > oldest) {
        Some((_, newest)) => changes_between(store, *newest, version).await,
        None => Ok(changes),
    }
}

/// Returns the watermark of each shard of a stream. Files have no clock of their own.
fn watermarks(known: &Transactions, date: NaiveDate) -> Vec<ShardWatermark> {
    let end_ms =
        date.succ_opt().map_or(i64::MAX, |next| next.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis());
    let shard = |id: &String| {
        let (stream, shard) = id.strip_prefix("ingest/")?.split_once('/').filter(|(_, shard)| !shard.contains('/'))?;
        ShardKey::new(stream, shard).filter(|_| stream != files::STREAM)
    };
    let watermark = |shard: ShardKey| {
        let state = decode_state(known, &shard)?;
        let read_to_ms = (!state.is_ended()).then_some(state.read_to_ms);
        let is_complete = read_to_ms.is_none_or(|read_to| read_to >= end_ms);
        Some(ShardWatermark { shard: shard.to_string(), read_to_ms, is_complete })
    };
    let mut watermarks: Vec<ShardWatermark> = known.ids.keys().filter_map(shard).filter_map(watermark).collect();
    watermarks.sort_by(|a, b| a.shard.cmp(&b.shard));
    watermarks
}

#[cfg(test)]
#[cfg(feature = "failpoints")]
mod tests {
    use deltalake::kernel::{Action, Transaction};
    use deltalake::protocol::{DeltaOperation, SaveMode};

    use super::*;
    use crate::aws::AwsSettings;
    use crate::ids::StartAt;
    use crate::lake::ledger::{ShardState, encode_state};
    use crate::lake::since::NewFile;
    use crate::lake::{Location, paths};

    async fn commit(lake: &Store, read_to_ms: i64) -> u64 {
        let store = Table::SyncRecords.store(lake);
        let known = log::read_transactions(&store).await.unwrap().unwrap();
        let state =
            ShardState { epoch: 1, owner: 1, position: None, from: StartAt::TrimHorizon, read_to_ms, parts_done: 0 };
        let ids = encode_state(&ShardKey::new("stream", "shard").unwrap(), &state).unwrap();
        let actions = ids.into_iter().map(|(id, value)| Action::Txn(Transaction::new(id, value))).collect();
        let append = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        let (bytes, _) = known.encode(&store, actions, append).unwrap();
        store.put_new(&paths::commit(known.version + 1), bytes).await.unwrap();
        known.version + 1
    }

    #[test]
    fn rows_that_a_foreign_log_states_do_not_overflow() {
        let partition = [("event_date".to_owned(), Some("2026-01-01".to_owned()))].into_iter().collect();
        let file = NewFile { version: 1, removed_at: None, partition, rows: u64::MAX, bytes: 1 };
        let new = ["a", "b"].map(|path| (path.to_owned(), file.clone())).into_iter().collect();
        let date = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
        let changes = TableChanges { new, ..TableChanges::default() };
        assert_eq!(late(&changes, date), BTreeMap::from([(date, u64::MAX)]));
    }

    /// A shard is read to the end of the day while the day is planned. The plan has its rows, or is marked as not
    /// complete.
    #[tokio::test(flavor = "multi_thread")]
    async fn marks_are_of_the_version_that_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Store::create(&Location::Folder(folder.path().into()), &AwsSettings::default()).await.unwrap();
        Table::SyncRecords.ensure(&lake).await.unwrap();
        let date = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
        let before = commit(&lake, 1_767_225_600_000).await;
        let (runtime, of_writer) = (tokio::runtime::Handle::current(), lake.clone());
        let write = move || {
            let lake = of_writer.clone();
            tokio::task::block_in_place(|| runtime.block_on(commit(&lake, 1_767_312_000_000)));
        };
        fail::cfg_callback("extract/planned", write).unwrap();
        let plan = Plan::new(&lake, date).await.unwrap();
        fail::remove("extract/planned");
        assert_eq!((plan.version, plan.shards[0].is_complete), (before, false));
        let plan = Plan::new(&lake, date).await.unwrap();
        assert_eq!((plan.version, plan.shards[0].is_complete), (before + 1, true));
    }
}
