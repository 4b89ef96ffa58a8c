// SPDX-License-Identifier: Apache-2.0
//! The control half of the block device: what it offers, and handing the queue to its thread and
//! back.
//!
//! Runs on vCPU threads, behind the registers; never touches the disk or guest memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::event::Counters;
use super::request::Limits;
use super::spec::{
    CONFIG_BYTES, DISCARD_ALIGN_SECTORS, ID_BYTES, QUEUE_SIZE, RANGE_SECTORS_MAX, RANGES_MAX, SECTOR_BYTES, SEG_MAX,
    feature,
};
use super::worker::{Serving, Worker};
use crate::disk::Disk;
use crate::virtio::spec::{device_id, feature as common};
use crate::virtio::{ActivateError, Activation, Device, GuestFault, Queue};

/// A block device over a [`Disk`], with a thread of its own.
pub struct Block {
    features: u64,
    sectors: u64,
    read_only: bool,
    config: [u8; CONFIG_BYTES],
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    /// The data half while it serves nothing; else its thread has it.
    idle: Option<Worker>,
    /// `None` only while dropping.
    commands: Option<Sender<(Worker, Serving)>>,
    /// The data half with the queue it has let go of.
    returned: Receiver<(Worker, Queue)>,
    /// One message: how `enter` went.
    entered: Receiver<io::Result<()>>,
    has_entered: bool,
    /// The kick of the queue that is being served.
    serving: Option<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Block {
    /// A device for `disk`, and its thread, "block `index`". The thread runs `enter` before all
    /// else, to confine itself; when that fails it never sees the disk or the guest, and the
    /// device cannot be activated.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn new(
        disk: Box<dyn Disk>,
        index: usize,
        enter: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let sectors = disk.len_bytes() / SECTOR_BYTES;
        let read_only = disk.is_read_only();
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker { disk, id: id(index), counters: Arc::clone(&counters), stop: Arc::clone(&stop) };
        let (commands, to_serve) = channel::<(Worker, Serving)>();
        let (give_back, returned) = channel();
        let (report, entered) = channel();
        let thread = std::thread::Builder::new().name(format!("block {index}")).spawn(move || {
            let confined = enter();
            let may_serve = confined.is_ok();
            // Nobody listens only when the device is gone already; then there is nothing to serve.
            if report.send(confined).is_err() || !may_serve {
                return;
            }
            while let Ok((mut worker, serving)) = to_serve.recv() {
                let queue = worker.serve(serving);
                if give_back.send((worker, queue)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            features: offered(read_only),
            sectors,
            read_only,
            config: config(sectors),
            counters,
            stop,
            idle: Some(worker),
            commands: Some(commands),
            returned,
            entered,
            has_entered: false,
            serving: None,
            thread: Some(thread),
        })
    }

    /// What happened on the queue; shared with the worker.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Stops serving as a reset does, and tells where the queue stood: `None` when nothing was
    /// served. A request in flight is finished first. The registers may
    /// [`resume`](crate::virtio::Transport::resume) it.
    pub fn pause(&mut self) -> Option<Queue> {
        let kick = self.serving.take()?;
        self.stop.store(true, Ordering::Release);
        // Fails only when the counter is full: then the worker is being woken already.
        let _ = kick.write(1);
        // An error means that the worker has ended, and its queue with it.
        let (worker, queue) = self.returned.recv().ok()?;
        self.idle = Some(worker);
        self.stop.store(false, Ordering::Release);
        Some(queue)
    }

    /// The disk, of a device that serves nothing.
    pub fn disk(&self) -> Option<&dyn Disk> {
        self.idle.as_ref().map(|worker| &*worker.disk)
    }

    /// Takes the disk out of a device that serves nothing and never will again.
    pub fn take_disk(&mut self) -> Option<Box<dyn Disk>> {
        self.idle.take().map(|worker| worker.disk)
    }

    /// Waits, once, until the worker has confined itself.
    fn await_entered(&mut self) -> Result<(), ActivateError> {
        if self.has_entered {
            return Ok(());
        }
        let gone = || io::Error::other("the thread has ended");
        match self.entered.recv().unwrap_or_else(|_| Err(gone())) {
            Ok(()) => {
                self.has_entered = true;
                Ok(())
            }
            Err(source) => Err(ActivateError::Host { what: "confining the thread of a block device", source }),
        }
    }
}

impl Device for Block {
    fn device_id(&self) -> u32 {
        device_id::BLOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn kicks_block(&self) -> bool {
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).ok().and_then(|offset| self.config.get(offset..)).unwrap_or(&[]);
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(from) {
            *byte = *value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.await_entered()?;
        let Activation { features, queues, kicks, interrupt, .. } = activation;
        let (Some(queue), Some(kick)) = (queues.into_iter().next(), kicks.into_iter().next()) else {
            return Err(GuestFault::QueueNotReady { index: 0 }.into());
        };
        let host_error = |what| move |source| ActivateError::Host { what, source };
        let waker = kick.try_clone().map_err(host_error("duplicating the kick of a block device"))?;
        let limits = Limits {
            sectors: self.sectors,
            read_only: self.read_only,
            discard: features & feature::DISCARD != 0,
            write_zeroes: features & feature::WRITE_ZEROES != 0,
        };
        let write_through = !self.read_only && features & feature::FLUSH == 0;
        let serving = Serving { queue, kick, interrupt, limits, write_through };
        let worker = self.idle.take();
        let sent = self.commands.as_ref().zip(worker).is_some_and(|(to, worker)| to.send((worker, serving)).is_ok());
        if !sent {
            let source = io::Error::other("the thread has ended");
            return Err(ActivateError::Host { what: "waking the thread of a block device", source });
        }
        self.serving = Some(waker);
        Ok(())
    }

    /// The worker finishes the request at hand, takes no other, and gives its queue back; only
    /// then does the driver see the reset (§2.4).
    fn reset(&mut self) {
        drop(self.pause());
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.reset();
        drop(self.commands.take());
        if let Some(thread) = self.thread.take() {
            // A worker that panicked has said so; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

fn offered(read_only: bool) -> u64 {
    let always = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | common::EVENT_IDX | common::INDIRECT_DESC;
    let more = if read_only { feature::RO } else { feature::DISCARD | feature::WRITE_ZEROES };
    always | more
}

/// The name that GET_ID returns, padded with NUL.
fn id(index: usize) -> [u8; ID_BYTES] {
    let mut id = [0; ID_BYTES];
    for (byte, value) in id.iter_mut().zip(format!("midge-{index}").bytes()) {
        *byte = value;
    }
    id
}

/// The configuration space (§5.2.4):
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 8 | capacity in sectors |
/// | 12 | 4 | seg_max |
/// | 20 | 4 | blk_size |
/// | 36 | 4 | max_discard_sectors |
/// | 40 | 4 | max_discard_seg |
/// | 44 | 4 | discard_sector_alignment |
/// | 48 | 4 | max_write_zeroes_sectors |
/// | 52 | 4 | max_write_zeroes_seg |
/// | 56 | 1 | write_zeroes_may_unmap |
///
/// The fields between belong to features that are not offered.
fn config(sectors: u64) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    put(36, &RANGE_SECTORS_MAX.to_le_bytes());
    put(40, &RANGES_MAX.to_le_bytes());
    put(44, &DISCARD_ALIGN_SECTORS.to_le_bytes());
    put(48, &RANGE_SECTORS_MAX.to_le_bytes());
    put(52, &RANGES_MAX.to_le_bytes());
    put(56, &[1]);
    config
}

#[cfg(test)]
mod tests;
