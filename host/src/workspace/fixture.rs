// SPDX-License-Identifier: Apache-2.0
//! For tests: a directory tree as a value, written to and read from disk, and the report a guest would make of a change from
//! one tree to another, as overlayfs would have it in the upper layer.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::{ChangeSet, GuestEntry, GuestKind, PackLimits, Spool, SpoolLimits, pack};

/// One entry of a [`Tree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Dir(u32),
    File(u32, Vec<u8>),
    Link(String),
}

pub(crate) fn file(text: &str) -> Item {
    Item::File(0o644, text.into())
}

/// A directory's content; every entry's parents are in it.
pub(crate) type Tree = BTreeMap<String, Item>;

pub(crate) fn tree(items: &[(&str, Item)]) -> Tree {
    let mut tree = Tree::new();
    for (path, item) in items {
        for (at, _) in path.match_indices('/') {
            tree.entry(path[..at].into()).or_insert(Item::Dir(0o755));
        }
        tree.insert((*path).into(), item.clone());
    }
    tree
}

pub(crate) fn write(tree: &Tree, top: &Path) {
    std::fs::create_dir_all(top).unwrap();
    for (path, item) in tree {
        let at = top.join(path);
        match item {
            Item::Dir(_) => std::fs::create_dir(&at).unwrap(),
            Item::File(mode, data) => {
                std::fs::write(&at, data).unwrap();
                std::fs::set_permissions(&at, std::fs::Permissions::from_mode(*mode)).unwrap();
            }
            Item::Link(target) => symlink(target, &at).unwrap(),
        }
    }
    for (path, item) in tree.iter().rev() {
        if let Item::Dir(mode) = item {
            std::fs::set_permissions(top.join(path), std::fs::Permissions::from_mode(*mode)).unwrap();
        }
    }
}

pub(crate) fn read(top: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut waiting = vec![top.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = path.symlink_metadata().unwrap();
            let mode = stat.permissions().mode() & 0o7777;
            let item = if stat.is_dir() {
                waiting.push(path.clone());
                Item::Dir(mode)
            } else if stat.is_symlink() {
                Item::Link(std::fs::read_link(&path).unwrap().to_str().unwrap().into())
            } else {
                Item::File(mode, std::fs::read(&path).unwrap())
            };
            tree.insert(path.strip_prefix(top).unwrap().to_str().unwrap().into(), item);
        }
    }
    tree
}

/// What the upper layer of an overlay over `before` holds when the merged view is `after`.
pub(crate) fn upper(before: &Tree, after: &Tree) -> Vec<(GuestEntry, Vec<u8>)> {
    let mut records = BTreeMap::new();
    let parents = |path: &str| path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect::<Vec<_>>();
    let is_dir = |tree: &Tree, path: &str| matches!(tree.get(path), Some(Item::Dir(_)));
    let mut touch = |path: &str, record: (GuestEntry, Vec<u8>)| {
        for above in parents(path) {
            if let Some(item @ Item::Dir(_)) = after.get(&above) {
                // What was no directory before, or not at all, is a new one: overlayfs marks it opaque.
                let record = guest_entry(&above, item, before.contains_key(&above) && !is_dir(before, &above));
                records.entry(above).or_insert(record);
            }
        }
        records.insert(path.to_owned(), record);
    };
    for (path, item) in after.iter().filter(|(path, item)| before.get(*path) != Some(item)) {
        let replaced = before.contains_key(path) && !is_dir(before, path);
        touch(path, guest_entry(path, item, replaced && matches!(item, Item::Dir(_))));
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        let hidden = parents(path).iter().any(|above| !is_dir(after, above));
        if !hidden {
            let whiteout = entry(path.as_bytes(), GuestKind::Whiteout);
            touch(path, (whiteout, Vec::new()));
        }
    }
    records.into_values().collect()
}

pub(crate) fn entry(path: &[u8], kind: GuestKind) -> GuestEntry {
    GuestEntry { path: path.into(), kind, mode: 0o644, size: 0, target: Vec::new() }
}

pub(crate) fn guest_file(path: &str, data: &[u8]) -> (GuestEntry, Vec<u8>) {
    guest_entry(path, &Item::File(0o644, data.into()), false)
}

fn guest_entry(path: &str, item: &Item, opaque: bool) -> (GuestEntry, Vec<u8>) {
    let path = path.as_bytes().to_vec();
    match item {
        Item::Dir(mode) => {
            let kind = if opaque { GuestKind::OpaqueDir } else { GuestKind::Dir };
            (GuestEntry { path, kind, mode: *mode, size: 0, target: Vec::new() }, Vec::new())
        }
        Item::File(mode, data) => {
            let size = data.len() as u64;
            (GuestEntry { path, kind: GuestKind::File, mode: *mode, size, target: Vec::new() }, data.clone())
        }
        Item::Link(target) => {
            let target = target.clone().into_bytes();
            (GuestEntry { path, kind: GuestKind::Symlink, mode: 0o777, size: 0, target }, Vec::new())
        }
    }
}

/// The upper layer of a real overlay mount, as the agent reports it.
pub(crate) fn read_upper(top: &Path) -> Vec<(GuestEntry, Vec<u8>)> {
    let mut records = Vec::new();
    let mut waiting = vec![top.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for found in std::fs::read_dir(dir).unwrap() {
            let at = found.unwrap().path();
            let stat = rustix::fs::lstat(&at).unwrap();
            let path = at.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
            let mut record = entry(&path, GuestKind::Special);
            record.mode = stat.st_mode & 0o7777;
            let mut data = Vec::new();
            match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
                rustix::fs::FileType::Directory => {
                    let opaque = rustix::fs::lgetxattr(&at, "trusted.overlay.opaque", &mut [0; 8]).is_ok();
                    record.kind = if opaque { GuestKind::OpaqueDir } else { GuestKind::Dir };
                    waiting.push(at);
                }
                rustix::fs::FileType::RegularFile => {
                    record.kind = GuestKind::File;
                    data = std::fs::read(&at).unwrap();
                    record.size = data.len() as u64;
                }
                rustix::fs::FileType::Symlink => {
                    record.kind = GuestKind::Symlink;
                    record.target = std::fs::read_link(&at).unwrap().into_os_string().as_bytes().to_vec();
                }
                rustix::fs::FileType::CharacterDevice if stat.st_rdev == 0 => record.kind = GuestKind::Whiteout,
                _ => {}
            }
            records.push((record, data));
        }
    }
    records
}

/// A packed tree on disk.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) top: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Fixture {
    pub(crate) fn new(before: &Tree) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("tree");
        write(before, &top);
        let manifest = pack(&top, &dir.path().join("image"), &PackLimits::default(), &mut |_, _| {}).unwrap();
        Self { dir, top, manifest }
    }

    /// What the host makes of a report.
    pub(crate) fn changes(&self, report: &[(GuestEntry, Vec<u8>)]) -> ChangeSet {
        let number = std::fs::read_dir(self.dir.path()).unwrap().count();
        let mut spool =
            Spool::create(&self.dir.path().join(format!("spool-{number}")), SpoolLimits::default()).unwrap();
        for (entry, data) in report {
            spool.entry(entry).unwrap();
            data.chunks(1000).for_each(|chunk| spool.data(chunk).unwrap());
        }
        spool.finish(&self.manifest).unwrap()
    }
}
