//! Output of the commands: reports to stdout, as text for people or as JSON for programs. All else goes to stderr.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};

use crate::args::ReportFormat;

/// Returns the format of a report: the given one, else text on a terminal and JSON otherwise.
pub(crate) fn report_format(given: Option<ReportFormat>) -> ReportFormat {
    let default = if std::io::stdout().is_terminal() { ReportFormat::Human } else { ReportFormat::Json };
    given.unwrap_or(default)
}

/// Formats bytes for people.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// Prints a line of data to stdout. A closed reader is no error.
pub(crate) fn print_line(line: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write standard output"),
        _ => Ok(()),
    }
}

/// Prints a report as one line of JSON.
pub(crate) fn print_report(report: &impl serde::Serialize) -> Result<()> {
    print_line(&serde_json::to_string(report).context("encode the report")?)
}
