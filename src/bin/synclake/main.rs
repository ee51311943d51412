//! `synclake`: parses the command line, checks it and runs one command. Called as `synclake-query`, it runs SQL.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use synclake::config::File;
use synclake::{cpu, terminal, timeouts};

mod args;
mod beside;
mod bulk_publish;
mod care;
mod catalog;
#[cfg(test)]
mod configuration;
mod doctor;
mod extract;
mod iam_policy;
mod ingest;
mod manifest;
mod output;
mod policy;
mod query;
mod settings;
mod simulate;
mod status;
mod stream;
mod streams;
mod upkeep;
mod vacuum;

use args::{Cli, Command};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let _failpoints = synclake::failpoint::setup();
    if std::env::args_os().next().is_some_and(|name| Path::new(&name).file_name() == Some("synclake-query".as_ref())) {
        return query::main();
    }
    let (cli, _): (Cli, _) = terminal::parse();
    terminal::QUIET.store(cli.quiet, Ordering::Relaxed);
    terminal::init_logs(if cli.quiet { "error" } else { "warn" });
    let done = run_on_large_stack(cli);
    done.map_or_else(|error| terminal::fail(&error), |()| ExitCode::SUCCESS)
}

/// Stack size of each thread of the runtime.
const STACK_BYTES: usize = 16 << 20;

fn run_on_large_stack(cli: Cli) -> Result<()> {
    // The blocking threads run decoders and encoders, at most one per processor (`cpu.rs`). The Delta kernel also
    // blocks them until its reads are done. Those reads run elsewhere (`lake/request_runtime.rs`), so no number of
    // threads is too small; more threads only hold more idle memory.
    let blocking = (4 * cpu::processors()).max(8);
    terminal::check_address_space(((cpu::processors() + blocking) * STACK_BYTES + (512 << 20)) as u64)?;
    terminal::check_threads()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .max_blocking_threads(blocking)
        .build()
        .context("start the runtime")?;
    // A reader that still waits for standard input must not keep a finished run alive.
    let patience = match cli.command {
        Command::Ingest(_) => Duration::from_millis(100),
        _ => timeouts::SHUTDOWN_TIMEOUT,
    };
    let result = runtime.block_on(run(cli));
    runtime.shutdown_timeout(patience);
    result
}

async fn run(cli: Cli) -> Result<()> {
    let file = File::load(cli.config.as_deref())?;
    match cli.command {
        Command::Ingest(args) => ingest::run(*args, &file).await,
        Command::Extract(args) => extract::run(args, &file).await,
        Command::Deliver(args) => extract::deliver(args, &file).await,
        Command::Simulate(args) => simulate::run(args, &file).await,
        Command::Status(args) => status::run(args, &file).await,
        Command::Verify(args) => upkeep::verify(args, &file).await,
        Command::Redrive(args) => upkeep::redrive(args, &file).await,
        Command::Refresh(args) => upkeep::refresh(args, &file).await,
        Command::Compact(args) => upkeep::compact(args, &file).await,
        Command::Vacuum(args) => vacuum::run(args, &file).await,
        Command::Care(args) => care::run(args, &file).await,
        Command::Policy(args) => policy::run(args, &file).await,
        Command::Manifest(args) => manifest::run(args, &file).await,
        Command::Stream(command) => stream::run(command, &file).await,
        Command::BulkPublish(command) => bulk_publish::run(command, &file).await,
        Command::Catalog(command) => catalog::run(command, &file).await,
        Command::Doctor(args) => doctor::run(args, &file).await,
        Command::IamPolicy(args) => iam_policy::run(args, &file),
        Command::Health(args) => doctor::health(args, &file).await,
        Command::Ddl(args) => upkeep::ddl(&args, &file).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The keys that the settings file may have, from the error about another one.
    fn keys() -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("synclake.toml");
        std::fs::write(&path, "no_such_key = 1").unwrap();
        let error = File::load(Some(&path)).unwrap_err().to_string();
        let (_, expected) = error.split_once("expected one of ").unwrap();
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn flags_are_documented() {
        configuration::compare("synclake", Cli::command(), &keys());
        let keys = configuration::SHARED_KEYS.map(str::to_owned);
        configuration::compare("synclake-query", query::Cli::command(), &keys);
    }
}
