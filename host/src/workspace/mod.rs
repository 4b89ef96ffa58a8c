// SPDX-License-Identifier: Apache-2.0
//! The user's directory: packed for the guest, and what changed there brought back.
//!
//! Flow: [`pack()`] reads the directory into an EROFS image and a [`Manifest`] → the guest works on an overlay over the image →
//! its agent reports the overlay's upper layer, which [`Spool`] takes in as hostile input → [`Spool::finish`] compares it with
//! the manifest: a [`ChangeSet`] → it is listed, shown as a diff, and perhaps [applied](ChangeSet::apply).
//!
//! The user's directory is only read, except by apply. Decisions, each where it is taken:
//! - Owners become uid and gid 1000 in the guest; set-user-ID and set-group-ID bits are dropped both ways ([`pack()`], [`apply`]).
//! - Symbolic links stay links. Special files are left out. Other file systems mounted below are left out ([`pack()`]).
//! - Hard links become files of their own that share data in the image ([`pack()`]).
//! - Modification times are neither compared nor brought back: an applied file is new on the host ([`apply`]).
//! - What would run code on the host by itself (a repository's configuration and hooks) and links out of the tree are not
//!   applied unless asked for by name ([`guard`]).
//! - A host file that changed since it was packed is never overwritten ([`apply`]).

pub mod apply;
pub mod changes;
pub mod diff;
pub mod guard;
mod json;
pub mod manifest;
pub mod pack;
pub mod path;
pub mod review;
pub mod since;
pub mod spool;
pub mod stored;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(fuzzing)]
pub(crate) mod fixture;
#[cfg(fuzzing)]
pub mod fuzz;

pub use apply::{ApplyOptions, ApplyReport};
pub use changes::{Change, ChangeKind, ChangeSet};
pub use diff::DiffOptions;
pub use manifest::{Manifest, Note, NoteKind, Notes};
pub use pack::{PackLimits, pack};
pub use path::{RelPath, printable};
pub use since::{Moment, Since};
pub use spool::{GuestEntry, GuestKind, Spool, SpoolLimits};
pub use stored::StoredError;

use std::path::PathBuf;

use crate::erofs::ErofsError;

/// Why a workspace could not be packed, or its changes not be taken in or applied. Faults of the guest are
/// [`spool::SpoolError`].
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// The directory cannot be opened.
    #[error("open workspace {}: it must be a directory that you can read; \
             check the path given with --workspace", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An entry cannot be read.
    #[error("read {} for the workspace: make it readable, move it out of the workspace, \
             or leave what is unreadable out with --skip-unreadable", path.display())]
    Unreadable {
        /// The entry.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// More of something than the limit allows.
    #[error("pack workspace {}: {found} {what} found, the limit is {limit} \
             (accepted: {accepted}); choose a smaller directory or raise the limit", path.display())]
    Limit {
        /// Where the limit was passed.
        path: PathBuf,
        /// What is limited.
        what: &'static str,
        /// How much there is at least.
        found: u64,
        /// The limit.
        limit: u64,
        /// Limits that can be set.
        accepted: &'static str,
    },
    /// The image cannot be written.
    #[error("write the workspace's image")]
    Image(#[source] ErofsError),
    /// The directory to apply to, or the spool, failed as a whole.
    #[error("{attempt} {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
