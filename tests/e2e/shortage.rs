// SPDX-License-Identifier: Apache-2.0
//! Residents that are short of processes or memory: whoever wants a fork hears why there is none, and the resident lives.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use midge::error::chain;
use midge::template::Plan;

use crate::context::Context;
use crate::forks::text_of;
use crate::harness::skip;
use crate::library::inside;
use crate::ps::itself;
use crate::templates::held;

crate::tests!("shortage":
    NativeGuest fork_without_processes_leaves_the_template,
    NativeGuest fork_without_memory_leaves_the_template,
);

fn fork_without_processes_leaves_the_template(context: &Context) {
    if !Path::new(PIDS_GROUP).join("cgroup.procs").exists() {
        skip(format!("{PIDS_GROUP} is no control group for numbers of processes"));
    }
    inside(context, "crowded");
}

fn fork_without_memory_leaves_the_template(context: &Context) {
    inside(context, "starved");
}

const PIDS_GROUP: &str = "/sys/fs/cgroup/pids";

/// A resident in a group that holds no second process.
pub(crate) async fn crowded() {
    let held = held("crowded", Plan::default()).await;
    let group = Path::new(PIDS_GROUP).join(format!("midge-e2e-{}", std::process::id()));
    std::fs::create_dir(&group).expect("a group");
    let put = |file: &str, text: String| std::fs::write(group.join(file), text).expect("the group's own file");
    put("pids.max", "1".to_owned());
    put("cgroup.procs", itself(held.pid()).to_string());
    let refused = chain(&held.fork().await.expect_err("no process is left"));
    assert!(refused.contains("making a process") && refused.contains("end other forks of this template"), "{refused}");
    put("pids.max", "max".to_owned());
    let fork = held.fork().await.expect("forks again");
    assert_eq!(text_of(&fork, "echo whole").await, "whole\n");
    fork.kill().await;
    drop(held);
    // Its processes are gone once their VM is.
    for _ in 0..200 {
        if std::fs::remove_dir(&group).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} still has processes", group.display());
}

/// Bytes of address space that a process has.
fn space_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("the kernel tells");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

fn limit_space(pid: u32, limit: &str) {
    let words = [format!("--pid={pid}"), format!("--as={limit}:unlimited")];
    assert!(Command::new("prlimit").args(words).status().expect("util-linux is installed").success());
}

/// A resident, and so its forks, may have this much more memory than it has: from nothing to enough.
pub(crate) async fn starved() {
    let held = held("starved", Plan::default()).await;
    let pid = itself(held.pid());
    let has = space_bytes(pid);
    let (mut forks, mut refused) = (0, 0);
    for more in (0..12).map(|step| 8192_u64 << step).chain([0]) {
        limit_space(pid, &(has + more).to_string());
        match held.fork().await {
            Ok(fork) => {
                assert_eq!(text_of(&fork, "echo whole").await, "whole\n");
                fork.kill().await;
                forks += 1;
            }
            Err(error) => {
                let text = chain(&error);
                println!("{} KiB: {text}", more >> 10);
                assert!(text.to_lowercase().contains("memory") || text.contains("os error 11"), "{text}");
                refused += 1;
            }
        }
    }
    println!("{forks} forks, {refused} refused");
    assert!(forks > 0 && refused > 0, "{forks} forks, {refused} refused");
    limit_space(pid, "unlimited");
    let fork = held.fork().await.expect("the resident lives");
    assert_eq!(text_of(&fork, "echo whole").await, "whole\n");
    fork.kill().await;
}
