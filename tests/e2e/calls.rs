// SPDX-License-Identifier: Apache-2.0
//! The system-call policies, held against what monitors really ask of their host: every rule is used, or says why it is
//! there all the same; and what is used is killed without its rule.
//!
//! In an emulated host, whoever runs the test: following a monitor takes root's rights, which are to be had there.
//! Monitors are started under [`tracer`] and go through everything that they do. Then each policy is compiled anew
//! without one of its rules, for each of them, and has to answer the calls that were noted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use midge::exec::Exec;
use midge::files::WriteOptions;
use midge::sandbox::{Sandbox, Where};
use midge::template::{Plan, Template};
use seccompiler::{TargetArch, compile_from_json, sock_filter};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::context::Context;
use crate::elf;
use crate::forks::{name, small, text_of};
use crate::harness::with_rounds;
use crate::place::Place;
use crate::tracer::{CONSTRAINED, Call, DISK_MIB, KILLED_MIB, REAL, STOPPED_MIB, TOLD};

crate::tests!("calls":
    OurKernel every_rule_of_a_policy_is_needed,
);

/// The policies, in the order of `Thread::ALL`.
const POLICIES: [(&str, &str); 6] = [
    ("keeper", include_str!("../../seccomp/keeper.json")),
    ("first", include_str!("../../seccomp/first.json")),
    ("main", include_str!("../../seccomp/main.json")),
    ("vcpu", include_str!("../../seccomp/vcpu.json")),
    ("block", include_str!("../../seccomp/block.json")),
    ("resident", include_str!("../../seccomp/resident.json")),
];
/// What a rule may be there for though a whole run did without it, as its `reason` begins.
const REASONS: [&str; 5] = ["error path: ", "debug build: ", "malloc: ", "host: ", "race: "];
/// How long the last monitor of an emulated host may take to be told of.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

fn every_rule_of_a_policy_is_needed(context: &Context) {
    let calls = recorded_calls(context);
    assert!(calls.len() > 100, "{} calls are not a whole run", calls.len());
    let mut wrong = Vec::new();
    let mut table = String::from("policy    rules  calls  used  with a reason (of them used)\n");
    for (kind, (name, text)) in POLICIES.iter().enumerate() {
        let seen: Vec<Call> = calls.iter().filter(|call| call.is_filtered(kind)).copied().collect();
        let policy = Policy::new(name, text);
        wrong.extend(policy.denied(&seen));
        wrong.extend(policy.constrains_what_is_noted());
        let (mut used, mut reasoned, mut both) = (0, 0, 0);
        for (index, rule) in policy.rules.iter().enumerate() {
            let is_used = policy.needs(index, &seen);
            let reason = rule["reason"].as_str();
            if reason.is_some_and(|reason| !REASONS.iter().any(|kind| reason.starts_with(kind))) {
                wrong.push(format!("{name}: {rule}: its reason begins with none of {REASONS:?}"));
            }
            if !is_used && reason.is_none() {
                wrong.push(format!("{name}: {rule}: nobody needs it"));
            }
            used += usize::from(is_used);
            reasoned += usize::from(reason.is_some());
            both += usize::from(is_used && reason.is_some());
        }
        let names: BTreeSet<_> = policy.rules.iter().map(|rule| rule["syscall"].to_string()).collect();
        let line = format!("{:5}  {:5}  {used:4}  {reasoned:13} ({both})", policy.rules.len(), names.len());
        table.push_str(&format!("{name:8}  {line}\n"));
    }
    println!("{table}(Firecracker: vmm 50, api 31, vcpu 27 system calls)");
    assert!(wrong.is_empty(), "{} finding(s):\n{}\n{table}", wrong.len(), wrong.join("\n"));
}

/// One policy.
struct Policy {
    kind: &'static str,
    document: Value,
    rules: Vec<Value>,
}

impl Policy {
    fn new(kind: &'static str, text: &str) -> Self {
        let document: Value = serde_json::from_str(text).expect("JSON");
        let rules = document[kind]["filter"].as_array().expect("rules").clone();
        Self { kind, document, rules }
    }

    /// The program, with or without one of the rules.
    fn compiled(&self, without: Option<usize>) -> Vec<sock_filter> {
        let mut document = self.document.clone();
        let kept = self.rules.iter().enumerate().filter(|(index, _)| Some(*index) != without);
        let mut kept: Vec<Value> = kept.map(|(_, rule)| rule.clone()).collect();
        for rule in &mut kept {
            rule.as_object_mut().expect("a rule").remove("reason");
        }
        document[self.kind]["filter"] = kept.into();
        let mut programs = compile_from_json(document.to_string().as_bytes(), TargetArch::x86_64).expect("compiles");
        programs.remove(self.kind).expect("the filter of that name")
    }

    /// Calls that were made and that it does not allow: this test, then, is wrong.
    fn denied(&self, seen: &[Call]) -> Vec<String> {
        let program = self.compiled(None);
        let denied = seen.iter().filter(|call| !allows(&program, call));
        denied.map(|call| format!("{}: {call:x?} was made and is not allowed", self.kind)).collect()
    }

    /// Whether some call that was made would have ended its process, were it not for this rule.
    fn needs(&self, rule: usize, seen: &[Call]) -> bool {
        let program = self.compiled(Some(rule));
        seen.iter().any(|call| !allows(&program, call))
    }

    /// The arguments that rules look at are those that are noted.
    fn constrains_what_is_noted(&self) -> Vec<String> {
        let is_noted = |rule: &Value, argument: &Value| {
            let index = argument["index"].as_u64().and_then(|index| usize::try_from(index).ok());
            CONSTRAINED.iter().any(|(_, name, noted)| rule["syscall"] == *name && Some(*noted) == index)
        };
        let rules = self.rules.iter();
        let unknown = rules
            .filter(|rule| rule["args"].as_array().into_iter().flatten().any(|argument| !is_noted(rule, argument)));
        unknown.map(|rule| format!("{}: {rule}: the tracer does not note that argument", self.kind)).collect()
    }
}

/// What the kernel would do: a program of loads, `and`, comparisons, jumps and returns over `struct seccomp_data`.
fn allows(program: &[sock_filter], call: &Call) -> bool {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const SECCOMP_RET_ALLOW: u32 = 0x7fff_0000;
    let mut data = [0; 64];
    data[..4].copy_from_slice(&u32::try_from(call.number).expect("a small number").to_le_bytes());
    data[4..8].copy_from_slice(&AUDIT_ARCH_X86_64.to_le_bytes());
    // In the place of whichever argument is looked at.
    for argument in data[16..].chunks_exact_mut(8) {
        argument.copy_from_slice(&call.argument.to_le_bytes());
    }
    let (mut at, mut word) = (0, 0_u32);
    loop {
        let step = &program[at];
        let operand = usize::try_from(step.k).expect("64 bits");
        at += 1;
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            0x20 => word = u32::from_le_bytes(data[operand..operand + 4].try_into().expect("four bytes")),
            0x54 => word &= step.k,
            0x05 => at += operand,
            0x15 => at += jump(word == step.k),
            0x25 => at += jump(word > step.k),
            0x35 => at += jump(word >= step.k),
            0x06 => return step.k == SECCOMP_RET_ALLOW,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// Runs everything under the tracer, in an emulated host of its own; gives what was noted.
fn recorded_calls(context: &Context) -> BTreeSet<Call> {
    let dir = tempfile::Builder::new().prefix("e2e-calls-").tempdir().expect("a directory");
    let host = Place::emulated_with_stand_in(&context.bin, REAL, dir.path()).expect("an emulated host");
    let there = |call: crate::context::Call| call.limit(with_rounds(350)).at(&host);
    there(context.program(&context.bin.join("e2e"), ["--inside", "recorded"])).run().code(0);
    for kernel in [elf::panicking(), elf::triple_fault()] {
        let path = dir.path().join("kernel");
        std::fs::write(&path, kernel).expect("a file");
        let words = ["run", "--kernel", path.to_str().expect("text"), "--", "true"];
        there(context.midge(words)).run().code(125);
    }
    let calls = told_on_console(&host);
    context.assert_nothing_left();
    calls
}

/// Waits for the last monitor's tracer.
fn wait_for<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(got) = get() {
            return got;
        }
        assert!(start.elapsed() < TOLD_WITHIN, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What is told on the console of the host, the last time, which is all of it.
fn told_on_console(host: &Place) -> BTreeSet<Call> {
    // Several monitors end one after the other; the last of them tells what all have done.
    let mut before = String::new();
    wait_for("an emulated host says nothing of calls", || {
        std::thread::sleep(Duration::from_secs(3));
        let now = host.console();
        let is_settled = now == before;
        before = now;
        let mut lines = BTreeMap::new();
        for line in before.lines().filter_map(|line| line.split_once(TOLD)).map(|(_, line)| line) {
            let (place, words) = line.split_once(' ')?;
            lines.insert(place.to_owned(), words.to_owned());
        }
        let count: usize = lines.keys().next()?.split_once('/')?.1.parse().ok()?;
        let is_whole = (0..count).all(|index| lines.contains_key(&format!("{index}/{count}"))) && lines.len() == count;
        let words = || lines.values().flat_map(|line| line.split_whitespace()).filter_map(Call::parse).collect();
        (is_settled && is_whole).then(words)
    })
}

/// What monitors do in a life, in the process that is started for it.
pub(crate) async fn recorded() {
    let begun = Instant::now();
    // Shown only when something goes wrong.
    let step = |what: &str| println!("{:5.1} s  {what}", begun.elapsed().as_secs_f32());
    // Its changes are in a file, where that can be: they are too many for memory.
    let large = Sandbox::builder().mem_mib(128).disk_mib(256 << 10).start().await.expect("starts");
    works(&large).await;
    step("a sandbox works");
    large.give_back().await.expect("goes back");
    step("and gives memory back");
    large.stop().await;
    for mib in [STOPPED_MIB, KILLED_MIB, DISK_MIB] {
        Sandbox::builder().mem_mib(mib).disk_mib(64).start().await.expect_err("it is stopped");
    }
    step("others are stopped");
    let first = Sandbox::builder().mem_mib(128).disk_mib(64).forkable().start().await.expect("starts");
    works(&first).await;
    first.give_back().await.expect("goes back");
    step("one that can be forked works");
    let forks = first.fork(2).await.expect("forks").sandboxes;
    let deeper = forks[0].fork(1).await.expect("forks").sandboxes.pop().expect("one");
    works(&deeper).await;
    step("a fork of a fork works");
    for sandbox in forks.into_iter().chain([deeper]) {
        sandbox.stop().await;
    }
    first.kill().await;
    let name = name("calls");
    Template::create(&name, small(), Plan::default()).await.expect("is made");
    step("a template is made");
    let template = Template::open(&name).expect("is there");
    let started = template.start(Where::Auto, false).await.expect("starts");
    text_of(&started, "true").await;
    started.kill().await;
    let held = template.hold().await.expect("comes up");
    let fork = held.fork().await.expect("forks");
    text_of(&fork, "true").await;
    fork.stop().await;
    drop(held);
    step("and forked");
    Template::remove(&name).expect("goes");
}

/// Commands, files, a disk that is written, flushed and trimmed; connections from both sides, closed in all ways.
async fn works(sandbox: &Sandbox) {
    text_of(sandbox, "dd if=/dev/urandom of=/opt/data bs=64k count=32 conv=fsync; sync; cat /usr/bin/env >/dev/null")
        .await;
    text_of(sandbox, "rm /opt/data; sync; fstrim / || fstrim /opt || true").await;
    let mut running = sandbox.exec(Exec::new(["cat"]).stdin(true)).await.expect("starts");
    let mut stdin = running.stdin.take().expect("stdin");
    stdin.write_all(b"word\n").await.expect("taken");
    drop(stdin);
    assert_eq!(running.output().await.expect("ends").stdout, b"word\n");
    let content = vec![7; 300_000];
    let files = sandbox.files();
    files.write("/tmp/file", WriteOptions::default(), &mut content.as_slice()).await.expect("written");
    assert_eq!(files.read("/tmp/file", 1 << 20).await.expect("read"), content);
    // A connection from the guest that is closed in one direction first; the host listens there, and leaves it be.
    let half =
        "import socket; s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); s.connect((2, 1025)); s.shutdown(1)";
    text_of(sandbox, &format!("python3 -c '{half}'")).await;
    let running = sandbox.exec(Exec::new(["sleep", "300"])).await.expect("starts");
    running.controls().signal(15);
    drop(running.wait().await);
    // One whose client leaves in the middle.
    drop(sandbox.exec(Exec::new(["head", "-c", "3000000", "/dev/zero"])).await.expect("starts"));
    sandbox.stats().await.expect("stats");
}
