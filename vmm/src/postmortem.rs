// SPDX-License-Identifier: Apache-2.0
//! What the guest's kernel last said, read out of guest memory after the VM has stopped.
//!
//! With the console off nothing is printed while the guest runs: each character would be two
//! exits, and on some CPUs Linux has an emergency to tell at every boot (5 of 30 ms where an exit
//! costs 35 us). Linux keeps its log in memory all the same, so when a VM ends badly the log is
//! looked for there: the ring begins with the "Linux version" banner, its records are text with
//! a few bytes of bookkeeping between. Nothing depends on finding it; it is for humans to read.
//!
//! Also here: whether the kernel panicked, which Linux tells the firmware that is not there.
//!
//! Guest memory is hostile: it is copied in bounded pieces and only printable text comes out.

use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;

/// Where Linux writes how it wants to come up again (a word of the old BIOS data area).
const RESET_MODE: GuestAddress = GuestAddress(0x472);
/// "Warm": what `reboot=panic_warm` makes of a panic, and of nothing else.
const RESET_WARM: u16 = 0x1234;

/// First record of every Linux log. A record's text begins at a multiple of eight.
const BANNER: &[u8] = b"Linux version ";
/// What the first bytes behind the banner of a log must contain: its second record. The banner
/// alone stands in the kernel's constants too.
const SECOND_RECORD: &[u8] = b"Command line: ";
/// How far behind the banner the second record begins at most.
const SECOND_RECORD_WITHIN: usize = 1024;
/// Linux' usual log of 128 KiB to 256 KiB, read whole.
const LOG_BYTES: usize = 256 << 10;
/// Piece in which memory is searched.
const PIECE_BYTES: usize = 256 << 10;
/// Shorter runs of printable bytes are bookkeeping, not text.
const LINE_MIN_BYTES: usize = 6;
/// A longer line is cut.
const LINE_MAX_BYTES: usize = 512;

/// Whether the guest's last reset came from a panic.
pub fn panicked(ram: &GuestRam) -> bool {
    ram.read_obj::<u16>(RESET_MODE).is_ok_and(|mode| mode == RESET_WARM)
}

/// The guest's kernel log, oldest line first, searched for from `start` to `end`; empty when it
/// is not found.
pub fn kernel_log(ram: &GuestRam, start: u64, end: u64) -> Vec<String> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = start.checked_next_multiple_of(8).unwrap_or(end);
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let Some(piece) = piece.get_mut(..len) else { break };
        if ram.read_slice(piece, GuestAddress(at)).is_err() {
            break;
        }
        for (index, word) in piece.chunks_exact(8).enumerate() {
            if BANNER.starts_with(word) {
                let found = at.saturating_add(8 * index as u64);
                if let Some(lines) = log_at(ram, found, end) {
                    return lines;
                }
            }
        }
        at = at.saturating_add(len as u64);
    }
    Vec::new()
}

/// The log that begins at `found`, if one does.
fn log_at(ram: &GuestRam, found: u64, end: u64) -> Option<Vec<String>> {
    let len = usize::try_from(end.checked_sub(found)?).unwrap_or(LOG_BYTES).min(LOG_BYTES);
    let mut log = vec![0; len];
    ram.read_slice(&mut log, GuestAddress(found)).ok()?;
    let head = log.get(..SECOND_RECORD_WITHIN.min(len))?;
    if !head.starts_with(BANNER) || !head.windows(SECOND_RECORD.len()).any(|w| w == SECOND_RECORD) {
        return None;
    }
    Some(lines(&log))
}

/// Printable runs, as `strings` shows them.
fn lines(log: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    for run in log.split(|byte| !(b' '..=b'~').contains(byte)) {
        if run.len() >= LINE_MIN_BYTES {
            let run = without_residue(run);
            let run = run.get(..LINE_MAX_BYTES).unwrap_or(run);
            lines.push(String::from_utf8_lossy(run).trim_end().to_owned());
        }
    }
    lines
}

/// Linux shifts a text left by the two bytes of its level mark, which leaves the last two bytes
/// standing twice.
fn without_residue(run: &[u8]) -> &[u8] {
    match run {
        [text @ .., c, d] if text.ends_with(&[*c, *d]) => text,
        _ => run,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    const AT: u64 = 0x2a_0008;

    /// A log as Linux lays it out: an id of eight bytes before each text, texts padded to eight.
    fn put_log(ram: &GuestRam, at: u64, records: &[&str]) {
        let mut bytes = Vec::new();
        for (id, record) in (0x100_u64..).zip(records) {
            bytes.extend(id.to_le_bytes());
            bytes.extend(record.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        ram.write_slice(&bytes, GuestAddress(at - 8)).unwrap();
    }

    fn ram() -> GuestRam {
        allocate(8 << 20, false).unwrap()
    }

    const RECORDS: [&str; 4] =
        ["Linux version 6.12.1 (builder)", "Command line: quiet", "Kernel panic - not syncing: x", "CPU: 0 PID: 1"];

    #[test]
    fn the_log_is_found_wherever_it_is_and_read_in_order() {
        for at in [AT, 0x10_0008, 0x14_0000, 0x13_fff8, (8 << 20) - 128] {
            let ram = ram();
            put_log(&ram, at, &RECORDS);
            assert_eq!(kernel_log(&ram, 0x10_0000, 8 << 20), RECORDS, "{at:#x}");
        }
    }

    #[test]
    fn the_banner_among_the_kernels_constants_is_not_the_log() {
        let ram = ram();
        put_log(&ram, 0x11_0000, &["Linux version 6.12.1 (builder)", "unrelated text"]);
        put_log(&ram, AT, &RECORDS);
        assert_eq!(kernel_log(&ram, 0x10_0000, 8 << 20)[2], RECORDS[2]);
    }

    #[test]
    fn memory_without_a_log_or_outside_the_range_gives_nothing() {
        let ram = ram();
        assert!(kernel_log(&ram, 0, 8 << 20).is_empty());
        put_log(&ram, AT, &RECORDS);
        assert!(kernel_log(&ram, AT + 8, 8 << 20).is_empty());
        assert!(kernel_log(&ram, 0, AT).is_empty());
        assert!(kernel_log(&ram, 9 << 20, 10 << 20).is_empty());
        assert!(kernel_log(&ram, 5, 4).is_empty());
        assert!(kernel_log(&ram, u64::MAX - 3, u64::MAX).is_empty());
    }

    #[test]
    fn a_range_larger_than_memory_still_finds_what_is_there() {
        let ram = ram();
        put_log(&ram, AT, &RECORDS);
        assert_eq!(kernel_log(&ram, 0, (8 << 20) - 8).len(), 4);
    }

    #[test]
    fn escape_sequences_and_endless_lines_do_not_reach_a_terminal() {
        let ram = ram();
        let long = "yz".repeat(2000);
        put_log(&ram, AT, &[RECORDS[0], RECORDS[1], "red \u{1b}[31mwords\u{7} here", &long]);
        let lines = kernel_log(&ram, 0, 8 << 20);
        assert!(lines.iter().all(|line| line.bytes().all(|b| (b' '..=b'~').contains(&b))));
        assert_eq!(lines.last().unwrap().len(), LINE_MAX_BYTES);
    }

    #[test]
    fn the_two_bytes_that_linux_leaves_behind_a_text_are_cut() {
        assert_eq!(lines(b"reboot: machine restartrt\n"), ["reboot: machine restart"]);
        assert_eq!(lines(b"reboot: machine restart"), ["reboot: machine restart"]);
    }

    #[test]
    fn only_a_warm_reset_is_a_panic() {
        let ram = ram();
        assert!(!panicked(&ram));
        ram.write_obj(0x1234_u16, RESET_MODE).unwrap();
        assert!(panicked(&ram));
        ram.write_obj(0_u16, RESET_MODE).unwrap();
        assert!(!panicked(&ram));
    }
}
