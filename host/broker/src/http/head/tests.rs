// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::prelude::*;

fn bad(raw: &str) -> BadHead {
    Head::parse(raw.as_bytes()).expect_err(raw)
}

fn good(raw: &str) -> Head {
    Head::parse(raw.as_bytes()).unwrap_or_else(|error| panic!("{raw:?}: {error}"))
}

fn with(lines: &str) -> String {
    format!("POST http://a.test/x HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n")
}

#[test]
fn content_length_with_transfer_encoding_is_refused() {
    assert_eq!(bad(&with("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n")), BadHead::TwoFramings);
    assert_eq!(bad(&with("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n")), BadHead::TwoFramings);
}

#[test]
fn repeated_or_odd_content_length_is_refused() {
    for lines in [
        "Content-Length: 3\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\ncontent-length: 4\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: \r\n",
        "Content-Length: 3 3\r\n",
        "Content-Length: 99999999999999999999\r\n",
    ] {
        assert_eq!(bad(&with(lines)), BadHead::Length, "{lines:?}");
    }
    assert_eq!(good(&with("Content-Length:   3  \r\n")).framing, Framing::Length(3));
}

#[test]
fn any_transfer_encoding_but_one_chunked_is_refused() {
    for lines in [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked,\r\n",
    ] {
        assert_eq!(bad(&with(lines)), BadHead::Coding, "{lines:?}");
    }
    assert_eq!(good(&with("transfer-encoding: Chunked\r\n")).framing, Framing::Chunked);
}

#[test]
fn folded_lines_are_refused() {
    assert_eq!(bad(&with("X: a\r\n b\r\n")), BadHead::Folded);
    assert_eq!(bad(&with("X: a\r\n\tTransfer-Encoding: chunked\r\n")), BadHead::Folded);
}

#[test]
fn bare_line_ends_are_refused() {
    assert_eq!(bad("GET http://a.test/ HTTP/1.1\nHost: a.test\n\n"), BadHead::BareLineEnd);
    assert_eq!(bad(&with("X: a\nContent-Length: 3\r\n")), BadHead::BareLineEnd);
    assert_eq!(bad(&with("X: a\rContent-Length: 3\r\n")), BadHead::BareLineEnd);
}

#[test]
fn control_characters_are_refused() {
    assert_eq!(bad(&with("X: a\0b\r\n")), BadHead::Control);
    assert_eq!(bad(&with("X: a\x0bb\r\n")), BadHead::Control);
    assert_eq!(bad("GET http://a.test/\0 HTTP/1.1\r\nHost: a.test\r\n\r\n"), BadHead::Control);
    assert_eq!(bad(&with("X: \x7f\r\n")), BadHead::Control);
}

#[test]
fn space_about_a_name_is_refused() {
    assert_eq!(bad(&with("Content-Length : 3\r\n")), BadHead::Header);
    assert_eq!(bad(&with("Content-Length\t: 3\r\n")), BadHead::Header);
    assert_eq!(bad(&with(": 3\r\n")), BadHead::Header);
    assert_eq!(bad(&with("no colon\r\n")), BadHead::Header);
}

#[test]
fn host_must_be_one_and_the_targets_own() {
    assert_eq!(bad("GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n"), BadHead::HostMismatch);
    assert_eq!(bad("GET http://a.test/ HTTP/1.1\r\nHost: a.test:81\r\n\r\n"), BadHead::HostMismatch);
    assert_eq!(bad("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n"), BadHead::Host);
    assert_eq!(bad("GET http://a.test/ HTTP/1.1\r\n\r\n"), BadHead::Host);
    assert_eq!(bad("GET http://a.test/ HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n"), BadHead::Host);
    assert_eq!(bad("CONNECT a.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n"), BadHead::HostMismatch);
    good("GET http://A.test:80/ HTTP/1.1\r\nHost: a.TEST\r\n\r\n");
    good("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n");
}

#[test]
fn only_a_tunnel_may_be_asked_for_in_http_1_0() {
    assert_eq!(bad("GET http://a.test/ HTTP/1.0\r\nHost: a.test\r\n\r\n"), BadHead::Version);
    assert_eq!(good("CONNECT a.test:443 HTTP/1.0\r\n\r\n").target, Target::Tunnel { host: "a.test".into(), port: 443 });
    assert_eq!(bad("GET http://a.test/ HTTP/2.0\r\nHost: a.test\r\n\r\n"), BadHead::Version);
    assert_eq!(bad("GET http://a.test/\r\n\r\n"), BadHead::Start);
}

#[test]
fn h2_preface_is_refused_by_name() {
    assert_eq!(bad("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), BadHead::Version);
}

#[test]
fn upgrades_are_refused_and_h2c_is_not_taken_up() {
    assert_eq!(bad(&with("Connection: Upgrade\r\nUpgrade: websocket\r\n")), BadHead::Upgrade);
    assert_eq!(bad(&with("Upgrade: h2c, websocket\r\n")), BadHead::Upgrade);
    let head = good(&with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n"));
    let sent = String::from_utf8(head.to_origin("/x", "a.test")).unwrap().to_lowercase();
    assert!(!sent.contains("upgrade") && !sent.contains("http2-settings"), "{sent}");
    let answer = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(ResponseHead::parse(answer, "GET"), Err(BadHead::Upgrade));
}

#[test]
fn targets_that_are_no_addresses_are_refused() {
    for line in [
        "GET https://a.test/ HTTP/1.1",
        "GET ftp://a.test/ HTTP/1.1",
        "GET a.test HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET http:///x HTTP/1.1",
        "GET http://u@a.test/ HTTP/1.1",
        "GET http://u:p@a.test/ HTTP/1.1",
        "GET http://a.test:0/ HTTP/1.1",
        "GET http://a.test:99999/ HTTP/1.1",
        "GET http://a.test:/ HTTP/1.1",
        "GET http://[::1/ HTTP/1.1",
        "GET http://[not-v6]/ HTTP/1.1",
        "GET http://a.test\\@b.test/ HTTP/1.1",
        "GET http://a.test%2eb/ HTTP/1.1",
        "GET http://a.test/#x HTTP/1.1",
        "CONNECT a.test HTTP/1.1",
        "CONNECT http://a.test:443/ HTTP/1.1",
        "CONNECT a.test:443/x HTTP/1.1",
        "CONNECT ::1:443 HTTP/1.1",
        "CONNECT a.test:+443 HTTP/1.1",
    ] {
        assert_eq!(bad(&format!("{line}\r\nHost: a.test\r\n\r\n")), BadHead::Target, "{line}");
    }
}

#[test]
fn targets_are_read() {
    let absolute = |host: &str, port, path: &str| Target::Absolute { host: host.into(), port, path: path.into() };
    let cases = [
        ("GET http://a.test/x?y HTTP/1.1\r\nHost: a.test", absolute("a.test", 80, "/x?y")),
        ("GET HTTP://a.test:8080 HTTP/1.1\r\nHost: a.test:8080", absolute("a.test", 8080, "/")),
        ("GET http://a.test?q HTTP/1.1\r\nHost: a.test", absolute("a.test", 80, "/?q")),
        ("GET http://[::1]:81/ HTTP/1.1\r\nHost: [::1]:81", absolute("::1", 81, "/")),
        (
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443",
            Target::Tunnel { host: "2001:db8::1".into(), port: 443 },
        ),
        ("GET /x HTTP/1.1\r\nHost: a.test", Target::Origin { path: "/x".into() }),
    ];
    for (raw, target) in cases {
        assert_eq!(good(&format!("{raw}\r\n\r\n")).target, target);
    }
}

#[test]
fn paths_that_a_server_would_resolve_are_refused() {
    for path in
        ["/a/../b", "/..", "/./x", "/a/%2e%2e/b", "/a/.%2E/b", "/a/..%2fb", "/a\\..\\b", "/%252e%252e/", "/..;x/y"]
    {
        assert_eq!(bad(&format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")), BadHead::DotSegments, "{path}");
    }
    for path in ["/@scope%2fname", "/a..b", "/.well-known/x", "/x?y=../z", "/a%20b"] {
        good(&format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    }
}

#[test]
fn sizes_are_bounded() {
    let long = with(&format!("X: {}\r\n", "a".repeat(HEAD_MAX_BYTES)));
    assert_eq!(bad(&long), BadHead::TooLong);
    assert_eq!(bad(&with(&"X: a\r\n".repeat(HEADERS_MAX))), BadHead::TooMany);
    assert_eq!(BadHead::TooMany.status(), 431);
}

#[test]
fn empty_lines_before_a_request_are_refused() {
    assert_eq!(bad("\r\nGET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n"), BadHead::Start);
}

#[test]
fn what_is_for_one_hop_is_not_passed_on() {
    let head = good(&with(
        "Proxy-Authorization: Basic x\r\nConnection: X-Mine, Host, Content-Length, keep-alive\r\nX-Mine: 1\r\nX-Yours: 2\r\n\
         TE: trailers\r\nKeep-Alive: 5\r\nContent-Length: 3\r\n",
    ));
    let sent = String::from_utf8(head.to_origin("/x", "a.test")).unwrap();
    assert_eq!(sent, "POST /x HTTP/1.1\r\nHost: a.test\r\nX-Yours: 2\r\nContent-Length: 3\r\n\r\n");
}

#[test]
fn responses_are_as_strict() {
    let parse = |raw: &str, method: &str| ResponseHead::parse(raw.as_bytes(), method);
    let two = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(parse(two, "GET"), Err(BadHead::TwoFramings));
    assert_eq!(parse("HTTP/1.1 200 OK\nA: b\n\n", "GET"), Err(BadHead::BareLineEnd));
    assert_eq!(parse("HTTP/1.1 200 OK\r\n\r\n", "GET").unwrap().framing, Framing::UntilClose);
    assert_eq!(parse("HTTP/1.1 204 No\r\n\r\n", "GET").unwrap().framing, Framing::Length(0));
    let head = parse("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "HEAD").unwrap();
    assert_eq!(head.framing, Framing::Length(0));
    assert!(String::from_utf8(head.to_guest(false)).unwrap().contains("Content-Length: 7"));
    assert!(parse("HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n", "GET").unwrap().close);
    assert_eq!(parse("HTTP/1.1 99 x\r\n\r\n", "GET"), Err(BadHead::Start));
}

proptest! {
    #[test]
    fn no_bytes_make_it_fail(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Head::parse(&raw);
        let _ = ResponseHead::parse(&raw, "GET");
    }

    /// What is accepted and sent on is read the same way again: one message stays one message.
    #[test]
    fn what_is_sent_on_has_the_same_reading(
        lines in proptest::collection::vec("(Content-Length|Transfer-Encoding|Connection|X-A|TE): ?(chunked|[0-9]{0,4}|host|x-a|close)?", 0..5),
    ) {
        let raw = with(&lines.iter().map(|line| format!("{line}\r\n")).collect::<String>());
        if let Ok(head) = Head::parse(raw.as_bytes()) {
            let sent = head.to_origin("/x", "a.test");
            let again = Head::parse(&sent).unwrap();
            prop_assert_eq!(again.framing, head.framing);
            prop_assert_eq!(again.headers.all("content-length").count() + again.headers.all("transfer-encoding").count() <= 1, true);
            prop_assert_eq!(&sent[sent.len() - 4..], b"\r\n\r\n");
        }
    }
}
