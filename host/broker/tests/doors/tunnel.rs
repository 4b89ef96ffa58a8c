// SPDX-License-Identifier: Apache-2.0
//! CONNECT tunnels that are not looked into: names in TLS, what is no TLS, half-close, silence.

use std::sync::Arc;

use midge_protocol::Door;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::rustls::ServerConfig;

use crate::kit::{Ca, PATIENCE, Setting, Site, World, all, head, ok};

fn rule(port: u16, schemes: &str, more: &str) -> String {
    format!(
        "[[network.rules]]\nname = \"files\"\nhosts = [\"files.test\", \"127.0.0.1\"]\nschemes = [{schemes}]\nports = [{port}]\nranges = [\"127.0.0.0/8\"]\n{more}\n"
    )
}

async fn tls_site(ca: &Ca, host: &str) -> Site {
    let config: Arc<ServerConfig> = ca.server(host);
    Site::new(Some(config), |_| ok("over TLS")).await
}

#[tokio::test]
async fn tls_to_the_host_that_was_asked_for_passes_unseen() {
    let ca = Ca::new();
    let site = tls_site(&ca, "files.test").await;
    let world = World::new(&rule(site.port, "\"https\"", ""));
    let mut tls = world.secure(&format!("files.test:{}", site.port), "files.test", ca.root.clone()).await.unwrap();
    tls.write_all(b"GET /x HTTP/1.1\r\nHost: files.test\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(crate::kit::answer(&mut tls).await.ends_with("over TLS"), "the server's own certificate was seen");
    drop(tls);
    let ended = &world.entries("egress_ended", 1).await[0];
    assert!(ended["received_bytes"].as_u64().unwrap() > 500);
}

#[tokio::test]
async fn a_name_in_tls_that_differs_is_refused() {
    let ca = Ca::new();
    let site = tls_site(&ca, "evil.test").await;
    let world = World::new(&rule(site.port, "\"https\"", ""));
    let refused = world.secure(&format!("files.test:{}", site.port), "evil.test", ca.root.clone()).await;
    assert!(refused.unwrap_err().to_string().to_lowercase().contains("name"));
    let denied = world.entries("egress_decided", 2).await;
    assert!(denied[1]["why"].as_str().unwrap().contains("evil.test"), "{denied:?}");
    assert!(site.seen().is_empty());
}

#[tokio::test]
async fn tls_without_a_name_is_refused_unless_the_rule_names_the_address() {
    let ca = Ca::new();
    let site = tls_site(&ca, "127.0.0.1").await;
    let world = World::new(&rule(site.port, "\"https\"", ""));
    // A client sends no name for an address.
    assert!(world.secure(&format!("files.test:{}", site.port), "127.0.0.1", ca.root.clone()).await.is_err());
    let mut tls = world.secure(&format!("127.0.0.1:{}", site.port), "127.0.0.1", ca.root.clone()).await.unwrap();
    tls.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(crate::kit::answer(&mut tls).await.ends_with("over TLS"));
}

#[tokio::test]
async fn what_is_no_tls_is_refused_unless_a_rule_says_tcp() {
    let site = Site::new(None, |_| ok("plain")).await;
    let authority = format!("files.test:{}", site.port);
    let world = World::new(&rule(site.port, "\"https\"", ""));
    let (mut stream, said) = world.connect(&authority).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(all(&mut stream).await, "");
    assert!(site.seen().is_empty());

    let world = World::new(&rule(site.port, "\"tcp\"", ""));
    let (mut stream, _) = world.connect(&authority).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(crate::kit::answer(&mut stream).await.ends_with("plain"));
}

#[tokio::test]
async fn http_in_the_clear_cannot_be_tunnelled_where_only_http_is_allowed() {
    let site = Site::new(None, |_| ok("plain")).await;
    let world = World::new(&rule(site.port, "\"http\"", ""));
    let (_, said) = world.connect(&format!("files.test:{}", site.port)).await;
    assert!(said.starts_with("HTTP/1.1 403 "), "{said}");
}

#[tokio::test]
async fn a_server_may_speak_first_where_a_rule_says_tcp() {
    let site = Site::with(None, |mut stream, _| async move { stream.write_all(b"220 ready\r\n").await }).await;
    for schemes in ["\"tcp\"", "\"https\", \"tcp\""] {
        let world = World::new(&rule(site.port, schemes, ""));
        let (mut stream, _) = world.connect(&format!("files.test:{}", site.port)).await;
        assert_eq!(all(&mut stream).await, "220 ready\r\n");
    }
}

#[tokio::test]
async fn each_way_ends_by_itself() {
    // Says how much it got, after it got all of it.
    let site = Site::with(None, |mut stream, _| async move {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await?;
        stream.write_all(format!("got {}", got.len()).as_bytes()).await?;
        stream.shutdown().await
    })
    .await;
    let world = World::new(&rule(site.port, "\"tcp\"", ""));
    let (mut stream, _) = world.connect(&format!("files.test:{}", site.port)).await;
    stream.write_all(&vec![b'x'; 300_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(all(&mut stream).await, "got 300000");
}

/// The same between two sockets of the host, which the kernel moves bytes between.
#[tokio::test]
async fn bytes_between_sockets_are_the_same_bytes_and_each_way_ends_by_itself() {
    let site = Site::with(None, |mut stream, _| async move {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await?;
        stream.write_all(&Sha256::digest(&got)).await?;
        stream.write_all(&got).await?;
        stream.shutdown().await
    })
    .await;
    let sent: Vec<u8> = (0..3_000_001_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let world = World::new(&rule(site.port, "\"tcp\"", ""));
    let (near, far) = tokio::net::UnixStream::pair().unwrap();
    let broker = world.broker.clone();
    tokio::spawn(async move { broker.serve(Door::Egress, far).await });
    let (mut read, mut write) = near.into_split();
    let authority = format!("files.test:{}", site.port);
    // Sent ahead of the answer to CONNECT: it must come through as well.
    write.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await.unwrap();
    let sending = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receiving = async {
        assert!(head(&mut read).await.starts_with("HTTP/1.1 200"));
        let mut got = Vec::new();
        tokio::time::timeout(PATIENCE, read.read_to_end(&mut got)).await.expect("an end").unwrap();
        got
    };
    let ((), got) = tokio::join!(sending, receiving);
    assert_eq!(got.len(), sent.len() + 32);
    assert_eq!(Sha256::digest(&sent)[..], got[..32]);
    assert!(got[32..] == sent[..]);
    let ended = &world.entries("egress_ended", 1).await[0];
    assert_eq!((&ended["sent_bytes"], &ended["received_bytes"]), (&sent.len().into(), &got.len().into()));
}

#[tokio::test]
async fn refused_and_absent_servers_are_told_before_the_tunnel_is_open() {
    let world = World::new(&rule(9, "\"https\"", ""));
    let (_, said) = world.connect("evil.test:9").await;
    assert!(said.starts_with("HTTP/1.1 403 "), "{said}");
    let (_, said) = world.connect("files.test:443").await;
    assert!(said.starts_with("HTTP/1.1 403 "), "{said}");
    let (_, said) = world.connect("files.test:9").await;
    assert!(said.starts_with("HTTP/1.1 502 "), "{said}");
    for authority in ["files.test", "files.test:0", "files.test:99999", "u@files.test:9", "http://files.test:9"] {
        let (_, said) = world.connect(authority).await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{authority}: {said}");
    }
}

#[tokio::test]
async fn a_tunnel_by_http_1_0_is_opened() {
    let ca = Ca::new();
    let site = tls_site(&ca, "files.test").await;
    let world = World::new(&rule(site.port, "\"https\"", ""));
    let mut stream = world.open(Door::Egress);
    stream.write_all(format!("CONNECT files.test:{} HTTP/1.0\r\n\r\n", site.port).as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn bytes_of_a_tunnel_are_held_against_the_budget() {
    let site = Site::with(None, |mut stream, _| async move {
        loop {
            stream.write_all(&[b'x'; 8192]).await?;
        }
    })
    .await;
    let text = rule(site.port, "\"tcp\"", "");
    let budget = midge_protocol::broker::Left { egress_bytes: Some(1_000_000), ..Default::default() };
    let world = Setting { budget, ..Setting::new(&text) }.world();
    let (mut stream, _) = world.connect(&format!("files.test:{}", site.port)).await;
    let got = all(&mut stream).await.len();
    assert!(got <= 1_000_000, "{got}");
    world.entries("exhausted", 1).await;
}

#[tokio::test]
async fn more_connections_than_a_rule_allows_are_refused() {
    let site = Site::with(None, |mut stream, _| async move { stream.read_u8().await.map(drop) }).await;
    let world = World::new(&rule(site.port, "\"tcp\"", "connections = 2"));
    let authority = format!("files.test:{}", site.port);
    let (first, second) = (world.connect(&authority).await, world.connect(&authority).await);
    assert!(first.1.starts_with("HTTP/1.1 200") && second.1.starts_with("HTTP/1.1 200"));
    assert!(world.connect(&authority).await.1.starts_with("HTTP/1.1 429"));
    drop(first);
    world.entries("egress_ended", 1).await;
    assert!(world.connect(&authority).await.1.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_narrowed_policy_ends_a_tunnel() {
    let site = Site::with(None, |mut stream, _| async move { stream.read_u8().await.map(drop) }).await;
    let world = World::new(&rule(site.port, "\"tcp\"", ""));
    let (mut stream, _) = world.connect(&format!("files.test:{}", site.port)).await;
    world.broker.narrow(&midge_policy::Policy::parse("version = 1", "test").unwrap()).unwrap();
    assert_eq!(all(&mut stream).await, "");
}

/// A hello of TLS with these extensions (kind, data).
fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let size = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &size(data.len()), data].concat())
        .collect();
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &size(extensions.len()), &extensions].concat();
    let message = [&[1, 0][..], &size(body.len()), &body].concat();
    [&[22, 3, 1][..], &size(message.len()), &message].concat()
}

fn name(name: &str) -> (u16, Vec<u8>) {
    let size = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    (0, [&size(name.len() + 3)[..], &[0], &size(name.len()), name.as_bytes()].concat())
}

#[tokio::test]
async fn an_encrypted_hello_is_refused_and_one_in_pieces_is_read() {
    let site = Site::with(None, |mut stream, seen| async move {
        let byte = stream.read_u8().await?;
        seen.lock().unwrap().push(byte.to_string());
        stream.write_all(b"reached").await
    })
    .await;
    let world = World::new(&rule(site.port, "\"https\"", ""));
    let authority = format!("files.test:{}", site.port);
    let (mut stream, _) = world.connect(&authority).await;
    stream.write_all(&hello(&[name("files.test"), (0xfe0d, vec![0; 8])])).await.unwrap();
    assert!(!all(&mut stream).await.contains("reached"));
    assert!(site.seen().is_empty());

    let (mut stream, _) = world.connect(&authority).await;
    for byte in hello(&[name("files.test")]) {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut reached = [0; 7];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut reached)).await.expect("an answer").unwrap();
    assert_eq!(&reached, b"reached");
}
