// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;

fn clear(text: &str) -> Option<String> {
    match Path::read(text) {
        Path::Clear(path) => Some(path),
        Path::Ambiguous(_) => None,
    }
}

#[test]
fn a_path_has_one_spelling() {
    assert_eq!(clear("/simple/six/?a=/../b").as_deref(), Some("/simple/six/"));
    assert_eq!(clear("/%73imple/%7Euser").as_deref(), Some("/simple/~user"));
    assert_eq!(clear("/a%c3%a4").as_deref(), Some("/a%C3%A4"));
    assert_eq!(clear("/a;x=1").as_deref(), Some("/a;x=1"));
    assert_eq!(clear("/...").as_deref(), Some("/..."));
}

#[test]
fn what_servers_read_in_several_ways_is_ambiguous() {
    let ambiguous = [
        "",
        "a",
        "*",
        "/a/../b",
        "/a/..",
        "/..",
        "/./a",
        "/a/%2e%2e/b",
        "/a/%2E./b",
        "/a/.%2e",
        "/a//b",
        "//a",
        "/a%2fb",
        "/a%5cb",
        "/a\\b",
        "/a%252e",
        "/a%00",
        "/a%0d%0a",
        "/a%zz",
        "/a%",
        "/a%2",
        "/..;/a",
        "/.;x/a",
        "/a b",
        "/a\tb",
        "/ä",
        "/a#b",
        "http://h/a",
    ];
    for text in ambiguous {
        assert_eq!(clear(text), None, "{text:?}");
    }
}

proptest! {
    #[test]
    fn reading_is_stable_and_holds_no_dot_segment(text in "/[a-z./%0-9A-F;?]{0,30}") {
        if let Some(path) = clear(&text) {
            prop_assert_eq!(clear(&path), Some(path.clone()));
            prop_assert!(!path.contains("/../") && !path.contains("//") && !path.contains("%2E") && !path.contains("%2F"));
        }
    }
}
