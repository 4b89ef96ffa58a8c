// SPDX-License-Identifier: Apache-2.0
//! The I/O ports: a console, the reset line of the keyboard controller, and nothing else.
//!
//! No firmware device is emulated. What Linux asks absent hardware is answered so that it stops
//! asking: see [`read`](Ports::read) for each port that differs from all ones.

use std::sync::{Mutex, PoisonError};

use super::console;

/// Status and command port of the keyboard controller.
const I8042_COMMAND: u16 = 0x64;
/// The command with which `reboot=k` pulls the CPU's reset line.
const I8042_RESET: u8 = 0xfe;
/// What a read of [`I8042_COMMAND`] gives: bit 1 (input full) clear, so that a reboot does not
/// wait two seconds for it; bit 0 (output full) stuck at one, so that a driver finds no controller.
const I8042_STATUS: u8 = 0xfd;
/// Data port of the CMOS clock; zero, as all ones would be "update in progress" for ever.
const CMOS_DATA: u16 = 0x71;

/// The guest asked for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetAsked;

/// Every port that answers.
#[derive(Debug)]
pub struct Ports {
    console: Mutex<console::Port>,
}

impl Ports {
    /// Ports with this console.
    pub fn new(console: console::Port) -> Self {
        Self { console: Mutex::new(console) }
    }

    /// The guest reads `data.len()` bytes from `port`, or repeats a read of one byte.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            console::PORT_FIRST..=console::PORT_LAST => {
                let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
                data.fill_with(|| console.read(console_offset(port)));
            }
            I8042_COMMAND => data.fill(I8042_STATUS),
            CMOS_DATA => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// The guest writes `data` to `port`, at once or byte after byte.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<ResetAsked> {
        match port {
            console::PORT_FIRST..=console::PORT_LAST => {
                let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
                for &byte in data {
                    console.write(console_offset(port), byte);
                }
                None
            }
            I8042_COMMAND => data.contains(&I8042_RESET).then_some(ResetAsked),
            _ => None,
        }
    }
}

/// Register of a console port, 0 to 7.
fn console_offset(port: u16) -> u8 {
    (port & 7).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> (Ports, console::Output) {
        let (port, output) = console::new(None, None);
        (Ports::new(port), output)
    }

    #[test]
    fn only_the_reset_command_on_the_command_port_resets() {
        let (ports, _) = ports();
        assert_eq!(ports.write(0x64, &[0xfe]), Some(ResetAsked));
        assert_eq!(ports.write(0x64, &[0xff]), None);
        assert_eq!(ports.write(0x64, &[]), None);
        assert_eq!(ports.write(0x60, &[0xfe]), None);
    }

    #[test]
    fn a_reboot_does_not_wait_and_a_keyboard_driver_finds_nothing() {
        let (ports, _) = ports();
        let mut status = [0; 1];
        ports.read(0x64, &mut status);
        assert_eq!(status[0] & 2, 0, "input buffer must look empty");
        assert_eq!(status[0] & 1, 1, "output buffer must never drain");
    }

    #[test]
    fn absent_ports_read_as_ones_in_every_width() {
        let (ports, _) = ports();
        for width in [1, 2, 4, 64] {
            let mut data = vec![0; width];
            ports.read(0xcf8, &mut data);
            assert!(data.iter().all(|&b| b == 0xff));
            assert_eq!(ports.write(0xcf8, &data), None);
        }
    }

    #[test]
    fn whatever_is_written_to_whatever_port_only_the_reset_line_ends_the_guest() {
        let (ports, _) = ports();
        for port in 0..=u16::MAX {
            for width in [1, 2, 4, 8, 256] {
                for byte in [0, 0xfe, 0xff] {
                    let mut data = vec![byte; width];
                    let asked = ports.write(port, &data).is_some();
                    assert_eq!(asked, port == 0x64 && byte == 0xfe, "{port:#x}");
                    ports.read(port, &mut data);
                }
            }
        }
    }

    #[test]
    fn the_clock_never_says_update_in_progress() {
        let (ports, _) = ports();
        let mut data = [0xff];
        ports.read(0x71, &mut data);
        assert_eq!(data[0] & 0x80, 0);
    }

    #[test]
    fn a_repeated_write_prints_every_byte() {
        let (ports, output) = ports();
        ports.write(0x3f8, b"hello\n");
        assert_eq!(output.tail(1), ["hello"]);
        let mut state = [0; 1];
        ports.read(0x3fd, &mut state);
        assert_eq!(state[0] & 0x20, 0x20);
    }
}
