// SPDX-License-Identifier: Apache-2.0
//! Tests of how a VM's end is told.

use super::*;
use crate::machine::console;
use crate::memory;
use vm_memory::{Bytes, GuestAddress};

const KERNEL: (u64, u64) = (0x10_0000, 0x20_0000);

/// Evidence of a guest that printed `text` and whose memory is `ram`.
fn told_with(ram: &GuestRam, stop: Stop, text: &str) -> Ending {
    let (mut port, output) = console::new(None, None);
    text.bytes().for_each(|byte| port.write(0, byte));
    Evidence::collect(Cause::Guest, stop, true, &output, ram, KERNEL).ending(ExitCounts::default())
}

fn ram() -> GuestRam {
    memory::allocate(2 << 20, false).unwrap()
}

fn told(stop: Stop, text: &str) -> Ending {
    told_with(&ram(), stop, text)
}

const PANIC: &str = "[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n[ 1.1] CPU: 0\n";

#[test]
fn a_reset_is_orderly_unless_the_kernel_panicked_before() {
    assert_eq!(told(Stop::Reset, "hello\n").reason, Reason::Reset);
    let ending = told(Stop::Reset, PANIC);
    assert_eq!(ending.reason, Reason::Panic);
    assert_eq!(ending.detail, "Kernel panic - not syncing: Attempted to kill init!");
    assert_eq!(ending.console_tail.last().unwrap(), "[ 1.1] CPU: 0");
}

#[test]
fn without_a_console_a_panic_is_known_by_its_mark_and_told_from_the_log() {
    let ram = ram();
    ram.write_obj(0x1234_u16, GuestAddress(0x472)).unwrap();
    let ending = told_with(&ram, Stop::Reset, "");
    assert_eq!((ending.reason, ending.detail.as_str()), (Reason::Panic, "the guest's kernel panicked"));

    let log = b"Linux version 6\0\0Command line: x\0\0Kernel panic - not syncing: y\0";
    ram.write_slice(log, GuestAddress(0x18_0000)).unwrap();
    let ending = told_with(&ram, Stop::Reset, "");
    assert_eq!(ending.detail, "Kernel panic - not syncing: y");
    assert_eq!(ending.console_tail[0], "Linux version 6");
}

#[test]
fn an_orderly_reset_is_not_looked_into() {
    let ram = ram();
    let log = b"Linux version 6\0\0Command line: x\0\0";
    ram.write_slice(log, GuestAddress(0x18_0000)).unwrap();
    assert!(told_with(&ram, Stop::Reset, "").console_tail.is_empty());
    assert_eq!(told_with(&ram, Stop::Shutdown, "").console_tail.len(), 2);
}

#[test]
fn a_shutdown_is_a_triple_fault_unless_the_kernel_panicked_before() {
    assert_eq!(told(Stop::Shutdown, "").reason, Reason::TripleFault);
    assert_eq!(told(Stop::Shutdown, PANIC).reason, Reason::Panic);
}

#[test]
fn a_failure_of_kvm_is_the_hosts_even_after_a_panic() {
    let ending = told(Stop::Failed("rip 0x10".to_owned()), PANIC);
    assert_eq!(ending.reason, Reason::HostError);
    assert_eq!(ending.detail, "rip 0x10");
}

#[test]
fn a_stop_from_outside_says_by_what() {
    for cause in [Cause::Signal, Cause::Lifeline] {
        let output = Output::default();
        let ending = Evidence::collect(cause, Stop::Asked, true, &output, &ram(), KERNEL).ending(ExitCounts::default());
        assert_eq!(ending.reason, Reason::Stopped);
        assert_eq!(ending.detail, cause.describe());
    }
}

#[test]
fn a_stop_from_outside_is_looked_into_only_if_nobody_talked_to_the_guest() {
    let ram = ram();
    ram.write_slice(b"Linux version 6\0\0Command line: x\0\0", GuestAddress(0x18_0000)).unwrap();
    for (is_silent, lines) in [(true, 2), (false, 0)] {
        let output = Output::default();
        let evidence = Evidence::collect(Cause::Lifeline, Stop::Asked, is_silent, &output, &ram, KERNEL);
        assert_eq!(evidence.ending(ExitCounts::default()).console_tail.len(), lines);
    }
}

#[test]
fn the_tail_is_bounded() {
    let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
    let tail = told(Stop::Reset, &text).console_tail;
    assert_eq!(tail.len(), TAIL_LINES);
    assert_eq!(tail.last().unwrap(), "line 99");
}
