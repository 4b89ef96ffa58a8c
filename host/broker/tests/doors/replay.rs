// SPDX-License-Identifier: Apache-2.0
//! A recorded run in a model's place, through the door as the guest sees it: first against a server, then from its transcript.

use std::sync::{Arc, Mutex};

use midge_broker::Playback;
use midge_protocol::Door;
use midge_protocol::broker::Left;
use midge_record::{Difference, Replay};
use serde_json::{Value, json};

use crate::kit::{Setting, Site, World};

fn policy(more: &str) -> String {
    format!(
        "[model]\nprovider = \"anthropic\"\nmodels = [\"claude-*\"]\nkey = {{ env = \"MIDGE_TEST_NO_SUCH_VARIABLE\" }}\n{more}\n"
    )
}

fn request(result: Option<&str>) -> String {
    let blocks = match result {
        Some(text) => json!([{"type": "tool_result", "tool_use_id": "t1", "content": text}]),
        None => json!("hi"),
    };
    json!({"model": "claude-x", "messages": [{"role": "user", "content": blocks}]}).to_string()
}

async fn call(world: &World, path: &str, body: &str) -> String {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    world.say(Door::Model, head + body).await
}

#[tokio::test]
async fn recorded_answers_are_given_without_a_key_and_differences_are_told() {
    let answer =
        |content: Value| json!({"content": content, "usage": {"input_tokens": 7, "output_tokens": 3}}).to_string();
    let first = answer(json!([{"type": "tool_use", "id": "t1"}]));
    let last = answer(json!([{"type": "text", "text": "done"}]));
    let site = {
        let (first, last) = (first.clone(), last.clone());
        Site::new(None, move |request| {
            let body = if request.contains("tool_result") { &last } else { &first };
            let length = body.len();
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        })
        .await
    };
    let text = policy("").replace(
        "key = { env = \"MIDGE_TEST_NO_SUCH_VARIABLE\" }",
        &format!("endpoint = \"http://127.0.0.1:{}\"", site.port),
    );
    let recorded = World::new(&text);
    assert!(call(&recorded, "/v1/messages", &request(None)).await.ends_with(&first));
    recorded.entries("model_answer", 1).await;
    assert!(call(&recorded, "/v1/messages", &request(Some("as recorded"))).await.ends_with(&last));
    recorded.entries("model_answer", 2).await;
    drop(site);

    let told = Arc::new(Mutex::new(Vec::new()));
    let replay = Replay::read(&recorded.memory.bytes()[..]).unwrap();
    let differs = {
        let told = Arc::clone(&told);
        move |difference| told.lock().unwrap().push(difference)
    };
    let budget = Left { turns: Some(2), ..Left::default() };
    let text = policy("");
    let world = Setting { replay: Some(Playback::new(replay, differs)), budget, ..Setting::new(&text) }.world();
    assert!(call(&world, "/v1/messages", &request(None)).await.ends_with(&first));
    world.entries("model_answer", 1).await;
    let other = call(&world, "/v1/responses", &request(None).replace("messages", "input")).await;
    assert!(other.starts_with("HTTP/1.1 410") && other.contains("x-should-retry: false"), "{other}");
    assert!(call(&world, "/v1/messages", &request(Some("otherwise"))).await.ends_with(&last));
    let differences = told.lock().unwrap().clone();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(differences, [Difference { id: "t1".into(), recorded: text("as recorded"), now: text("otherwise") }]);
    // Charged as the recording says, by the new run's own budgets.
    world.entries("model_answer", 2).await;
    assert_eq!((world.ledger.spent().tokens, world.ledger.spent().turns), (Some(20), Some(2)));
    assert!(call(&world, "/v1/messages", &request(None)).await.starts_with("HTTP/1.1 402"));
}
