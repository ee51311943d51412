//! CPU-bound work. It runs outside of the async runtime, on at most as many threads at a time as there are processors.
//!
//! The threads of the runtime are for tasks that wait (requests, timers, leases). The pool for blocking calls has
//! threads to spare for file and name look-ups.

use std::panic::resume_unwind;
use std::sync::LazyLock;

use tokio::sync::Semaphore;
use tokio::task::JoinError;

static PROCESSORS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(processors()));

/// Returns the number of processors.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Runs `work` when a processor is free.
///
/// # Errors
/// Fails if `work` panics, or if the runtime shuts down.
pub async fn try_run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    // The semaphore is never closed.
    let permit = PROCESSORS.acquire().await.ok();
    let work = move || {
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work).await
}

/// Runs `work` like [`try_run`]; a panic continues in the caller.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match try_run(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // The runtime shuts down, so nobody waits for the result.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(flavor = "multi_thread")]
    async fn no_more_at_a_time_than_processors() {
        static NOW: AtomicUsize = AtomicUsize::new(0);
        let one = || {
            assert!(NOW.fetch_add(1, Ordering::SeqCst) < processors());
            std::thread::sleep(std::time::Duration::from_millis(2));
            NOW.fetch_sub(1, Ordering::SeqCst)
        };
        futures::future::join_all((0..8 * processors()).map(|_| run(one))).await;
        assert!(tokio::spawn(run(|| panic!("as told"))).await.unwrap_err().is_panic());
    }
}
