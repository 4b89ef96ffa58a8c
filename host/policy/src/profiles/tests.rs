// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::decide::Verdict;
use crate::policy::Policy;
use crate::section::Mode;

fn verdict(profile: &str, would: &str) -> Verdict {
    Policy::profile(profile).unwrap().explain(&would.parse().unwrap()).verdict
}

const REQUESTS: [&str; 8] = [
    "GET https://pypi.org/simple/six/",
    "POST https://pypi.org/legacy/",
    "GET https://example.org/",
    "GET http://example.org/",
    "CONNECT example.org:22",
    "GET http://127.0.0.1/",
    "GET http://169.254.169.254/latest/meta-data/",
    "GET https://[::ffff:10.0.0.1]/",
];

#[test]
fn every_profile_is_right_and_says_what_it_is_for() {
    for profile in PROFILES {
        let policy = Policy::parse(profile.text, profile.name).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(policy.about().is_some_and(|about| about.len() > 20), "{}", profile.name);
        assert!(
            !policy.children().allowed && policy.peers().is_empty() && policy.credentials().is_empty(),
            "{}",
            profile.name
        );
        assert!(policy.limits().wall.is_some(), "{}: nothing runs for ever", profile.name);
        assert!(policy.workspace().mode <= Mode::Review, "{}: nothing is applied unseen", profile.name);
    }
    assert_eq!(Policy::profile("no-such-profile"), None);
}

#[test]
fn offline_reaches_nothing() {
    for request in REQUESTS {
        assert_eq!(verdict("offline", request), Verdict::Deny, "{request}");
    }
    assert_eq!(verdict("offline", "model claude-x"), Verdict::Deny);
    assert_eq!(verdict("offline", "tool shell"), Verdict::Allow);
}

#[test]
fn package_install_reads_from_registries_and_nothing_else() {
    assert_eq!(verdict("package-install", REQUESTS[0]), Verdict::Allow);
    assert_eq!(verdict("package-install", "CONNECT pypi.org:443"), Verdict::IfInspected);
    for registry in [
        "registry.npmjs.org/six",
        "static.crates.io/x",
        "proxy.golang.org/x",
        "deb.debian.org/debian/",
        "rubygems.org/x",
        "files.pythonhosted.org/x",
    ] {
        assert_eq!(verdict("package-install", &format!("GET https://{registry}")), Verdict::Allow, "{registry}");
    }
    assert_eq!(verdict("package-install", "GET http://deb.debian.org/debian/"), Verdict::Allow);
    for request in &REQUESTS[1..] {
        assert_eq!(verdict("package-install", request), Verdict::Deny, "{request}");
    }
    assert_eq!(verdict("package-install", "GET http://pypi.org/simple/"), Verdict::Deny, "in clear text");
}

#[test]
fn code_review_has_a_model_and_changes_nothing() {
    for request in REQUESTS {
        assert_eq!(verdict("code-review", request), Verdict::Deny, "{request}");
    }
    assert_eq!(verdict("code-review", "model claude-sonnet"), Verdict::Allow);
    for file in ["a", "src/x.rs", ".git/config"] {
        assert_eq!(verdict("code-review", &format!("change {file}")), Verdict::Deny, "{file}");
    }
}

#[test]
fn full_internet_is_public_only() {
    let name = "full-internet-no-private";
    for request in &REQUESTS[..4] {
        assert_eq!(verdict(name, request), Verdict::Allow, "{request}");
    }
    for request in &REQUESTS[4..] {
        assert_eq!(verdict(name, request), Verdict::Deny, "{request}");
    }
    let policy = Policy::profile(name).unwrap();
    for address in ["10.0.0.1", "192.168.1.1", "127.0.0.1", "::1", "169.254.169.254", "64:ff9b::a00:1"] {
        assert!(policy.network().address(address.parse().unwrap(), Some("internet")).is_err(), "{address}");
    }
}

#[test]
fn profiles_that_are_narrower_are_proved_to_be() {
    let wide = Policy::profile("full-internet-no-private").unwrap();
    for name in ["offline", "package-install"] {
        let policy = Policy::profile(name).unwrap();
        assert!(
            Policy::narrower_or_equal(&policy, &wide).is_ok(),
            "{name}: {:?}",
            Policy::narrower_or_equal(&policy, &wide)
        );
        assert!(Policy::narrower_or_equal(&wide, &policy).is_err(), "{name}");
    }
}
