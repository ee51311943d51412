//! `synclake simulate`.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use synclake::config::{File, Unusable};
use synclake::simulate::{Produced, SimulateOptions, Truth};
use synclake::{simulate, terminal};

use crate::args::{AwsArgs, SimulateArgs};
use crate::output::mib;
use crate::settings::aws_settings;

fn wire_options(args: &SimulateArgs) -> Result<simulate::wire::WireOptions> {
    if args.aggregates > 0.0 && args.to.is_none() {
        let message = "--aggregates makes binary records, which NDJSON cannot hold: name a stream with --to";
        return Err(Unusable(message.to_owned()).into());
    }
    let payloads = match (args.oversize > 0.0, &args.payload_folder, &args.payload_url) {
        (false, None, None) => None,
        (true, Some(folder), Some(url)) => {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            Some(simulate::wire::Payloads { share: args.oversize, folder: folder.clone(), url: url.clone() })
        }
        _ => {
            let message = "--oversize, --payload-folder and --payload-url go together: give all three or none";
            return Err(Unusable(message.to_owned()).into());
        }
    };
    Ok(simulate::wire::WireOptions { aggregates: args.aggregates, poison: args.poison, payloads })
}

/// Runs the command.
pub(crate) async fn run(args: SimulateArgs, file: &File) -> Result<()> {
    let wire = wire_options(&args)?;
    let options = SimulateOptions {
        seed: args.seed,
        events: args.events,
        pools: args.pools,
        identities: args.identities,
        days: args.days,
        start: args.start,
        duplicates: args.duplicates,
        reorder: args.reorder,
        late: args.late,
        dataset_removals: args.dataset_removals,
        bulk_copies: args.bulk_copies,
        value_chars: args.value_chars as usize,
        wire,
    };
    let bar = terminal::progress(Some(args.events), "{bar:30} {pos}/{len} events {eta}");
    let simulated = match &args.to {
        Some(to) => Some(publish(options, to, args.aws, file, &bar).await?),
        None => write_events(&options, args.out.as_deref(), &bar)?,
    };
    let Some((produced, truth)) = simulated else { return Ok(()) };
    bar.finish_and_clear();
    if let Some(path) = &args.oracle {
        let shown = path.display();
        let file = std::fs::File::create(path).with_context(|| format!("create {shown}"))?;
        truth.write(&mut std::io::BufWriter::new(file)).with_context(|| format!("write {shown}"))?;
    }
    terminal::print_message(&format!(
        "{} events ({}) with {} changes; {} keys are live at the end",
        produced.events,
        mib(produced.bytes),
        produced.changes,
        produced.live_keys
    ));
    Ok(())
}

/// Simulates a stream and puts its records into the Kinesis stream that `to` names.
async fn publish(
    options: SimulateOptions,
    to: &str,
    aws: AwsArgs,
    file: &File,
    bar: &ProgressBar,
) -> Result<(Produced, Truth)> {
    let stream = to.strip_prefix("kinesis:").filter(|s| !s.is_empty());
    let stream = stream.ok_or_else(|| Unusable(format!("--to {to:?} is not kinesis:<stream>")))?;
    let aws = aws_settings(aws, file).await?;
    aws.check_region().await.map_err(Unusable)?;
    let (events, mut received) = tokio::sync::mpsc::channel::<(String, Vec<u8>)>(1_000);
    let maker = tokio::task::spawn_blocking(move || {
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        simulate::run(&options, |key, data| events.blocking_send((key.to_owned(), data)).map_err(gone))
    });
    let mut publisher = simulate::publish::Publisher::new(&aws, stream).await;
    while let Some((key, data)) = received.recv().await {
        bar.inc(1);
        publisher.put(&key, data).await?;
    }
    publisher.flush().await?;
    maker.await.context("simulate")?.context("simulate")
}

/// Simulates a stream and writes its records as lines to a file, or to standard output. Returns `None` if the reader of
/// standard output has left.
fn write_events(options: &SimulateOptions, out: Option<&str>, bar: &ProgressBar) -> Result<Option<(Produced, Truth)>> {
    if out.is_none() && std::io::stdout().is_terminal() {
        let text = "events would fill this terminal; add --out FILE, or --out - to see them here";
        return Err(Unusable(text.to_owned()).into());
    }
    let path = out.unwrap_or("-");
    let out: Box<dyn Write + Send> = match path {
        "-" => Box::new(std::io::stdout()),
        path => Box::new(std::fs::File::create(path).with_context(|| format!("create {path}"))?),
    };
    let mut out = std::io::BufWriter::with_capacity(1 << 20, out);
    let written = simulate::run(options, |_, data| {
        bar.inc(1);
        out.write_all(&data)?;
        out.write_all(b"\n")
    });
    match written.and_then(|done| out.flush().map(|()| done)) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(None),
        done => done.map(Some).with_context(|| format!("write {path}")),
    }
}
