//! Delivers events as streams do: twice, late and out of order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::SimulateOptions;

/// An event in flight.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    pub partition_key: String,
    pub json: String,
    pub changes: u64,
}

/// A queue of events, ordered by the step of their delivery.
pub(super) struct Delivery {
    waiting: BinaryHeap<Reverse<(u64, u64, Event)>>,
    accepted: u64,
    duplicates: f64,
    reorder: u64,
    late: f64,
    late_steps: u64,
}

impl Delivery {
    pub(super) fn new(options: &SimulateOptions) -> Self {
        Self {
            waiting: BinaryHeap::new(),
            accepted: 0,
            duplicates: options.duplicates,
            reorder: options.reorder,
            late: options.late,
            late_steps: (options.events / 20).max(1),
        }
    }

    pub(super) fn accept(&mut self, event: Event, step: u64, rng: &mut ChaCha8Rng) {
        if rng.random_bool(self.duplicates) {
            let again = step + rng.random_range(0..=self.reorder + 1_000);
            self.push(again, event.clone());
        }
        let late = if rng.random_bool(self.late) { rng.random_range(0..self.late_steps) } else { 0 };
        self.push(step + rng.random_range(0..=self.reorder) + late, event);
    }

    fn push(&mut self, at: u64, event: Event) {
        self.accepted += 1;
        self.waiting.push(Reverse((at, self.accepted, event)));
    }

    pub(super) fn due(&mut self, step: u64) -> Option<Event> {
        let Reverse((at, ..)) = self.waiting.peek()?;
        if *at > step {
            return None;
        }
        self.waiting.pop().map(|Reverse((_, _, event))| event)
    }
}
