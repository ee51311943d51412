//! The one byte budget for everything that is buffered: from the bytes of a coming read to the rows that wait for a
//! file.
//!
//! **Invariant: no deadlock.** One reservation takes at most a quarter of the budget. The buffers are written from half
//! of it on, and return their part when their files are stored. So a read always gets its memory in the end, and rows
//! that have arrived can always be written.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per permit.
const UNIT: usize = 1024;

/// Most permits of one reservation, because a semaphore gives out at most `u32::MAX` at a time. They stand for 4 TiB,
/// far more than any read brings, so a reservation may saturate.
const UNITS_MAX: usize = u32::MAX as usize;

/// A shared budget.
#[derive(Debug, Clone)]
pub struct Budget {
    permits: Arc<Semaphore>,
    bytes: usize,
}

/// A part of the budget, which returns to the budget on drop.
#[derive(Debug)]
pub struct Reservation {
    permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// Creates a budget of that many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(bytes / UNIT)), bytes }
    }

    /// Returns the bytes of the whole budget.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes that are reserved now.
    pub fn used(&self) -> usize {
        self.bytes.saturating_sub(self.permits.available_permits() * UNIT)
    }

    /// Waits until `bytes` (at most a quarter of the budget) are free, and reserves them.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        let units = bytes.min(self.bytes / 4).div_ceil(UNIT).clamp(1, UNITS_MAX) as u32;
        // The semaphore is never closed.
        Reservation { permit: self.permits.clone().acquire_many_owned(units).await.ok() }
    }
}

impl Reservation {
    /// Returns the reserved bytes.
    pub fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, |p| p.num_permits() * UNIT)
    }

    /// Returns all but `bytes` to the budget.
    pub fn shrink_to(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.permit {
            let surplus = permit.num_permits().saturating_sub(bytes.div_ceil(UNIT));
            drop(permit.split(surplus));
        }
    }

    /// Splits `bytes` off this reservation, or all of it if it is smaller.
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

    /// Returns an empty reservation.
    pub fn none() -> Self {
        Self { permit: None }
    }
}
