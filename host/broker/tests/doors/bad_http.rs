// SPDX-License-Identifier: Apache-2.0
//! Requests that no honest client sends: each is refused with a status of its own and reaches nobody.

use midge_protocol::Door;
use tokio::io::AsyncWriteExt as _;

use crate::kit::{Site, World, all, answer, ok};

/// A world in which `files.test` may be asked for anything in the clear, and its server.
async fn open() -> (World, Site) {
    let site = Site::new(None, |_| ok("answer")).await;
    let world = World::new(&format!(
        "[[network.rules]]\nname = \"files\"\nhosts = [\"files.test\"]\nschemes = [\"http\"]\nports = [{}]\nranges = [\"127.0.0.0/8\"]\n",
        site.port
    ));
    (world, site)
}

/// Sends raw bytes in which `HOST` stands for the server; gives the answer, and what the server saw.
async fn raw(text: &str) -> (String, Vec<String>) {
    let (world, site) = open().await;
    let said = world.say(Door::Egress, text.replace("HOST", &format!("files.test:{}", site.port))).await;
    (said, site.seen())
}

async fn refused(text: &str, status: u16) {
    let (said, seen) = raw(text).await;
    assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{text:?}: {said}");
    assert!(said.contains("\"from\":\"midge\""), "{said}");
    assert_eq!(seen, Vec::<String>::new(), "{text:?}");
}

#[tokio::test]
async fn an_honest_request_passes() {
    let (said, seen) = raw("GET http://HOST/x HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n").await;
    assert!(said.ends_with("answer"), "{said}");
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with("GET /x HTTP/1.1\r\nHost: files.test:"), "{seen:?}");
}

#[tokio::test]
async fn smuggling_by_two_framings() {
    refused(
        "POST http://HOST/ HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    )
    .await;
    refused("POST http://HOST/ HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400)
        .await;
    refused("POST http://HOST/ HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 501).await;
}

#[tokio::test]
async fn smuggling_by_odd_lines() {
    refused("GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\nX: a\r\n b\r\n\r\n", 400).await;
    refused("GET http://HOST/ HTTP/1.1\nHost: HOST\n\n", 400).await;
    refused("GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\nContent-Length : 3\r\n\r\n", 400).await;
    refused("GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\nX: a\0b\r\n\r\n", 400).await;
    refused("\r\nGET http://HOST/ HTTP/1.1\r\nHost: HOST\r\n\r\n", 400).await;
}

#[tokio::test]
async fn smuggling_by_chunks_ends_the_connection_and_no_second_request_is_seen() {
    let chunks = "3 \r\nabc\r\n0\r\n\r\nGET http://HOST/second HTTP/1.1\r\nHost: HOST\r\n\r\n";
    let (_, seen) =
        raw(&format!("POST http://HOST/ HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")).await;
    assert!(seen.iter().all(|request| !request.contains("second")), "{seen:?}");
}

#[tokio::test]
async fn a_body_cannot_hide_a_request() {
    let hidden = "GET http://evil.test/ HTTP/1.1\r\n\r\n";
    let text = format!(
        "POST http://HOST/ HTTP/1.1\r\nHost: HOST\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{hidden}",
        hidden.len()
    );
    let (said, seen) = raw(&text).await;
    assert!(said.ends_with("answer") && seen.len() == 1 && seen[0].ends_with(hidden), "{said} {seen:?}");
}

#[tokio::test]
async fn host_that_differs_from_the_target() {
    refused("GET http://HOST/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400).await;
    refused("GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\nHost: evil.test\r\n\r\n", 400).await;
    refused("GET http://HOST/ HTTP/1.1\r\n\r\n", 400).await;
    refused("GET http://HOST@evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400).await;
}

#[tokio::test]
async fn other_versions_and_protocols() {
    refused("GET http://HOST/ HTTP/1.0\r\nHost: HOST\r\n\r\n", 505).await;
    refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505).await;
    refused("GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 501).await;
    refused("GET / HTTP/1.1\r\nHost: HOST\r\n\r\n", 400).await;
    refused("GET https://HOST/ HTTP/1.1\r\nHost: HOST\r\n\r\n", 400).await;
    refused("\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400).await;
    refused("GET http://HOST/a/../b HTTP/1.1\r\nHost: HOST\r\n\r\n", 400).await;
}

#[tokio::test]
async fn an_offer_of_h2c_is_not_taken_up() {
    let (said, seen) = raw(
        "GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
    )
    .await;
    assert!(said.ends_with("answer"), "{said}");
    assert!(!seen[0].to_lowercase().contains("h2c") && !seen[0].to_lowercase().contains("http2"), "{seen:?}");
}

#[tokio::test]
async fn heads_without_end_are_refused() {
    refused(&format!("GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\nX: {}\r\n\r\n", "a".repeat(100_000)), 431).await;
    refused(&format!("GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\n{}\r\n", "X: a\r\n".repeat(200)), 431).await;
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_their_order() {
    let site = Site::new(None, |request| ok(request.split(' ').nth(1).unwrap())).await;
    let world = World::new(&format!(
        "[[network.rules]]\nname = \"files\"\nhosts = [\"files.test\"]\nschemes = [\"http\"]\nports = [{}]\nranges = [\"127.0.0.0/8\"]\npaths = [\"/a*\"]\n",
        site.port
    ));
    let host = format!("files.test:{}", site.port);
    let one = |path: &str| format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut stream = world.open(Door::Egress);
    let ahead = [one("/a1"), one("/b"), one("/a2")].concat();
    stream.write_all(ahead.as_bytes()).await.unwrap();
    assert!(answer(&mut stream).await.ends_with("/a1"));
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 403"), "each is decided by itself");
    assert!(answer(&mut stream).await.ends_with("/a2"));
    assert_eq!(site.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_given_up() {
    let world = World::new("");
    let mut stream = world.open(Door::Egress);
    stream.write_all(b"GET http://files.test/ HT").await.unwrap();
    let began = tokio::time::Instant::now();
    let said = all(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    assert!(began.elapsed().as_secs() >= 19);
    let refused = world.entries("malformed", 1).await;
    assert_eq!(refused[0]["door"], "egress");
}

#[tokio::test]
async fn a_server_that_smuggles_is_refused() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "nonsense\r\n\r\n",
    ] {
        let site = Site::new(None, move |_| answer.to_owned()).await;
        let world = World::new(&format!(
            "[[network.rules]]\nname = \"files\"\nhosts = [\"files.test\"]\nschemes = [\"http\"]\nports = [{}]\nranges = [\"127.0.0.0/8\"]\n",
            site.port
        ));
        let said = world.get(&format!("http://files.test:{}/", site.port)).await;
        assert!(said.starts_with("HTTP/1.1 502 "), "{answer:?}: {said}");
    }
}
