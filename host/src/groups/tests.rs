// SPDX-License-Identifier: Apache-2.0
//! What is written into a group's files, and read from them.

use super::*;

fn allowance() -> Allowance {
    Allowance { memory_mib: 1024, cpus: 2, cpu_percent: None, io: None, at_rest: false }
}

#[test]
fn limits_follow_from_the_size_of_the_guest() {
    let settings = allowance().settings();
    let of = |name: &str| settings.iter().find(|(_, file, _)| *file == name).map(|(_, _, text)| text.as_str());
    let most_bytes = (1024 + 16 + OVERHEAD_MIB) << 20;
    assert_eq!(of("memory.max"), Some(most_bytes.to_string().as_str()));
    assert_eq!((of("memory.swap.max"), of("memory.oom.group"), of("pids.max")), (Some("0"), Some("1"), Some("34")));
    assert_eq!((of("cpu.max"), of("io.max")), (None, None), "nothing that was not asked for");
    let held = Allowance { cpu_percent: Some(50), io: Some(("8:0".to_owned(), 1 << 20)), at_rest: true, ..allowance() };
    assert_eq!(held.settings(), settings, "what a template at rest may have is not its forks' share");
    let asked = held.of_fork().settings();
    assert!(asked.contains(&(Controller::Cpu, "cpu.max", "50000 100000".to_owned())));
    assert!(asked.contains(&(Controller::Io, "io.max", "8:0 rbps=1048576 wbps=1048576".to_owned())));
}

#[test]
fn a_guest_that_is_copied_may_write_all_of_its_memory_once_more() {
    assert_eq!(allowance().memory_max_bytes(1), (2048 + 32 + OVERHEAD_MIB) << 20);
    let huge = Allowance { memory_mib: u64::MAX, ..allowance() };
    assert_eq!(huge.memory_max_bytes(u64::MAX), u64::MAX);
}

#[test]
fn only_a_limit_that_was_asked_for_is_insisted_on() {
    let missing = || Err(GroupError::Missing(Missing::Off));
    assert!(allowance().tolerate::<()>(missing()).unwrap().is_none());
    let asked = Allowance { cpu_percent: Some(1), ..allowance() };
    assert!(asked.tolerate::<()>(missing()).unwrap_err().to_string().contains("MIDGE_CGROUP"));
    assert_eq!(asked.asked().collect::<Vec<_>>(), [Controller::Cpu]);
}

#[test]
fn use_is_what_the_files_say() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Usage::of(dir.path()), None);
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    put("cgroup.procs", "");
    let nothing = Usage {
        path: dir.path().into(),
        memory_bytes: None,
        processes: None,
        cpu_us: None,
        oom_kills: None,
        beside: 0,
    };
    assert_eq!(Usage::of(dir.path()), Some(Usage { beside: Usage::of(dir.path()).unwrap().beside, ..nothing }));
    put("memory.current", "4096\n");
    put("pids.current", "5\n");
    put("cpu.stat", "usage_usec 77\nuser_usec 1\n");
    put("memory.events", "oom 1\noom_kill 2\n");
    let used = Usage::of(dir.path()).unwrap();
    assert_eq!(
        (used.memory_bytes, used.processes, used.cpu_us, used.oom_kills),
        (Some(4096), Some(5), Some(77), Some(2))
    );
}

#[test]
fn a_file_without_a_disk_below_it_is_named() {
    let refused = device_of(Path::new("/proc/self/stat")).unwrap_err().to_string();
    assert!(refused.contains("/proc/self/stat"), "{refused}");
}

#[tokio::test]
async fn the_group_of_a_jails_first_process_goes_with_the_last_who_lives_there() {
    let dir = tempfile::tempdir().unwrap();
    let group = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        Some(Arc::new(Group::own(&path, rustix::fs::FlockOperation::LockExclusive).unwrap()))
    };
    let left = || {
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let first = Quarters::new(allowance(), State { home: group("first"), ..State::default() });
    let resident = first.of_copy();
    resident.state().next = group("fork");
    let fork = resident.hand_over();
    resident.state().next = group("next");
    let of_fork = fork.of_copy();
    of_fork.state().next = group("deep");
    let deep = of_fork.hand_over();
    assert_eq!((first.path(), fork.path()), (Some(dir.path().join("first")), Some(dir.path().join("fork"))));
    of_fork.clear().await;
    resident.clear().await;
    assert_eq!(left(), ["deep", "first", "fork"]);
    first.clear().await;
    assert_eq!(left(), ["deep", "first", "fork"], "both forks are in its jail");
    fork.clear().await;
    assert_eq!(left(), ["deep", "first"]);
    deep.clear().await;
    assert!(left().is_empty());
}
