// SPDX-License-Identifier: Apache-2.0
//! Calls of a model: what passes untouched, what is held back, what is charged, and providers that misbehave.

use std::sync::{Arc, Mutex};

use midge_protocol::Door;
use midge_protocol::broker::Left;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::kit::{Ca, PATIENCE, SECRET, Setting, Site, World, all, answer, head, ok, read_request};

fn policy(port: u16, more: &str) -> String {
    format!(
        "[model]\nprovider = \"anthropic\"\nendpoint = \"http://127.0.0.1:{port}\"\nmodels = [\"claude-*\"]\n\
         key = {{ command = [\"echo\", \"{SECRET}\"] }}\n{more}\n"
    )
}

fn call(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:7101\r\nContent-Type: application/json\r\nAuthorization: Bearer guest\r\n\
         x-api-key: guest\r\nAccept-Encoding: gzip\r\nanthropic-version: 2023-06-01\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

const BODY: &str = r#"{"model":"claude-x","max_tokens":100,"messages":[{"role":"user","content":"hi"}]}"#;

/// An answer in one piece that counts `input` and `output` tokens.
fn counted(input: u64, output: u64) -> String {
    let body = json!({"content": [{"type": "tool_use"}], "usage": {"input_tokens": input, "output_tokens": output}})
        .to_string();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn stream_of(events: &[Value]) -> Vec<u8> {
    events
        .iter()
        .flat_map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap()).into_bytes())
        .collect()
}

#[tokio::test]
async fn keys_are_changed_and_the_rest_of_a_request_passes() {
    let site = Site::new(None, |_| counted(1, 2)).await;
    let world = World::new(&policy(site.port, ""));
    let said = world.say(Door::Model, call("/v1/messages?beta=true", BODY)).await;
    assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
    let seen = site.seen().remove(0);
    assert!(seen.starts_with("POST /v1/messages?beta=true HTTP/1.1\r\n") && seen.ends_with(BODY), "{seen}");
    assert!(seen.contains(&format!("x-api-key: {SECRET}\r\n")), "{seen}");
    assert!(seen.contains("anthropic-version: 2023-06-01") && seen.contains("accept-encoding: identity"), "{seen}");
    assert!(!seen.contains("guest") && !seen.contains("gzip"), "{seen}");
}

#[tokio::test]
async fn a_stream_passes_byte_for_byte_and_piece_by_piece() {
    let events = stream_of(&[
        json!({"type": "message_start", "message": {"usage": {"input_tokens": 11, "cache_read_input_tokens": 5, "output_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"text": "ünïcode \u{1f980}"}}),
        json!({"type": "message_delta", "usage": {"output_tokens": 70}}),
    ]);
    let (sent, gate) = (Arc::new(events), Arc::new(tokio::sync::Notify::new()));
    let site = {
        let (sent, gate) = (Arc::clone(&sent), Arc::clone(&gate));
        Site::with(None, move |mut stream, _| {
            let (sent, gate) = (Arc::clone(&sent), Arc::clone(&gate));
            async move {
                read_request(&mut stream).await?;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await?;
                for (number, part) in sent.chunks(13).enumerate() {
                    stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
                    stream.write_all(part).await?;
                    stream.write_all(b"\r\n").await?;
                    stream.flush().await?;
                    if number == 0 {
                        // The rest is said when the guest has the first piece.
                        gate.notified().await;
                    }
                }
                stream.write_all(b"0\r\n\r\n").await
            }
        })
        .await
    };
    let world = World::new(&policy(site.port, ""));
    let mut stream = world.open(Door::Model);
    stream.write_all(call("/v1/messages", BODY).as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.contains("text/event-stream"));
    let mut got = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("not held back").unwrap());
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        let mut part = vec![0; size + 2];
        stream.read_exact(&mut part).await.unwrap();
        if size == 0 {
            break;
        }
        got.extend_from_slice(&part[..size]);
        gate.notify_one();
    }
    assert_eq!(Sha256::digest(&got), Sha256::digest(&*sent));
    let answer = &world.entries("model_answer", 1).await[0];
    assert_eq!(answer["usage"]["input_tokens"], 11);
    assert_eq!(answer["usage"]["cache_read_tokens"], 5);
    assert_eq!(answer["usage"]["output_tokens"], 70);
    assert_eq!(answer["usage"]["tool_calls"], 1);
    assert_eq!(answer["body"]["text"].as_str().unwrap().as_bytes(), &got[..]);
    assert_eq!(world.ledger.spent().tokens, Some(86));
    assert_eq!((world.ledger.spent().turns, world.ledger.spent().tool_calls), (Some(1), Some(1)));
}

#[tokio::test]
async fn models_that_are_not_allowed_and_paths_that_are_not_known_are_refused_in_the_providers_format() {
    let site = Site::new(None, |_| counted(1, 1)).await;
    let world = World::new(&policy(site.port, ""));
    let said = world.say(Door::Model, call("/v1/messages", &BODY.replace("claude-x", "gpt-x"))).await;
    assert!(
        said.starts_with("HTTP/1.1 403") && said.contains("\"type\":\"error\"") && said.contains("claude-*"),
        "{said}"
    );
    assert!(said.contains("x-should-retry: false"));
    let said = world.say(Door::Model, call("/v1/chat/completions", &BODY.replace("claude-x", "gpt-x"))).await;
    assert!(said.starts_with("HTTP/1.1 403") && said.contains("\"param\":null"), "{said}");
    for path in ["/v1/messages/batches", "/v1/files", "/v1/messages/../files", "/", "/v1/embeddings"] {
        let said = world.say(Door::Model, call(path, BODY)).await;
        assert!(said.starts_with("HTTP/1.1 404") && said.contains("not_found_error"), "{path}: {said}");
    }
    assert!(site.seen().is_empty());
    assert_eq!(world.entries("model_refused", 7).await.len(), 7);
}

#[tokio::test]
async fn what_clients_ask_in_passing_is_answered_and_not_charged() {
    let site = Site::new(None, |_| ok("{\"data\":[]}")).await;
    let world = World::new(&policy(site.port, ""));
    let said = world.say(Door::Model, "HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let said = world.say(Door::Model, "GET /v1/models?limit=2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(said.ends_with("{\"data\":[]}"), "{said}");
    let said = world.say(Door::Model, call("/v1/messages/count_tokens?beta=true", BODY)).await;
    assert!(said.ends_with("{\"data\":[]}"), "{said}");
    assert_eq!(site.seen().len(), 2);
    assert_eq!(world.ledger.spent().turns, Some(0));
}

#[tokio::test]
async fn a_budget_that_is_used_up_refuses_the_next_call_with_what_clients_do_not_try_again() {
    let site = Site::new(None, |_| counted(60, 50)).await;
    let text = policy(site.port, "");
    let budget = Left { tokens: Some(100), ..Left::default() };
    let world = Setting { budget, ..Setting::new(&text) }.world();
    let said = world.say(Door::Model, call("/v1/messages", BODY)).await;
    assert!(said.starts_with("HTTP/1.1 200"), "the answer that goes beyond is given whole: {said}");
    world.entries("model_answer", 1).await;
    let said = world.say(Door::Model, call("/v1/messages", BODY)).await;
    assert!(said.starts_with("HTTP/1.1 402") && said.contains("billing_error") && said.contains("tokens"), "{said}");
    let said = world.say(Door::Model, call("/v1/responses", BODY)).await;
    assert!(said.starts_with("HTTP/1.1 402") && said.contains("insufficient_quota"), "{said}");
    assert_eq!(site.seen().len(), 1);
    assert_eq!(world.entries("exhausted", 1).await.len(), 1);
}

#[tokio::test]
async fn money_is_charged_by_the_models_price_and_needs_one() {
    let site = Site::new(None, |_| counted(1_000_000, 100_000)).await;
    let text = policy(site.port, "prices = { \"claude-*\" = { input = \"3\", output = \"15\" } }");
    let budget = Left { money_micros: Some(5_000_000), ..Left::default() };
    let world = Setting { budget, ..Setting::new(&text) }.world();
    world.say(Door::Model, call("/v1/messages", BODY)).await;
    let answer = &world.entries("model_answer", 1).await[0];
    assert_eq!(answer["money_micros"], 3_000_000 + 1_500_000);
    assert_eq!(world.ledger.left().money_micros, Some(500_000));
    let text = policy(site.port, "");
    let world = Setting { budget, ..Setting::new(&text) }.world();
    let said = world.say(Door::Model, call("/v1/messages", BODY)).await;
    assert!(said.starts_with("HTTP/1.1 403") && said.contains("price"), "{said}");
}

#[tokio::test]
async fn errors_of_the_provider_pass_and_cost_nothing() {
    let site = Site::new(None, |_| {
        "HTTP/1.1 529 Overloaded\r\nContent-Type: application/json\r\nretry-after: 3\r\nContent-Length: 2\r\n\r\n{}"
            .into()
    })
    .await;
    let world = World::new(&policy(site.port, ""));
    let said = world.say(Door::Model, call("/v1/messages", BODY)).await;
    assert!(said.starts_with("HTTP/1.1 529") && said.contains("retry-after: 3"), "{said}");
    let answer = &world.entries("model_answer", 1).await[0];
    assert_eq!((&answer["status"], &answer["headers"]["retry-after"]), (&529.into(), &"3".into()));
    assert_eq!(world.ledger.spent().turns, Some(0));
}

#[tokio::test]
async fn a_provider_that_is_not_there_or_breaks_off_is_told() {
    let world = World::new(&policy(9, ""));
    let said = world.say(Door::Model, call("/v1/messages", BODY)).await;
    assert!(said.starts_with("HTTP/1.1 502") && said.contains("api_error"), "{said}");
    let site = Site::with(None, |mut stream, _| async move {
        read_request(&mut stream).await?;
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 999\r\n\r\ndata: {\n\nhalf",
            )
            .await?;
        stream.shutdown().await
    })
    .await;
    let world = World::new(&policy(site.port, ""));
    let said = world.say(Door::Model, call("/v1/messages", BODY)).await;
    assert!(said.ends_with("half"), "{said}");
    let answer = &world.entries("model_answer", 1).await[0];
    assert!(answer["broken"].as_str().unwrap().contains("broke off"), "{answer}");
    assert_eq!(answer["usage"]["estimated"], true);
    assert!(world.ledger.spent().tokens.unwrap() > 0);
}

#[tokio::test]
async fn a_guest_that_goes_away_ends_the_providers_work_and_pays_for_it() {
    let ended = Arc::new(Mutex::new(false));
    let site = {
        let ended = Arc::clone(&ended);
        Site::with(None, move |mut stream, _| {
            let ended = Arc::clone(&ended);
            async move {
                read_request(&mut stream).await?;
                let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head).await?;
                let event = stream_of(&[
                    json!({"type": "message_start", "message": {"usage": {"input_tokens": 40, "output_tokens": 2}}}),
                ]);
                stream
                    .write_all(format!("{:x}\r\n{}\r\n", event.len(), String::from_utf8(event).unwrap()).as_bytes())
                    .await?;
                // Without end, until the broker hangs up.
                while stream.write_all(b"4\r\n: x\n\r\n").await.is_ok() {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                *ended.lock().unwrap() = true;
                Ok(())
            }
        })
        .await
    };
    let world = World::new(&policy(site.port, ""));
    let mut stream = world.open(Door::Model);
    stream.write_all(call("/v1/messages", BODY).as_bytes()).await.unwrap();
    head(&mut stream).await;
    drop(stream);
    let answer = &world.entries("model_answer", 1).await[0];
    assert_eq!((&answer["broken"], &answer["usage"]["input_tokens"]), (&"the guest hung up".into(), &40.into()));
    assert!(world.ledger.spent().tokens.unwrap() >= 42);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !*ended.lock().unwrap() {
        assert!(tokio::time::Instant::now() < deadline, "the provider goes on");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_guest_that_goes_away_before_the_answer_is_charged_what_it_asked() {
    let site = Site::with(None, |mut stream, _| async move {
        read_request(&mut stream).await?;
        stream.read_u8().await.map(drop)
    })
    .await;
    let world = World::new(&policy(site.port, ""));
    let mut stream = world.open(Door::Model);
    stream.write_all(call("/v1/messages", BODY).as_bytes()).await.unwrap();
    world.entries("model_request", 1).await;
    drop(stream);
    let answer = &world.entries("model_answer", 1).await[0];
    assert_eq!((&answer["status"], &answer["usage"]["estimated"]), (&499.into(), &true.into()));
    assert!(world.ledger.spent().tokens.unwrap() >= BODY.len() as u64 / 4);
}

#[tokio::test]
async fn hundred_megabytes_pass_and_the_transcript_keeps_a_part() {
    const PIECES: usize = 100;
    let site = Site::with(None, |mut stream, _| async move {
        read_request(&mut stream).await?;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n", PIECES << 20);
        stream.write_all(head.as_bytes()).await?;
        let piece = vec![0xff; 1 << 20];
        for _ in 0..PIECES {
            stream.write_all(&piece).await?;
        }
        Ok(())
    })
    .await;
    let world = World::new(&policy(site.port, ""));
    let mut stream = world.open(Door::Model);
    stream.write_all(call("/v1/messages", BODY).as_bytes()).await.unwrap();
    head(&mut stream).await;
    let mut left = PIECES << 20;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let length = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(length > 0 && buffer[..length].iter().all(|byte| *byte == 0xff));
        left -= length;
    }
    let answer = &world.entries("model_answer", 1).await[0];
    assert!(answer["body"]["cut_bytes"].as_u64().unwrap() >= (PIECES as u64 - 33) << 20);
    assert_eq!(answer["usage"]["estimated"], true);
}

#[tokio::test]
async fn bad_requests_are_refused_and_reach_nobody() {
    let site = Site::new(None, |_| counted(1, 1)).await;
    let world = World::new(&policy(site.port, ""));
    for body in ["", "{", "[]", r#"{"model":"claude-x","model":"gpt-x"}"#, r#"{"Model":"claude-x"}"#, "\u{0}"] {
        let said = world.say(Door::Model, call("/v1/messages", body)).await;
        assert!(said.starts_with("HTTP/1.1 400") && said.contains("invalid_request_error"), "{body:?}: {said}");
    }
    let said = world
        .say(Door::Model, call("/v1/messages", r#"{"model":"claude-x","tools":[{"type":"web_fetch_20250910"}]}"#))
        .await;
    assert!(said.starts_with("HTTP/1.1 403") && said.contains("web_fetch"), "{said}");
    let said = world.say(Door::Model, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!said.contains("200"), "{said}");
    let long = format!("POST /v1/messages HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    assert!(!world.say(Door::Model, long).await.contains("200"));
    let huge = "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n{";
    let mut stream = world.open(Door::Model);
    stream.write_all(huge.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 413"));
    assert!(site.seen().is_empty());
}

#[tokio::test]
async fn connections_to_the_provider_are_kept_and_a_closed_one_is_not_noticed() {
    let opened = Arc::new(Mutex::new(0));
    let site = {
        let opened = Arc::clone(&opened);
        Site::with(None, move |mut stream, seen| {
            *opened.lock().unwrap() += 1;
            async move {
                // Two calls a connection, then it closes without a word.
                for _ in 0..2 {
                    let Some(request) = read_request(&mut stream).await? else { return Ok(()) };
                    seen.lock().unwrap().push(request);
                    stream.write_all(counted(1, 1).as_bytes()).await?;
                }
                stream.shutdown().await
            }
        })
        .await
    };
    let world = World::new(&policy(site.port, ""));
    let mut stream = world.open(Door::Model);
    for number in 0..6 {
        stream.write_all(call("/v1/messages", BODY).replace("Connection: close\r\n", "").as_bytes()).await.unwrap();
        let said = answer(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{number}: {said}");
        world.entries("model_answer", number + 1).await;
    }
    assert_eq!(site.seen().len(), 6);
    assert!(*opened.lock().unwrap() < 6, "{opened:?}");
}

#[tokio::test]
async fn a_provider_over_tls_is_checked() {
    let (ca, other) = (Ca::new(), Ca::new());
    for (trusted, status) in [(&ca, 200), (&other, 502)] {
        let site = Site::new(Some(ca.server("api.test")), |_| counted(1, 1)).await;
        let text = policy(site.port, "")
            .replace(&format!("http://127.0.0.1:{}", site.port), &format!("https://api.test:{}/v1", site.port));
        let world = Setting { ca: Some(trusted), ..Setting::new(&text) }.world();
        let said = world.say(Door::Model, call("/v1/messages", BODY)).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{said}");
        assert!(site.seen().iter().all(|seen| seen.starts_with("POST /v1/messages HTTP")));
    }
}

#[tokio::test]
async fn without_a_model_in_the_policy_nothing_is_asked() {
    let world = World::new("");
    let said = world.say(Door::Model, call("/v1/messages", BODY)).await;
    assert!(said.starts_with("HTTP/1.1 403") && said.contains("none"), "{said}");
    let said = all(&mut world.open(Door::Peer)).await;
    assert!(said.contains("refused") && said.contains("no peers"), "{said}");
}
