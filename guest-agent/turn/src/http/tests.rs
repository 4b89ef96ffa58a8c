// SPDX-License-Identifier: Apache-2.0

use std::time::Instant;

use midge_scripted_model::Server;
use midge_scripted_model::script::{Fault, Script, Step};
use serde_json::json;

use super::*;
use crate::talk::Turn;
use crate::wire::{Quirks, Request, body};

const ALL: [Wire; 3] = [Wire::Anthropic, Wire::Responses, Wire::Chat];

fn asked(wire: Wire) -> Value {
    let turns = [Turn::User("hi".into())];
    let request = Request { model: "m", system: "s", tools: &[], may_call: true, turns: &turns, max_output_tokens: 9 };
    body(wire, &request, Quirks::default())
}

fn call(server: &Server, wire: Wire) -> Result<Answer, Failure> {
    Exchange::new(&server.base_url(), wire).call(1, &asked(wire), &mut |_| {})
}

fn fault(fault: Fault) -> Server {
    Server::start(Script::new([Step { fault: Some(fault), ..Step::text("a text of some length to be cut somewhere") }]))
        .unwrap()
}

#[test]
fn answer_comes_in_pieces_of_any_size() {
    for wire in ALL {
        let step = |write_bytes| Step { write_bytes, ..Step::text("héllo wörld, how are you?") };
        let server = Server::start(Script::new([step(0), step(1), step(7)])).unwrap();
        for _ in 0..3 {
            let mut said = String::new();
            let mut piece = |piece| {
                if let Piece::Text(text) = piece {
                    said.push_str(&text)
                }
            };
            let answer = Exchange::new(&server.base_url(), wire).call(1, &asked(wire), &mut piece).unwrap();
            assert_eq!(
                (answer.text().as_str(), said.as_str()),
                ("héllo wörld, how are you?", "héllo wörld, how are you?")
            );
        }
        assert_eq!(server.problems(), Vec::<String>::new());
    }
}

#[test]
fn base_with_and_without_its_version_is_the_same() {
    for base in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
        assert_eq!(Exchange::new(base, Wire::Chat).url, "http://h:1/v1/chat/completions");
    }
    assert_eq!(Exchange::new("http://h/api/v1", Wire::Anthropic).url, "http://h/api/v1/messages");
}

#[test]
fn dead_endpoint_is_unreachable() {
    let base = {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let failure = Exchange::new(&base, Wire::Chat).call(1, &asked(Wire::Chat), &mut |_| {}).unwrap_err();
    assert_eq!(failure.kind, Trouble::Unreachable);
    let failure = Exchange::new("nonsense", Wire::Chat).call(1, &asked(Wire::Chat), &mut |_| {}).unwrap_err();
    assert_eq!(failure.kind, Trouble::Unreachable);
}

#[test]
fn refusal_is_read_with_its_head() {
    let headers = [("retry-after", "3"), ("x-other", "y")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let server = fault(Fault::Status { status: 429, headers: headers.into(), body: None });
    let failure = call(&server, Wire::Anthropic).unwrap_err();
    assert_eq!((failure.kind, failure.retry_after_ms), (Trouble::Status(429), Some(3000)));
    let body = r#"{"error": {"message": "midge: the budget `tokens` of this sandbox is used up: x"}}"#;
    let server = fault(Fault::Status { status: 402, headers: Default::default(), body: Some(body.into()) });
    assert_eq!(call(&server, Wire::Chat).unwrap_err().kind, Trouble::Budget("tokens".into()));
    let headers = [("x-should-retry".to_owned(), "false".to_owned())];
    let server = fault(Fault::Status { status: 500, headers: headers.into(), body: None });
    assert!(call(&server, Wire::Chat).unwrap_err().is_final);
    let redirect = [("location".to_owned(), "http://elsewhere.invalid/".to_owned())];
    let server = fault(Fault::Status { status: 307, headers: redirect.into(), body: None });
    assert_eq!(call(&server, Wire::Chat).unwrap_err().kind, Trouble::Status(307));
}

#[test]
fn cut_and_short_streams_are_no_answers() {
    for wire in ALL {
        assert_eq!(
            call(&fault(Fault::Cut { after_events: 3 }), wire).unwrap_err().kind,
            Trouble::Unreachable,
            "{wire:?}"
        );
        assert_eq!(
            call(&fault(Fault::Short { after_events: 3 }), wire).unwrap_err().kind,
            Trouble::Unreachable,
            "{wire:?}"
        );
    }
}

#[test]
fn what_is_no_answer_is_malformed() {
    for (content_type, text) in [
        ("text/html", "<html>no</html>"),
        ("application/json", "{\"half\": "),
        ("application/json", "[]"),
        ("text/event-stream", "data: {\"half\": \n\n"),
        ("application/octet-stream", "\u{0}\u{1}"),
        ("text/event-stream", "data: nonsense\n\n"),
    ] {
        let body = Fault::Body { content_type: content_type.into(), body: text.into(), times: 1 };
        let failure = call(&fault(body), Wire::Anthropic).unwrap_err();
        assert_eq!(failure.kind, Trouble::Malformed, "{content_type} {text}: {failure:?}");
    }
}

#[test]
fn events_are_known_without_their_type_and_objects_without_a_stream() {
    let events = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}]}\n\n";
    let whole = "{\"choices\":[{\"message\":{\"content\":\"hi\"}}]}";
    for (content_type, text) in
        [("text/plain", events), ("application/json", events), ("application/json", whole), ("text/plain", whole)]
    {
        let server = fault(Fault::Body { content_type: content_type.into(), body: text.into(), times: 1 });
        assert_eq!(call(&server, Wire::Chat).unwrap().text(), "hi", "{content_type} {text}");
    }
}

#[test]
fn too_long_answers_are_left_at_the_limit() {
    let line = format!("data: {{\"choices\":[],\"pad\":\"{}\"}}\n\n", "x".repeat(1 << 20));
    let server = fault(Fault::Body { content_type: "text/event-stream".into(), body: line, times: 100 });
    assert_eq!(call(&server, Wire::Chat).unwrap_err().kind, Trouble::TooLong);
    let server = fault(Fault::Body { content_type: "text/event-stream".into(), body: "x".repeat(1 << 20), times: 100 });
    assert_eq!(call(&server, Wire::Chat).unwrap_err().kind, Trouble::TooLong);
    let server = fault(Fault::Endless { after_events: 3 });
    let step = call(&server, Wire::Anthropic).unwrap_err();
    assert!(matches!(step.kind, Trouble::TooLong | Trouble::Malformed), "{step:?}");
}

#[test]
fn exchange_can_be_stopped_from_outside() {
    let server = fault(Fault::Hang { after_events: 2 });
    let exchange = Exchange::new(&server.base_url(), Wire::Anthropic);
    let stopper = exchange.stopper();
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut piece = |_| {
            // The other side listens for the first only.
            let _ = sender.send(());
        };
        exchange.call(1, &asked(Wire::Anthropic), &mut piece).unwrap_err()
    });
    receiver.recv().unwrap();
    let begun = Instant::now();
    stopper.stop();
    assert_eq!(thread.join().unwrap().kind, Trouble::Unreachable);
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn head_is_what_the_api_wants() {
    let server = Server::start(Script::new([Step::text("x")])).unwrap();
    call(&server, Wire::Anthropic).unwrap();
    let headers = server.asked()[0].headers.clone();
    assert_eq!(headers["anthropic-version"], ANTHROPIC_VERSION);
    assert!(!headers.contains_key("authorization") && !headers.contains_key("x-api-key"));
    assert_eq!(headers["content-type"], json!("application/json").as_str().unwrap());
}
