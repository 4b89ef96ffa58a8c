// SPDX-License-Identifier: Apache-2.0
//! The order in which chosen changes are applied, and what is decided for each: done before, to be done, or a conflict with
//! what the host has there now. Opens and writes nothing itself: `host_tree` and `write` do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use super::super::changes::{After, AfterContent, Change, ChangeKind, ChangeSet};
use super::super::manifest::{Content, Entry, MODE_MASK};
use super::super::path::RelPath;
use super::Conflict;
use super::host_tree::{HostTree, ParentFault, State};
use super::write::Steps;

/// How one change ended.
pub(super) enum Outcome {
    Done,
    Conflict(Conflict),
    Failed(String),
}

impl From<std::io::Error> for Outcome {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Applies `chosen`, which are changes of `set` sorted by path, and tells how each ended.
pub(super) fn apply<'a>(
    set: &'a ChangeSet,
    chosen: &[&'a Change],
    tree: HostTree,
    steps: &'a mut dyn Steps,
) -> BTreeMap<&'a RelPath, Outcome> {
    let new_dirs = set.changes().iter().filter(|change| is_new_dir(change));
    let new_dirs = new_dirs.filter_map(|change| Some((&change.path, safe_mode(change.after.as_ref()?.mode, 0))));
    let new_dirs = new_dirs.collect();
    let mut applying = Applying { set, tree, new_dirs, made: BTreeSet::new(), outcomes: BTreeMap::new(), steps };
    applying.run(chosen);
    applying.outcomes
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
    /// The order: everything new or changed comes, directories before what is in them; then what is in the way of something
    /// goes, deepest first, and that comes; only then the rest is deleted. What comes is flushed before anything goes, so that
    /// a power cut loses no data that had been moved. Modes of directories come last, as they may forbid writing.
    fn run(&mut self, chosen: &[&'a Change]) {
        let in_the_way: BTreeSet<&RelPath> =
            chosen.iter().filter(|change| makes_way(change)).map(|change| &change.path).collect();
        let concerned =
            |change: &Change| makes_way(change) || change.path.ancestors().any(|above| in_the_way.contains(&above));
        let (second, first): (Vec<&Change>, Vec<&Change>) = chosen.iter().partition(|change| concerned(change));
        self.put_all(&first);
        self.delete_all(second.iter().filter(|change| change.kind == ChangeKind::Deleted || makes_way(change)));
        self.put_all(&second);
        self.delete_all(first.iter().filter(|change| change.kind == ChangeKind::Deleted));
        for change in chosen.iter().rev() {
            if let Some(outcome) = self.finish_dir(change) {
                self.record(change, outcome);
            }
        }
        self.tree.leave(self.steps);
        let unflushed = self.tree.unflushed();
        for (path, outcome) in &mut self.outcomes {
            if let (Outcome::Done, Some(error)) = (&*outcome, unflushed.get(&path.parent())) {
                *outcome = Outcome::Failed(format!("done, but its directory cannot be flushed to the disk: {error}"));
            }
        }
    }

    fn put_all(&mut self, changes: &[&'a Change]) {
        for change in changes.iter().filter(|change| change.kind != ChangeKind::Deleted) {
            if !matches!(self.outcomes.get(&change.path), None | Some(Outcome::Done)) {
                continue; // what is in the way stayed
            }
            let outcome = self.put(change);
            self.record(change, outcome);
        }
    }

    /// Deletes what was packed, deepest first, unless what came before it may be undone by a power cut.
    fn delete_all<'b>(&mut self, changes: impl DoubleEndedIterator<Item = &'b &'a Change>)
    where
        'a: 'b,
    {
        self.tree.leave(self.steps);
        for change in changes.rev() {
            let outcome = match self.tree.unflushed().values().next() {
                None => self.delete(change),
                Some(error) => {
                    Outcome::Failed(format!("kept, as other changes cannot be flushed to the disk: {error}"))
                }
            };
            self.record(change, outcome);
        }
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
mod tests {
    use super::super::super::changes::After;
    use super::*;

    #[test]
    fn modes_lose_special_bits_and_new_write_permissions() {
        for (after, before, expected) in [
            (0o644, 0o644, 0o644),
            (0o755, 0o644, 0o755),
            (0o777, 0o644, 0o755),
            (0o666, 0o664, 0o664),
            (0o777, 0o777, 0o777),
            (0o6755, 0o755, 0o755),
            (0o1777, 0o755, 0o755),
            (0o000, 0o644, 0o000),
        ] {
            assert_eq!(safe_mode(after, before), expected, "{after:o} over {before:o}");
        }
    }

    #[test]
    fn a_mode_is_the_hosts_unless_the_run_changed_it() {
        let stat = |mode: u32| {
            let mut stat = rustix::fs::stat("/").unwrap();
            stat.st_mode = 0o040_000 | mode;
            State::Dir { stat }
        };
        let before = Entry { mode: 0o755, content: Content::Dir };
        let after = |mode| After { mode, content: AfterContent::Dir };
        assert_eq!(target_mode(Some(&before), &after(0o755), &stat(0o700)), Ok(0o700), "only the host");
        assert_eq!(target_mode(Some(&before), &after(0o700), &stat(0o755)), Ok(0o700), "only the run");
        assert_eq!(target_mode(Some(&before), &after(0o700), &stat(0o700)), Ok(0o700), "both the same");
        assert_eq!(target_mode(Some(&before), &after(0o700), &stat(0o750)), Err(Conflict::Changed), "both");
        assert_eq!(target_mode(None, &after(0o777), &State::Absent), Ok(0o755), "new");
        assert_eq!(target_mode(None, &after(0o777), &stat(0o700)), Ok(0o700), "new on both sides");
    }
}
