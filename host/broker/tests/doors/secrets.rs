// SPDX-License-Identifier: Apache-2.0
//! No credential reaches the guest through any door, though the server says back all that it was told; nor the transcript.

use midge_protocol::Door;
use tokio::io::AsyncWriteExt as _;

use crate::kit::{Ca, SECRET, Setting, Site, World, all};

/// Says the whole request back: in a header, and in the body, cut into chunks of every size.
fn echo(request: &str) -> String {
    let shown: String = request.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' }).collect();
    let chunks: String = request
        .as_bytes()
        .chunks(7)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)))
        .collect();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Echo: {shown}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    )
}

/// What a guest reads of chunks.
fn unchunked(said: &str) -> String {
    let (head, mut rest) = said.split_once("\r\n\r\n").unwrap();
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        body += &after[..size];
        rest = &after[size + 2..];
    }
    format!("{head}\n{body}")
}

fn check(world: &World, said: &str) {
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let said = unchunked(said);
    assert!(said.contains("***"), "the server did echo: {said}");
    assert!(!said.contains(SECRET) && !said.contains(&SECRET.replace('/', "%2F").replace('+', "%2B")), "{said}");
    let transcript = String::from_utf8(world.memory.bytes()).unwrap();
    assert!(!transcript.contains(SECRET), "{transcript}");
}

#[tokio::test]
async fn an_echo_of_a_credential_is_covered() {
    let ca = Ca::new();
    let site = Site::new(Some(ca.server("files.test")), echo).await;
    for more in ["", "value = \"token {secret}\"\nheader = \"x-token\"", "basic_user = \"me\""] {
        let text = format!(
            "[[network.rules]]\nname = \"files\"\nhosts = [\"files.test\"]\nports = [{}]\nranges = [\"127.0.0.0/8\"]\n\
             [[credentials]]\nname = \"token\"\nhosts = [\"files.test\"]\nsecret = {{ command = [\"echo\", \"{SECRET}\"] }}\n{more}\n",
            site.port
        );
        let world = Setting { ca: Some(&ca), ..Setting::new(&text) }.world();
        let mut tls = world.secure(&format!("files.test:{}", site.port), "files.test", world.root()).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: files.test:{}\r\nConnection: close\r\n\r\n", site.port);
        tls.write_all(request.as_bytes()).await.unwrap();
        check(&world, &all(&mut tls).await);
    }
}

#[tokio::test]
async fn an_echo_of_the_models_key_is_covered() {
    let site = Site::new(None, echo).await;
    for provider in ["anthropic", "compatible"] {
        let text = format!(
            "[model]\nprovider = \"{provider}\"\nendpoint = \"http://127.0.0.1:{}\"\nmodels = [\"m\"]\nkey = {{ command = [\"echo\", \"{SECRET}\"] }}\n",
            site.port
        );
        let world = World::new(&text);
        let body = r#"{"model":"m","messages":[]}"#;
        let request = format!(
            "POST /v1/messages HTTP/1.1\r\nHost: midge\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let said = world.say(Door::Model, request).await;
        assert!(site.seen().last().unwrap().contains(SECRET), "the key was sent");
        check(&world, &said);
        world.entries("model_answer", 1).await;
        check(&world, &said);
    }
}

#[tokio::test]
async fn refusals_name_no_secret() {
    let text = format!(
        "[[network.rules]]\nname = \"files\"\nhosts = [\"files.test\"]\nports = [1]\nranges = [\"127.0.0.0/8\"]\n\
         [[credentials]]\nname = \"token\"\nhosts = [\"files.test\"]\nsecret = {{ command = [\"echo\", \"{SECRET}\"] }}\n"
    );
    let world = World::new(&text);
    for said in [
        world.get("http://files.test/").await,
        world.connect("files.test:443").await.1,
        world.say(Door::Egress, "x\r\n\r\n").await,
    ] {
        assert!(said.starts_with("HTTP/1.1 4") && !said.contains(SECRET), "{said}");
    }
}
