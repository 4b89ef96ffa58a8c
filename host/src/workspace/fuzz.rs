// SPDX-License-Identifier: Apache-2.0
//! Bodies of the fuzz targets `changes` and `manifest`: what comes back from a guest, and what lies with
//! a template. Each uses a directory in `$TMPDIR`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::changes::AfterContent;
use super::fixture::{Fixture, Item, Tree, file, tree, write};
use super::manifest::{Content, Entry};
use super::path::RelPath;
use super::review;
use super::{ApplyOptions, ChangeKind, ChangeSet, DiffOptions, GuestEntry, GuestKind, Manifest, Spool, SpoolLimits};

thread_local! {
    static FIXTURE: Fixture = Fixture::new(&packed());
}

/// What was packed.
fn packed() -> Tree {
    tree(&[
        ("a/b/c/deep", file("one\ntwo\n")),
        ("a/f", file("text\n")),
        ("a/empty", file("")),
        ("run", Item::File(0o755, b"#!/bin/sh\n".to_vec())),
        ("link", Item::Link("a/f".into())),
        ("out", Item::Link("/etc".into())),
        (".git/config", file("[core]\n")),
        (".git/hooks/pre-commit", Item::File(0o755, b"#!".to_vec())),
        ("sub/.git/HEAD", file("ref")),
        ("bin", Item::File(0o644, vec![0, 1, 2, 255])),
    ])
}

const NAMES: [&str; 28] = [
    "a",
    "a/b",
    "a/b/c",
    "a/b/c/deep",
    "a/f",
    "a/f/x",
    "a/empty",
    "run",
    "link",
    "link/x",
    "out",
    "out/passwd",
    ".git",
    ".git/config",
    ".git/hooks",
    ".git/hooks/pre-commit",
    "sub",
    "sub/.git",
    "sub/.git/HEAD",
    "new",
    "new/x/y",
    "new/x",
    ".GIT/config",
    "..",
    "a/../../outside/canary",
    "/etc/passwd",
    "a//b",
    "./a",
];
const TARGETS: [&str; 6] = ["a/f", "../outside/canary", "/etc/passwd", "..", "", "f"];

/// One record of the input: what the guest says, and the data behind it.
fn record<'a>(input: &mut &'a [u8]) -> Option<(GuestEntry, &'a [u8])> {
    let ([what, place, mode, count], rest) = input.split_first_chunk()?;
    let kinds = [
        GuestKind::File,
        GuestKind::File,
        GuestKind::Whiteout,
        GuestKind::OpaqueDir,
        GuestKind::Dir,
        GuestKind::Symlink,
        GuestKind::Special,
        GuestKind::File,
    ];
    let (data, rest) = rest.split_at(usize::from(count & 63).min(rest.len()));
    let (raw, rest) = rest.split_at(usize::from(place & 31).min(rest.len()));
    let is_raw = place & 0x80 != 0;
    *input = if is_raw { rest } else { &input[4 + data.len()..] };
    let path = if is_raw { raw.to_vec() } else { NAMES[usize::from(*place) % NAMES.len()].as_bytes().to_vec() };
    let target = TARGETS[usize::from(count >> 5) % TARGETS.len()].as_bytes().to_vec();
    let mode = if mode & 0x80 == 0 { u32::from(*mode) << 3 | 0o400 } else { u32::from(*mode) << 24 | 0o6777 };
    // Now and then the length is a lie.
    let size = data.len() as u64 + u64::from(what >> 6 == 3);
    Some((GuestEntry { path, kind: kinds[usize::from(*what) % 8], mode, size, target }, data))
}

/// What a tree has at a path; modes without those of links.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir(u32),
    File(u32, [u8; 32]),
    Link(Vec<u8>),
}

type Nodes = BTreeMap<Vec<u8>, Node>;

fn of_entry(entry: &Entry) -> Node {
    match &entry.content {
        Content::Dir => Node::Dir(entry.mode),
        Content::File { sha256, .. } => Node::File(entry.mode, *sha256),
        Content::Symlink { target } => Node::Link(target.clone()),
    }
}

fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at])
}

fn remove_below(nodes: &mut Nodes, path: &[u8]) {
    nodes.retain(|other, _| !(other.starts_with(path) && other.get(path.len()) == Some(&b'/')));
}

/// What overlayfs would show: an upper layer with these records over what was packed.
fn overlaid(base: &Nodes, upper: &BTreeMap<Vec<u8>, (GuestEntry, Vec<u8>)>) -> Nodes {
    let mut nodes = base.clone();
    let is_dir = |kind| matches!(kind, GuestKind::Dir | GuestKind::OpaqueDir);
    for (path, (entry, data)) in upper {
        if ancestors(path).any(|above| upper.get(above).is_some_and(|(entry, _)| !is_dir(entry.kind))) {
            continue;
        }
        for above in ancestors(path) {
            if !matches!(nodes.get(above), Some(Node::Dir(_))) {
                nodes.insert(above.to_vec(), Node::Dir(0o755));
            }
        }
        if entry.kind != GuestKind::Dir || !matches!(nodes.get(path), Some(Node::Dir(_))) {
            remove_below(&mut nodes, path);
        }
        let mode = entry.mode & 0o1777;
        let node = match entry.kind {
            GuestKind::Whiteout | GuestKind::Special => None,
            GuestKind::Dir | GuestKind::OpaqueDir => Some(Node::Dir(mode)),
            GuestKind::File => Some(Node::File(mode, Sha256::digest(data).into())),
            GuestKind::Symlink => Some(Node::Link(entry.target.clone())),
        };
        match node {
            Some(node) => drop(nodes.insert(path.clone(), node)),
            None => drop(nodes.remove(path)),
        }
    }
    nodes
}

/// What was packed, with the changes made to it.
fn changed(base: &Nodes, set: &ChangeSet) -> Nodes {
    let mut nodes = base.clone();
    let mut last: Option<&RelPath> = None;
    for change in set.changes() {
        assert!(last.is_none_or(|last| *last < change.path), "not sorted, or twice");
        last = Some(&change.path);
        let path = change.path.as_bytes().to_vec();
        assert_eq!(change.before.as_ref().map(of_entry).as_ref(), base.get(&path));
        assert_eq!(change.kind == ChangeKind::Deleted, change.after.is_none());
        let node = change.after.as_ref().map(|after| match &after.content {
            AfterContent::Dir => Node::Dir(after.mode),
            AfterContent::File { sha256, .. } => Node::File(after.mode, *sha256),
            AfterContent::Symlink { target } => Node::Link(target.clone()),
        });
        assert_ne!(node.as_ref(), base.get(&path), "a change that is none");
        match node {
            Some(node) => drop(nodes.insert(path, node)),
            None => drop(nodes.remove(&path)),
        }
    }
    nodes
}

/// What lies in a directory.
fn found(top: &Path) -> Nodes {
    let mut nodes = Nodes::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(top.join(&dir)).expect("a directory of ours") {
            let path = dir.join(entry.expect("an entry").file_name());
            let at = top.join(&path);
            let stat = at.symlink_metadata().expect("nobody else is here");
            let mode = stat.permissions().mode() & 0o7777;
            let node = if stat.is_dir() {
                waiting.push(path.clone());
                Node::Dir(mode)
            } else if stat.is_symlink() {
                Node::Link(std::fs::read_link(&at).expect("a link").into_os_string().as_bytes().to_vec())
            } else {
                Node::File(mode, Sha256::digest(std::fs::read(&at).expect("a file")).into())
            };
            nodes.insert(path.into_os_string().as_bytes().to_vec(), node);
        }
    }
    nodes
}

fn without_modes(nodes: Nodes) -> Nodes {
    let plain = |node| match node {
        Node::Dir(_) => Node::Dir(0),
        Node::File(_, digest) => Node::File(0, digest),
        Node::Link(target) => Node::Link(target),
    };
    nodes.into_iter().map(|(path, node)| (path, plain(node))).collect()
}

/// Nothing in it steers a terminal.
fn is_tame(text: &str) -> bool {
    text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t' | '\r'))
}

fn show(set: &ChangeSet, options: &ApplyOptions) {
    let (mut diff, json) = (Vec::new(), set.to_json().to_string());
    // A second for a few bytes is never used up.
    set.write_diff(&mut diff, &DiffOptions::default()).expect("a vector takes it");
    let diff = String::from_utf8(diff).expect("a diff for a terminal is text");
    assert!(is_tame(&diff) && is_tame(&review::list(set, options)) && is_tame(&review::notes(set.notes())), "{diff:?}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("our own"), set.to_json());
}

fn apply(set: &ChangeSet, base: &Nodes, options: &ApplyOptions, dir: &Path) {
    let (top, outside) = (dir.join("tree"), dir.join("outside"));
    write(&packed(), &top);
    std::fs::create_dir(&outside).expect("a new directory");
    std::fs::write(outside.join("canary"), "sings").expect("a new file");
    let report = set.apply(&top, options).expect("a directory that can be opened");
    assert_eq!(found(&outside).len(), 1, "something was made outside");
    assert_eq!(std::fs::read(outside.join("canary")).expect("it is there"), b"sings");
    let now = found(&top);
    assert!(now.values().all(|node| !matches!(node, Node::Dir(mode) | Node::File(mode, _) if mode & 0o7000 != 0)));
    let refused = set.changes().iter().filter(|change| !options.allows(change)).count();
    assert_eq!(report.refused.len(), refused);
    assert_eq!(
        report.applied.len() + report.refused.len() + report.conflicts.len() + report.failed.len(),
        set.changes().len()
    );
    if report.is_complete() {
        assert_eq!(without_modes(now), without_modes(changed(base, set)));
    } else if set.changes().iter().all(|change| change.guard.is_none()) {
        panic!("nobody else changed the directory: {report:?}");
    }
}

/// Input: what is allowed (1 byte); then records: kind (1), path (1), mode (1), length and target (1),
/// data, a raw path.
pub fn changes(data: &[u8]) {
    let Some((flags, mut input)) = data.split_first() else { return };
    FIXTURE.with(|fixture| {
        let dir = tempfile::tempdir_in(fixture.dir.path()).expect("a directory");
        let mut spool =
            Spool::create(&dir.path().join("spool"), SpoolLimits { entries: 40, bytes: 1000 }).expect("new");
        let mut upper = BTreeMap::new();
        while let Some((entry, data)) = record(&mut input) {
            let taken = spool.entry(&entry).and_then(|()| match entry.kind {
                GuestKind::File => data.chunks(7).try_for_each(|piece| spool.data(piece)),
                _ => Ok(()),
            });
            if let Err(error) = taken {
                assert!(error.is_guest_fault() && is_tame(&error.to_string()), "{error}");
                return;
            }
            upper.insert(entry.path.clone(), (entry, data.to_vec()));
        }
        let set = match spool.finish(&fixture.manifest) {
            Ok(set) => set,
            Err(error) => return assert!(error.is_guest_fault(), "{error}"),
        };
        assert!(upper.values().all(|(entry, data)| entry.kind != GuestKind::File || entry.size == data.len() as u64));
        let base: Nodes =
            fixture.manifest.entries.iter().map(|(path, entry)| (path.as_bytes().to_vec(), of_entry(entry))).collect();
        assert_eq!(changed(&base, &set), overlaid(&base, &upper));
        let options = ApplyOptions {
            only: None,
            allow_git_internals: flags & 1 != 0,
            allow_outside_links: flags & 2 != 0,
            keep_in: Some(dir.path().join("kept")),
        };
        show(&set, &options);
        if flags & 4 != 0 {
            apply(&set, &base, &options, dir.path());
        }
    });
}

/// The file of the input: all of it, or a sound one with parts of it replaced.
fn manifest_file(data: &[u8], sound: Vec<u8>) -> Vec<u8> {
    match data {
        [0, file @ ..] => file.to_vec(),
        [_, edits @ ..] => {
            let (mut file, mut edits) = (sound, edits);
            while let Some(([p0, p1, removed, added], rest)) = edits.split_first_chunk() {
                let (text, rest) = rest.split_at(usize::from(added & 31).min(rest.len()));
                let start = usize::from(u16::from_le_bytes([*p0, *p1])) % (file.len() + 1);
                let end = (start + usize::from(*removed)).min(file.len());
                drop(file.splice(start..end, text.iter().copied()));
                edits = rest;
            }
            file
        }
        [] => Vec::new(),
    }
}

/// Input: 0 and a file; or 1, and what becomes of a sound one: where (2 bytes), how many bytes go (1), how many come
/// (1), these.
pub fn manifest(data: &[u8]) {
    FIXTURE.with(|fixture| {
        let at = |name| fixture.dir.path().join(OsStr::new(name));
        let sound = at("sound");
        if !sound.exists() {
            fixture.manifest.save(&sound).expect("it is sound");
        }
        let data = manifest_file(data, std::fs::read(&sound).expect("it was written"));
        std::fs::write(at("manifest"), data).expect("a new file");
        let image = at("image");
        let read = match Manifest::load(&at("manifest"), &image) {
            Ok(read) => read,
            Err(error) => return assert!(!error.to_string().is_empty()),
        };
        for (path, entry) in &read.entries {
            assert!(RelPath::parse(path.as_bytes()).is_ok() && entry.mode <= 0o1777);
            assert!(read.read_base(entry, 1 << 20).is_ok(), "content that is not in the image");
        }
        let _ = std::fs::remove_file(at("again"));
        read.save(&at("again")).expect("what was read can be written");
        let again = Manifest::load(&at("again"), &image).expect("and read again");
        let all = |manifest: &Manifest| (manifest.dir.clone(), manifest.files, manifest.bytes, manifest.image_bytes);
        assert_eq!(all(&again), all(&read));
        assert!(again.entries == read.entries && again.notes.items() == read.notes.items());
    });
}
