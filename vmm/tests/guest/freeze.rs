// SPDX-License-Identifier: Apache-2.0
//! Guests that are frozen and forked: what goes on, what stays, who ends with whom, which orders are refused.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::code::{COUNTER, Code};
use super::counting::{Writing, beyond, counter, counting, goes_on, wait, written};
use super::held::{Held, MEM_MIB, children_of, eventually, not_ignored_by_children, zombies_of};
use super::monitor::kvm_or_skip;

#[test]
fn a_guest_that_was_frozen_goes_on_and_its_resident_keeps_what_was() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    goes_on(&vm, 0);
    let resident = vm.freeze();
    let first = resident.save(0);
    goes_on(&vm, first.word(COUNTER));
    let second = resident.save(0);
    let (one, other) = (first.word(COUNTER), second.word(COUNTER));
    assert_eq!(one, other, "the guest's writes do not reach its resident");
    assert_eq!(first.memory_bytes, second.memory_bytes);
    assert_eq!(fs::metadata(&first.memory).unwrap().len(), MEM_MIB << 20);
}

#[test]
fn forks_go_on_where_the_guest_was_frozen_each_for_itself() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let resident = vm.freeze();
    let start = resident.save(0).word(COUNTER);
    let forks = [resident.fork(), resident.fork()];
    for vm in forks.iter().chain([&vm]) {
        goes_on(vm, start);
    }
    assert_eq!(resident.save(0).word(COUNTER), start, "the resident's memory is not theirs");
    assert_eq!(forks[0].stages(), ["fork_asked", "forked", "memory_ready", "vcpus_ready", "jailed", "first_run"]);
}

#[test]
fn a_fork_of_a_fork_of_a_fork_remembers_all_of_it() {
    kvm_or_skip!();
    let mut line = vec![counting(json!({}))];
    let mut last = 0;
    for _ in 0..5 {
        last = goes_on(line.last().unwrap(), last);
        let resident = line.last().unwrap().freeze();
        let start = resident.save(0).word(COUNTER);
        assert!(start >= last, "{start} after {last}");
        let fork = resident.fork();
        line.extend([resident, fork]);
    }
    for vm in line.iter().step_by(2) {
        goes_on(vm, last);
    }
}

/// The policy of a resident is a fork's as well: it need not be put on again.
#[test]
fn a_distant_descendant_is_jailed_as_its_ancestor_and_carries_no_more_filters() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let first = vm.freeze().fork();
    let mut last = first.freeze().fork();
    for _ in 0..3 {
        last = last.freeze().fork();
    }
    for fork in [&first, &last] {
        assert_eq!(fork.status("Seccomp"), "2");
        assert_eq!(fork.status("NoNewPrivs"), "1");
    }
    assert_eq!(first.status("Seccomp_filters"), last.status("Seccomp_filters"));
}

#[test]
fn a_halted_guest_stays_halted_and_several_cpus_go_on() {
    kvm_or_skip!();
    let halted = Held::boot(&Code::new().halt(), json!({}));
    wait();
    let mut fork = halted.freeze().fork();
    wait();
    assert!(fork.is_running());
    let exit = fork.end();
    assert_eq!(exit["reason"], "stopped", "{exit}");
    assert!(exit["exits"]["interrupted"].as_u64().unwrap() < 100, "it sleeps: {exit}");
    let vm = counting(json!({ "cpus": 3 }));
    let resident = vm.freeze();
    let start = resident.save(0).word(COUNTER);
    goes_on(&resident.fork().freeze().fork(), start);
}

#[test]
fn a_fork_comes_to_its_own_end_and_the_others_to_theirs() {
    kvm_or_skip!();
    let vm = Held::boot(&Code::new().count_to(200_000).reset(), json!({}));
    let resident = vm.freeze();
    let mut ends = vec![resident.fork(), vm, resident.fork()];
    for held in &mut ends {
        let exit = held.wait_end();
        assert_eq!((&exit["event"], &exit["reason"]), (&json!("exit"), &json!("reset")), "{exit}");
    }
    let mut broken = Held::boot(&Code::new().count_to(100_000).undefined_instruction(), json!({}));
    let mut fork = broken.freeze().fork();
    assert_eq!(fork.wait_end()["reason"], "triple_fault");
    assert_eq!(broken.wait_end()["reason"], "triple_fault");
    assert_eq!(broken.exit_code(), Some(5));
}

#[test]
fn the_end_of_a_residents_socket_ends_it_while_its_forks_run_on() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let mut resident = vm.freeze();
    let mut forks = [resident.fork(), resident.fork()];
    let before = forks.each_ref().map(counter);
    let exit = resident.end();
    assert_eq!((&exit["reason"], &exit["detail"]), (&json!("stopped"), &json!("released by its host")));
    for (fork, before) in forks.iter().zip(before) {
        goes_on(fork, before);
    }
    let exit = forks[0].end();
    assert_eq!(exit["reason"], "stopped");
    assert!(exit["detail"].as_str().unwrap().contains("lifeline"), "{exit}");
    eventually("the process is gone", || !forks[0].is_running());
    assert!(forks[1].is_running() && vm.is_running());
}

#[test]
fn a_killed_resident_or_parent_is_noticed_by_its_host_and_by_nobody_else() {
    kvm_or_skip!();
    let mut vm = counting(json!({}));
    let mut resident = vm.freeze();
    let fork = resident.fork();
    let before = counter(&fork);
    resident.signal(libc::SIGKILL);
    assert_eq!(resident.wait_end(), Value::Null);
    assert!(resident.is_left(), "nobody else holds its end of the control socket");
    let after = goes_on(&fork, before);
    let other = vm.freeze();
    vm.signal(libc::SIGKILL);
    assert_eq!(vm.wait_end(), Value::Null);
    assert!(vm.is_left(), "nor its parent's");
    goes_on(&other.fork(), 0);
    goes_on(&fork, after);
}

#[test]
fn signals_stop_a_resident_and_a_fork() {
    kvm_or_skip!();
    let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    signals.into_iter().for_each(not_ignored_by_children);
    let vm = counting(json!({}));
    for signal in signals {
        let mut resident = vm.freeze();
        let mut fork = resident.fork();
        fork.signal(signal);
        let exit = fork.wait_end();
        assert_eq!((&exit["reason"], &exit["detail"]), (&json!("stopped"), &json!("stopped by a signal")));
        resident.signal(signal);
        resident.wait_end();
        eventually("the resident is gone", || !resident.is_running());
    }
    assert!(vm.is_running());
}

#[test]
fn two_hundred_forks_leave_neither_descriptor_nor_zombie_nor_memory() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let resident = vm.freeze();
    drop(resident.fork());
    let files = resident.open_files();
    let pages = |held: &Held| held.status("VmRSS").trim_end_matches(" kB").parse::<u64>().unwrap();
    let before = pages(&resident);
    for round in 0..200 {
        let mut fork = resident.try_fork().unwrap();
        if round % 2 == 0 {
            fork.wait_stage("first_run");
        }
        if round % 5 == 0 {
            fork.signal(libc::SIGKILL);
        }
        fork.end();
    }
    // One whose threads still end is a zombie until they have.
    eventually("every fork is gone", || children_of(resident.pid).is_empty() && zombies_of(resident.pid) == 0);
    assert_eq!(resident.open_files(), files);
    assert!(pages(&resident) < before + 512, "{} kB after, {before} kB before", pages(&resident));
    goes_on(&resident.fork(), 0);
}

#[test]
fn residents_that_ended_leave_no_zombie_and_their_parent_no_descriptor() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    vm.freeze().end();
    let files = vm.open_files();
    for _ in 0..20 {
        vm.freeze().end();
    }
    eventually("every resident has ended", || children_of(vm.pid).is_empty());
    eventually("and is forgotten", || zombies_of(vm.pid) == 0);
    assert_eq!(vm.open_files(), files);
}

/// The inodes of a process' sockets and the like: two with one in common can talk in each other's name.
fn channels(held: &Held) -> HashSet<String> {
    held.open_files().into_iter().filter(|path| path.starts_with("socket:") || path.starts_with("pipe:")).collect()
}

#[test]
fn no_process_holds_a_channel_of_another_or_its_vm() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let resident = vm.freeze();
    let fork = resident.fork();
    let own = [&vm, &resident, &fork].map(channels);
    for (one, other) in [(0, 1), (1, 2), (0, 2)] {
        let shared: Vec<_> = own[one].intersection(&own[other]).collect();
        assert!(shared.is_empty(), "{one} and {other} share {shared:?}");
    }
    let files = resident.open_files();
    assert!(!files.iter().any(|path| path.contains("kvm-v")), "a resident owns no VM: {files:?}");
    let vms = |held: &Held| held.open_files().iter().filter(|path| path.contains("kvm-vm")).count();
    assert_eq!((vms(&vm), vms(&fork)), (1, 1));
    let maps = fs::read_to_string(format!("/proc/{}/maps", resident.pid)).unwrap();
    assert!(!maps.contains("kvm-vcpu"), "nor keeps one alive by mapping its vCPUs");
}

/// What a guest can be told apart by is at the beginning of a fork's life what it was in the
/// resident: nothing is read or written through a channel that both have.
#[test]
fn a_fork_has_its_own_streams_as_the_standard_ones() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let resident = vm.freeze();
    let fork = resident.fork();
    let stream = |held: &Held, number: u32| fs::read_link(format!("/proc/{}/fd/{number}", held.pid)).unwrap();
    for number in [0, 1] {
        let all: HashSet<_> = [&vm, &resident, &fork].iter().map(|held| stream(held, number)).collect();
        assert_eq!(all.len(), 3, "stream {number}");
    }
}

#[test]
fn orders_that_make_no_sense_are_refused_and_everything_goes_on() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let null = File::open("/dev/null").unwrap();
    let fds = |count: usize| vec![null.as_fd(); count];
    let resident = vm.freeze();
    let discard = |start: u64, len: u64| json!({ "discard": { "ranges": [[start, len]] } });
    let end = MEM_MIB << 20;
    let (freeze, fork, save) = (json!({ "freeze": {} }), json!({ "fork": { "uds": "/x" } }), json!({ "save": {} }));
    for (held, order, count, word) in [
        (&vm, &freeze, 0, "3 descriptors"),
        (&vm, &freeze, 2, "3 descriptors"),
        (&vm, &freeze, 4, "3 descriptors"),
        (&vm, &freeze, 3, "SOCK_SEQPACKET"),
        (&vm, &fork, 3, "give the order to the resident"),
        (&vm, &save, 2, "give the order to the resident"),
        (&resident, &freeze, 3, "order a fork"),
        (&resident, &fork, 0, "3 descriptors"),
        (&resident, &fork, 4, "3 descriptors"),
        (&resident, &save, 0, "files"),
        (&resident, &save, 1, "files"),
        (&resident, &save, 3, "files"),
        (&resident, &json!({ "melt": {} }), 0, "melt"),
        (&resident, &json!([]), 0, "understanding the order"),
        (&vm, &json!({ "freeze": { "now": true } }), 3, "now"),
        (&vm, &discard(1, 4096), 0, "whole pages"),
        (&vm, &discard(4096, 1), 0, "whole pages"),
        (&vm, &discard(end - 4096, 8192), 0, "whole pages"),
        (&vm, &discard(u64::MAX - 4095, 4096), 0, "whole pages"),
        (&vm, &json!({ "discard": { "ranges": vec![[0, 4096]; 2049] } }), 0, "2049 ranges"),
        (&vm, &json!({ "discard": { "ranges": [[0.5, 4096]] } }), 0, "understanding the order"),
        (&resident, &discard(4096, 4096), 0, "forks begin with"),
    ] {
        let what = held.order(order, &fds(count)).expect_err(word);
        assert!(what.contains(word), "{order} with {count}: {what}");
    }
    for held in [&vm, &resident] {
        held.send(&vec![b' '; (128 << 10) + 1], &[]);
        assert!(held.hear().unwrap()["failed"]["what"].as_str().unwrap().contains("131072 bytes"));
        held.send(b"{\"save\":{}}", &fds(40));
        assert!(held.hear().unwrap()["failed"]["what"].as_str().unwrap().contains("16 descriptors"));
    }
    assert_eq!(children_of(vm.pid), [resident.pid], "no process was left behind");
    assert!(children_of(resident.pid).is_empty());
    goes_on(&vm, resident.save(0).word(COUNTER));
    goes_on(&resident.fork(), 0);
}

/// The page that a guest counts in is dropped under it: it counts on from what the host finds there.
#[test]
fn memory_that_is_discarded_is_empty_or_what_its_file_holds_and_the_guest_runs_on() {
    kvm_or_skip!();
    let discard = json!({ "discard": { "ranges": [[COUNTER / 4096 * 4096, 4096]] } });
    let dropped = json!({ "discarded": { "bytes": 4096 } });
    let vm = counting(json!({}));
    // It has counted for longer than it takes to look, however busy the machine is, or a drop that drops nothing is found.
    let (resident, before) = [1, 4, 16]
        .into_iter()
        .find_map(|seconds| {
            std::thread::sleep(std::time::Duration::from_secs(seconds));
            let resident = vm.freeze();
            let before = resident.save(0);
            assert_eq!(vm.order(&discard, &[]), Ok(dropped.clone()));
            (counter(&vm) < before.word(COUNTER)).then_some((resident, before))
        })
        .expect("the page is as it was");
    goes_on(&vm, counter(&vm));
    // A fork shares the page until it is dropped; nobody else loses anything.
    let fork = resident.fork();
    assert_eq!(fork.order(&discard, &[]), Ok(dropped));
    assert_eq!(resident.save(0).word(COUNTER), before.word(COUNTER));
    goes_on(&fork, 0);
}

#[test]
fn a_vm_that_cannot_have_a_twin_says_why_and_runs_on() {
    kvm_or_skip!();
    let dir = tempfile::TempDir::new().unwrap();
    let base = dir.path().join("base");
    fs::write(&base, vec![0; 1 << 16]).unwrap();
    let overlay = json!({ "overlay_file": { "path": dir.path().join("overlay"), "cap_mib": 1 } });
    for (config, word) in [
        (json!({ "forkable": false }), "forkable"),
        (json!({ "console": "on" }), "console"),
        (json!({ "disks": [{ "path": base, "mode": overlay }] }), "disk 0: its overlay is a file"),
    ] {
        let mut vm = counting(config);
        for _ in 0..3 {
            let what = vm.try_freeze().err().expect(word);
            assert!(what.contains(word), "{what}");
        }
        assert!(children_of(vm.pid).is_empty());
        assert_eq!(vm.end()["reason"], "stopped");
    }
}

#[test]
fn a_disk_is_frozen_with_its_memory_and_every_request_is_done_once() {
    kvm_or_skip!();
    let writing = Writing::new();
    let vm = writing.boot();
    let mut last = 0;
    for round in 0..25 {
        std::thread::sleep(Duration::from_micros(round * 37));
        last = beyond(last, || written(&vm));
    }
}

#[test]
fn clients_of_a_fork_knock_at_its_own_door() {
    kvm_or_skip!();
    let vm = counting(json!({ "vsock": { "guest_cid": 3 } }));
    let resident = vm.freeze();
    let null = File::open("/dev/null").unwrap();
    let what = resident.order(&json!({ "fork": { "uds": "/x" } }), &[null.as_fd(); 3]).unwrap_err();
    assert!(what.contains("5 descriptors"), "{what}");
    let long = json!({ "fork": { "uds": "x".repeat(200) } });
    let what = resident.order(&long, &[null.as_fd(); 5]).unwrap_err();
    assert!(what.contains("vsock.uds"), "{what}");
    let forks = [resident.fork(), resident.fork()];
    for fork in &forks {
        // Without a driver nobody answers: the client waits, and is not refused.
        let client = UnixStream::connect(fork.dir.path().join("v.sock")).unwrap();
        client.set_nonblocking(true).unwrap();
        wait();
        let error = std::io::Read::read(&mut &client, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
    let saved = resident.save(0);
    let mut again = saved.config(&[]);
    again["vsock"] = json!({ "guest_cid": 3 });
    let mut again = Held::start(&again);
    again.wait_stage("first_run");
    assert!(UnixStream::connect(again.dir.path().join("v.sock")).is_ok());
}

/// A freeze makes a resident or fails, whatever the guest is about to do; then its end is told.
#[test]
fn a_guest_that_ends_while_it_is_frozen_ends_all_the_same() {
    kvm_or_skip!();
    let mut frozen = 0;
    for round in 0_u32..15 {
        let mut vm = Held::boot(&Code::new().count_to(1 + 4000 * round).reset(), json!({}));
        let resident = vm.freeze_if_it_lives();
        let exit = vm.wait_end();
        assert_eq!(exit["reason"], "reset", "{round}: {exit}");
        if let Some(mut resident) = resident {
            frozen += 1;
            assert_eq!(resident.fork().wait_end()["reason"], "reset", "{round}");
            assert_eq!(resident.end()["reason"], "stopped", "{round}");
        }
    }
    assert!(frozen > 0, "no guest lived long enough");
}

/// Many at a time, as a pool would have them.
#[test]
fn many_forks_run_at_the_same_time_and_are_not_one_another() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let resident = vm.freeze();
    let start = resident.save(0).word(COUNTER);
    let mut forks: Vec<_> = (0..30).map(|_| resident.try_fork().unwrap()).collect();
    let pids: HashSet<_> = forks.iter().map(|fork| fork.pid).collect();
    assert_eq!(pids.len(), 30);
    for fork in &mut forks {
        fork.wait_stage("first_run");
    }
    for fork in forks.iter().step_by(10) {
        goes_on(fork, start);
    }
    let ends: Vec<_> = forks.iter_mut().map(Held::end).collect();
    assert!(ends.iter().all(|exit| exit["reason"] == "stopped"), "{ends:?}");
}
