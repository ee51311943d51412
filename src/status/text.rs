//! The report as text. Names from the log cannot steer a terminal, and cannot begin a line of their own.

use std::fmt::Write as _;

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};

use crate::retain::TablePolicy;
use crate::text::escaped;

use super::advice::counted;
use super::{Behind, Moment, RetentionStatus, SourceStatus, StatusReport};

/// Pools that are listed: those with the most bytes.
const POOLS_LISTED: usize = 20;
/// Open shards of a stream that are listed: those that were read the least far.
const SHARDS_LISTED: usize = 20;

/// Renders the report.
pub(super) fn render(report: &StatusReport, is_verbose: bool) -> String {
    let mut out = format!(
        "lake {}\nnow  {} (clock of this machine, to which all ages refer)\n",
        escaped(&report.lake, ""),
        time(report.now)
    );
    tables(&mut out, report);
    pools(&mut out, report, is_verbose);
    growth(&mut out, report);
    for source in &report.sources {
        positions(&mut out, source, is_verbose);
    }
    derived(&mut out, report);
    retention(&mut out, report);
    attention(&mut out, report);
    next(&mut out, report);
    out
}

fn tables(out: &mut String, report: &StatusReport) {
    let mut grid = Grid::new(&[
        "<TABLE",
        ">version",
        ">rows",
        ">bytes",
        ">files",
        ">average",
        ">small",
        ">mergeable",
        "<last commit",
        ">age",
        ">checkpoint",
        ">since",
    ]);
    for (name, table) in &report.tables {
        let sums = &table.sums;
        let at_least = if sums.files_without_rows > 0 { ">=" } else { "" };
        let mergeable = match sums.mergeable_partitions {
            0 => "0".to_owned(),
            partitions => format!("{} in {}", sums.mergeable_files, counted(partitions, "partition")),
        };
        grid.row([
            (*name).to_owned(),
            table.version.to_string(),
            format!("{at_least}{}", sums.rows),
            size_text(sums.bytes),
            sums.files.to_string(),
            size_text(sums.file_bytes_average),
            share(sums.small_files, sums.files),
            mergeable,
            table.last_commit.map_or_else(unknown, |commit| time(commit.at)),
            table.last_commit.map_or_else(unknown, age),
            table.checkpoint.map_or_else(|| "none".to_owned(), |version| version.to_string()),
            table.commits_since_checkpoint.to_string(),
        ]);
    }
    grid.write(out);
    for (name, table) in report.tables.iter().filter(|(_, table)| table.sums.files_without_rows > 0) {
        let files = counted(table.sums.files_without_rows, "file");
        let _ = writeln!(out, "{name}: the log does not state the rows of {files}");
    }
}

fn pools(out: &mut String, report: &StatusReport, is_verbose: bool) {
    if report.pools.is_empty() {
        return;
    }
    let headers =
        ["<POOL", ">rows", ">bytes", ">files", "<first date", "<last date", "<newest change", "<most files of a date"];
    let mut grid = Grid::new(&headers);
    let date = |date: Option<NaiveDate>| date.map_or_else(unknown, |date| date.to_string());
    let mut shown: Vec<_> = report.pools.iter().collect();
    let left_out = if is_verbose { 0 } else { shown.len().saturating_sub(POOLS_LISTED) };
    if left_out > 0 {
        shown.sort_by_key(|pool| std::cmp::Reverse(pool.sums.bytes));
        shown.truncate(POOLS_LISTED);
    }
    for pool in shown {
        grid.row([
            pool.pool.clone().unwrap_or_else(unknown),
            pool.sums.rows.to_string(),
            size_text(pool.sums.bytes),
            pool.sums.files.to_string(),
            date(pool.first_date),
            date(pool.last_date),
            pool.newest_change.map_or_else(unknown, time),
            format!("{} on {}", pool.files_of_date_max, date(pool.date_of_most_files)),
        ]);
    }
    grid.write(out);
    if left_out > 0 {
        let _ = writeln!(out, "and {} with fewer bytes; --verbose lists them", counted(left_out as u64, "pool"));
    }
}

fn growth(out: &mut String, report: &StatusReport) {
    let mut grid = Grid::new(&["<NEW BY DAY", ">rows", ">bytes"]);
    for day in &report.growth {
        let at_least = if day.is_exact { "" } else { ">=" };
        grid.row([
            day.day.to_string(),
            format!("{at_least}{}", day.rows),
            format!("{at_least}{}", size_text(day.bytes)),
        ]);
    }
    grid.write(out);
    if report.growth.iter().any(|day| !day.is_exact) {
        let read = report.commits_read;
        let _ = writeln!(out, ">= : only the newest {read} commits were read; see --commits");
    }
}

fn positions(out: &mut String, source: &SourceStatus, is_verbose: bool) {
    let last = match source.last_commit {
        Some(commit) => format!("last commit {} ({} ago)", time(commit.at), age(commit)),
        None => "last commit before those that were read".to_owned(),
    };
    let _ = match source.is_files {
        true => writeln!(out, "\nFILES  {} read, {last}", counted(source.shards, "file")),
        false => writeln!(
            out,
            "\nSTREAM {}  {}, {} open, {} ended, {last}",
            source.source,
            counted(source.shards, "shard"),
            source.open,
            source.ended
        ),
    };
    let mut shown: Vec<_> = source.shards_listed.iter().filter(|shard| is_verbose || !shard.is_ended).collect();
    if shown.is_empty() {
        return;
    }
    shown.sort_by_key(|shard| shard.read_to.map(|moment| moment.at));
    let left_out = if is_verbose { 0 } else { shown.len().saturating_sub(SHARDS_LISTED) };
    shown.truncate(shown.len() - left_out);
    let mut headers = vec!["<  shard", "<last commit", ">age", "<read up to", ">behind"];
    if is_verbose {
        headers.extend([">epoch", "<owner", "<position"]);
    }
    let mut grid = Grid::new(&headers);
    for shard in shown {
        let mut cells = vec![
            format!("  {}", shard.shard),
            shard.last_commit.map_or_else(unknown, |commit| time(commit.at)),
            shard.last_commit.map_or_else(unknown, age),
            match (shard.is_ended, shard.read_to) {
                (true, _) => "its end".to_owned(),
                (false, read_to) => read_to.map_or_else(unknown, |moment| time(moment.at)),
            },
            shard.read_to.map_or_else(unknown, age),
        ];
        if let (Some(epoch), Some(owner)) = (shard.epoch, shard.owner) {
            let position = shard.position.clone().unwrap_or_else(unknown);
            cells.extend([epoch.to_string(), format!("{owner:016x}"), position]);
        }
        grid.row(cells);
    }
    grid.write_lines(out);
    if left_out > 0 {
        let _ = writeln!(out, "  and {left_out} more that were read further; --verbose lists them");
    }
}

fn derived(out: &mut String, report: &StatusReport) {
    let when = |what: &str, moment: Option<Moment>| match moment {
        Some(moment) => format!("{what} {} ({} ago)", time(moment.at), age(moment)),
        None => format!("{what} at a time that the log no longer states"),
    };
    out.push('\n');
    let _ = match &report.state {
        None => writeln!(out, "STATE     never refreshed"),
        Some(state) => {
            let (behind, refreshed) = (behind(state.behind), when("refreshed", state.refreshed));
            writeln!(out, "STATE     covers version {}, {behind}, {refreshed}", state.covers)
        }
    };
    let _ = match &report.extracts {
        None => writeln!(out, "EXTRACTS  none"),
        Some(extracts) => {
            let days = counted(extracts.days, "day");
            let (behind, extracted) = (behind(extracts.behind), when("extracted", extracts.extracted));
            let (last, covers) = (extracts.last_date, extracts.covers);
            writeln!(out, "EXTRACTS  {days}, the newest of {last} covers version {covers}, {behind}, {extracted}")
        }
    };
    for consumer in &report.consumers {
        let (name, behind) = (escaped(&consumer.consumer, ""), behind(consumer.behind));
        let _ = match consumer.version {
            None => writeln!(out, "CONSUMER  {name} had no delivery yet, {behind}"),
            Some(version) => {
                let delivered = when("delivered", consumer.delivered);
                writeln!(out, "CONSUMER  {name} has all up to version {version}, {behind}, {delivered}")
            }
        };
    }
}

fn retention(out: &mut String, report: &StatusReport) {
    let RetentionStatus { policy, problem, .. } = &report.retention;
    if let Some(problem) = problem {
        let _ = writeln!(out, "RETAIN    {}", escaped(problem, ""));
        return;
    }
    let tables = [("sync_records", &policy.sync_records), ("daily_state", &policy.daily_state)];
    let said = |(name, policy): &(&str, &TablePolicy)| policy.retain.map(|retain| format!("{name} {retain}"));
    let mut parts: Vec<String> = tables.iter().filter_map(said).collect();
    let pools = policy.sync_records.pools.iter().map(|(pool, retain)| format!("pool {} {retain}", escaped(pool, "")));
    parts.extend(pools);
    if !parts.is_empty() {
        let _ = writeln!(out, "RETAIN    {}", parts.join(", "));
    }
    for (pool, date) in &policy.complete_from {
        let _ = writeln!(out, "RETAIN    pool {} has all rows from {date} on", escaped(pool, ""));
    }
}

fn behind(behind: Behind) -> String {
    let at_least = if behind.is_exact { "" } else { ">=" };
    match (behind.commits, behind.is_exact) {
        (0, true) => "nothing behind".to_owned(),
        (commits, _) => {
            format!("{at_least}{} and {at_least}{} behind", counted(commits, "commit"), counted(behind.rows, "row"))
        }
    }
}

fn attention(out: &mut String, report: &StatusReport) {
    let attention = &report.attention;
    out.push_str("\nQUARANTINE AND GAPS\n");
    let written = |moment: Option<Moment>| match moment {
        Some(moment) => format!("last written {} ({} ago)", time(moment.at), age(moment)),
        None => "no time is known".to_owned(),
    };
    if attention.quarantined > 0 {
        let date = attention.quarantined_newest_date.map_or_else(unknown, |date| date.to_string());
        let (records, written) =
            (counted(attention.quarantined, "record"), written(attention.quarantined_last_written));
        let new = match attention.quarantined_since_redrive {
            0 => "no redrive could decode them".to_owned(),
            new => format!("{new} of them since the last redrive"),
        };
        let _ = writeln!(out, "  quarantine  {records}, {new}, the newest arrived on {date}, {written}");
    }
    if attention.gaps > 0 {
        let (rows, written) = (counted(attention.gaps, "row"), written(attention.gaps_last_written));
        let _ = writeln!(out, "  gaps        {rows}: records that were lost before they were read, {written}");
    }
    if attention.quarantined == 0 && attention.gaps == 0 {
        out.push_str("  nothing: no quarantined record, no gap\n");
    }
}

fn next(out: &mut String, report: &StatusReport) {
    out.push_str("\nWHAT TO DO NEXT\n");
    if report.next.is_empty() {
        out.push_str("  nothing to do\n");
    }
    for (number, advice) in report.next.iter().enumerate() {
        let _ = writeln!(out, "  {}. {}", number + 1, escaped(&advice.text, ""));
        for command in &advice.commands {
            let _ = writeln!(out, "     {}", escaped(command, ""));
        }
    }
}

fn unknown() -> String {
    "-".to_owned()
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn age(moment: Moment) -> String {
    age_text(moment.age_seconds)
}

/// Formats a duration in its two largest units.
pub(super) fn age_text(seconds: i64) -> String {
    let sign = if seconds < 0 { "-" } else { "" };
    let seconds = seconds.unsigned_abs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{sign}{seconds} s"),
        60..3_600 => format!("{sign}{minutes} min"),
        3_600..86_400 => format!("{sign}{hours} h {} min", minutes % 60),
        _ => format!("{sign}{days} d {} h", hours % 24),
    }
}

fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1_024.0, 0);
    while value >= 1_024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1_024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => unknown(),
        _ => format!("{:.0}%", part as f64 * 100.0 / whole as f64),
    }
}

/// Aligned columns. A header begins with `<` or `>`, the side to which its column is aligned.
struct Grid {
    headers: Vec<(bool, String)>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    fn new(headers: &[&str]) -> Self {
        let header = |text: &&str| (text.starts_with('>'), text[1..].to_owned());
        Self { headers: headers.iter().map(header).collect(), rows: Vec::new() }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| escaped(&cell, "")).collect());
    }

    /// Writes an empty line, and the columns.
    fn write(&self, out: &mut String) {
        out.push('\n');
        self.write_lines(out);
    }

    fn write_lines(&self, out: &mut String) {
        let names: Vec<String> = self.headers.iter().map(|(_, name)| name.clone()).collect();
        let lines = || std::iter::once(&names).chain(&self.rows);
        let width = |column: usize| lines().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..names.len()).map(|column| width(column).unwrap_or(0)).collect();
        for line in lines() {
            let mut text = String::new();
            for ((cell, width), (is_right, _)) in line.iter().zip(&widths).zip(&self.headers) {
                let _ = match is_right {
                    true => write!(text, "{cell:>width$}  "),
                    false => write!(text, "{cell:<width$}  "),
                };
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_names_stay_in_their_cell() {
        let mut grid = Grid::new(&["<NAME", ">rows"]);
        grid.row(["a".to_owned(), "12345".to_owned()]);
        grid.row(["b\n\u{1b}[31m".to_owned(), "1".to_owned()]);
        let mut out = String::new();
        grid.write(&mut out);
        assert_eq!(out, "\nNAME            rows\na              12345\nb\\n\\u{1b}[31m      1\n");
    }

    #[test]
    fn durations_and_sizes_are_short() {
        let ages = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, -7_260].map(age_text);
        assert_eq!(ages, ["0 s", "59 s", "1 min", "59 min", "1 h 0 min", "23 h 59 min", "1 d 0 h", "-2 h 1 min"]);
        let sizes = [0, 1_023, 1_024, 16 << 20, u64::MAX].map(size_text);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "16.0 MiB", "16384.0 PiB"]);
    }
}
