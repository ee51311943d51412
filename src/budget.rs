//! The one byte budget for everything that is buffered, from the bytes that a read may bring to the rows that wait for a
//! file.
//!
//! **Invariant: no deadlock.** One reservation takes at most a quarter of the budget, and the buffers begin to empty at
//! half of it; so whatever is on its way always arrives, and whatever has arrived can always be written.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits stand for this many bytes each.
const UNIT: usize = 1024;

/// A shared budget.
#[derive(Debug, Clone)]
pub struct Budget {
    permits: Arc<Semaphore>,
    bytes: usize,
}

/// A part of the budget; gives itself back when dropped.
#[derive(Debug)]
pub struct Reservation {
    permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// A budget of that many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(bytes / UNIT)), bytes }
    }

    /// The whole budget.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that are reserved now.
    pub fn used(&self) -> usize {
        self.bytes.saturating_sub(self.permits.available_permits() * UNIT)
    }

    /// Waits until `bytes` (at most a quarter of the budget) are free, and takes them.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        let units = bytes.min(self.bytes / 4).div_ceil(UNIT).max(1);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        Reservation { permit: self.permits.clone().acquire_many_owned(units).await.ok() }
    }
}

impl Reservation {
    /// Bytes that are reserved.
    pub fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, |p| p.num_permits() * UNIT)
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.permit {
            let surplus = permit.num_permits().saturating_sub(bytes.div_ceil(UNIT));
            drop(permit.split(surplus));
        }
    }

    /// Takes a part of `bytes` out of this one, as far as it goes.
    pub fn split(&mut self, bytes: usize) -> Self {
        let units = bytes.div_ceil(UNIT);
        Self { permit: self.permit.as_mut().and_then(|permit| permit.split(units.min(permit.num_permits()))) }
    }

    /// Adds another reservation to this one.
    pub fn merge(&mut self, other: Reservation) {
        match (&mut self.permit, other.permit) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine @ None, theirs) => *mine = theirs,
            (Some(_), None) => {}
        }
    }

    /// A reservation of nothing.
    pub fn none() -> Self {
        Self { permit: None }
    }
}
