// SPDX-License-Identifier: Apache-2.0
//! Free memory of the guest is taken and held, so that the host can have it back.
//!
//! Only while the guest stands still: nothing that runs can be short of what is held here. What is held is the agent's
//! own until it lets go, so whatever the host makes of its content is right: the guest's kernel takes the pages back as
//! used ones, and clears them before a program sees them. Clean caches go first; a reserve stays with the kernel, whose
//! own threads run on.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;

use midge_protocol::{ErrorCode, Failure, Gathered, MAX_GATHERED_PAGES, PageRange};

use crate::link::failure;
use crate::stats::meminfo_kib;
use crate::sys::memory::Held;

const PAGE_BYTES: usize = 4096;
/// Least and most memory that stays with the kernel, in KiB.
const RESERVE_KIB: std::ops::RangeInclusive<u64> = 4096..=65_536;
/// Less than this is not worth a step, in KiB.
const STEP_MIN_KIB: u64 = 256;
/// In an entry of `/proc/self/pagemap`: the page is in memory.
const PRESENT: u64 = 1 << 63;
/// There, the bits with its number.
const NUMBER: u64 = (1 << 55) - 1;

/// What is held so far.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    held: Vec<Held>,
}

impl Gathering {
    /// Takes the next step's worth; an empty answer when there is no more. What the step before took can be moved by the
    /// kernel from here on.
    pub(crate) fn next(&mut self) -> Result<Gathered, Failure> {
        match self.held.last_mut() {
            Some(last) => last.unpin(),
            // A kernel without this file keeps its caches, and less is free.
            None => drop(fs::write("/proc/sys/vm/drop_caches", "1")),
        }
        let meminfo = fs::read_to_string("/proc/meminfo").map_err(|error| failure(&error))?;
        let step_bytes = step_bytes(&meminfo);
        if step_bytes == 0 {
            return Ok(Gathered { ranges: Vec::new() });
        }
        // Short of memory all of a sudden: that is the end of it.
        let Ok(held) = Held::take(step_bytes) else { return Ok(Gathered { ranges: Vec::new() }) };
        let (start, len) = held.pinned();
        let numbers = page_numbers(start, len).map_err(|error| failure(&error))?;
        let ranges = merge(numbers.ok_or_else(|| Failure {
            code: ErrorCode::Unsupported,
            errno: 0,
            text: "gathering free memory: the kernel does not tell where it is".to_owned(),
        })?);
        self.held.push(held);
        Ok(Gathered { ranges })
    }
}

/// How much the next step takes.
fn step_bytes(meminfo: &str) -> usize {
    let reserve_kib = (meminfo_kib(meminfo, "MemTotal") / 32).clamp(*RESERVE_KIB.start(), *RESERVE_KIB.end());
    let free_kib = meminfo_kib(meminfo, "MemFree").min(meminfo_kib(meminfo, "MemAvailable"));
    let spare_kib = free_kib.saturating_sub(reserve_kib);
    if spare_kib < STEP_MIN_KIB {
        return 0;
    }
    let pages = usize::try_from(spare_kib / 4).unwrap_or(usize::MAX);
    pages.min(MAX_GATHERED_PAGES) * PAGE_BYTES
}

/// The numbers of the pages of this process' memory; `None` where the kernel hides them.
fn page_numbers(start: usize, len: usize) -> io::Result<Option<Vec<u64>>> {
    let mut entries = vec![0; len / PAGE_BYTES * 8];
    let at = u64::try_from(start / PAGE_BYTES * 8).unwrap_or(u64::MAX);
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, at)?;
    Ok(decode(&entries))
}

fn decode(entries: &[u8]) -> Option<Vec<u64>> {
    let mut numbers = Vec::with_capacity(entries.len() / 8);
    for entry in entries.as_chunks::<8>().0 {
        let entry = u64::from_le_bytes(*entry);
        if entry & PRESENT != 0 {
            let number = entry & NUMBER;
            // Page 0 belongs to nobody: that is what is shown to those who may not know.
            if number == 0 {
                return None;
            }
            numbers.push(number);
        }
    }
    Some(numbers)
}

fn merge(mut numbers: Vec<u64>) -> Vec<PageRange> {
    numbers.sort_unstable();
    let mut ranges: Vec<PageRange> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some(last) if last.first + u64::from(last.count) == number => last.count += 1,
            _ => ranges.push(PageRange { first: number, count: 1 }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meminfo(total: u64, free: u64, available: u64) -> String {
        format!("MemTotal: {total} kB\nMemFree: {free} kB\nMemAvailable: {available} kB\n")
    }

    #[test]
    fn a_step_leaves_the_reserve_and_is_bounded() {
        const FULL: usize = MAX_GATHERED_PAGES * PAGE_BYTES;
        assert_eq!(step_bytes(&meminfo(1 << 20, 1 << 19, 1 << 19)), FULL);
        assert_eq!(step_bytes(&meminfo(131_072, 4096 + 255, 100_000)), 0, "free memory less than 256 KiB beyond 4 MiB");
        assert_eq!(step_bytes(&meminfo(131_072, 4096 + 256, 100_000)), 256 << 10);
        assert_eq!(step_bytes(&meminfo(131_072, 100_000, 4096 + 259)), 256 << 10, "whole pages, and what is available");
        assert_eq!(step_bytes(&meminfo(1 << 20, 32_768 + 255, 1 << 20)), 0, "a 32nd of a gibibyte");
        assert_eq!(step_bytes(&meminfo(1 << 30, 65_536 + 256, 1 << 30)), 256 << 10, "64 MiB of a tebibyte");
        assert_eq!(step_bytes(""), 0);
    }

    #[test]
    fn pages_become_ascending_ranges_that_do_not_touch() {
        let range = |first, count| PageRange { first, count };
        assert_eq!(merge(vec![9, 3, 4, 1, 5, 11]), [range(1, 1), range(3, 3), range(9, 1), range(11, 1)]);
        assert_eq!(merge(Vec::new()), []);
    }

    #[test]
    fn only_pages_in_memory_are_told_and_hidden_numbers_are_seen() {
        let entries = |list: &[u64]| list.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<u8>>();
        let soft_dirty = 1 << 55;
        assert_eq!(decode(&entries(&[PRESENT | 7, 0, 1 << 62 | 9, PRESENT | soft_dirty | 8])), Some(vec![7, 8]));
        assert_eq!(decode(&entries(&[PRESENT | 7, PRESENT])), None);
    }

    #[test]
    fn memory_that_is_held_is_there_and_stays_where_it_is() {
        let mut held = Held::take(64 * PAGE_BYTES).unwrap();
        let (start, len) = held.pinned();
        assert_eq!(len, 64 * PAGE_BYTES);
        // Somebody without the right to know sees no numbers.
        if let Some(numbers) = page_numbers(start, len).unwrap() {
            assert_eq!(numbers.len(), 64, "every page is there");
            assert_eq!(page_numbers(start, len).unwrap(), Some(numbers));
        }
        held.unpin();
        assert_eq!(held.pinned(), (start, 0));
    }
}
