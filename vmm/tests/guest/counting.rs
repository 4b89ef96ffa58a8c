// SPDX-License-Identifier: Apache-2.0
//! Guests that count, in memory or on a disk: how far they are shows whether they run, and what of them was copied.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::code::{AVAIL_INDEX, COUNTER, Code, USED_INDEX};
use super::held::{Held, Saved, eventually, word};

pub(super) fn counting(config: Value) -> Held {
    Held::boot(&Code::new().count(), config)
}

/// The counter of a running guest, by way of a resident.
pub(super) fn counter(vm: &Held) -> u64 {
    vm.freeze().save(0).word(COUNTER)
}

/// Waits until `look` finds more than `before`, as it does of a guest that runs; what it found.
pub(super) fn beyond(before: u64, look: impl Fn() -> u64) -> u64 {
    let mut now = 0;
    eventually("the guest stands still", || {
        now = look();
        now > before
    });
    now
}

/// Waits until a guest has counted beyond `before`.
pub(super) fn goes_on(vm: &Held, before: u64) -> u64 {
    beyond(before, || counter(vm))
}

/// Some time for guests to run, or not to.
pub(super) fn wait() {
    std::thread::sleep(Duration::from_millis(30));
}

/// Guests that write a counter into their disk, and the configuration of that disk.
pub(super) struct Writing {
    _dir: tempfile::TempDir,
    disks: Value,
}

impl Writing {
    pub(super) fn new() -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        let base = dir.path().join("base");
        fs::write(&base, vec![0xbb; 1 << 20]).unwrap();
        let disks = json!([{ "path": base, "mode": { "overlay_memory": { "cap_mib": 1 } } }]);
        Self { _dir: dir, disks }
    }

    pub(super) fn boot(&self) -> Held {
        Held::boot(&Code::new().write_disk(), json!({ "disks": self.disks }))
    }

    pub(super) fn restore(&self, saved: &Saved, is_resident: bool) -> Value {
        let mut config = saved.config(&[Some(&saved.layer)]);
        config["restore"]["resident"] = json!(is_resident);
        config["disks"] = self.disks.clone();
        config
    }
}

/// The counter of a guest that writes, after seeing that memory and disk are of one instant.
pub(super) fn written(vm: &Held) -> u64 {
    let saved = vm.freeze().save(1);
    let (counter, disk) = (saved.word(COUNTER), word(&saved.layer, 0));
    let [avail, used] = [AVAIL_INDEX, USED_INDEX].map(|at| saved.word(at) & 0xffff);
    // Offered, and not begun when the disk stood still; else it was finished.
    let waiting = avail.wrapping_sub(used);
    // The guest counts first and offers then: it may have been stopped between the two.
    let offered = counter.wrapping_sub(avail) & 0xffff;
    assert!(waiting <= 1 && offered <= 1, "counter {counter}, avail {avail}, used {used}");
    assert_eq!(disk, counter - waiting - offered, "counter {counter}, avail {avail}, used {used}");
    counter
}
