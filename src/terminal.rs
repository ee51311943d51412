//! The terminal side of both programs: logs, exit codes, signals, progress.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::causes::causes;
use crate::text::{escaped, joined, plain};

/// Parses the arguments of a program, or ends it with help or a usage error. An empty environment variable counts as
/// not set.
pub fn parse<C: CommandFactory + FromArgMatches>() -> (C, ArgMatches) {
    let matches = without_empty(C::command()).try_get_matches().unwrap_or_else(|error| match error.kind() {
        ErrorKind::InvalidUtf8 => {
            print_error(&not_utf8());
            std::process::exit(2);
        }
        _ => error.exit(),
    });
    let parsed = C::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    (parsed, matches)
}

/// Names the arguments and variables that are not UTF-8.
fn not_utf8() -> String {
    let args = std::env::args_os().filter(|arg| arg.to_str().is_none()).map(|arg| format!("{arg:?}"));
    let is_ours = |(name, value): &(OsString, OsString)| {
        name.to_str().is_some_and(|name| name.starts_with("SYNCLAKE_")) && value.to_str().is_none()
    };
    let variables = std::env::vars_os().filter(is_ours);
    let variables = variables.map(|(name, value)| format!("{}={value:?}", name.display()));
    let named: Vec<String> = args.chain(variables).collect();
    format!(
        "not UTF-8: {}; rename the file or folder, or reach it through a symbolic link with a UTF-8 name",
        named.join(", ")
    )
}

fn without_empty(command: Command) -> Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(without_empty)
}

/// Sends logs to stderr: text on a terminal, JSON otherwise. `SYNCLAKE_LOG` filters like `RUST_LOG`. A level alone
/// applies to synclake's own lines only, because libraries dump whole requests at `info`.
pub fn init_logs(default: &str) {
    // Libraries log errors that they also return. Each error is logged once, where it is handled.
    let quiet = [
        "deltalake_core",
        "delta_kernel",
        "buoyant_kernel",
        "buoyant_kernel_engine",
        "delta_kernel_default_engine",
        "aws_config",
    ];
    let asked = std::env::var("SYNCLAKE_LOG").ok().filter(|asked| !asked.is_empty());
    let asked = asked.map(|asked| match asked.parse::<tracing::Level>() {
        Ok(level) => format!("warn,synclake={level}"),
        Err(_) => asked,
    });
    let filter =
        |from: &str| EnvFilter::try_new(quiet.iter().map(|name| format!("{name}=off,")).collect::<String>() + from);
    let filter = asked.and_then(|asked| filter(&asked).ok()).or_else(|| filter(default).ok()).unwrap_or_default();
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Redacted).with_target(false);
    if std::io::stderr().is_terminal() {
        logs.with_ansi(std::env::var_os("NO_COLOR").is_none()).init();
    } else {
        logs.json().init();
    }
}

/// The writer that every log line passes through. It removes the queries of presigned URLs, whatever library logged
/// them.
#[derive(Debug, Clone, Copy)]
struct Redacted;

impl<'a> MakeWriter<'a> for Redacted {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Redacted {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let clean = crate::redact::redact(&String::from_utf8_lossy(line));
        std::io::stderr().write_all(escaped_log(&clean).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Escapes every character of a log line that could steer a terminal, except the colours that the formatter adds.
fn escaped_log(line: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(line.len()), line);
    while let Some(c) = rest.chars().next() {
        let colour = rest.strip_prefix("\x1b[").and_then(|code| {
            let end = code.find(|c: char| !c.is_ascii_digit() && c != ';')?;
            code[end..].starts_with('m').then_some(end + "\x1b[m".len())
        });
        let taken = colour.unwrap_or(c.len_utf8());
        match colour {
            Some(_) => out.push_str(&rest[..taken]),
            None => out.push_str(&escaped(&rest[..taken], "\n")),
        }
        rest = &rest[taken..];
    }
    out
}

/// Formats an error and its causes on one line, and skips a cause that the text already contains.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for part in causes(error) {
        let part = joined(&part.to_string());
        // An error of a query repeats its cause without the words of the engine.
        if !text.contains(part.as_str()) && !text.contains(&plain(&part)) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
    }
    text
}

/// Writes a line to stderr. A standard error that is closed or full must not end the work.
pub fn write_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints an error to stderr, on one line and without characters that could steer a terminal.
pub fn print_error(error: &str) {
    write_line(&format!("error: {}", escaped(&crate::redact::redact(error), "")));
}

/// Prints an error and its causes on one line, and returns its exit code: 2 for usage, 1 for the rest.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    let whole: &(dyn std::error::Error + 'static) = error.as_ref();
    // A known cause comes first, then the operation that failed, without the layers that passed the error on.
    match crate::lake::fault::sentence(whole) {
        None => print_error(&chain(whole)),
        Some(cause) => {
            let doing = joined(&whole.to_string());
            print_error(&if doing.contains(&cause) { cause } else { format!("{cause} ({doing})") });
        }
    }
    let usage = error.chain().any(|e| e.is::<crate::config::Unusable>());
    ExitCode::from(if usage { 2 } else { 1 })
}

/// Threads that every command needs beside the runtime's workers: two read, one decodes, one writes.
const THREADS_MIN: usize = 4;

/// Checks that the system allows the threads that a run needs. With fewer threads, the runtime waits forever, without a
/// message, for threads that it cannot start.
///
/// # Errors
/// Fails if the system does not allow them.
pub fn check_threads() -> anyhow::Result<()> {
    let count = std::thread::available_parallelism().map_or(2, usize::from) + THREADS_MIN;
    let start = |_| std::thread::Builder::new().stack_size(64 << 10).spawn(std::thread::park);
    let mut threads = Vec::new();
    let mut failed = None;
    for thread in (0..count).map(start) {
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => failed = Some(error),
        }
    }
    for thread in threads {
        thread.thread().unpark();
        // A parked thread cannot panic.
        let _ = thread.join();
    }
    failed.map_or(Ok(()), |error| {
        let limit = "raise their limit (ulimit -u, or pids.max of the container)";
        Err(anyhow::Error::from(error).context(format!("cannot start {count} threads; {limit}")))
    })
}

/// Refuses to start if the address space is limited (`ulimit -v`) to less than the program sets aside, most of which is
/// never used. A failed thread or allocation would end the program without a message, or leave it waiting forever.
///
/// # Errors
/// Returns one line that says how much is needed.
pub fn check_address_space(needed: u64) -> anyhow::Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space")?.split_whitespace().next());
    if let Some(limit) = limit.and_then(|limit| limit.parse::<u64>().ok()).filter(|limit| *limit < needed) {
        let (limit, needed) = (limit >> 20, needed.div_ceil(1 << 20));
        anyhow::bail!(
            "the address space is limited to {limit} MiB, and {needed} MiB are set aside at the start; raise `ulimit -v`, \
             and limit memory by --memory or a container"
        );
    }
    Ok(())
}

/// The receiver of signals. A signal by itself never ends the program.
///
/// A signal may come between two callbacks, so it is kept: every callback that is set before [`Interrupts::forget`] gets it.
#[derive(Clone, Default)]
pub struct Interrupts(Arc<Mutex<Received>>);

#[derive(Default)]
struct Received {
    callback: Option<SignalCallback>,
    /// The last signal.
    kept: Option<i32>,
}

/// A callback that gets the number of the signal.
type SignalCallback = Box<dyn Fn(i32) + Send>;

impl Interrupts {
    /// Takes over these signals for good, and returns once that is done.
    ///
    /// # Errors
    /// Fails if the system refuses the handler or the thread.
    pub fn install(kinds: &'static [SignalKind]) -> std::io::Result<Self> {
        let (waiting, (ready, is_ready)) = (Self::default(), std::sync::mpsc::channel());
        let heard = waiting.clone();
        // A separate thread, because the runtime of a query may have no free thread to listen.
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let listened: std::io::Result<()> = runtime.and_then(|runtime| {
                runtime.block_on(async {
                    let signals = kinds.iter().map(|kind| signal(*kind));
                    let mut signals = signals.collect::<std::io::Result<Vec<_>>>()?;
                    // The receiver reads one message only, so a failed send does not matter.
                    let _ = ready.send(Ok(()));
                    loop {
                        let came = std::future::poll_fn(|context| {
                            let came = signals.iter_mut().position(|signal| signal.poll_recv(context).is_ready());
                            came.map_or(Poll::Pending, Poll::Ready)
                        });
                        let kind = kinds[came.await];
                        heard.receive(kind.as_raw_value());
                    }
                })
            });
            if let Err(error) = listened {
                let _ = ready.send(Err(error));
            }
        })?;
        is_ready.recv().unwrap_or_else(|_| Err(std::io::Error::other("the thread for signals ended")))?;
        Ok(waiting)
    }

    /// Returns whether a callback is set.
    #[cfg(test)]
    pub(crate) fn is_set(&self) -> bool {
        self.lock().callback.is_some()
    }

    /// Passes a signal to the callback, and keeps it for the next.
    pub(crate) fn receive(&self, signal: i32) {
        let mut received = self.lock();
        received.kept = Some(signal);
        if let Some(callback) = &received.callback {
            callback(signal);
        }
    }

    /// Sets the callback for signals, or none. A kept signal goes to the callback at once.
    pub fn set(&self, callback: Option<SignalCallback>) {
        let mut received = self.lock();
        if let (Some(callback), Some(signal)) = (&callback, received.kept) {
            callback(signal);
        }
        received.callback = callback;
    }

    /// Forgets the signals so far: they meant work that is over.
    pub fn forget(&self) {
        self.lock().kept = None;
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Signals this close together count as one. A shell sends them to its whole group, and a wrapper passes its own on.
const SAME_WISH: Duration = Duration::from_secs(1);

/// Returns a token that SIGTERM or SIGINT cancels. A later second signal ends the process at once: every step is safe
/// against that, and records that were not committed are read again.
///
/// # Errors
/// Fails if the system refuses the handlers.
pub fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let first = Arc::new(OnceLock::new());
    for (kind, code) in [(SignalKind::terminate(), 143), (SignalKind::interrupt(), 130)] {
        let mut signals = signal(kind)?;
        let (stop, first) = (stop.clone(), first.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let now = Instant::now();
                if now.saturating_duration_since(*first.get_or_init(|| now)) >= SAME_WISH {
                    print_error(
                        "stopped by a second signal; run the same command again: it goes on from the last commit",
                    );
                    std::process::exit(code);
                }
                stop.cancel();
            }
        });
    }
    Ok(stop)
}

/// Returns a progress bar on stderr if that is a terminal, else a hidden one.
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

/// Whether the user asked for no output except errors.
pub static QUIET: AtomicBool = AtomicBool::new(false);

/// Prints a message to stderr, unless [`QUIET`] is set.
pub fn print_message(line: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        write_line(&escaped(line, "\n"));
    }
}
