// SPDX-License-Identifier: Apache-2.0
//! The crate `midge` as others embed it: streams, files, several sandboxes in one process. Each test runs in
//! a process of its own, this binary started again, because a place is chosen by the environment.

use std::path::Path;
use std::time::{Duration, Instant};

use midge::error::{Error, Fault};
use midge::exec::{Exec, Outcome};
use midge::files::WriteOptions;
use midge::sandbox::{Builder, Sandbox};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::context::Context;
use crate::harness::with_rounds;

crate::tests!("library":
    Guest sandboxes_side_by_side,
    Guest dropped_sandbox_is_gone,
    Guest commands_in_one_sandbox,
    Guest many_commands_in_a_row,
    Guest files_of_the_guest,
    Guest pool_of_a_template,
    Guest memory_goes_back,
);

fn sandboxes_side_by_side(context: &Context) {
    inside(context, "side_by_side");
}

fn dropped_sandbox_is_gone(context: &Context) {
    inside(context, "dropped");
}

fn commands_in_one_sandbox(context: &Context) {
    inside(context, "commands");
}

fn many_commands_in_a_row(context: &Context) {
    inside(context, context.scaled("many_fast", "many_slow"));
}

fn files_of_the_guest(context: &Context) {
    inside(context, "files");
}

fn pool_of_a_template(context: &Context) {
    inside(context, "pool");
}

fn memory_goes_back(context: &Context) {
    inside(context, "memory");
}

/// Runs a body below in a process of its own.
pub(crate) fn inside(context: &Context, name: &str) {
    let call = context.program(&context.bin.join("e2e"), ["--inside", name]).limit(with_rounds(900));
    let outcome = call.run().code(0);
    print!("{}", outcome.text());
    context.assert_nothing_left();
}

/// The body called `name`, in the process that [`inside`] made.
pub(crate) fn body(name: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        match name {
            "side_by_side" => side_by_side().await,
            "doors" => crate::agent::doors().await,
            "dropped" => dropped().await,
            "commands" => commands().await,
            "many_fast" => many(1000).await,
            "many_slow" => many(250).await,
            "files" => files().await,
            "memory" => crate::forks::memory().await,
            "pool" => crate::forks::pool().await,
            "held" => crate::forks::held().await,
            "live" => crate::forks::live().await,
            "deep" => crate::forks::deep().await,
            "abandoned" => crate::forks::abandoned().await,
            "warmed" => crate::templates::warmed().await,
            "loaded" => crate::load::loaded().await,
            "crowded" => crate::shortage::crowded().await,
            "starved" => crate::shortage::starved().await,
            "restored" => crate::load::restored().await,
            "damaged" => crate::damage::damaged().await,
            "orphaned" => crate::damage::orphaned().await,
            "rootless" => crate::rootless::body().await,
            "recorded" => crate::calls::recorded().await,
            "grouped" => crate::groups::grouped().await,
            "limited" => crate::groups::limited().await,
            "noisy" => crate::noise::noisy().await,
            "cycled" => crate::cycles::cycled().await,
            "struck" => crate::templates::struck().await,
            other => panic!("no body {other}"),
        }
    });
}

fn small() -> Builder {
    Sandbox::builder().mem_mib(256).disk_mib(256)
}

/// What a script prints, run as root because files written from outside belong to root.
async fn text_of(sandbox: &Sandbox, script: &str) -> String {
    let running = sandbox.exec(Exec::new(["sh", "-c", script]).user("root")).await.expect("starts");
    let output = running.output().await.expect("ends");
    assert!(output.status.is_success(), "{script}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

async fn side_by_side() {
    let (one, two, three) = tokio::join!(small().start(), small().env("NAME", "two").start(), small().start());
    let (one, two, three) = (one.expect("starts"), two.expect("starts"), three.expect("starts"));
    let mut names = Vec::new();
    for sandbox in [&one, &two, &three] {
        names.push(text_of(sandbox, "hostname; cat /etc/machine-id /proc/sys/kernel/random/uuid").await);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3, "sandboxes share an identity: {names:?}");
    let (first, second) =
        tokio::join!(text_of(&one, "echo $NAME > /tmp/x; sleep 0.2; cat /tmp/x"), text_of(&two, "echo $NAME"));
    assert_eq!((first.as_str(), second.as_str()), ("\n", "two\n"));
    // One ends, the others go on.
    one.kill().await;
    assert_eq!(text_of(&three, "echo alive").await, "alive\n");
    two.stop().await;
    three.stop().await;
}

async fn dropped() {
    let sandbox = small().start().await.expect("starts");
    let pid = sandbox.monitor_pid();
    let running = sandbox.exec(Exec::new(["sleep", "300"])).await.expect("starts");
    drop(sandbox);
    let start = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(20), running.wait()).await.expect("the command's end is told");
    assert!(ended.is_err(), "{ended:?}");
    if let Some(pid) = pid {
        let process = format!("/proc/{pid}");
        while Path::new(&process).exists() {
            assert!(start.elapsed() < Duration::from_secs(10), "{process} is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn commands() {
    let sandbox = small().start().await.expect("starts");
    talk(&sandbox).await;
    ends(&sandbox).await;
    replay(&sandbox).await;
    assert_eq!(
        text_of(&sandbox, "for i in $(seq 200); do (true &) ; done; sleep 0.1; ps -A -o stat | grep -c Z || true")
            .await,
        "0\n"
    );
    sandbox.quiesce().await.expect("quiet");
    let stats = sandbox.stats().await.expect("stats");
    assert_eq!(stats.processes, 0, "{stats:?}");
    let end = sandbox.stop().await.to_string();
    assert!(end.contains("shut down"), "{end}");
}

/// A conversation with a command: it answers line by line, so nothing may be held back.
async fn talk(sandbox: &Sandbox) {
    let script = "while read line; do echo out:$line; echo err:$line >&2; done; echo end";
    let mut running = sandbox.exec(Exec::new(["sh", "-c", script]).stdin(true)).await.expect("starts");
    let (mut stdin, mut stdout) = (running.stdin.take().expect("stdin"), running.stdout.take().expect("stdout"));
    let mut stderr = running.stderr.take().expect("stderr");
    for word in ["one", "two"] {
        stdin.write_all(format!("{word}\n").as_bytes()).await.expect("taken");
        stdin.flush().await.expect("taken");
        for (stream, name) in [(&mut stdout, "out"), (&mut stderr, "err")] {
            let expected = format!("{name}:{word}\n");
            let mut line = vec![0; expected.len()];
            stream.read_exact(&mut line).await.expect("answered");
            assert_eq!(String::from_utf8_lossy(&line), expected);
        }
    }
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.expect("ends");
    assert_eq!(rest, "end\n");
    assert_eq!(running.wait().await.expect("ends").outcome, Outcome::Code(0));
}

/// Signals, time-outs, and what cannot be started.
async fn ends(sandbox: &Sandbox) {
    let running = sandbox.exec(Exec::new(["sleep", "300"])).await.expect("starts");
    running.controls().signal(15);
    assert_eq!(running.wait().await.expect("ends").outcome, Outcome::Signal(15));
    let tree = Exec::new(["sh", "-c", "setsid sleep 301 & sleep 302"]).timeout(Duration::from_millis(500));
    let status = sandbox.exec(tree).await.expect("starts").wait().await.expect("ends");
    assert!(status.timed_out, "{status}");
    assert_eq!(text_of(sandbox, "pgrep -f -c 'sleep 30[12]' || true").await, "0\n", "the whole tree is killed");
    let error = sandbox.exec(Exec::new(["/no/such/program"])).await.expect_err("cannot start");
    assert!(matches!(error, Error::NotStarted { exit_code: 127, .. }), "{error}");
    assert_eq!(error.fault(), Fault::User);
    let user = sandbox.exec(Exec::new(["true"]).user("nobody-here")).await.expect_err("no such user");
    assert!(user.to_string().contains("nobody-here"), "{user}");
    let dir = sandbox.exec(Exec::new(["true"]).cwd("/nowhere")).await.expect_err("no such directory");
    assert!(dir.to_string().contains("/nowhere"), "{dir}");
}

/// A client that is lost finds the command's output again.
async fn replay(sandbox: &Sandbox) {
    let script = "echo first; read line; echo second; sleep 1; echo third";
    let exec = Exec::new(["sh", "-c", script]).stdin(true).replay(65_536);
    let mut running = sandbox.exec(exec).await.expect("starts");
    let id = running.id();
    let mut first = [0; 6];
    running.stdout.as_mut().expect("stdout").read_exact(&mut first).await.expect("printed");
    let mut stdin = running.stdin.take().expect("stdin");
    stdin.write_all(b"go\n").await.expect("taken");
    stdin.flush().await.expect("taken");
    drop(running);
    let again = sandbox.attach(id, 0, 0).await.expect("still there").output().await.expect("ends");
    assert_eq!(String::from_utf8_lossy(&again.stdout), "first\nsecond\nthird\n");
    assert!(sandbox.attach(midge::exec::ExecId(987_654), 0, 0).await.is_err());
}

/// Short commands one after the other leave no process, no descriptor and no memory behind, on either side.
async fn many(runs: usize) {
    let sandbox = small().start().await.expect("starts");
    for _ in 0..20 {
        text_of(&sandbox, "true").await;
    }
    let before = (descriptors(), sandbox.stats().await.expect("stats"));
    let start = Instant::now();
    for run in 0..runs {
        let output = sandbox.exec(Exec::new(["/bin/echo", "x"])).await.expect("starts").output().await.expect("ends");
        assert_eq!(output.stdout, b"x\n", "run {run}");
    }
    println!("{runs} commands in {:.1} s", start.elapsed().as_secs_f32());
    let after = (descriptors(), sandbox.stats().await.expect("stats"));
    assert!(after.0 <= before.0 + 2, "descriptors here: {} before, {} after", before.0, after.0);
    assert!(after.1.processes <= before.1.processes, "{:?} {:?}", before.1, after.1);
    let lost_kib = before.1.memory_available_kib.saturating_sub(after.1.memory_available_kib);
    assert!(lost_kib < 16 << 10, "{lost_kib} KiB of the guest's memory are gone");
    sandbox.stop().await;
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

async fn files() {
    let sandbox = small().start().await.expect("starts");
    let files = sandbox.files();
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let options = WriteOptions { parents: true, ..WriteOptions::default() };
    files.write("/tmp/a/b/data", options.clone(), &mut content.as_slice()).await.expect("written");
    assert_eq!(files.read("/tmp/a/b/data", 2_000_000).await.expect("read"), content);
    let mut piece = Vec::new();
    files.read_range("/tmp/a/b/data", 400_000, 8, &mut piece).await.expect("read");
    assert_eq!(piece, content[400_000..400_008]);
    assert!(files.read("/tmp/a/b/data", 1000).await.is_err(), "longer than the caller takes");
    assert_eq!(files.stat("/tmp/a/b/data", false).await.expect("there").size, 1_200_000);
    let missing = files.read("/tmp/none", 10).await.expect_err("not there");
    assert!(
        missing.to_string().contains("/tmp/none") || missing.to_string().to_lowercase().contains("no such"),
        "{missing}"
    );
    files.rename("/tmp/a/b/data", "/tmp/a/moved", false).await.expect("renamed");
    files.mkdir("/tmp/a/c/d", 0o750, true).await.expect("made");
    let mut names: Vec<_> = files.list("/tmp/a").await.expect("listed").into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["b", "c", "moved"]);
    let mut archive = Vec::new();
    files.pack("/tmp/a", &mut archive).await.expect("packed");
    files.unpack("/tmp/copy", None, &mut archive.as_slice()).await.expect("unpacked");
    assert_eq!(text_of(&sandbox, "cmp /tmp/a/moved /tmp/copy/moved && stat -c %a /tmp/copy/c/d").await, "750\n");
    assert!(files.remove("/tmp/copy", false).await.is_err(), "it is not empty");
    files.remove("/tmp/copy", true).await.expect("removed");
    assert_eq!(text_of(&sandbox, "ls -A /tmp/copy 2>/dev/null | wc -l").await, "0\n");
    sandbox.stop().await;
}
