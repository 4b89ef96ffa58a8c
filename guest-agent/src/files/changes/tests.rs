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

/// Runs `check` with a real overlay of `base` in a mount namespace of its own; false when the kernel refuses.
fn with_overlay(base: &dyn Fn(&Path), check: impl FnOnce(&Overlay) + Send) -> bool {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["base", "all", "merged"] {
        fs::create_dir(path(name)).unwrap();
    }
    base(&path("base"));
    let overlay = Overlay { upper: path("all/upper"), merged: path("merged") };
    let options = format!(
        "lowerdir={},upperdir={},workdir={},{}",
        path("base").display(),
        overlay.upper.display(),
        path("all/work").display(),
        crate::init::OVERLAY_OPTIONS
    );
    let run = || {
        crate::sys::machine::own_mounts()?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // Memory takes the attributes that an overlay needs, whatever the temporary directory is.
        mount("tmpfs", path("all"), "tmpfs", MountFlags::empty(), None)?;
        fs::create_dir(path("all/upper"))?;
        fs::create_dir(path("all/work"))?;
        let options = std::ffi::CString::new(options)?;
        mount("overlay", &overlay.merged, "overlay", MountFlags::empty(), &*options)?;
        check(&overlay);
        unmount(&overlay.merged, UnmountFlags::DETACH)?;
        Ok::<(), std::io::Error>(unmount(path("all"), UnmountFlags::DETACH)?)
    };
    let result = std::thread::scope(|scope| scope.spawn(run).join().unwrap());
    if let Err(error) = &result {
        eprintln!("skipped: no overlay can be mounted here: {error}");
    }
    result.is_ok()
}

/// Path, kind and content of all changes.
fn told_by(overlay: &Overlay) -> Vec<(String, ChangeKind, Option<String>)> {
    let mut all = Vec::new();
    walk(overlay, &mut |change: &Change, content: Option<&Path>| {
        let content = content.map(|path| fs::read_to_string(path).unwrap());
        assert_eq!(content.as_ref().map_or(0, |content| content.len() as u64), change.size);
        all.push((change.path.to_str().unwrap().to_owned(), change.kind, content));
        Ok(())
    })
    .unwrap();
    all
}

#[test]
fn what_a_real_overlay_leaves_is_told_as_it_was_done() {
    if !is_root("mounting an overlay") {
        return;
    }
    let base = |dir: &Path| {
        for name in ["moved/deep", "replaced", "emptied", "untouched"] {
            fs::create_dir_all(dir.join(name)).unwrap();
            fs::write(dir.join(name).join("file"), name).unwrap();
        }
        fs::write(dir.join("edited"), "old").unwrap();
        fs::write(dir.join("deleted"), "old").unwrap();
        fs::write(dir.join("renamed"), "same").unwrap();
    };
    let file = |path: &str, content: &str| (path.to_owned(), ChangeKind::File, Some(content.to_owned()));
    let other = |path: &str, kind| (path.to_owned(), kind, None);
    with_overlay(&base, |overlay| {
        let path = |name: &str| overlay.merged.join(name);
        fs::write(path("edited"), "new").unwrap();
        fs::remove_file(path("deleted")).unwrap();
        fs::rename(path("renamed"), path("renamed-to")).unwrap();
        fs::rename(path("moved"), path("moved-to")).unwrap();
        fs::write(path("moved-to/added"), "x").unwrap();
        fs::remove_dir_all(path("replaced")).unwrap();
        fs::create_dir(path("replaced")).unwrap();
        fs::write(path("replaced/other"), "y").unwrap();
        fs::remove_file(path("emptied/file")).unwrap();
        fs::create_dir(path("gone-again")).unwrap();
        fs::remove_dir(path("gone-again")).unwrap();
        symlink("edited", path("link")).unwrap();
        let expected = [
            other("deleted", ChangeKind::Whiteout),
            file("edited", "new"),
            other("emptied", ChangeKind::Dir),
            other("emptied/file", ChangeKind::Whiteout),
            other("link", ChangeKind::Symlink),
            other("moved", ChangeKind::Whiteout),
            other("moved-to", ChangeKind::OpaqueDir),
            file("moved-to/added", "x"),
            other("moved-to/deep", ChangeKind::Dir),
            file("moved-to/deep/file", "moved/deep"),
            other("renamed", ChangeKind::Whiteout),
            file("renamed-to", "same"),
            other("replaced", ChangeKind::OpaqueDir),
            file("replaced/other", "y"),
        ];
        assert_eq!(told_by(overlay), expected);
    });
}

#[test]
fn a_directory_moved_twice_and_into_a_moved_one_is_told_where_it_is() {
    if !is_root("mounting an overlay") {
        return;
    }
    let base = |dir: &Path| {
        for name in ["a", "b"] {
            fs::create_dir(dir.join(name)).unwrap();
            fs::write(dir.join(name).join("file"), name).unwrap();
        }
    };
    with_overlay(&base, |overlay| {
        let path = |name: &str| overlay.merged.join(name);
        fs::rename(path("a"), path("a1")).unwrap();
        fs::rename(path("a1"), path("a2")).unwrap();
        fs::rename(path("b"), path("a2/b")).unwrap();
        fs::remove_file(path("a2/file")).unwrap();
        let told = told_by(overlay).into_iter().map(|(path, kind, _)| (path, kind)).collect::<Vec<_>>();
        let expected = [
            ("a", ChangeKind::Whiteout),
            ("a2", ChangeKind::OpaqueDir),
            ("a2/b", ChangeKind::Dir),
            ("a2/b/file", ChangeKind::File),
            ("b", ChangeKind::Whiteout),
        ];
        assert_eq!(told, expected.map(|(path, kind)| (path.to_owned(), kind)));
    });
}
