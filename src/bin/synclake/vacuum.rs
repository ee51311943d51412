//! `synclake vacuum`.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use synclake::config::File;
use synclake::terminal;
use synclake::vacuum::{self, Progress, VacuumOptions, VacuumReport};

use crate::args::{ReportFormat, VacuumArgs};
use crate::output::{mib, print_line, print_report, report_format};
use crate::settings::open_lake;

/// The bar shows every so many objects.
const SHOWN_EVERY: u64 = 1_000;

/// Runs the command.
pub(crate) async fn run(args: VacuumArgs, file: &File) -> Result<()> {
    let lake = open_lake(args.lake, args.aws, file).await?;
    let stop = terminal::stop_on_signals().context("handle signals")?;
    let options = VacuumOptions {
        tables: args.table,
        retention: args.retain,
        keeps_undelivered: !args.ignore_consumers,
        is_dry_run: args.dry_run,
    };
    let format = report_format(args.format);
    let bar = terminal::progress(None, "{spinner} vacuuming {msg} {elapsed}");
    let (mut seen, mut deleted, mut printed) = (0_u64, 0_u64, Ok(()));
    let mut list = FileList::default();
    let on = |progress: Progress<'_>| match progress {
        Progress::Seen(table) => {
            seen += 1;
            if seen % SHOWN_EVERY == 0 {
                bar.set_message(format!("{}: {seen} objects, {deleted} deleted", table.name()));
            }
        }
        Progress::Deleted(table, path, bytes) => {
            deleted += 1;
            if options.is_dry_run && printed.is_ok() {
                printed = bar.suspend(|| match format {
                    ReportFormat::Json => list.print(&json!({"table": table.name(), "path": path, "bytes": bytes})),
                    ReportFormat::Human => print_line(&format!("{}/{path}", table.name())),
                });
            }
        }
    };
    let report = vacuum::run(&lake, &options, &stop, on).await;
    bar.finish_and_clear();
    let report = report?;
    printed?;
    if report.stopped {
        terminal::print_message("stopped by a signal; run the same command again to delete the rest");
    }
    for table in options.tables.iter().filter(|table| !report.stopped && !report.tables.contains_key(table.name())) {
        terminal::print_message(&format!("{} does not exist yet, so there is nothing to delete", table.name()));
    }
    match format {
        ReportFormat::Json if options.is_dry_run => list.end(&report),
        ReportFormat::Json => print_report(&report),
        ReportFormat::Human => print_tables(&report),
    }
}

/// The JSON report of a dry run: one object, whose first field is the array of the files. They are printed as they are
/// found, because memory must not hold millions of them.
#[derive(Default)]
struct FileList {
    is_begun: bool,
}

impl FileList {
    const BEGIN: &'static str = "{\"would_delete\":[";

    /// Prints a file.
    fn print(&mut self, file: &Value) -> Result<()> {
        let before = if self.is_begun { "," } else { Self::BEGIN };
        self.is_begun = true;
        print_line(&format!("{before}{file}"))
    }

    /// Ends the array, and prints the other fields.
    fn end(&self, report: &VacuumReport) -> Result<()> {
        let begin = if self.is_begun { "" } else { Self::BEGIN };
        let fields = serde_json::to_string(report).context("encode the report")?;
        print_line(&format!("{begin}],{}", fields.trim_start_matches('{')))
    }
}

/// Prints the report for people.
pub(crate) fn print_tables(report: &VacuumReport) -> Result<()> {
    let done = if report.dry_run { "would delete" } else { "deleted" };
    let from = report.retention_from.format("%Y-%m-%dT%H:%M:%SZ");
    for (name, table) in &report.tables {
        let kept = |files: u64, why: &str| if files == 0 { String::new() } else { format!(", {files} {why}") };
        let log = |count: u64, what: &str, bytes: u64| match count {
            0 => String::new(),
            count => format!(", {count} {what} ({})", mib(bytes)),
        };
        print_line(&format!(
            "{name:13} version {}, {done} {} files ({}){}{}{}{}{}{}{}",
            table.version,
            table.files,
            mib(table.bytes),
            log(table.checkpoints, "checkpoints", table.checkpoint_bytes),
            log(table.commits, "commits", table.commit_bytes),
            kept(table.uploads, "writes that never ended"),
            kept(table.kept_recent, &format!("kept for versions since {from}")),
            kept(table.kept_pending, "kept until their writer runs again"),
            kept(
                table.kept_undelivered,
                "kept until `synclake deliver` has run for every consumer, or --forget removed it"
            ),
            kept(
                table.kept_commits,
                "expired commits kept until the state, the consumers and the newest extracts pass them"
            ),
        ))?;
    }
    Ok(())
}
