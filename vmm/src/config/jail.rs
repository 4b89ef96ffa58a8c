// SPDX-License-Identifier: Apache-2.0
//! The part of a configuration that says how the monitor is locked up.

use serde::{Deserialize, Serialize};

/// Whether the monitor is locked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Jail {
    /// As they must be.
    #[default]
    On,
    /// Not at all: to measure what it costs, with a guest that is trusted.
    Off,
}

/// A part of the jail that a host may not be able to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JailPart {
    /// A namespace of users, for whoever is not root.
    UserNamespace,
    /// A namespace of mounts.
    MountNamespace,
    /// A namespace without network.
    NetNamespace,
    /// A namespace of System V IPC and message queues.
    IpcNamespace,
    /// A namespace of host names.
    UtsNamespace,
    /// A namespace of processes.
    PidNamespace,
    /// An empty root.
    EmptyRoot,
    /// An id that is nobody else's, where root starts the monitor.
    OwnIds,
    /// No capabilities.
    NoCapabilities,
    /// A Landlock domain; used where it is, and never refused for.
    Landlock,
}

impl JailPart {
    /// Every part.
    pub const ALL: [Self; 10] = [
        Self::UserNamespace,
        Self::MountNamespace,
        Self::NetNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::PidNamespace,
        Self::EmptyRoot,
        Self::OwnIds,
        Self::NoCapabilities,
        Self::Landlock,
    ];
}

impl std::fmt::Display for JailPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}
