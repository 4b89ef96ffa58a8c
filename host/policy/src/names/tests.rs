// SPDX-License-Identifier: Apache-2.0

use super::*;

#[test]
fn names_are_plain() {
    for text in ["a", "pypi", "a+b.2", "9", &"x".repeat(NAME_MAX_BYTES)] {
        assert!(text.parse::<Name>().is_ok(), "{text}");
    }
    for text in ["", "-a", ".a", "a b", "a/b", "ä", "a\n", "`a`", &"x".repeat(NAME_MAX_BYTES + 1)] {
        assert!(text.parse::<Name>().is_err(), "{text}");
    }
    assert!(
        "mcp__x__y".parse::<ToolName>().is_ok()
            && "_".parse::<ToolName>().is_ok()
            && "a b".parse::<ToolName>().is_err()
    );
}

#[test]
fn headers_that_steer_a_request_take_no_credential() {
    assert_eq!("X-Api-Key".parse::<HeaderName>().unwrap().as_str(), "x-api-key");
    for text in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "Proxy-Authorization",
        "",
        "a b",
        "a:b",
        "upgrade",
    ] {
        assert!(text.parse::<HeaderName>().is_err(), "{text}");
    }
}

#[test]
fn endpoints_are_a_place_and_nothing_else() {
    let read = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
    assert_eq!(read("https://API.example.org").unwrap(), "https://api.example.org");
    assert_eq!(read("https://api.example.org:443/").unwrap(), "https://api.example.org");
    assert_eq!(read("http://127.1:11434/v1/").unwrap(), "http://127.0.0.1:11434/v1");
    assert_eq!(read("http://[::1]:8080").unwrap(), "http://[::1]:8080");
    for text in [
        "",
        "api.example.org",
        "ftp://a",
        "https://u:p@a",
        "https://a?b",
        "https://a#b",
        "https://",
        "https://a:0",
        "https://a:99999",
        "file:///etc",
    ] {
        assert!(read(text).is_err(), "{text}");
    }
    let endpoint: Endpoint = "http://localhost:1/x".parse().unwrap();
    assert_eq!(
        (endpoint.is_https(), endpoint.port(), endpoint.path(), endpoint.host().as_str()),
        (false, 1, "/x", "localhost")
    );
}
