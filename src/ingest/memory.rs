//! The memory of a process, for one ingest or several.

use super::{IngestError, IngestOptions};
use crate::budget::Budget;
use crate::payload::Payloads;

/// The memory of a process, which all its ingests share.
///
/// **Invariant: no ingest waits for the buffers of another.** Together the buffers of all ingests stay below half of the
/// budget, as the partition buffers of one ingest do alone: each has an equal part of that half. The rest is for reads, of
/// whichever ingest.
#[derive(Debug, Clone)]
pub struct SharedMemory {
    pub(super) budget: Budget,
    pub(super) payloads: Payloads,
    ingests: usize,
}

impl SharedMemory {
    /// Creates the memory for a number of ingests with the same options.
    ///
    /// # Errors
    /// The client of the payloads cannot be created.
    pub fn new(options: &IngestOptions, ingests: usize) -> Result<Self, IngestError> {
        let payloads = Payloads::new(options.payloads.clone()).map_err(IngestError::Payloads)?;
        Ok(Self { budget: Budget::new(options.memory_bytes), payloads, ingests: ingests.max(1) })
    }

    /// Returns the part of an ingest, in bytes.
    pub(super) fn part(&self) -> usize {
        self.budget.bytes() / self.ingests
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::payload::PayloadOptions;

    #[test]
    fn parts_of_the_memory_add_up() {
        let options = IngestOptions {
            memory_bytes: 1 << 30,
            flush_bytes: 1,
            flush_interval: Duration::from_secs(1),
            payloads: PayloadOptions::default(),
        };
        for ingests in 1..=16 {
            let memory = SharedMemory::new(&options, ingests).unwrap();
            let mark_bytes = options.limits(memory.part() / 2).mark_bytes;
            assert!(mark_bytes * ingests <= memory.budget.bytes() / 2, "{ingests}");
        }
    }
}
