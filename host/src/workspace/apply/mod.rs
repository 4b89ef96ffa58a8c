// SPDX-License-Identifier: Apache-2.0
//! Bringing chosen changes to the user's directory: the only code that writes there.
//!
//! Flow: `plan` decides the order → for each change, `host_tree` opens its directory without following any link and reads
//! what is there now → it must be what was packed, or the change is a conflict and nothing is touched → `write` does one
//! atomic step. Every file is at any moment wholly old or wholly new: data goes to a temporary file in the same directory,
//! is flushed, and renamed. A crash may leave a `.midge-*.tmp` file and part of the changes undone, never half a file; only
//! where a directory turns into a file, or the other way, is there a moment with neither.
//!
//! Modes: set-user-ID, set-group-ID and sticky bits are never applied, nor are write permissions for group and others that the
//! file did not have. Owners: a replaced file keeps its owner where we may set it; a new one gets that of its directory when
//! root applies, else it is the user's. A replaced file is a new file: hard links to the old one keep the old content.

mod host_tree;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use write::{NoFaults, Step, Steps};

use self::host_tree::{HostTree, ParentFault, State};
use super::WorkspaceError;
use super::changes::{After, AfterContent, Change, ChangeKind, ChangeSet};
use super::guard::Guard;
use super::manifest::{Content, Entry, MODE_MASK};
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
    /// Where the run's version of refused, conflicting and failed files is, if there are any; the caller's to remove.
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
            Self::Changed => "changed on the host since the run began",
            Self::Gone => "is gone from the host since the run began",
            Self::Appeared => "was made on the host since the run began",
            Self::NotEmpty => "still has entries on the host",
            Self::ParentGone => "lies in a directory that is gone from the host",
            Self::ParentChanged => "lies below something that is no longer a directory of this file system",
        }
    }
}

/// How one change ended.
enum Outcome {
    Done,
    Conflict(Conflict),
    Failed(String),
}

impl From<std::io::Error> for Outcome {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
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
        let new_dirs = self.changes().iter().filter(|change| is_new_dir(change));
        let new_dirs = new_dirs.filter_map(|change| Some((&change.path, safe_mode(change.after.as_ref()?.mode, 0))));
        let mut applying = Applying {
            set: self,
            tree: HostTree::open(dir).map_err(open)?,
            new_dirs: new_dirs.collect(),
            made: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            steps,
        };
        applying.run(&chosen);
        for (path, outcome) in applying.outcomes {
            match outcome {
                Outcome::Done => report.applied.push(path.clone()),
                Outcome::Conflict(conflict) => report.conflicts.push((path.clone(), conflict)),
                Outcome::Failed(text) => report.failed.push((path.clone(), text)),
            }
        }
        self.keep_rest(&mut report)?;
        Ok(report)
    }

    /// Gives the run's version of what was not applied a name that the user recognises, and keeps it.
    fn keep_rest(&self, report: &mut ApplyReport) -> Result<(), WorkspaceError> {
        let refused = report.refused.iter().map(|(path, _)| path);
        let conflicts = report.conflicts.iter().map(|(path, _)| path);
        let failed = report.failed.iter().map(|(path, _)| path);
        let paths: BTreeSet<&RelPath> = refused.chain(conflicts).chain(failed).collect();
        let kept = self.spool_path().join("kept");
        for change in self.changes().iter().filter(|change| paths.contains(&change.path)) {
            let Some(After { content: AfterContent::File { number, .. }, .. }) = &change.after else { continue };
            if change.kind == ChangeKind::ModeChanged {
                continue;
            }
            let to = kept.join(change.path.as_path());
            let io = |source| WorkspaceError::Io { attempt: "keep the run's version at", path: to.clone(), source };
            std::fs::create_dir_all(to.parent().unwrap_or(&kept)).map_err(io)?;
            match std::fs::hard_link(self.spool().data(*number), &to) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(io(error)),
                _ => {}
            }
            report.kept_in = Some(kept.clone());
            self.keep_spool();
        }
        Ok(())
    }
}

/// Whether a change was asked for and may be applied; guarded ones go to the report.
fn chosen(change: &Change, options: &ApplyOptions, report: &mut ApplyReport) -> bool {
    if options.only.as_ref().is_some_and(|only| !only.contains(&change.path)) {
        return false;
    }
    match change.guard {
        Some(Guard::GitInternals) if !options.allow_git_internals => {}
        Some(Guard::LinkLeavesTree) if !options.allow_outside_links => {}
        _ => return true,
    }
    report.refused.extend(change.guard.map(|guard| (change.path.clone(), guard)));
    false
}

fn is_new_dir(change: &Change) -> bool {
    let added = matches!(change.kind, ChangeKind::Added | ChangeKind::TypeChanged);
    added && change.after.as_ref().is_some_and(|after| after.content == AfterContent::Dir)
}

/// Whether what was packed must go before the new entry can come: a rename replaces neither a directory nor by one.
fn makes_way(change: &Change) -> bool {
    let was_dir = change.before.as_ref().is_some_and(|before| before.content == Content::Dir);
    change.kind == ChangeKind::TypeChanged && (was_dir || is_new_dir(change))
}

/// What a directory's mode has besides its own while it is filled.
const OPEN_TO_US: u32 = 0o700;

struct Applying<'a> {
    set: &'a ChangeSet,
    tree: HostTree,
    /// Directories that the run made, and their modes: made on the host when something chosen lies in them.
    new_dirs: BTreeMap<&'a RelPath, u32>,
    /// Directories made here, which get their mode at the end.
    made: BTreeSet<&'a RelPath>,
    outcomes: BTreeMap<&'a RelPath, Outcome>,
    steps: &'a mut dyn Steps,
}

impl<'a> Applying<'a> {
    /// The order: what is in the way goes, deepest first; then everything new or changed comes, directories before what is in
    /// them; only then the rest is deleted, so that a crash loses no data that had been moved; modes of directories come last,
    /// as they may forbid writing.
    fn run(&mut self, chosen: &[&'a Change]) {
        let in_the_way: BTreeSet<&RelPath> =
            chosen.iter().filter(|change| makes_way(change)).map(|change| &change.path).collect();
        let first = |change: &Change| {
            makes_way(change)
                || change.kind == ChangeKind::Deleted
                    && change.path.ancestors().any(|above| in_the_way.contains(&above))
        };
        for change in chosen.iter().rev().filter(|change| first(change)) {
            let outcome = self.delete(change);
            self.record(change, outcome);
        }
        for change in chosen.iter().filter(|change| change.kind != ChangeKind::Deleted) {
            if !matches!(self.outcomes.get(&change.path), None | Some(Outcome::Done)) {
                continue; // what is in the way stayed
            }
            let outcome = self.put(change);
            self.record(change, outcome);
        }
        for change in chosen.iter().rev().filter(|change| change.kind == ChangeKind::Deleted && !first(change)) {
            let outcome = self.delete(change);
            self.record(change, outcome);
        }
        for change in chosen.iter().rev() {
            if let Some(outcome) = self.finish_dir(change) {
                self.record(change, outcome);
            }
        }
        let _ = self.tree.leave(self.steps); // what was renamed is there; flushing the last directory is best effort
    }

    fn record(&mut self, change: &'a Change, outcome: Outcome) {
        self.outcomes.insert(&change.path, outcome);
    }

    fn delete(&mut self, change: &Change) -> Outcome {
        match self.try_delete(change) {
            Outcome::Conflict(Conflict::ParentChanged) if self.is_replaced_above(&change.path) => Outcome::Done,
            outcome => outcome,
        }
    }

    fn try_delete(&mut self, change: &Change) -> Outcome {
        let Some(before) = &change.before else { return Outcome::Done };
        let parent = match self.tree.parent(&change.path, &self.new_dirs, self.steps) {
            Ok(parent) => parent,
            Err(ParentFault::Gone) => return Outcome::Done, // with its directory
            Err(fault) => return fault.into(),
        };
        let state = match parent.state(&change.path) {
            Ok(State::Absent) => return Outcome::Done,
            Ok(state) => state,
            Err(error) => return error.into(),
        };
        if change.after.as_ref().is_some_and(|after| state.is_already(after)) {
            return Outcome::Done; // applied before
        }
        if !state.has_content_of(&before.content) {
            return Outcome::Conflict(Conflict::Changed);
        }
        match parent.remove(&change.path, &state, self.steps) {
            Ok(()) => Outcome::Done,
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Outcome::Conflict(Conflict::NotEmpty),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Outcome::Conflict(Conflict::Changed),
            Err(error) => error.into(),
        }
    }

    /// Whether a directory above already is the file or link that the run made of it.
    fn is_replaced_above(&mut self, path: &RelPath) -> bool {
        let changes = self.set.changes();
        let find = |path: &RelPath| changes.binary_search_by(|change| change.path.cmp(path)).ok();
        let Some(above) = path.ancestors().find_map(|above| find(&above)).map(|index| &changes[index]) else {
            return false;
        };
        let state = match self.tree.parent(&above.path, &self.new_dirs, self.steps) {
            Ok(parent) => parent.state(&above.path),
            Err(_) => return above.kind == ChangeKind::Deleted && self.is_replaced_above(&above.path),
        };
        above.after.as_ref().is_some_and(|after| state.is_ok_and(|state| state.is_already(after)))
    }

    fn put(&mut self, change: &'a Change) -> Outcome {
        let Some(after) = &change.after else { return Outcome::Done };
        let parent = match self.tree.parent(&change.path, &self.new_dirs, self.steps) {
            Ok(parent) => parent,
            Err(fault) => return fault.into(),
        };
        let state = match parent.state(&change.path) {
            Ok(state) => state,
            Err(error) => return error.into(),
        };
        let mode = match target_mode(change.before.as_ref(), after, &state) {
            Ok(mode) => mode,
            Err(conflict) => return Outcome::Conflict(conflict),
        };
        let already = state.is_already(after);
        if let Err(conflict) = if already { Ok(()) } else { expected(change, &state) } {
            return Outcome::Conflict(conflict);
        }
        let written = match &after.content {
            AfterContent::Dir | AfterContent::Symlink { .. } if already => Ok(()),
            AfterContent::Dir => parent.make_dir(&change.path, mode | OPEN_TO_US, self.steps).map(|()| {
                self.made.insert(&change.path);
            }),
            AfterContent::Symlink { target } => parent.put_link(&change.path, &state, target, self.steps),
            AfterContent::File { .. } if already => parent.set_mode(&change.path, &state, mode, self.steps),
            AfterContent::File { number, size, .. } => {
                let from = self.set.spool().data(*number);
                parent.put_file(&change.path, &state, (&from, *size), mode, self.steps)
            }
        };
        match written {
            Ok(()) => Outcome::Done,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Outcome::Conflict(if change.before.is_some() { Conflict::Changed } else { Conflict::Appeared })
            }
            Err(error) => error.into(),
        }
    }

    /// Sets the final mode of a directory that we made, or whose mode is the change; `None`: nothing to do, or done.
    fn finish_dir(&mut self, change: &Change) -> Option<Outcome> {
        let after = change.after.as_ref().filter(|after| after.content == AfterContent::Dir)?;
        let done = matches!(self.outcomes.get(&change.path), Some(Outcome::Done));
        if !done || !(self.made.contains(&change.path) || change.kind == ChangeKind::ModeChanged) {
            return None;
        }
        let before = change.before.as_ref().filter(|before| before.content == Content::Dir);
        let mode = safe_mode(after.mode, before.map_or(0, |before| before.mode));
        let parent = match self.tree.parent(&change.path, &self.new_dirs, self.steps) {
            Ok(parent) => parent,
            Err(fault) => return Some(fault.into()),
        };
        let state = parent.state(&change.path);
        state.and_then(|state| parent.set_mode(&change.path, &state, mode, self.steps)).err().map(Into::into)
    }
}

impl From<ParentFault> for Outcome {
    fn from(fault: ParentFault) -> Self {
        match fault {
            ParentFault::Gone => Self::Conflict(Conflict::ParentGone),
            ParentFault::Changed => Self::Conflict(Conflict::ParentChanged),
            ParentFault::Io(error) => error.into(),
        }
    }
}

/// Whether the host still has what was packed, so that the change can take its place.
fn expected(change: &Change, state: &State) -> Result<(), Conflict> {
    match (&change.before, state) {
        (None, State::Absent) => Ok(()),
        (None, _) => Err(Conflict::Appeared),
        (Some(_), State::Absent) if makes_way(change) => Ok(()), // removed a moment ago
        (Some(_), State::Absent) => Err(Conflict::Gone),
        (Some(before), state) if state.has_content_of(&before.content) => Ok(()),
        (Some(_), _) => Err(Conflict::Changed),
    }
}

/// The mode a file or directory gets. A change of mode on both sides is a conflict, unless it is the same.
fn target_mode(before: Option<&Entry>, after: &After, state: &State) -> Result<u32, Conflict> {
    let made = safe_mode(after.mode, 0);
    let Some(before) = before else { return Ok(state.mode().unwrap_or(made)) };
    if !state.has_content_kind_of(&before.content) {
        return Ok(made);
    }
    let new = safe_mode(after.mode, before.mode);
    match state.mode() {
        Some(host) if after.mode == before.mode => Ok(host & 0o777),
        Some(host) if host & MODE_MASK != before.mode && host & 0o777 != new => Err(Conflict::Changed),
        _ => Ok(new),
    }
}

/// A mode as it may be applied; see the module's header.
fn safe_mode(after: u32, before: u32) -> u32 {
    after & 0o777 & !(0o022 & !before)
}

#[cfg(test)]
mod tests;
