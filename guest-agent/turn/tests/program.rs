// SPDX-License-Identifier: Apache-2.0
//! The program `midge-turn` as the host starts it: a run on standard input, an exit code at the end.
//!
//! In a process of its own: tools end what descends from theirs, and in a test that runs tools itself that is this program.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use midge_protocol::broker::{End, Told, Tools, Verdict, Wire};
use midge_scripted_model::Server;
use midge_scripted_model::script::{Fault, Script, Step};
use serde_json::json;
use support::{doors, run, workspace};

mod support;

/// The program with `input`, at the doors in `doors`.
fn started(input: &str, doors: &Path) -> Child {
    let mut program = Command::new(env!("CARGO_BIN_EXE_midge-turn"));
    program.env("MIDGE_DOORS", doors).stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped());
    let mut child = program.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child
}

#[test]
fn program_says_by_its_exit_code_how_the_run_ended() {
    let call = Step::call("nonsense", json!({}));
    let failed = Step { fault: Some(Fault::Status { status: 401, headers: [].into(), body: None }), ..Step::default() };
    for (steps, code) in [
        (vec![Step::text("done")], 0),
        (vec![failed], 1),
        (vec![Step { stop: Some("refusal".into()), ..Step::text("no") }], 1),
        (vec![call.clone(), call], 3),
    ] {
        let (work, house) = (workspace(), tempfile::tempdir().unwrap());
        let _told = doors(house.path(), |_| Verdict::Allow);
        let server = Server::start(Script::new(steps)).unwrap();
        let mut run = run(&server, Wire::Anthropic, work.path(), Tools::default());
        run.left.turns = Some(2);
        let output = started(&serde_json::to_string(&run).unwrap(), house.path()).wait_with_output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!((output.status.code(), out.as_ref(), err.as_ref()), (Some(code), "", ""));
    }
}

#[test]
fn program_says_what_is_wrong_with_its_input_and_its_doors() {
    let house = tempfile::tempdir().unwrap();
    let server = Server::idle(Script::default());
    let run = serde_json::to_string(&run(&server, Wire::Chat, house.path(), Tools::default())).unwrap();
    for (input, expected) in [("{\"task\": 3}", "not a run as JSON"), (&run, "is this a sandbox with a broker?")] {
        let output = started(input, house.path()).wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && err.contains(expected), "{err}");
    }
}

/// Interrupts the program when `begun` says so, and checks that it ends in good order.
fn interrupted(mut child: Child, told: &Receiver<Told>, begun: impl Fn() -> bool) {
    while !begun() {
        assert_eq!(child.try_wait().unwrap(), None, "it must not end by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert!(matches!(told.iter().last(), Some(Told::Finished { end: End::Cancelled, .. })));
}

#[test]
fn interrupted_while_the_model_is_silent_it_ends_in_good_order() {
    let (work, house) = (workspace(), tempfile::tempdir().unwrap());
    let told = doors(house.path(), |_| Verdict::Allow);
    let silent = Step { fault: Some(Fault::Hang { after_events: 1 }), ..Step::text("never said") };
    let server = Server::start(Script::new([silent])).unwrap();
    let run = run(&server, Wire::Responses, work.path(), Tools::default());
    let child = started(&serde_json::to_string(&run).unwrap(), house.path());
    interrupted(child, &told, || !server.asked().is_empty());
}

#[test]
fn interrupted_while_a_tool_works_it_ends_in_good_order_and_the_tool_with_it() {
    let (work, house) = (workspace(), tempfile::tempdir().unwrap());
    let told = doors(house.path(), |_| Verdict::Allow);
    let command = "(trap '' HUP TERM INT; sleep 1000) & echo $! > pid; mv pid begun; wait";
    let server = Server::start(Script::new([Step::call("shell", json!({"command": command}))])).unwrap();
    let run = run(&server, Wire::Chat, work.path(), Tools::default());
    let child = started(&serde_json::to_string(&run).unwrap(), house.path());
    interrupted(child, &told, || work.path().join("begun").exists());
    let pid = std::fs::read_to_string(work.path().join("begun")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "{pid} lives on");
}
