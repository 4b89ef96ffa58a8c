// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;

fn w(text: &str) -> Wildcard {
    text.parse().unwrap()
}

fn f(text: &str) -> FileGlob {
    text.parse().unwrap()
}

#[test]
fn a_star_is_any_characters() {
    assert!(
        w("claude-*").matches("claude-x-1") && w("claude-*").matches("claude-") && !w("claude-*").matches("a-claude-1")
    );
    assert!(w("*a*b*").matches("xxaxxbxx") && !w("*a*b*").matches("xxbxxaxx") && w("*").matches(""));
    assert!(!w("abc").matches("ab") && !w("ab").matches("abc"));
    assert!("".parse::<Wildcard>().is_err() && "a\nb".parse::<Wildcard>().is_err());
    assert!("a".repeat(GLOB_MAX_BYTES).parse::<Wildcard>().is_ok());
    assert!("a".repeat(GLOB_MAX_BYTES + 1).parse::<Wildcard>().is_err());
}

#[test]
fn many_stars_do_not_take_for_ever() {
    let pattern = w(&format!("{}b", "*a".repeat(200)));
    let started = std::time::Instant::now();
    assert!(!pattern.matches(&"a".repeat(20_000)));
    // Exponential would not end in the life of the machine; this is to be seen, not to be timed.
    assert!(started.elapsed().as_secs() < 60);
    let deep = f(&["**/a"; 60].join("/"));
    assert!(!deep.matches(&b"a/".repeat(59)[..117]) && deep.matches(&b"a/".repeat(60)[..119]));
}

#[test]
fn files_match_by_segment_and_take_what_is_below_them() {
    assert!(f("docs").matches(b"docs/a/b") && f("docs").matches(b"docs") && !f("docs").matches(b"docs2"));
    assert!(f("docs/*.md").matches(b"docs/a.md") && !f("docs/*.md").matches(b"docs/b/a.md"));
    assert!(f("**/*.lock").matches(b"a/b/c.lock") && f("**/*.lock").matches(b"c.lock"));
    assert!(f("**").matches(b"x") && f("a/**/z").matches(b"a/z") && f("a/**/z").matches(b"a/b/c/z"));
    assert!(f("*").matches(b"\xff\xfe"), "names need not be text");
    assert!(f("docs/*").matches(b"docs/**") && f("docs/*.md").matches(b"docs/*.md"), "files may be called so");
    assert!(!f("docs/*").covers(&f("docs/**")) && f("docs/**").covers(&f("docs/*")) && f("docs").covers(&f("docs/**")));
    for text in ["", "/a", "a/", "a//b", "./a", "a/../b", "a**", "**a/b"] {
        assert!(text.parse::<FileGlob>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn what_holds_another_matches_all_that_it_matches(one in "[ab*]{1,5}", two in "[ab*]{1,5}", text in "[ab]{0,6}") {
        let (one, two) = (w(&one), w(&two));
        prop_assert!(!(one.covers(&two) && two.matches(&text)) || one.matches(&text));
        prop_assert!(one.covers(&one));
    }

    #[test]
    fn file_patterns_hold_no_more_than_they_match(one in "(a|b|\\*|\\*\\*|a\\*)(/(a|b|\\*|\\*\\*)){0,3}", two in "(a|b|\\*|\\*\\*|\\*b)(/(a|b|\\*|\\*\\*)){0,3}", text in "(a|b|ab)(/(a|b|ab)){0,4}") {
        let (one, two) = (f(&one), f(&two));
        prop_assert!(!(one.covers(&two) && two.matches(text.as_bytes())) || one.matches(text.as_bytes()));
        prop_assert!(one.covers(&one));
    }
}
