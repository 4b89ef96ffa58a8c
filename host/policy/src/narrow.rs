// SPDX-License-Identifier: Apache-2.0
//! What two policies have in common: for a change while a sandbox runs, which may take away and never give.

use crate::address::Range;
use crate::glob::Wildcard;
use crate::network::Credential;
use crate::pattern::HostPattern;
use crate::policy::{Doc, Policy};
use crate::problem::Problems;
use crate::region::meet_lists;
use crate::section::{Approvals, Budget, Children, Limits, Model, Peer, Tools, Workspace};
use crate::units::Rate;

mod rules;

impl Policy {
    /// What both this policy and `change` allow. Where that cannot be written down, less: of a model with other prices, another
    /// endpoint or another key nothing is left; of names with `*` only those are, of which one holds the other. Limits of a rule
    /// that takes several rules to write down are shared out among those.
    ///
    /// # Errors
    /// The common part is larger than a policy file may be.
    pub fn narrow(&self, change: &Self) -> Result<Self, Problems> {
        let (mine, other) = (&self.doc, &change.doc);
        let mut credentials = credentials(&mine.credentials, &other.credentials);
        let kept: Vec<HostPattern> = credentials.iter().flat_map(|credential| credential.hosts.clone()).collect();
        let rules = rules::meet(mine, other, &kept);
        credentials.retain_mut(|credential| {
            credential.hosts = rules::reached(&credential.hosts, &rules);
            !credential.hosts.is_empty()
        });
        let doc = Doc {
            version: mine.version,
            about: mine.about.clone(),
            limits: limits(&mine.limits, &other.limits),
            budget: budget(&mine.budget, &other.budget),
            model: mine.model.as_ref().zip(other.model.as_ref()).and_then(|(mine, other)| model(mine, other)),
            network: crate::network::Network { rules },
            credentials,
            tools: tools(&mine.tools, &other.tools),
            workspace: workspace(&mine.workspace, &other.workspace),
            children: children(&mine.children, &other.children),
            peers: peers(&mine.peers, &other.peers),
            approvals: Approvals { timeout: mine.approvals.timeout.min(other.approvals.timeout) },
        };
        Self { doc }.checked("the common part of two policies")
    }
}

/// The lesser, where absent is no limit.
fn least<T: Ord>(mine: Option<T>, other: Option<T>) -> Option<T> {
    match (mine, other) {
        (Some(mine), Some(other)) => Some(mine.min(other)),
        (mine, other) => mine.or(other),
    }
}

fn limits(mine: &Limits, other: &Limits) -> Limits {
    Limits {
        vcpus: mine.vcpus.min(other.vcpus),
        memory_mib: mine.memory_mib.min(other.memory_mib),
        disk_mib: mine.disk_mib.min(other.disk_mib),
        processes: mine.processes.min(other.processes),
        wall: least(mine.wall, other.wall),
    }
}

fn budget(mine: &Budget, other: &Budget) -> Budget {
    Budget {
        turns: least(mine.turns, other.turns),
        tool_calls: least(mine.tool_calls, other.tool_calls),
        tokens: least(mine.tokens, other.tokens),
        money_usd: least(mine.money_usd, other.money_usd),
        wall: least(mine.wall, other.wall),
        egress: least(mine.egress, other.egress),
    }
}

fn model(mine: &Model, other: &Model) -> Option<Model> {
    let same = mine.provider == other.provider && mine.endpoint() == other.endpoint() && mine.prices == other.prices;
    let key = match (&mine.key, &other.key) {
        (Some(mine), Some(other)) if mine != other => return None,
        (Some(key), Some(_)) => Some(key.clone()),
        _ => None,
    };
    let meet = |a: &Wildcard, b: &Wildcard| {
        if a.covers(b) { Some(b.clone()) } else { b.covers(a).then(|| a.clone()) }
    };
    let models = meet_lists(&mine.models, &other.models, meet);
    (same && !models.is_empty()).then(|| Model { models, key, ..mine.clone() })
}

fn credentials(mine: &[Credential], others: &[Credential]) -> Vec<Credential> {
    let mut both: Vec<Credential> = Vec::new();
    for one in mine {
        for other in others {
            let same = Credential { name: one.name.clone(), hosts: one.hosts.clone(), ..other.clone() } == *one;
            let hosts = meet_lists(&one.hosts, &other.hosts, HostPattern::meet);
            if !same || hosts.is_empty() {
                continue;
            }
            match both.iter_mut().find(|found| found.name == one.name) {
                Some(found) => found.hosts.extend(hosts),
                None => both.push(Credential { hosts, ..one.clone() }),
            }
        }
    }
    both
}

fn tools(mine: &Tools, other: &Tools) -> Tools {
    let names = mine.rules.keys().chain(other.rules.keys());
    let rules = names.map(|name| (name.clone(), mine.action(name.as_str()).min(other.action(name.as_str())))).collect();
    Tools {
        default: mine.default.min(other.default),
        rules,
        ask_commands: union(&mine.ask_commands, &other.ask_commands),
    }
}

fn workspace(mine: &Workspace, other: &Workspace) -> Workspace {
    Workspace { mode: mine.mode.min(other.mode), read_only: union(&mine.read_only, &other.read_only) }
}

fn children(mine: &Children, other: &Children) -> Children {
    Children {
        allowed: mine.allowed && other.allowed,
        depth: mine.depth.min(other.depth),
        number: mine.number.min(other.number),
        share_percent: mine.share_percent.min(other.share_percent),
        templates: mine.templates.iter().filter(|name| other.templates.contains(name)).cloned().collect(),
    }
}

fn peers(mine: &[Peer], others: &[Peer]) -> Vec<Peer> {
    let both = mine.iter().filter_map(|peer| {
        let other = others.iter().find(|other| other.name == peer.name)?;
        let ports = peer.ports.iter().filter(|port| other.ports.contains(port)).copied().collect();
        let (messages, rate) = (peer.messages && other.messages, rate(peer.rate, other.rate));
        Some(Peer { name: peer.name.clone(), ports, messages, rate })
    });
    both.filter(|peer| peer.messages || !peer.ports.is_empty()).collect()
}

/// As few at once as the fewer, over as long as the longer.
fn rate(mine: Option<Rate>, other: Option<Rate>) -> Option<Rate> {
    match (mine, other) {
        (Some(mine), Some(other)) => Some(mine.meet(other)),
        (mine, other) => mine.or(other),
    }
}

fn ranges(mine: &[Range], others: &[Range]) -> Vec<Range> {
    meet_lists(mine, others, |one, other| one.meet(*other))
}

fn union<T: Clone + PartialEq>(mine: &[T], others: &[T]) -> Vec<T> {
    let more = others.iter().filter(|one| !mine.contains(one));
    mine.iter().chain(more).cloned().collect()
}

#[cfg(test)]
mod tests;
