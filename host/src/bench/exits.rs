// SPDX-License-Identifier: Apache-2.0
//! How often a VM left its guest, as the host's KVM counts it: debugfs has a directory for each VM, named
//! `<pid of its monitor>-<number of its descriptor>`. Read only; a host that does not show it gives an empty answer.

use std::collections::BTreeMap;
use std::path::Path;

use crate::ps;

/// Counters by name.
pub type Exits = BTreeMap<String, u64>;

/// The counters that tell where a boot's exits come from: all of them; nested page faults; ports and registers that no
/// memory backs; the guest's idling, its hypercalls, the host's interrupts; instructions that KVM had to emulate.
const COUNTERS: [&str; 8] =
    ["exits", "pf_taken", "io_exits", "mmio_exits", "halt_exits", "hypercalls", "irq_exits", "insn_emulation"];
/// Where debugfs is.
const ROOT: &str = "/sys/kernel/debug/kvm";

/// The counters of the VMs of the monitor that is known by `pid`, so far.
pub(super) fn of(pid: u32) -> Exits {
    below(Path::new(ROOT), ps::processes(pid).last().copied().unwrap_or(pid))
}

fn below(root: &Path, pid: u32) -> Exits {
    let mut sums = Exits::new();
    let prefix = format!("{pid}-");
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    for vm in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
        for name in COUNTERS {
            let text = std::fs::read_to_string(vm.path().join(name)).unwrap_or_default();
            if let Ok(count) = text.trim().parse::<u64>() {
                *sums.entry(name.to_owned()).or_default() += count;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_a_process_are_found_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        for (vm, name, text) in [
            ("41-9", "exits", "120\n"),
            ("41-9", "pf_taken", "7\n"),
            ("41-12", "exits", "1\n"),
            ("41-12", "io_exits", "none\n"),
            ("410-9", "exits", "5000\n"),
        ] {
            std::fs::create_dir_all(root.path().join(vm)).unwrap();
            std::fs::write(root.path().join(vm).join(name), text).unwrap();
        }
        let expected = [("exits", 121), ("pf_taken", 7)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!(below(root.path(), 41), Exits::from(expected));
    }

    #[test]
    fn host_that_shows_nothing_is_no_error() {
        assert!(below(Path::new("/nonexistent"), 1).is_empty());
    }
}
