// SPDX-License-Identifier: Apache-2.0

use std::path::Path;

use super::super::testing::{self, call, call_with};
use super::super::{Cancel, Ending};
use super::*;
use proptest::prelude::*;

struct Bench {
    dir: tempfile::TempDir,
    shell: Shell,
    spool: Arc<Spool>,
}

fn bench_of(flavour: Flavour) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::new(dir.path().join("spool"));
    let work = dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let shell = Shell::of(flavour, work, dir.path().join("own"), spool.clone());
    Bench { dir, shell, spool }
}

fn bench() -> Bench {
    bench_of(Flavour::Bash)
}

impl Bench {
    fn run(&self, command: &str) -> Outcome {
        call(&self.shell, json!({"command": command, "timeout_s": 60}))
    }

    fn lines(&self, command: &str) -> String {
        let outcome = self.run(command);
        assert_eq!(outcome.ending, Ending::Done, "{}", outcome.text);
        outcome.text
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }
}

/// Waits until the file holds a process's number.
fn pid_in(path: &Path) -> i32 {
    for _ in 0..1000 {
        if let Some(pid) = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()) {
            return pid;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} was never written", path.display());
}

fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_session_lives_on_between_calls() {
    for flavour in [Flavour::Bash, Flavour::Posix] {
        let bench = bench_of(flavour);
        bench.run("mkdir sub; cd sub; export A=1; B=2; f() { echo f-$1; }");
        let text = bench.lines("echo $A $B; f x; pwd");
        assert!(text.starts_with("1 2\nf-x\n") && text.contains("/work/sub\n[exit code 0]"), "{flavour:?}: {text}");
    }
}

#[test]
fn the_directory_is_told_when_it_changes() {
    let bench = bench();
    assert!(bench.lines("mkdir a; cd a").contains("[working directory: "));
    assert_eq!(bench.lines("true"), "[exit code 0]");
}

#[test]
fn both_streams_come_in_order_and_codes_are_told() {
    let bench = bench();
    assert_eq!(bench.lines("echo 1; echo 2 >&2; echo 3; (exit 7)"), "1\n2\n3\n[exit code 7]");
    assert!(bench.lines("nonesuch").contains("not found\n[exit code 127]"));
    assert_eq!(bench.lines("printf no-end"), "no-end\n[exit code 0]");
    assert!(bench.lines("if then").contains("syntax error"));
    assert_eq!(bench.lines(""), "[exit code 0]");
    assert_eq!(bench.lines("cat <<'X'\nit's \"$HOME\"\nX"), "it's \"$HOME\"\n[exit code 0]");
    assert_eq!(bench.lines("cat; read x; echo end"), "end\n[exit code 0]");
    assert_eq!(bench.lines("return 3"), "[exit code 3]");
    assert!(bench.lines("sh -c 'kill -9 $$'").ends_with("[exit code 137]"));
}

#[test]
fn long_commands_run_and_longer_ones_are_refused() {
    let bench = bench();
    let long = format!("x='{}'; echo ${{#x}}", "y".repeat(900_000));
    assert_eq!(bench.lines(&long), "900000\n[exit code 0]");
    let refused = bench.run(&"y".repeat(COMMAND_MAX_BYTES + 1));
    assert!(refused.is_error() && refused.text.contains("1048576"), "{}", refused.text);
    assert!(bench.run("a\0b").text.contains("NUL byte at 1"));
}

#[test]
fn a_timed_out_command_goes_with_all_that_it_started_and_earlier_jobs_stay() {
    let bench = bench();
    bench.run("export KEPT=yes; keep() { echo kept; }; sleep 500 & echo $! >spared");
    let script = "trap '' TERM INT; echo begun
        (setsid bash -c 'trap \"\" TERM; echo $$ >hidden; while :; do sleep 100; done' &)
        (env -i setsid sleep 600 & echo $! >bare)
        while [ ! -s hidden ]; do sleep 0.05; done; while :; do :; done; touch never";
    let outcome = call(&bench.shell, json!({"command": script, "timeout_s": 2}));
    assert_eq!(outcome.ending, Ending::Failed);
    assert!(outcome.text.starts_with("begun\n[timed out after 2 s"), "{}", outcome.text);
    for name in ["hidden", "bare"] {
        assert!(!lives(pid_in(&bench.path(name))), "{name} lives");
    }
    let spared = pid_in(&bench.path("spared"));
    assert!(lives(spared) && !bench.path("never").exists());
    assert_eq!(bench.lines("echo $KEPT; keep"), "yes\nkept\n[exit code 0]");
    drop(bench);
    assert!(!lives(spared), "background jobs end with the tool");
}

#[test]
fn a_tree_that_keeps_forking_is_ended() {
    let bench = bench();
    let script = "spawn() { sleep 0.02; spawn & (setsid sleep 300 &) ; wait; }; spawn & spawn & wait";
    let outcome = call(&bench.shell, json!({"command": script, "timeout_s": 1}));
    assert!(outcome.text.contains("timed out") && !outcome.text.contains("could not be ended"), "{}", outcome.text);
    assert_eq!(bench.lines("echo after"), "after\n[exit code 0]");
}

#[test]
fn a_cancelled_command_is_ended_soon() {
    let bench = bench();
    let cancel = Cancel::new().unwrap();
    let (other, begun) = (cancel.clone(), bench.path("begun"));
    let canceller = std::thread::spawn(move || {
        let pid = pid_in(&begun);
        other.cancel();
        pid
    });
    let outcome = call_with(&bench.shell, json!({"command": "sleep 3000 & echo $! >begun; wait"}), &cancel);
    assert_eq!(outcome.ending, Ending::Cancelled);
    assert!(!lives(canceller.join().unwrap()));
}

#[test]
fn a_session_that_ends_is_renewed_and_told() {
    let bench = bench();
    for (command, code) in [("exit 3", 3), ("set -e; false; echo never", 1), ("exec true", 0)] {
        bench.run("cd /tmp; export V=v; g() { echo g; }");
        let outcome = bench.run(command);
        assert!(outcome.text.starts_with(&format!("[exit code {code}]\n[new shell session")), "{}", outcome.text);
        assert_eq!(bench.lines("echo $V; g; pwd"), "v\ng\n/tmp\n[exit code 0]", "after {command}");
    }
    assert!(bench.run("kill -9 $$").text.contains("killed by signal 9"));
    assert!(bench.lines("set -u; set -x; true").ends_with("+ true\n[exit code 0]"));
    assert_eq!(bench.lines("echo \"[$NEVER_SET]\""), "[]\n[exit code 0]");
}

#[test]
fn exit_keeps_what_its_own_command_did() {
    let bench = bench();
    bench.run("mkdir d; cd d; export LATE=1; exit 4");
    let text = bench.lines("echo $LATE; basename \"$PWD\"");
    assert!(text.starts_with("1\nd\n"), "{text}");
}

#[test]
fn restart_leaves_nothing() {
    let bench = bench();
    bench.run(
        "export GONE=1; cd /; sleep 500 & echo $! >/proc/self/cwd/../$OLDPWD/job 2>/dev/null || echo $! >$OLDPWD/job",
    );
    let job = pid_in(&bench.path("job"));
    let outcome = call(&bench.shell, json!({"command": "echo [$GONE]; basename \"$PWD\"", "restart": true}));
    assert!(outcome.text.starts_with("[]\nwork\n"), "{}", outcome.text);
    assert!(!lives(job));
}

#[test]
fn a_command_that_changes_the_sessions_streams_is_recovered_from() {
    let bench = bench();
    for command in ["exec >file", "exec 2>&-", "exec 1>&- 2>&- 0<&-", "exec </dev/zero", "exec 3>x 4>y", "set -n"] {
        call(&bench.shell, json!({"command": command, "timeout_s": 2}));
        assert_eq!(bench.run("echo out; echo err >&2; cat").text.lines().take(2).collect::<Vec<_>>(), ["out", "err"]);
    }
    bench.run("rm -rf ../own ../spool");
    assert_eq!(bench.lines("echo still"), "still\n[exit code 0]");
}

#[test]
fn endless_output_is_bounded_in_memory_and_on_disk() {
    let bench = bench();
    let outcome = bench.run("echo first; head -c 1000000000 /dev/zero | tr '\\0' 'x'; echo; echo last");
    assert!(outcome.text.starts_with("first\nxxx") && outcome.text.contains("last\n[exit code 0]"));
    assert!(outcome.text.len() <= OUTCOME_MAX_BYTES, "{}", outcome.text.len());
    assert!(outcome.elided_bytes > 999_000_000);
    let kept = std::fs::metadata(bench.dir.path().join("spool/output-0")).unwrap().len();
    assert_eq!(kept, super::super::spool::KEPT_MAX_BYTES);
    let read = call(&super::super::spool::Output(bench.spool.clone()), json!({"id": "o0", "offset": 6}));
    assert!(read.text.starts_with("xxx"));
    let endless = call(&bench.shell, json!({"command": "yes", "timeout_s": 1}));
    assert!(endless.text.contains("timed out") && endless.text.len() <= OUTCOME_MAX_BYTES);
}

#[test]
fn output_that_is_no_text_is_made_text() {
    let bench = bench();
    assert_eq!(bench.lines(r"printf 'a\0\377\033b\r\nc'"), "a\u{fffd}b\nc\n[exit code 0]");
    let random = bench.run("head -c 20000 /dev/urandom");
    assert!(random.text.len() <= OUTCOME_MAX_BYTES && random.text.ends_with("[exit code 0]"));
}

#[test]
fn a_background_job_never_waits_for_a_reader() {
    let bench = bench();
    bench
        .run("(while [ ! -e go ]; do sleep 0.05; done; head -c 1000000 /dev/zero | tr '\\0' b; echo $BASHPID >done) &");
    std::fs::write(bench.path("go"), "").unwrap();
    pid_in(&bench.path("done"));
    let text = bench.lines("echo mine");
    assert!(text.contains("[background jobs printed") && text.ends_with("mine\n[exit code 0]"), "{text}");
}

#[test]
fn a_name_in_the_way_or_a_gone_directory_is_told() {
    let bench = bench();
    assert!(bench.lines("mkdir gone; cd gone; rmdir ../gone; pwd; exit 0").contains("[exit code 0]"));
    assert_eq!(bench.lines("echo here").lines().next(), Some("here"));
}

#[test]
fn what_its_schema_admits_the_tool_accepts() {
    let bench = bench();
    let input = testing::sample(&bench.shell.spec().input_schema);
    assert!(input::parse::<Input>(input).is_ok());
    let refused = call(&bench.shell, json!({"command": "true", "timeout_s": 3601}));
    assert!(refused.is_error() && refused.text.contains("1 to 3600 seconds"));
}

proptest! {
    #[test]
    fn no_input_panics(input in testing::any_json()) {
        prop_assume!(input.get("command").is_none());
        prop_assert!(call(&bench().shell, input).is_error());
    }
}
