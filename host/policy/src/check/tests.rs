// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use crate::policy::{FILE_MAX_BYTES, Policy};
use crate::problem::{PROBLEMS_MAX, Problem};

fn problems(text: &str) -> Vec<Problem> {
    Policy::parse(text, "p.toml").map_or_else(|problems| problems.problems, |_| Vec::new())
}

/// The one problem of a file that begins with a version.
fn one(rest: &str) -> Problem {
    let mut problems = problems(&format!("version = 1\n{rest}"));
    assert_eq!(problems.len(), 1, "{rest}: {problems:#?}");
    problems.remove(0)
}

const RULE: &str = "[[network.rules]]\nname = \"r\"\nhosts = [\"a.org\"]\n";

#[test]
fn the_reference_s_example_is_right() {
    let reference = include_str!("../../../../docs/policy.md");
    let example = reference.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(problems(example), []);
}

#[test]
fn everything_is_told_at_once_each_at_its_place() {
    let text = "version = 2\n[limits]\nvcpus = 0\nmemory_mib = \"12\"\nwall = \"3 parsecs\"\n\n[[network.rules]]\n\
        hosts = [\"a.org\",  \"a b\"]\nport = [1]\naction = \"alow\"\n[workspace]\nmode = 3\n";
    let told: Vec<(usize, usize, String)> =
        problems(text).into_iter().map(|problem| (problem.line, problem.column, problem.field)).collect();
    let expected = [
        (1, 11, "version"),
        (3, 9, "limits.vcpus"),
        (4, 14, "limits.memory_mib"),
        (5, 8, "limits.wall"),
        (7, 1, "network.rules[0].name"),
        (8, 20, "network.rules[0].hosts[1]"),
        (9, 1, "network.rules[0].port"),
        (10, 10, "network.rules[0].action"),
        (12, 8, "workspace.mode"),
    ];
    assert_eq!(told, expected.map(|(line, column, field)| (line, column, field.to_owned())));
}

#[test]
fn a_problem_has_value_accepted_range_and_what_to_do() {
    let problem = one("[limits]\nvcpus = 33\n");
    assert_eq!((problem.value.as_str(), problem.what.as_str()), ("33", "is out of range"));
    assert!(problem.accepted.contains("1 to 32") && !problem.next.is_empty(), "{problem:?}");
    let text = problem.to_string();
    assert!(
        text.starts_with("3:9: limits.vcpus: 33 is out of range; accepted: ") && text.contains("\n  -> "),
        "{text}"
    );
}

#[test]
fn unknown_keys_name_the_nearest_known() {
    for (text, near) in [
        ("[limit]\nvcpus = 1\n", "`limits`"),
        ("[limits]\nmemory = 1\n", "`memory_mib`"),
        ("[budget]\ntoken = 1\n", "`tokens`"),
        ("[childen]\n", "`children`"),
        ("[workspace]\nreadonly = []\n", "`read_only`"),
    ] {
        let problem = one(text);
        assert!(problem.next.contains(near) && problem.what.contains("not a known key"), "{problem:?}");
    }
    let problem = one("zzzzzz = 1\n");
    assert_eq!(problem.next, "take it out");
    assert!(problem.accepted.contains("limits, model"), "{problem:?}");
}

#[test]
fn types_say_how_to_write_them() {
    for (text, next) in [
        ("[budget]\nmoney_usd = 5.00\n", "in quotes"),
        ("[budget]\negress = 1024\n", "in quotes"),
        ("[limits]\nvcpus = \"1\"\n", "without quotes"),
        ("[workspace]\nread_only = \"a\"\n", "in brackets"),
        ("[[workspace]]\nmode = \"review\"\n", "one table"),
        ("[network]\nrules = [1]\n", "as it is accepted"),
        ("[children]\nallowed = \"yes\"\n", "without quotes"),
        ("[limits]\nwall = 1979-05-27\n", "as it is accepted"),
        ("[model]\nprovider = \"anthropic\"\nmodels = [\"a\"]\nkey = \"sk-123\"\n", "in braces"),
    ] {
        let problem = one(text);
        assert!(problem.next.contains(next), "{text}: {problem:?}");
    }
}

#[test]
fn numbers_are_held_on_both_sides_of_their_range() {
    for (good, bad) in [("1", "0"), ("32", "33"), ("0x20", "0x21"), ("0b1", "-1"), ("3_2", "99999999999999999999")] {
        assert_eq!(problems(&format!("version = 1\n[limits]\nvcpus = {good}\n")), [], "{good}");
        assert_eq!(one(&format!("[limits]\nvcpus = {bad}\n")).what, "is out of range", "{bad}");
    }
}

#[test]
fn contradictions_of_rules_are_told() {
    for (text, field, what) in [
        (format!("{RULE}methods = [\"GET\"]\ninspect = false\n"), "network.rules[0].inspect", "need TLS to be ended"),
        (format!("{RULE}schemes = [\"http\"]\ninspect = true\n"), "network.rules[0].inspect", "not about https"),
        (format!("{RULE}schemes = [\"tcp\"]\n"), "network.rules[0].ports", "missing"),
        (
            format!("{RULE}schemes = [\"tcp\"]\nports = [22]\npaths = [\"/\"]\n"),
            "network.rules[0].schemes",
            "no request can be seen",
        ),
        (
            format!("{RULE}action = \"deny\"\nranges = [\"10.0.0.0/8\"]\n"),
            "network.rules[0].ranges",
            "rule that denies",
        ),
        (RULE.replace("a.org", "*"), "network.rules[0].hosts[0]", "anybody can have"),
        (RULE.replace("a.org", "*.co.uk"), "network.rules[0].hosts[0]", "anybody can have"),
        (RULE.replace("a.org", "10.1"), "network.rules[0].hosts[0]", "is private"),
        (RULE.replace("\"a.org\"", "\"a.org\", \"A.org.\""), "network.rules[0].hosts[1]", "twice"),
        (format!("{RULE}ports = [443, 443]\n"), "network.rules[0].ports[1]", "twice"),
        (format!("{RULE}{}", RULE.replace("a.org", "b.org")), "network.rules[1].name", "the name of another"),
        (
            format!("{}action = \"deny\"\n{}", RULE.replace("a.org", "*.org"), RULE.replace("\"r\"", "\"s\"")),
            "network.rules[1]",
            "never reached",
        ),
        (format!("{RULE}{}paths = [\"/x\"]\n", RULE.replace("\"r\"", "\"s\"")), "network.rules[1]", "never reached"),
    ] {
        let problem = one(&text);
        assert!(problem.field == field && problem.what.contains(what), "{text}\n{problem:?}");
        assert!(!problem.next.is_empty(), "{problem:?}");
    }
    assert_eq!(problems(&format!("version = 1\n{}any = true\n", RULE.replace("a.org", "*"))), []);
    let literal = format!("version = 1\n{}ranges = [\"10.0.0.1/32\"]\n", RULE.replace("a.org", "10.1"));
    assert_eq!(problems(&literal), []);
}

#[test]
fn contradictions_of_credentials_are_told() {
    let credential = |rest: &str| format!("{RULE}[[credentials]]\nname = \"c\"\nsecret = {{ env = \"X\" }}\n{rest}");
    for (rest, field, what) in [
        ("hosts = [\"b.org\"]", "credentials[0].hosts[0]", "reached by no rule"),
        ("hosts = [\"a.org\"]\nvalue = \"Bearer\"", "credentials[0].value", "no value"),
        ("hosts = [\"a.org\"]\nvalue = \"{secret}{secret}\"", "credentials[0].value", "no value"),
        ("hosts = [\"a.org\"]\nvalue = \"a\\r\\nb: {secret}\"", "credentials[0].value", "no value"),
        ("hosts = [\"a.org\"]\nvalue = \"{secret}\"\nbasic_user = \"u\"", "credentials[0].value", "beside basic_user"),
        ("hosts = [\"a.org\"]\nbasic_user = \"u:v\"", "credentials[0].basic_user", "no user"),
        ("hosts = [\"a.org\"]\nheader = \"Host\"", "credentials[0].header", "decides where"),
    ] {
        let problem = one(&credential(rest));
        assert!(problem.field == field && problem.what.contains(what), "{rest}\n{problem:?}");
    }
    let broad = one(&credential("hosts = [\"*.org\"]"));
    assert!(broad.what.contains("anybody can have"), "{broad:?}");
    let blind = credential("hosts = [\"a.org\"]").replace("[\"a.org\"]\n[[", "[\"a.org\"]\ninspect = false\n[[");
    let problem = one(&blind);
    assert_eq!((problem.field.as_str(), problem.accepted.as_str()), ("network.rules[0].inspect", "true"));
    let two = format!(
        "{}\n[[credentials]]\nname = \"d\"\nsecret = {{ env = \"X\" }}\nhosts = [\"a.org\"]\n",
        credential("hosts = [\"a.org\"]")
    );
    assert!(one(&two).what.contains("credential `c` too"));
    let clear = credential("hosts = [\"a.org\"]")
        .replace("hosts = [\"a.org\"]\n[[", "hosts = [\"a.org\"]\nschemes = [\"http\"]\n[[");
    assert!(one(&clear).what.contains("reached by no rule"), "a credential is not sent in clear text");
}

#[test]
fn contradictions_elsewhere_are_told() {
    const MODEL: &str = "[model]\nprovider = \"anthropic\"\nmodels = [\"a-*\"]\n";
    for (text, field, what) in [
        (format!("[budget]\nmoney_usd = \"5\"\n{MODEL}"), "model.models[0]", "has no price"),
        (
            format!("[budget]\nmoney_usd = \"5\"\n{MODEL}prices = {{ a-1 = {{ input = \"1\", output = \"1\" }} }}"),
            "model.models[0]",
            "has no price",
        ),
        (MODEL.replace("anthropic", "compatible"), "model.endpoint", "missing"),
        (format!("{MODEL}key = {{ env = \"K\" }}\nendpoint = \"http://a.org\"\n"), "model.endpoint", "clear text"),
        (format!("{MODEL}key = {{ file = \"~/key\" }}\n"), "model.key.file", "absolute"),
        (format!("{MODEL}key = {{ env = \"A=B\" }}\n"), "model.key.env", "variable"),
        (format!("{MODEL}key = {{ command = [\"./x\"] }}\n"), "model.key.command[0]", "relative"),
        ("[[peers]]\nname = \"x\"\n".to_owned(), "peers[0]", "allows nothing"),
        (
            "[[peers]]\nname = \"x\"\nmessages = true\n[[peers]]\nname = \"x\"\nmessages = true\n".to_owned(),
            "peers[1].name",
            "another",
        ),
        ("[workspace]\nread_only = [\"a\", \"a\"]\n".to_owned(), "workspace.read_only[1]", "twice"),
    ] {
        let problem = one(&text);
        assert!(problem.field == field && problem.what.contains(what), "{text}\n{problem:?}");
    }
    let priced = format!(
        "version = 1\n[budget]\nmoney_usd = \"5\"\n{MODEL}prices = {{ \"a-*\" = {{ input = \"1\", output = \"1\" }} }}"
    );
    assert_eq!(problems(&priced), []);
    assert_eq!(
        problems(&format!("version = 1\n{MODEL}key = {{ env = \"K\" }}\nendpoint = \"http://127.0.0.1:1\"\n")),
        []
    );
}

#[test]
fn a_part_that_is_hurt_tells_no_echo_of_its_own_holes() {
    // The rule that the credential needs is wrong: that, and not that the credential is reached by no rule.
    let problem = one(
        "[[network.rules]]\nname = \"r\"\nhosts = [\"a.org\"]\nports = [0]\n[[credentials]]\nname = \"c\"\nhosts = [\"a.org\"]\nsecret = { env = \"X\" }\n",
    );
    assert_eq!(problem.field, "network.rules[0].ports[0]");
}

#[test]
fn a_part_that_is_hurt_hides_nothing_of_those_beside_it() {
    let text = format!(
        "version = 1\n[[network.rules]]\nname = \"bad\"\nhosts = [\"a.org\"]\nmethods = [\"get\"]\n{}",
        RULE.replace("a.org", "*")
    );
    let fields: Vec<String> = problems(&text).into_iter().map(|problem| problem.field).collect();
    assert_eq!(fields, ["network.rules[0].methods[0]", "network.rules[1].hosts[0]"]);
}

#[test]
fn files_that_are_no_policy_are_refused_cheaply_and_in_words() {
    let what = |bytes: &[u8]| Policy::parse(bytes, "p").unwrap_err().problems.remove(0);
    let large = vec![b'#'; 10 << 20];
    assert!(what(&large).what.contains("too large"));
    assert!(Policy::parse([b"version = 1\n".as_slice(), &vec![b'#'; FILE_MAX_BYTES - 12]].concat(), "p").is_ok());
    assert!(what(&vec![b'#'; FILE_MAX_BYTES + 1]).what.contains("too large"));
    assert!(what(b"\xff\xfev\0").what.contains("UTF-16"));
    let bad = what(b"version = 1\nabout = \"\xff\"\n");
    assert_eq!((bad.line, bad.column, bad.accepted.as_str()), (2, 10, "UTF-8"));
    assert!(Policy::parse("\u{feff}version = 1\n", "p").is_ok(), "a byte-order mark is no part of the text");
    assert_eq!(what("\u{feff}verson = 1".as_bytes()).column, 1);
    assert_eq!(what(b"").field, "version");
    assert!(what(b"[limits\n").what.contains("no TOML"));
    assert!(problems("version = 1\nversion = 1\n")[0].what.contains("no TOML"), "a key that stands there twice");
    let deep = format!("version = 1\nabout = {}", "[".repeat(100_000));
    assert!(!problems(&deep).is_empty());
    let dotted = format!("version = 1\n{}a = 1", "a.".repeat(50_000));
    assert!(!problems(&dotted).is_empty());
}

#[test]
fn syntax_errors_are_all_told() {
    let told = problems("version = = 1\n[limits]\nvcpus = \nmemory_mib = 1 2\n");
    let lines: std::collections::BTreeSet<usize> = told.iter().map(|problem| problem.line).collect();
    assert!(lines.len() >= 3, "{told:#?}");
}

#[test]
fn no_more_problems_are_told_than_can_be_read() {
    let text: String = (0..PROBLEMS_MAX + 20).map(|number| format!("x{number} = 1\n")).collect();
    let told = Policy::parse(format!("version = 1\n{text}"), "p").unwrap_err();
    assert_eq!((told.problems.len(), told.more), (PROBLEMS_MAX, 20));
    assert!(told.to_string().ends_with("p: and 20 more"));
}

#[test]
fn nothing_in_a_file_speaks_to_the_terminal() {
    let evil =
        "\"\\u001b]0;x\\u0007\" = 1\nabout = \"\u{202e}\u{200b}\"\n[limits]\nwall = \"\\u001b[2J\"\n[\"a\u{9b}\"]\n";
    let told = Policy::parse(evil, "e\u{1b}[31m").unwrap_err().to_string();
    assert!(told.chars().all(|c| c == '\n' || crate::problem::is_plain(c)), "{told:?}");
}

#[test]
fn too_many_pairs_or_paths_are_refused() {
    let hosts: Vec<String> = (0..200).map(|number| format!("\"h{number}.org\"")).collect();
    let problem =
        one(&format!("[[network.rules]]\nname = \"r\"\nhosts = [{}]\nports = [1, 2, 3, 4, 5, 6]\n", hosts.join(", ")));
    assert!(problem.what.contains("1200 pairs"), "{problem:?}");
}

proptest! {
    #[test]
    fn any_text_is_checked_without_a_panic(text in "(version = 1\n)?(\\[[a-z.]{0,8}\\]\n|[a-z]{0,6} = [\\[\\]{}\"a-z0-9., ]{0,12}\n|\\PC{0,12}\n){0,8}") {
        match Policy::parse(&text, "p") {
            Ok(policy) => prop_assert_eq!(Policy::parse(policy.to_toml(), "p").ok(), Some(policy)),
            Err(problems) => prop_assert!(problems.to_string().chars().all(|c| c == '\n' || crate::problem::is_plain(c))),
        }
    }
}
