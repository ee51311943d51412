//! What an operator should do next: plain sentences, each with commands.

use chrono::NaiveDate;
use serde::Serialize;

use crate::ids::incarnation_of;
use crate::schema::Table;

use super::history::DayGrowth;
use super::text::age_text;
use super::{Moment, ShardStatus, SourceStatus, StatusReport};

/// A worker commits the watermark of a quiet shard once an hour, so a shard without a commit for longer than this has no
/// working reader.
const SILENT_SECONDS: i64 = 2 * 3_600;
const DAY_SECONDS: i64 = 86_400;
/// New gaps stand here for this long. The table keeps them for ever.
const GAP_SECONDS: i64 = 7 * DAY_SECONDS;
/// Small files of one partition from which on a compaction is worth its cost.
const SMALL_FILES_MANY: u64 = 8;
/// Rows from which on a maintained state is worth its cost.
const STATE_ROWS: u64 = 100_000;
/// Commits without a checkpoint that are too many: one is due every hundred commits.
const CHECKPOINT_OVERDUE: u64 = 300;
/// Pools whose commands are listed.
const POOLS_LISTED: usize = 5;
/// Ranges of days whose commands are listed.
const RANGES_LISTED: usize = 5;
/// A commit that is so far in the future shows a wrong clock.
const CLOCK_SECONDS: i64 = 300;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// The finding, and what to do about it.
    pub text: String,
    /// The commands.
    pub commands: Vec<String>,
}

/// Returns what to do next, the most urgent first.
pub(super) fn advice(report: &StatusReport) -> Vec<Advice> {
    let lake = format!("--lake {}", shell_word(&report.lake));
    let mut all = Vec::new();
    let mut push = |text: String, commands: Vec<String>| all.push(Advice { text, commands });
    clocks(report, &mut push);
    for source in report.sources.iter().filter(|source| source.open > 0) {
        workers(report, source, &lake, &mut push);
        silence(report, source, &mut push);
    }
    lost_records(report, &lake, &mut push);
    logs(report, &lake, &mut push);
    retention(report, &lake, &mut push);
    state(report, &lake, &mut push);
    small_files(report, &lake, &mut push);
    extracts(report, &lake, &mut push);
    consumers(report, &lake, &mut push);
    all
}

type Push<'a> = &'a mut dyn FnMut(String, Vec<String>);

fn is_older(moment: Option<Moment>, seconds: i64) -> bool {
    moment.is_none_or(|moment| moment.age_seconds > seconds)
}

fn clocks(report: &StatusReport, push: Push<'_>) {
    let commits = report.tables.iter().filter_map(|(name, table)| Some((name, table.last_commit?)));
    for (name, commit) in commits.filter(|(_, commit)| commit.age_seconds < -CLOCK_SECONDS) {
        let ahead = age_text(-commit.age_seconds);
        let what =
            format!("The newest commit of {name} is {ahead} in the future: check this clock and the workers' clocks.");
        push(what, vec!["date -u".to_owned()]);
    }
}

fn workers(report: &StatusReport, source: &SourceStatus, lake: &str, push: Push<'_>) {
    // A shard that did not commit lately may have its last commit before those that were read.
    let is_silent = |shard: &&ShardStatus| is_older(shard.last_commit.or(report.commits_read_from), SILENT_SECONDS);
    let is_behind = |shard: &&ShardStatus| shard.read_to.is_some_and(|at| at.age_seconds > SILENT_SECONDS);
    let open = || source.shards_listed.iter().filter(|shard| !shard.is_ended);
    if let Some(shards) = named(open().filter(is_silent)) {
        let last = match source.last_commit {
            Some(commit) => format!("the last commit of the stream is {} old", age_text(commit.age_seconds)),
            None => format!("none of the newest {} commits is of the stream", report.commits_read),
        };
        let what = format!(
            "{shards} of stream {} had no commit for two hours; {last}. A worker commits at least once an hour, also \
             without records: check the workers, or start one with the flags of your deployment.",
            source.source
        );
        let stream = shell_word(stream_of(&source.source));
        push(what, vec![format!("synclake ingest --source kinesis:{stream} {lake}")]);
    }
    let behind = || open().filter(|shard| !is_silent(shard)).filter(is_behind);
    if let Some(shards) = named(behind()) {
        let most = behind().filter_map(|shard| shard.read_to).map(|read_to| read_to.age_seconds).max().unwrap_or(0);
        let what = format!(
            "{shards} of stream {} {} up to {} behind, although the worker commits: it catches up, or there are too few \
             workers. Compare again in some minutes.",
            source.source,
            if behind().count() == 1 { "is" } else { "are" },
            age_text(most)
        );
        push(what, vec![format!("synclake status {lake} --verbose")]);
    }
}

/// Tells a stream from which nothing comes although it is read. A stream that Cognito Sync turned off looks like that.
fn silence(report: &StatusReport, source: &SourceStatus, push: Push<'_>) {
    if is_older(source.read_to, SILENT_SECONDS) {
        return;
    }
    let Some(last_day) = silent_since(&report.growth) else { return };
    let what = format!(
        "No row has come since {last_day}, although stream {} is read and rows came on most days before. Cognito Sync \
         may have turned streaming off, which it announces nowhere.",
        source.source
    );
    let pools = report.pools.iter().filter_map(|pool| pool.pool.as_deref());
    let status = |pool: &str| format!("synclake stream status --pool {}", shell_word(&pool.replacen('_', ":", 1)));
    push(what, pools.take(POOLS_LISTED).map(status).collect());
}

/// Returns the last day with rows if neither today nor yesterday had any, and most of the days before had.
fn silent_since(growth: &[DayGrowth]) -> Option<NaiveDate> {
    let (before, newest) = growth.split_at_checked(growth.len().checked_sub(2)?)?;
    let is_silent = newest.iter().all(|day| day.rows == 0 && day.is_exact);
    let with_rows = || before.iter().filter(|day| day.rows > 0);
    with_rows().next_back().filter(|_| is_silent && with_rows().count() * 2 > before.len()).map(|day| day.day)
}

/// Names the first of some shards, and counts the others.
fn named<'a>(mut shards: impl Iterator<Item = &'a ShardStatus>) -> Option<String> {
    let first = &shards.next()?.shard;
    Some(match shards.count() {
        0 => format!("Shard {first}"),
        others => format!("Shard {first} and {others} more"),
    })
}

/// Returns the name of a stream without the creation time of a later incarnation.
fn stream_of(name: &str) -> &str {
    let stream = name.rsplit_once('.').map(|(stream, _)| stream);
    stream.filter(|stream| incarnation_of(stream, name).is_some()).unwrap_or(name)
}

fn lost_records(report: &StatusReport, lake: &str, push: Push<'_>) {
    let attention = &report.attention;
    if attention.gaps > 0 && !is_older(attention.gaps_last_written, GAP_SECONDS) {
        let what = format!(
            "The table gaps has {}, the newest from the last seven days: records may have been lost before they were read. \
             Raise the retention of the stream, and publish the pool again in bulk.",
            counted(attention.gaps, "row")
        );
        push(what, vec![query(lake, "select * from gaps order by noted_at desc limit 20")]);
    }
    if attention.quarantined_since_redrive > 0 {
        let what = format!(
            "The quarantine has {} that could not be decoded, and no redrive since. Look at the reasons, and decode the \
             records again: what still fails stays in the quarantine, and is not advised any more.",
            counted(attention.quarantined_since_redrive, "record")
        );
        let reasons = "select reason, count(*) as records, max(arrived_at) as newest from quarantine group by reason";
        push(what, vec![query(lake, reasons), format!("synclake redrive {lake}")]);
    }
}

fn logs(report: &StatusReport, lake: &str, push: Push<'_>) {
    for (name, table) in &report.tables {
        if table.unusable_log_objects > 0 {
            let objects = counted(table.unusable_log_objects as u64, "object");
            let first = table.unusable_log_object.as_deref().unwrap_or_default();
            let what = format!(
                "The log of {name} has {objects} that cannot be used, the first is {name}/{first}. The table is read \
                 without it. If `synclake verify` finds no fault, delete that object."
            );
            push(what, vec![format!("synclake verify {lake}")]);
        }
        if table.commits_since_checkpoint >= CHECKPOINT_OVERDUE {
            let what = format!(
                "The log of {name} has {} since its last checkpoint, so it is slow to read. The next commit writes \
                 one; look for `cannot write a checkpoint` in the workers' logs.",
                counted(table.commits_since_checkpoint, "commit")
            );
            push(what, Vec::new());
        }
    }
}

fn retention(report: &StatusReport, lake: &str, push: Push<'_>) {
    if let Some(refused) = &report.retention.refused {
        push(format!("Queries of the current state are refused: {refused}."), vec![format!("synclake verify {lake}")]);
    }
    if let Some(problem) = &report.retention.problem {
        push(format!("The policy has no effect: {problem}."), vec![format!("synclake policy {lake}")]);
    }
}

fn state(report: &StatusReport, lake: &str, push: Push<'_>) {
    let Some(records) = report.tables.get(Table::SyncRecords.name()) else { return };
    let refresh = || vec![format!("synclake refresh {lake}")];
    match &report.state {
        None if records.sums.rows >= STATE_ROWS => {
            let rows = counted(records.sums.rows, "row");
            push(format!("There is no maintained state: each query of the current state reads {rows}."), refresh());
        }
        Some(state) if state.covers > records.version => {
            let what = format!(
                "The state covers version {} of sync_records, which is only at version {}: tables of different lakes \
                 were mixed.",
                state.covers, records.version
            );
            push(what, vec![format!("synclake verify {lake}")]);
        }
        // The next round of care refreshes it.
        Some(state) if is_cared_for(report) && !is_older(state.refreshed, SILENT_SECONDS) => {}
        Some(state) => {
            let is_large = state.behind.rows.saturating_mul(100) >= records.sums.rows;
            let is_behind = state.behind.rows > 0 || !state.behind.is_exact;
            if is_behind && (is_large || is_older(state.refreshed, DAY_SECONDS)) {
                let at_least = if state.behind.is_exact { "" } else { "at least " };
                let rows = counted(state.behind.rows, "row");
                push(
                    format!("The maintained state is {at_least}{rows} behind: queries read them each time."),
                    refresh(),
                );
            }
        }
        None => {}
    }
}

/// Returns whether an ingest cares for the lake: it does so at least once an hour by default.
fn is_cared_for(report: &StatusReport) -> bool {
    !is_older(report.care, SILENT_SECONDS)
}

fn small_files(report: &StatusReport, lake: &str, push: Push<'_>) {
    if is_cared_for(report) {
        return;
    }
    for (table, flag) in [(Table::SyncRecords, ""), (Table::Quarantine, " --table quarantine")] {
        let Some(sums) = report.tables.get(table.name()).map(|found| &found.sums) else { continue };
        if sums.small_files_of_partition_max >= SMALL_FILES_MANY {
            let what = format!(
                "{} has {} below 16 MiB that can be merged, in {}: queries open each of them.",
                table.name(),
                counted(sums.mergeable_files, "file"),
                counted(sums.mergeable_partitions, "partition")
            );
            push(what, vec![format!("synclake compact {lake}{flag}")]);
        }
    }
}

fn extracts(report: &StatusReport, lake: &str, push: Push<'_>) {
    let Some(extracts) = &report.extracts else { return };
    let missing = &extracts.missing;
    if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
        let ranges = ranges(missing);
        let mut what = match missing.len() {
            1 => format!("There are rows of {first}, but no extract of this day."),
            days => format!("There are rows of {days} days from {first} to {last}, but no extracts of these days."),
        };
        if ranges.len() > RANGES_LISTED {
            what += &format!(" The first {RANGES_LISTED} of {} ranges:", ranges.len());
        }
        let extract = |(first, last): &(NaiveDate, NaiveDate)| match first == last {
            true => format!("synclake extract {lake} --date {first}"),
            false => format!("synclake extract {lake} --from {first} --to {last}"),
        };
        push(what, ranges.iter().take(RANGES_LISTED).map(extract).collect());
    }
    match &extracts.stale[..] {
        [] => {}
        [day] => push(
            format!("The extract of {day} differs from sync_records since late rows came."),
            vec![format!("synclake extract {lake} --date {day}")],
        ),
        [oldest, .., newest] => push(
            format!(
                "{} extracts from {oldest} to {newest} differ from sync_records since late rows came.",
                extracts.stale.len()
            ),
            vec![format!("synclake extract {lake} --date {oldest} --correct")],
        ),
    }
}

/// Returns the ranges of consecutive days: the first and the last day of each. The days are sorted.
fn ranges(days: &[NaiveDate]) -> Vec<(NaiveDate, NaiveDate)> {
    let mut ranges: Vec<(NaiveDate, NaiveDate)> = Vec::new();
    for day in days {
        match ranges.last_mut().filter(|(_, last)| last.succ_opt() == Some(*day)) {
            Some((_, last)) => *last = *day,
            None => ranges.push((*day, *day)),
        }
    }
    ranges
}

fn consumers(report: &StatusReport, lake: &str, push: Push<'_>) {
    for consumer in &report.consumers {
        let name = &consumer.consumer;
        let word = shell_word(name);
        let deliver = || {
            vec![
                format!("synclake deliver {lake} --consumer {word} --out DIR"),
                format!("synclake deliver {lake} --forget {word}"),
            ]
        };
        if let Some(to) = consumer.unfinished_to {
            let what = format!(
                "The delivery to consumer {name} up to version {to} is unfinished: run it again as before, or forget the consumer."
            );
            push(what, deliver());
        } else if (consumer.behind.commits > 0 || !consumer.behind.is_exact)
            && is_older(consumer.delivered, DAY_SECONDS)
        {
            let at_least = if consumer.behind.is_exact { "" } else { "at least " };
            let commits = counted(consumer.behind.commits, "commit");
            push(
                format!(
                    "Consumer {name} is {at_least}{commits} behind, and had no delivery for a day: deliver, or forget the consumer."
                ),
                deliver(),
            );
        }
    }
}

fn query(lake: &str, sql: &str) -> String {
    format!("synclake-query {lake} -c \"{sql}\"")
}

/// Formats a count and its noun.
pub(super) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Quotes a word for a shell, if it needs that.
fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_two_days_without_rows_after_most_days_with_some() {
        let growth = |rows: [u64; 7]| -> Vec<DayGrowth> {
            let days = NaiveDate::from_ymd_opt(2026, 11, 20).unwrap().iter_days();
            days.zip(rows).map(|(day, rows)| DayGrowth { day, rows, bytes: rows, is_exact: true }).collect()
        };
        let day = |day| NaiveDate::from_ymd_opt(2026, 11, day);
        assert_eq!(silent_since(&growth([5, 1, 0, 2, 0, 0, 0])), day(23));
        assert_eq!(silent_since(&growth([5, 1, 0, 2, 0, 0, 1])), None, "rows came today");
        assert_eq!(silent_since(&growth([5, 1, 0, 2, 0, 1, 0])), None, "rows came yesterday");
        assert_eq!(silent_since(&growth([5, 1, 0, 0, 0, 0, 0])), None, "rows come on few days");
        let mut unknown = growth([5, 1, 1, 2, 0, 0, 0]);
        unknown[6].is_exact = false;
        assert_eq!(silent_since(&unknown), None, "not all commits of the day were read");
        assert_eq!(silent_since(&[]), None);
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(shell_word("s3://bucket/lake-1"), "s3://bucket/lake-1");
        assert_eq!(shell_word("my lake"), "'my lake'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn days_in_a_row_are_one_range() {
        let days = ["2026-02-27", "2026-02-28", "2026-03-01", "2026-03-03"].map(|day| day.parse().unwrap());
        let shown: Vec<_> = ranges(&days).iter().map(|(first, last)| format!("{first} {last}")).collect();
        assert_eq!(shown, ["2026-02-27 2026-03-01", "2026-03-03 2026-03-03"]);
    }

    #[test]
    fn a_later_incarnation_is_started_by_the_name_of_its_stream() {
        assert_eq!(stream_of("cognito.1767225600000"), "cognito");
        assert_eq!(stream_of("cognito.eu"), "cognito.eu");
    }
}
