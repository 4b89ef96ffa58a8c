// SPDX-License-Identifier: Apache-2.0
//! A split virtqueue: when a chain is taken, when it is given back, and who is woken.
//!
//! Third file on the way of a request. The walk itself is [`super::chain`]'s. A queue belongs to
//! one thread; its geometry was checked when it was made and does not change. The first
//! [`GuestFault`] latches it: every later call reports the same fault and touches no memory.
//!
//! The order of checks in [`Queue::pop`] (§2.7.13): avail.idx with acquire; its distance bounded
//! by the descriptors that can be free; then the entry; then the chain.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::chain::Chain;
use super::cursor::Segment;
use super::fault::GuestFault;
use super::ring::{Geometry, Ring};
use super::spec::{feature, ring as spec};
use crate::memory::GuestRam;

/// Lists of segments kept for reuse, so that a busy queue does not allocate.
const SPARE_LISTS_MAX: usize = 8;

/// Everything about a queue that is not in guest memory, as plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Where the driver put it.
    pub geometry: Geometry,
    /// Running index of the next available entry to take.
    pub next_avail: u16,
    /// Running index of the next used entry to write.
    pub next_used: u16,
}

/// The device's side of one queue.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    event_idx: bool,
    indirect: bool,
    next_avail: u16,
    next_used: u16,
    /// used.idx when `needs_notification` was last asked.
    told_used: u16,
    /// Chains popped and not yet pushed.
    in_flight: u16,
    fault: Option<GuestFault>,
    spare: Vec<Vec<Segment>>,
}

impl Queue {
    /// A fresh queue where the driver put it; `features` are the negotiated ones, `max` the size
    /// the device offered.
    ///
    /// # Errors
    /// [`GuestFault::QueueSize`], [`GuestFault::QueueAlignment`], [`GuestFault::QueueRange`].
    pub fn new(ram: Arc<GuestRam>, claim: Geometry, max: u16, features: u64) -> Result<Self, GuestFault> {
        Ok(Self {
            ring: Ring::new(ram, claim, max)?,
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
            next_avail: 0,
            next_used: 0,
            told_used: 0,
            in_flight: 0,
            fault: None,
            spare: Vec::new(),
        })
    }

    /// A queue as [`Self::state`] described it; checked like a fresh one. What the driver has not
    /// seen yet it is told again: the interrupt for it may have been on its way to a vCPU whose
    /// state was taken before it arrived.
    ///
    /// # Errors
    /// As [`Self::new`]: a snapshot is hostile input too.
    pub fn restore(ram: Arc<GuestRam>, state: QueueState, max: u16, features: u64) -> Result<Self, GuestFault> {
        let mut queue = Self::new(ram, state.geometry, max, features)?;
        queue.next_avail = state.next_avail;
        queue.next_used = state.next_used;
        queue.told_used = state.next_used.wrapping_sub(queue.size());
        Ok(queue)
    }

    /// The state to restore this queue from; only of a queue without chains in flight, since
    /// those exist nowhere else.
    #[must_use]
    pub fn state(&self) -> Option<QueueState> {
        (self.in_flight == 0).then(|| QueueState {
            geometry: self.ring.geometry(),
            next_avail: self.next_avail,
            next_used: self.next_used,
        })
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Chains popped and neither pushed nor given back.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// The fault that latched this queue.
    #[must_use]
    pub fn fault(&self) -> Option<GuestFault> {
        self.fault
    }

    /// Latches the queue for a rule that the device found broken; the first fault stays.
    pub fn latch(&mut self, fault: GuestFault) -> GuestFault {
        *self.fault.get_or_insert(fault)
    }

    /// Takes the next chain, or `None` when the guest has offered no more.
    ///
    /// # Errors
    /// The fault that latches, or has latched, this queue.
    pub fn pop(&mut self) -> Result<Option<Chain>, GuestFault> {
        self.guard(Self::try_pop)
    }

    /// True when [`Self::pop`] would find something.
    ///
    /// # Errors
    /// The fault that latches, or has latched, this queue.
    pub fn has_available(&mut self) -> Result<bool, GuestFault> {
        self.guard(|queue| Ok(queue.pending()? != 0))
    }

    /// Takes back the latest [`Self::pop`]: the next one returns the same head again. For a chain
    /// that turned out not to be needed yet. Later chains must have been given back before.
    pub fn give_back(&mut self, chain: Chain) {
        self.next_avail = self.next_avail.wrapping_sub(1);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.keep(chain);
    }

    /// Completes `chain`: the guest sees it as used, with the length that was really written.
    ///
    /// # Errors
    /// The fault that latches, or has latched, this queue.
    pub fn push_used(&mut self, chain: Chain) -> Result<(), GuestFault> {
        self.guard(|queue| {
            let (head, len) = (chain.head(), chain.written_bytes());
            queue.ring.set_used_entry(queue.next_used, head, len)?;
            queue.next_used = queue.next_used.wrapping_add(1);
            queue.in_flight = queue.in_flight.saturating_sub(1);
            queue.ring.set_used_index(queue.next_used)?;
            queue.keep(chain);
            Ok(())
        })
    }

    /// True when the guest wants an interrupt for what was pushed since the last call. Ask once
    /// after a batch.
    ///
    /// # Errors
    /// The fault that latches, or has latched, this queue.
    pub fn needs_notification(&mut self) -> Result<bool, GuestFault> {
        self.guard(|queue| {
            let (old, new) = (queue.told_used, queue.next_used);
            if old == new {
                return Ok(false);
            }
            queue.told_used = new;
            // The used index must be visible before the driver's wish is read, or both sides
            // could miss each other: the driver writes its wish, fences, and reads the index.
            fence(Ordering::SeqCst);
            if !queue.event_idx {
                return Ok(queue.ring.avail_flags()? & spec::AVAIL_F_NO_INTERRUPT == 0);
            }
            // §2.7.7.2: has the used index passed used_event on its way from old to new?
            let event = queue.ring.used_event()?;
            let behind = new.wrapping_sub(event).wrapping_sub(1);
            Ok(behind < new.wrapping_sub(old))
        })
    }

    /// Asks the guest for kicks again; true when chains arrived meanwhile, so that no kick will
    /// come for them: go on popping.
    ///
    /// # Errors
    /// The fault that latches, or has latched, this queue.
    pub fn enable_kicks(&mut self) -> Result<bool, GuestFault> {
        self.guard(|queue| {
            if queue.event_idx {
                queue.ring.set_avail_event(queue.next_avail)?;
            } else {
                queue.ring.set_used_flags(0)?;
            }
            // Our wish must be visible before avail.idx is read again; the driver does it the
            // other way round.
            fence(Ordering::SeqCst);
            Ok(queue.pending()? != 0)
        })
    }

    /// Asks for a kick at the next chain that the guest offers, with those on offer left where they
    /// are; returns how many these are.
    ///
    /// # Errors
    /// The fault that latches, or has latched, this queue.
    pub fn watch_offers(&mut self) -> Result<u16, GuestFault> {
        self.guard(|queue| {
            if queue.event_idx {
                let next = queue.next_avail.wrapping_add(queue.pending()?);
                queue.ring.set_avail_event(next)?;
            } else {
                queue.ring.set_used_flags(0)?;
            }
            // As in `enable_kicks`: our wish must be visible before avail.idx is read again.
            fence(Ordering::SeqCst);
            queue.pending()
        })
    }

    /// Tells the guest not to kick while we are at work anyway. Advisory: kicks may still come.
    ///
    /// # Errors
    /// The fault that latches, or has latched, this queue.
    pub fn disable_kicks(&mut self) -> Result<(), GuestFault> {
        self.guard(|queue| {
            // With EVENT_IDX a stale avail_event already means "not now" (§2.7.10).
            if queue.event_idx {
                return Ok(());
            }
            queue.ring.set_used_flags(spec::USED_F_NO_NOTIFY)
        })
    }

    /// Runs `step` unless latched; latches on its fault.
    fn guard<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, GuestFault>) -> Result<T, GuestFault> {
        match self.fault {
            Some(fault) => Err(fault),
            None => step(self).map_err(|fault| self.latch(fault)),
        }
    }

    fn try_pop(&mut self) -> Result<Option<Chain>, GuestFault> {
        if self.pending()? == 0 {
            return Ok(None);
        }
        let head = self.ring.avail_entry(self.next_avail)?;
        let storage = self.spare.pop().unwrap_or_default();
        let chain = Chain::walk(&self.ring, head, self.indirect, storage)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight = self.in_flight.saturating_add(1);
        Ok(Some(chain))
    }

    /// Chains offered and not taken. A chain has at least one descriptor, so together with those
    /// in flight there are never more than the queue has.
    fn pending(&self) -> Result<u16, GuestFault> {
        let pending = self.ring.avail_index()?.wrapping_sub(self.next_avail);
        if pending > self.size().saturating_sub(self.in_flight) {
            return Err(GuestFault::AvailIndex { pending, in_flight: self.in_flight, size: self.size() });
        }
        Ok(pending)
    }

    fn keep(&mut self, chain: Chain) {
        if self.spare.len() < SPARE_LISTS_MAX {
            self.spare.push(chain.into_segments());
        }
    }
}

#[cfg(test)]
mod tests;
