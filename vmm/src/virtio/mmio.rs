// SPDX-License-Identifier: Apache-2.0
//! The register file of virtio over MMIO, version 2 (§4.2), and the device status machine (§2.1,
//! §3.1).
//!
//! Control path only: a driver negotiates here, once; then chains move between guest memory and
//! the device's own thread without passing this file. Its reads do not come here either: what
//! they find is shown in a page of the guest, renewed after every write that changes it. Every offset and width is answered: a wrong
//! one reads zeros and writes nothing. Queue geometry can be written between FEATURES_OK and
//! DRIVER_OK only, so a size can never change under a running queue.
//!
//! Not offered: legacy registers, queue reset, notification data, shared memory.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{ActivateError, Activation, Device};
use super::fault::GuestFault;
use super::interrupt::Interrupt;
use super::queue::Queue;
use super::spec::{feature, register, status};
use crate::machine::bus::MmioDevice;
use crate::machine::pages::ReadPage;
use crate::memory::GuestRam;

mod state;

pub use state::{QueueRegisters, TransportState};

/// "MIDG": what the driver reads as the vendor.
const VENDOR_ID: u32 = 0x4744_494d;

/// The order in which a driver sets its status bits (§3.1.1); each needs those before it.
const STATUS_STEPS: [u32; 4] = [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK];

/// Registers of fixed meaning that are shown; InterruptStatus and Status are [`Interrupt`]'s.
const SHOWN: [u64; 12] = [
    register::MAGIC_VALUE,
    register::VERSION_VALUE,
    register::DEVICE_ID,
    register::VENDOR_ID,
    register::DEVICE_FEATURES,
    register::QUEUE_NUM_MAX,
    register::QUEUE_READY,
    register::SHM_LEN_LOW,
    register::SHM_LEN_HIGH,
    register::SHM_BASE_LOW,
    register::SHM_BASE_HIGH,
    register::CONFIG_GENERATION,
];
/// Bytes of configuration space that are shown; both devices have fewer.
const CONFIG_BYTES: u64 = 256;

/// One device behind its registers.
pub struct Transport<D> {
    device: D,
    ram: Arc<GuestRam>,
    interrupt: Interrupt,
    page: ReadPage,
    taken_note: EventFd,
    kicks: Vec<EventFd>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueRegisters>,
}

impl<D: Device> Transport<D> {
    /// Puts registers in front of `device`; `irqfd` raises its interrupt line, `page` is where the
    /// guest reads them.
    ///
    /// # Errors
    /// When an eventfd cannot be made.
    pub fn new(device: D, ram: GuestRam, irqfd: EventFd, page: ReadPage) -> io::Result<Self> {
        let wait = if device.kicks_block() { 0 } else { EFD_NONBLOCK };
        let count = device.queue_max_sizes().len();
        let kicks = (0..count).map(|_| EventFd::new(EFD_CLOEXEC | wait)).collect::<io::Result<Vec<_>>>()?;
        let transport = Self {
            device,
            ram: Arc::new(ram),
            interrupt: Interrupt::new(irqfd, page.clone()),
            page,
            taken_note: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            kicks,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: vec![QueueRegisters::default(); count],
        };
        for offset in (0..CONFIG_BYTES).step_by(4) {
            let mut word = [0; 4];
            transport.device.read_config(offset, &mut word);
            transport.page.set(register::CONFIG.saturating_add(offset), u32::from_le_bytes(word));
        }
        transport.show();
        Ok(transport)
    }

    /// The device behind the registers.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Brings the page that the guest reads up to date.
    fn show(&self) {
        for offset in SHOWN {
            self.page.set(offset, self.read_register(offset));
        }
        self.interrupt.show_status(self.status, self.is_active());
    }

    /// Where the driver's word goes that it has seen used buffers: an eventfd that nobody reads, to
    /// be written when the guest stores USED_BUFFER alone at [`register::INTERRUPT_ACK`], so that
    /// this is no exit. The bit then stays set in InterruptStatus: the driver looks at its rings
    /// at every interrupt, and our devices raise none without a reason. An acknowledgement of a
    /// configuration change is an exit and clears both.
    #[must_use]
    pub fn taken_note(&self) -> &EventFd {
        &self.taken_note
    }

    /// The eventfd of each queue, to be written when the guest stores the queue's index at
    /// [`register::QUEUE_NOTIFY`].
    #[must_use]
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The device's interrupt line, which also counts the guest's faults.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// True from DRIVER_OK to the next reset.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | feature::VERSION_1
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::MAGIC_VALUE => register::MAGIC,
            register::VERSION_VALUE => register::VERSION,
            register::DEVICE_ID => self.device.device_id(),
            register::VENDOR_ID => VENDOR_ID,
            register::DEVICE_FEATURES => half(self.offered_features(), self.device_features_sel),
            register::QUEUE_NUM_MAX => u32::from(self.queue_max()),
            register::QUEUE_READY => u32::from(self.selected().is_some_and(|queue| queue.ready)),
            register::INTERRUPT_STATUS => self.interrupt.status(),
            register::STATUS => self.read_status(),
            // §4.2.2: a shared memory region that does not exist has a length of -1.
            register::SHM_LEN_LOW | register::SHM_LEN_HIGH | register::SHM_BASE_LOW | register::SHM_BASE_HIGH => {
                u32::MAX
            }
            // ConfigGeneration included: no configuration space of ours ever changes.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES => self.write_driver_features(value),
            register::QUEUE_SEL => self.queue_sel = value,
            register::QUEUE_NOTIFY => self.kick(value),
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS => self.write_status(value),
            register::QUEUE_READY => self.write_ready(value),
            _ => self.write_geometry(offset, value),
        }
    }

    fn read_status(&self) -> u32 {
        if self.is_active() && self.interrupt.needs_reset() {
            self.status | status::DEVICE_NEEDS_RESET
        } else {
            self.status
        }
    }

    /// §3.1.1: accepted between DRIVER and FEATURES_OK.
    fn write_driver_features(&mut self, value: u32) {
        if self.status & (status::DRIVER | status::FEATURES_OK) != status::DRIVER {
            return;
        }
        let value = u64::from(value);
        self.driver_features = match self.driver_features_sel {
            0 => self.driver_features & !u64::from(u32::MAX) | value,
            1 => self.driver_features & u64::from(u32::MAX) | value << 32,
            _ => self.driver_features,
        };
    }

    /// §2.1.1: a driver sets bits one after another and clears them by a reset only. A step that
    /// is not due does not happen, which the driver sees when it reads the status back.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        if value & status::FAILED != 0 {
            self.status |= status::FAILED;
        }
        if self.status & status::FAILED != 0 {
            return;
        }
        let mut before = 0;
        for step in STATUS_STEPS {
            let due = value & step != 0 && self.status & step == 0;
            if due && (self.status & before != before || !self.accepts(step)) {
                return;
            }
            if due {
                self.status |= step;
                if step == status::DRIVER_OK {
                    self.activate();
                }
            }
            before |= step;
        }
    }

    /// §2.2.2, §6.1: FEATURES_OK stays clear unless every accepted feature was offered and
    /// VERSION_1 is among them.
    fn accepts(&self, step: u32) -> bool {
        let unknown = self.driver_features & !self.offered_features();
        step != status::FEATURES_OK || (unknown == 0 && self.driver_features & feature::VERSION_1 != 0)
    }

    fn queue_max(&self) -> u16 {
        usize::try_from(self.queue_sel)
            .ok()
            .and_then(|index| self.device.queue_max_sizes().get(index).copied())
            .unwrap_or(0)
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue, while the driver may set it up: §3.1.1 step 7.
    fn selected_in_setup(&mut self) -> Option<&mut QueueRegisters> {
        let barred = status::DRIVER_OK | status::FAILED;
        if self.status & (status::FEATURES_OK | barred) != status::FEATURES_OK {
            return None;
        }
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }

    fn write_ready(&mut self, value: u32) {
        if let Some(queue) = self.selected_in_setup() {
            queue.ready = value & 1 != 0;
        }
    }

    fn write_geometry(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.selected_in_setup().filter(|queue| !queue.ready) else {
            return;
        };
        let geometry = &mut queue.geometry;
        match offset {
            register::QUEUE_NUM => geometry.size = value,
            register::QUEUE_DESC_LOW => set_low(&mut geometry.descriptors, value),
            register::QUEUE_DESC_HIGH => set_high(&mut geometry.descriptors, value),
            register::QUEUE_DRIVER_LOW => set_low(&mut geometry.avail, value),
            register::QUEUE_DRIVER_HIGH => set_high(&mut geometry.avail, value),
            register::QUEUE_DEVICE_LOW => set_low(&mut geometry.used, value),
            register::QUEUE_DEVICE_HIGH => set_high(&mut geometry.used, value),
            _ => {}
        }
    }

    /// Kicks that come here instead of through an ioeventfd. §3.1.1: none before DRIVER_OK.
    fn kick(&self, index: u32) {
        let kick = usize::try_from(index).ok().and_then(|index| self.kicks.get(index));
        if let Some(kick) = kick.filter(|_| self.is_active()) {
            // Fails only when the counter is full: then the device is being woken already.
            let _ = kick.write(1);
        }
    }

    fn activate(&mut self) {
        let started = self.activation().and_then(|activation| self.device.activate(activation));
        match started {
            Ok(()) => {}
            Err(ActivateError::Guest(fault)) => self.interrupt.report_fault(fault),
            // Not the guest's fault, so not counted as one; it is told just the same (§2.1.2).
            Err(ActivateError::Host { .. }) => self.interrupt.latch_needs_reset(),
        }
    }

    fn activation(&self) -> Result<Activation, ActivateError> {
        let maxima = self.device.queue_max_sizes();
        let mut queues = Vec::with_capacity(maxima.len());
        for (index, (registers, max)) in self.queues.iter().zip(maxima).enumerate() {
            if !registers.ready {
                return Err(GuestFault::QueueNotReady { index }.into());
            }
            let ram = Arc::clone(&self.ram);
            let queue = Queue::new(ram, registers.geometry, *max, self.driver_features)?;
            queues.push(queue);
        }
        self.activation_of(queues)
    }

    fn activation_of(&self, queues: Vec<Queue>) -> Result<Activation, ActivateError> {
        let kicks = self.kicks.iter().map(EventFd::try_clone);
        let kicks = kicks.collect::<io::Result<Vec<_>>>();
        let kicks = kicks.map_err(|source| ActivateError::Host { what: "duplicating its kick eventfds", source })?;
        Ok(Activation {
            ram: GuestRam::clone(&self.ram),
            features: self.driver_features,
            queues,
            kicks,
            interrupt: self.interrupt.clone(),
        })
    }

    /// §2.4: the device lets go first, then the registers forget.
    fn reset(&mut self) {
        self.device.reset();
        self.interrupt.reset();
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues.fill(QueueRegisters::default());
    }
}

impl<D: Device> MmioDevice for Transport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(within) = offset.checked_sub(register::CONFIG) {
            self.device.read_config(within, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            // §4.2.2.2: control registers are accessed 32 bits wide and aligned.
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // The configuration space of our devices has no field a driver may write.
        if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
            && offset < register::CONFIG
        {
            self.write_register(offset, u32::from_le_bytes(word));
            // Kicks and acknowledgements change nothing that is shown here.
            if offset != register::QUEUE_NOTIFY && offset != register::INTERRUPT_ACK {
                self.show();
            }
        }
    }
}

/// The 32 bits of `bits` that a selector register names; §4.2.2: zero beyond the known ones.
fn half(bits: u64, selector: u32) -> u32 {
    let bytes = bits.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    match selector {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
