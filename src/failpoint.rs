//! Places where a test may kill, stop or terminate the program: one before and one after each durable step.
//!
//! Only the feature `failpoints` compiles them in, and no release has it. `FAILPOINTS` defines the actions, in the
//! language of the crate `fail`: `commit/after=3*off->1*return(kill)`.

/// Names of all failpoints; a test kills the program at each of them.
pub const NAMES: &[&str] = &[
    "read/after",
    "decode/after",
    "file/before",
    "file/staged",
    "file/after",
    "quarantine/before",
    "quarantine/after",
    "commit/before",
    "commit/after",
    "fence/before",
    "fence/after",
    "gap/before",
    "gap/after",
    "checkpoint/before",
    "checkpoint/after",
    "sweep/before",
    "sweep/after",
    "lease/create",
    "lease/take/before",
    "lease/take/after",
    "lease/renew/before",
    "lease/renew/after",
    "lease/give_back/before",
    "lease/give_back/after",
    "redrive/apart/before",
    "redrive/apart/after",
    "redrive/move/before",
    "redrive/move/after",
    "redrive/done",
    "refresh/before",
    "refresh/after",
    "consumer/written",
    "extract/planned",
    "extract/committed",
    "compact/written",
    "compact/before",
    "compact/after",
    "expire/before",
    "expire/after",
    "vacuum/batch",
    "vacuum/commit",
    "manifest/written",
    "manifest/record",
    "upload/completed",
];

/// Performs the test's action here; does nothing in a release.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn hit(_name: &str) {}

/// Performs the test's action here.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    debug_assert!(NAMES.contains(&name), "{name}");
    fail::fail_point!(name, |action| act(action.as_deref()));
}

/// Returns whether a test wants this step refused, as by a store whose credentials do not allow it; always `false` in a
/// release.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn refuses(_name: &str) -> bool {
    false
}

/// Returns whether a test wants this step refused: `FAILPOINTS=store/delete=return`, or `upload/complete=2*off->1*return` for
/// the third of them.
#[cfg(feature = "failpoints")]
pub fn refuses(name: &str) -> bool {
    fail::fail_point!(name, |_| true);
    false
}

/// Returns by how many seconds a test wants the clock of the store to be ahead; always 0 in a release.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn seconds_ahead() -> i64 {
    0
}

/// Returns by how many seconds a test wants the clock of the store to be ahead: `FAILPOINTS=store/clock=return(86400)`.
#[cfg(feature = "failpoints")]
pub fn seconds_ahead() -> i64 {
    fail::fail_point!("store/clock", |text| text.and_then(|text| text.parse().ok()).unwrap_or(0));
    0
}

/// Returns whether a test wants these bytes refused, as by a decoder that cannot decode them yet; always `false` in a
/// release.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn poisons(_bytes: &[u8]) -> bool {
    false
}

/// Returns whether a test wants these bytes refused: `FAILPOINTS=poison=return(text)` refuses bytes that contain that
/// text.
#[cfg(feature = "failpoints")]
pub fn poisons(bytes: &[u8]) -> bool {
    fail::fail_point!("poison", |text| {
        text.is_some_and(|text| bytes.windows(text.len().max(1)).any(|window| window == text.as_bytes()))
    });
    false
}

#[cfg(feature = "failpoints")]
fn act(action: Option<&str>) {
    let signal = match action {
        Some("terminate") => "-TERM",
        Some("stop") => "-STOP",
        _ => "-KILL",
    };
    // The shell's `kill` is used, because the system call needs unsafe code.
    let _ = std::process::Command::new("kill").args([signal, &std::process::id().to_string()]).status();
}

/// Reads `FAILPOINTS`. Keep the result for as long as the program runs.
#[cfg(feature = "failpoints")]
pub fn setup() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}

/// Does nothing in a release.
#[cfg(not(feature = "failpoints"))]
pub fn setup() {}
