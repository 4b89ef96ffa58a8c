// SPDX-License-Identifier: Apache-2.0
//! Groups as files: what kernels do with them the end-to-end tests see (`tests/e2e/groups.rs`).

use super::*;

fn group(dir: &Path, name: &str) -> Group {
    let path = dir.join(name);
    fs::create_dir(&path).unwrap();
    Group::own(&path, FlockOperation::LockExclusive).unwrap()
}

#[test]
fn sweep_removes_what_nobody_holds_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let held = group(dir.path(), "midge-0123456789ab");
    for name in
        ["midge-000000000001", "midge-000000000002", "midge-host", "midge-00000000000g", "other", "0123456789ab"]
    {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    assert_eq!(beside(held.path()), 2);
    assert_eq!(sweep_in(dir.path()), 2);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
    let path = held.path().to_owned();
    drop(held);
    assert!(!path.exists(), "its owner removes it");
    assert_eq!(sweep_in(&dir.path().join("nowhere")), 0);
}

#[tokio::test(start_paused = true)]
async fn a_group_that_somebody_stays_in_is_left_with_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let occupied = group(dir.path(), "midge-0123456789ab");
    // As a group with processes, a directory with a file in it cannot be removed.
    let inhabitant = occupied.path().join("f");
    fs::write(&inhabitant, "").unwrap();
    let mut wait = Waits { until: Instant::now() + Duration::from_millis(20), pause: PAUSE_MIN };
    assert!(!is_removed(occupied.path()) && wait.next() == Some(PAUSE_MIN) && wait.next() == Some(2 * PAUSE_MIN));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(wait.next(), None);
    fs::remove_file(inhabitant).unwrap();
    occupied.remove().await;
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_leaf_of_those_inside_is_the_monitor() {
    let dir = tempfile::tempdir().unwrap();
    let group = group(dir.path(), "midge-0123456789ab");
    assert!(group.leaf().is_none(), "there is no list");
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let list = |pids: &[u32]| {
        let lines: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(group.path().join("cgroup.procs"), lines).unwrap();
    };
    list(&[std::process::id(), child.id()]);
    assert_eq!(group.leaf().as_ref().and_then(number_of), Some(child.id()));
    list(&[child.id(), 1]);
    assert!(group.leaf().is_none(), "two");
    list(&[]);
    assert!(group.leaf().is_none(), "nobody");
    list(&[std::process::id(), child.id()]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(group.leaf().as_ref().and_then(number_of), Some(child.id()));
    fs::remove_file(group.path().join("cgroup.procs")).unwrap();
}
