//! Work that keeps a processor busy runs here: beside the loop, and on no more threads at a time than there are processors.
//!
//! The threads of the runtime belong to whatever waits (requests, timers, leases), and the pool for blocking calls has room
//! for file and name look-ups besides.

use std::panic::resume_unwind;
use std::sync::LazyLock;

use tokio::sync::Semaphore;
use tokio::task::JoinError;

static PROCESSORS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(processors()));

/// How many there are.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Runs `work` when a processor is free.
///
/// # Errors
/// It panicked, or the runtime is being shut down.
pub async fn try_run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    // Never closed.
    let permit = PROCESSORS.acquire().await.ok();
    let work = move || {
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work).await
}

/// As [`try_run`]; a panic goes on in whoever waits.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match try_run(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // Nobody waits any more.
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
