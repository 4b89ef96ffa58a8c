// SPDX-License-Identifier: Apache-2.0
//! The data half of the block device: one thread that owns its queue and its disk.
//!
//! It sleeps in a blocking `read(2)` of the queue's kick, serves until the queue is empty with
//! kicks switched off, and wakes the driver once a batch. A broken queue is reported and left
//! alone until the driver resets the device; a request that fails is the guest's to handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::event::{Counters, Event};
use super::request::{Limits, Range, Request, Status, parse, parse_range};
use super::spec::{HEADER_BYTES, ID_BYTES, RANGE_BYTES, RANGES_MAX};
use crate::disk::{Disk, DiskError};
use crate::virtio::{Chain, GuestFault, Interrupt, Queue, Reader, Writer};

/// Requests completed before the driver is told, when more are waiting.
const BATCH_MAX: u32 = 16;

/// One activation: what the worker needs from DRIVER_OK to the next reset.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) queue: Queue,
    pub(super) kick: EventFd,
    pub(super) interrupt: Interrupt,
    pub(super) limits: Limits,
    /// Every write is followed by a flush: the driver did not negotiate flushes (§5.2.6.2).
    pub(super) write_through: bool,
}

/// What lives as long as the thread.
pub(super) struct Worker {
    pub(super) disk: Box<dyn Disk>,
    pub(super) id: [u8; ID_BYTES],
    pub(super) counters: Arc<Counters>,
    /// Set before a kick: let go of the queue after the request at hand.
    pub(super) stop: Arc<AtomicBool>,
}

impl Worker {
    /// Serves until told to stop, and gives the queue back with no request in flight.
    pub(super) fn serve(&mut self, mut serving: Serving) -> Queue {
        loop {
            if let Err(fault) = self.drain(&mut serving) {
                self.counters.count(Event::Fault);
                // What was completed before the fault stands.
                serving.interrupt.signal_used();
                serving.interrupt.report_fault(fault);
                self.wait_for_stop(&serving.kick);
            }
            if self.stopping() {
                return serving.queue;
            }
            // An interrupted read is a look at an empty queue.
            if serving.kick.read().is_ok() {
                self.counters.count(Event::Woken);
            }
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn wait_for_stop(&self, kick: &EventFd) {
        while !self.stopping() {
            // Kicks of a latched queue and interruptions alike: look again.
            let _ = kick.read();
        }
    }

    /// Serves until the queue is empty and the driver will kick for the next request.
    fn drain(&mut self, serving: &mut Serving) -> Result<(), GuestFault> {
        loop {
            serving.queue.disable_kicks()?;
            let mut completed = 0;
            while completed < BATCH_MAX && !self.stopping() {
                let Some(chain) = serving.queue.pop()? else {
                    break;
                };
                self.complete(&chain, serving).map_err(|fault| serving.queue.latch(fault))?;
                serving.queue.push_used(chain)?;
                completed += 1;
            }
            if serving.queue.needs_notification()? {
                serving.interrupt.signal_used();
            }
            if self.stopping() || (completed < BATCH_MAX && !serving.queue.enable_kicks()?) {
                return Ok(());
            }
        }
    }

    /// Does one request and writes its status, the last writable byte.
    fn complete(&mut self, chain: &Chain, serving: &Serving) -> Result<(), GuestFault> {
        let no_status = GuestFault::Device { device: "block", what: "a request without a writable status byte" };
        let wanted_bytes = chain.writable_bytes().checked_sub(1).ok_or(no_status)?;
        let (data, mut status) = chain.writer().split_at(wanted_bytes).map_err(|_| no_status)?;
        let outcome = self.execute(chain.reader(), data, serving);
        status.write_all(&[outcome as u8]).map_err(|_| no_status)
    }

    fn execute(&mut self, mut given: Reader<'_>, wanted: Writer<'_>, serving: &Serving) -> Status {
        let limits = &serving.limits;
        let request = match given.read_array::<HEADER_BYTES>() {
            Ok(header) => parse(header, given.left_bytes(), wanted.left_bytes(), limits),
            Err(_) => Err(Status::IoError),
        };
        let done = match request {
            Ok(Request::Read { offset }) => self.read(offset, wanted),
            Ok(Request::Write { offset }) => self.write(offset, given, serving.write_through),
            Ok(Request::Flush) => self.disk.flush().map(|()| Event::Flushed),
            Ok(Request::GetId) => return self.get_id(wanted),
            Ok(Request::Discard) => return self.free(given, true, serving),
            Ok(Request::WriteZeroes) => return self.free(given, false, serving),
            Err(status) => {
                self.counters.count(Event::Refused);
                return status;
            }
        };
        self.status_of(done)
    }

    /// Counts an outcome; every failure of a disk is an I/O error to the guest.
    fn status_of(&self, done: Result<Event, DiskError>) -> Status {
        let (event, status) = match done {
            Ok(event) => (event, Status::Ok),
            Err(DiskError::NoSpace { .. }) => (Event::Full, Status::IoError),
            Err(_) => (Event::Failed, Status::IoError),
        };
        self.counters.count(event);
        status
    }

    fn read(&mut self, offset: u64, mut wanted: Writer<'_>) -> Result<Event, DiskError> {
        let mut at = offset;
        while wanted.left_bytes() != 0 {
            let slices = wanted.slices(usize::MAX);
            self.disk.read_at(at, &slices)?;
            at += slices.len_bytes() as u64;
            wanted.advance_written(slices.len_bytes());
        }
        Ok(Event::Read)
    }

    fn write(&mut self, offset: u64, mut given: Reader<'_>, write_through: bool) -> Result<Event, DiskError> {
        let mut at = offset;
        while given.left_bytes() != 0 {
            let slices = given.slices(usize::MAX);
            self.disk.write_at(at, &slices)?;
            at += slices.len_bytes() as u64;
            given.advance(slices.len_bytes());
        }
        if write_through {
            self.disk.flush()?;
        }
        Ok(Event::Written)
    }

    fn get_id(&self, mut wanted: Writer<'_>) -> Status {
        // Parsing has seen that the name fits.
        wanted.write_all(&self.id).map_or(Status::IoError, |()| Status::Ok)
    }

    /// Checks every range before the first is touched.
    fn free(&mut self, mut given: Reader<'_>, discard: bool, serving: &Serving) -> Status {
        let mut ranges = [Range { offset: 0, len: 0, may_free: false }; RANGES_MAX as usize];
        let mut count = 0;
        for place in &mut ranges {
            let Ok(bytes) = given.read_array::<RANGE_BYTES>() else {
                break;
            };
            match parse_range(bytes, discard, &serving.limits) {
                Ok(range) => *place = range,
                Err(status) => {
                    self.counters.count(Event::Refused);
                    return status;
                }
            }
            count += 1;
        }
        let done = ranges.iter().take(count).try_for_each(|range| self.free_range(*range, discard));
        let durable = if serving.write_through { done.and_then(|()| self.disk.flush()) } else { done };
        self.status_of(durable.map(|()| Event::Freed))
    }

    fn free_range(&mut self, range: Range, discard: bool) -> Result<(), DiskError> {
        if discard {
            self.disk.discard(range.offset, range.len)
        } else {
            self.disk.write_zeroes(range.offset, range.len, range.may_free)
        }
    }
}

#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(test)]
mod tests;
