//! `synclake vacuum`.

use anyhow::{Context, Result};
use serde_json::json;
use synclake::config::File;
use synclake::terminal;
use synclake::vacuum::{self, Progress, VacuumOptions, VacuumReport};

use crate::args::{ReportFormat, VacuumArgs};
use crate::output::{mib, print_line, print_report};
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
    let bar = terminal::progress(None, "{spinner} vacuuming {msg} {elapsed}");
    let (mut seen, mut deleted, mut printed) = (0_u64, 0_u64, Ok(()));
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
                let (table, is_json) = (table.name(), args.format == ReportFormat::Json);
                printed = bar.suspend(|| match is_json {
                    true => print_report(&json!({"table": table, "path": path, "bytes": bytes})),
                    false => print_line(&format!("{table}/{path}")),
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
    match args.format {
        ReportFormat::Json => print_report(&report),
        ReportFormat::Human => print_tables(&report),
    }
}

fn print_tables(report: &VacuumReport) -> Result<()> {
    let done = if report.dry_run { "would delete" } else { "deleted" };
    let from = report.retention_from.format("%Y-%m-%dT%H:%M:%SZ");
    for (name, table) in &report.tables {
        let kept = |files: u64, why: &str| if files == 0 { String::new() } else { format!(", {files} {why}") };
        print_line(&format!(
            "{name:13} version {}, {done} {} files ({}){}{}{}",
            table.version,
            table.files,
            mib(table.bytes),
            kept(table.kept_recent, &format!("kept for versions since {from}")),
            kept(table.kept_pending, "kept until their writer runs again"),
            kept(table.kept_undelivered, "kept until `synclake deliver` has run for every consumer"),
        ))?;
    }
    Ok(())
}
