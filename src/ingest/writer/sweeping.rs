//! Sweeps the leftovers of crashed owners in the background. Nothing waits for a sweep or depends on it.
//!
//! A sweep lists the whole table, and a fleet that is resharded takes over many shards at once. So **one sweep runs at
//! a time**. Requests that arrive meanwhile wait for the next sweep. The pause between two sweeps is four times as long
//! as the last sweep took.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::failpoint;
use crate::ids::ShardKey;
use crate::lake::{Store, sweep};
use crate::schema::Table;

type Fences = BTreeMap<ShardKey, u64>;

/// The sweeper of one table.
#[derive(Debug)]
pub(super) struct Sweeper {
    table: Table,
    store: Store,
    waiting: Arc<Mutex<Fences>>,
    hurry: Arc<Notify>,
    running: Option<JoinHandle<()>>,
}

impl Sweeper {
    pub(super) fn new(lake: &Store, table: Table) -> Self {
        let store = table.store(lake);
        Self { table, store, waiting: Arc::default(), hurry: Arc::default(), running: None }
    }

    /// Requests a sweep of these shards, up to these epochs.
    pub(super) fn ask(&mut self, fences: Fences) {
        lock(&self.waiting).extend(fences);
        if self.running.as_ref().is_none_or(JoinHandle::is_finished) {
            self.running = Some(tokio::spawn(self.run().all()));
        }
    }

    /// Sweeps what is requested, without a pause.
    pub(super) async fn finish(&mut self) {
        self.hurry.notify_one();
        if let Some(running) = self.running.take() {
            // The task fails only by a panic, which has already been reported.
            let _ = running.await;
        }
        // Requests that arrived while the last sweep was ending.
        self.run().all().await;
    }

    fn run(&self) -> Run {
        Run { table: self.table, store: self.store.clone(), waiting: self.waiting.clone(), hurry: self.hurry.clone() }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

struct Run {
    table: Table,
    store: Store,
    waiting: Arc<Mutex<Fences>>,
    hurry: Arc<Notify>,
}

impl Run {
    async fn all(self) {
        loop {
            let fences = std::mem::take(&mut *lock(&self.waiting));
            if fences.is_empty() {
                return;
            }
            let began = Instant::now();
            failpoint::hit("sweep/before");
            match sweep::sweep(&self.store, &fences).await {
                Ok(0) => {}
                Ok(files) => tracing::info!(table = self.table.name(), files, "deleted files that no commit lists"),
                Err(error) => {
                    tracing::warn!(table = self.table.name(), error = %error, "cannot sweep; leftovers stay");
                }
            }
            failpoint::hit("sweep/after");
            if lock(&self.waiting).is_empty() {
                return;
            }
            tokio::select! {
                // A sweep lists whole folders, so sweeps take at most a fifth of the time.
                () = tokio::time::sleep(began.elapsed() * 4) => {}
                () = self.hurry.notified() => {}
            }
        }
    }
}

fn lock(fences: &Mutex<Fences>) -> std::sync::MutexGuard<'_, Fences> {
    fences.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::SeqCst;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::aws::AwsSettings;
    use crate::lake::Location;
    use crate::lake::store::tests::{Request, watched};

    fn fences(shard: &str) -> Fences {
        BTreeMap::from([(ShardKey::new("stream", shard).unwrap(), 1)])
    }

    /// Each sweep is one listing of the table. The first listing stays open while the second sweep is requested.
    #[tokio::test]
    async fn one_sweep_of_a_table_runs_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Store::create(&Location::Folder(folder.path().into()), &AwsSettings::default()).await.unwrap();
        let (gate, started) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
        let [running, most, all] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let before_request = {
            let (gate, started) = (gate.clone(), started.clone());
            let (running, most, all) = (running.clone(), most.clone(), all.clone());
            move |request| {
                if matches!(request, Request::Read(_)) {
                    return Box::pin(async {}) as futures::future::BoxFuture<'static, ()>;
                }
                all.fetch_add(1, SeqCst);
                most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                started.notify_one();
                let (gate, running) = (gate.clone(), running.clone());
                let opened = async move {
                    drop(gate.acquire().await.unwrap());
                    running.fetch_sub(1, SeqCst);
                };
                Box::pin(opened)
            }
        };
        let lake = watched(&lake, Box::new(before_request));
        let mut sweeper = Sweeper::new(&lake, Table::SyncRecords);
        sweeper.ask(fences("a"));
        started.notified().await;
        sweeper.ask(fences("b"));
        let open = async {
            // This runtime has one thread. It runs every task that is ready before it continues here.
            tokio::task::yield_now().await;
            gate.add_permits(1);
        };
        tokio::join!(sweeper.finish(), open);
        assert_eq!((most.load(SeqCst), all.load(SeqCst)), (1, 2), "most sweeps at a time, and all sweeps");
    }
}
