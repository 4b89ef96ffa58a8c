// SPDX-License-Identifier: Apache-2.0
//! The door `child`: a sandbox made of this one. One request a connection: [`ChildRequest`] from the guest, [`ChildEvent`]s from the
//! host; after [`ChildEvent::Ended`] the guest says [`Keep`], and on [`Keep::Take`] the host sends [`ChildEvent::Changes`] and that many bytes of a tar.

use super::{Deserialize, Left, Serialize};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChildRequest {
    /// What the child is made of.
    pub base: Base,
    /// What it is to do.
    pub work: Work,
    /// Its policy, as TOML; absent: its parent's. It must not be wider on any axis.
    #[serde(default)]
    pub policy: Option<String>,
    /// What it may spend of its parent's budget; absent: as the policy's share says.
    #[serde(default)]
    pub share: Option<Left>,
}

/// What a child is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// Whoever asks: its files as they are now, without its processes.
    Myself,
    /// A template, by name.
    Template(String),
}

/// What a child does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A task for a tool loop of its own.
    Task(String),
    /// A command.
    Command(Vec<String>),
}

/// What the host says of a child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ChildEvent {
    /// It runs.
    Started {
        /// Its name, as its transcript has it.
        name: String,
    },
    /// Lines of its command, or of its loop.
    Output {
        /// Lossy UTF-8.
        text: String,
    },
    /// It has ended.
    Ended {
        /// Its command's exit code, or the loop's.
        code: i32,
        /// The last words of its loop, or the end of its command's output.
        text: String,
        /// What it changed in the workspace, one path a line, with `A`, `M` or `D` before it.
        changed: Vec<String>,
    },
    /// Its changes follow as a tar.
    Changes {
        /// Bytes that follow this line.
        tar_bytes: u64,
        /// Paths that it removed.
        removed: Vec<String>,
    },
    /// There is no child, and why.
    Refused {
        /// In words, for the model.
        why: String,
    },
}

/// What becomes of a child's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// They are wanted.
    Take,
    /// They are not.
    Drop,
}
