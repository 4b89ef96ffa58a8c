// SPDX-License-Identifier: Apache-2.0
//! Ends of a run that nobody planned: signals at any stage, a killed monitor, a reader that leaves; and
//! many runs in a row. After each, nothing of Midge's is left on the host.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::context::{Context, wait};
use crate::harness::{asked, skip};
use crate::templates::rounds;

crate::tests!("lifecycle":
    Guest interrupt_at_any_stage,
    Guest termination_at_any_stage,
    Guest termination_while_the_workspace_is_packed,
    Guest termination_while_changes_are_applied,
    Guest command_that_ignores_an_interrupt_ends_with_the_second,
    Guest interrupt_comes_through_though_the_input_is_full,
    Guest end_comes_though_nobody_reads_the_report,
    Guest stdout_closed_by_its_reader,
    Guest runs_in_a_row_leave_nothing,
    NativeGuest monitor_that_is_killed,
    NativeGuest midge_that_is_killed,
);

/// At chosen moments, and at as many others between start and command as `MIDGE_TEST_SIGNALS` says.
fn ended_by(context: &Context, signal: Signal, code: i32) {
    let delays_ms = context.scaled([0, 10, 40, 100, 300, 1000], [0, 50, 300, 1500, 5000, 9000]);
    let more = asked("MIDGE_TEST_SIGNALS").unwrap_or(0);
    // Multiples of the golden ratio: any number of them is spread evenly.
    let others = (1..=more).map(|index| index * 618 % 1000 * context.scaled(400, 6000) / 1000);
    for delay_ms in delays_ms.into_iter().chain(others) {
        // No shell: one that is still starting takes an interrupt and forgets it, here as anywhere.
        let running = context.midge(["run", "--", "sleep", "300"]).start();
        std::thread::sleep(Duration::from_millis(delay_ms));
        running.signal(signal);
        let outcome = running.finish();
        let seen = outcome.shell_code();
        assert_eq!(seen, code, "{signal} after {delay_ms} ms: {outcome}");
        assert!(outcome.took < Duration::from_millis(delay_ms + context.scaled(5_000, 30_000)), "{outcome}");
        context.assert_nothing_left();
    }
}

fn interrupt_at_any_stage(context: &Context) {
    ended_by(context, Signal::SIGINT, 130);
}

fn termination_at_any_stage(context: &Context) {
    ended_by(context, Signal::SIGTERM, 143);
}

/// The workspace takes some seconds to pack. (Half a GiB that takes no room on the disk.)
fn termination_while_the_workspace_is_packed(context: &Context) {
    let workspace = tempfile::tempdir().expect("a directory");
    let large = std::fs::File::create(workspace.path().join("large")).expect("a file");
    large.set_len(512 << 20).expect("a sparse file");
    let dir = workspace.path().to_str().expect("text");
    let running = context.midge(["run", "--workspace", dir, "--", "true"]).start();
    let bulk = bulk_of_the_run(context, Instant::now() + Duration::from_secs(30));
    running.signal(Signal::SIGTERM);
    let outcome = running.finish();
    assert_eq!(outcome.shell_code(), 143, "{outcome}");
    context.assert_nothing_left();
    assert!(!bulk.exists(), "left behind: {}", bulk.display());
}

/// Where the only run that there is has its large files, once one of them is there.
fn bulk_of_the_run(context: &Context, until: Instant) -> PathBuf {
    loop {
        let pointers = context.run_directories().into_iter().map(|dir| dir.join("bulk"));
        let bulks = pointers.filter_map(|pointer| std::fs::read_to_string(pointer).ok()).map(PathBuf::from);
        if let Some(bulk) = bulks.into_iter().find(|bulk| bulk.join("workspace.erofs").exists()) {
            return bulk;
        }
        assert!(Instant::now() < until, "no workspace is packed");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What has begun to be applied is all applied, and told.
fn termination_while_changes_are_applied(context: &Context) {
    const FILES: usize = 300;
    let workspace = tempfile::tempdir().expect("a directory");
    let dir = format!("{}:apply", workspace.path().to_str().expect("text"));
    let script = format!("seq -w {FILES} | split -l 1 -a 4 - part.");
    let running = context.sh(&["--workspace", &dir], &script).start();
    let names = || {
        let entries = workspace.path().read_dir().expect("a directory").flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let until = Instant::now() + context.scaled(Duration::from_secs(30), Duration::from_secs(90));
    while names().is_empty() {
        assert!(Instant::now() < until, "nothing is applied");
        std::thread::sleep(Duration::from_millis(1));
    }
    running.signal(Signal::SIGTERM);
    let outcome = running.finish();
    // It may have been over before the signal.
    assert!([143, 0].contains(&outcome.shell_code()), "{outcome}");
    outcome.says(&[&format!("applied {FILES}")]);
    let names = names();
    assert!(names.iter().all(|name| name.starts_with("part.")) && names.len() == FILES, "{} entries", names.len());
    context.assert_nothing_left();
}

/// Starts `midge` and waits for its command's first line, `ready`.
fn start_and_wait(command: &mut std::process::Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("midge runs");
    let mut first = [0; 6];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("the command prints");
    assert_eq!(&first, b"ready\n");
    child
}

fn interrupt(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGINT).expect("it runs");
}

/// What a call said on standard error, once it has ended with `code` within a minute.
fn ended_with(mut child: Child, code: i32) -> String {
    let status = wait(&mut child, Instant::now() + Duration::from_secs(60));
    if status.is_none() {
        child.kill().expect("our child");
    }
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!(status.and_then(|status| status.code()), Some(code), "{said}");
    said
}

fn command_that_ignores_an_interrupt_ends_with_the_second(context: &Context) {
    let mut command = context.sh(&[], "trap '' INT; echo ready; sleep 300; sleep 300").into_command();
    let mut child = start_and_wait(command.stdin(Stdio::null()));
    interrupt(&child);
    let until = Instant::now() + Duration::from_secs(5);
    assert!(wait(&mut child, until).is_none(), "the first interrupt is the command's to ignore");
    interrupt(&child);
    let said = ended_with(child, 130);
    assert!(said.contains("another Ctrl-C ends the sandbox"), "{said}");
    context.assert_nothing_left();
}

/// A command that reads nothing has its input's window full; a signal is no input.
fn interrupt_comes_through_though_the_input_is_full(context: &Context) {
    let mut source = std::process::Command::new("yes").stdout(Stdio::piped()).spawn().expect("yes runs");
    let input = source.stdout.take().expect("piped");
    let mut command = context.sh(&[], "echo ready; exec sleep 300").into_command();
    let child = start_and_wait(command.stdin(input));
    drop(command);
    // Long enough for the window to fill, and for the shell to have become its command.
    std::thread::sleep(Duration::from_millis(context.scaled(500, 4000)));
    interrupt(&child);
    let said = ended_with(child, 130);
    assert!(!said.contains("Ctrl-C"), "one interrupt is enough: {said}");
    let _ = source.kill();
    source.wait().expect("our child");
    context.assert_nothing_left();
}

/// The report is larger than a pipe, so that printing it waits for a reader that never comes.
fn end_comes_though_nobody_reads_the_report(context: &Context) {
    let mut command = context.midge(["run", "--json", "--", "head", "-c", "300000", "/dev/zero"]).into_command();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("midge runs");
    let mut first = [0; 1];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("the report begins");
    assert!(wait(&mut child, Instant::now() + Duration::from_secs(1)).is_none(), "the report fits a pipe");
    interrupt(&child);
    let said = ended_with(child, 130);
    assert!(said.contains("leaving"), "{said}");
    context.assert_nothing_left();
}

fn stdout_closed_by_its_reader(context: &Context) {
    let mut command = context.midge(["run", "--", "yes"]).into_command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("midge runs");
    let mut first = [0; 2];
    child.stdout.take().expect("piped").read_exact(&mut first).expect("the command prints");
    assert_eq!(&first, b"y\n");
    let status = wait(&mut child, Instant::now() + Duration::from_secs(60));
    let Some(status) = status else {
        child.kill().expect("our child");
        panic!("midge goes on though nobody reads what its command prints");
    };
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(!said.contains("panicked"), "{status}: {said}");
    context.assert_nothing_left();
}

/// Processes, mounts, sockets and files before and after; a thousand runs where runs are quick.
fn runs_in_a_row_leave_nothing(context: &Context) {
    let runs = rounds(context.scaled(100, 8), context.scaled(100, 8));
    context.midge(["run", "--", "true"]).run().code(0);
    let before = Traces::now(context.temporary.path());
    for _ in 0..runs {
        context.midge(["run", "--", "true"]).run().code(0);
    }
    context.assert_nothing_left();
    let after = Traces::now(context.temporary.path());
    assert_eq!(before.mounts, after.mounts, "mounts after {runs} runs");
    assert_eq!(before.shared_memory, after.shared_memory, "files in /dev/shm after {runs} runs");
    assert_eq!(before.temporary, after.temporary, "entries in the temporary directory after {runs} runs");
}

#[derive(Debug, PartialEq, Eq)]
struct Traces {
    mounts: usize,
    shared_memory: usize,
    temporary: Vec<String>,
}

impl Traces {
    fn now(tmp: &Path) -> Self {
        let lines = |path: &str| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
        let names = |dir: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let mut temporary = names(tmp);
        temporary.sort();
        Self { mounts: lines("/proc/self/mounts"), shared_memory: names(Path::new("/dev/shm")).len(), temporary }
    }
}

/// The midge-vmm among a process's children.
fn monitor_of(pid: u32, deadline: Instant) -> u32 {
    loop {
        let children = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for child in children.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
            if parent == Some(pid) && stat.contains("(midge-vmm)") {
                return child;
            }
        }
        if Instant::now() > deadline {
            skip("no midge-vmm child: the VM does not run on this machine's own KVM");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("it runs");
}

fn monitor_that_is_killed(context: &Context) {
    for delay_ms in [0, 50, 700] {
        let running = context.sh(&[], "echo started; sleep 300").start();
        let monitor = monitor_of(running.child.id(), Instant::now() + Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(delay_ms));
        kill(monitor);
        running.finish().code(125).says(&["monitor"]);
        context.assert_nothing_left();
    }
}

/// The monitor's lifeline breaks with its parent; what is left in the run directory goes with the next start.
fn midge_that_is_killed(context: &Context) {
    for delay_ms in [0, 50, 700] {
        let running = context.sh(&[], "sleep 300").start();
        let monitor = monitor_of(running.child.id(), Instant::now() + Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(delay_ms));
        kill(running.child.id());
        let outcome = running.finish();
        assert_eq!(outcome.shell_code(), 137, "{outcome}");
        let deadline = Instant::now() + Duration::from_secs(10);
        let process = format!("/proc/{monitor}");
        while Path::new(&process).exists() {
            assert!(Instant::now() < deadline, "the monitor outlives midge: {process}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    context.midge(["run", "--", "true"]).run().code(0);
    context.assert_nothing_left();
}
