// SPDX-License-Identifier: Apache-2.0
//! Children of agents as real machines: what they do, what of it their parent takes, and that none of them outlives its run. And the
//! doors of a policy for a command that no agent runs.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use midge_scripted_model::{Server, script::Script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::context::Context;

crate::tests!("children":
    Guest child_works_and_its_parent_takes_what_it_changed,
    Guest child_ends_with_its_run,
    Guest command_reaches_what_its_policy_names_and_nothing_else,
    Guest policy_file_that_changes_narrows_what_runs,
    Guest command_has_as_many_processes_as_its_policy_says,
);

const LIMIT: Duration = Duration::from_secs(300);

const POLICY: &str = r#"
version = 1
[limits]
memory_mib = 192
disk_mib = 128
[children]
allowed = true
number = 8
share_percent = 50
[budget]
turns = 40
[workspace]
mode = "apply"
"#;

/// What an agent with children works with.
struct Rig {
    dir: tempfile::TempDir,
    server: Server,
}

impl Rig {
    fn new(policy: &str, steps: &Value) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("p")).expect("is made");
        std::fs::write(dir.path().join("p/note.txt"), "from the user\n").expect("is written");
        std::fs::write(dir.path().join("p/gone.txt"), "x").expect("is written");
        std::fs::write(dir.path().join("policy.toml"), policy).expect("is written");
        let script = Script::parse(&json!({ "steps": steps }).to_string()).expect("a script");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self { server: Server::listen(listener, script).expect("serves"), dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn agent(&self, context: &Context, more: &[&str]) -> crate::context::Call {
        let (url, policy) = (self.server.base_url(), self.path("policy.toml"));
        let words =
            ["agent", "--task", "share the work", "--provider", "anthropic", "--base-url", &url, "--model", "m"];
        let words = words.iter().chain(&["--policy", &policy]).chain(more).copied().collect::<Vec<_>>();
        context
            .midge(words)
            .env("MIDGE_STATE", self.dir.path())
            .env("ANTHROPIC_API_KEY", "sk-e2e-0a1b2c3d")
            .limit(LIMIT)
    }

    /// The transcripts, that of the run itself first.
    fn transcripts(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.dir.path().join("runs")).expect("transcripts");
        let mut all: Vec<PathBuf> = all.map(|one| one.expect("a transcript").path()).collect();
        all.sort();
        all
    }
}

fn call(name: &str, input: &Value) -> Value {
    json!({"call": {"name": name, "input": input}})
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// A child with a command whose changes are taken, one whose changes are dropped, one that asks for too much, one with a task for a
/// model of its own, one that its parent gives up.
fn child_works_and_its_parent_takes_what_it_changed(context: &Context) {
    let shell = |command: &str| call("shell", &json!({"command": command}));
    // Long enough for the child to begin.
    let patience_s = context.scaled(2, 15);
    // The copy has its parent's files, what that changed too, and none of its processes.
    let changes = "cat mine.txt; echo from a child > note.txt; rm gone.txt; mkdir sub; echo new > sub/new.txt; echo loops $(cat /proc/[0-9]*/comm | grep -cx turn)";
    let steps = json!([
        {"parts": [shell("echo of the parent > mine.txt")]},
        {"parts": [call("fork", &json!({"command": changes, "take": true}))]},
        {"expect": ["of the parent", "loops 0", "M note.txt", "D gone.txt", "A sub/new.txt", "[taken: 3 paths written, 1 removed]"],
         "parts": [call("fork", &json!({"command": "echo dropped > note.txt; exit 7", "take": true}))]},
        {"expect": ["[exit code 7]", "its changes were dropped"],
         "parts": [call("fork", &json!({"command": "true",
            "policy": "version = 1\n[limits]\nmemory_mib = 192\ndisk_mib = 128\n[budget]\nturns = 9\n[[network.rules]]\nname = \"x\"\nhosts = [\"example.org\"]\n"}))]},
        {"expect": ["there is no child", "network.rules"],
         "parts": [call("fork", &json!({"task": "write a file"}))]},
        {"expect": ["write a file"], "parts": [shell("echo by a model > task.txt")]},
        {"parts": [{"text": "The file is written."}]},
        {"expect": ["The file is written.", "A task.txt"],
         "parts": [call("fork", &json!({"command": "sleep 1000", "timeout_s": patience_s}))]},
        {"expect": [format!("did not end within {patience_s} s")], "parts": [shell("cat note.txt sub/new.txt; ls")]},
        {"expect": ["from a child"], "parts": [{"text": "Shared."}]},
    ]);
    let rig = Rig::new(POLICY, &steps);
    let workspace = format!("{}:apply", rig.path("p"));
    let agent = rig.agent(context, &["--workspace", &workspace]).run().code(0);
    let agent = agent.says(&[
        "runs",
        "left with 0, 4 changes",
        "left with 7, 1 changes",
        "refused: network.rules",
        "was ended",
        "done; 10 turns",
    ]);
    assert_eq!(agent.text(), "Shared.\n");
    let asked = rig.server.asked();
    assert!(asked.len() == 10 && asked.iter().all(|request| request.problem.is_none()), "{asked:?}");
    let p = rig.dir.path().join("p");
    assert_eq!((text(p.join("note.txt")), text(p.join("sub/new.txt"))), ("from a child\n".into(), "new\n".into()));
    assert!(!p.join("gone.txt").exists() && p.join("mine.txt").exists() && !p.join("task.txt").exists());
    context.assert_nothing_left();
    let transcripts = rig.transcripts();
    // The run's, and those of its children but the third, which was refused.
    assert_eq!(transcripts.len(), 5, "{transcripts:?}");
    for path in &transcripts {
        context.midge(["log", "verify", &path.display().to_string()]).run().code(0);
    }
    let run = transcripts.iter().map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).min();
    replays(context, &rig, &run.expect("one"));
}

/// The same once more, of the transcripts alone, over the directory as it was.
fn replays(context: &Context, rig: &Rig, run: &str) {
    let before = rig.dir.path().join("before");
    std::fs::create_dir(&before).expect("is made");
    std::fs::write(before.join("note.txt"), "from the user\n").expect("is written");
    std::fs::write(before.join("gone.txt"), "x").expect("is written");
    let (policy, workspace) = (rig.path("policy.toml"), format!("{}:discard", rig.path("before")));
    let words = ["replay", run, "--policy", &policy, "--workspace", &workspace];
    let replay = context.midge(words).env("MIDGE_STATE", rig.dir.path()).limit(LIMIT).run().code(0);
    let _ = replay.says(&["every tool answered as it was recorded", "done; 10 turns"]);
    assert_eq!(text(before.join("note.txt")), "from the user\n");
    context.assert_nothing_left();
    context
        .midge(["replay", "no-such-run"])
        .env("MIDGE_STATE", rig.dir.path())
        .run()
        .code(125)
        .says(&["midge log list"]);
}

/// The sandboxes that the process `owner` has.
fn alive(context: &Context, owner: u32) -> usize {
    let text = context.midge(["ps", "--json"]).run().code(0).text();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    all.iter().filter(|one| one["owner_pid"] == owner).count()
}

/// By a budget of the parent, and by the user's wish to end all of it.
fn child_ends_with_its_run(context: &Context) {
    let fork = json!([{"parts": [call("fork", &json!({"command": "sleep 1000"}))]}]);
    let rig = Rig::new(POLICY, &fork);
    let wall = context.scaled("wall=15s", "wall=60s");
    rig.agent(context, &["--budget", wall]).run().code(3).says(&["runs", "was ended", "budget: wall"]);
    context.assert_nothing_left();

    let rig = Rig::new(POLICY, &fork);
    let mut command = rig.agent(context, &[]).into_command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut agent = command.spawn().expect("midge runs");
    let deadline = Instant::now() + LIMIT;
    while alive(context, agent.id()) < 2 {
        assert!(Instant::now() < deadline && agent.try_wait().expect("is ours").is_none(), "there is no child");
        std::thread::sleep(Duration::from_millis(100));
    }
    let pid = Pid::from_raw(i32::try_from(agent.id()).expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("it is ours");
    let status = crate::context::wait(&mut agent, Instant::now() + LIMIT).expect("ends");
    assert_eq!(status.code(), Some(143));
    context.assert_nothing_left();
    for path in rig.transcripts().iter().filter(|path| path.to_string_lossy().contains(".1.")) {
        context.midge(["log", "verify", &path.display().to_string()]).run().code(0);
    }
}

/// Answers every request alike until the test is over.
fn serve() -> u16 {
    // Not 127.0.0.1: that is the guest's own to programs there.
    let listener = TcpListener::bind("127.0.0.2:0").expect("a port");
    let port = listener.local_addr().expect("has one").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nfrom host");
        }
    });
    port
}

fn command_reaches_what_its_policy_names_and_nothing_else(context: &Context) {
    let (port, other) = (serve(), serve());
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.toml");
    std::fs::write(&file, local_rule(port)).expect("is written");
    let script = format!(
        "curl -sS -m 20 http://127.0.0.2:{port}/; echo; curl -s -m 20 -o /dev/null -w '%{{http_code}}\\n' http://127.0.0.2:{other}/; exit 5"
    );
    let run = |flags: &[&str]| context.sh(flags, &script).env("MIDGE_STATE", dir.path()).run();
    let file = file.display().to_string();
    let guarded = run(&["--mem", "192", "--policy", &file]).code(5).out("from host\n403\n");
    let _ = guarded.says(&["recorded in"]);
    let transcripts: Vec<_> = std::fs::read_dir(dir.path().join("runs")).expect("is there").flatten().collect();
    let [one] = transcripts.as_slice() else { panic!("one transcript: {transcripts:?}") };
    context.midge(["log", "verify", &one.path().display().to_string()]).run().code(0);
    assert!(text(one.path()).contains("egress_decided"), "what went through is recorded");
    let without = run(&["--mem", "192"]).code(5);
    assert_eq!(without.text(), "\n000\n", "without a policy there is no way out");
    assert_eq!(std::fs::read_dir(dir.path().join("runs")).expect("is there").count(), 1, "and nothing to record");
    let _ = run(&["--policy", "no-such-policy"]).code(125).says(&["--policy"]);
    context.assert_nothing_left();
}

/// A rule for a server of this machine.
fn local_rule(port: u16) -> String {
    format!(
        "version = 1\n[[network.rules]]\nname = \"local\"\nhosts = [\"127.0.0.2\"]\nports = [{port}]\nschemes = [\"http\"]\n\
         ranges = [\"127.0.0.0/8\"]\n"
    )
}

fn policy_file_that_changes_narrows_what_runs(context: &Context) {
    let port = serve();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.toml");
    std::fs::write(&file, local_rule(port)).expect("is written");
    let code = format!("curl -s -m 20 -o /dev/null -w '%{{http_code}}\\n' http://127.0.0.2:{port}/");
    let script =
        format!("while [ $({code}) = 200 ]; do echo 200 >> /tmp/seen; sleep 0.1; done; sort -u /tmp/seen; {code}");
    let running = context
        .sh(&["--mem", "192", "--policy", &file.display().to_string()], &script)
        .env("MIDGE_STATE", dir.path())
        .limit(LIMIT)
        .start();
    let transcript = || {
        let mut files = std::fs::read_dir(dir.path().join("runs")).into_iter().flatten().flatten();
        files.next().map(|one| text(one.path())).unwrap_or_default()
    };
    let waits = |word: &str| {
        let start = Instant::now();
        while !transcript().contains(word) {
            assert!(start.elapsed() < LIMIT, "no {word}: {}", transcript());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    waits("egress_ended");
    // What is no policy changes nothing; one that takes something else away leaves this.
    std::fs::write(&file, "version = 1\nnonsense = 1\n").expect("is written");
    std::thread::sleep(Duration::from_secs(2));
    assert!(!transcript().contains("narrowed"));
    std::fs::write(&file, format!("{}[budget]\ntokens = 5\n", local_rule(port))).expect("is written");
    waits("narrowed");
    assert!(!transcript().contains("deny"));
    std::fs::write(&file, "version = 1\n").expect("is written");
    running.finish().code(0).out("200\n403\n").says(&[
        "has changed and is not used",
        "nonsense",
        "what it no longer allows is refused from now on",
    ]);
    context.assert_nothing_left();
}

fn command_has_as_many_processes_as_its_policy_says(context: &Context) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.toml");
    std::fs::write(&file, "version = 1\n[limits]\nprocesses = 20\n").expect("is written");
    let file = file.display().to_string();
    let run = |flags: &[&str], count: u32| {
        let script = format!("for n in $(seq {count}); do sleep 5 & done; echo all of them; wait");
        context.sh(flags, &script).env("MIDGE_STATE", dir.path()).run()
    };
    let policy = ["--mem", "192", "--policy", &file];
    run(&policy, 10).code(0).out("all of them\n");
    run(&policy, 30).code(2).says(&["cannot fork"]);
    run(&policy[..2], 30).code(0).out("all of them\n");
    context.assert_nothing_left();
}
