// SPDX-License-Identifier: Apache-2.0
//! What a guest writes first: seen in one, copied beforehand in the next.

use serde_json::{Value, json};

use super::code::COUNTER;
use super::counting::{counter, counting, goes_on};
use super::held::{Held, MEM_MIB, Saved};
use super::monitor::kvm_or_skip;

const PAGE_BYTES: u64 = 4096;
/// The page that a counting guest writes to.
const COUNTED: u64 = COUNTER as u64;
const _: () = assert!(COUNTED.is_multiple_of(PAGE_BYTES));

/// The snapshot of a guest that counts.
fn snapshot() -> Saved {
    let vm = counting(json!({}));
    goes_on(&vm, 0);
    vm.freeze().save(0)
}

fn started(saved: &Saved, resident: bool, working_set: &Value, track_writes: bool) -> Held {
    let mut config = saved.config(&[]);
    config["restore"]["resident"] = json!(resident);
    config["restore"]["working_set"] = working_set.clone();
    config["track_writes"] = json!(track_writes);
    Held::start(&config)
}

/// Waits until a guest has counted on.
fn counts_on(vm: &Held) {
    goes_on(vm, counter(vm));
}

#[test]
fn the_end_of_a_vm_tells_which_pages_its_guest_has_written_to() {
    kvm_or_skip!();
    let saved = snapshot();
    let mut vm = started(&saved, false, &json!([]), true);
    vm.wait_stage("first_run");
    counts_on(&vm);
    let end = vm.end();
    assert_eq!(end["reason"], "stopped", "{end}");
    let written: Vec<(u64, u64)> = serde_json::from_value(end["written"].clone()).unwrap();
    let holds = |page: u64| written.iter().any(|(start, len)| (*start..*start + *len).contains(&page));
    assert!(holds(COUNTED), "{written:x?}");
    assert!(!holds(COUNTED + PAGE_BYTES) && !holds(0), "nothing else of what it has: {written:x?}");
    assert!(written.is_sorted() && written.iter().all(|(start, len)| start % PAGE_BYTES == 0 && len % PAGE_BYTES == 0));
}

#[test]
fn the_end_of_a_vm_that_was_not_asked_tells_no_pages() {
    kvm_or_skip!();
    let saved = snapshot();
    let mut vm = started(&saved, false, &json!([]), false);
    vm.wait_stage("first_run");
    let end = vm.end();
    assert_eq!((&end["reason"], &end["written"]), (&json!("stopped"), &Value::Null));
}

#[test]
fn guests_go_on_with_what_was_copied_beforehand() {
    kvm_or_skip!();
    let saved = snapshot();
    let start = saved.word(COUNTER);
    let working_set = json!([[0, 8192], [COUNTED, PAGE_BYTES], [COUNTED + 0x10_0000, 0x10_0000]]);
    let mut vm = started(&saved, false, &working_set, false);
    vm.wait_stage("first_run");
    counts_on(&vm);
    let mut resident = started(&saved, true, &working_set, false);
    resident.wait_stage("resident");
    for _ in 0..2 {
        counts_on(&resident.fork());
    }
    assert_eq!(resident.save(0).word(COUNTER), start, "the resident's own memory stays as it was");
}

#[test]
fn a_working_set_that_is_no_guest_memory_is_refused_by_name() {
    kvm_or_skip!();
    let saved = snapshot();
    for start in [MEM_MIB << 20, (MEM_MIB << 20) - PAGE_BYTES] {
        let mut vm = started(&saved, true, &json!([[0, 4096], [start, 2 * PAGE_BYTES]]), false);
        let end = vm.wait_end();
        assert_eq!(end["reason"], "config", "{end}");
        let detail = end["detail"].as_str().unwrap();
        assert!(detail.contains("working_set") && detail.contains(&format!("{start:#x}")), "{detail}");
    }
}
