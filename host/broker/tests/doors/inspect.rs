// SPDX-License-Identifier: Apache-2.0
//! Tunnels that the policy looks into: TLS is ended with a certificate of the sandbox's own authority, and each request is held.

use midge_protocol::Door;
use tokio::io::AsyncWriteExt as _;

use crate::kit::{Ca, SECRET, Setting, Site, World, all, answer, ok};

fn policy(port: u16, more: &str) -> String {
    format!(
        "[[network.rules]]\nname = \"files\"\nhosts = [\"files.test\"]\nports = [{port}]\nranges = [\"127.0.0.0/8\"]\nmethods = [\"GET\"]\npaths = [\"/simple/*\"]\n{more}\n"
    )
}

async fn site(ca: &Ca, host: &str) -> Site {
    Site::new(Some(ca.server(host)), |request| ok(request.split(' ').nth(1).unwrap_or_default())).await
}

fn world(ca: &Ca, text: &str) -> World {
    Setting { ca: Some(ca), ..Setting::new(text) }.world()
}

fn get(port: u16, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: files.test:{port}\r\n\r\n")
}

#[tokio::test]
async fn requests_inside_are_held_one_by_one() {
    let ca = Ca::new();
    let site = site(&ca, "files.test").await;
    let world = world(&ca, &policy(site.port, ""));
    let mut tls = world.secure(&format!("files.test:{}", site.port), "files.test", world.root()).await.unwrap();
    tls.write_all(get(site.port, "/simple/a").as_bytes()).await.unwrap();
    assert!(answer(&mut tls).await.ends_with("/simple/a"));
    tls.write_all(get(site.port, "/upload").as_bytes()).await.unwrap();
    assert!(answer(&mut tls).await.starts_with("HTTP/1.1 403"));
    tls.write_all(get(site.port, "/simple/b").as_bytes()).await.unwrap();
    assert!(answer(&mut tls).await.ends_with("/simple/b"));
    let post = format!("POST /simple/a HTTP/1.1\r\nHost: files.test:{}\r\nContent-Length: 1\r\n\r\nx", site.port);
    tls.write_all(post.as_bytes()).await.unwrap();
    assert!(answer(&mut tls).await.starts_with("HTTP/1.1 403"));
    assert_eq!(site.seen().len(), 2);
    let decided = world.entries("egress_decided", 4).await;
    assert_eq!((&decided[0]["scheme"], &decided[0]["path"]), (&"https".into(), &"/simple/a".into()));
    assert_eq!(world.names.asked.lock().unwrap().len(), 1, "the name is resolved once for the tunnel");
}

#[tokio::test]
async fn host_that_differs_from_the_name_in_tls_is_refused() {
    let ca = Ca::new();
    let site = site(&ca, "files.test").await;
    let world = world(&ca, &policy(site.port, ""));
    for host in ["evil.test", "files.test:1", "files.test, evil.test"] {
        let mut tls = world.secure(&format!("files.test:{}", site.port), "files.test", world.root()).await.unwrap();
        tls.write_all(format!("GET /simple/a HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        assert!(all(&mut tls).await.starts_with("HTTP/1.1 4"), "{host}");
    }
    for line in ["GET http://files.test/simple/a", "CONNECT files.test:443"] {
        let mut tls = world.secure(&format!("files.test:{}", site.port), "files.test", world.root()).await.unwrap();
        tls.write_all(format!("{line} HTTP/1.1\r\nHost: files.test\r\n\r\n").as_bytes()).await.unwrap();
        assert!(all(&mut tls).await.starts_with("HTTP/1.1 400"), "{line}");
    }
    assert!(site.seen().is_empty());
}

#[tokio::test]
async fn a_name_in_tls_that_differs_from_connect_is_refused() {
    let ca = Ca::new();
    let site = site(&ca, "files.test").await;
    let world = world(&ca, &policy(site.port, ""));
    assert!(world.secure(&format!("files.test:{}", site.port), "evil.test", world.root()).await.is_err());
    assert!(site.seen().is_empty());
}

#[tokio::test]
async fn a_server_that_the_host_does_not_trust_is_502() {
    let (ca, other) = (Ca::new(), Ca::new());
    for site in [site(&other, "files.test").await, site(&ca, "evil.test").await] {
        let world = world(&ca, &policy(site.port, ""));
        let mut tls = world.secure(&format!("files.test:{}", site.port), "files.test", world.root()).await.unwrap();
        tls.write_all(get(site.port, "/simple/a").as_bytes()).await.unwrap();
        let said = answer(&mut tls).await;
        assert!(said.starts_with("HTTP/1.1 502 ") && said.contains("agreeing on TLS"), "{said}");
        assert!(site.seen().is_empty());
    }
}

#[tokio::test]
async fn a_guest_that_does_not_trust_the_authority_gets_nothing() {
    let ca = Ca::new();
    let site = site(&ca, "files.test").await;
    let world = world(&ca, &policy(site.port, ""));
    assert!(world.secure(&format!("files.test:{}", site.port), "files.test", ca.root.clone()).await.is_err());
    let denied = world.entries("egress_decided", 1).await;
    assert!(denied[0]["why"].as_str().unwrap().contains("trust"), "{denied:?}");
}

#[tokio::test]
async fn smuggling_inside_is_refused() {
    let ca = Ca::new();
    let site = site(&ca, "files.test").await;
    let world = world(&ca, &policy(site.port, ""));
    let mut tls = world.secure(&format!("files.test:{}", site.port), "files.test", world.root()).await.unwrap();
    let hidden = format!(
        "GET /simple/a HTTP/1.1\r\nHost: files.test:{}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /secret HTTP/1.1\r\n\r\n",
        site.port
    );
    tls.write_all(hidden.as_bytes()).await.unwrap();
    assert!(all(&mut tls).await.starts_with("HTTP/1.1 400"));
    assert!(site.seen().is_empty());
}

#[tokio::test]
async fn credentials_are_put_in_over_tls_and_the_guests_own_are_dropped() {
    let ca = Ca::new();
    let site = site(&ca, "files.test").await;
    let credential = format!(
        "[[credentials]]\nname = \"token\"\nhosts = [\"files.test\"]\nsecret = {{ command = [\"echo\", \"{SECRET}\"] }}\n"
    );
    let world = world(&ca, &policy(site.port, &credential));
    let mut tls = world.secure(&format!("files.test:{}", site.port), "files.test", world.root()).await.unwrap();
    let request = format!(
        "GET /simple/a HTTP/1.1\r\nHost: files.test:{}\r\nauthorization: Bearer stolen\r\nAUTHORIZATION: x\r\nAccept-Encoding: gzip\r\n\r\n",
        site.port
    );
    tls.write_all(request.as_bytes()).await.unwrap();
    assert!(answer(&mut tls).await.ends_with("/simple/a"));
    let seen = site.seen().remove(0);
    assert!(seen.contains(&format!("authorization: Bearer {SECRET}\r\n")), "{seen}");
    assert!(!seen.contains("stolen") && !seen.contains("gzip"), "{seen}");
    assert_eq!(seen.to_lowercase().matches("authorization:").count(), 1);
}

#[tokio::test]
async fn credentials_are_not_sent_in_the_clear() {
    let site = Site::new(None, |_| ok("plain")).await;
    let text = format!(
        "[[network.rules]]\nname = \"files\"\nhosts = [\"files.test\"]\nschemes = [\"http\", \"https\"]\nports = [{}]\nranges = [\"127.0.0.0/8\"]\n\
         [[credentials]]\nname = \"token\"\nhosts = [\"files.test\"]\nsecret = {{ command = [\"echo\", \"{SECRET}\"] }}\n",
        site.port
    );
    let world = World::new(&text);
    let host = format!("files.test:{}", site.port);
    let said = world
        .say(Door::Egress, format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
        .await;
    assert!(said.ends_with("plain"), "{said}");
    assert!(!site.seen()[0].contains(SECRET));
}
