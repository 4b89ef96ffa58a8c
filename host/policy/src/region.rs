// SPDX-License-Identifier: Apache-2.0
//! The requests that a rule is about, as a product: hosts × (scheme, port) × methods × paths. Patterns are nested or disjoint, so
//! whether one product holds another is exact.

use std::collections::BTreeSet;
use std::fmt;

use crate::network::{Rule, Scheme};
use crate::pattern::{HostPattern, Method, PathPattern};

/// Some requests. `None` for methods: all; for paths: all, those that can be read in several ways included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) hosts: Vec<HostPattern>,
    pub(crate) doors: BTreeSet<(Scheme, u16)>,
    pub(crate) methods: Option<BTreeSet<Method>>,
    pub(crate) paths: Option<Vec<PathPattern>>,
}

impl Region {
    /// What `rule` is about.
    pub(crate) fn of(rule: &Rule) -> Self {
        let mut doors = BTreeSet::new();
        for scheme in &rule.schemes {
            let ports = if rule.ports.is_empty() { scheme.port().into_iter().collect() } else { rule.ports.clone() };
            doors.extend(ports.into_iter().map(|port| (*scheme, port)));
        }
        Self {
            hosts: rule.hosts.clone(),
            doors,
            methods: rule.methods.as_ref().map(|methods| methods.iter().cloned().collect()),
            paths: rule.paths.clone(),
        }
    }

    /// One part for each host and door.
    pub(crate) fn atoms(&self) -> impl Iterator<Item = Self> {
        let pairs = self.hosts.iter().flat_map(|host| self.doors.iter().map(move |door| (host, door)));
        pairs.map(|(host, door)| Self { hosts: vec![host.clone()], doors: BTreeSet::from([*door]), ..self.clone() })
    }

    /// Whether every request of `other` is one of these.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let methods = match (&self.methods, &other.methods) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(others)) => others.is_subset(mine),
        };
        let paths = match (&self.paths, &other.paths) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(others)) => others.iter().all(|path| mine.iter().any(|one| one.covers(path))),
        };
        methods
            && paths
            && other.doors.is_subset(&self.doors)
            && other.hosts.iter().all(|host| self.hosts.iter().any(|one| one.covers(host)))
    }

    /// The requests of both; `None` when there are none.
    pub(crate) fn meet(&self, other: &Self) -> Option<Self> {
        let doors: BTreeSet<_> = self.doors.intersection(&other.doors).copied().collect();
        let hosts = meet_lists(&self.hosts, &other.hosts, HostPattern::meet);
        let methods = match (&self.methods, &other.methods) {
            (None, methods) | (methods, None) => methods.clone(),
            (Some(mine), Some(others)) => Some(mine.intersection(others).cloned().collect()),
        };
        let paths = match (&self.paths, &other.paths) {
            (None, paths) | (paths, None) => paths.clone(),
            (Some(mine), Some(others)) => Some(meet_lists(mine, others, PathPattern::meet)),
        };
        let empty = doors.is_empty()
            || hosts.is_empty()
            || methods.as_ref().is_some_and(BTreeSet::is_empty)
            || paths.as_ref().is_some_and(Vec::is_empty);
        (!empty).then_some(Self { hosts, doors, methods, paths })
    }

    /// Whether it has anything to do with HTTPS.
    pub(crate) fn is_https(&self) -> bool {
        self.doors.iter().any(|(scheme, _)| *scheme == Scheme::Https)
    }
}

/// What is in both lists, each once.
pub(crate) fn meet_lists<T: PartialEq>(mine: &[T], others: &[T], meet: impl Fn(&T, &T) -> Option<T>) -> Vec<T> {
    let mut both = Vec::new();
    for one in mine.iter().flat_map(|one| others.iter().filter_map(|other| meet(one, other)).collect::<Vec<_>>()) {
        if !both.contains(&one) {
            both.push(one);
        }
    }
    both
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.methods {
            Some(methods) => f.write_str(&list(methods))?,
            None => f.write_str("everything")?,
        }
        let doors = self.doors.iter().map(|(scheme, port)| format!("{} at port {port}", scheme.name()));
        write!(f, " to {} ({})", list(&self.hosts), list(doors))?;
        match &self.paths {
            Some(paths) => write!(f, " for {}", list(paths)),
            None => Ok(()),
        }
    }
}

/// A list in words, shortened.
pub(crate) fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    const SHOWN: usize = 8;
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.as_slice() {
        [] => "none".to_owned(),
        items if items.len() > SHOWN => format!("{} and {} more", items[..SHOWN].join(", "), items.len() - SHOWN),
        items => items.join(", "),
    }
}

#[cfg(test)]
mod tests;
