// SPDX-License-Identifier: Apache-2.0

use super::*;

fn host(text: &str) -> HostPattern {
    text.parse().unwrap()
}

fn path(text: &str) -> PathPattern {
    text.parse().unwrap()
}

#[test]
fn a_star_is_sub_domains_and_not_the_apex() {
    let matches = |pattern: &str, name: &str| host(pattern).matches(&HostName::parse(name).unwrap());
    assert!(matches("*.example.org", "a.example.org") && matches("*.example.org", "b.a.EXAMPLE.org."));
    assert!(!matches("*.example.org", "example.org") && !matches("*.example.org", "badexample.org"));
    assert!(matches("example.org", "Example.ORG") && !matches("example.org", "a.example.org"));
    assert!(matches("*", "example.org") && matches("*", "10.0.0.1"));
    assert!(matches("0x7f.1", "127.0.0.1"), "a pattern is read as hosts are");
    for text in
        ["", "*.", "*a.org", "a.*.org", "**.org", "*.*.org", "*.10.0.0.1", "a.org:443", "https://a.org", "*.[::1]"]
    {
        assert!(text.parse::<HostPattern>().is_err(), "{text}");
    }
}

#[test]
fn careless_patterns_are_broad() {
    for text in ["*", "*.com", "*.co.uk", "*.github.io", "*.amazonaws.com", "*.com.au", "*.nip.io"] {
        assert!(host(text).is_broad(), "{text}");
    }
    for text in ["com", "*.example.org", "example.co.uk", "*.example.co.uk", "*.me.github.io", "*.pythonhosted.org"] {
        assert!(!host(text).is_broad(), "{text}");
    }
}

#[test]
fn of_two_patterns_one_holds_the_other_or_they_have_nothing_in_common() {
    let texts = ["*", "*.org", "*.a.org", "*.b.a.org", "a.org", "b.a.org", "c.b.a.org", "b.org", "10.0.0.1"];
    let names = ["a.org", "b.a.org", "c.b.a.org", "d.c.b.a.org", "b.org", "org", "10.0.0.1", "x.net"];
    for (one, two) in texts.iter().flat_map(|one| texts.iter().map(move |two| (host(one), host(two)))) {
        let both = one.meet(&two);
        for name in names.map(|name| HostName::parse(name).unwrap()) {
            let in_both = one.matches(&name) && two.matches(&name);
            assert_eq!(both.as_ref().is_some_and(|both| both.matches(&name)), in_both, "{one} {two} {name}");
            assert!(!one.covers(&two) || one.matches(&name) || !two.matches(&name), "{one} {two} {name}");
        }
    }
}

#[test]
fn paths_have_a_star_at_the_end_only() {
    assert!(path("/simple/*").matches("/simple/six/") && path("/simple/*").matches("/simple/"));
    assert!(!path("/simple/*").matches("/simple") && !path("/simple").matches("/simple/"));
    assert!(path("/a*").matches("/ab/c"));
    let refused = [
        "", "a", "*", "/a*b", "/*/a", "/a?b", "/a#b", "/a//b", "/./a", "/../a", "/a/..", "/a b", "/a\\b", "/%41",
        "/%2f", "/ä", "/a%2*",
    ];
    for text in refused {
        assert!(text.parse::<PathPattern>().is_err(), "{text}");
    }
    for text in ["/", "/*", "/.well-known/*", "/a/.*", "/a%20b", "/@scope/x"] {
        assert_eq!(path(text).to_string(), text);
    }
    assert!(format!("/{}", "a".repeat(PATH_MAX_BYTES)).parse::<PathPattern>().is_err());
}

#[test]
fn paths_hold_each_other_by_their_beginning() {
    assert!(path("/a*").covers(&path("/ab*")) && path("/a*").covers(&path("/a")) && path("/a*").covers(&path("/a*")));
    assert!(!path("/ab*").covers(&path("/a*")) && !path("/a").covers(&path("/a*")) && !path("/a").covers(&path("/b")));
    assert_eq!(path("/a*").meet(&path("/ab*")), Some(path("/ab*")));
    assert_eq!(path("/a*").meet(&path("/b*")), None);
}

#[test]
fn methods_are_in_capitals() {
    assert_eq!("GET".parse::<Method>().unwrap().as_str(), "GET");
    assert!("M-SEARCH".parse::<Method>().is_ok());
    for text in ["", "get", "GET ", "CONNECT", "G\nT", &"A".repeat(33)] {
        assert!(text.parse::<Method>().is_err(), "{text}");
    }
}
