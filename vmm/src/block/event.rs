// SPDX-License-Identifier: Apache-2.0
//! What happens on a block queue, counted instead of logged.

use std::sync::atomic::{AtomicU64, Ordering};

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A read was done.
    Read,
    /// A write was done.
    Written,
    /// A flush was done.
    Flushed,
    /// A discard or write-zeroes was done.
    Freed,
    /// The guest asked for something impossible; it got an error status.
    Refused,
    /// The overlay's cap was reached; the guest got an error status.
    Full,
    /// The host failed; the guest got an error status.
    Failed,
    /// The guest broke a rule of the queue; it is latched.
    Fault,
    /// The thread was woken by a kick.
    Woken,
}

const EVENTS: usize = 9;

/// How often each [`Event`] happened; shared between the worker and whoever reports.
#[derive(Debug, Default)]
pub struct Counters {
    counts: [AtomicU64; EVENTS],
}

impl Counters {
    /// Counts `event`.
    pub fn count(&self, event: Event) {
        if let Some(count) = self.counts.get(event as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often `event` happened.
    #[must_use]
    pub fn get(&self, event: Event) -> u64 {
        self.counts.get(event as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

const _: () = assert!(Event::Woken as usize + 1 == EVENTS);
