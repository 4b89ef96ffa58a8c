// SPDX-License-Identifier: Apache-2.0
//! What contradicts itself, or says nothing, in the network's sections.

use super::sense::{same_name, twice};
use super::shape::Walk;
use crate::address;
use crate::network::{Credential, Rule, SECRET_MARK, Scheme};
use crate::pattern::HostPattern;
use crate::policy::Doc;
use crate::region::Region;
use crate::section::Action;

/// Most pairs of a host and a port in all rules: what a child's policy is held against takes time.
const PAIRS_MAX: usize = 1024;
/// Most paths in all rules.
const PATHS_MAX: usize = 1024;

/// A rule by itself.
pub(super) fn rule(rule: &Rule, field: &str, walk: &mut Walk<'_>) {
    lists(rule, field, walk);
    hosts(rule, field, walk);
    contradictions(rule, field, walk);
}

/// Rules beside each other.
pub(super) fn rules(rules: &[Rule], walk: &mut Walk<'_>) {
    let regions: Vec<Region> = rules.iter().map(Region::of).collect();
    let pairs: usize = regions.iter().map(|region| region.hosts.len() * region.doors.len()).sum();
    let paths: usize = rules.iter().filter_map(|rule| rule.paths.as_ref()).map(Vec::len).sum();
    for (what, count, max) in [("pairs of a host and a port", pairs, PAIRS_MAX), ("paths", paths, PATHS_MAX)] {
        if count > max {
            let (what, accepted) = (format!("has {count} {what} in all rules"), format!("at most {max}"));
            return walk.tell("network.rules", &what, &accepted, "use *.name patterns, and fewer ports or paths");
        }
    }
    same_name(rules.iter().map(|rule| rule.name.as_str()), "network.rules", walk);
    for index in 0..rules.len() {
        if let Some(earlier) = regions[..index].iter().position(|earlier| earlier.covers(&regions[index])) {
            let earlier = &rules[earlier];
            let what =
                format!("is never reached: rule `{}` before it says {} to all of that", earlier.name, earlier.action);
            walk.tell(
                &format!("network.rules[{index}]"),
                &what,
                "rules that decide something",
                "move it up, or take one of the two out",
            );
        }
    }
}

fn lists(rule: &Rule, field: &str, walk: &mut Walk<'_>) {
    twice(&rule.hosts, &format!("{field}.hosts"), walk);
    twice(&rule.ports, &format!("{field}.ports"), walk);
    twice(&rule.ranges, &format!("{field}.ranges"), walk);
    twice(rule.methods.as_deref().unwrap_or_default(), &format!("{field}.methods"), walk);
    twice(rule.paths.as_deref().unwrap_or_default(), &format!("{field}.paths"), walk);
    let schemes: Vec<&str> = rule.schemes.iter().map(|scheme| scheme.name()).collect();
    twice(&schemes, &format!("{field}.schemes"), walk);
}

fn hosts(rule: &Rule, field: &str, walk: &mut Walk<'_>) {
    for (index, pattern) in rule.hosts.iter().enumerate() {
        let field = format!("{field}.hosts[{index}]");
        if pattern.is_broad() && !rule.any && rule.action != Action::Deny {
            let next = "name the hosts; or, if it is meant, add `any = true` to the rule";
            walk.tell(&field, "gives names that anybody can have", "narrower patterns, or any = true", next);
        }
        let HostPattern::Exact(host) = pattern else { continue };
        let Some(address) = host.address().filter(|_| rule.action != Action::Deny) else { continue };
        if let Err(refused) = address::admit(address, &rule.ranges) {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let next = format!("if it is meant, add ranges = [\"{address}/{bits}\"] to the rule");
            walk.tell(
                &field,
                &format!("is {}, and no range of the rule names it", refused.what),
                "public addresses, or ranges",
                &next,
            );
        }
    }
}

fn contradictions(rule: &Rule, field: &str, walk: &mut Walk<'_>) {
    let at = |name: &str| format!("{field}.{name}");
    let has = |scheme| rule.schemes.contains(&scheme);
    if has(Scheme::Tcp) {
        if rule.ports.is_empty() {
            walk.tell(&at("ports"), "is missing", "ports", "tcp has no usual port: add ports = [...]");
        }
        if rule.wants_inspection() {
            let next = "make a rule of its own for tcp, without methods, paths and inspect";
            walk.tell(&at("schemes"), "has tcp, where no request can be seen", "http and https", next);
        }
    }
    if rule.inspect == Some(false) && has(Scheme::Https) && rule.is_about_requests() {
        let next = "take inspect out, or methods and paths";
        walk.tell(&at("inspect"), "is false, and methods or paths need TLS to be ended", "true", next);
    }
    if rule.inspect == Some(true) && !has(Scheme::Https) {
        walk.tell(&at("inspect"), "is true, and the rule is not about https", "rules about https", "take inspect out");
    }
    if rule.action != Action::Deny {
        return;
    }
    let gives = [
        ("ranges", !rule.ranges.is_empty()),
        ("rate", rule.rate.is_some()),
        ("connections", rule.connections.is_some()),
        ("bytes", rule.bytes.is_some()),
        ("inspect", rule.inspect == Some(true)),
    ];
    for (name, _) in gives.into_iter().filter(|(_, is_set)| *is_set) {
        walk.tell(&at(name), "is set in a rule that denies", "rules that allow or ask", "take it out");
    }
}

/// A credential by itself.
pub(super) fn credential(credential: &Credential, field: &str, walk: &mut Walk<'_>) {
    let at = |name: &str| format!("{field}.{name}");
    twice(&credential.hosts, &at("hosts"), walk);
    let fit = |text: &str| text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) && text.trim() == text;
    if let Some(value) = &credential.value {
        if value.matches(SECRET_MARK).count() != 1 || !fit(value) {
            let accepted = "visible ASCII with {secret} in it once";
            walk.tell(&at("value"), "is no value of a header with a secret", accepted, "such as \"Bearer {secret}\"");
        }
        if credential.basic_user.is_some() {
            walk.tell(&at("value"), "is set beside basic_user", "one of the two", "take one out");
        }
    }
    if credential.basic_user.as_ref().is_some_and(|user| user.contains(':') || !fit(user)) {
        walk.tell(&at("basic_user"), "is no user of the Basic scheme", "visible ASCII without a colon", "change it");
    }
    for (number, _) in credential.hosts.iter().enumerate().filter(|(_, host)| host.is_broad()) {
        let field = at(&format!("hosts[{number}]"));
        walk.tell(&field, "gives the secret to names that anybody can have", "narrower patterns", "name the hosts");
    }
}

/// Credentials beside each other.
pub(super) fn credentials(credentials: &[Credential], walk: &mut Walk<'_>) {
    same_name(credentials.iter().map(|credential| credential.name.as_str()), "credentials", walk);
    for (index, credential) in credentials.iter().enumerate() {
        for (number, host) in credential.hosts.iter().enumerate() {
            let clash = credentials[..index].iter().find(|earlier| {
                earlier.header == credential.header && earlier.hosts.iter().any(|one| one.meet(host).is_some())
            });
            if let Some(earlier) = clash {
                let what = format!("is a host of credential `{}` too, with the same header", earlier.name);
                let field = format!("credentials[{index}].hosts[{number}]");
                walk.tell(&field, &what, "one credential for a header of a host", "take it out of one of the two");
            }
        }
    }
}

/// Credentials where no request goes, and rules that do not let them be put in.
pub(super) fn reach(doc: &Doc, walk: &mut Walk<'_>) {
    let rules = || doc.network.rules.iter().enumerate().filter(|(_, rule)| rule.action != Action::Deny);
    let meets = |rule: &Rule, host: &HostPattern| {
        rule.schemes.contains(&Scheme::Https) && rule.hosts.iter().any(|one| one.meet(host).is_some())
    };
    for (index, credential) in doc.credentials.iter().enumerate() {
        for (number, host) in credential.hosts.iter().enumerate() {
            if !rules().any(|(_, rule)| meets(rule, host)) {
                let next = "add a rule that allows it over https, or take it out here";
                walk.tell(
                    &format!("credentials[{index}].hosts[{number}]"),
                    "is reached by no rule",
                    "hosts that a rule allows",
                    next,
                );
            }
            for (at, _) in rules().filter(|(_, rule)| rule.inspect == Some(false) && meets(rule, host)) {
                let what = format!("is false, and credential `{}` is put into requests to {host}", credential.name);
                walk.tell(
                    &format!("network.rules[{at}].inspect"),
                    &what,
                    "true",
                    "take inspect out, or the credential",
                );
            }
        }
    }
}
