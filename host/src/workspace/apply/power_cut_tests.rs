// SPDX-License-Identifier: Apache-2.0
//! Power cuts while changes are applied: what every step did is recorded from the tree itself, together with what was flushed;
//! then the tree is built as a disk may have kept it, for a cut after each of these effects.
//!
//! The disk is as bad as it is allowed to be: of what was not flushed, any entries of any directory and any state of a file
//! arrived (old, new, empty, half, zeros in its place); one rename arrives whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::fixture::{Fixture, Item, Tree, file, read, tree, upper, write as write_tree};
use super::tests::{base, edited};
use super::*;

type Inode = u64;
type Entries = BTreeMap<String, Inode>;
/// Names that came or went, and to what.
type Changed = Vec<(String, Option<Inode>)>;

/// What a step did.
enum Effect {
    /// A file got this content and mode, or a link its target; or a directory its mode.
    Content(Inode, Item),
    /// Entries of a directory came (to an inode) or went, all at once.
    Entries(Inode, Changed),
    Flushed(Inode),
}

/// A tree by inodes.
#[derive(Default)]
struct Snapshot {
    contents: BTreeMap<Inode, Item>,
    dirs: BTreeMap<Inode, Entries>,
}

/// Looks at the tree before every step, and so after every one.
struct Recorder {
    top: PathBuf,
    seen: Snapshot,
    effects: Vec<Effect>,
    /// Open, so that no number of an inode is used twice.
    inodes: BTreeMap<Inode, File>,
}

impl Recorder {
    fn new(top: &Path) -> Self {
        let mut recorder =
            Self { top: top.into(), seen: Snapshot::default(), effects: Vec::new(), inodes: BTreeMap::new() };
        recorder.look();
        recorder.effects.clear();
        recorder
    }

    fn look(&mut self) {
        let mut now = Snapshot::default();
        let mut waiting = vec![self.top.clone()];
        let items = read(&self.top);
        while let Some(dir) = waiting.pop() {
            let entries = now.dirs.entry(dir.metadata().unwrap().ino()).or_default();
            for entry in std::fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                let stat = path.symlink_metadata().unwrap();
                let name = path.strip_prefix(&self.top).unwrap().to_str().unwrap();
                self.inodes.entry(stat.ino()).or_insert_with(|| {
                    let flags = (rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW).bits();
                    File::options().read(true).custom_flags(flags.cast_signed()).open(&path).unwrap()
                });
                now.contents.insert(stat.ino(), items[name].clone());
                entries.insert(path.file_name().unwrap().to_str().unwrap().into(), stat.ino());
                if stat.is_dir() {
                    waiting.push(path);
                }
            }
        }
        for (inode, item) in &now.contents {
            if self.seen.contents.get(inode) != Some(item) {
                self.effects.push(Effect::Content(*inode, item.clone()));
            }
        }
        for (inode, entries) in &now.dirs {
            let before = self.seen.dirs.remove(inode).unwrap_or_default();
            let gone = before.keys().filter(|name| !entries.contains_key(*name)).map(|name| (name.clone(), None));
            let come = entries.iter().filter(|(name, to)| before.get(*name) != Some(to));
            let changed: Changed = gone.chain(come.map(|(name, to)| (name.clone(), Some(*to)))).collect();
            if !changed.is_empty() {
                self.effects.push(Effect::Entries(*inode, changed));
            }
        }
        self.seen = now;
    }
}

impl Steps for Recorder {
    fn before(&mut self, _: Step) -> io::Result<()> {
        self.look();
        Ok(())
    }

    fn sync(&mut self, step: Step, what: BorrowedFd<'_>) -> io::Result<()> {
        self.before(step)?;
        self.effects.push(Effect::Flushed(rustix::fs::fstat(what)?.st_ino));
        Ok(())
    }
}

/// Numbers that look random, the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ z >> 31) % end as u64).unwrap()
    }
}

/// What a disk may have of a file whose states since it was flushed these are: its mode is one of them, its data one of them,
/// or, where that changed, a part of it.
fn kept(states: &[Item], dice: &mut Dice) -> Item {
    let any = &states[dice.below(states.len())];
    let Item::File(mode, data) = any else { return any.clone() };
    let is_same = |state: &Item| matches!(state, Item::File(_, other) if other == data);
    match dice.below(5) {
        _ if states.iter().all(is_same) => any.clone(),
        0 => Item::File(*mode, Vec::new()),
        1 => Item::File(*mode, data[..data.len() / 2].into()),
        2 => Item::File(*mode, vec![0; data.len()]),
        _ => any.clone(),
    }
}

/// The tree that a disk may have kept: as it was, and of `effects` those that were flushed, and some.
fn cut(start: &Snapshot, top: Inode, effects: &[Effect], dice: &mut Dice) -> Tree {
    let mut states: BTreeMap<Inode, Vec<Item>> =
        start.contents.iter().map(|(inode, item)| (*inode, vec![item.clone()])).collect();
    let mut dirs = start.dirs.clone();
    let mut waiting: BTreeMap<Inode, Vec<&Changed>> = BTreeMap::new();
    let enter = |dirs: &mut BTreeMap<Inode, Entries>, dir: Inode, changed: &Changed| {
        let entries = dirs.entry(dir).or_default();
        for (name, to) in changed {
            match to {
                Some(inode) => drop(entries.insert(name.clone(), *inode)),
                None => drop(entries.remove(name)),
            }
        }
    };
    for effect in effects {
        match effect {
            // A file that is new may also be there without anything in it.
            Effect::Content(inode, item) => states
                .entry(*inode)
                .or_insert_with(|| match item {
                    Item::File(mode, _) => vec![Item::File(*mode, Vec::new())],
                    _ => Vec::new(),
                })
                .push(item.clone()),
            Effect::Entries(dir, changed) => waiting.entry(*dir).or_default().push(changed),
            Effect::Flushed(inode) => {
                waiting.remove(inode).into_iter().flatten().for_each(|changed| enter(&mut dirs, *inode, changed));
                if let Some(states) = states.get_mut(inode) {
                    states.drain(..states.len() - 1);
                }
            }
        }
    }
    for (dir, changes) in waiting {
        for changed in changes {
            if dice.below(2) == 0 {
                enter(&mut dirs, dir, changed);
            }
        }
    }
    let items: BTreeMap<Inode, Item> = states.iter().map(|(inode, states)| (*inode, kept(states, dice))).collect();
    let mut found = Tree::new();
    let mut open = vec![(String::new(), top)];
    while let Some((path, dir)) = open.pop() {
        for (name, inode) in dirs.get(&dir).into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            if let Item::Dir(_) = items[inode] {
                open.push((path.clone(), *inode));
            }
            found.insert(path, items[inode].clone());
        }
    }
    found
}

fn before() -> Tree {
    let mut before = base();
    before.extend(tree(&[
        ("was/moved", file("moved out of what is no directory any more")),
        ("old/name", file("moved to another directory")),
        ("a/z", file("moved in its directory")),
        ("same", file("untouched")),
    ]));
    before
}

/// An edit of every kind, deeper and longer than elsewhere, and data that moves.
fn after() -> Tree {
    let mut after = edited();
    after.insert("a/g".into(), file("changed, and longer than it was"));
    after.insert("n".into(), Item::Dir(0o755));
    after.insert("n/m".into(), Item::Dir(0o700));
    after.remove("n/x");
    after.insert("n/m/x".into(), Item::File(0o755, b"new".to_vec()));
    after.insert("x".into(), file("moved out of what is no directory any more"));
    after.insert("new".into(), Item::Dir(0o755));
    after.insert("new/name".into(), file("moved to another directory"));
    after.insert("a/b".into(), file("moved in its directory"));
    after.insert("same".into(), file("untouched"));
    after
}

fn is_temporary(path: &str) -> bool {
    path.rsplit('/').next().unwrap().starts_with(".midge-")
}

/// Every file and link is wholly the old or the new one, and what was moved is in one of its places.
fn assert_old_or_new(found: &Tree, context: &str) {
    let (old, new) = (before(), after());
    for (path, item) in found.iter().filter(|(path, item)| !is_temporary(path) && !matches!(item, Item::Dir(_))) {
        let known = old.get(path) == Some(item) || new.get(path) == Some(item);
        assert!(known, "{context}: {path} is neither old nor new: {item:?}");
    }
    let replaced = |path: &str| {
        matches!(
            (old.get(path), new.get(path)),
            (Some(Item::File(..) | Item::Link(_)), Some(Item::File(..) | Item::Link(_)))
        )
    };
    for path in old.keys().filter(|path| replaced(path)) {
        assert!(found.contains_key(path), "{context}: {path} is there, old or new");
    }
    for (from, to) in [("was/moved", "x"), ("old/name", "new/name"), ("a/z", "a/b")] {
        let there = [found.get(from), found.get(to)].into_iter().flatten().any(|item| *item == old[from]);
        assert!(there, "{context}: what was moved from {from} to {to} is in neither place");
    }
}

fn files(tree: &Tree) -> Tree {
    tree.iter()
        .filter(|(path, item)| !is_temporary(path) && !matches!(item, Item::Dir(_)))
        .map(|(path, item)| (path.clone(), item.clone()))
        .collect()
}

fn options(only: Option<&BTreeSet<RelPath>>) -> ApplyOptions {
    ApplyOptions { only: only.cloned(), allow_outside_links: true, ..ApplyOptions::default() }
}

/// Records what an apply does, then cuts it after every effect; returns how many effects there were.
fn cut_everywhere(edit: &(Tree, Tree), only: Option<&BTreeSet<RelPath>>, check: impl Fn(&Tree, &str)) -> usize {
    let fixture = Fixture::new(&edit.0);
    let set = fixture.changes(&upper(&edit.0, &edit.1));
    let mut recorder = Recorder::new(&fixture.top);
    let start = Snapshot { contents: recorder.seen.contents.clone(), dirs: recorder.seen.dirs.clone() };
    let report = set.apply_with(&fixture.top, &options(only), &mut recorder).unwrap();
    assert!(report.is_complete(), "{report:?}");
    recorder.look();
    let top = fixture.top.metadata().unwrap().ino();
    let applied = files(&read(&fixture.top));
    let effects = &recorder.effects;
    for (count, seed) in (0..=effects.len()).flat_map(|count| (0..24).map(move |seed| (count, seed))) {
        let context = format!("cut after {count} of {}, seed {seed}", effects.len());
        let found = cut(&start, top, &effects[..count], &mut Dice(seed << 32 | count as u64));
        check(&found, &context);
        if count == effects.len() {
            assert_eq!(files(&found), applied, "{context}: what was reported as applied is on the disk");
        }
        if seed % 12 == 0 {
            let again = fixture.dir.path().join(format!("again-{count}-{seed}"));
            write_tree(&found, &again);
            let report = set.apply_with(&again, &options(only), &mut Unflushed).unwrap();
            // A leftover of ours keeps a directory from going, and that is said.
            let left =
                |path: &RelPath| found.keys().any(|name| is_temporary(name) && name.starts_with(&path.to_string()));
            assert!(report.conflicts.iter().all(|(path, _)| left(path)), "{context}: {report:?}");
            assert_eq!((&report.failed[..], &report.refused[..]), (&[][..], &[][..]), "{context}");
            if report.is_complete() {
                assert_eq!(files(&read(&again)), applied, "{context}: applied again");
            }
            std::fs::remove_dir_all(again).unwrap();
        }
    }
    effects.len()
}

/// Every step happens, and nothing waits for a disk.
struct Unflushed;

impl Steps for Unflushed {
    fn before(&mut self, _: Step) -> io::Result<()> {
        Ok(())
    }
    fn sync(&mut self, _: Step, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_power_cut_at_any_effect_leaves_each_file_old_or_new_and_moved_data_somewhere() {
    let effects = cut_everywhere(&(before(), after()), None, assert_old_or_new);
    assert!(effects > 60, "{effects} effects were seen");
}

/// Nothing but one directory, which is not left between the new name and the end of the old one.
#[test]
fn what_moves_within_one_directory_is_never_in_neither_place() {
    let data = || file("moved");
    let edit = (tree(&[("old", data())]), tree(&[("new", data())]));
    let effects = cut_everywhere(&edit, None, |found, context| {
        assert!([found.get("old"), found.get("new")].contains(&Some(&data())), "{context}: {found:?}");
    });
    assert!(effects > 5, "{effects} effects were seen");
}

/// Directories that come only because something chosen lies in them are flushed as well.
#[test]
fn what_was_chosen_out_of_a_new_directory_is_on_the_disk_when_it_is_reported() {
    let only = BTreeSet::from([RelPath::parse(b"n/m/x").unwrap()]);
    let effects = cut_everywhere(&(before(), after()), Some(&only), |found, context| {
        let (old, item) = (files(&before()), after()["n/m/x"].clone());
        let mut found = files(found);
        let new = found.remove("n/m/x");
        assert!(new.is_none() || new == Some(item), "{context}: {new:?}");
        assert_eq!(found, old, "{context}");
    });
    assert!(effects > 8, "{effects} effects were seen");
}

/// Makes one kind of flush fail, always.
struct CannotFlush(Step);

impl Steps for CannotFlush {
    fn before(&mut self, step: Step) -> io::Result<()> {
        if step == self.0 { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
    }
}

#[test]
fn what_cannot_be_flushed_is_reported_and_nothing_is_deleted_after_it() {
    for step in [Step::SyncFile, Step::SyncDir] {
        let fixture = Fixture::new(&before());
        let set = fixture.changes(&upper(&before(), &after()));
        let options = ApplyOptions { keep_in: Some(fixture.dir.path().join("kept")), ..options(None) };
        let report = set.apply_with(&fixture.top, &options, &mut CannotFlush(step)).unwrap();
        let failed: Vec<String> = report.failed.iter().map(|(path, _)| path.to_string()).collect();
        for path in ["a/g", "a/b", "n/m/x", "x"] {
            assert!(failed.contains(&path.to_owned()), "{step:?}: {path} is not among {failed:?}");
        }
        assert!(report.failed.iter().all(|(_, text)| text.contains("the disk is gone")), "{report:?}");
        if step == Step::SyncDir {
            for path in ["a/z", "was/moved", "old/name"] {
                assert_eq!(read(&fixture.top).get(path), before().get(path), "{path} stays");
            }
        }
        assert!(set.apply(&fixture.top, &self::options(None)).unwrap().is_complete(), "a second apply completes");
        assert_eq!(files(&read(&fixture.top)), files(&after()));
    }
}
