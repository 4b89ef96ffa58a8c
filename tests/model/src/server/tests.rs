// SPDX-License-Identifier: Apache-2.0

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;

use super::*;
use crate::script::Part;

/// The status, head and whole rest of an answer; an unframed client, so that the framing is seen.
fn post(server: &Server, path: &str, headers: &str, body: &Value) -> (u16, String, String) {
    let mut stream = TcpStream::connect(server.address.unwrap()).unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut rest = Vec::new();
    // A cut answer may end with a reset.
    let _ = reader.read_to_end(&mut rest);
    let rest = String::from_utf8_lossy(&rest).into_owned();
    let (head, body) = rest.split_once("\r\n\r\n").unwrap();
    (first.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
}

fn ask(server: &Server, wire: Wire, is_stream: bool) -> (u16, String) {
    let body = match wire {
        Wire::Responses => json!({"model": "m", "input": "hi", "stream": is_stream}),
        _ => {
            json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": is_stream})
        }
    };
    let (status, _, body) = post(server, wire.path(), "anthropic-version: 2023-06-01\r\n", &body);
    (status, body)
}

#[test]
fn step_is_said_in_each_format_streamed_and_whole() {
    for wire in Wire::ALL {
        let step =
            Step::parts([Part::Text("héllo, world of models".into()), Part::call("shell", json!({"command": "ls"}))]);
        let server = Server::start(Script::new([step.clone(), Step { write_bytes: 3, ..step }])).unwrap();
        let (status, whole) = ask(&server, wire, false);
        assert_eq!(status, 200);
        let whole: Value = serde_json::from_str(&whole).unwrap();
        assert!(whole.to_string().contains("héllo, world of models"), "{whole}");
        let (status, streamed) = ask(&server, wire, true);
        assert_eq!(status, 200);
        assert!(streamed.contains("data: {") && streamed.ends_with("0\r\n\r\n"), "{streamed}");
        assert_eq!(server.problems(), Vec::<String>::new());
        assert_eq!((server.asked().len(), server.steps_left()), (2, 0));
        assert_eq!(ask(&server, wire, true).0, 400);
        assert_eq!(server.problems(), ["the script is over"]);
    }
}

#[test]
fn faults_are_done_as_they_are_written() {
    let step = |fault| Step { fault: Some(fault), ..Step::text("a rather long text to be cut") };
    let headers = BTreeMap::from([("retry-after".to_owned(), "2".to_owned())]);
    let script = Script::new([
        Step::fault(Fault::Status { status: 529, headers, body: None }),
        step(Fault::Cut { after_events: 2 }),
        step(Fault::Short { after_events: 2 }),
        step(Fault::ErrorEvent { after_events: 1, kind: "overloaded_error".into(), message: "busy".into() }),
        step(Fault::Body { content_type: "text/html".into(), body: "<html>".into(), times: 2 }),
    ]);
    let server = Server::start(script).unwrap();
    let body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": true});
    let (status, head, _) = post(&server, Wire::Anthropic.path(), "anthropic-version: 1\r\n", &body);
    assert!(status == 529 && head.contains("retry-after: 2"), "{head}");
    let cut = ask(&server, Wire::Anthropic, true).1;
    assert!(cut.matches("event: ").count() == 2 && !cut.ends_with("0\r\n\r\n"), "{cut}");
    let short = ask(&server, Wire::Anthropic, true).1;
    assert!(short.matches("event: ").count() == 2 && short.ends_with("0\r\n\r\n"), "{short}");
    assert!(ask(&server, Wire::Anthropic, true).1.contains("overloaded_error"));
    assert_eq!(ask(&server, Wire::Anthropic, true).1.matches("<html>").count(), 2);
}

#[test]
fn what_is_wrong_with_a_request_is_told_and_remembered() {
    let script = Script { key: Some("sesame".into()), ..Script::new([Step::text("x").expecting("open")]) };
    let server = Server::start(script).unwrap();
    let body = |text: &str| json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    let path = Wire::Chat.path();
    assert_eq!(post(&server, path, "", &body("open")).0, 401);
    let key = "authorization: Bearer sesame\r\n";
    assert_eq!(post(&server, "/v2/nothing", key, &body("open")).0, 404);
    assert_eq!(post(&server, path, key, &json!({"model": "m"})).0, 400);
    assert_eq!(post(&server, path, key, &body("closed")).0, 400);
    assert_eq!(post(&server, path, key, &body("open")).0, 200);
    assert_eq!(server.problems().len(), 4);
}

#[test]
fn listener_of_others_and_a_lone_stream_are_served() {
    let server = Server::idle(Script { repeat_last: true, ..Script::new([Step::text("hi")]) });
    let (ours, theirs) = UnixStream::pair().unwrap();
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (&ours).write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    server.serve(theirs).unwrap();
    let mut text = String::new();
    (&ours).read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("\"hi\""), "{text}");
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    server.take(listener).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\n\r\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    text.clear();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("scripted"), "{text}");
}

#[test]
fn garbage_on_a_connection_ends_that_connection_only() {
    let server = Server::start(Script::new([Step::text("hi")])).unwrap();
    let mut stream = TcpStream::connect(server.address.unwrap()).unwrap();
    stream.write_all(b"\x00\xff\x00 what?\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert_eq!(ask(&server, Wire::Chat, false).0, 200);
}
