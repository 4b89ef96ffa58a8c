// SPDX-License-Identifier: Apache-2.0
//! A sandbox's doors and workspace without the sandbox, for the tests of whole runs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use midge_protocol::Door;
use midge_protocol::broker::{Answer, Asked, Left, Noted, Question, Run, Told, Tools, Verdict, Wire};
use midge_scripted_model::Server;

/// What is broken in the workspace.
pub(crate) const BROKEN: &str = "add() { echo $(($1 - $2)); }\n";
/// The test that fails for it.
const TEST: &str = "#!/bin/sh\n. ./add.sh\n[ \"$(add 2 3)\" = 5 ] && echo PASS || { echo FAIL: add 2 3 gave $(add 2 3), want 5; exit 1; }\n";

/// The host's ends of `record` and `ask`; each question is answered by `verdict`.
pub(crate) fn doors(dir: &Path, verdict: impl Fn(&Asked) -> Verdict + Send + 'static) -> Receiver<Told> {
    let (sender, receiver) = channel();
    let record = UnixListener::bind(dir.join(Door::Record.name())).unwrap();
    std::thread::spawn(move || {
        // It says nothing of what is left: the loop counts by itself.
        let (stream, _) = record.accept().unwrap();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            sender.send(serde_json::from_str::<Noted>(&line).unwrap().told).unwrap();
        }
    });
    let ask = UnixListener::bind(dir.join(Door::Ask.name())).unwrap();
    std::thread::spawn(move || {
        for mut stream in ask.incoming().map_while(Result::ok) {
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            let question: Question = serde_json::from_str(&line).unwrap();
            let answer = Answer { id: question.id, verdict: verdict(&question.asked) };
            stream.write_all(format!("{}\n", serde_json::to_string(&answer).unwrap()).as_bytes()).unwrap();
        }
    });
    receiver
}

pub(crate) fn workspace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("add.sh"), BROKEN).unwrap();
    std::fs::write(dir.path().join("test.sh"), TEST).unwrap();
    std::fs::set_permissions(dir.path().join("test.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

pub(crate) fn run(server: &Server, wire: Wire, cwd: &Path, tools: Tools) -> Run {
    Run {
        task: "Make test.sh pass.".into(),
        instructions: String::new(),
        wire,
        model: "scripted".into(),
        base_url: server.base_url(),
        max_output_tokens: 4000,
        context_tokens: 100_000,
        cwd: cwd.to_str().unwrap().into(),
        tools,
        mcp: Vec::new(),
        peers: Vec::new(),
        left: Left { turns: Some(20), ..Left::default() },
    }
}
