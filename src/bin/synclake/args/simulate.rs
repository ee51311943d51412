//! Flags of `simulate`.

use std::path::PathBuf;

use clap::Args;
use synclake::extract;

use super::AwsArgs;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake simulate --events 200000 --seed 7 --out events.ndjson --oracle truth.ndjson
  synclake simulate --events 1000 --to kinesis:cognito --endpoint-url http://127.0.0.1:4567")]
pub(crate) struct SimulateArgs {
    /// Number of synchronizations, not counting copies.
    #[arg(long, default_value_t = 10_000)]
    pub events: u64,
    /// Seed; the same seed and options generate the same stream.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of identity pools.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pools: u32,
    /// Number of identities.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub identities: u32,
    /// Number of days over which to spread the events.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// First day.
    #[arg(long, default_value = "2026-01-01", value_parser = extract::parse_date)]
    pub start: chrono::NaiveDate,
    /// Share of events that are delivered twice.
    #[arg(long, default_value_t = 0.05, value_parser = share)]
    pub duplicates: f64,
    /// Most later events that may overtake an event.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub reorder: u64,
    /// Share of events that arrive very late.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    pub late: f64,
    /// Share of events that remove a whole dataset.
    #[arg(long, default_value_t = 0.005, value_parser = share)]
    pub dataset_removals: f64,
    /// Share of events that are followed by a bulk-publish copy of a user's datasets.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    pub bulk_copies: f64,
    /// Typical length of a value, in characters.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub value_chars: u32,
    /// Share of records that are aggregates of the Kinesis Producer Library; needs --to.
    #[arg(long, default_value_t = 0.0, value_parser = share, help_heading = "Wire")]
    pub aggregates: f64,
    /// Share of records that are followed by a record that cannot be decoded.
    #[arg(long, default_value_t = 0.0, value_parser = share, help_heading = "Wire")]
    pub poison: f64,
    /// Share of events whose records are stored behind a URL; needs --payload-folder and --payload-url.
    #[arg(long, default_value_t = 0.0, value_parser = share, help_heading = "Wire")]
    pub oversize: f64,
    /// Write the files behind those URLs to this folder.
    #[arg(long, value_name = "FOLDER", help_heading = "Wire")]
    pub payload_folder: Option<PathBuf>,
    /// Prefix of those URLs: the address at which you serve the folder.
    #[arg(long, value_name = "URL", help_heading = "Wire")]
    pub payload_url: Option<String>,
    /// Write the stream to this file as NDJSON; - is standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    pub out: Option<String>,
    /// Write the stream to kinesis:<stream>.
    #[arg(long, value_name = "STREAM")]
    pub to: Option<String>,
    /// Write the true current state to this file as NDJSON.
    #[arg(long, value_name = "FILE")]
    pub oracle: Option<PathBuf>,
    #[command(flatten)]
    pub aws: AwsArgs,
}

fn share(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|v| (0.0..=1.0).contains(v));
    value.ok_or_else(|| format!("{text:?} is not a number between 0 and 1"))
}
