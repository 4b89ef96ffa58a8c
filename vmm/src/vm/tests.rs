// SPDX-License-Identifier: Apache-2.0
//! Tests of how a VM's end is told.

use super::*;

fn console_with(text: &str) -> Output {
    let (mut port, output) = console::new(None, None);
    text.bytes().for_each(|byte| port.write(0, byte));
    output
}

fn told(stop: Stop, text: &str) -> Ending {
    ending(Cause::Guest, stop, &console_with(text), ExitCounts::default())
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
        let ending = ending(cause, Stop::Asked, &console_with(""), ExitCounts::default());
        assert_eq!(ending.reason, Reason::Stopped);
        assert_eq!(ending.detail, cause.describe());
    }
}

#[test]
fn the_tail_is_bounded() {
    let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
    let tail = told(Stop::Reset, &text).console_tail;
    assert_eq!(tail.len(), TAIL_LINES);
    assert_eq!(tail.last().unwrap(), "line 99");
}

#[test]
fn the_users_faults_are_told_from_the_hosts() {
    let vcpus = VmError::Kvm(KvmError::Vcpus { asked: 32, max: 4 });
    assert_eq!(vcpus.reason(), Reason::Config);
    let absent = VmError::Kvm(KvmError::Absent(io::ErrorKind::NotFound.into()));
    assert_eq!(absent.reason(), Reason::HostError);
    let entropy = VmError::Boot(BootError::Entropy(io::ErrorKind::Other.into()));
    assert_eq!(entropy.reason(), Reason::HostError);
    let room = VmError::Boot(BootError::InitramfsRoom { len: 1, kernel_end: 2, limit: 3 });
    assert_eq!(room.reason(), Reason::Config);
}
