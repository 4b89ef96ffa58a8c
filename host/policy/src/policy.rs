// SPDX-License-Identifier: Apache-2.0
//! A whole policy: it exists only when every check has passed.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decide::Egress;
use crate::network::{Credential, Network};
use crate::problem::Problems;
use crate::section::{Approvals, Budget, Children, Limits, Model, Peer, Tools, Workspace};
use crate::{check, profiles};

/// Longest policy file in bytes.
pub const FILE_MAX_BYTES: usize = 256 * 1024;

/// What one sandbox may do. Whoever holds one holds a policy that was checked as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub(crate) doc: Doc,
}

/// The policy of a sandbox: what it may do, everything else is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Midge policy")]
pub(crate) struct Doc {
    /// The version of this format.
    #[schemars(range(min = 1, max = 1))]
    pub(crate) version: u32,
    /// What the policy is for, in a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub(crate) about: Option<String>,
    /// What the machine has.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// What a run may spend.
    #[serde(default)]
    pub(crate) budget: Budget,
    /// Which language models may be asked. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<Model>,
    /// What may be reached through the proxy.
    #[serde(default)]
    pub(crate) network: Network,
    /// Secrets that the broker puts into requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub(crate) credentials: Vec<Credential>,
    /// Which tools of the loop may be called.
    #[serde(default)]
    pub(crate) tools: Tools,
    /// The user's directory.
    #[serde(default)]
    pub(crate) workspace: Workspace,
    /// Sandboxes that it makes.
    #[serde(default)]
    pub(crate) children: Children,
    /// Sandboxes that it may talk to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub(crate) peers: Vec<Peer>,
    /// Questions to a human.
    #[serde(default)]
    pub(crate) approvals: Approvals,
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("reading the policy {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such profile, and no such file.
    #[error("there is no profile and no file named {name:?}; profiles: {profiles}; write ./{name} for a file")]
    NoProfile {
        /// What was asked for.
        name: String,
        /// What there is.
        profiles: String,
    },
    /// It is there, and wrong.
    #[error(transparent)]
    Problems(#[from] Problems),
}

impl Policy {
    /// Checks the text of a policy file as a whole; `origin` is its name in problems.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: impl AsRef<[u8]>, origin: &str) -> Result<Self, Problems> {
        check::parse(text.as_ref(), origin).map(|doc| Self { doc })
    }

    /// A policy that is shipped with Midge; see [`profiles::PROFILES`].
    #[must_use]
    pub fn profile(name: &str) -> Option<Self> {
        let profile = profiles::PROFILES.iter().find(|profile| profile.name == name)?;
        Self::parse(profile.text, profile.name).ok()
    }

    /// What `--policy` names: a profile, or else a file. No more of a file is read than [`FILE_MAX_BYTES`] and one.
    ///
    /// # Errors
    /// It is not there, cannot be read, or is wrong.
    pub fn load(name: &str) -> Result<Self, LoadError> {
        if let Some(policy) = Self::profile(name) {
            return Ok(policy);
        }
        let path = Path::new(name);
        if !name.contains(['/', '.']) && !path.exists() {
            return Err(LoadError::NoProfile { name: name.to_owned(), profiles: profiles::names() });
        }
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(FILE_MAX_BYTES as u64 + 1).read_to_end(&mut text));
        read.map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Ok(Self::parse(text, name)?)
    }

    /// The policy as a file, every default written out. Parses to the same policy.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Strings, numbers, lists and tables with text as keys: nothing that TOML cannot hold.
        toml::to_string(&self.doc).unwrap_or_default()
    }

    /// This policy with another model, as flags of a command line ask for.
    ///
    /// # Errors
    /// What is wrong with that.
    pub fn with_model(mut self, model: Option<Model>) -> Result<Self, Problems> {
        self.doc.model = model;
        self.checked("the policy with its model changed")
    }

    /// This policy with another budget, as flags of a command line ask for.
    ///
    /// # Errors
    /// What is wrong with that.
    pub fn with_budget(mut self, budget: Budget) -> Result<Self, Problems> {
        self.doc.budget = budget;
        self.checked("the policy with its budget changed")
    }

    /// Checks what was not read from a file.
    pub(crate) fn checked(self, origin: &str) -> Result<Self, Problems> {
        Self::parse(self.to_toml(), origin)
    }

    /// What it is for, in a line.
    #[must_use]
    pub fn about(&self) -> Option<&str> {
        self.doc.about.as_deref()
    }

    /// What the machine has.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.doc.limits
    }

    /// What may be spent.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.doc.budget
    }

    /// Which language models may be asked; `None`: none.
    #[must_use]
    pub fn model(&self) -> Option<&Model> {
        self.doc.model.as_ref()
    }

    /// What may be reached.
    #[must_use]
    pub fn network(&self) -> Egress<'_> {
        Egress::new(&self.doc.network.rules, &self.doc.credentials)
    }

    /// Secrets that the broker puts into requests.
    #[must_use]
    pub fn credentials(&self) -> &[Credential] {
        &self.doc.credentials
    }

    /// Which tools may be called.
    #[must_use]
    pub fn tools(&self) -> &Tools {
        &self.doc.tools
    }

    /// What becomes of the user's directory.
    #[must_use]
    pub fn workspace(&self) -> &Workspace {
        &self.doc.workspace
    }

    /// Which sandboxes it may make.
    #[must_use]
    pub fn children(&self) -> &Children {
        &self.doc.children
    }

    /// Which sandboxes it may talk to.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.doc.peers
    }

    /// The peer of that name.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.doc.peers.iter().find(|peer| peer.name.as_str() == name)
    }

    /// How questions are asked.
    #[must_use]
    pub fn approvals(&self) -> &Approvals {
        &self.doc.approvals
    }
}

#[cfg(test)]
mod tests;
