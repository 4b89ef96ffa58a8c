// SPDX-License-Identifier: Apache-2.0
//! What processes take: a monitor's own memory, told apart from its guest's.

/// Private memory of a process in KiB, the guest's RAM left out, and its program too: pages of files are shared with
/// whoever runs the same program, even those that smaps calls private because nobody else does at the moment.
pub(super) fn own_kib(pid: u32, guest_mib: u64) -> Option<u64> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    Some(private_kib(&smaps, guest_mib))
}

fn private_kib(smaps: &str, guest_mib: u64) -> u64 {
    // The guest's RAM is one row of mappings without a gap: files lie in it, pieces have rights of their own.
    let ram_kib = guest_mib << 9;
    let (mut own, mut row) = (0, Row::default());
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((from, to)) = addresses(first) {
            if from != row.end {
                own += row.own(ram_kib);
                row = Row { start: from, ..Row::default() };
            }
            row.end = to;
        } else if first == "Anonymous:" {
            row.anonymous_kib += words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    own + row.own(ram_kib)
}

/// Mappings that touch each other.
#[derive(Default)]
struct Row {
    start: u64,
    end: u64,
    anonymous_kib: u64,
}

impl Row {
    fn own(&self, ram_kib: u64) -> u64 {
        if (self.end - self.start) >> 10 >= ram_kib { 0 } else { self.anonymous_kib }
    }
}

/// The addresses of the mapping that an smaps heading `from-to` starts.
fn addresses(word: &str) -> Option<(u64, u64)> {
    let (from, to) = word.split_once('-')?;
    let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
    (from < to).then_some((from, to))
}

/// What a process takes, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Pages that nobody else has.
    pub(super) private: u64,
    /// Its part of the pages that it shares, with them.
    pub(super) proportional: u64,
    /// Its page tables.
    pub(super) page_tables: u64,
}

/// The account of a process, as the kernel keeps it.
pub(super) fn account(pid: u32) -> std::io::Result<Account> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Account {
        private: kib(&rollup, "Private_Clean") + kib(&rollup, "Private_Dirty"),
        proportional: kib(&rollup, "Pss"),
        page_tables: kib(&status, "VmPTE"),
    })
}

/// What the machine has, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// What can be had without swapping.
    pub(super) available: u64,
    /// The kernel's own objects.
    pub(super) slab: u64,
}

/// The machine as it is now.
pub(super) fn machine() -> Machine {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Machine { available: kib(&meminfo, "MemAvailable"), slab: kib(&meminfo, "Slab") }
}

/// The figure of a line `Name:   N kB`.
fn kib(text: &str, name: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let text = "Pss_Dirty:  9 kB\nPss:   120 kB\nPrivate_Clean: 4 kB\n";
        assert_eq!((kib(text, "Pss"), kib(text, "Private_Clean"), kib(text, "Private_Dirty")), (120, 4, 0));
    }

    #[test]
    fn this_process_and_machine_have_accounts() {
        let account = account(std::process::id()).unwrap();
        assert!(account.proportional >= account.private && account.page_tables > 0, "{account:?}");
        assert!(machine().available > 0 && self::account(u32::MAX).is_err());
    }

    #[test]
    fn guest_memory_is_not_the_monitors() {
        let smaps = "7f0000000000-7f0000100000 rw-p 0 00:00 0\nAnonymous: 600 kB\n\
            7f0000100000-7f0000200000 rw-p 0 08:01 5 /k\nAnonymous: 50 kB\n\
            7f0000200000-7f0008000000 rw-p 0 00:00 0\nAnonymous: 9000 kB\n\
            7f1000000000-7f1000010000 rw-p 0 00:00 0 [heap]\nRss: 64 kB\nPrivate_Clean: 4 kB\nAnonymous: 40 kB\n\
            7f2000000000-7f2000200000 r-xp 0 08:01 5 /midge-vmm\nPrivate_Dirty: 1500 kB\nAnonymous: 0 kB\n\
            7ffc00000000-7ffc00021000 rw-p 0 00:00 0 [stack]\nAnonymous: 12 kB\n";
        assert_eq!(private_kib(smaps, 128), 52);
    }
}
