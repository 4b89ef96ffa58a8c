// SPDX-License-Identifier: Apache-2.0
//! Control groups: each monitor, resident and fork has one of its own, limits in it hold, and none is left behind, however
//! its owner ends.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use midge::exec::Exec;
use midge::groups::{Base, Controller, Share, Usage};
use midge::pool::{Limits, Pool};
use midge::sandbox::{Builder, Sandbox, Where};
use midge::template::{Held, Plan, Template};
use nix::sys::signal::Signal;

use crate::context::Context;
use crate::forks::{is_emulated, name, text_of};
use crate::harness::{skip, with_rounds};

crate::tests!("groups":
    Guest monitors_live_in_groups_of_their_own,
    Guest processor_time_is_limited_where_that_is_asked_for,
    NativeGuest groups_of_a_killed_midge_are_removed_by_the_next,
);

/// A group of this test's own on this machine, in which those of its sandboxes are made.
struct Ground(PathBuf);

impl Ground {
    /// Where the machine gives any.
    fn make() -> Option<Self> {
        let base = Base::look(Path::new("/")).ok()?;
        let give = |dir: &Path| {
            for controller in base.controllers() {
                let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        };
        give(base.dir());
        let dir = base.dir().join(format!("e2e-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        Some(Self(dir))
    }

    fn groups(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    fn assert_empty(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.groups().is_empty() {
            assert!(Instant::now() < deadline, "left behind: {:?}", self.groups());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // It stays where a test has failed.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Runs a body in a process of its own, and on this machine in a group of its own, where nothing must be left.
pub(crate) fn inside(context: &Context, name: &str, groups: Option<&str>) -> String {
    let ground = if context.scaled(true, false) && groups.is_none() { Ground::make() } else { None };
    let call = context.program(&context.bin.join("e2e"), ["--inside", name]).limit(with_rounds(900));
    let call = match (&ground, groups) {
        (Some(ground), _) => call.env("MIDGE_CGROUP", &ground.0),
        (None, Some(value)) => call.env("MIDGE_CGROUP", value),
        (None, None) => call,
    };
    let text = call.run().code(0).text();
    print!("{text}");
    context.assert_nothing_left();
    if let Some(ground) = ground {
        ground.assert_empty();
    }
    text
}

fn monitors_live_in_groups_of_their_own(context: &Context) {
    if context.scaled(Ground::make().is_none(), false) {
        skip("this machine gives no control groups");
    }
    inside(context, "grouped", None);
}

/// Whether a limit of processor time can be kept here.
pub(crate) fn has_cpu() -> bool {
    is_emulated() || Base::look(Path::new("/")).is_ok_and(|base| base.controllers().contains(&Controller::Cpu))
}

fn processor_time_is_limited_where_that_is_asked_for(context: &Context) {
    if context.scaled(!has_cpu(), false) {
        context.midge(["run", "--cpu-limit", "0.5", "--", "true"]).run().code(125).says(&[
            "limiting",
            "control group",
            "what helps",
        ]);
        return;
    }
    inside(context, "limited", None);
    if context.scaled(true, false) {
        let off = context.midge(["run", "--cpu-limit", "0.5", "--", "true"]).env("MIDGE_CGROUP", "off");
        off.run().code(125).says(&["limiting", "switched off", "MIDGE_CGROUP"]);
    }
    context.midge(["run", "--cpu-limit", "0.5", "--", "echo", "in time"]).run().code(0).out("in time\n");
}

fn groups_of_a_killed_midge_are_removed_by_the_next(context: &Context) {
    let Some(ground) = Ground::make() else { skip("this machine gives no control groups") };
    let run = |script: &str| context.sh(&["--mem", "128"], script).env("MIDGE_CGROUP", &ground.0);
    let running = run("echo up; exec sleep 300").start();
    let start = Instant::now();
    while ground.groups().is_empty() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(ground.groups().len(), 1);
    running.signal(Signal::SIGKILL);
    running.finish();
    // A group that has another name is nobody's of ours.
    let other = ground.0.join("midge-kept");
    std::fs::create_dir(&other).expect("ours");
    run("echo next").run().code(0).out("next\n");
    std::fs::remove_dir(&other).expect("it was not touched");
    ground.assert_empty();
    // Whichever way a run ends that is not killed, its group goes with it.
    let running = run("exec sleep 300").start();
    while ground.groups().is_empty() {
        std::thread::sleep(Duration::from_millis(2));
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.finish().status.code(), Some(143));
    assert_eq!(ground.groups(), Vec::<PathBuf>::new());
    context.assert_nothing_left();
}

fn small() -> Builder {
    Sandbox::builder().mem_mib(128).disk_mib(64)
}

/// A template in memory.
async fn held() -> Held {
    let name = name("groups");
    let template = Template::create(&name, small(), Plan::default()).await.expect("is made");
    let held = template.hold_at(Where::Auto, false).await.expect("comes up");
    Template::remove(&name).expect("goes");
    held
}

pub(crate) async fn usage(sandbox: &Sandbox) -> Usage {
    sandbox.usage().await.expect("it has a group")
}

/// Waits until as many groups are beside that of `sandbox`.
pub(crate) async fn settles(sandbox: &Sandbox, beside: usize) {
    for _ in 0..200 {
        if usage(sandbox).await.beside == beside {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} groups, not {beside}", usage(sandbox).await.beside);
}

/// Booted, of a template, of a running one, of a pool: each has a group, and all go.
pub(crate) async fn grouped() {
    let first = small().forkable().start().await.expect("starts");
    let before = usage(&first).await;
    assert_eq!(before.beside, 0, "{before:?}");
    if before.memory_bytes.is_some() {
        assert!(before.processes.is_some_and(|count| (3..40).contains(&count)), "{before:?}");
        assert!(before.memory_bytes.is_some_and(|bytes| bytes > 1 << 20), "{before:?}");
    }
    let held = held().await;
    let mut paths = vec![before.path.clone()];
    let mut forks = Vec::new();
    for _ in 0..3 {
        forks.push(held.fork().await.expect("forks"));
    }
    forks.extend(first.fork(2).await.expect("forks").sandboxes);
    for fork in &forks {
        assert_eq!(text_of(fork, "echo whole").await, "whole\n");
        let used = usage(fork).await;
        assert!(!paths.contains(&used.path), "{used:?}");
        // Nobody but the fork is in there: neither what it was made by nor what is made next.
        assert!(used.processes.is_none_or(|count| count < 12), "{used:?}");
        let processes = std::fs::read_to_string(used.path.join("cgroup.procs")).unwrap_or_default();
        if fork.place_name() == "native" {
            assert_eq!(processes.trim(), fork.monitor_pid().expect("is here").to_string());
        }
        paths.push(used.path);
    }
    // Those of the forks, of the resident, and one for the next fork. What held the copy of the first one is gone.
    settles(&first, forks.len() + 2).await;
    for fork in forks {
        fork.kill().await;
    }
    settles(&first, 2).await;
    let pool = Pool::new(held, Limits { level: 2, ..Limits::default() }).expect("a pool");
    pool.filled().await.expect("fills");
    let taken = pool.take().await.expect("gives");
    assert_eq!(text_of(&taken, "echo whole").await, "whole\n");
    pool.drain().await;
    taken.kill().await;
    settles(&first, 0).await;
    // A fork outlives whom it was made of, whose group has the first process of their jail.
    let fork = first.fork(1).await.expect("forks").sandboxes.pop().expect("one");
    first.kill().await;
    settles(&fork, 1).await;
    assert_eq!(text_of(&fork, "echo whole").await, "whole\n");
    fork.kill().await;
}

/// A guest that spins gets half a processor, if that is what it may have.
pub(crate) async fn limited() {
    let place = || Where::Auto.sharing(Share { cpu_percent: Some(50), io_mib_s: None });
    let sandbox = small().place(place()).start().await.expect("starts");
    let _spin = sandbox.exec(Exec::new(["sh", "-c", "while :; do :; done"])).await.expect("starts");
    let (start, before) = (Instant::now(), usage(&sandbox).await.cpu_us.expect("counted"));
    tokio::time::sleep(Duration::from_secs(4)).await;
    let used = usage(&sandbox).await.cpu_us.expect("counted") - before;
    let share = used as f64 / start.elapsed().as_micros() as f64;
    println!("{:.0} % of a processor", share * 100.0);
    // Never more, however busy the machine is; a period's part may be on either side.
    assert!(share < 0.6, "{share}");
    sandbox.kill().await;
}
