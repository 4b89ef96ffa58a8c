// SPDX-License-Identifier: Apache-2.0

use super::*;

const POLICY: &str = r#"
version = 1
[model]
provider = "anthropic"
models = ["small-*"]
[[network.rules]]
name = "first"
hosts = ["a.org"]
methods = ["GET"]
rate = "10/s"
[[network.rules]]
name = "second"
hosts = ["*.b.org", "a.org"]
ranges = ["10.0.0.0/8"]
[[network.rules]]
name = "all"
hosts = ["*"]
any = true
schemes = ["tcp"]
ports = [22]
[[credentials]]
name = "token"
hosts = ["a.org"]
secret = { env = "X" }
[tools]
default = "deny"
rules = { shell = "allow", write = "ask" }
ask_commands = ["git push*"]
[workspace]
mode = "review"
read_only = [".git/**"]
"#;

fn explain(would: &str) -> Explanation {
    Policy::parse(POLICY, "test").unwrap().explain(&would.parse().unwrap())
}

#[test]
fn every_rule_says_why_it_does_not_decide() {
    let told = explain("POST https://a.org/x");
    let says: Vec<&str> = told.rules.iter().map(|one| one.says.as_str()).collect();
    assert_eq!(says, ["is not about the method \"POST\"", "decides: allow", "is not reached"]);
    assert_eq!((told.verdict, told.rule.as_deref()), (Verdict::Allow, Some("second")));
    let notes = told.notes.join("\n");
    assert!(notes.contains("`token`") && notes.contains("TLS is ended") && notes.contains("10.0.0.0/8"), "{notes}");
    let told = explain("GET https://a.org:444/");
    assert_eq!(told.verdict, Verdict::Deny);
    assert!(told.rules.iter().all(|one| one.says.starts_with("is not about https at port 444")), "{told}");
    assert!(told.notes.is_empty());
}

#[test]
fn tunnels_tell_both_ways() {
    let told = explain("CONNECT a.org:443");
    assert_eq!(told.verdict, Verdict::IfInspected);
    assert!(
        told.to_string().contains("allowed if inspected")
            && told.to_string().contains("not TLS in the tunnel is refused"),
        "{told}"
    );
    assert_eq!(explain("CONNECT x.b.org:443").verdict, Verdict::Allow);
    let raw = explain("CONNECT z.org:22");
    assert_eq!((raw.verdict, raw.rule.as_deref()), (Verdict::Allow, Some("all")));
    assert_eq!(explain("CONNECT z.org:23").verdict, Verdict::Deny);
    assert_eq!(explain("CONNECT 127.1:22").verdict, Verdict::Deny, "a literal address is held against the ranges");
    assert!(explain("CONNECT 127.1:22").why.contains("loopback"));
}

#[test]
fn tools_models_and_files() {
    let verdict = |would: &str| explain(would).verdict;
    assert_eq!(verdict("tool shell"), Verdict::Allow);
    assert_eq!(verdict("tool shell git push -f"), Verdict::Ask);
    assert_eq!(verdict("tool write"), Verdict::Ask);
    assert_eq!(verdict("tool fetch"), Verdict::Deny);
    assert!(explain("tool shell").notes[0].contains("not protection"));
    assert_eq!(verdict("model small-1"), Verdict::Allow);
    assert_eq!(verdict("model large"), Verdict::Deny);
    assert_eq!(verdict("change src/x"), Verdict::Ask);
    assert_eq!(verdict("change .git/config"), Verdict::Deny);
}

#[test]
fn what_was_asked_cannot_speak_to_the_terminal() {
    let told = explain("G\u{1b}[2JET https://a.org/\u{1b}]0;x").to_string();
    assert!(!told.contains('\u{1b}'), "{told:?}");
}

#[test]
fn what_is_long_is_told_whole() {
    let told = explain("PATCH https://a.org:444/").why;
    assert!(told.ends_with("about that host are: first, second, all"), "{told}");
}
