// SPDX-License-Identifier: Apache-2.0
//! Which policy is narrower than which, on every axis. In doubt it is wider: a refusal costs a question, a mistake the sandbox.

use std::fmt;

use serde::Serialize;

use crate::policy::Policy;
use crate::section::Children;

mod axes;
mod network;

use axes::Axes;

/// Most widenings that are told at once.
pub(crate) const WIDENINGS_MAX: usize = 64;

/// One axis on which a child's policy is wider than its parent's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Widening {
    /// Which, as the field of the child's file: `budget.tokens`, `network.rules[2]`.
    pub axis: String,
    /// What the parent has.
    pub parent: String,
    /// What the child asks for.
    pub child: String,
}

/// A policy that was proved to be no wider than another: what a child may be started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narrower(Policy);

impl Narrower {
    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.0
    }

    /// The policy.
    #[must_use]
    pub fn into_policy(self) -> Policy {
        self.0
    }
}

impl fmt::Display for Widening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is wider: {} is asked for, the parent has {}", self.axis, self.child, self.parent)
    }
}

impl Policy {
    /// Proves that `child` allows nothing that `parent` does not, on every axis. Equal is narrow enough: for a child sandbox call
    /// [`Policy::child`], which counts the depth down.
    ///
    /// # Errors
    /// The axes on which it is wider, or may be: never empty.
    pub fn narrower_or_equal(child: &Self, parent: &Self) -> Result<Narrower, Vec<Widening>> {
        let mut axes = Axes::default();
        let (c, p) = (&child.doc, &parent.doc);
        axes.limits(&c.limits, &p.limits);
        axes.budget(&c.budget, &p.budget);
        axes.model(c.model.as_ref(), p.model.as_ref());
        axes.network(child, parent);
        axes.credentials(&c.credentials, &p.credentials);
        axes.tools(&c.tools, &p.tools);
        axes.workspace(&c.workspace, &p.workspace);
        axes.children(&c.children, &p.children);
        axes.peers(&c.peers, &p.peers);
        axes.at_most("approvals.timeout", c.approvals.timeout, p.approvals.timeout);
        let mut found = axes.found();
        if found.is_empty() {
            return Ok(Narrower(child.clone()));
        }
        found.truncate(WIDENINGS_MAX);
        Err(found)
    }

    /// The widest policy of a child of this one: the same, one level less deep. `None`: no child is allowed.
    #[must_use]
    pub fn for_children(&self) -> Option<Self> {
        let children = self.children();
        children.allowed.then(|| {
            let mut child = self.clone();
            let depth = children.depth.saturating_sub(1);
            child.doc.children = Children { allowed: depth > 0, depth: depth.max(1), ..children.clone() };
            child
        })
    }

    /// The policy of a child: the one that is asked for if it is no wider than [`Policy::for_children`], or that one.
    ///
    /// # Errors
    /// The axes on which it is wider; of a sandbox that may have no child, the axis `children.allowed`.
    pub fn child(&self, asked: Option<&Self>) -> Result<Narrower, Vec<Widening>> {
        let Some(widest) = self.for_children() else {
            return Err(vec![Widening {
                axis: "children.allowed".to_owned(),
                parent: "false".to_owned(),
                child: "a child".to_owned(),
            }]);
        };
        Self::narrower_or_equal(asked.unwrap_or(&widest), &widest)
    }
}

#[cfg(test)]
pub(crate) mod tests;
