// SPDX-License-Identifier: Apache-2.0
//! Guests that are saved into files and go on from them: what they find, what is refused.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use serde_json::{Value, json};

use super::code::COUNTER;
use super::counting::{Writing, beyond, counting, goes_on, written};
use super::held::{Held, MEM_MIB, word};
use super::monitor::kvm_or_skip;

#[test]
fn a_guest_goes_on_from_files_in_another_process_and_so_do_its_forks() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let saved = vm.freeze().save(0);
    let start = saved.word(COUNTER);
    let before = fs::read(&saved.memory).unwrap();
    let mut again = Held::start(&saved.config(&[]));
    again.wait_stage("first_run");
    assert_eq!(
        again.stages()[..7],
        ["exec", "config_read", "kvm_ready", "namespaces", "empty_root", "enclosed", "state_read"]
    );
    goes_on(&again, start);
    let mut config = saved.config(&[]);
    config["restore"]["resident"] = json!(true);
    let mut resident = Held::start(&config);
    resident.wait_stage("resident");
    for _ in 0..3 {
        goes_on(&resident.fork(), start);
    }
    assert!(before == fs::read(&saved.memory).unwrap(), "a snapshot's file is never written");
    assert_eq!(resident.end()["reason"], "stopped");
    assert_eq!(resident.exit_code(), Some(0));
}

#[test]
fn a_full_disk_fails_the_save_and_nothing_else() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let resident = vm.freeze();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let file = || tempfile::tempfile().unwrap();
    for (files, word) in [([full(), file()], "writing the state"), ([file(), full()], "writing memory")] {
        let what = resident.order(&json!({ "save": {} }), &files.each_ref().map(AsFd::as_fd)).unwrap_err();
        assert!(what.contains(word) && what.contains("No space left"), "{what}");
    }
    let path = resident.dir.path().join("read-only");
    fs::write(&path, b"").unwrap();
    let closed = File::open(&path).unwrap();
    let what = resident.order(&json!({ "save": {} }), &[closed.as_fd(), file().as_fd()]).unwrap_err();
    assert!(what.contains("writing the state"), "{what}");
    goes_on(&resident.fork(), resident.save(0).word(COUNTER));
}

/// Saves once, and starts from damaged copies.
#[test]
fn a_damaged_snapshot_is_refused_with_the_name_of_the_file() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let resident = vm.freeze();
    let saved = resident.save(0);
    let state = fs::read(&saved.state).unwrap();
    let changed = |at: usize, to: u8| {
        let mut bytes = state.clone();
        bytes[at] = to;
        bytes
    };
    let flipped = changed(state.len() / 2, !state[state.len() / 2]);
    let version = changed(8, 77);
    let cut = state[..state.len() - 1].to_vec();
    let long = [&state[..], &[0]].concat();
    let cases: [(&[u8], &str); 7] = [
        (b"", "no state of a midge VM"),
        (b"MIDGE-VM", "its content is wrong"),
        (&cut, "cut short"),
        (&state[..1000], "cut short"),
        (&long, "bytes where its header says"),
        (&flipped, "damaged"),
        (&version, "version 77"),
    ];
    for (bytes, word) in cases {
        fs::write(&saved.state, bytes).unwrap();
        refused(&saved.config(&[]), &saved.state, word);
    }
    fs::write(&saved.state, &state).unwrap();
    let memory = File::options().write(true).open(&saved.memory).unwrap();
    memory.set_len((MEM_MIB << 20) - 4096).unwrap();
    refused(&saved.config(&[]), &saved.memory, "cut short");
    memory.set_len(MEM_MIB << 20).unwrap();
    let mut other = saved.config(&[]);
    other["mem_mib"] = json!(96);
    refused(&other, Path::new("mem_mib"), "the snapshot was taken of a VM with 32");
    let mut other = saved.config(&[]);
    other["vsock"] = json!({ "guest_cid": 3 });
    refused(&other, Path::new("vsock"), "with none");
    let mut whole = Held::start(&saved.config(&[]));
    whole.wait_stage("first_run");
}

/// Starting ends with exit code 2 and says `word` of `path`.
fn refused(config: &Value, path: &Path, word: &str) {
    let mut held = Held::start(config);
    let exit = held.wait_end();
    let detail = exit["detail"].as_str().unwrap();
    assert!(detail.contains(word) && detail.contains(&*path.to_string_lossy()), "{detail}");
    assert_eq!((held.exit_code(), &exit["reason"]), (Some(2), &json!("config")), "{detail}");
}

#[test]
fn a_snapshot_that_lies_about_its_devices_is_refused() {
    kvm_or_skip!();
    let writing = Writing::new();
    let vm = writing.boot();
    let saved = vm.freeze().save(1);
    let mut state = fs::read(&saved.state).unwrap();
    // The registers of the disk: status 0xf, two selectors, VERSION_1.
    let registers = [&[0xf, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..], &(1_u64 << 32).to_le_bytes()].concat();
    let at = state.windows(registers.len()).position(|window| window == registers).expect("the disk's registers");
    state[at] = 7;
    let checksum = crc32fast::hash(&state[16..]);
    state[12..16].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&saved.state, &state).unwrap();
    refused(&writing.restore(&saved, false), Path::new("device 0"), "no driver could have set up");
}

#[test]
fn a_resident_needs_a_control_socket() {
    kvm_or_skip!();
    let vm = counting(json!({}));
    let resident = vm.freeze();
    let saved = resident.save(0);
    let mut config = saved.config(&[]);
    config["restore"]["resident"] = json!(true);
    config["mem_mib"] = json!(MEM_MIB);
    config["cpus"] = json!(1);
    let path = resident.dir.path().join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let output = std::process::Command::new(super::held::MONITOR)
        .arg("--config")
        .arg(&path)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SOCK_SEQPACKET"), "{output:?}");
}

#[test]
fn a_forks_disk_is_its_own_and_goes_on_in_its_forks_and_from_files() {
    kvm_or_skip!();
    let writing = Writing::new();
    let vm = writing.boot();
    beyond(0, || written(&vm));
    let resident = vm.freeze();
    let saved = resident.save(1);
    let start = saved.word(COUNTER);
    let mut line = vec![resident.fork()];
    for _ in 0..3 {
        let fork = line.last().unwrap().freeze().fork();
        line.push(fork);
    }
    for fork in &line {
        beyond(start, || written(fork));
    }
    assert_eq!(word(&resident.save(1).layer, 0), word(&saved.layer, 0), "the resident's layer has not changed");
    let layer = fs::read(&saved.layer).unwrap();
    let mut again = Held::start(&writing.restore(&saved, false));
    again.wait_stage("first_run");
    let mut base = Held::start(&writing.restore(&saved, true));
    base.wait_stage("resident");
    for vm in [&again, &base.fork()] {
        beyond(start, || written(vm));
    }
    assert!(layer == fs::read(&saved.layer).unwrap(), "a snapshot's layer is never written");
}

#[test]
fn a_layer_that_is_missing_or_of_another_disk_is_refused() {
    kvm_or_skip!();
    let writing = Writing::new();
    let vm = writing.boot();
    let saved = vm.freeze().save(1);
    let mut none = writing.restore(&saved, false);
    none["restore"]["layers"] = json!([null]);
    refused(&none, Path::new("restore.layers[0]"), "a file");
    File::options().write(true).open(&saved.layer).unwrap().set_len(4096).unwrap();
    refused(&writing.restore(&saved, false), Path::new("disk 0"), "not as long");
}
