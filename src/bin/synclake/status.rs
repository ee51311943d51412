//! `synclake status`.

use anyhow::Result;
use synclake::config::File;
use synclake::{status, terminal};

use crate::args::{ReportFormat, StatusArgs};
use crate::output::{print_line, print_report, report_format};
use crate::settings::{open_lake, required};

/// Runs `synclake status`.
pub(crate) async fn run(args: StatusArgs, file: &File) -> Result<()> {
    let named = required("lake", args.lake, &file.lake)?;
    let lake = open_lake(Some(named.clone()), args.aws, file).await?;
    let options = status::StatusOptions {
        lake: named,
        commits_max: usize::try_from(args.commits)?,
        verbose: args.verbose,
        now: chrono::Utc::now(),
    };
    let bar = terminal::progress(None, "{spinner} reading the logs {elapsed}");
    let report = status::run(&lake, &options).await;
    bar.finish_and_clear();
    let report = report?;
    match report_format(args.format) {
        ReportFormat::Json => print_report(&report),
        ReportFormat::Human => print_line(report.to_text(options.verbose).trim_end()),
    }
}
