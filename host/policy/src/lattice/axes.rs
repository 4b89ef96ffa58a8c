// SPDX-License-Identifier: Apache-2.0
//! Every axis but the network's.

use std::fmt::Display;

use super::Widening;
use crate::network::Credential;
use crate::region::list;
use crate::section::{Action, Budget, Children, Limits, Model, Peer, SHELL_TOOL, Tools, Workspace};
use crate::units::Rate;

/// The axes that are wider, as they are found.
#[derive(Debug, Default)]
pub(super) struct Axes(Vec<Widening>);

impl Axes {
    pub(super) fn found(self) -> Vec<Widening> {
        self.0
    }

    pub(super) fn wider(&mut self, axis: impl Into<String>, child: impl Display, parent: impl Display) {
        self.0.push(Widening { axis: axis.into(), parent: parent.to_string(), child: child.to_string() });
    }

    /// A number of which less is narrower.
    pub(super) fn at_most<T: Ord + Display>(&mut self, axis: &str, child: T, parent: T) {
        if child > parent {
            self.wider(axis, child, parent);
        }
    }

    /// The same, where absent is no limit.
    pub(super) fn within<T: Ord + Display>(&mut self, axis: &str, child: Option<T>, parent: Option<T>) {
        match (child, parent) {
            (_, None) => {}
            (Some(child), Some(parent)) => self.at_most(axis, child, parent),
            (None, Some(parent)) => self.wider(axis, "no limit", parent),
        }
    }

    pub(super) fn limits(&mut self, child: &Limits, parent: &Limits) {
        let Limits { vcpus, memory_mib, disk_mib, processes, wall } = child;
        self.at_most("limits.vcpus", *vcpus, parent.vcpus);
        self.at_most("limits.memory_mib", *memory_mib, parent.memory_mib);
        self.at_most("limits.disk_mib", *disk_mib, parent.disk_mib);
        self.at_most("limits.processes", *processes, parent.processes);
        self.within("limits.wall", *wall, parent.wall);
    }

    pub(super) fn budget(&mut self, child: &Budget, parent: &Budget) {
        let Budget { turns, tool_calls, tokens, money_usd, wall, egress } = child;
        self.within("budget.turns", *turns, parent.turns);
        self.within("budget.tool_calls", *tool_calls, parent.tool_calls);
        self.within("budget.tokens", *tokens, parent.tokens);
        self.within("budget.money_usd", *money_usd, parent.money_usd);
        self.within("budget.wall", *wall, parent.wall);
        self.within("budget.egress", *egress, parent.egress);
    }

    pub(super) fn model(&mut self, child: Option<&Model>, parent: Option<&Model>) {
        let Some(child) = child else { return };
        let Some(parent) = parent else {
            return self.wider("model", "a model", "none");
        };
        if child.provider != parent.provider {
            self.wider("model.provider", child.provider.name(), parent.provider.name());
        }
        if child.endpoint() != parent.endpoint() {
            let text = |model: &Model| model.endpoint().map_or_else(String::new, |endpoint| endpoint.to_string());
            self.wider("model.endpoint", text(child), text(parent));
        }
        for (index, model) in child.models.iter().enumerate() {
            if !parent.models.iter().any(|one| one.covers(model)) {
                self.wider(format!("model.models[{index}]"), model, list(&parent.models));
            }
        }
        // A source of its own would make the host read a file, or run a command, that the parent was not given.
        if child.key.is_some() && child.key != parent.key {
            self.wider("model.key", "another source", "its own");
        }
        // Lower prices would stretch the money.
        if child.prices != parent.prices {
            self.wider("model.prices", "other prices", "its own");
        }
    }

    pub(super) fn credentials(&mut self, child: &[Credential], parent: &[Credential]) {
        for (index, credential) in child.iter().enumerate() {
            let axis = format!("credentials[{index}]");
            let same = parent.iter().filter(|one| {
                let Credential { name: _, hosts: _, header, value, basic_user, secret } = one;
                (header, value, basic_user, secret)
                    == (&credential.header, &credential.value, &credential.basic_user, &credential.secret)
            });
            let same: Vec<&Credential> = same.collect();
            if same.is_empty() {
                self.wider(axis, format!("`{}`", credential.name), "no such header with such a secret");
                continue;
            }
            for host in &credential.hosts {
                if !same.iter().any(|one| one.hosts.iter().any(|pattern| pattern.covers(host))) {
                    self.wider(&axis, host, list(same.iter().flat_map(|one| &one.hosts)));
                }
            }
        }
    }

    pub(super) fn tools(&mut self, child: &Tools, parent: &Tools) {
        self.at_most("tools.default", child.default, parent.default);
        for name in child.rules.keys().chain(parent.rules.keys().filter(|name| !child.rules.contains_key(*name))) {
            let name = name.as_str();
            self.at_most(&format!("tools.rules.{name}"), child.action(name), parent.action(name));
        }
        if child.action(SHELL_TOOL) != Action::Allow {
            return;
        }
        for glob in &parent.ask_commands {
            if !child.ask_commands.iter().any(|one| one.covers(glob)) {
                self.wider("tools.ask_commands", list(&child.ask_commands), glob);
            }
        }
    }

    pub(super) fn workspace(&mut self, child: &Workspace, parent: &Workspace) {
        self.at_most("workspace.mode", child.mode, parent.mode);
        for glob in &parent.read_only {
            if !child.read_only.iter().any(|one| one.covers(glob)) {
                self.wider("workspace.read_only", list(&child.read_only), glob);
            }
        }
    }

    pub(super) fn children(&mut self, child: &Children, parent: &Children) {
        if !child.allowed {
            return;
        }
        self.at_most("children.allowed", child.allowed, parent.allowed);
        self.at_most("children.depth", child.depth, parent.depth);
        self.at_most("children.number", child.number, parent.number);
        self.at_most("children.share_percent", child.share_percent, parent.share_percent);
        for (index, name) in child.templates.iter().enumerate() {
            if !parent.templates.contains(name) {
                self.wider(format!("children.templates[{index}]"), name, list(&parent.templates));
            }
        }
    }

    pub(super) fn peers(&mut self, child: &[Peer], parent: &[Peer]) {
        for (index, peer) in child.iter().enumerate() {
            let axis = format!("peers[{index}]");
            let Some(own) = parent.iter().find(|one| one.name == peer.name) else {
                self.wider(axis, &peer.name, list(parent.iter().map(|one| &one.name)));
                continue;
            };
            for port in peer.ports.iter().filter(|port| !own.ports.contains(port)) {
                self.wider(format!("{axis}.ports"), port, list(&own.ports));
            }
            self.at_most(&format!("{axis}.messages"), peer.messages, own.messages);
            self.rates(&format!("{axis}.rate"), &[peer.rate], own.rate);
        }
    }

    /// Rates that are drawn from one: as many at once, and as many in an hour.
    pub(super) fn rates(&mut self, axis: &str, children: &[Option<Rate>], parent: Option<Rate>) {
        let Some(parent) = parent else { return };
        let all: Option<Vec<Rate>> = children.iter().copied().collect();
        let Some(all) = all else {
            return self.wider(axis, "no limit", parent);
        };
        let at_once: u64 = all.iter().map(|rate| u64::from(rate.count())).sum();
        let in_an_hour: u64 = all.iter().map(|rate| rate.per_hour()).sum();
        if at_once > u64::from(parent.count()) || in_an_hour > parent.per_hour() {
            self.wider(axis, list(all), parent);
        }
    }

    /// Amounts that are drawn from one.
    pub(super) fn sums(&mut self, axis: &str, children: &[Option<u64>], parent: Option<u64>) {
        let Some(parent) = parent else { return };
        let sum = children.iter().copied().try_fold(0_u64, |sum, one| Some(sum.saturating_add(one?)));
        match sum {
            None => self.wider(axis, "no limit", parent),
            Some(sum) => self.at_most(axis, sum, parent),
        }
    }
}
