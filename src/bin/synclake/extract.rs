//! `synclake extract` and `synclake deliver`.

use std::time::Instant;

use anyhow::{Context, Result};
use synclake::config::{File, Unusable};
use synclake::lake::Store;
use synclake::print::Format;
use synclake::query::state::refresh;
use synclake::{extract, query, terminal};

use crate::args::{AwsArgs, DeliverArgs, ExtractArgs, FileFormat};
use crate::output::print_report;
use crate::settings::{aws_settings, location, open_lake, required};

impl From<FileFormat> for Format {
    fn from(format: FileFormat) -> Self {
        match format {
            FileFormat::Parquet => Self::Parquet,
            FileFormat::Csv => Self::Csv,
            FileFormat::Ndjson => Self::Ndjson,
        }
    }
}

/// Opens the lake, and the place of the files.
async fn open(lake: Option<String>, out: String, aws: AwsArgs, file: &File) -> Result<(Store, Store)> {
    let lake = location("lake", &required("lake", lake, &file.lake)?)?;
    let out = location("out", &out)?;
    let aws = aws_settings(aws, file).await?;
    let lake = Store::open(&lake, &aws).await?;
    let out = Store::create(&out, &aws).await?;
    if out.is_within(&lake) {
        let message = format!("--out {out} lies in the lake {lake}, whose files it would mix with; name another place");
        return Err(Unusable(message).into());
    }
    Ok((lake, out))
}

/// Runs `synclake deliver`.
pub(crate) async fn deliver(args: DeliverArgs, file: &File) -> Result<()> {
    if let Some(name) = &args.forget {
        let lake = open_lake(args.lake, args.aws, file).await?;
        let forgotten = extract::consumer::forget(&lake, name).await?;
        terminal::print_message(&format!("{name} is forgotten; a later delivery under this name begins with all rows"));
        return print_report(&forgotten);
    }
    let (Some(name), Some(out)) = (&args.consumer, args.out) else {
        return Err(Unusable("give --consumer and --out, or --forget".into()).into());
    };
    let (lake, out) = open(args.lake, out, args.aws, file).await?;
    let bar = terminal::progress(None, "{spinner} delivering {elapsed}");
    let delivery = extract::consumer::run(&lake, name, (&out, args.format.into()), &query::Limits::default()).await;
    bar.finish_and_clear();
    let delivery = delivery?;
    terminal::print_message(&format!("{name}: {} new rows in {} files", delivery.rows, delivery.files));
    print_report(&delivery)
}

/// Runs `synclake extract`.
pub(crate) async fn run(args: ExtractArgs, file: &File) -> Result<()> {
    if let (Some(consumer), Some(out)) = (&args.consumer, &args.out) {
        terminal::print_message("extract --consumer is now called: synclake deliver --consumer NAME --out DIR");
        let (consumer, out) = (Some(consumer.clone()), Some(out.clone()));
        let (lake, format, aws) = (args.lake, args.format, args.aws);
        return deliver(DeliverArgs { consumer, forget: None, lake, out, format, aws }, file).await;
    }
    let days = match (args.date, args.from, args.to) {
        (Some(date), ..) => (date, date),
        (None, Some(from), Some(to)) if from <= to => (from, to),
        (None, Some(from), Some(to)) => {
            return Err(Unusable(format!("--from {from} is after --to {to}; exchange them")).into());
        }
        _ => return Err(Unusable("give a day with --date, or a range with --from and --to".into()).into()),
    };
    let (lake, out) = match args.out {
        Some(out) => open(args.lake, out, args.aws, file).await.map(|(lake, out)| (lake, Some(out)))?,
        None => (open_lake(args.lake, args.aws, file).await?, None),
    };
    if !args.no_refresh {
        let checked = refresh::check(&lake).await;
        checked.context("refresh the state after the extract (--no-refresh leaves it out)")?;
    }
    let limits = query::Limits::default();
    let bar = terminal::progress(None, "{spinner} extracting {elapsed}");
    let mut began = Instant::now();
    let mut printed = Ok(());
    let done = |report: &extract::ExtractReport| {
        bar.suspend(|| {
            terminal::print_message(&format!(
                "{}: {} live keys, {} changes, {} files, {:.1} s",
                report.date,
                report.state_rows,
                report.change_rows,
                report.files,
                began.elapsed().as_secs_f64()
            ));
            if !report.stale.is_empty() {
                let stale: Vec<String> = report.stale.iter().map(ToString::to_string).collect();
                terminal::print_message(&format!(
                    "late rows have changed {}; --correct extracts them again",
                    stale.join(", ")
                ));
            }
        });
        began = Instant::now();
        if let Err(error) = print_report(report) {
            printed = Err(error);
        }
    };
    let reports =
        extract::run(&lake, days, out.as_ref().map(|out| (out, args.format.into())), args.correct, &limits, done).await;
    bar.finish_and_clear();
    reports?;
    printed?;
    if !args.no_refresh {
        let report = refresh::run(&lake, &limits, false).await;
        let report = report.context("refresh the state (the extract itself is done, as with --no-refresh)")?;
        terminal::print_message(&format!("the state covers version {}", report.covers));
    }
    Ok(())
}
