// SPDX-License-Identifier: Apache-2.0
//! Bringing chosen changes to the user's directory: the only code that writes there.
//!
//! Flow: `order` decides what comes when → for each change, `host_tree` opens its directory without following any link and reads
//! what is there now → it must be what was packed, or the change is a conflict and nothing is touched → `write` does one
//! atomic step. Every file is at any moment wholly old or wholly new: data goes to a temporary file in the same directory,
//! is flushed, and renamed. A crash or power cut may leave a `.midge-*.tmp` file and part of the changes undone, never half a
//! file; only where a directory turns into a file, or the other way, is there a moment with neither. What comes is flushed
//! before anything goes, so what the run moved is always in one of its places; what cannot be flushed is reported as failed.
//! Applying again finishes the work, but for the mode of a directory that was made and not finished.
//!
//! Modes: set-user-ID, set-group-ID and sticky bits are never applied, nor are write permissions for group and others that the
//! file did not have. Owners: a replaced file keeps its owner where we may set it; a new one gets that of its directory when
//! root applies, else it is the user's. A replaced file is a new file: hard links to the old one keep the old content.

mod host_tree;
mod order;
mod write;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub use write::{NoFaults, Step, Steps};

use self::host_tree::HostTree;
use self::order::Outcome;
use super::WorkspaceError;
use super::changes::{Change, ChangeSet};
use super::guard::Guard;
use super::path::RelPath;

/// Which changes are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Only these; `None`: all.
    pub only: Option<BTreeSet<RelPath>>,
    /// Apply what [`Guard::GitInternals`] would refuse.
    pub allow_git_internals: bool,
    /// Apply what [`Guard::LinkLeavesTree`] would refuse.
    pub allow_outside_links: bool,
    /// The new directory for the run's version of what was not applied, made only when there is something to keep; `None`:
    /// a new one in the system's directory for temporary files.
    pub keep_in: Option<PathBuf>,
}

impl ApplyOptions {
    /// Whether `change` may be applied: it is not guarded, or what guards it is allowed.
    #[must_use]
    pub fn allows(&self, change: &Change) -> bool {
        match change.guard {
            None => true,
            Some(Guard::GitInternals) => self.allow_git_internals,
            Some(Guard::LinkLeavesTree) => self.allow_outside_links,
            Some(Guard::ReadOnly) => false,
        }
    }
}

/// What [`ChangeSet::apply`] did, each list in the order of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// Applied, or already so on the host.
    pub applied: Vec<RelPath>,
    /// Not applied because guarded.
    pub refused: Vec<(RelPath, Guard)>,
    /// Not applied because the host has something else there than what was packed.
    pub conflicts: Vec<(RelPath, Conflict)>,
    /// Not applied because the system refused: what was attempted and what it said.
    pub failed: Vec<(RelPath, String)>,
    /// Where the run's version of refused, conflicting and failed files is, under their own paths and readable by the user
    /// only, if there are any; the user's to remove.
    pub kept_in: Option<PathBuf>,
}

impl ApplyReport {
    /// Whether every chosen change was applied.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.refused.is_empty() && self.conflicts.is_empty() && self.failed.is_empty()
    }
}

/// How the host differs from what was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    /// The entry was changed since.
    Changed,
    /// The entry is gone.
    Gone,
    /// Something else was made there since.
    Appeared,
    /// A directory to be deleted has entries that the run did not know or that were not chosen.
    NotEmpty,
    /// A directory above is gone.
    ParentGone,
    /// Something above is no directory, or is a symbolic link now, or another file system.
    ParentChanged,
}

impl Conflict {
    /// One clause for the user.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Changed => "changed on the host since the workspace was packed",
            Self::Gone => "is gone from the host since the workspace was packed",
            Self::Appeared => "was made on the host since the workspace was packed",
            Self::NotEmpty => "still has entries on the host",
            Self::ParentGone => "lies in a directory that is gone from the host",
            Self::ParentChanged => "lies below something that is no longer a directory of this file system",
        }
    }
}

impl ChangeSet {
    /// Applies the chosen changes to `dir`, the directory that was packed. One change that cannot be applied does not keep
    /// the others from it; the report tells of each.
    ///
    /// # Errors
    /// [`WorkspaceError::Open`] when `dir` cannot be opened; [`WorkspaceError::Io`] when versions to be kept cannot be.
    pub fn apply(&self, dir: &Path, options: &ApplyOptions) -> Result<ApplyReport, WorkspaceError> {
        self.apply_with(dir, options, &mut NoFaults)
    }

    /// As [`ChangeSet::apply`], telling `steps` before each step that writes; an error of it makes that step fail.
    ///
    /// # Errors
    /// As [`ChangeSet::apply`].
    pub fn apply_with(
        &self,
        dir: &Path,
        options: &ApplyOptions,
        steps: &mut dyn Steps,
    ) -> Result<ApplyReport, WorkspaceError> {
        let open = |source| WorkspaceError::Open { path: dir.into(), source };
        let mut report = ApplyReport::default();
        let chosen: Vec<&Change> =
            self.changes().iter().filter(|change| chosen(change, options, &mut report)).collect();
        let tree = HostTree::open(dir).map_err(open)?;
        for (path, outcome) in order::apply(self, &chosen, tree, steps) {
            match outcome {
                Outcome::Done => report.applied.push(path.clone()),
                Outcome::Conflict(conflict) => report.conflicts.push((path.clone(), conflict)),
                Outcome::Failed(text) => report.failed.push((path.clone(), text)),
            }
        }
        self.keep_rest(&mut report, options.keep_in.as_deref())?;
        Ok(report)
    }

    /// Saves the run's version of what was not applied from going away with the spool, under names that the user recognises.
    fn keep_rest(&self, report: &mut ApplyReport, keep_in: Option<&Path>) -> Result<(), WorkspaceError> {
        let refused = report.refused.iter().map(|(path, _)| path);
        let conflicts = report.conflicts.iter().map(|(path, _)| path);
        let failed = report.failed.iter().map(|(path, _)| path);
        let paths: BTreeSet<&RelPath> = refused.chain(conflicts).chain(failed).collect();
        let mut kept_in = None;
        for change in self.changes().iter().filter(|change| paths.contains(&change.path)) {
            let Some(number) = change.spooled() else { continue };
            let top = match kept_in.take() {
                Some(top) => top,
                None => make_kept(keep_in)?,
            };
            let to = top.join(change.path.as_path());
            keep(&self.spool().data(number), &to).map_err(|source| WorkspaceError::Io {
                attempt: "keep the run's version at",
                path: to,
                source,
            })?;
            kept_in = Some(top);
        }
        report.kept_in = kept_in;
        Ok(())
    }
}

fn make_kept(keep_in: Option<&Path>) -> Result<PathBuf, WorkspaceError> {
    let made = match keep_in {
        Some(dir) => std::fs::DirBuilder::new().mode(0o700).create(dir).map(|()| dir.to_path_buf()),
        None => tempfile::Builder::new().prefix("midge-kept-").tempdir().map(tempfile::TempDir::keep),
    };
    made.map_err(|source| {
        let path = keep_in.map_or_else(std::env::temp_dir, Path::to_path_buf);
        WorkspaceError::Io { attempt: "make a directory for what was not applied in", path, source }
    })
}

fn keep(from: &Path, to: &Path) -> std::io::Result<()> {
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => std::fs::copy(from, to).map(drop),
        linked => linked,
    }
}

/// Whether a change was asked for and may be applied; guarded ones go to the report.
fn chosen(change: &Change, options: &ApplyOptions, report: &mut ApplyReport) -> bool {
    if options.only.as_ref().is_some_and(|only| !only.contains(&change.path)) {
        return false;
    }
    if options.allows(change) {
        return true;
    }
    report.refused.extend(change.guard.map(|guard| (change.path.clone(), guard)));
    false
}

#[cfg(test)]
mod power_cut_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod tests;
