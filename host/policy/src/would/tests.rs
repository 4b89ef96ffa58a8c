// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;

fn request(text: &str) -> Request {
    match text.parse() {
        Ok(Would::Request(request)) => request,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn urls_are_taken_apart_as_they_stand() {
    let asked = request("POST https://Example.org./a/../b?c#d");
    assert_eq!((asked.scheme, asked.host.as_str(), asked.port), (Scheme::Https, "example.org", 443));
    let call = asked.call.unwrap();
    assert_eq!((call.method.as_str(), call.path.as_str()), ("POST", "/a/../b?c"));
    assert_eq!(request("http://a.org").call.unwrap().path, "/");
    assert_eq!(request("GET http://a.org?x").call.unwrap().path, "/?x");
    assert_eq!(request("GET HTTP://[::1]:8080/").port, 8080);
    assert_eq!(request("GET https://0x7f.1:1").host.as_str(), "127.0.0.1");
}

#[test]
fn other_questions() {
    let connect = |host: &str, port| Would::Connect(HostName::parse(host).unwrap(), port);
    assert_eq!("CONNECT a.org:22".parse(), Ok(connect("a.org", 22)));
    assert_eq!("CONNECT [::1]:22".parse(), Ok(connect("::1", 22)));
    assert_eq!("tool shell".parse(), Ok(Would::Tool("shell".into(), None)));
    assert_eq!(
        "tool shell git push  --force".parse(),
        Ok(Would::Tool("shell".into(), Some("git push  --force".into())))
    );
    assert_eq!("model x-1".parse(), Ok(Would::Model("x-1".into())));
    assert_eq!("change ./a b".parse(), Ok(Would::Change("a b".into())));
}

#[test]
fn what_is_no_question_is_refused_with_what_is_one() {
    for text in [
        "",
        " ",
        "GET",
        "GET a.org",
        "CONNECT a.org",
        "CONNECT",
        "tool",
        "GET ftp://a.org",
        "GET https://",
        "GET https://a:0",
        "GET https://a:x",
        "GET https://u@a.org/",
        "CONNECT ::1",
        "CONNECT a.org:99999",
    ] {
        assert!(text.parse::<Would>().is_err(), "{text:?}");
    }
    assert!("hello".parse::<Would>().unwrap_err().0.contains("METHOD URL"));
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in "(GET |CONNECT |tool |)\\PC{0,30}") {
        let _ = text.parse::<Would>();
    }
}
