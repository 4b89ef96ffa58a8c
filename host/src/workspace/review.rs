// SPDX-License-Identifier: Apache-2.0
//! The words of a review: the list of changes as text, the question asked, and what an answer means. Pure: the command line
//! prints and reads.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::apply::{ApplyOptions, ApplyReport};
use super::changes::{After, AfterContent, Change, ChangeKind, ChangeSet};
use super::diff::DiffOptions;
use super::manifest::{Content, Notes};
use super::path::{RelPath, printable};

/// The question after the list.
pub const PROMPT: &str = "Apply these changes? [a]ll, [n]one, [f]ile by file, [d]iff, [l]ist, [?]help: ";
/// The question for one change.
pub const FILE_PROMPT: &str = "Apply this change? [y]es, [n]o, [d]iff, [a]ll the rest, [q]: none of the rest: ";
/// What `?` shows.
pub const HELP: &str = "a  apply every change that is not marked '!'
n  apply nothing
f  decide for each change
d  show the changes as a diff
l  show the list again
";

/// Lists longer than this are cut in text; JSON has them all.
pub const LISTED_MAX: usize = 500;

/// After this time a list tells sizes instead of counting lines.
const COUNTING_MAX: Duration = Duration::from_secs(2);

/// What an answer to [`PROMPT`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Apply all that is not guarded.
    All,
    /// Apply nothing.
    Nothing,
    /// Ask for each change.
    EachFile,
    /// Show the diff and ask again.
    Diff,
    /// Show the list and ask again.
    List,
    /// Show the help, as for anything not understood, and ask again.
    Help,
}

impl Choice {
    /// Reads an answer; an empty line applies nothing, being the answer that loses nothing.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        match line.trim().to_ascii_lowercase().as_str() {
            "a" | "all" | "y" | "yes" => Self::All,
            "n" | "no" | "none" | "q" | "quit" | "" => Self::Nothing,
            "f" | "file" | "files" => Self::EachFile,
            "d" | "diff" => Self::Diff,
            "l" | "list" => Self::List,
            _ => Self::Help,
        }
    }
}

/// What an answer to [`FILE_PROMPT`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileChoice {
    /// Apply it.
    Yes,
    /// Do not.
    No,
    /// Show its diff and ask again.
    Diff,
    /// Apply it and all that follow.
    AllTheRest,
    /// Apply neither it nor any that follow.
    NoneOfTheRest,
    /// Not understood: ask again.
    Again,
}

impl FileChoice {
    /// Reads an answer.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        match line.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Self::Yes,
            "n" | "no" | "" => Self::No,
            "d" | "diff" => Self::Diff,
            "a" | "all" => Self::AllTheRest,
            "q" | "quit" => Self::NoneOfTheRest,
            _ => Self::Again,
        }
    }
}

/// Walks through the changes that may be applied, one question each, and gathers what was chosen.
#[derive(Debug)]
pub struct EachFile<'a> {
    waiting: std::vec::IntoIter<&'a Change>,
    current: Option<&'a Change>,
    chosen: BTreeSet<RelPath>,
}

impl<'a> EachFile<'a> {
    /// Starts with the first change that `options` allow.
    #[must_use]
    pub fn new(set: &'a ChangeSet, options: &ApplyOptions) -> Self {
        let open: Vec<&Change> = set.changes().iter().filter(|change| options.allows(change)).collect();
        let mut waiting = open.into_iter();
        Self { current: waiting.next(), waiting, chosen: BTreeSet::new() }
    }

    /// The change to ask about; `None` when all are decided.
    #[must_use]
    pub fn current(&self) -> Option<&'a Change> {
        self.current
    }

    /// Takes an answer about the current change. [`FileChoice::Diff`] and [`FileChoice::Again`] decide nothing.
    pub fn answer(&mut self, choice: FileChoice) {
        let Some(current) = self.current else { return };
        match choice {
            FileChoice::Diff | FileChoice::Again => return,
            FileChoice::Yes => drop(self.chosen.insert(current.path.clone())),
            FileChoice::No => {}
            FileChoice::AllTheRest => {
                self.chosen.insert(current.path.clone());
                self.chosen.extend(self.waiting.by_ref().map(|change| change.path.clone()));
            }
            FileChoice::NoneOfTheRest => self.waiting = Vec::new().into_iter(),
        }
        self.current = self.waiting.next();
    }

    /// What was chosen.
    #[must_use]
    pub fn chosen(self) -> BTreeSet<RelPath> {
        self.chosen
    }
}

/// One line for a change: letter, path, and what there is to say. `A` added, `M` modified, `P` permissions, `T` type, `D`
/// deleted; a leading `!` is not applied with these options, a leading `*` deserves a look.
#[must_use]
pub fn line(set: &ChangeSet, change: &Change, options: &ApplyOptions) -> String {
    line_with(set, change, options, true)
}

/// Every path with `A`, `M` or `D` before it, as transcripts have them.
#[must_use]
pub fn names(set: &ChangeSet) -> Vec<String> {
    set.changes().iter().map(|change| format!("{} {}", change.kind.letter(), change.path)).collect()
}

fn line_with(set: &ChangeSet, change: &Change, options: &ApplyOptions, counts_lines: bool) -> String {
    let letter = match change.kind {
        ChangeKind::Added => 'A',
        ChangeKind::Modified => 'M',
        ChangeKind::ModeChanged => 'P',
        ChangeKind::TypeChanged => 'T',
        ChangeKind::Deleted => 'D',
    };
    let mark = match change.guard {
        Some(_) if !options.allows(change) => '!',
        Some(_) => '*',
        None if change.starts_by_itself => '*',
        None => ' ',
    };
    let slash = match (&change.after, &change.before) {
        (Some(After { content: AfterContent::Dir, .. }), _) => "/",
        (None, Some(entry)) if entry.content == Content::Dir => "/",
        _ => "",
    };
    let mut text = format!("{mark}{letter}  {}{slash}{}", change.path, details(set, change, counts_lines));
    if let Some(guard) = change.guard {
        let _ = write!(text, "  ({})", guard.text());
    } else if change.starts_by_itself {
        text.push_str("  (tools may act upon it by themselves)");
    }
    text
}

fn details(set: &ChangeSet, change: &Change, counts_lines: bool) -> String {
    let modes = match (&change.before, &change.after) {
        (Some(before), Some(after)) if before.mode != after.mode && !is_link(after) => {
            format!("  {:04o} -> {:04o}", before.mode, after.mode)
        }
        _ => String::new(),
    };
    if change.kind == ChangeKind::ModeChanged {
        return modes;
    }
    let content = match &change.after {
        Some(After { content: AfterContent::Symlink { target }, .. }) => format!(" -> {}", printable(target)),
        Some(After { content: AfterContent::File { size, .. }, .. }) if !counts_lines => {
            format!("  {}", human_bytes(*size))
        }
        Some(After { content: AfterContent::File { size, .. }, .. }) => counted(set, change, *size),
        Some(After { content: AfterContent::Dir, .. }) | None => String::new(),
    };
    content + &modes
}

fn is_link(after: &After) -> bool {
    matches!(after.content, AfterContent::Symlink { .. })
}

fn counted(set: &ChangeSet, change: &Change, size: u64) -> String {
    let options = DiffOptions { file_timeout_ms: 100, ..DiffOptions::default() };
    match set.line_counts(change, &options) {
        Ok(Some(counts)) => format!("  +{} -{}", counts.added, counts.removed),
        _ => format!("  {}", human_bytes(size)),
    }
}

/// The whole list with a closing line of totals.
#[must_use]
pub fn list(set: &ChangeSet, options: &ApplyOptions) -> String {
    if set.is_empty() {
        return "No changes.\n".into();
    }
    let mut text = String::new();
    let start = Instant::now();
    for change in set.changes().iter().take(LISTED_MAX) {
        text.push_str(&line_with(set, change, options, start.elapsed() < COUNTING_MAX));
        text.push('\n');
    }
    if set.changes().len() > LISTED_MAX {
        let _ = writeln!(text, "    ... and {} more", set.changes().len() - LISTED_MAX);
    }
    text + &notes(set.notes()) + &totals(set, options)
}

/// One line for each kind of note, with the first path it is about; for a report, and for what was packed.
#[must_use]
pub fn notes(notes: &Notes) -> String {
    let mut text = String::new();
    for (kind, count) in notes.counts() {
        let first = notes.items().iter().find(|note| note.kind == *kind);
        let name = first.map_or_else(|| "an entry".to_owned(), |note| note.path.to_string());
        let more = if *count > 1 { format!(" (and {} more like it)", count - 1) } else { String::new() };
        let _ = writeln!(text, "note: {name} {}{more}", kind.text());
    }
    text
}

fn totals(set: &ChangeSet, options: &ApplyOptions) -> String {
    let kinds = [
        (ChangeKind::Added, "added"),
        (ChangeKind::Modified, "modified"),
        (ChangeKind::ModeChanged, "with other permissions"),
        (ChangeKind::TypeChanged, "of another type"),
        (ChangeKind::Deleted, "deleted"),
    ];
    let count = |kind| set.changes().iter().filter(|change| change.kind == kind).count();
    let parts: Vec<String> = kinds
        .iter()
        .map(|(kind, word)| (count(*kind), word))
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| format!("{n} {word}"))
        .collect();
    let guarded = set.changes().iter().filter(|change| !options.allows(change)).count();
    let refused = if guarded > 0 { format!("; {guarded} marked '!' would not be applied") } else { String::new() };
    format!("{}{refused}\n", parts.join(", "))
}

/// What an apply did, for the user.
#[must_use]
pub fn report(report: &ApplyReport) -> String {
    let mut text = format!("applied {} changes\n", report.applied.len());
    for (path, guard) in &report.refused {
        let _ = writeln!(text, "not applied: {path} {}", guard.text());
    }
    for (path, conflict) in &report.conflicts {
        let _ = writeln!(text, "conflict: {path} {}", conflict.text());
    }
    for (path, error) in &report.failed {
        let _ = writeln!(text, "failed: {path}: {error}");
    }
    if let Some(kept) = &report.kept_in {
        let _ = writeln!(text, "the run's version of these files is in {}", kept.display());
    }
    text
}

/// A size as people read it.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests;
