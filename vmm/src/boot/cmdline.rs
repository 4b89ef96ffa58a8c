// SPDX-License-Identifier: Apache-2.0
//! The kernel's command line: the monitor's own words, then the user's.
//!
//! Later words win in Linux, so the user can override any of ours. Pure text.

use crate::config::ConsoleMode;

/// Longest command line Linux takes on x86, without its zero byte.
pub const MAX_BYTES: usize = 2047;

/// Why each word is there: `reboot=k` makes a reset one port write, `panic_warm` marks it when it
/// comes from a panic, `panic=-1` lets it come at once; the rest spares probes of hardware that
/// does not exist.
const ALWAYS: &str = "reboot=k,panic_warm panic=-1 8250.nr_uarts=0 i8042.noaux i8042.nokbd \
    tsc=reliable no_timer_check cryptomgr.notests random.trust_cpu=on swiotlb=noforce";
/// With the console off nothing is printed at all; the log stays in guest memory (see
/// `postmortem`). An early console would cost two exits a character, and 14 before the first.
const CONSOLE_OFF: &str = "quiet loglevel=0";
/// With the console on the same port is an ordinary terminal.
const CONSOLE_ON: &str = "8250.nr_uarts=1 console=ttyS0";

/// A virtio-mmio device as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceWord {
    /// First address of its window.
    pub start: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

/// The command line is longer than Linux takes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the kernel command line has {len} bytes with the monitor's own words; accepted: {max}")]
pub struct TooLong {
    /// Bytes it has.
    pub len: usize,
    /// Bytes the kernel takes.
    pub max: usize,
}

/// Composes the command line for a kernel that takes `max` bytes.
///
/// # Errors
/// [`TooLong`] with both numbers.
pub fn compose(console: ConsoleMode, devices: &[DeviceWord], user: &str, max: usize) -> Result<String, TooLong> {
    let mut words = vec![ALWAYS.to_owned()];
    words.push(match console {
        ConsoleMode::Off => CONSOLE_OFF.to_owned(),
        ConsoleMode::On => CONSOLE_ON.to_owned(),
    });
    words.extend(devices.iter().map(|d| format!("virtio_mmio.device=4K@{:#x}:{}", d.start, d.gsi)));
    words.extend(Some(user.trim().to_owned()).filter(|user| !user.is_empty()));
    let line = words.join(" ");
    let max = max.min(MAX_BYTES);
    if line.len() > max {
        return Err(TooLong { len: line.len(), max });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_words_come_last_so_that_they_win() {
        let line = compose(ConsoleMode::Off, &[], " loglevel=7 ", MAX_BYTES).unwrap();
        assert!(line.ends_with(" loglevel=7"), "{line}");
        assert!(!line.contains("  "), "{line}");
    }

    #[test]
    fn each_device_is_named_with_window_and_interrupt() {
        let device = DeviceWord { start: 0xd000_1000, gsi: 6 };
        let line = compose(ConsoleMode::Off, &[device], "", MAX_BYTES).unwrap();
        assert!(line.contains("virtio_mmio.device=4K@0xd0001000:6"), "{line}");
    }

    #[test]
    fn the_serial_port_is_probed_only_with_the_console_on() {
        let on = compose(ConsoleMode::On, &[], "", MAX_BYTES).unwrap();
        let off = compose(ConsoleMode::Off, &[], "", MAX_BYTES).unwrap();
        assert!(on.contains("console=ttyS0") && on.rfind("nr_uarts=1") > on.rfind("nr_uarts=0"));
        assert!(!off.contains("console=ttyS0") && !off.contains("nr_uarts=1"));
        assert!(off.contains("loglevel=0") && !on.contains("loglevel"));
    }

    #[test]
    fn one_byte_too_many_is_refused_with_both_numbers() {
        let own = compose(ConsoleMode::Off, &[], "x", MAX_BYTES).unwrap().len() - 1;
        let fits = "y".repeat(MAX_BYTES - own);
        assert_eq!(compose(ConsoleMode::Off, &[], &fits, MAX_BYTES).unwrap().len(), MAX_BYTES);
        let error = compose(ConsoleMode::Off, &[], &format!("{fits}y"), MAX_BYTES).unwrap_err();
        assert_eq!(error, TooLong { len: MAX_BYTES + 1, max: MAX_BYTES });
        assert!(compose(ConsoleMode::Off, &[], "x", 100).is_err());
    }

    #[test]
    fn the_longest_user_line_fits_with_every_device() {
        let devices = [DeviceWord { start: 0xd000_0000, gsi: 15 }; 9];
        let user = "z".repeat(crate::config::CMDLINE_MAX_BYTES - 300);
        assert!(compose(ConsoleMode::On, &devices, &user, MAX_BYTES).is_ok());
    }
}
