// SPDX-License-Identifier: Apache-2.0
//! Any accesses of a vCPU outside RAM, at every address and port and in every width: each reaches
//! the one window that holds all of it or nobody, one command alone resets, and what a console
//! printed comes out in bounded, printable lines.
//!
//! And any guest memory as what its kernel last said.
//!
//! `./dev fuzz 60 ports`. Input: accesses of 12 bytes: what (1), width (1), place (2), value (8); or a
//! 255 and what lies behind the banner of a kernel's log.
#![no_main]

use std::cell::OnceCell;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use midge_vmm::machine::bus::{Bus, MmioDevice};
use midge_vmm::machine::console;
use midge_vmm::machine::ports::{Ports, ResetAsked};
use midge_vmm::memory::GuestRam;
use midge_vmm::postmortem::kernel_log;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const WINDOWS: u64 = 2;
const START: u64 = 0xd000_0000;
const TAIL_LINES: usize = 40;

/// Answers with its number, and keeps what came last.
struct Probe {
    number: u8,
    last: Arc<Mutex<Option<(u8, u64, usize)>>>,
}

impl MmioDevice for Probe {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        *self.last.lock().expect("one thread") = Some((self.number, offset, data.len()));
        data.fill(self.number);
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        *self.last.lock().expect("one thread") = Some((self.number, offset, data.len()));
    }
}

fn printable(line: &str) {
    assert!(line.chars().all(|c| !c.is_control() || c == '\t'), "{line:?}");
}

fn address(kind: u8, place: u16) -> u64 {
    let near = [START, START + 0x1000, START + 0x2000, 0, u64::MAX - 0xffff][usize::from(kind / 8) % 5];
    near.wrapping_add(u64::from(place)).wrapping_sub(if place & 1 == 0 { 0 } else { 0x10 })
}

/// The window that holds the whole access, and where in it.
fn holder(address: u64, len: usize) -> Option<(u8, u64, usize)> {
    let last = address.checked_add(len as u64)?.checked_sub(1)?;
    let window = address.checked_sub(START)? / 0x1000;
    let inside = window < WINDOWS && last.checked_sub(START)? / 0x1000 == window && len != 0;
    inside.then(|| (window as u8, (address - START) % 0x1000, len))
}

const RAM_BYTES: usize = 0x1_0000;

thread_local! {
    static RAM: OnceCell<GuestRam> = const { OnceCell::new() };
}

/// A log is bounded lines of printable text, whatever memory holds.
fn last_words(data: &[u8]) {
    let make = || GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("a small region can be mapped");
    let ram = RAM.with(|cell| cell.get_or_init(make).clone());
    let mut memory = [&b"Linux version "[..], data].concat();
    memory.resize(RAM_BYTES - 8, 0);
    ram.write_slice(&memory, GuestAddress(8)).expect("it is memory");
    let lines = kernel_log(&ram, 0, RAM_BYTES as u64);
    assert!(lines.len() <= data.len() / 6 + 1);
    assert!(lines.iter().all(|line| line.len() <= 512 && line.bytes().all(|byte| (b' '..=b'~').contains(&byte))));
}

fuzz_target!(|data: &[u8]| {
    if let [255, log @ ..] = data {
        return last_words(log);
    }
    let last = Arc::new(Mutex::new(None));
    let mut bus = Bus::default();
    for number in 0..WINDOWS as u8 {
        bus.attach(Arc::new(Mutex::new(Probe { number, last: Arc::clone(&last) })));
    }
    let eventfd = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let (port, output) = console::new(Some(eventfd()), Some(eventfd()));
    let (ports, mut cursor, mut bytes) = (Ports::new(port), 0, 0);
    for [kind, width, p0, p1, value @ ..] in data.as_chunks::<12>().0 {
        let place = u16::from_le_bytes([*p0, *p1]);
        let value = &value[..usize::from(*width) % 9];
        let port = if kind & 0x40 == 0 { [0x3f8, 0x60, 0x70, 0x64][usize::from(*p1) % 4] + (place & 7) } else { place };
        match kind % 8 {
            0 | 1 => {
                let mut found = value.to_vec();
                let address = address(*kind, place);
                *last.lock().expect("one thread") = None;
                if kind % 8 == 0 {
                    bus.read(address, &mut found)
                } else {
                    bus.write(address, value)
                }
                let held = holder(address, value.len());
                assert_eq!(*last.lock().expect("one thread"), held, "{address:#x}");
                let expected = held.map_or(0xff, |(number, ..)| number);
                assert!(kind % 8 == 1 || found.iter().all(|byte| *byte == expected));
            }
            2 | 3 => {
                let mut found = value.to_vec();
                ports.read(port, &mut found);
                let expected = match port {
                    0x3f8..=0x3ff => continue,
                    0x64 => 0xfd,
                    0x71 => 0,
                    _ => 0xff,
                };
                assert!(found.iter().all(|byte| *byte == expected));
            }
            4..=6 => {
                let asked = ports.write(port, value);
                let expected = (port == 0x64 && value.contains(&0xfe)).then_some(ResetAsked);
                assert_eq!(asked, expected);
                bytes += value.len();
            }
            _ => output.lines_since(&mut cursor).iter().for_each(|line| printable(line)),
        }
    }
    let tail = output.tail(TAIL_LINES);
    assert!(tail.len() <= TAIL_LINES && tail.iter().map(String::len).sum::<usize>() <= 3 * bytes);
    tail.iter().for_each(|line| printable(line));
    assert!(cursor <= bytes as u64);
});
