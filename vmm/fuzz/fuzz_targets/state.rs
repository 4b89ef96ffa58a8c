// SPDX-License-Identifier: Apache-2.0
//! Any file as the state of a VM, and any registers in a file that is whole: what is read can be
//! written again byte for byte, and devices take a state or refuse it, and then work or wait for a
//! reset.
//!
//! `./dev fuzz 60 state`. Input: what to do (1 byte); then a file whose length
//! and checksum are put right first (0 to 2), or as it is (3), or (others) numbers for the
//! registers of two disks and a vsock device, and memory for their queues.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use midge_vmm::disk::PageMap;
use midge_vmm::machine::bus::MmioDevice;
use midge_vmm::machine::pages::ReadPage;
use midge_vmm::machine::state::{MachineState, VcpuState};
use midge_vmm::memory::GuestRam;
use midge_vmm::snapshot::format::{MAGIC, VERSION, decode, encode};
use midge_vmm::snapshot::{DiskState, VmState, VsockDeviceState};
use midge_vmm::virtio::spec::feature;
use midge_vmm::virtio::{
    ActivateError, Activation, Device, Geometry, QueueRegisters, QueueState, Transport, TransportState,
};
use midge_vmm::vsock::VsockState;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM_BYTES: usize = 0x8000;
const STATUS: u64 = 0x70;

/// A device that keeps what it was given.
struct Keeper {
    sizes: &'static [u16],
    given: Arc<Mutex<Option<Activation>>>,
}

impl Device for Keeper {
    fn device_id(&self) -> u32 {
        2
    }
    fn features(&self) -> u64 {
        feature::EVENT_IDX | feature::INDIRECT_DESC | 0x7244
    }
    fn queue_max_sizes(&self) -> &[u16] {
        self.sizes
    }
    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        *self.given.lock().expect("one thread") = Some(activation);
        Ok(())
    }
    fn reset(&mut self) {
        *self.given.lock().expect("one thread") = None;
    }
}

fn read(transport: &mut Transport<Keeper>, offset: u64) -> u32 {
    let mut word = [0; 4];
    transport.read(offset, &mut word);
    u32::from_le_bytes(word)
}

/// Restores, serves what is on offer, takes the state again, and resets.
fn restore(state: &TransportState, sizes: &'static [u16], memory: &[u8]) {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("a small region can be mapped");
    ram.write_slice(&memory[..memory.len().min(RAM_BYTES)], GuestAddress(0)).expect("it fits");
    let given = Arc::new(Mutex::new(None));
    let keeper = Keeper { sizes, given: Arc::clone(&given) };
    let irq = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let page = ReadPage::unseen().expect("a page");
    let mut transport = Transport::new(keeper, ram, irq, page).expect("eventfds");
    let taken = transport.restore(state);
    if let Some(activation) = given.lock().expect("one thread").as_mut() {
        assert!(taken.is_ok() && state.status & 4 != 0 && !state.needs_reset, "{state:?}");
        for queue in &mut activation.queues {
            for _ in 0..64 {
                match queue.pop() {
                    Ok(Some(chain)) if chain.writable_bytes() > 1 << 16 => return,
                    Ok(Some(chain)) => drop(queue.push_used(chain)),
                    Ok(None) => break,
                    Err(fault) => {
                        assert_eq!(queue.fault(), Some(fault));
                        break;
                    }
                }
            }
            let _ = (queue.needs_notification(), queue.enable_kicks(), queue.watch_offers());
        }
    }
    if taken.is_ok() {
        assert_eq!(transport.state(state.serving.clone()).queues, state.queues);
        assert_eq!(read(&mut transport, STATUS) & !0x40, state.status);
        assert_eq!(transport.is_active(), state.status & 4 != 0);
    }
    transport.write(STATUS, &[0; 4]);
    assert_eq!(read(&mut transport, STATUS), 0);
    assert!(given.lock().expect("one thread").is_none());
}

fn exercise(state: &VmState, memory: &[u8]) {
    for disk in &state.disks {
        restore(&disk.transport, &[256], memory);
    }
    if let Some(vsock) = &state.vsock {
        restore(&vsock.transport, &[256, 256, 16], memory);
    }
}

/// Numbers out of the input, zeros behind its end.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, &[][..]), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }

    /// One worth trying, or any.
    fn word(&mut self, likely: &[u32]) -> u32 {
        let place = self.byte();
        let any = u32::from_le_bytes([self.byte(), place, self.byte(), place]);
        likely.get(usize::from(place)).copied().unwrap_or(any)
    }

    fn geometry(&mut self) -> Geometry {
        let place = |numbers: &mut Self| u64::from(numbers.word(&[0, 0x1000, 0x2000, 0x3000, 0x7ff0, 0x8000]));
        let size = self.word(&[4, 8, 16, 256, 0, 3, 512]);
        Geometry { size, descriptors: place(self), avail: place(self), used: place(self) }
    }

    fn transport(&mut self) -> TransportState {
        let queues: Vec<_> = (0..self.byte() % 5)
            .map(|_| QueueRegisters { geometry: self.geometry(), ready: self.byte() % 8 != 7 })
            .collect();
        let mut state = TransportState {
            status: self.word(&[0xf, 0xf, 0xf, 0xb, 3, 1, 0, 0x8f, 4, 7]),
            device_features_sel: self.word(&[0, 1]),
            driver_features_sel: self.word(&[0, 1]),
            driver_features: u64::from(self.word(&[0, 1 << 29, 1 << 28, 3 << 28]))
                | u64::from(self.word(&[1, 0])) << 32,
            queue_sel: self.word(&[0, 1, 2]),
            interrupt_status: self.word(&[0, 1, 3]),
            needs_reset: self.byte() % 8 == 7,
            queues,
            serving: Vec::new(),
        };
        let count = self.byte() % 5;
        for index in 0..usize::from(count) {
            let same = state.queues.get(index).map(|queue| queue.geometry).filter(|_| self.byte() % 8 != 7);
            let geometry = same.unwrap_or_else(|| self.geometry());
            let next_avail = u16::from_le_bytes([self.byte(), self.byte()]);
            let next_used = if self.byte() % 2 == 0 { next_avail } else { u16::from(self.byte()) };
            state.serving.push(QueueState { geometry, next_avail, next_used });
        }
        state
    }

    fn state(&mut self) -> VmState {
        let disk = |numbers: &mut Self| {
            let pages = u64::from(numbers.byte());
            let layer = (pages % 2 == 1).then(|| PageMap::new(pages));
            DiskState { transport: numbers.transport(), len_bytes: pages * 4096, is_read_only: false, layer }
        };
        VmState {
            mem_bytes: RAM_BYTES as u64,
            kernel_range: (0, 0),
            has_console: self.byte() % 2 == 1,
            machine: MachineState::default(),
            vcpus: vec![VcpuState::default()],
            disks: vec![disk(self), disk(self)],
            vsock: Some(VsockDeviceState {
                transport: self.transport(),
                device: VsockState { next_host_port: self.word(&[1 << 30]), had_connections: self.byte() % 2 == 1 },
                guest_cid: 3,
            }),
        }
    }
}

/// A whole file with this body.
fn whole(body: &[u8]) -> Vec<u8> {
    let checked = [&(body.len() as u64).to_le_bytes()[..], body].concat();
    [&MAGIC[..], &VERSION.to_le_bytes(), &crc32fast::hash(&checked).to_le_bytes(), &checked].concat()
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let file = match kind {
        0..=2 => whole(rest),
        3 => rest.to_vec(),
        _ => {
            let mut numbers = Numbers(rest);
            let state = numbers.state();
            let file = encode(&state, &[]).expect("far below the limit");
            let again = decode(&file).expect("what was written can be read");
            let transports =
                |state: &VmState| state.disks.iter().map(|disk| disk.transport.clone()).collect::<Vec<_>>();
            assert_eq!(transports(&state), transports(&again));
            exercise(&again, numbers.0);
            file
        }
    };
    let Ok(state) = decode(&file) else { return };
    assert_eq!(encode(&state, &[]).expect("it came from a file"), file, "not the only way to write it");
    exercise(&state, rest);
});
