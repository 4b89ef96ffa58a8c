// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::policy::Policy;

const POLICY: &str = r#"
version = 1
[[network.rules]]
name = "no-admin"
hosts = ["api.a.org"]
paths = ["/admin/*"]
action = "deny"
[[network.rules]]
name = "reads"
hosts = ["*.a.org"]
methods = ["GET", "HEAD"]
[[network.rules]]
name = "posts"
hosts = ["api.a.org"]
methods = ["POST"]
paths = ["/v1/*"]
action = "ask"
[[network.rules]]
name = "blind"
hosts = ["b.org"]
ports = [443, 8443]
[[network.rules]]
name = "asked"
hosts = ["c.org"]
schemes = ["http", "https"]
action = "ask"
[[network.rules]]
name = "ssh"
hosts = ["d.org"]
schemes = ["tcp"]
ports = [22]
[[network.rules]]
name = "intern"
hosts = ["e.org"]
ranges = ["10.0.0.0/8"]
[[network.rules]]
name = "seen"
hosts = ["f.org"]
inspect = true
[[network.rules]]
name = "secret"
hosts = ["g.org"]
[[credentials]]
name = "token"
hosts = ["g.org"]
secret = { env = "X" }
"#;

fn policy() -> Policy {
    Policy::parse(POLICY, "test").unwrap()
}

fn call(scheme: Scheme, host: &str, port: u16, method: &str, path: &str) -> (Verdict, Option<String>) {
    let decision =
        policy().network().decide(&Request::call(scheme, HostName::parse(host).unwrap(), port, method, path));
    (decision.verdict, decision.rule)
}

fn get(host: &str, path: &str) -> Verdict {
    call(Scheme::Https, host, 443, "GET", path).0
}

fn connect(scheme: Scheme, host: &str, port: u16) -> Verdict {
    policy().network().decide(&Request::connect(scheme, HostName::parse(host).unwrap(), port)).verdict
}

#[test]
fn the_first_rule_that_matches_decides_and_nothing_else_is_let_out() {
    assert_eq!(call(Scheme::Https, "api.a.org", 443, "GET", "/admin/x"), (Verdict::Deny, Some("no-admin".into())));
    assert_eq!(call(Scheme::Https, "api.a.org", 443, "GET", "/v1/x"), (Verdict::Allow, Some("reads".into())));
    assert_eq!(call(Scheme::Https, "API.A.ORG.", 443, "POST", "/v1/x?y"), (Verdict::Ask, Some("posts".into())));
    assert_eq!(call(Scheme::Https, "api.a.org", 443, "POST", "/v2"), (Verdict::Deny, None));
    assert_eq!(get("a.org", "/"), Verdict::Deny, "the apex is not below itself");
    assert_eq!(get("nowhere.net", "/"), Verdict::Deny);
    assert_eq!(call(Scheme::Http, "x.a.org", 80, "GET", "/").0, Verdict::Deny, "https only unless it says http");
    assert_eq!(call(Scheme::Https, "x.a.org", 8443, "GET", "/").0, Verdict::Deny);
    assert_eq!(call(Scheme::Https, "x.a.org", 443, "get", "/").0, Verdict::Deny, "methods have case");
    assert_eq!(call(Scheme::Https, "b.org", 8443, "PUT", "/").0, Verdict::Allow);
    assert_eq!(call(Scheme::Http, "c.org", 80, "GET", "/").0, Verdict::Ask);
}

#[test]
fn a_path_that_can_be_read_in_two_ways_is_denied_where_a_rule_has_paths() {
    for path in ["/x/../admin/x", "//admin/x", "/%2e/admin/x", "/admin%2fx", "/.;/admin/x"] {
        assert_eq!(get("api.a.org", path), Verdict::Deny, "{path}");
    }
    assert_eq!(get("api.a.org", "/%61dmin/x"), Verdict::Deny, "the same path, spelt otherwise");
    assert_eq!(get("x.a.org", "/x//y"), Verdict::Allow, "no rule about that host has paths");
}

#[test]
fn a_tunnel_is_allowed_if_inspected_where_requests_matter() {
    assert_eq!(connect(Scheme::Https, "api.a.org", 443), Verdict::IfInspected);
    assert_eq!(connect(Scheme::Https, "x.a.org", 443), Verdict::IfInspected);
    assert_eq!(connect(Scheme::Https, "f.org", 443), Verdict::IfInspected, "it says so");
    assert_eq!(connect(Scheme::Https, "g.org", 443), Verdict::IfInspected, "a credential is put in");
    assert_eq!(connect(Scheme::Https, "b.org", 443), Verdict::Allow);
    assert_eq!(connect(Scheme::Https, "c.org", 443), Verdict::Ask);
    assert_eq!(connect(Scheme::Https, "a.org", 443), Verdict::Deny);
    assert_eq!(connect(Scheme::Tcp, "d.org", 22), Verdict::Allow);
    assert_eq!(connect(Scheme::Https, "d.org", 22), Verdict::Deny);
    assert_eq!(connect(Scheme::Tcp, "b.org", 443), Verdict::Deny, "bytes that are not TLS need tcp");
}

#[test]
fn a_tunnel_that_only_a_rule_with_methods_denies_is_still_seen() {
    let text =
        "version = 1\n[[network.rules]]\nname = \"no\"\nhosts = [\"a.org\"]\nmethods = [\"POST\"]\naction = \"deny\"\n";
    let decide = |text: &str| {
        let policy = Policy::parse(text, "test").unwrap();
        policy.network().decide(&Request::connect(Scheme::Https, HostName::parse("a.org").unwrap(), 443)).verdict
    };
    assert_eq!(decide(text), Verdict::Deny);
    assert_eq!(
        decide(&format!("{text}[[network.rules]]\nname = \"yes\"\nhosts = [\"a.org\"]\n")),
        Verdict::IfInspected
    );
}

#[test]
fn inspection_and_credentials_follow_the_rules() {
    let policy = policy();
    let host = |name: &str| HostName::parse(name).unwrap();
    let inspects = |name: &str| policy.network().inspects(&host(name), 443);
    assert!(inspects("api.a.org") && inspects("f.org") && inspects("g.org"));
    assert!(!inspects("b.org") && !inspects("c.org") && !inspects("nowhere.net"));
    let names: Vec<_> = policy.network().credentials_for(&host("g.org")).map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["token"]);
    assert_eq!(policy.network().credentials_for(&host("x.g.org")).count(), 0);
}

#[test]
fn addresses_are_held_against_the_rule_that_decided() {
    let policy = policy();
    let address = |ip: &str, rule| policy.network().address(ip.parse().unwrap(), rule).is_ok();
    assert!(address("10.1.1.1", Some("intern")) && address("8.8.8.8", Some("intern")));
    assert!(
        !address("10.1.1.1", Some("blind")) && !address("10.1.1.1", None) && !address("10.1.1.1", Some("no such rule"))
    );
    assert!(!address("169.254.169.254", Some("intern")));
}
