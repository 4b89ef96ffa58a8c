// SPDX-License-Identifier: Apache-2.0
//! Trees as overlayfs leaves them, made by hand.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use midge_protocol::{Change, ChangeKind};
use tempfile::TempDir;

use super::{OPAQUE, Overlay, REDIRECT, walk};
use crate::sys::c_path;
use crate::sys::fd::set_attribute;
use crate::sys::machine::make_character_device;
use crate::testing::is_root;

struct Trees {
    _dir: TempDir,
    overlay: Overlay,
}

fn trees() -> Trees {
    let dir = tempfile::tempdir().unwrap();
    let overlay = Overlay { upper: dir.path().join("upper"), merged: dir.path().join("merged") };
    fs::create_dir(&overlay.upper).unwrap();
    fs::create_dir(&overlay.merged).unwrap();
    Trees { _dir: dir, overlay }
}

fn changes(trees: &Trees) -> Vec<(String, ChangeKind)> {
    let mut all = Vec::new();
    walk(&trees.overlay, &mut |change: &Change, content: Option<&Path>| {
        assert_eq!(content.is_some(), change.kind == ChangeKind::File);
        all.push((change.path.to_str().unwrap().to_owned(), change.kind));
        Ok(())
    })
    .unwrap();
    all
}

fn told(all: &[(&str, ChangeKind)]) -> Vec<(String, ChangeKind)> {
    all.iter().map(|(path, kind)| ((*path).to_owned(), *kind)).collect()
}

#[test]
fn an_overlay_without_changes_tells_nothing() {
    assert_eq!(changes(&trees()), []);
}

#[test]
fn parents_come_before_children_and_names_in_order() {
    let trees = trees();
    let upper = &trees.overlay.upper;
    fs::create_dir_all(upper.join("b/c")).unwrap();
    fs::write(upper.join("b/c/file"), "x").unwrap();
    fs::write(upper.join("a"), "x").unwrap();
    symlink("a", upper.join("d")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("e")).unwrap();
    let expected = told(&[
        ("a", ChangeKind::File),
        ("b", ChangeKind::Dir),
        ("b/c", ChangeKind::Dir),
        ("b/c/file", ChangeKind::File),
        ("d", ChangeKind::Symlink),
        ("e", ChangeKind::Special),
    ]);
    assert_eq!(changes(&trees), expected);
}

#[test]
fn a_symlink_is_never_followed() {
    let trees = trees();
    fs::create_dir(trees.overlay.merged.join("outside")).unwrap();
    fs::write(trees.overlay.merged.join("outside/secret"), "x").unwrap();
    symlink("../merged/outside", trees.overlay.upper.join("link")).unwrap();
    assert_eq!(changes(&trees), told(&[("link", ChangeKind::Symlink)]));
}

#[test]
fn marks_of_overlayfs_are_understood() {
    if !is_root("making devices and trusted attributes") {
        return;
    }
    let trees = trees();
    let upper = &trees.overlay.upper;
    make_character_device(&upper.join("gone"), 0).unwrap();
    make_character_device(&upper.join("null"), libc::makedev(1, 3)).unwrap();
    fs::create_dir(upper.join("opaque")).unwrap();
    fs::write(upper.join("opaque/new"), "x").unwrap();
    if let Err(error) = set_attribute(&upper.join("opaque"), OPAQUE, b"y") {
        eprintln!("skipped: the temporary directory takes no trusted attributes: {error}");
        return;
    }
    fs::create_dir(upper.join("not-opaque")).unwrap();
    set_attribute(&upper.join("not-opaque"), OPAQUE, b"n").unwrap();
    let expected = told(&[
        ("gone", ChangeKind::Whiteout),
        ("not-opaque", ChangeKind::Dir),
        ("null", ChangeKind::Special),
        ("opaque", ChangeKind::OpaqueDir),
        ("opaque/new", ChangeKind::File),
    ]);
    assert_eq!(changes(&trees), expected);
}

#[test]
fn a_renamed_directory_is_told_whole_from_the_merged_view() {
    if !is_root("setting trusted attributes") {
        return;
    }
    let trees = trees();
    let Overlay { upper, merged } = &trees.overlay;
    fs::create_dir(upper.join("renamed")).unwrap();
    if let Err(error) = set_attribute(&upper.join("renamed"), REDIRECT, b"original") {
        eprintln!("skipped: the temporary directory takes no trusted attributes: {error}");
        return;
    }
    fs::create_dir_all(merged.join("renamed/sub")).unwrap();
    fs::write(merged.join("renamed/from-base"), "x").unwrap();
    fs::write(merged.join("renamed/sub/deep"), "x").unwrap();
    let expected = told(&[
        ("renamed", ChangeKind::OpaqueDir),
        ("renamed/from-base", ChangeKind::File),
        ("renamed/sub", ChangeKind::Dir),
        ("renamed/sub/deep", ChangeKind::File),
    ]);
    assert_eq!(changes(&trees), expected);
}

#[test]
fn a_path_with_nul_cannot_reach_the_kernel() {
    use std::os::unix::ffi::OsStrExt as _;
    assert!(c_path(Path::new(std::ffi::OsStr::from_bytes(b"a\0b"))).is_err());
}
