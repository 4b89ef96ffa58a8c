// SPDX-License-Identifier: Apache-2.0

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use midge_protocol::Door;
use midge_protocol::broker::{Left, Noted, Tools};
use midge_scripted_model::Server;
use midge_scripted_model::script::{Fault, Part, Script, Step as Say};
use serde_json::json;

use super::*;

/// A sandbox's doors without the sandbox: everything that is told is kept, what is left is answered after each line.
struct House {
    dir: tempfile::TempDir,
    told: Arc<Mutex<Vec<Told>>>,
}

impl House {
    fn new(left: Left, lines_max: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (kept, listener) = (Arc::clone(&told), UnixListener::bind(dir.path().join(Door::Record.name())).unwrap());
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            record(stream, &kept, left, lines_max);
        });
        Self { dir, told }
    }

    fn run(&self, server: &Server, wire: Wire) -> Run {
        Run {
            task: "do it".into(),
            instructions: String::new(),
            wire,
            model: "m".into(),
            base_url: server.base_url(),
            max_output_tokens: 1000,
            context_tokens: 100_000,
            cwd: self.dir.path().to_str().unwrap().into(),
            tools: Tools::default(),
            mcp: Vec::new(),
            peers: Vec::new(),
            left: Left::default(),
        }
    }

    fn drive(&self, run: &Run, stop: &AtomicBool) -> End {
        let setting = Setting { doors: self.dir.path().into(), spool: self.dir.path().join("spool"), seed: 1 };
        drive(run, &setting, stop).unwrap()
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }
}

fn record(stream: UnixStream, kept: &Mutex<Vec<Told>>, left: Left, lines_max: usize) {
    let mut out = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines().take(lines_max) {
        let Ok(line) = line else { break };
        kept.lock().unwrap().push(serde_json::from_str::<Noted>(&line).unwrap().told);
        let reply = format!("{}\n", serde_json::to_string(&left).unwrap());
        if out.write_all(reply.as_bytes()).is_err() {
            break;
        }
    }
}

fn never() -> AtomicBool {
    AtomicBool::new(false)
}

fn finished(told: &[Told]) -> (End, String) {
    match told.last() {
        Some(Told::Finished { end, text }) => (end.clone(), text.clone()),
        other => panic!("the last line is {other:?}"),
    }
}

#[test]
fn unknown_tool_and_bad_arguments_are_told_to_the_model_in_each_format() {
    for wire in [Wire::Anthropic, Wire::Responses, Wire::Chat] {
        let raw = Part::RawCall { name: "shell".into(), arguments: "{\"command\": ".into() };
        let script = Script::new([
            Say::parts([
                Part::Thinking("hm, hm".into()),
                Part::Text("I try.".into()),
                Part::call("nonsense", json!({"a": 1})),
                raw,
            ]),
            Say::text("Done: {{result:0}}").expecting("no JSON"),
        ]);
        let server = Server::start(script).unwrap();
        let house = House::new(Left::default(), usize::MAX);
        let end = house.drive(&house.run(&server, wire), &never());
        assert_eq!((end, server.problems(), server.steps_left()), (End::Done, Vec::new(), 0), "{wire:?}");
        let told = house.told();
        let (end, text) = finished(&told);
        assert!(end == End::Done && text.contains("nonsense"), "{text}");
        assert!(
            told.contains(&Told::Thought { text: "hm, hm".into() })
                && told.contains(&Told::Said { text: "I try.".into() })
        );
        let results = told.iter().filter(|told| matches!(told, Told::ToolResult { is_error: true, .. })).count();
        let calls = told.iter().filter(|told| matches!(told, Told::ToolCall { .. })).count();
        assert_eq!((calls, results), (2, 2), "{told:?}");
    }
}

#[test]
fn bad_days_of_a_model_are_survived_within_one_run() {
    let script = Script::new([
        Say::status(529),
        Say { fault: Some(Fault::Cut { after_events: 4 }), ..Say::text("half an answer") },
        Say::fault(Fault::Body { content_type: "text/html".into(), body: "<html>".into(), times: 1 }),
        Say { write_bytes: 1, ..Say::text("whole") },
    ]);
    let server = Server::start(script).unwrap();
    let house = House::new(Left::default(), usize::MAX);
    assert_eq!(house.drive(&house.run(&server, Wire::Anthropic), &never()), End::Done);
    let told = house.told();
    assert_eq!(told.iter().filter(|told| matches!(told, Told::Retry { .. })).count(), 3, "{told:?}");
    assert_eq!(finished(&told), (End::Done, "whole".into()));
}

#[test]
fn stop_ends_a_run_that_waits_for_its_model() {
    let server = Server::start(Script::new([Say {
        fault: Some(Fault::Hang { after_events: 3 }),
        ..Say::text("long, long text")
    }]))
    .unwrap();
    let house = House::new(Left::default(), usize::MAX);
    let run = house.run(&server, Wire::Chat);
    let stop = Arc::new(never());
    let flag = Arc::clone(&stop);
    let asked = std::thread::spawn(move || {
        while server.asked().is_empty() {
            std::thread::sleep(TICK);
        }
        flag.store(true, Ordering::SeqCst);
        server
    });
    assert_eq!(house.drive(&run, &stop), End::Cancelled);
    assert_eq!(finished(&house.told()).0, End::Cancelled);
    drop(asked.join().unwrap());
}

#[test]
fn budget_of_the_host_ends_the_run() {
    let script = Script {
        repeat_last: true,
        ..Script::new([Say::parts([Part::Text("again".into()), Part::call("nonsense", json!({}))])])
    };
    let server = Server::start(script).unwrap();
    let house = House::new(Left { turns: Some(0), ..Left::default() }, usize::MAX);
    let end = house.drive(&house.run(&server, Wire::Anthropic), &never());
    assert_eq!(end, End::Budget("turns".into()));
}

#[test]
fn record_that_closes_ends_the_run() {
    let script = Script {
        repeat_last: true,
        ..Script::new([Say::parts([Part::Text("again".into()), Part::call("nonsense", json!({}))])])
    };
    let server = Server::start(script).unwrap();
    let house = House::new(Left::default(), 2);
    assert_eq!(house.drive(&house.run(&server, Wire::Anthropic), &never()), End::Failed);
    assert_eq!(house.told().len(), 2);
}

#[test]
fn without_a_record_nothing_begins() {
    let server = Server::start(Script::new([Say::text("x")])).unwrap();
    let house = House::new(Left::default(), 1);
    let setting = Setting { doors: "/nowhere".into(), spool: "/nowhere".into(), seed: 1 };
    let error = drive(&house.run(&server, Wire::Chat), &setting, &never()).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
    assert!(server.asked().is_empty());
}

/// The host's end of the door `peer`: takes one message.
fn mailbox(dir: &Path) -> JoinHandle<String> {
    let listener = UnixListener::bind(dir.join(Door::Peer.name())).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next().unwrap().unwrap();
        stream.write_all(b"{\"event\":\"opened\"}\n").unwrap();
        let sent = lines.next().unwrap().unwrap();
        stream.write_all(b"{\"event\":\"sent\",\"id\":1}\n").unwrap();
        sent
    })
}

#[test]
fn messages_to_peers_are_calls_like_others_where_the_host_says_that_there_are_some() {
    let call = Say::call("peer", json!({"action": "send", "to": "b", "text": "done?"}));
    for (peers, results) in [(vec!["b".to_owned()], "[sent to b]"), (Vec::new(), "there is no tool")] {
        let is_offered = !peers.is_empty();
        let server = Server::start(Script::new([call.clone(), Say::text("Done.").expecting(results)])).unwrap();
        let house = House::new(Left::default(), usize::MAX);
        let host = is_offered.then(|| mailbox(house.dir.path()));
        let run = Run { peers, ..house.run(&server, Wire::Anthropic) };
        assert_eq!((house.drive(&run, &never()), server.problems()), (End::Done, Vec::new()));
        if let Some(host) = host {
            assert_eq!(host.join().unwrap(), r#"{"id":1,"to":"b","text":"done?"}"#);
        }
        let asked = &server.asked()[0].body;
        assert_eq!(asked["system"].to_string().contains("by the tool `peer`"), is_offered);
        assert_eq!(asked["tools"].as_array().unwrap().iter().any(|tool| tool["name"] == "peer"), is_offered);
        let told = house.told();
        assert!(told.iter().any(|told| matches!(told, Told::ToolCall { name, .. } if name == "peer")), "{told:?}");
        let result = |told: &Told| matches!(told, Told::ToolResult { output, .. } if output.contains(results));
        assert!(told.iter().any(result), "{told:?}");
    }
}

#[test]
fn conversation_that_outgrows_its_window_is_summarised_and_goes_on() {
    for wire in [Wire::Anthropic, Wire::Responses, Wire::Chat] {
        let round = |input| Say { usage: Some((input, 10)), ..Say::call("nonsense", json!({"n": input})) };
        let script = Script::new([
            round(100),
            round(200),
            round(300),
            round(95_000),
            Say::text("Summary: three rounds.").expecting("Do not call tools"),
            Say::text("Done.").expecting("Summary: three rounds."),
        ]);
        let server = Server::start(script).unwrap();
        let house = House::new(Left::default(), usize::MAX);
        assert_eq!(house.drive(&house.run(&server, wire), &never()), End::Done, "{:?}", server.problems());
        assert_eq!(server.problems(), Vec::<String>::new());
        assert!(house.told().iter().any(|told| matches!(told, Told::Compacted { .. })));
    }
}
