// SPDX-License-Identifier: Apache-2.0
//! The network's axis. Every host and port of every rule of the child that does not deny has to lie in one rule of the parent that
//! says at least as much; and whatever rule of the parent comes before that one, and has to do with it, must say as much too, or
//! be taken out of the child's rule by one that comes before it in the child.

use std::collections::BTreeSet;

use super::axes::Axes;
use crate::network::{Credential, Rule};
use crate::pattern::HostPattern;
use crate::policy::Policy;
use crate::region::{Region, list, meet_lists};
use crate::section::Action;

/// Why a part of a rule is wider: in words, for [`super::Widening::parent`].
type Why = String;

/// Rules of a policy with what they are about.
struct Side<'a> {
    rules: Vec<(&'a Rule, Region)>,
    credentials: &'a [Credential],
}

impl<'a> Side<'a> {
    fn of(policy: &'a Policy) -> Self {
        let rules = policy.doc.network.rules.iter().map(|rule| (rule, Region::of(rule))).collect();
        Self { rules, credentials: &policy.doc.credentials }
    }
}

impl Axes {
    pub(super) fn network(&mut self, child: &Policy, parent: &Policy) {
        let (child, parent) = (Side::of(child), Side::of(parent));
        // Which rules of the child draw from the limits of which rule of the parent.
        let mut draws: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); parent.rules.len()];
        for (index, (rule, region)) in child.rules.iter().enumerate() {
            if rule.action == Action::Deny {
                continue;
            }
            for atom in region.atoms() {
                match held(&child, index, &atom, &parent) {
                    Ok(from) => {
                        for at in from {
                            draws[at].insert(index);
                        }
                    }
                    Err(why) => {
                        self.wider(format!("network.rules[{index}]"), format!("{atom} by rule `{}`", rule.name), why);
                    }
                }
            }
        }
        for ((rule, _), drawn) in parent.rules.iter().zip(draws).filter(|(_, drawn)| !drawn.is_empty()) {
            let drawn: Vec<&Rule> = drawn.into_iter().map(|index| child.rules[index].0).collect();
            let axis = |field: &str| format!("{field} of rules {}", list(drawn.iter().map(|rule| &rule.name)));
            let connections: Vec<_> = drawn.iter().map(|rule| rule.connections.map(u64::from)).collect();
            let bytes: Vec<_> = drawn.iter().map(|rule| rule.bytes.map(crate::Bytes::get)).collect();
            let rates: Vec<_> = drawn.iter().map(|rule| rule.rate).collect();
            self.sums(&axis("connections"), &connections, rule.connections.map(u64::from));
            self.sums(&axis("bytes"), &bytes, rule.bytes.map(crate::Bytes::get));
            self.rates(&axis("rate"), &rates, rule.rate);
        }
    }
}

/// Proves that the part `atom` of the child's rule at `index` is held by the parent: by which of its rules.
fn held(child: &Side<'_>, index: usize, atom: &Region, parent: &Side<'_>) -> Result<Vec<usize>, Why> {
    let rule = child.rules[index].0;
    let mut from = Vec::new();
    for (at, (own, region)) in parent.rules.iter().enumerate() {
        let Some(common) = region.meet(atom) else { continue };
        let whole = region.covers(atom);
        // In the child, an earlier rule decides about all of the part that this rule of the parent is about.
        if child.rules[..index].iter().any(|(_, earlier)| earlier.covers(&common)) {
            if whole {
                return Ok(from);
            }
            continue;
        }
        says_as_much(child, rule, atom, own, parent)?;
        if !whole && region.paths.is_some() && atom.paths.is_none() {
            return Err(format!("rule `{}`, which denies paths that can be read in several ways", own.name));
        }
        from.push(at);
        if whole {
            return Ok(from);
        }
    }
    Err("no rule that allows all of that".to_owned())
}

/// Whether the parent's rule `own` says at least as much about `atom` as the child's `rule` does.
fn says_as_much(child: &Side<'_>, rule: &Rule, atom: &Region, own: &Rule, parent: &Side<'_>) -> Result<(), Why> {
    if rule.action > own.action {
        return Err(format!("rule `{}` with the action {}", own.name, own.action));
    }
    if atom.is_https() && !rule.wants_inspection() {
        let named =
            |side: &Side<'_>| side.credentials.iter().flat_map(|credential| &credential.hosts).cloned().collect();
        let (by_parent, by_child): (Vec<HostPattern>, Vec<HostPattern>) = (named(parent), named(child));
        // Where the parent ends TLS, the child has to.
        let seen = if own.wants_inspection() {
            atom.hosts.clone()
        } else {
            meet_lists(&atom.hosts, &by_parent, HostPattern::meet)
        };
        if !seen.iter().all(|host| by_child.iter().any(|pattern| pattern.covers(host))) {
            return Err(format!("rule `{}`, where TLS is ended to see the requests", own.name));
        }
    }
    match rule.ranges.iter().find(|range| !own.ranges.iter().any(|one| one.covers(**range))) {
        Some(range) => Err(format!("rule `{}` without the range {range}", own.name)),
        None => Ok(()),
    }
}
