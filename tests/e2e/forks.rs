// SPDX-License-Identifier: Apache-2.0
//! Templates and forks: what they share, and that they share nothing else.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use midge::exec::{Exec, Running};
use midge::pool::{Limits, Pool};
use midge::run_dir::Kind;
use midge::sandbox::{Builder, Sandbox, Where};
use midge::template::{Plan, Template};
use tokio::time::timeout;

use crate::context::Context;
use crate::library::inside;

crate::tests!("forks":
    Guest template_from_the_command_line,
    Guest held_template_is_forked,
    Guest running_sandbox_is_forked,
    Guest forks_of_forks_ten_deep,
    Guest caller_that_gives_up_leaves_a_guest_that_goes_on,
);

/// How long an answer may take that comes at once where nothing is wrong.
const SOON: Duration = Duration::from_secs(60);

/// A name that no other run of these tests has.
pub(crate) fn name(what: &str) -> String {
    format!("e2e-{what}-{}", std::process::id())
}

/// Counts in `/tmp/count`, which has a number in it whenever it is looked at, every `$pause` seconds.
const COUNTING: &str =
    "i=0; while :; do i=$((i+1)); echo $i > /tmp/next; mv /tmp/next /tmp/count; sleep ${pause:-0.05}; done";

fn template_from_the_command_line(context: &Context) {
    let name = format!("{}-{}", name("cli"), context.scaled("native", "emulated"));
    let warm = format!("echo 0 > /tmp/count; echo ready; {COUNTING}");
    let setup = "echo kept > /opt/kept; echo from-setup";
    let limit = Duration::from_secs(300);
    let create = ["template", "create", &name, "--mem", "256", "--disk", "256", "--setup", setup, "--warm", &warm];
    context.midge(create).limit(limit).run().says(&["from-setup", "ready"]).code(0);
    context.midge(["template", "create", &name]).limit(limit).run().says(&["already", "remove"]).code(125);
    context.midge(["template", "list"]).run().code(0);
    let script = "cat /opt/kept; cat /proc/sys/kernel/hostname /etc/machine-id /proc/sys/kernel/random/uuid; \
        test ! -e /opt/mine; touch /opt/mine; a=$(cat /tmp/count); sleep 1; test $(cat /tmp/count) -gt $a";
    let mut seen = HashSet::new();
    for _ in 0..2 {
        let run = ["run", "--template", &name, "--user", "root", "--", "sh", "-ec", script];
        let text = context.midge(run).limit(limit).run().code(0).text();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("kept"));
        assert!(
            lines.all(|line| seen.insert(line.to_owned())),
            "told apart by name, machine and random numbers: {text}"
        );
    }
    assert_eq!(seen.len(), 6);
    context.midge(["template", "remove", &name]).run().code(0);
    context.midge(["run", "--template", &name, "--", "true"]).run().says(&["no template"]).code(125);
    context.assert_nothing_left();
}

fn held_template_is_forked(context: &Context) {
    inside(context, "held");
}

fn running_sandbox_is_forked(context: &Context) {
    inside(context, "live");
}

fn forks_of_forks_ten_deep(context: &Context) {
    inside(context, "deep");
}

fn caller_that_gives_up_leaves_a_guest_that_goes_on(context: &Context) {
    inside(context, "abandoned");
}

pub(crate) fn small() -> Builder {
    Sandbox::builder().mem_mib(256).disk_mib(256)
}

/// What a script prints that is run as root and must succeed.
pub(crate) async fn text_of(sandbox: &Sandbox, script: &str) -> String {
    let running = sandbox.exec(Exec::new(["sh", "-ec", script]).user("root")).await.expect("starts");
    let output = running.output().await.expect("ends");
    assert!(output.status.is_success(), "{script}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

const WHO: &str = "cat /proc/sys/kernel/hostname /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1";

/// Forks of one template in memory: alive together, each somebody else, each with its own time and disk.
pub(crate) async fn held() {
    let name = name("held");
    Template::create(&name, small(), Plan::default()).await.expect("is made");
    let held = Template::open(&name).expect("is there").hold_at(Where::Auto, true).await.expect("comes up");
    Template::remove(&name).expect("goes");
    let mut forks = Vec::new();
    for _ in 0..4 {
        forks.push(held.fork().await.expect("forks"));
    }
    let mut listed = midge::ps::list().expect("can be listed");
    listed.retain(|one| one.about.owner_pid == std::process::id());
    assert!(listed.iter().all(|one| one.about.template.as_ref() == Some(&name)), "{listed:?}");
    let of = |kind| listed.iter().filter(move |one| one.about.kind == kind);
    assert_eq!((of(Kind::Resident).count(), of(Kind::Fork).count(), listed.len()), (1, 4, 5), "{listed:?}");
    assert!(forks.iter().all(|fork| of(Kind::Fork).any(|one| one.id == fork.id())), "{listed:?}");
    drop(held);
    let mut seen = HashSet::new();
    for fork in &forks {
        assert!(seen.insert(text_of(fork, WHO).await), "somebody else");
        assert_eq!(text_of(fork, "test ! -e /opt/mine; touch /opt/mine; ls /opt/mine").await, "/opt/mine\n");
        let guest: i64 = text_of(fork, "date +%s").await.trim().parse().expect("seconds");
        let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let host = i64::try_from(host.as_secs()).expect("fits");
        assert!((guest - host).abs() <= 30, "the right time: {guest} {host}");
    }
    // A fork of a fork, after everybody before it is gone but one.
    let last = forks.pop().expect("four");
    for fork in forks {
        fork.kill().await;
    }
    let twice = last.fork(1).await.expect("forks again").sandboxes.pop().expect("one");
    assert!(seen.insert(text_of(&twice, WHO).await));
    assert_eq!(text_of(&twice, "ls /opt/mine").await, "/opt/mine\n");
    twice.kill().await;
    last.kill().await;
}

/// More are taken than wait; every one is somebody else, and none is left in the end.
pub(crate) async fn pool() {
    let name = name("pool");
    Template::create(&name, small(), Plan::default()).await.expect("is made");
    let held = Template::open(&name).expect("is there").hold().await.expect("comes up");
    Template::remove(&name).expect("goes");
    assert_eq!(held.fork_max_mib(), 512);
    let pool = Pool::new(held, Limits { level: 3, under_way: 2, ..Limits::default() }).expect("within limits");
    pool.filled().await.expect("fills");
    assert_eq!(pool.status().ready, 3);
    let mut seen = HashSet::new();
    let mut taken = Vec::new();
    for _ in 0..5 {
        let sandbox = pool.take().await.expect("one is made");
        assert!(seen.insert(text_of(&sandbox, WHO).await), "somebody else");
        text_of(&sandbox, "test ! -e /opt/mine; touch /opt/mine").await;
        taken.push(sandbox);
    }
    pool.filled().await.expect("fills again");
    // One that dies while it waits is replaced.
    let mine: HashSet<String> = taken.iter().map(|sandbox| sandbox.id().to_owned()).collect();
    let listed = midge::ps::list().expect("can be listed").into_iter();
    let waits = |one: &midge::ps::Alive| one.about.owner_pid == std::process::id() && !mine.contains(&one.id);
    if let Some(pid) =
        listed.filter(waits).filter(|one| one.about.kind == Kind::Fork).find_map(|one| one.about.monitor_pid)
    {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it is ours");
        while pool.status().died == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        pool.filled().await.expect("fills once more");
    }
    pool.drain().await;
    for sandbox in taken {
        sandbox.kill().await;
    }
    let left =
        midge::ps::list().expect("can be listed").into_iter().filter(|one| one.about.owner_pid == std::process::id());
    assert_eq!(left.count(), 0);
}

/// A sandbox with memory to give back. What takes a second natively takes a minute in an emulated host.
fn roomy() -> Builder {
    small().mem_mib(if is_emulated() { 128 } else { 256 })
}

/// Whether a body runs for the emulated host.
pub(crate) fn is_emulated() -> bool {
    std::env::var_os("MIDGE_EMULATED_HOST").is_some()
}

/// Memory that a command has used and no longer needs is the host's again; what the guest keeps stays as it is.
pub(crate) async fn memory() {
    let sandbox = roomy().forkable().start().await.expect("starts");
    gives_back(&sandbox).await;
    let fork = sandbox.fork(1).await.expect("forks").sandboxes.pop().expect("one");
    gives_back(&fork).await;
    if is_emulated() {
        // The rest differs in nothing but the files and processes of the host, and takes ten minutes there.
        return;
    }
    // Both at once, with a fork in between: nobody is brought to a stand twice.
    let (one, two, three) = tokio::join!(sandbox.give_back(), sandbox.fork(1), sandbox.give_back());
    one.expect("goes back");
    text_of(&two.expect("forks").sandboxes[0], "cd /opt; sha256sum -c sums").await;
    three.expect("goes back");
    text_of(&sandbox, "cd /opt; sha256sum -c sums").await;
    // One that cannot be forked, and forks of a template, whose memory is a file's: they live by another policy.
    gives_back(&roomy().start().await.expect("starts")).await;
    let name = name("memory");
    Template::create(&name, roomy(), Plan::default()).await.expect("is made");
    let template = Template::open(&name).expect("is there");
    let held = template.hold().await.expect("comes up");
    gives_back(&held.fork().await.expect("forks")).await;
    gives_back(&template.start(Where::Auto, false).await.expect("starts")).await;
    Template::remove(&name).expect("goes");
}

/// What a sandbox holds for itself, in KiB; `None` in an emulated host, whose processes cannot be looked at from here.
fn private_kib(sandbox: &Sandbox) -> Option<u64> {
    let mut all = midge::ps::list().expect("can be listed").into_iter();
    let one = all.find(|one| one.id == sandbox.id()).expect("is listed");
    assert_eq!(one.memory.is_none(), sandbox.place_name() == "emulated");
    Some(one.memory?.private_kib)
}

async fn gives_back(sandbox: &Sandbox) {
    let (used_mib, kept_mib) = if is_emulated() { (32, 1) } else { (120, 20) };
    let used_kib = used_mib << 10;
    let keep = format!("cd /opt; head -c {kept_mib}M /dev/urandom > data; cp /usr/bin/env p; sha256sum data p > sums");
    text_of(sandbox, &keep).await;
    let counting = sandbox.exec(Exec::new(["sh", "-c", COUNTING]).user("root")).await.expect("starts");
    text_of(sandbox, &format!("python3 -c \"x = b'x' * ({used_mib} << 20)\"")).await;
    let before = private_kib(sandbox);
    let bytes = sandbox.give_back().await.expect("goes back");
    let after = private_kib(sandbox);
    println!("{before:?} KiB, {} given back, {after:?} KiB", bytes >> 10);
    assert!(bytes >> 10 > used_kib * 3 / 4, "{bytes} given back of {before:?} KiB");
    if let (Some(before), Some(after)) = (before, after) {
        assert!(before > used_kib && before - after > used_kib * 3 / 4, "{before} KiB before, {after} after");
    }
    text_of(sandbox, "cd /opt; sha256sum -c sums").await;
    text_of(sandbox, "a=$(cat /tmp/count); sleep 1; test $(cat /tmp/count) -gt $a").await;
    // What was given back can be used again, and holds nothing of old.
    let again = format!(
        "python3 -c \"x = bytearray({used_mib} << 20); assert x.count(0) == len(x); x[::4096] = b'y' * ({used_mib} << 8)\""
    );
    text_of(sandbox, &again).await;
    text_of(sandbox, "cd /opt; sha256sum -c sums").await;
    counting.controls().signal(9);
    drop(counting.wait().await);
}

/// A sandbox at work is copied; all of them go on, and none sees what another does.
pub(crate) async fn live() {
    let sandbox = small().forkable().start().await.expect("starts");
    text_of(&sandbox, "echo before > /opt/file").await;
    let running = sandbox.exec(Exec::new(["sh", "-c", COUNTING]).user("root")).await.expect("starts");
    text_of(&sandbox, "while ! test -s /tmp/count; do sleep 0.05; done").await;
    let forks = sandbox.fork(2).await.expect("forks");
    assert!(forks.pause.pause_us > 0 && forks.sandboxes.len() == 2);
    let mut seen = HashSet::new();
    for (index, one) in forks.sandboxes.iter().chain([&sandbox]).enumerate() {
        assert!(seen.insert(text_of(one, WHO).await), "somebody else");
        assert_eq!(text_of(one, "cat /opt/file").await, "before\n");
        let counts = "a=$(cat /tmp/count); sleep 1; test $(cat /tmp/count) -gt $a && echo goes on";
        assert_eq!(text_of(one, counts).await, "goes on\n");
        text_of(one, &format!("test ! -e /opt/mine; echo {index} > /opt/mine")).await;
    }
    for (index, one) in forks.sandboxes.iter().chain([&sandbox]).enumerate() {
        assert_eq!(text_of(one, "cat /opt/mine").await, format!("{index}\n"));
    }
    drop(running);
    for fork in forks.sandboxes {
        fork.kill().await;
    }
    sandbox.kill().await;
}

const GOES_ON: &str = "a=$(cat /tmp/count); while test $(cat /tmp/count) -le $a; do sleep 0.01; done; echo goes on";

/// Starts the counting; returns when it has begun.
async fn counts(sandbox: &Sandbox) -> Running {
    let pause = if sandbox.place_name() == "emulated" { "3" } else { "0.05" };
    let counting = Exec::new(["sh", "-c", COUNTING]).env("pause", pause).user("root");
    let running = sandbox.exec(counting).await.expect("starts");
    text_of(sandbox, "while ! test -s /tmp/count; do sleep 0.01; done").await;
    running
}

/// A fork of a fork, ten times over, all of them alive: each is somebody else, and has what its ancestors did before it
/// came to be and nothing of what anybody did since.
pub(crate) async fn deep() {
    let first = Sandbox::builder().mem_mib(128).disk_mib(64).forkable().start().await.expect("starts");
    let running = counts(&first).await;
    text_of(&first, "mkdir /opt/line").await;
    // Eleven guests that count at once are too much for a machine that is emulated.
    let deepest = if first.place_name() == "emulated" { 4 } else { 10 };
    let mut line = vec![first];
    for depth in 1..=deepest {
        let last = line.last().expect("there is one");
        text_of(last, &format!("touch /opt/line/{depth}")).await;
        let fork = last.fork(1).await.expect("forks").sandboxes.pop().expect("one");
        line.push(fork);
    }
    let listed = midge::ps::list().expect("can be listed");
    let parent = |id: &str| listed.iter().find(|one| one.id == id).expect("is listed").about.parent.clone();
    assert!(line.windows(2).all(|pair| parent(pair[1].id()).as_deref() == Some(pair[0].id())), "{listed:?}");
    let mut seen = HashSet::new();
    for (index, one) in line.iter().enumerate() {
        let who = text_of(one, WHO).await;
        assert!(who.lines().all(|word| seen.insert(word.to_owned())), "somebody else in everything: {who}");
        let expected: String = (1..=deepest.min(index + 1)).map(|depth| format!("{depth}\n")).collect();
        assert_eq!(text_of(one, "ls /opt/line | sort -n").await, expected, "number {index}");
        assert_eq!(text_of(one, GOES_ON).await, "goes on\n");
    }
    // The first ones go first: nobody stands on an ancestor that runs.
    for one in line {
        assert_eq!(text_of(&one, GOES_ON).await, "goes on\n");
        one.kill().await;
    }
    drop(running);
}

/// Forks, and givings back of memory, whose callers give up at moments all over the time that they take.
pub(crate) async fn abandoned() {
    let sandbox = small().forkable().start().await.expect("starts");
    // What takes a second natively takes a minute in an emulated host.
    let (moments, templates) = if sandbox.place_name() == "emulated" { (3, 2) } else { (16, 7) };
    let running = counts(&sandbox).await;
    let start = Instant::now();
    drop(sandbox.fork(2).await.expect("forks"));
    let whole = start.elapsed();
    let mut given_up = 0;
    for moment in 0..moments {
        let limit = whole * moment / moments;
        given_up += u32::from(timeout(limit, sandbox.fork(2)).await.is_err());
        let text = timeout(SOON, text_of(&sandbox, GOES_ON)).await;
        assert_eq!(text.unwrap_or_else(|_| panic!("it stands still after {limit:?}")), "goes on\n");
        given_up += u32::from(timeout(limit / 8, sandbox.give_back()).await.is_err());
        let text = timeout(SOON, text_of(&sandbox, GOES_ON)).await;
        assert_eq!(text.unwrap_or_else(|_| panic!("it holds its memory after {limit:?}")), "goes on\n");
    }
    assert!(given_up > moments, "{given_up} of {} callers gave up", 2 * moments);
    // Whatever was made for nobody is gone, and it can be forked as before.
    let fork = sandbox.fork(1).await.expect("forks").sandboxes.pop().expect("one");
    assert_eq!(text_of(&fork, GOES_ON).await, "goes on\n");
    let mut listed = midge::ps::list().expect("can be listed");
    listed.retain(|one| one.about.owner_pid == std::process::id());
    assert_eq!(listed.len(), 2, "{listed:?}");
    drop(running);
    fork.kill().await;
    sandbox.kill().await;
    // A template that nobody waits for does not appear.
    let name = name("abandoned");
    let start = Instant::now();
    Template::create(&name, small(), Plan::default()).await.expect("is made");
    let whole = start.elapsed();
    for moment in 1..=templates {
        Template::remove(&name).ok();
        let made = timeout(whole * moment / (templates + 1), Template::create(&name, small(), Plan::default())).await;
        assert_eq!(made.is_ok(), Template::open(&name).is_ok(), "{made:?}");
    }
    Template::remove(&name).ok();
}
