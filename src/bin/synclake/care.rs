//! `synclake care`: one round of what keeps a lake fast: refresh, retention, compaction, vacuum.

use anyhow::{Context, Result};
use serde::Serialize;
use synclake::compact::{self, CompactOptions, CompactReport};
use synclake::config::File;
use synclake::lake::Store;
use synclake::query::Limits;
use synclake::query::state::refresh::{self, RefreshError, RefreshReport};
use synclake::retain::{self, ExpireReport};
use synclake::schema::Table;
use synclake::terminal;
use synclake::vacuum::{self, VacuumOptions, VacuumReport};
use tokio_util::sync::CancellationToken;

use crate::args::{CareArgs, ReportFormat};
use crate::output::{print_line, print_report, report_format};
use crate::policy::print_expiry;
use crate::settings::open_lake;
use crate::upkeep::{print_compaction, refresh_summary};
use crate::vacuum::print_tables;

/// The reports of the steps; `None` for a step that did not end, because a signal or an error came before or during it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CareReport {
    pub(crate) refresh: Option<RefreshReport>,
    pub(crate) expire: Option<ExpireReport>,
    pub(crate) compact: Option<CompactReport>,
    pub(crate) compact_quarantine: Option<CompactReport>,
    pub(crate) vacuum: Option<VacuumReport>,
}

impl CareReport {
    /// Returns the reports of the compactions that ended.
    pub(crate) fn compactions(&self) -> impl Iterator<Item = &CompactReport> {
        self.compact.iter().chain(&self.compact_quarantine)
    }
}

/// Runs the command.
pub(crate) async fn run(args: CareArgs, file: &File) -> Result<()> {
    let lake = open_lake(args.lake.clone(), args.aws.clone(), file).await?;
    let stop = terminal::stop_on_signals().context("listen to signals")?;
    let bar = terminal::progress(None, "{spinner} {msg} {elapsed}");
    let mut report = CareReport::default();
    let round = Round {
        refresh: Some(Limits::default()),
        is_expiring: true,
        compact: CompactOptions { max_duration: args.max_duration, ..CompactOptions::default() },
        vacuum: Some(VacuumOptions { retention: args.retain, ..VacuumOptions::default() }),
    };
    let done = round.run(&lake, &stop, &mut report, |step| bar.set_message(step)).await;
    bar.finish_and_clear();
    // What was done is told also if a later step failed.
    match report_format(args.format) {
        ReportFormat::Json => print_report(&report)?,
        ReportFormat::Human => print_steps(&report)?,
    }
    done?;
    match report.compactions().map(|compact| compact.faults.len()).sum::<usize>() {
        0 => Ok(()),
        faults => anyhow::bail!("damaged files of {lake} were left alone ({faults}); run `synclake verify --deep`"),
    }
}

/// Prints the reports for people.
fn print_steps(report: &CareReport) -> Result<()> {
    let not_ended = |step: &str| print_line(&format!("{step} did not end"));
    match &report.refresh {
        Some(done) => print_line(&refresh_summary(done))?,
        None => not_ended("refresh")?,
    }
    match &report.expire {
        Some(done) => print_expiry(done)?,
        None => not_ended("retention")?,
    }
    for (compact, step) in [(&report.compact, "compact"), (&report.compact_quarantine, "compact of quarantine")] {
        match compact {
            Some(done) => print_compaction(done)?,
            None => not_ended(step)?,
        }
    }
    report.vacuum.as_ref().map_or_else(|| not_ended("vacuum"), print_tables)
}

/// What a round does.
pub(crate) struct Round {
    /// The limits of the refresh, if there is one.
    pub(crate) refresh: Option<Limits>,
    /// Whether rows leave that are older than the policy.
    pub(crate) is_expiring: bool,
    pub(crate) compact: CompactOptions,
    pub(crate) vacuum: Option<VacuumOptions>,
}

impl Round {
    /// Makes the round. `show` gets what begins.
    pub(crate) async fn run(
        &self,
        lake: &Store,
        stop: &CancellationToken,
        report: &mut CareReport,
        show: impl Fn(&'static str),
    ) -> Result<()> {
        let mut done_before = Ok(());
        if let Some(limits) = &self.refresh {
            show("refreshing the state");
            let done = match refresh::run_until(lake, limits, false, stop).await {
                Err(RefreshError::Stopped) => return Ok(()),
                done => done.context("refresh the state"),
            };
            // The other steps go on, and an error may last: small files must not gather meanwhile. Rows that the state
            // lacks do not leave.
            done_before = done.map(|done| report.refresh = Some(done));
        }
        if self.is_expiring && !stop.is_cancelled() {
            show("letting old rows leave");
            let done = retain::expire(lake).await.context("let the rows leave that are older than the policy");
            done_before = done_before.and(done.map(|done| report.expire = Some(done)));
        }
        show("merging small files");
        let compacted = compact::run(lake, &self.compact, |_| (), stop).await;
        report.compact = Some(compacted.context("compact sync_records")?);
        if !stop.is_cancelled() {
            let quarantine = CompactOptions { table: Table::Quarantine, ..self.compact.clone() };
            let compacted = compact::run(lake, &quarantine, |_| (), stop).await;
            report.compact_quarantine = Some(compacted.context("compact quarantine")?);
        }
        if let Some(options) = self.vacuum.as_ref().filter(|_| !stop.is_cancelled()) {
            show("deleting old files");
            report.vacuum = Some(vacuum::run(lake, options, stop, |_| ()).await.context("vacuum")?);
        }
        done_before
    }
}
