// SPDX-License-Identifier: Apache-2.0
//! What the kernel shows of a monitor that runs a guest: of root's, and of one whose user has no rights.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::PATIENCE;
use super::code::Code;
use super::held::NOBODY_ID;
use super::monitor::{Monitor, kvm_or_skip, root_or_skip};

#[test]
fn while_a_guest_runs_its_monitor_is_jailed_in_every_way_whoever_started_it() {
    kvm_or_skip!();
    root_or_skip!();
    for user in [None, Some(NOBODY_ID)] {
        is_jailed(user);
    }
}

fn is_jailed(user: Option<u32>) {
    let dir = tempfile::TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, vec![0; 4096]).unwrap();
    let (kernel, config) = (Code::new().spin(), json!({ "disks": [{ "path": disk, "mode": "read_only" }] }));
    let mut monitor = match user {
        None => Monitor::start(&kernel, config),
        Some(user) => Monitor::start_as(user, &kernel, config),
    };
    monitor.wait_running();
    let of = |what: &str| format!("/proc/{}/{what}", monitor.pid());

    let kinds = ["mnt", "net", "ipc", "uts", "pid"].into_iter().chain(user.map(|_| "user"));
    for kind in kinds {
        let [theirs, ours] = [of(&format!("ns/{kind}")), format!("/proc/self/ns/{kind}")];
        assert_ne!(fs::read_link(theirs).unwrap(), fs::read_link(ours).unwrap(), "{user:?}: {kind}");
    }
    assert_eq!(fs::read_dir(of("root")).unwrap().count(), 0, "{user:?}: an empty root");
    assert!(fs::read(of("environ")).unwrap().is_empty(), "{user:?}: no environment");
    let limits = fs::read_to_string(of("limits")).unwrap();
    for (name, most) in [("Max core file size", 0), ("Max locked memory", 0), ("Max open files", 4096)] {
        let words = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace();
        let numbers: Vec<u64> = words.take(2).map(|word| word.parse().unwrap()).collect();
        assert!(numbers.iter().all(|number| *number <= most), "{user:?}: {name}: {numbers:?}");
    }
    let files: Vec<_> = monitor.open_files().into_iter().filter(|path| path.starts_with('/')).collect();
    let expected = |path: &String| path == "/dev/kvm" || path == "/dev/null" || *path == disk.to_string_lossy();
    assert!(files.iter().all(expected), "{user:?}: {files:?}");

    let threads = monitor.threads();
    let mut names: Vec<_> = threads.iter().map(|thread| thread.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["block 0", "midge-vmm", "vcpu 0"], "{user:?}");
    for thread in &threads {
        let status = |field: &str| thread.status(field).to_owned();
        let who = format!("{user:?}, {}", thread.name);
        assert_eq!([status("Seccomp"), status("NoNewPrivs")], ["2", "1"], "{who}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(set), "0000000000000000", "{who}: {set}");
        }
        for ids in [status("Uid"), status("Gid")] {
            let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let is_right = |id: &u32| user.map_or(*id > 1 << 16, |user| *id == user);
            assert!(ids.len() == 4 && ids.iter().all(|id| is_right(id) && *id == ids[0]), "{who}: {ids:?}");
        }
    }
    monitor.close_lifeline();
    let end = monitor.wait(PATIENCE);
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    let missing: Vec<_> = end.stderr.lines().filter(|line| !line.contains("landlock")).collect();
    assert!(missing.is_empty(), "{user:?}: {missing:?}");
}
