// SPDX-License-Identifier: Apache-2.0
//! The guest's driver while it is there: its queues, and when it is interrupted.
//!
//! [`super::transfer`] moves chains through it. It knows nothing of packets or connections.

use vmm_sys_util::eventfd::EventFd;

use super::packet::HEADER_LEN_BYTES;
use crate::virtio::vectored::SLICES_MAX;
use crate::virtio::{Activation, Chain, GuestFault, Interrupt, Queue, QueueState};

/// Most rx chains filled by one read: Linux offers buffers of 4 KiB, and this is a full turn.
pub(super) const BATCH_MAX: usize = SLICES_MAX / 2;
/// How long the guest may be left without word that its packets were taken, unless something else
/// is told to it: an interrupt costs it more than its packets, and it needs this one for memory
/// only.
const TX_TELL_MS: u64 = 2;

/// What the guest's driver gave: queues, kicks, the interrupt.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) rx: Queue,
    pub(super) tx: Queue,
    pub(super) event: Queue,
    pub(super) kicks: Vec<EventFd>,
    pub(super) interrupt: Interrupt,
    /// The guest must still be told of a transport reset.
    pub(super) is_reset_event_due: bool,
    /// The guest was told of a transport reset, when it had this many event buffers on offer, and
    /// must have dealt with it by this time in milliseconds at the latest.
    pub(super) awaited: Option<(u16, u64)>,
    /// A queue is latched: nothing is served any more.
    pub(super) is_broken: bool,
    /// Tx chains given back of which the guest has not been told.
    pub(super) tx_untold: u16,
    /// When it is to be told at the latest.
    tx_deadline_ms: Option<u64>,
    /// Reserved rx chains of one read; empty between turns, kept for its memory.
    pub(super) batch: Vec<Chain>,
}

impl Link {
    /// `None` unless there are three queues.
    pub(super) fn new(activation: Activation) -> Option<Self> {
        let Activation { queues, kicks, interrupt, .. } = activation;
        let [rx, tx, event] = <[Queue; 3]>::try_from(queues).ok()?;
        Some(Self {
            rx,
            tx,
            event,
            kicks,
            interrupt,
            is_reset_event_due: false,
            awaited: None,
            is_broken: false,
            tx_untold: 0,
            // At once: a queue that was restored may have chains of which the guest was never told.
            tx_deadline_ms: Some(0),
            batch: Vec::with_capacity(BATCH_MAX),
        })
    }

    /// When `VsockWorker::pump` must be called, at the latest: never for a broken one.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        if self.is_broken {
            return None;
        }
        [self.tx_deadline_ms, self.awaited.map(|(_, deadline_ms)| deadline_ms)].into_iter().flatten().min()
    }

    /// One interrupt for all that was used since the last, if the guest wants any. Given tx chains
    /// alone are no reason for one, until they are many or have waited.
    pub(super) fn notify(&mut self, now_ms: u64) -> Result<(), GuestFault> {
        let rx = self.rx.needs_notification()?;
        let event = self.event.needs_notification()?;
        let is_late = self.tx_deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms);
        let are_many = self.tx_untold >= self.tx.size().div_ceil(8);
        if rx || event || is_late || are_many {
            let tx = self.tx.needs_notification()?;
            self.tx_untold = 0;
            self.tx_deadline_ms = None;
            if rx || event || tx {
                self.interrupt.signal_used();
            }
        } else if self.tx_untold > 0 && self.tx_deadline_ms.is_none() {
            self.tx_deadline_ms = Some(now_ms.saturating_add(TX_TELL_MS));
        }
        Ok(())
    }

    /// Whether the guest has still to drop its connections: what arrives before it does would be
    /// dropped with them. It says so by offering a buffer in place of the one that told it.
    pub(super) fn is_resetting(&mut self, now_ms: u64) -> Result<bool, GuestFault> {
        if let Some((offered, deadline_ms)) = self.awaited
            && (self.event.watch_offers()? > offered || deadline_ms <= now_ms)
        {
            self.awaited = None;
        }
        Ok(self.is_reset_event_due || self.awaited.is_some())
    }

    /// The three queues' places, in order; none when they are latched.
    pub(super) fn states(&self) -> Vec<QueueState> {
        let all = [&self.rx, &self.tx, &self.event].map(Queue::state);
        if self.is_broken { Vec::new() } else { all.into_iter().collect::<Option<_>>().unwrap_or_default() }
    }

    /// Takes an rx chain with room for a header and a byte, or `None` and asks for a kick.
    pub(super) fn reserve(&mut self, shorts: &mut u64) -> Result<Option<Chain>, GuestFault> {
        loop {
            let Some(chain) = self.rx.pop()? else {
                if self.rx.enable_kicks()? {
                    continue;
                }
                return Ok(None);
            };
            self.rx.disable_kicks()?;
            if chain.writable_bytes() > HEADER_LEN_BYTES {
                return Ok(Some(chain));
            }
            *shorts = shorts.saturating_add(1);
            self.rx.push_used(chain)?;
        }
    }

    /// Takes one more rx chain, if one of use is there. Completes none, so that all those taken
    /// can be given back in a row.
    pub(super) fn reserve_another(&mut self) -> Result<Option<Chain>, GuestFault> {
        let Some(chain) = self.rx.pop()? else {
            return Ok(None);
        };
        if chain.writable_bytes() > HEADER_LEN_BYTES {
            return Ok(Some(chain));
        }
        self.rx.give_back(chain);
        Ok(None)
    }
}
