// SPDX-License-Identifier: Apache-2.0
//! What a run changed: the guest's report compared with the manifest, entry by entry. The comparison is pure; only content
//! that differs is a change, a file that was merely touched is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::guard::{GitDirs, Guard, link_stays_inside, starts_by_itself};
use super::manifest::{Content, Digest, Entry, Manifest, NoteKind, Notes};
use super::path::RelPath;
use super::spool::{Reported, SpoolDir};

/// How an entry differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// A file's content or a link's target is another; perhaps its mode too.
    Modified,
    /// Only the permission bits differ.
    ModeChanged,
    /// It was of another kind: file, directory or symbolic link.
    TypeChanged,
    /// It is gone.
    Deleted,
}

impl ChangeKind {
    /// `A`, `M` or `D`, as transcripts have it: what is not added or deleted is modified.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Deleted => 'D',
            Self::Modified | Self::ModeChanged | Self::TypeChanged => 'M',
        }
    }
}

/// One changed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub path: RelPath,
    /// How.
    pub kind: ChangeKind,
    /// As packed; `None` when it was not there.
    pub before: Option<Entry>,
    /// As the run left it; `None` when it is gone.
    pub after: Option<After>,
    /// Why it is not applied unless allowed by name.
    pub guard: Option<Guard>,
    /// Tools on the host may act upon it without being asked: worth a look.
    pub starts_by_itself: bool,
}

impl Change {
    /// Number of the spool file with its data; a change of mode alone has none.
    pub(crate) fn spooled(&self) -> Option<u32> {
        self.after.as_ref().filter(|_| self.kind != ChangeKind::ModeChanged).and_then(number)
    }
}

/// An entry as the run left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct After {
    /// Permission bits, masked with [`MODE_MASK`](super::manifest::MODE_MASK).
    pub mode: u32,
    /// What it is.
    pub content: AfterContent,
}

/// Kind and content of an entry as the run left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterContent {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Its bytes.
        size: u64,
        /// Of its content.
        sha256: Digest,
        /// Number of the spool file that holds it.
        number: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Its target.
        target: Vec<u8>,
    },
}

/// Everything a run changed, with the data; the spool's files live as long as this value, unless kept.
#[derive(Debug)]
pub struct ChangeSet {
    changes: Vec<Change>,
    notes: Notes,
    spool: Arc<SpoolDir>,
    image: Arc<File>,
}

impl ChangeSet {
    pub(crate) fn new(changes: Vec<Change>, notes: Notes, spool: Arc<SpoolDir>, manifest: &Manifest) -> Self {
        Self { changes, notes, spool, image: Arc::clone(&manifest.image) }
    }

    /// All changes, sorted by path.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Lets no option apply the changes whose path `is_kept` says stays as it is.
    pub fn keep(&mut self, is_kept: impl Fn(&RelPath) -> bool) {
        for change in self.changes.iter_mut().filter(|change| is_kept(&change.path)) {
            change.guard = Some(Guard::ReadOnly);
        }
    }

    /// Whether the run changed nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What the user should know of the report.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// The directory with the run's version of changed files.
    #[must_use]
    pub fn spool_path(&self) -> &Path {
        self.spool.path()
    }

    /// From now on the spool outlives this value.
    pub fn keep_spool(&self) {
        self.spool.keep();
    }

    /// Where the data lies: what was reported, and what was packed.
    pub(crate) fn into_data(self) -> (Arc<SpoolDir>, Arc<File>) {
        (self.spool, self.image)
    }

    pub(crate) fn spool(&self) -> &SpoolDir {
        &self.spool
    }

    /// Up to `max_bytes` of a changed file's content before the run; empty when there was none.
    ///
    /// # Errors
    /// What reading the packed image says.
    pub fn read_before(&self, change: &Change, max_bytes: u64) -> io::Result<Vec<u8>> {
        let base = change.before.as_ref().map(|entry| &entry.content);
        base.map_or(Ok(Vec::new()), |content| super::manifest::read_base(&self.image, content, max_bytes))
    }

    /// Up to `max_bytes` of a changed file's content after the run; empty when there is none.
    ///
    /// # Errors
    /// What reading the spool says.
    pub fn read_after(&self, change: &Change, max_bytes: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(After { content: AfterContent::File { number, .. }, .. }) = &change.after {
            io::Read::read_to_end(&mut io::Read::take(File::open(self.spool.data(*number))?, max_bytes), &mut bytes)?;
        }
        Ok(bytes)
    }
}

/// Compares a report with the manifest; also returns the numbers of spool files that no change needs.
pub(crate) fn compare(
    base: &BTreeMap<RelPath, Entry>,
    reported: &BTreeMap<RelPath, Reported>,
    notes: &mut Notes,
) -> (Vec<Change>, Vec<u32>) {
    let merged = Merged::new(base, reported, notes);
    let mut unneeded = merged.ignored;
    let mut changes = Vec::new();
    for (path, after) in merged.after {
        let before = base.get(&path);
        match kind(before, after.as_ref()) {
            Some(kind) => {
                // A mode change needs no data.
                if let (ChangeKind::ModeChanged, Some(number)) = (kind, after.as_ref().and_then(number)) {
                    unneeded.push(number);
                }
                let starts_by_itself = starts_by_itself(&path);
                changes.push(Change { path, kind, before: before.cloned(), after, guard: None, starts_by_itself });
            }
            None => unneeded.extend(after.as_ref().and_then(number)),
        }
    }
    set_guards(base, &mut changes);
    (changes, unneeded)
}

fn number(after: &After) -> Option<u32> {
    match after.content {
        AfterContent::File { number, .. } => Some(number),
        _ => None,
    }
}

/// The state after the run of every path that the report touches; `None`: not there.
struct Merged {
    after: BTreeMap<RelPath, Option<After>>,
    /// Spool files of records that do not count.
    ignored: Vec<u32>,
}

impl Merged {
    fn new(base: &BTreeMap<RelPath, Entry>, reported: &BTreeMap<RelPath, Reported>, notes: &mut Notes) -> Self {
        let mut merged = Self { after: BTreeMap::new(), ignored: Vec::new() };
        for (path, record) in reported {
            if path.ancestors().any(|above| reported.get(&above).is_some_and(|record| !is_dir(record))) {
                notes.add(path.clone(), NoteKind::BelowNonDirectory);
                if let Reported::File { number, .. } = record {
                    merged.ignored.push(*number);
                }
                continue;
            }
            if hides(record) {
                for (below, _) in below(base, path) {
                    merged.after.entry(below.clone()).or_insert(None);
                }
            }
            for above in path.ancestors().filter(|above| !reported.contains_key(above)) {
                // The agent reports every directory above a change; what it left out is as it was, or plain.
                let mode =
                    base.get(&above).filter(|entry| entry.content == Content::Dir).map_or(0o755, |entry| entry.mode);
                merged.after.insert(above, Some(After { mode, content: AfterContent::Dir }));
            }
            merged.after.insert(path.clone(), after(record));
        }
        merged
    }
}

fn below<'a>(base: &'a BTreeMap<RelPath, Entry>, dir: &RelPath) -> impl Iterator<Item = (&'a RelPath, &'a Entry)> {
    let dir = dir.clone();
    let start = [dir.as_bytes(), b"/"].concat();
    let range = base.range::<[u8], _>((std::ops::Bound::Excluded(start.as_slice()), std::ops::Bound::Unbounded));
    range.take_while(move |(path, _)| path.is_below(&dir))
}

fn is_dir(record: &Reported) -> bool {
    matches!(record, Reported::Dir { .. })
}

/// Whether what the base has below is gone.
fn hides(record: &Reported) -> bool {
    !matches!(record, Reported::Dir { opaque: false, .. })
}

fn after(record: &Reported) -> Option<After> {
    match record {
        Reported::Whiteout | Reported::Special => None,
        Reported::Dir { mode, .. } => Some(After { mode: *mode, content: AfterContent::Dir }),
        Reported::File { mode, size, sha256, number } => {
            let content = AfterContent::File { size: *size, sha256: *sha256, number: *number };
            Some(After { mode: *mode, content })
        }
        Reported::Symlink { target } => {
            Some(After { mode: 0o777, content: AfterContent::Symlink { target: target.clone() } })
        }
    }
}

fn kind(before: Option<&Entry>, after: Option<&After>) -> Option<ChangeKind> {
    differs(before.map(State::of_entry), after.map(State::of_after))
}

/// An entry at some moment, as far as it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State<'a> {
    mode: u32,
    content: StateContent<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StateContent<'a> {
    Dir,
    File { size: u64, sha256: &'a Digest },
    Symlink { target: &'a [u8] },
}

impl<'a> State<'a> {
    /// As packed.
    pub(crate) fn of_entry(entry: &'a Entry) -> Self {
        let content = match &entry.content {
            Content::Dir => StateContent::Dir,
            Content::File { size, sha256, .. } => StateContent::File { size: *size, sha256 },
            Content::Symlink { target } => StateContent::Symlink { target },
        };
        Self { mode: entry.mode, content }
    }

    /// As reported.
    pub(crate) fn of_after(after: &'a After) -> Self {
        let content = match &after.content {
            AfterContent::Dir => StateContent::Dir,
            AfterContent::File { size, sha256, .. } => StateContent::File { size: *size, sha256 },
            AfterContent::Symlink { target } => StateContent::Symlink { target },
        };
        Self { mode: after.mode, content }
    }
}

/// How an entry differs at two moments; `None`: it does not.
pub(crate) fn differs(before: Option<State<'_>>, after: Option<State<'_>>) -> Option<ChangeKind> {
    use StateContent::{Dir, File, Symlink};
    let (before, after) = match (before, after) {
        (None, None) => return None,
        (None, Some(_)) => return Some(ChangeKind::Added),
        (Some(_), None) => return Some(ChangeKind::Deleted),
        (Some(before), Some(after)) => (before, after),
    };
    match (before.content, after.content) {
        // The mode of a link means nothing.
        (Symlink { target }, Symlink { target: new }) => (target != new).then_some(ChangeKind::Modified),
        (Dir, Dir) | (File { .. }, File { .. }) if before.content != after.content => Some(ChangeKind::Modified),
        (Dir, Dir) | (File { .. }, File { .. }) => (before.mode != after.mode).then_some(ChangeKind::ModeChanged),
        _ => Some(ChangeKind::TypeChanged),
    }
}

fn set_guards(base: &BTreeMap<RelPath, Entry>, changes: &mut [Change]) {
    let added: BTreeSet<RelPath> =
        changes.iter().filter(|change| change.before.is_none()).map(|change| change.path.clone()).collect();
    let exists = |path: &[u8]| base.contains_key(path) || added.contains(path);
    let git = GitDirs::find(base.keys().chain(&added), exists);
    let lost: BTreeSet<RelPath> = changes
        .iter()
        .filter(|change| change.after.as_ref().is_none_or(|after| after.content != AfterContent::Dir))
        .map(|change| change.path.clone())
        .filter(|path| path.name().eq_ignore_ascii_case(b".git"))
        .collect();
    for change in changes {
        change.guard = guard(change, &git, &lost);
    }
}

fn guard(change: &Change, git: &GitDirs, lost: &BTreeSet<RelPath>) -> Option<Guard> {
    let was_dir = change.before.as_ref().is_none_or(|before| before.content == Content::Dir);
    let is_dir = change.after.as_ref().is_none_or(|after| after.content == AfterContent::Dir);
    // The rest of a repository that is lost stays too: half a repository helps nobody.
    let in_lost = change.path.ancestors().any(|above| lost.contains(&above));
    if in_lost || git.guards(&change.path, was_dir && is_dir, change.after.is_none()) {
        return Some(Guard::GitInternals);
    }
    match &change.after {
        Some(After { content: AfterContent::Symlink { target }, .. }) => {
            let in_git = change.path.components().any(|name| name.eq_ignore_ascii_case(b".git"));
            if in_git {
                Some(Guard::GitInternals)
            } else if link_stays_inside(&change.path, target) {
                None
            } else {
                Some(Guard::LinkLeavesTree)
            }
        }
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
