//! `synclake verify`, `redrive`, `refresh`, `compact` and `ddl`.

use anyhow::{Context, Result};
use synclake::aws::AwsSettings;
use synclake::config::{File, Unusable};
use synclake::lake::{Location, Store};
use synclake::query::state::refresh::{self, RefreshReport};
use synclake::schema::Table;
use synclake::{compact, ddl, query, redrive, terminal, verify};

use crate::args::{CompactArgs, CompactTable, DdlArgs, RedriveArgs, RefreshArgs, ReportFormat, VerifyArgs};
use crate::output::{mib, print_line, print_report, report_format};
use crate::settings::{location, open_lake, required};

/// Runs `synclake verify`.
pub(crate) async fn verify(args: VerifyArgs, file: &File) -> Result<()> {
    let lake = open_lake(args.lake, args.aws, file).await?;
    let bar = terminal::progress(None, "{spinner} verifying {elapsed}");
    let report = verify::run(&lake, args.deep).await;
    bar.finish_and_clear();
    let report = report?;
    if report_format(args.format) == ReportFormat::Json {
        print_report(&report)?;
    } else {
        for (name, table) in &report.tables {
            let (version, files, rows, orphans) = (table.version, table.files, table.rows, table.orphans);
            let superseded = match table.superseded {
                0 => String::new(),
                files => format!(", {files} replaced and not vacuumed"),
            };
            let cleaned = match table.log_from {
                0 => String::new(),
                first => format!(", log cleaned: nothing before version {first} is checked"),
            };
            print_line(&format!(
                "{name:13} version {version}, {files} files, {rows} rows, {orphans} orphans{superseded}{cleaned}"
            ))?;
        }
        for (name, shard) in &report.shards {
            let at = if shard.ended {
                "ended".to_owned()
            } else {
                format!("at {}", shard.position.as_deref().unwrap_or("-"))
            };
            print_line(&format!("{name}  {} commits ({} checked), {at}", shard.commits, shard.commits_checked))?;
        }
        for gap in &report.gaps {
            print_line(&format!("GAP {gap}"))?;
        }
        for fault in &report.faults {
            print_line(&format!("FAULT {fault}"))?;
        }
    }
    match report.faults.len() {
        0 => Ok(()),
        faults => anyhow::bail!("{lake} is damaged: {faults} faults, listed on standard output"),
    }
}

/// Runs `synclake redrive`.
pub(crate) async fn redrive(args: RedriveArgs, file: &File) -> Result<()> {
    let lake = open_lake(args.lake, args.aws, file).await?;
    let options = redrive::RedriveOptions { reasons: args.reason.into_iter().collect(), since: args.since };
    let bar = terminal::progress(None, "{spinner} decoding again {elapsed}");
    let report = redrive::run(&lake, &options).await;
    bar.finish_and_clear();
    let report = report?;
    let left: Vec<String> = report.left.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    let left = if left.is_empty() { "none".to_owned() } else { left.join(", ") };
    terminal::print_message(&format!(
        "{} records decoded again, {} moved ({} rows), left: {left}",
        report.examined, report.moved, report.rows
    ));
    print_report(&report)
}

/// Runs `synclake refresh`.
pub(crate) async fn refresh(args: RefreshArgs, file: &File) -> Result<()> {
    let lake = open_lake(args.lake, args.aws, file).await?;
    let bar = terminal::progress(None, "{spinner} refreshing the state {elapsed}");
    let limits = query::Limits::default();
    let report = match args.accept_loss {
        true => refresh::run_and_accept_loss(&lake, &limits).await,
        false => refresh::run(&lake, &limits, args.rebuild).await,
    };
    bar.finish_and_clear();
    let report = report?;
    terminal::print_message(&refresh_summary(&report));
    print_report(&report)
}

/// Returns the report of a refresh as a sentence.
pub(crate) fn refresh_summary(report: &RefreshReport) -> String {
    format!(
        "read {} new files ({}), replaced {} of the state's files by {} ({} rows); it covers version {}",
        report.files_read,
        mib(report.bytes_read),
        report.files_replaced,
        report.files_written,
        report.rows_written,
        report.covers
    )
}

/// Runs `synclake compact`.
pub(crate) async fn compact(args: CompactArgs, file: &File) -> Result<()> {
    let options = compact::CompactOptions {
        table: match args.table {
            CompactTable::SyncRecords => Table::SyncRecords,
            CompactTable::Quarantine => Table::Quarantine,
        },
        pool: args.pool,
        from: args.from,
        to: args.to,
        target_bytes: args.target_size,
        memory_bytes: args.memory,
        dry_run: args.dry_run,
        max_duration: args.max_duration,
        collapse_duplicates: args.collapse_duplicates,
    };
    options.check().map_err(Unusable)?;
    let lake = open_lake(args.lake, args.aws, file).await?;
    let stop = terminal::stop_on_signals().context("listen to signals")?;
    let bar = terminal::progress(Some(0), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left");
    let draw = |progress: compact::CompactProgress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let report = compact::run(&lake, &options, draw, &stop).await;
    bar.finish_and_clear();
    let report = report?;
    if report.rows_collapsed.is_some_and(|rows| rows > 0) {
        terminal::print_message(
            "other engines count collapsed copies by the views of `synclake ddl --collapsed`; create their tables and \
             views again",
        );
    }
    match report_format(args.format) {
        ReportFormat::Json => print_report(&report)?,
        ReportFormat::Human => print_compaction(&report)?,
    }
    match report.faults.len() {
        0 => Ok(()),
        faults => {
            anyhow::bail!(
                "damaged files were left alone ({faults}), listed on standard output; run `synclake verify --deep`"
            )
        }
    }
}

/// Prints the report of a compaction for people.
pub(crate) fn print_compaction(report: &compact::CompactReport) -> Result<()> {
    print_line(&compact_summary(report))?;
    for (reason, files) in &report.files_left {
        print_line(&format!("left alone: {files} files, each {reason}"))?;
    }
    for fault in &report.faults {
        print_line(&format!("FAULT {fault}"))?;
    }
    Ok(())
}

/// Returns the report of a compaction as a sentence.
fn compact_summary(report: &compact::CompactReport) -> String {
    let mut text = format!(
        "{}: {} {} files ({}) {} {} ({}), {} rows",
        report.table,
        if report.dry_run { "would replace" } else { "replaced" },
        report.files_removed,
        mib(report.bytes_removed),
        if report.dry_run { "by at most" } else { "by" },
        report.files_added,
        mib(report.bytes_added),
        report.rows
    );
    if let Some(rows) = report.rows_collapsed.filter(|_| !report.dry_run) {
        text += &format!(" of which {rows} are copies that were collapsed");
    }
    for (count, what) in [
        (report.groups_changed, "groups changed meanwhile"),
        (report.groups_left, "groups are left to the next run"),
        (report.files_left.values().sum(), "small files cannot be merged"),
    ] {
        if count > 0 {
            text += &format!("; {count} {what}");
        }
    }
    text
}

/// Runs `synclake ddl`.
pub(crate) async fn ddl(args: &DdlArgs, file: &File) -> Result<()> {
    let place = required("lake", args.lake.clone(), &file.lake)?;
    let mut is_collapsed = args.collapsed;
    let place = match location("lake", &place)? {
        // Other engines do not know the working directory of this program.
        Location::Folder(folder) => {
            if !args.engine.reads_folders() {
                let message = "--lake is a folder, and this engine reads S3 alone; give s3://bucket/prefix";
                return Err(Unusable(message.to_owned()).into());
            }
            if !folder.join("sync_records/_delta_log").is_dir() {
                let shown = folder.display();
                return Err(Unusable(format!("--lake {shown} is not a lake; `synclake ingest` creates one")).into());
            }
            let lake = Store::open(&Location::Folder(folder.clone()), &AwsSettings::default()).await?;
            is_collapsed |= Table::SyncRecords.has_copies(&lake).await?;
            let folder = std::path::absolute(&folder).with_context(|| format!("find {}", folder.display()))?;
            folder.display().to_string()
        }
        _ => place,
    };
    let text = ddl::render(args.engine, place.trim_end_matches('/'), &args.database, is_collapsed).await;
    let text = text.map_err(Unusable)?;
    let Some(folder) = &args.split else { return print_line(text.trim_end()) };
    if args.engine == ddl::Engine::Dbt {
        return Err(Unusable("--split is for statements, and dbt reads one file; leave it out".to_owned()).into());
    }
    let files =
        ddl::write_split(&text, folder).with_context(|| format!("write statements into {}", folder.display()))?;
    terminal::print_message(&format!("{files} statements in {}", folder.display()));
    Ok(())
}
