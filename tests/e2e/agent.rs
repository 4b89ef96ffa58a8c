// SPDX-License-Identifier: Apache-2.0
//! The doors of a guest, and the agent's work through them.

use std::path::Path;
use std::time::Duration;

use midge::exec::Exec;
use midge::monitor::Stream;
use midge::sandbox::{Doors, Sandbox};
use midge_protocol::Door;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::context::Context;
use crate::forks::{small, text_of};
use crate::library::inside;

crate::tests!("agent":
    Guest doors_lead_to_the_host_of_each_copy,
    Guest agent_mends_a_project_by_a_recorded_run,
    Guest agent_asks_a_model_and_holds_no_key,
    Binary agent_without_a_model_says_what_to_do,
);

fn doors_lead_to_the_host_of_each_copy(context: &Context) {
    inside(context, "doors");
}

/// A copy of the project that agents are shown on, and its recorded run.
fn project() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/median");
    let copied = std::process::Command::new("cp").args(["-r", "--"]).arg(&example).arg(dir.path().join("p")).status();
    assert!(copied.expect("copies").success());
    (dir, example.join("run.jsonl").display().to_string())
}

const LIMIT: Duration = Duration::from_secs(300);

fn agent_mends_a_project_by_a_recorded_run(context: &Context) {
    let (dir, recording) = project();
    let workspace = format!("{}:apply", dir.path().join("p").display());
    let run = ["agent", "--workspace", &workspace, "--replay", &recording];
    let agent = context.midge(run).env("MIDGE_STATE", dir.path()).limit(LIMIT).run().code(0);
    let _ = agent.says(&["every tool answered as it was recorded", "> edit median/__init__.py", "done; 5 turns"]);
    let mended = std::fs::read_to_string(dir.path().join("p/median/__init__.py")).expect("is there");
    assert!(mended.contains("ordered[middle - 1] + ordered[middle]"), "{mended}");
    context.assert_nothing_left();
}

/// A server of tools: says twice a number.
const TOOLS: &str = r#"calc=exec python3 -uc '
import json, sys
for line in sys.stdin:
    said = json.loads(line)
    params = said.get("params", {})
    answers = {
        "initialize": lambda: {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "calc", "version": "1"}},
        "tools/list": lambda: {"tools": [{"name": "double", "description": "twice n", "inputSchema": {"type": "object"}}]},
        "tools/call": lambda: {"content": [{"type": "text", "text": str(2 * params["arguments"]["n"])}]},
    }
    if "id" in said:
        print(json.dumps({"jsonrpc": "2.0", "id": said["id"], "result": answers[said["method"]]()}))
'"#;

/// A model says what a script says; what it hears is on its side of the wall, and the key is not on the other.
fn agent_asks_a_model_and_holds_no_key(context: &Context) {
    const KEY: &str = "sk-e2e-a0b1c2d3e4f5a6b7";
    let script = r#"{"key": "sk-e2e-a0b1c2d3e4f5a6b7", "steps": [
        {"parts": [{"call": {"name": "shell", "input": {"command": "env | grep -c sk-e2e; echo $ANTHROPIC_API_KEY"}}}]},
        {"parts": [{"call": {"name": "shell", "input": {"command":
            "curl -sS -m 20 https://example.org 2>&1 | tail -1; python3 -c 'import os; print(os.getuid())'"}}}]},
        {"parts": [{"call": {"name": "mcp__calc__double", "input": {"n": 21}}}]},
        {"expect": ["42"], "parts": [{"text": "Looked around."}]}]}"#;
    let script = midge_scripted_model::script::Script::parse(script).expect("a script");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = midge_scripted_model::Server::listen(listener, script).expect("serves");
    let dir = tempfile::tempdir().expect("a directory");
    let url = server.base_url();
    let run = ["agent", "--task", "look around", "--provider", "anthropic", "--base-url", &url, "--model", "m"];
    let run = run.iter().chain(&["--mcp", TOOLS]);
    let agent =
        context.midge(run).env("MIDGE_STATE", dir.path()).env("ANTHROPIC_API_KEY", KEY).limit(LIMIT).run().code(0);
    let agent = agent.says(&["the-host-has-the-key", "network: denied", "done; 4 turns, 3 tool calls"]);
    assert_eq!(agent.text(), "Looked around.\n");
    let asked = server.asked();
    assert!(asked.len() == 4 && asked.iter().all(|request| request.problem.is_none()), "{asked:?}");
    let runs = std::fs::read_dir(dir.path().join("runs")).expect("a transcript");
    for run in runs {
        let path = run.expect("a transcript").path();
        assert!(!std::fs::read_to_string(&path).expect("text").contains(KEY), "the key is masked");
        context.midge(["log", "verify", &path.display().to_string()]).run().code(0);
    }
    context.assert_nothing_left();
}

fn agent_without_a_model_says_what_to_do(context: &Context) {
    let call = context.midge(["agent", "--task", "x"]).env("ANTHROPIC_API_KEY", "").env("OPENAI_API_KEY", "");
    call.run().code(125).says(&["--replay", "ANTHROPIC_API_KEY", "--provider compatible"]);
}

/// Asks at a socket and at a port, as any user; what comes back, or how it ended.
const ASK: &str = r#"exec python3 -c '
import socket
def ask(family, place, size):
    with socket.socket(family) as s:
        try:
            s.settimeout(60)
            s.connect(place)
            s.sendall(b"x" * size)
            s.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := s.recv(65536):
                answer += piece
            return answer.decode() or "nobody"
        except ConnectionError:
            return "nobody"
print(ask(socket.AF_UNIX, "/run/midge/ask", 3), ask(socket.AF_INET, ("127.0.0.1", 7101), 3_000_000))
'"#;

/// Says who it is, which door it was, and how many bytes came in, to everybody.
async fn answer(mut doors: Doors, who: String) {
    while let Some((door, arrived)) = doors.next().await {
        let (who, mut stream) = (who.clone(), Stream::from(arrived));
        tokio::spawn(async move {
            let mut question = Vec::new();
            stream.reader.read_to_end(&mut question).await.expect("is asked");
            let text = format!("{who}/{}/{}", door.name(), question.len());
            stream.writer.write_all(text.as_bytes()).await.expect("hears");
            stream.writer.shutdown().await.expect("hears");
        });
    }
}

async fn asked(sandbox: &Sandbox) -> String {
    let running = sandbox.exec(Exec::new(["sh", "-c", ASK])).await.expect("starts");
    let output = running.output().await.expect("ends");
    assert!(output.status.is_success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

pub(crate) async fn doors() {
    let sandbox = small().forkable().start().await.expect("starts");
    assert_eq!(text_of(&sandbox, "ls /run/midge 2>&1 | wc -l").await, "1\n", "no door is open that nobody asked for");
    let both = [Door::Ask, Door::Model];
    let first = tokio::spawn(answer(sandbox.open_doors(&both).await.expect("opens"), "first".to_owned()));
    assert_eq!(asked(&sandbox).await, "first/ask/3 first/model/3000000\n");
    let copy = sandbox.fork(1).await.expect("forks").sandboxes.pop().expect("one");
    assert_eq!(asked(&copy).await, "nobody nobody\n", "a copy has nobody behind its doors");
    let second = tokio::spawn(answer(copy.open_doors(&both).await.expect("opens"), "second".to_owned()));
    let (one, two) = tokio::join!(asked(&sandbox), asked(&copy));
    assert_eq!(
        (one.as_str(), two.as_str()),
        ("first/ask/3 first/model/3000000\n", "second/ask/3 second/model/3000000\n")
    );
    if sandbox.place_name() == "native" {
        first.abort();
        assert!(first.await.is_err_and(|end| end.is_cancelled()));
        assert_eq!(asked(&sandbox).await, "nobody nobody\n", "closed doors");
        let again = sandbox.open_doors(&both).await.expect("opens again");
        let third = tokio::spawn(answer(again, "third".to_owned()));
        assert_eq!(asked(&sandbox).await, "third/ask/3 third/model/3000000\n");
        third.abort();
    }
    second.abort();
    copy.kill().await;
    sandbox.kill().await;
}
