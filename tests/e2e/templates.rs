// SPDX-License-Identifier: Apache-2.0
//! What becomes of templates and forks when something goes wrong, and how different copies are. The long rows are as long
//! as `MIDGE_TEST_RUNS` says.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use midge::error::chain;
use midge::sandbox::Where;
use midge::template::{Held, Plan, Template};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::context::{Context, Outcome};
use crate::forks::{is_emulated, name, small, text_of};
use crate::harness::asked;
use crate::library::inside;
use crate::ps::itself;

crate::tests!("templates":
    Guest two_creations_of_one_name_make_one,
    Guest creation_that_is_killed_leaves_a_whole_template_or_none,
    Guest run_that_is_killed_leaves_its_template,
    Guest full_disk_leaves_the_old_template,
    Guest workspace_of_a_template_is_in_every_run,
    Guest copies_of_warmed_programs_differ,
    NativeGuest creation_whose_monitor_is_killed_says_so_and_makes_no_template,
    NativeGuest fork_whose_resident_is_killed_is_an_error_or_whole,
);

const LIMIT: Duration = Duration::from_secs(300);

/// How long a row is: `MIDGE_TEST_RUNS`, where the machine is fast enough for it.
pub(crate) fn rounds(native: u64, emulated: u64) -> u64 {
    if is_emulated() { emulated } else { asked("MIDGE_TEST_RUNS").unwrap_or(native) }
}

fn create(context: &Context, name: &str) -> crate::context::Call {
    context.midge(["template", "create", name, "--mem", "128", "--disk", "64"]).limit(LIMIT)
}

fn run(context: &Context, name: &str) -> Outcome {
    context.midge(["run", "--template", name, "--", "echo", "whole"]).limit(LIMIT).run()
}

fn two_creations_of_one_name_make_one(context: &Context) {
    let name = format!("{}-{}", name("two"), context.scaled("native", "emulated"));
    let both = [create(context, &name).start(), create(context, &name).start()].map(crate::context::Running::finish);
    let mut codes = both.each_ref().map(|outcome| outcome.status.code());
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(125)], "{} {}", both[0], both[1]);
    for loser in both.into_iter().filter(|outcome| outcome.status.code() == Some(125)) {
        loser.says(&["already", &name]);
    }
    run(context, &name).code(0).out("whole\n");
    context.midge(["template", "remove", &name]).run().code(0);
    context.assert_nothing_left();
}

/// Moments spread evenly over `span_ms`: multiples of the golden ratio.
pub(crate) fn moments(rounds: u64, span_ms: u64) -> impl Iterator<Item = Duration> {
    (1..=rounds).map(move |index| Duration::from_micros(index * 618_034 % 1_000_000 * span_ms / 1000))
}

fn creation_that_is_killed_leaves_a_whole_template_or_none(context: &Context) {
    let name = format!("{}-{}", name("killed"), context.scaled("native", "emulated"));
    let mut whole = 0;
    let rounds = context.scaled(rounds(12, 0), 3);
    for moment in moments(rounds, context.scaled(900, 8000)) {
        let running = create(context, &name).start();
        std::thread::sleep(moment);
        running.signal(Signal::SIGKILL);
        running.finish();
        context.midge(["template", "list"]).run().code(0);
        let outcome = run(context, &name);
        if outcome.status.code() == Some(0) {
            outcome.out("whole\n");
            whole += 1;
            context.midge(["template", "remove", &name]).run().code(0);
        } else {
            outcome.code(125).says(&["there is no template"]);
        }
    }
    println!("of {rounds} creations that were killed {whole} had finished");
    // Whoever starts a machine next clears away what the last one left.
    create(context, &name).run().code(0);
    context.midge(["template", "remove", &name]).run().code(0);
    context.assert_nothing_left();
}

fn run_that_is_killed_leaves_its_template(context: &Context) {
    let name = format!("{}-{}", name("victim"), context.scaled("native", "emulated"));
    create(context, &name).run().code(0);
    for moment in moments(context.scaled(rounds(12, 0), 3), context.scaled(200, 4000)) {
        let running =
            context.midge(["run", "--template", &name, "--", "sh", "-c", "echo on; sleep 0.1; echo off"]).start();
        std::thread::sleep(moment);
        running.signal(Signal::SIGKILL);
        let said = running.finish().text();
        assert!(["", "on\n", "on\noff\n"].contains(&said.as_str()), "{said:?}");
        run(context, &name).code(0).out("whole\n");
    }
    context.midge(["template", "remove", &name]).run().code(0);
    context.assert_nothing_left();
}

/// The cache on a small file system that is full but for less than a template takes.
fn full_disk_leaves_the_old_template(context: &Context) {
    const SCRIPT: &str = r#"
        mount -t tmpfs -o size=96m tmpfs "$1"
        for kind in kernels images initramfs scratch; do mkdir "$1/$kind"; mount --bind "$2/$kind" "$1/$kind"; done
        export MIDGE_CACHE="$1"
        # One that runs already sees other mounts.
        unset MIDGE_EMULATED_HOST
        "$3" template create old --mem 128 --disk 64 > /dev/null
        free=$(df --output=avail -k "$1" | tail -1)
        head -c $(((free - 4096) * 1024)) /dev/zero > "$1/filler"
        if "$3" template create new --mem 128 --disk 64; then exit 3; fi
        "$3" template list | grep -q old
        ! "$3" template list | grep -q new
        test "$(df --output=avail -k "$1" | tail -1)" -gt 3072
        exec "$3" run --template old -- echo whole
    "#;
    let cache = midge::cache::Cache::open().expect("the cache of these tests");
    let dir = tempfile::tempdir().expect("a directory");
    // Root needs no namespace of users to mount, and in one of a single user a monitor gets no ids of its own.
    let mounts = if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" };
    let words = [Path::new(mounts), Path::new("sh"), Path::new("-euc"), Path::new(SCRIPT), Path::new("sh")];
    let midge = context.bin.join("midge");
    let words = words.into_iter().chain([dir.path(), cache.root(), &midge]);
    let outcome = context.program(Path::new("unshare"), words).limit(LIMIT).run();
    outcome.code(0).says(&["no space left on device"]).out("whole\n");
    context.assert_nothing_left();
}

/// What setup and warm see, what a run shows of its own changes and of no sibling's, what is applied and what is refused.
fn workspace_of_a_template_is_in_every_run(context: &Context) {
    let name = format!("{}-{}", name("project"), context.scaled("native", "emulated"));
    let dir = tempfile::tempdir().expect("a directory");
    let project = dir.path().join("project");
    std::fs::create_dir(&project).expect("ours");
    let put = |file: &str, text: &str| std::fs::write(project.join(file), text).expect("ours");
    let get = |file: &str| std::fs::read_to_string(project.join(file)).unwrap_or_default();
    put("a", "one\n");
    put("b", "two\n");
    nix::unistd::mkfifo(&project.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("ours");
    let flags = ["--mem", "128", "--disk", "64", "--setup", "cat a > made", "--warm", "cat b; exec sleep 9999"];
    let words = ["template", "create", &name, "--workspace", project.to_str().expect("text")].into_iter().chain(flags);
    let made = context.midge(words).limit(LIMIT).run().code(0).says(&["note: pipe is a socket, pipe or device", "two"]);
    assert!(made.stderr.find("note: pipe") < made.stderr.find("two"), "told before a command runs: {made}");
    let run = |flags: &[&str], script: &str| {
        let words = ["run", "--template", &name].into_iter().chain(flags.iter().copied());
        context.midge(words.chain(["--", "sh", "-c", script])).limit(LIMIT).run().code(0)
    };
    put("b", "changed since\n");
    let first = run(&[], "pwd; cat b; echo first > a").out("/workspace\ntwo\n");
    let first = first.says(&["M  a", "A  made", "-one", "+first", "--workspace :apply"]);
    let second = run(&[], "cat a; echo second > b").out("one\n").says(&["M  b", "A  made", "+second"]);
    assert!(!first.stderr.contains("M  b") && !second.stderr.contains("M  a"), "{first}{second}");
    assert_eq!((get("a"), get("b"), get("made")), ("one\n".into(), "changed since\n".into(), String::new()));
    let applied = run(&["--workspace", ":apply"], "echo applied > a; echo refused > b; rm made");
    applied.says(&["applied 1 changes", "conflict: b changed on the host"]);
    assert_eq!((get("a"), get("b"), get("made")), ("applied\n".into(), "changed since\n".into(), String::new()));
    let discarded = run(&["--workspace", ":discard"], "cat a; echo x > a").out("one\n");
    assert!(!discarded.stderr.contains("M  a"), "{discarded}");
    std::fs::remove_dir_all(&project).expect("ours");
    let words = ["run", "--template", &name, "--workspace", ":apply", "--", "touch", "new"];
    context.midge(words).limit(LIMIT).run().code(125).says(&["open workspace", "project"]);
    context.midge(["template", "list"]).run().code(0);
    context.midge(["template", "remove", &name]).run().code(0);
    context.assert_nothing_left();
}

fn copies_of_warmed_programs_differ(context: &Context) {
    inside(context, "warmed");
}

/// The processes that run this lane's monitor are hit, whichever they are at that moment: one that boots, one that is frozen,
/// one that writes.
fn creation_whose_monitor_is_killed_says_so_and_makes_no_template(context: &Context) {
    let name = format!("{}-native", name("hit"));
    let (mut whole, mut hit) = (0, 0);
    let rounds = rounds(12, 0);
    for moment in moments(rounds, 900) {
        let running = create(context, &name).start();
        std::thread::sleep(moment);
        for pid in context.monitors() {
            // It may be gone by now.
            hit += u32::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
        }
        let created = running.finish();
        let outcome = run(context, &name);
        if created.status.code() == Some(0) {
            outcome.code(0).out("whole\n");
            whole += 1;
            context.midge(["template", "remove", &name]).run().code(0);
        } else {
            assert!(created.stderr.contains("midge: "), "{created}");
            created.code(125);
            outcome.code(125).says(&["there is no template"]);
        }
        context.assert_nothing_left();
    }
    println!("of {rounds} creations {whole} had finished, {hit} monitors were killed");
    assert!(hit > 0);
}

fn fork_whose_resident_is_killed_is_an_error_or_whole(context: &Context) {
    inside(context, "struck");
}

pub(crate) async fn held(what: &str, plan: Plan) -> Held {
    let name = name(what);
    Template::create(&name, small(), plan).await.expect("is made");
    let held = Template::open(&name).expect("is there").hold_at(Where::Auto, false).await.expect("comes up");
    Template::remove(&name).expect("goes");
    held
}

/// Python with OpenSSL at work before the template is kept: what it answers afterwards comes from generators and clocks
/// that were in its memory, or the kernel's, by then.
const WARM: &str = r#"exec python3 -c '
import os, ssl, time, uuid
ssl.RAND_bytes(16), uuid.uuid4(), os.urandom(16)
os.mkfifo("/tmp/ask"), os.mkfifo("/tmp/answer")
print("ready", flush=True)
while True:
    with open("/tmp/ask") as ask:
        ask.read()
    with open("/tmp/answer", "w") as answer:
        print(uuid.uuid4(), ssl.RAND_bytes(16).hex(), ssl.RAND_bytes(16).hex(), os.urandom(16).hex(), time.time_ns(), file=answer)
'"#;
const ASK: &str = "echo > /tmp/ask; read -r line < /tmp/answer; \
    echo $line $(cat /proc/sys/kernel/hostname /etc/machine-id /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id)";
/// How far a guest's clock may be off, beyond the time in which it was asked.
const CLOCK_OFF: Duration = Duration::from_millis(10);

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// Copies of one template: every random number, name and id of every one is its own, and its clock is right.
pub(crate) async fn warmed() {
    let held = held("warmed", Plan { warm: Some(WARM.to_owned()), ..Plan::default() }).await;
    let rounds = rounds(20, 3);
    let mut seen = HashSet::new();
    for _ in 0..rounds {
        let fork = held.fork().await.expect("forks");
        let before = since_1970();
        let text = text_of(&fork, ASK).await;
        let after = since_1970();
        fork.kill().await;
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words.len(), 9, "{text}");
        let guest = Duration::from_nanos(words[4].parse().expect("nanoseconds"));
        assert!(before - CLOCK_OFF <= guest && guest <= after + CLOCK_OFF, "{before:?} {guest:?} {after:?}");
        // The boot is the template's; everything else is the fork's own.
        for word in [words[0], words[1], words[2], words[3], words[5], words[6], words[7]] {
            assert!(seen.insert(word.to_owned()), "{word} was there before: {text}");
        }
    }
    assert_eq!(seen.len() as u64, 7 * rounds);
}

/// Residents that are killed while they are told to fork: whoever waited hears of it, and what was made is whole.
pub(crate) async fn struck() {
    let name = name("struck");
    Template::create(&name, small(), Plan::default()).await.expect("is made");
    let template = Template::open(&name).expect("is there");
    let (mut forks, mut errors) = (0, 0);
    for moment in moments(rounds(24, 0), 4) {
        let held = template.hold().await.expect("comes up");
        let pid = Pid::from_raw(i32::try_from(itself(held.pid())).expect("a pid"));
        // The runtime's clock knows no time shorter than a millisecond.
        let killer = std::thread::spawn(move || {
            std::thread::sleep(moment);
            kill(pid, Signal::SIGKILL).expect("it is ours");
        });
        let fork = held.fork().await;
        killer.join().expect("it has killed");
        match fork {
            Ok(fork) => {
                assert_eq!(text_of(&fork, "echo whole").await, "whole\n");
                fork.kill().await;
                forks += 1;
            }
            Err(error) => {
                println!("{}", chain(&error));
                errors += 1;
            }
        }
        let refused = chain(&held.fork().await.expect_err("nobody is there to fork"));
        assert!(refused.contains("forking a VM"), "{refused}");
    }
    println!("{forks} forks, {errors} errors");
    Template::remove(&name).expect("goes");
}
