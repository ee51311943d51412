//! What both programs do at their ends: logs, exit codes, signals, progress.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Logs go to stderr: text on a terminal, JSON otherwise. `SYNCLAKE_LOG` filters, as `RUST_LOG` would.
pub fn init_logs(default_level: &str) {
    // Libraries log as errors what they also return as errors; we tell it once, where it is handled.
    let quiet =
        ["deltalake_core", "delta_kernel", "buoyant_kernel", "buoyant_kernel_engine", "delta_kernel_default_engine"];
    let default = quiet.iter().fold(default_level.to_owned(), |filter, name| format!("{filter},{name}=off"));
    let filter = EnvFilter::try_from_env("SYNCLAKE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Redacted).with_target(false);
    if std::io::stderr().is_terminal() {
        logs.with_ansi(std::env::var_os("NO_COLOR").is_none()).init();
    } else {
        logs.json().init();
    }
}

/// The one layer through which every log line passes: no presigned query gets by, whatever library wrote it.
#[derive(Debug, Clone, Copy)]
struct Redacted;

impl<'a> MakeWriter<'a> for Redacted {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl std::io::Write for Redacted {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let clean = crate::decode::redact(&String::from_utf8_lossy(line));
        std::io::stderr().write_all(clean.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// A message on one line. (DataFusion tells the context of an error on lines of its own.)
pub(crate) fn joined(text: &str) -> String {
    text.replace("\ncaused by\n", ": ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Tells an error on one line, as a chain, and gives its exit code: 2 for usage, 1 for the rest.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    let chain: Vec<String> = error.chain().map(|part| joined(&part.to_string())).collect();
    let mut text = String::new();
    for part in chain {
        // Some libraries repeat their source in their own message.
        if !text.contains(part.as_str()) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
    }
    eprintln!("error: {}", crate::decode::redact(&text));
    let usage = error.chain().any(|e| e.is::<crate::config::Unusable>());
    ExitCode::from(if usage { 2 } else { 1 })
}

/// A token that SIGTERM or SIGINT cancels. A second signal changes nothing: the run is ending as fast as it safely can.
///
/// # Errors
/// The system refuses the handlers.
pub fn stop_on_signals() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                stop.cancel();
            }
        });
    }
    Ok(stop)
}

/// A progress bar on stderr if that is a terminal; otherwise nothing.
pub fn progress(total: Option<u64>, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    if std::io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(100));
    }
    bar
}

/// Set once somebody asked for silence.
pub static QUIET: AtomicBool = AtomicBool::new(false);

/// Talk: to stderr, unless silence was asked for.
pub fn say(line: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        eprintln!("{line}");
    }
}
