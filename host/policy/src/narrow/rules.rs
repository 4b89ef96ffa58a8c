// SPDX-License-Identifier: Apache-2.0
//! Rules of two policies, each the first that matches: every pair of them that has requests in common, in the order of the pairs,
//! is a rule of what they have in common; whatever one of them does not match is denied there too.

use std::collections::BTreeSet;

use super::{least, ranges, rate};
use crate::address;
use crate::names::{NAME_MAX_BYTES, Name};
use crate::network::{Credential, Rule, Scheme};
use crate::pattern::HostPattern;
use crate::policy::Doc;
use crate::region::{Region, meet_lists};
use crate::section::Action;
use crate::units::Bytes;

/// A part that two rules have in common.
struct Common<'a> {
    one: &'a Rule,
    two: &'a Rule,
    region: Region,
    /// Whether one of the policies ends TLS there.
    inspect: bool,
}

/// The rules of what `mine` and `other` have in common; `kept` are the hosts of the credentials that they have in common.
pub(super) fn meet(mine: &Doc, other: &Doc, kept: &[HostPattern]) -> Vec<Rule> {
    let mut parts: Vec<Common<'_>> = Vec::new();
    for one in &mine.network.rules {
        for two in &other.network.rules {
            let Some(region) = Region::of(one).meet(&Region::of(two)) else { continue };
            let inspects = |region: &Region| {
                seen(one, region, &mine.credentials, kept) || seen(two, region, &other.credentials, kept)
            };
            for region in split(&region, inspects(&region)) {
                if !parts.iter().any(|earlier| earlier.region.covers(&region)) {
                    let inspect = inspects(&region);
                    parts.push(Common { one, two, region, inspect });
                }
            }
        }
    }
    let mut rules: Vec<Rule> = Vec::new();
    for part in &parts {
        // What several parts draw from is shared out among them.
        let draws = |rule: &Rule| {
            parts.iter().filter(|part| part.gives() && (same(part.one, rule) || same(part.two, rule))).count()
        };
        let found = part.rules(draws(part.one), draws(part.two), &rules);
        rules.extend(found);
    }
    rules
}

fn same(one: &Rule, two: &Rule) -> bool {
    std::ptr::eq(one, two)
}

/// Of `hosts` what some rule lets requests over HTTPS out to, each once.
pub(super) fn reached(hosts: &[HostPattern], rules: &[Rule]) -> Vec<HostPattern> {
    let out = rules.iter().filter(|rule| rule.action != Action::Deny && rule.schemes.contains(&Scheme::Https));
    let out: Vec<&HostPattern> = out.flat_map(|rule| &rule.hosts).collect();
    let kept: BTreeSet<&HostPattern> =
        hosts.iter().filter(|host| out.iter().any(|pattern| pattern.meet(host).is_some())).collect();
    kept.into_iter().cloned().collect()
}

/// The region as rules can write it: one for each scheme, or one for all if they have the same ports or each its own, and if
/// nothing of it that is looked into is a tunnel of any bytes.
fn split(region: &Region, inspect: bool) -> Vec<Region> {
    let schemes: BTreeSet<Scheme> = region.doors.iter().map(|(scheme, _)| *scheme).collect();
    let ports: BTreeSet<u16> = region.doors.iter().map(|(_, port)| *port).collect();
    let usual = region.doors.iter().all(|(scheme, port)| scheme.port() == Some(*port));
    let alike = region.doors.len() == schemes.len() * ports.len();
    if usual || (alike && !(inspect && schemes.contains(&Scheme::Tcp))) {
        return vec![region.clone()];
    }
    let of = |scheme| region.doors.iter().filter(move |(one, _)| *one == scheme).copied().collect();
    schemes.into_iter().map(|scheme| Region { doors: of(scheme), ..region.clone() }).collect()
}

/// Whether its policy ends TLS for `rule` somewhere in `part`, where no credential that is kept says so.
fn seen(rule: &Rule, part: &Region, credentials: &[Credential], kept: &[HostPattern]) -> bool {
    let lost = |credential: &Credential| {
        let named = meet_lists(&credential.hosts, &part.hosts, HostPattern::meet);
        named.iter().any(|host| !kept.iter().any(|pattern| pattern.covers(host)))
    };
    part.is_https() && (rule.wants_inspection() || credentials.iter().any(lost))
}

impl Common<'_> {
    fn gives(&self) -> bool {
        self.one.action.min(self.two.action) != Action::Deny
    }

    /// What both rules say of the part: a rule, and before it one that denies literal addresses that only one of the two names.
    /// From the limits of each is taken one of so many shares; where nothing is left, it is denied.
    fn rules(&self, shares_of_one: usize, shares_of_two: usize, taken: &[Rule]) -> Vec<Rule> {
        let Self { one, two, region, .. } = self;
        let share = |limit: u64, shares: usize| limit / u64::try_from(shares.max(1)).unwrap_or(u64::MAX);
        let shared = |limit: fn(&Rule) -> Option<u64>| {
            least(
                limit(one).map(|limit| share(limit, shares_of_one)),
                limit(two).map(|limit| share(limit, shares_of_two)),
            )
        };
        let connections = shared(|rule| rule.connections.map(u64::from));
        let bytes = shared(|rule| rule.bytes.map(Bytes::get));
        let rates = [(one.rate, shares_of_one), (two.rate, shares_of_two)];
        let [first, second] = rates.map(|(rate, shares)| rate.map(|rate| rate.share(shares)));
        let nothing = connections == Some(0) || bytes == Some(0) || first == Some(None) || second == Some(None);
        let action = if nothing { Action::Deny } else { one.action.min(two.action) };
        let ranges = ranges(&one.ranges, &two.ranges);
        let named = |host: &HostPattern| match host {
            HostPattern::Exact(host) => host.address().is_none_or(|ip| address::admit(ip, &ranges).is_ok()),
            _ => true,
        };
        let (hosts, unnamed): (Vec<_>, Vec<_>) =
            region.hosts.iter().cloned().partition(|host| action == Action::Deny || named(host));
        let mut found: Vec<Rule> = Vec::new();
        for (hosts, action) in
            [(unnamed, Action::Deny), (hosts, action)].into_iter().filter(|(hosts, _)| !hosts.is_empty())
        {
            let names = taken.iter().chain(&found).map(|rule| rule.name.as_str()).collect();
            let Some(name) = name(one, two, &names) else { continue };
            let mut rule = self.denial(name, hosts);
            if action != Action::Deny {
                rule.action = action;
                rule.inspect = (self.inspect && !rule.is_about_requests()).then_some(true);
                rule.ranges.clone_from(&ranges);
                rule.rate = rate(first.flatten(), second.flatten());
                rule.connections = connections.and_then(|number| u32::try_from(number).ok());
                rule.bytes = bytes.map(Bytes::new);
            }
            // Without the hosts that are denied there may be nothing left that is new.
            let about = Region::of(&rule);
            if !taken.iter().chain(&found).any(|earlier| Region::of(earlier).covers(&about)) {
                found.push(rule);
            }
        }
        found
    }

    /// A rule about these hosts of the part that denies.
    fn denial(&self, name: Name, hosts: Vec<HostPattern>) -> Rule {
        let region = &self.region;
        let usual = region.doors.iter().all(|(scheme, port)| scheme.port() == Some(*port));
        let ports: BTreeSet<u16> = region.doors.iter().map(|(_, port)| *port).collect();
        let schemes: BTreeSet<Scheme> = region.doors.iter().map(|(scheme, _)| *scheme).collect();
        Rule {
            name,
            action: Action::Deny,
            any: hosts.iter().any(HostPattern::is_broad),
            hosts,
            schemes: schemes.into_iter().collect(),
            ports: if usual { Vec::new() } else { ports.into_iter().collect() },
            methods: region.methods.as_ref().map(|methods| methods.iter().cloned().collect()),
            paths: region.paths.clone(),
            inspect: None,
            ranges: Vec::new(),
            rate: None,
            connections: None,
            bytes: None,
        }
    }
}

/// A name that says where the rule is from, and that is none of `taken`.
fn name(one: &Rule, two: &Rule, taken: &BTreeSet<&str>) -> Option<Name> {
    let (one, two) = (one.name.as_str(), two.name.as_str());
    let both = if one == two { one.to_owned() } else { format!("{one}+{two}") };
    let base = &both[..both.len().min(NAME_MAX_BYTES - 6)];
    let numbered = (2..=taken.len() + 2).map(|n| format!("{base}.{n}"));
    let mut names = std::iter::once(both.clone()).filter(|name| name.len() <= NAME_MAX_BYTES).chain(numbered);
    names.find(|name| !taken.contains(name.as_str())).and_then(|name| name.parse().ok())
}
