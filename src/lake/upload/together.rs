//! Objects of one result, which readers take when its last object is there: an empty one, whose name they look for.
//!
//! **Invariant: if the last object is not there, none of the others stays.** A task of its own completes the uploads, so
//! that it ends in order if nobody waits any more. Until the last object is there, each of the others is registered as an
//! unfinished upload, and [`abort_all`](super::abort_all) deletes it. No object is deleted while it is completed, or
//! while the last object is put.

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::super::request_runtime::spawned;
use super::{ABORTS, Open, Upload, registry};
use crate::failpoint;
use crate::lake::{LakeError, Store};

/// Uploads that are completed at a time.
const COMPLETIONS: usize = 8;

/// Why a result is not there, or may not be there.
#[derive(Debug)]
pub(crate) struct Unpublished {
    pub source: LakeError,
    pub left: Left,
}

/// Objects that stay in the bucket although the result could not be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// The number of objects that could not be deleted. The last object is not there.
    Objects(usize),
    /// All objects. The put of the last one failed, and so did its deletion, so it may be there.
    Unknown,
}

/// Completes uploads, and puts an empty object `last` after all of them. If that fails, the objects are deleted. If the
/// returned future is dropped, the result is withdrawn too, unless `last` is on its way.
///
/// # Errors
/// The store failed after its own retries, or the program ends.
pub(crate) async fn publish(store: &Store, uploads: Vec<Upload>, last: &str) -> Result<(), Unpublished> {
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let objects: Vec<Open> = uploads.iter().map(|upload| upload.open.clone()).collect();
    let (owned, of_last) = (store.clone(), last.to_owned());
    let published = spawned(async move { published(&owned, uploads, &of_last, &stop).await });
    match published.await {
        Ok(published) => published,
        Err(source) => {
            let left = Left::Objects(withdrawn(objects).await);
            let source = object_store::Error::JoinError { source };
            Err(Unpublished { source: LakeError::storage("write", store, last, source), left })
        }
    }
}

async fn published(
    store: &Store,
    uploads: Vec<Upload>,
    last: &str,
    stop: &CancellationToken,
) -> Result<(), Unpublished> {
    let completions = uploads.into_iter().map(|upload| upload.complete_among(stop));
    // All of them run to their end, so that it is known which objects may be there.
    let ended: Vec<_> = futures::stream::iter(completions).buffer_unordered(COMPLETIONS).collect().await;
    let (mut objects, mut completed) = (Vec::new(), Ok(()));
    for (object, result) in ended {
        objects.push(object);
        completed = completed.and(result);
    }
    let source = match completed {
        Ok(()) => {
            let idle = all_idle(&objects).await;
            let sealed = sealed(store, last, stop).await;
            if !matches!(sealed, Err(Unsealed::Absent(_))) {
                forget(&objects);
            }
            drop(idle);
            match sealed {
                Ok(()) => return Ok(()),
                Err(Unsealed::Unknown(source)) => return Err(Unpublished { source, left: Left::Unknown }),
                Err(Unsealed::Absent(source)) => source,
            }
        }
        Err(source) => source,
    };
    Err(Unpublished { source, left: Left::Objects(withdrawn(objects).await) })
}

/// Why the last object was not put.
enum Unsealed {
    /// It is not there.
    Absent(LakeError),
    /// It may be there.
    Unknown(LakeError),
}

/// Puts the last object.
async fn sealed(store: &Store, last: &str, stop: &CancellationToken) -> Result<(), Unsealed> {
    if is_stopped(stop) {
        return Err(Unsealed::Absent(LakeError::storage("write", store, last, super::ending())));
    }
    let Err(error) = store.put(last, Bytes::new()).await else { return Ok(()) };
    // A put whose answer was lost has written the object.
    match store.delete(last).await {
        Ok(()) => Err(Unsealed::Absent(error)),
        Err(_) => Err(Unsealed::Unknown(error)),
    }
}

fn is_stopped(stop: &CancellationToken) -> bool {
    stop.is_cancelled() || registry().is_ending
}

async fn all_idle(objects: &[Open]) -> Vec<OwnedMutexGuard<()>> {
    let mut idle = Vec::with_capacity(objects.len());
    for object in objects {
        idle.push(object.busy.clone().lock_owned().await);
    }
    idle
}

/// Deletes the objects. Returns how many may be left; the caller answers for these from now on.
async fn withdrawn(objects: Vec<Open>) -> usize {
    let aborts = objects.iter().cloned().map(Open::abort);
    let gone: Vec<bool> = futures::stream::iter(aborts).buffer_unordered(ABORTS).collect().await;
    // A later result may have objects of the same names, which no abort may delete.
    forget(&objects);
    gone.into_iter().filter(|is_gone| !is_gone).count()
}

fn forget(objects: &[Open]) {
    let mut registry = registry();
    for object in objects {
        registry.open.remove(&object.id);
    }
}

impl Upload {
    /// Makes the object appear, and keeps it registered as one that an abort deletes.
    async fn complete_among(mut self, stop: &CancellationToken) -> (Open, Result<(), LakeError>) {
        let open = self.open.clone();
        let completed = async {
            self.finish().await?;
            let _busy = open.busy.lock().await;
            if is_stopped(stop) {
                return Err(self.failed(super::ending()));
            }
            // Also a completion that fails may have made the object appear.
            open.set_visible();
            self.complete_parts().await
        };
        let completed = completed.await;
        failpoint::hit("upload/completed");
        // From here on, the caller answers for the object.
        self.is_ended = true;
        (open, completed)
    }
}
