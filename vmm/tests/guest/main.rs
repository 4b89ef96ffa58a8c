// SPDX-License-Identifier: Apache-2.0
//! Real guests of a few instructions each, in the monitor's binary: what Linux is not needed for.
//!
//! Needs /dev/kvm; without it each test says so and passes. An unmodified kernel is not needed,
//! so these run on software KVM too.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod code;
mod counting;
#[path = "../../src/dice.rs"]
mod dice;
mod freeze;
mod held;
mod hostile;
mod jailed;
mod monitor;
mod script;
mod siblings;
mod snapshot;
mod working_set;

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use serde_json::json;

use code::Code;
use monitor::{Monitor, kvm_or_skip};

/// Far more than any of these guests takes, on an emulated host too.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn console_lines_become_events_and_a_reset_ends_in_order() {
    kvm_or_skip!();
    let guest = Code::new().print("hello\r\nfrom the guest\n").reset();
    let end = Monitor::start(&guest, json!({ "console": "on" })).wait(PATIENCE);
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    assert_eq!(end.exit["reason"], "reset");
    assert_eq!(end.console(), ["hello", "from the guest"]);
    assert!(end.exit["exits"]["io"].as_u64().unwrap() > 20);
    assert!(end.stderr.is_empty(), "{end:?}");
}

#[test]
fn the_stages_come_in_their_order_and_time_never_goes_back() {
    kvm_or_skip!();
    let end = Monitor::start(&Code::new().reset(), json!({})).wait(PATIENCE);
    let names: Vec<_> = end.stages().map(|stage| stage["name"].as_str().unwrap().to_owned()).collect();
    let expected = [
        ["exec", "config_read", "kvm_ready"].as_slice(),
        &["namespaces", "empty_root", "enclosed"],
        &["memory_ready", "kernel_mapped", "vcpus_ready", "jailed", "first_run"],
    ]
    .concat();
    assert_eq!(names, expected);
    for field in ["t_us", "mono_ns"] {
        let times: Vec<_> = end.stages().map(|stage| stage[field].as_u64().unwrap()).collect();
        assert!(times.is_sorted(), "{field}: {times:?}");
    }
}

#[test]
fn a_panic_text_before_the_reset_is_a_panic_with_its_own_exit_code() {
    kvm_or_skip!();
    let guest = Code::new().print("[ 0.1] Kernel panic - not syncing: test\n").reset();
    let end = Monitor::start(&guest, json!({ "console": "on" })).wait(PATIENCE);
    assert_eq!(end.status.code(), Some(4), "{end:?}");
    assert_eq!(end.exit["detail"], "Kernel panic - not syncing: test");
    assert_eq!(end.stderr, "midge-vmm: Kernel panic - not syncing: test\n");
}

#[test]
fn a_reset_marked_as_warm_is_a_panic_even_without_a_console() {
    kvm_or_skip!();
    let guest = Code::new().store_word(0x472, 0x1234).reset();
    let end = Monitor::start(&guest, json!({})).wait(PATIENCE);
    assert_eq!((end.status.code(), &end.exit["reason"]), (Some(4), &json!("panic")), "{end:?}");
}

#[test]
fn a_triple_fault_is_told_from_a_panic() {
    kvm_or_skip!();
    let end = Monitor::start(&Code::new().undefined_instruction(), json!({})).wait(PATIENCE);
    assert_eq!((end.status.code(), &end.exit["reason"]), (Some(5), &json!("triple_fault")), "{end:?}");
}

#[test]
fn a_guest_that_spins_stops_when_the_lifeline_closes() {
    kvm_or_skip!();
    for cpus in [1, 2] {
        let mut monitor = Monitor::start(&Code::new().spin(), json!({ "cpus": cpus }));
        monitor.wait_running();
        let asked = Instant::now();
        monitor.close_lifeline();
        let end = monitor.wait(PATIENCE);
        assert_eq!((end.status.code(), &end.exit["reason"]), (Some(0), &json!("stopped")), "{end:?}");
        assert!(end.exit["detail"].as_str().unwrap().contains("lifeline"));
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
}

#[test]
fn every_stop_signal_stops_a_guest_that_spins() {
    kvm_or_skip!();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let mut monitor = Monitor::start(&Code::new().spin(), json!({}));
        monitor.wait_running();
        monitor.signal(signal);
        let end = monitor.wait(PATIENCE);
        assert_eq!((end.status.code(), &end.exit["reason"]), (Some(0), &json!("stopped")), "{signal}: {end:?}");
    }
}

#[test]
fn a_monitor_that_was_stopped_and_continued_goes_on() {
    kvm_or_skip!();
    let mut monitor = Monitor::start(&Code::new().spin(), json!({}));
    monitor.wait_running();
    for _ in 0..3 {
        monitor.signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(20));
        monitor.signal(libc::SIGCONT);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(monitor.threads().len(), 2, "main and one vCPU live on");
    monitor.close_lifeline();
    let end = monitor.wait(PATIENCE);
    assert_eq!(end.exit["reason"], "stopped", "{end:?}");
}

#[test]
fn a_killed_monitor_leaves_no_process() {
    kvm_or_skip!();
    let mut monitor = Monitor::start(&Code::new().spin(), json!({}));
    monitor.wait_running();
    monitor.signal(libc::SIGKILL);
    let end = monitor.wait(PATIENCE);
    assert_eq!(end.status.signal(), Some(libc::SIGKILL));
}

#[test]
fn the_guest_sees_no_nested_virtualisation() {
    kvm_or_skip!();
    let guest = Code::new()
        .unless_cpuid_ecx(1, 1 << 5, |code| code.print("no VMX\n"))
        .unless_cpuid_ecx(0x8000_0001, 1 << 2, |code| code.print("no SVM\n"))
        .reset();
    let end = Monitor::start(&guest, json!({ "console": "on" })).wait(PATIENCE);
    assert_eq!(end.console(), ["no VMX", "no SVM"]);
}

#[test]
fn the_command_line_reaches_the_guest_with_devices_named_and_the_users_words_last() {
    kvm_or_skip!();
    let dir = tempfile::TempDir::new().unwrap();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, vec![0; 4096]).unwrap();
    let config = json!({
        "console": "on", "cmdline": "rdinit=/x last=word",
        "disks": [{ "path": disk, "mode": "read_only" }],
        "vsock": { "guest_cid": 3, "uds": dir.path().join("v.sock") },
    });
    let end = Monitor::start(&Code::new().print_command_line().print("\n").reset(), config).wait(PATIENCE);
    let line = end.console().concat();
    assert!(line.ends_with(" rdinit=/x last=word"), "{line}");
    assert!(line.contains("virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"), "{line}");
}

#[test]
fn a_socket_that_exists_is_the_users_to_remove() {
    kvm_or_skip!();
    let dir = tempfile::TempDir::new().unwrap();
    let config = json!({ "vsock": { "guest_cid": 3, "uds": dir.path().join("v.sock") } });
    let mut first = Monitor::start(&Code::new().spin(), config.clone());
    first.wait_running();
    let second = Monitor::start(&Code::new().reset(), config).wait(PATIENCE);
    assert_eq!((second.status.code(), &second.exit["reason"]), (Some(2), &json!("config")), "{second:?}");
    assert!(second.exit["detail"].as_str().unwrap().contains("v.sock"), "{second:?}");
    first.close_lifeline();
    assert_eq!(first.wait(PATIENCE).status.code(), Some(0));
}

#[test]
fn an_overlay_file_serves_one_vm_at_a_time() {
    kvm_or_skip!();
    let dir = tempfile::TempDir::new().unwrap();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 16]).unwrap();
    let mode = json!({ "overlay_file": { "path": dir.path().join("overlay"), "cap_mib": 1 } });
    let config = json!({ "disks": [{ "path": disk, "mode": mode }] });
    let mut first = Monitor::start(&Code::new().spin(), config.clone());
    first.wait_running();
    let second = Monitor::start(&Code::new().reset(), config.clone()).wait(PATIENCE);
    assert_eq!((second.status.code(), &second.exit["reason"]), (Some(2), &json!("config")), "{second:?}");
    first.close_lifeline();
    first.wait(PATIENCE);
    let third = Monitor::start(&Code::new().reset(), config).wait(PATIENCE);
    assert_eq!(third.exit["reason"], "reset", "{third:?}");
}

#[test]
fn a_disk_that_is_no_whole_number_of_sectors_is_refused_with_its_length() {
    kvm_or_skip!();
    let dir = tempfile::TempDir::new().unwrap();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, vec![0; 777]).unwrap();
    let config = json!({ "disks": [{ "path": disk, "mode": "read_only" }] });
    let end = Monitor::start(&Code::new().reset(), config).wait(PATIENCE);
    assert_eq!(end.status.code(), Some(2), "{end:?}");
    assert!(end.exit["detail"].as_str().unwrap().contains("777"), "{end:?}");
}

#[test]
fn a_guest_that_floods_the_console_is_bounded_and_still_stops() {
    kvm_or_skip!();
    let mut monitor = Monitor::start(&Code::new().flood_console().spin(), json!({ "console": "on" }));
    monitor.wait_running();
    std::thread::sleep(Duration::from_millis(300));
    monitor.close_lifeline();
    let end = monitor.wait(PATIENCE);
    assert_eq!(end.exit["reason"], "stopped", "{:?}", end.exit);
    assert!(end.exit["console_tail"].as_array().unwrap().len() <= 20);
}

#[test]
fn memory_is_split_around_the_gap_and_both_parts_are_there() {
    kvm_or_skip!();
    // 3 GiB and 64 MiB: the kernel still boots below the gap, and KVM takes both slots.
    let end = Monitor::start(&Code::new().reset(), json!({ "mem_mib": 3136 })).wait(PATIENCE);
    if end.exit["detail"].as_str().unwrap().contains("mem_mib") {
        println!("skipped: this host has less memory than the test gives its guest");
        return;
    }
    assert_eq!(end.exit["reason"], "reset", "{end:?}");
}
