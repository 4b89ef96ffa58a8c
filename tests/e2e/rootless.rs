// SPDX-License-Identifier: Apache-2.0
//! Monitors of a user without rights, on an unmodified kernel with its own KVM: a guest boots, works and is forked, and every
//! process and thread of it is in its jail.
//!
//! In an emulated host monitors are root's; here this test binary stands in for the monitor ([`main`]), as [`crate::tracer`]
//! does. It gives the user what a machine of its own would (the device, the socket's directory), starts the real monitor as
//! that user, and tells on the console what the kernel showed of the user's processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use midge::cache::Cache;
use midge::sandbox::Sandbox;
use serde_json::{Value, json};

use crate::context::Context;
use crate::forks::text_of;
use crate::harness::with_rounds;
use crate::place::Place;
use crate::tracer::{beside, configuration, end_as, leave_streams};

crate::tests!("rootless":
    OurKernel monitors_of_a_user_without_rights_are_jailed_on_a_stock_kernel,
);

/// Whose monitors they are: nobody's, else.
const USER: u32 = 54321;
/// What the real monitor's name ends with.
const REAL: &str = ".user";
/// How a line on the console begins.
const TOLD: &str = "midge-rootless ";
/// Between two looks at the user's processes.
const LOOK: Duration = Duration::from_millis(200);

fn monitors_of_a_user_without_rights_are_jailed_on_a_stock_kernel(context: &Context) {
    let dir = tempfile::Builder::new().prefix("e2e-rootless-").tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let host = Place::emulated_with_stand_in(&context.bin, REAL, dir.path()).expect("an emulated host");
    let inside = context.program(&context.bin.join("e2e"), ["--inside", "rootless"]).limit(with_rounds(350));
    inside.at(&host).env("MIDGE_CACHE", readable_cache(dir.path())).run().code(0);
    let processes = told(&host.console());
    let (inside, outside): (Vec<&Value>, _) = processes.iter().partition(|process| is_jailed(process));
    assert_eq!(outside.len(), 1, "one waits outside for the end: {processes:#?}");
    let run_guests = inside.iter().filter(|process| !process["threads"]["vcpu 0"].is_null()).count();
    assert_eq!(run_guests, 2, "a monitor and its fork: {processes:#?}");
    context.assert_nothing_left();
}

/// A cache with the guest's kernel and image, where others than its owner may read.
fn readable_cache(dir: &Path) -> PathBuf {
    let (from, to) = (Cache::open().expect("a cache"), dir.join("cache"));
    for (kind, prefix) in [("kernels", "guest-"), ("images", "base-")] {
        let entries = fs::read_dir(from.root().join(kind)).expect("a directory").flatten();
        let named = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
        for artefact in entries.filter(named) {
            let into = to.join(kind).join(artefact.file_name());
            fs::create_dir_all(&into).expect("a directory");
            for file in fs::read_dir(artefact.path()).expect("a directory").flatten() {
                fs::copy(file.path(), into.join(file.file_name())).expect("there is room");
            }
        }
    }
    to
}

/// What the sandboxes do, in the process that is started for it.
pub(crate) async fn body() {
    let first = Sandbox::builder().mem_mib(128).disk_mib(64).forkable().start().await.expect("starts");
    text_of(&first, "echo kept > /opt/kept; sync").await;
    let fork = first.fork(1).await.expect("forks").sandboxes.pop().expect("one");
    assert_eq!(text_of(&fork, "cat /opt/kept").await, "kept\n");
    // Both are looked at meanwhile.
    tokio::time::sleep(10 * LOOK).await;
    first.stop().await;
    assert_eq!(text_of(&fork, "cat /opt/kept").await, "kept\n");
    fork.stop().await;
}

/// The user's processes, as they were told.
fn told(console: &str) -> Vec<Value> {
    let lines = console.lines().filter_map(|line| line.split_once(TOLD));
    lines.map(|(_, text)| serde_json::from_str(text).expect("JSON")).collect()
}

/// Fails for a process with anything that no process of a monitor may have; whether it is inside, apart from the machine.
fn is_jailed(process: &Value) -> bool {
    let is_inside = process["apart"] != json!([]);
    for (name, status) in process["threads"].as_object().expect("threads") {
        let is = |field: &str, value: &str| assert_eq!(status[field], value, "{name}, {field}: {process:#}");
        let user = [USER; 4].map(|id| id.to_string()).join(" ");
        is("Uid", &user);
        is("Gid", &user);
        is("Groups", "");
        is("NoNewPrivs", "1");
        is("Seccomp", "2");
        let sets = ["CapInh", "CapPrm", "CapEff", "CapAmb"].into_iter().chain(is_inside.then_some("CapBnd"));
        sets.for_each(|set| is(set, "0000000000000000"));
    }
    assert_eq!(process["environ"], "", "no environment: {process:#}");
    if is_inside {
        assert_eq!(process["apart"], json!(["ipc", "mnt", "net", "pid", "user", "uts"]), "{process:#}");
        assert_eq!(process["root"], json!([]), "an empty root: {process:#}");
    }
    is_inside
}

/// Whether this process was started as the monitor of an emulated host of [this test](self).
pub(crate) fn is_called() -> bool {
    crate::tracer::is_called() && beside(REAL).exists()
}

/// Starts the real monitor as the user, and ends as it does.
pub(crate) fn main() -> ExitCode {
    let config = configuration();
    let socket = config["vsock"]["uds"].as_str().map(PathBuf::from).expect("a socket");
    let dir = socket.parent().expect("a directory");
    let theirs = |path: &Path| chown(path, Some(USER), Some(USER)).expect("root may");
    theirs(dir);
    fs::read_dir(dir).expect("a directory").flatten().for_each(|entry| theirs(&entry.path()));
    theirs(Path::new("/dev/kvm"));
    let mut command = Command::new(beside(REAL));
    let mut monitor =
        command.args(std::env::args().skip(1)).env_clear().uid(USER).gid(USER).spawn().expect("a process");
    leave_streams();
    let threads = |processes: &[Value]| -> usize {
        processes.iter().map(|process| process["threads"].as_object().map_or(0, serde_json::Map::len)).sum()
    };
    // As they were when most of them were there, and had most threads.
    let mut seen = Vec::new();
    let status = loop {
        let now = processes();
        if threads(&now) >= threads(&seen) {
            seen = now;
        }
        match monitor.try_wait().expect("a child of ours") {
            Some(status) => break status,
            None => std::thread::sleep(LOOK),
        }
    };
    let lines: String = seen.iter().map(|process| format!("{TOLD}{process}\n")).collect();
    fs::write("/dev/console", lines).expect("there is a console");
    end_as(status)
}

/// What the kernel shows of the user's processes. One that ends meanwhile has none of it.
fn processes() -> Vec<Value> {
    let entries = fs::read_dir("/proc").expect("there is /proc").flatten().map(|entry| entry.path());
    let is_theirs = |path: &PathBuf| {
        let uid = status_of(path).remove("Uid").unwrap_or_default();
        uid.split_whitespace().any(|id| id == USER.to_string())
    };
    entries.filter(is_theirs).map(|path| describe(&path)).collect()
}

fn describe(process: &Path) -> Value {
    let tasks = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    let threads = tasks.map(|task| status_of(&task.path()));
    let threads: BTreeMap<String, _> =
        threads.map(|mut status| (status.remove("Name").unwrap_or_default(), status)).collect();
    let kinds = fs::read_dir("/proc/self/ns").expect("there are some").flatten();
    let kinds = kinds.filter_map(|entry| entry.file_name().into_string().ok());
    let is_apart = |kind: &String| {
        let of = |process: &Path| fs::read_link(process.join("ns").join(kind)).ok();
        of(process).is_some_and(|theirs| Some(theirs) != of(Path::new("/proc/self")))
    };
    // Those for children that are yet to be made are left out.
    let apart: BTreeSet<_> = kinds.filter(|kind| !kind.ends_with("_for_children")).filter(is_apart).collect();
    let root = fs::read_dir(process.join("root")).map(|entries| entries.flatten().map(|entry| entry.file_name()));
    let root = root.map(|names| names.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>());
    json!({
        "threads": threads,
        "apart": apart,
        "root": root.ok(),
        "environ": fs::read_to_string(process.join("environ")).ok(),
    })
}

/// The fields of `status` that say whose a thread is and what it may do; its words with one space between them.
fn status_of(thread: &Path) -> BTreeMap<String, String> {
    const FIELDS: [&str; 11] =
        ["Name", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    let text = fs::read_to_string(thread.join("status")).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| FIELDS.contains(name));
    fields.map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}
