// SPDX-License-Identifier: Apache-2.0
//! Rules, names, addresses, limits and budgets of the proxy, for requests in the clear.

use midge_protocol::Door;
use midge_protocol::broker::{Left, Verdict};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::kit::{PATIENCE, Setting, Site, World, all, answer, head, ok};

/// A rule for `hosts` at `port` in the clear, on this machine.
fn rule(hosts: &str, port: u16, more: &str) -> String {
    format!(
        "[[network.rules]]\nname = \"files\"\nhosts = [{hosts}]\nschemes = [\"http\"]\nports = [{port}]\nranges = [\"127.0.0.0/8\"]\n{more}\n"
    )
}

#[tokio::test]
async fn nothing_is_allowed_by_default() {
    let world = World::new("");
    let said = world.get("http://files.test/").await;
    assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("no rule is about the host files.test"), "{said}");
    let decided = &world.entries("egress_decided", 1).await[0];
    assert_eq!(
        (&decided["decision"], &decided["host"], &decided["rule"]),
        (&"deny".into(), &"files.test".into(), &().into())
    );
    assert!(world.names.asked.lock().unwrap().is_empty(), "no name is resolved for what is denied");
}

#[tokio::test]
async fn what_is_allowed_passes_and_is_recorded_with_its_bytes() {
    let site = Site::new(None, |_| ok("hello")).await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    let said = world.get(&format!("http://files.test:{}/x?y", site.port)).await;
    assert!(said.ends_with("\r\n\r\nhello"), "{said}");
    let decided = &world.entries("egress_decided", 1).await[0];
    assert_eq!(
        (&decided["decision"], &decided["rule"], &decided["path"]),
        (&"allow".into(), &"files".into(), &"/x?y".into())
    );
    assert_eq!(decided["address"], "127.0.0.1");
    let ended = &world.entries("egress_ended", 1).await[0];
    assert_eq!((&ended["status"], &ended["broken"]), (&200.into(), &().into()));
    let spent = ended["sent_bytes"].as_u64().unwrap() + ended["received_bytes"].as_u64().unwrap();
    assert_eq!(world.ledger.spent().egress_bytes, Some(spent));
}

#[tokio::test]
async fn a_redirect_to_a_refused_host_is_a_request_that_is_refused() {
    let site =
        Site::new(None, |_| "HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n".into())
            .await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    let said = world.get(&format!("http://files.test:{}/", site.port)).await;
    assert!(said.starts_with("HTTP/1.1 302 ") && said.contains("http://evil.test/"));
    let followed = world.get("http://evil.test/").await;
    assert!(followed.starts_with("HTTP/1.1 403 "), "{followed}");
}

#[tokio::test]
async fn a_name_is_resolved_once_and_what_was_checked_is_connected_to() {
    let site = Site::new(None, |_| ok("inside")).await;
    // Without `ranges`, nothing of this machine may be reached.
    let text = rule("\"files.test\"", site.port, "").replace("ranges = [\"127.0.0.0/8\"]", "");
    let world = World::new(&text);
    // Rebinding: harmless when it is checked, this machine when it would be asked again.
    world.names.put("files.test", &[&["192.0.2.1"], &["127.0.0.1"]]);
    world.names.put("mixed.test", &[&["127.0.0.1"]]);
    let said = world.get(&format!("http://files.test:{}/", site.port)).await;
    assert!(!said.contains("inside"), "{said}");
    assert_eq!(world.names.asked.lock().unwrap().len(), 1);
    // The second answer is this machine: refused by its address.
    let said = world.get(&format!("http://files.test:{}/", site.port)).await;
    assert!(said.starts_with("HTTP/1.1 403 "), "{said}");
    assert_eq!(site.seen().len(), 0);
}

#[tokio::test]
async fn only_addresses_that_the_rule_names_are_connected_to() {
    let site = Site::new(None, |_| ok("right")).await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    world.names.put("files.test", &[&["10.0.0.1", "169.254.169.254", "::1", "127.0.0.1"]]);
    let said = world.get(&format!("http://files.test:{}/", site.port)).await;
    assert!(said.ends_with("right"), "{said}");
    assert_eq!(world.entries("egress_decided", 1).await[0]["address"], "127.0.0.1");
    world.names.put("files.test", &[&["10.0.0.1", "169.254.169.254", "::ffff:10.0.0.1"]]);
    let said = world.get(&format!("http://files.test:{}/", site.port)).await;
    assert!(said.starts_with("HTTP/1.1 403 "), "{said}");
}

#[tokio::test]
async fn every_spelling_of_an_address_is_that_address() {
    let world = World::new(
        "[[network.rules]]\nname = \"all\"\nhosts = [\"*\"]\nany = true\nschemes = [\"http\"]\nports = [80]\n",
    );
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "017700000001",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "0",
    ] {
        let said = world.get(&format!("http://{host}/")).await;
        assert!(said.starts_with("HTTP/1.1 403 "), "{host}: {said}");
    }
    assert!(world.names.asked.lock().unwrap().is_empty(), "an address is not resolved");
}

#[tokio::test]
async fn every_spelling_of_a_name_is_that_name() {
    let site = Site::new(None, |_| ok("found")).await;
    let world = World::new(&rule("\"files.test\", \"xn--bcher-kva.test\"", site.port, ""));
    for host in ["files.test", "FILES.test", "files.test.", "b%C3%BCcher.test", "xn--bcher-kva.test"] {
        let said = world.get(&format!("http://{host}:{}/", site.port)).await;
        assert_eq!(said.ends_with("found"), !host.contains('%'), "{host}: {said}");
    }
    for host in ["files.test..", "notfiles.test", "files.test.evil.test", "evil-files.test"] {
        let said = world.get(&format!("http://{host}:{}/", site.port)).await;
        assert!(said.starts_with("HTTP/1.1 40"), "{host}: {said}");
    }
}

#[tokio::test]
async fn methods_and_paths_are_held() {
    let site = Site::new(None, |_| ok("found")).await;
    let world = World::new(&rule("\"files.test\"", site.port, "methods = [\"GET\"]\npaths = [\"/simple/*\"]"));
    let host = format!("files.test:{}", site.port);
    assert!(world.get(&format!("http://{host}/simple/x")).await.ends_with("found"));
    assert!(world.get(&format!("http://{host}/other")).await.starts_with("HTTP/1.1 403"));
    let post = format!("POST http://{host}/simple/x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\nhi");
    assert!(world.say(Door::Egress, post).await.starts_with("HTTP/1.1 403"));
    assert!(world.get(&format!("http://{host}/simple/%2e%2e/other")).await.starts_with("HTTP/1.1 400"));
    assert_eq!(site.seen().len(), 1);
}

#[tokio::test]
async fn questions_are_asked_and_answers_are_kept_to() {
    let site = Site::new(None, |_| ok("found")).await;
    let text = rule("\"files.test\"", site.port, "action = \"ask\"");
    for (verdict, status) in [(Verdict::Allow, 200), (Verdict::Deny { why: "not today".into() }, 403)] {
        let world = Setting { verdict, ..Setting::new(&text) }.world();
        let said = world.get(&format!("http://files.test:{}/up?load", site.port)).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
        let asked = world.says.1.lock().unwrap().clone();
        assert_eq!((&asked[0]["host"], &asked[0]["path"]), (&"files.test".into(), &"/up?load".into()));
    }
    assert_eq!(site.seen().len(), 1);
}

#[tokio::test]
async fn budgets_and_limits_end_what_goes_beyond() {
    let site = Site::new(None, |_| ok(&"x".repeat(50_000))).await;
    let url = format!("http://files.test:{}/", site.port);
    let text = rule("\"files.test\"", site.port, "");
    let world =
        Setting { budget: Left { egress_bytes: Some(10_000), ..Left::default() }, ..Setting::new(&text) }.world();
    assert!(world.get(&url).await.len() < 20_000, "it is cut");
    let said = world.get(&url).await;
    let left = world.ledger.left().egress_bytes.unwrap();
    assert!(left < 10_000 && said.len() < 20_000, "{left}");
    world.entries("exhausted", 1).await;
    assert!(world.entries("egress_ended", 1).await[0]["broken"].as_str().unwrap().contains("egress"));

    let world = World::new(&rule("\"files.test\"", site.port, "bytes = \"60KiB\""));
    assert!(world.get(&url).await.len() > 50_000);
    assert!(world.get(&url).await.len() < 50_000, "it is cut");
    let said = world.get(&url).await;
    assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("bytes"), "{said}");

    let world = World::new(&rule("\"files.test\"", site.port, "rate = \"2/h\""));
    assert!(world.get(&url).await.starts_with("HTTP/1.1 200") && world.get(&url).await.starts_with("HTTP/1.1 200"));
    assert!(world.get(&url).await.starts_with("HTTP/1.1 429"));
}

#[tokio::test]
async fn who_is_at_fault_is_told_apart() {
    let world = World::new(&rule("\"files.test\", \"gone.test\", \"slow.test\"", 9, ""));
    world.names.put("gone.test", &[&[]]);
    let said = world.get("http://gone.test:9/").await;
    assert!(said.starts_with("HTTP/1.1 502 ") && said.contains("resolving gone.test"), "{said}");
    let said = world.get("http://files.test:9/").await;
    assert!(said.starts_with("HTTP/1.1 502 ") && said.contains("connecting to files.test port 9"), "{said}");
}

#[tokio::test]
async fn a_server_that_hangs_up_is_502_and_a_kept_one_is_tried_again() {
    let site = Site::with(None, |stream, _| async move {
        drop(stream);
        Ok(())
    })
    .await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    let said = world.get(&format!("http://files.test:{}/", site.port)).await;
    assert!(said.starts_with("HTTP/1.1 502 "), "{said}");

    // One answer a connection, without saying so.
    let site = Site::with(None, |mut stream, seen| async move {
        let request = crate::kit::read_request(&mut stream).await?.unwrap_or_default();
        seen.lock().unwrap().push(request);
        stream.write_all(ok("one").as_bytes()).await
    })
    .await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    let host = format!("files.test:{}", site.port);
    let mut stream = world.open(Door::Egress);
    for _ in 0..3 {
        let request = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(answer(&mut stream).await.ends_with("one"));
    }
    assert_eq!(site.seen().len(), 3);
}

#[tokio::test]
async fn bodies_of_each_framing_pass_both_ways() {
    let site = Site::new(None, |request| {
        let body = request.split("\r\n\r\n").skip(1).collect::<Vec<_>>().join("\r\n\r\n");
        if request.contains("/chunked") {
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x};ext=1\r\n{body}\r\n0\r\nTrailer: x\r\n\r\n",
                body.len()
            )
        } else if request.contains("/close") {
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}")
        } else {
            ok(&body)
        }
    })
    .await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    let host = format!("files.test:{}", site.port);
    for path in ["/length", "/chunked", "/close"] {
        for (framing, body) in
            [("Content-Length: 5", "hello"), ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")]
        {
            let request = format!(
                "POST http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{framing}\r\nConnection: close\r\n\r\n{body}"
            );
            let said = world.say(Door::Egress, request).await;
            assert!(said.starts_with("HTTP/1.1 200") && said.contains("hello"), "{path} {framing}: {said}");
            assert!(!said.contains("ext=1") && !said.contains("Trailer: x"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_is_told_to_go_on() {
    let site = Site::new(None, |_| ok("done")).await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    let host = format!("files.test:{}", site.port);
    let mut stream = world.open(Door::Egress);
    let request =
        format!("POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 100 "));
    stream.write_all(b"hi").await.unwrap();
    assert!(answer(&mut stream).await.ends_with("done"));
    assert!(!site.seen()[0].to_lowercase().contains("expect"));
}

#[tokio::test]
async fn an_answer_passes_as_it_comes() {
    let site = Site::with(None, |mut stream, _| async move {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await?;
        // The rest comes when the guest has the first part: see below.
        stream.read_u8().await?;
        stream.write_all(b"4\r\nlast\r\n0\r\n\r\n").await?;
        // What is still unread when a socket is closed takes its last words with it.
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    })
    .await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    let host = format!("files.test:{}", site.port);
    let mut stream = world.open(Door::Egress);
    let request = format!(
        "POST http://{host}/ HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    head(&mut stream).await;
    let mut first = [0; 10];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut first)).await.expect("not held back").unwrap();
    assert_eq!(&first, b"5\r\nfirst\r\n");
    stream.write_all(b"1\r\nx\r\n0\r\n\r\n").await.unwrap();
    assert!(all(&mut stream).await.contains("last"));
}

#[tokio::test]
async fn a_narrowed_policy_ends_what_is_open_at_once() {
    let site = Site::with(None, |mut stream, _| async move {
        crate::kit::read_request(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst").await?;
        std::future::pending().await
    })
    .await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    let host = format!("files.test:{}", site.port);
    let mut stream = world.open(Door::Egress);
    stream.write_all(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200"));
    world.broker.narrow(&midge_policy::Policy::parse("version = 1", "test").unwrap()).unwrap();
    assert_eq!(all(&mut stream).await, "first");
    assert!(world.get(&format!("http://{host}/")).await.starts_with("HTTP/1.1 403"));
    world.entries("narrowed", 1).await;
}

/// A door's connection that is a socket of the host, as a monitor has one.
fn socket(world: &World) -> tokio::net::UnixStream {
    let (near, far) = tokio::net::UnixStream::pair().unwrap();
    let broker = world.broker.clone();
    tokio::spawn(async move { broker.serve(Door::Egress, far).await });
    near
}

/// The kernel moves it, and both connections serve the next request.
#[tokio::test]
async fn a_long_answer_between_sockets_is_the_same_bytes_and_ends_where_it_ends() {
    const LENGTH: usize = 3_000_001;
    let body = || (0..LENGTH).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect::<Vec<u8>>();
    let site = Site::with(None, move |mut stream, seen| async move {
        while let Some(request) = crate::kit::read_request(&mut stream).await? {
            seen.lock().unwrap().push(request);
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes()).await?;
            stream.write_all(&body()).await?;
        }
        Ok(())
    })
    .await;
    let world = World::new(&rule("\"files.test\"", site.port, ""));
    let host = format!("files.test:{}", site.port);
    let mut stream = socket(&world);
    for _ in 0..2 {
        stream.write_all(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 200"));
        let mut got = vec![0; LENGTH];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut got)).await.expect("all of it").unwrap();
        assert!(got == body());
    }
    assert_eq!(site.seen().len(), 2);
    for ended in world.entries("egress_ended", 2).await {
        assert!(ended["received_bytes"].as_u64().is_some_and(|bytes| bytes > LENGTH as u64), "{ended}");
    }
}

#[tokio::test]
async fn a_long_answer_that_is_cut_short_or_too_much_for_its_rule_is_cut_off_and_told() {
    for (sent, more, why) in [(1_000_000, "", "ended inside the body"), (3_000_000, "bytes = \"1MiB\"", "bytes")] {
        let site = Site::with(None, move |mut stream, _| async move {
            crate::kit::read_request(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n").await?;
            stream.write_all(&vec![b'x'; sent]).await?;
            stream.shutdown().await
        })
        .await;
        let world = World::new(&rule("\"files.test\"", site.port, more));
        let host = format!("files.test:{}", site.port);
        let mut stream = socket(&world);
        stream.write_all(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 200"));
        let got = all(&mut stream).await;
        assert!(got.len() <= 1 << 20 && got.bytes().all(|byte| byte == b'x'), "{} bytes", got.len());
        let ended = &world.entries("egress_ended", 1).await[0];
        assert!(ended.to_string().contains(why), "{ended}");
    }
}
