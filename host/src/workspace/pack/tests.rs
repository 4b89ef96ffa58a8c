// SPDX-License-Identifier: Apache-2.0
//! Packing: what the image and the manifest say of a tree, bad directories, limits, and trees that change meanwhile.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::super::fixture::{Fixture, Item, file, tree};
use super::*;
use crate::erofs::reader;

fn packed(top: &Path) -> (Manifest, BTreeMap<Vec<u8>, reader::Found>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let manifest = pack(top, &image, &PackLimits::default(), &mut |_, _| {}).unwrap();
    let found = reader::walk(&std::fs::read(&image).unwrap());
    (manifest, found, dir)
}

fn rel(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn notes(manifest: &Manifest) -> Vec<(String, NoteKind)> {
    manifest.notes.items().iter().map(|note| (note.path.to_string(), note.kind)).collect()
}

#[test]
fn everything_is_owned_by_the_guest_user_and_has_no_setuid_bit() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tool"), "x").unwrap();
    std::fs::set_permissions(dir.path().join("tool"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let (manifest, found, _image) = packed(dir.path());
    assert!(found.values().all(|entry| (entry.uid, entry.gid) == (1000, 1000)));
    assert_eq!(found[b"tool".as_slice()].mode, 0o100_755);
    assert_eq!(manifest.entries[&rel("tool")].mode, 0o755);
    let stat = dir.path().join("tool").metadata().unwrap();
    assert_eq!(found[b"tool".as_slice()].mtime, (stat.mtime(), u32::try_from(stat.mtime_nsec()).unwrap()));
}

#[test]
fn the_manifest_describes_content_that_can_be_read_back_from_the_image() {
    let large = vec![7; 100_000];
    let fixture = Fixture::new(&tree(&[
        ("a/small", file("small")),
        ("a/large", Item::File(0o600, large.clone())),
        ("a/empty", file("")),
        ("link", Item::Link("a/small".into())),
        (".git/HEAD", file("ref: refs/heads/main\n")),
    ]));
    let manifest = &fixture.manifest;
    assert_eq!((manifest.files, manifest.bytes), (4, 100_000 + 5 + 21));
    for (path, data) in [("a/small", &b"small"[..]), ("a/large", &large), ("a/empty", b"")] {
        let entry = &manifest.entries[&rel(path)];
        assert_eq!(manifest.read_base(entry, u64::MAX).unwrap(), data);
        let Content::File { sha256, size, .. } = entry.content else { panic!("{path} is a file") };
        assert_eq!(sha256, <Digest>::from(Sha256::digest(data)));
        assert_eq!(size, data.len() as u64);
    }
    assert_eq!(manifest.entries[&rel("link")].content, Content::Symlink { target: b"a/small".to_vec() });
    assert!(manifest.entries.contains_key(&rel(".git/HEAD")), "the repository is packed like the rest");
    assert_eq!(notes(manifest), []);
}

#[test]
fn links_are_kept_never_followed_and_noted_when_they_leave() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc/passwd", dir.path().join("absolute")).unwrap();
    symlink("../..", dir.path().join("up")).unwrap();
    symlink(".", dir.path().join("loop")).unwrap();
    symlink("nothing", dir.path().join("dangling")).unwrap();
    let (manifest, found, _image) = packed(dir.path());
    assert_eq!(found[b"absolute".as_slice()].data, b"/etc/passwd");
    assert_eq!(found.len(), 5);
    let leaves = NoteKind::LinkLeavesTree;
    assert_eq!(notes(&manifest), [("absolute".to_owned(), leaves), ("up".to_owned(), leaves)]);
}

#[test]
fn special_files_are_left_out_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let (manifest, found, _image) = packed(dir.path());
    assert_eq!(found.keys().collect::<Vec<_>>(), [&b""[..], b"file"]);
    let skipped = NoteKind::SpecialSkipped;
    assert_eq!(notes(&manifest), [("pipe".to_owned(), skipped), ("socket".to_owned(), skipped)]);
}

#[test]
fn hard_links_become_files_of_their_own_that_share_data() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), vec![1; 1 << 20]).unwrap();
    std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    let (manifest, found, _image) = packed(dir.path());
    assert_ne!(found[b"a".as_slice()].nid, found[b"b".as_slice()].nid);
    assert_eq!((found[b"a".as_slice()].links, &found[b"b".as_slice()].data), (1, &vec![1; 1 << 20]));
    assert!(manifest.image_bytes < 3 << 19, "stored once: {}", manifest.image_bytes);
    assert_eq!(manifest.entries[&rel("a")].content, manifest.entries[&rel("b")].content);
}

#[test]
fn names_that_are_not_utf8_are_kept_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let name = OsStr::from_bytes(b"\xff\x01 \n");
    std::fs::write(dir.path().join(name), "x").unwrap();
    let (manifest, found, _image) = packed(dir.path());
    assert!(found.contains_key(name.as_bytes()));
    assert_eq!(manifest.entries.keys().next().unwrap().as_bytes(), name.as_bytes());
}

#[test]
fn a_directory_that_is_absent_or_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    for name in ["absent", "file"] {
        let image = dir.path().join("image");
        let error = pack(&dir.path().join(name), &image, &PackLimits::default(), &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, WorkspaceError::Open { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("--workspace"), "{text}");
        assert!(!image.exists());
    }
}

/// Runs `check` as a user who may not read everything. As root that is a thread of its own with another file system user,
/// which the kernel keeps for each thread; leaving 0 also takes the capabilities that override permissions.
fn as_ordinary_user(check: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        return check();
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
            check();
        });
        thread.join().unwrap();
    });
}

#[test]
fn an_unreadable_file_is_an_error_that_names_it_or_a_note_when_asked() {
    let fixture = tempfile::tempdir().unwrap();
    std::fs::set_permissions(fixture.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let top = fixture.path().join("tree");
    std::fs::create_dir(&top).unwrap();
    for name in ["readable", "secret"] {
        std::fs::write(top.join(name), "x").unwrap();
    }
    std::fs::create_dir(top.join("closed")).unwrap();
    std::fs::set_permissions(top.join("secret"), std::fs::Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(top.join("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let (top, images) = (top.as_path(), fixture.path());
    as_ordinary_user(move || {
        let error = pack(top, &images.join("i1"), &PackLimits::default(), &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("closed"), "{error}");
        let limits = PackLimits { skip_unreadable: true, ..PackLimits::default() };
        let manifest = pack(top, &images.join("i2"), &limits, &mut |_, _| {}).unwrap();
        let skipped = NoteKind::UnreadableSkipped;
        assert_eq!(notes(&manifest), [("closed".to_owned(), skipped), ("secret".to_owned(), skipped)]);
        assert_eq!(manifest.entries.len(), 1);
    });
}

#[test]
fn limits_name_what_where_and_the_accepted_range() {
    let fixture = tempfile::tempdir().unwrap();
    let top = fixture.path().join("tree");
    std::fs::create_dir_all(top.join("1/2/3")).unwrap();
    std::fs::write(top.join("1/2/3/f"), vec![0; 1000]).unwrap();
    let image = fixture.path().join("image");
    let try_with = |limits: PackLimits| pack(&top, &image, &limits, &mut |_, _| {});
    let fits = PackLimits { entries: 4, bytes: 1000, depth: 3, skip_unreadable: false };
    try_with(fits).unwrap();
    let cases = [
        (PackLimits { entries: 3, ..fits }, "entries", "1 to 4000000"),
        (PackLimits { bytes: 999, ..fits }, "bytes", "1 to 8796093022208"),
        (PackLimits { depth: 2, ..fits }, "levels of directories", "1 to 512"),
        (PackLimits { depth: 0, ..fits }, "levels of directories", "1 to 512"),
        (PackLimits { depth: 513, ..fits }, "levels of directories", "1 to 512"),
        (PackLimits { entries: 0, ..fits }, "entries", "1 to 4000000"),
        (PackLimits { bytes: u64::MAX, ..fits }, "bytes", "1 to 8796093022208"),
    ];
    for (limits, what, range) in cases {
        let text = try_with(limits).unwrap_err().to_string();
        assert!(text.contains(what) && text.contains(range) && text.contains("tree"), "{text}");
    }
}

#[test]
fn a_file_that_grows_while_it_is_read_is_packed_as_read_and_noted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let images = tempfile::tempdir().unwrap();
    let mut grown = false;
    let manifest = pack(dir.path(), &images.path().join("image"), &PackLimits::default(), &mut |_, bytes| {
        if bytes > 0 && !std::mem::replace(&mut grown, true) {
            let mut file = File::options().append(true).open(&path).unwrap();
            std::io::Write::write_all(&mut file, &[2; 5000]).unwrap();
        }
    });
    let manifest = manifest.unwrap();
    assert_eq!(notes(&manifest), [("log".to_owned(), NoteKind::ChangedWhileRead)]);
    let entry = &manifest.entries[&rel("log")];
    let Content::File { size, sha256, .. } = entry.content else { panic!("a file") };
    let data = manifest.read_base(entry, u64::MAX).unwrap();
    assert_eq!((data.len() as u64, <Digest>::from(Sha256::digest(&data))), (size, sha256));
    assert_eq!(size, 1 << 20, "what came later is left out");
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_packed_as_read_and_noted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let images = tempfile::tempdir().unwrap();
    let manifest = pack(dir.path(), &images.path().join("image"), &PackLimits::default(), &mut |_, bytes| {
        if bytes > 0 {
            File::options().write(true).open(&path).unwrap().set_len(600_000).unwrap();
        }
    });
    let manifest = manifest.unwrap();
    assert_eq!(notes(&manifest), [("data".to_owned(), NoteKind::ChangedWhileRead)]);
    assert_eq!(manifest.bytes, 600_000);
    let found = reader::walk(&std::fs::read(images.path().join("image")).unwrap());
    assert_eq!(found[b"data".as_slice()].data, vec![1; 600_000]);
}

#[test]
fn the_image_itself_is_not_packed_when_it_lies_in_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "x").unwrap();
    let manifest = pack(dir.path(), &dir.path().join("image"), &PackLimits::default(), &mut |_, _| {}).unwrap();
    assert_eq!(manifest.entries.keys().map(ToString::to_string).collect::<Vec<_>>(), ["f"]);
}

#[test]
fn a_mount_below_the_directory_is_an_empty_directory_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&inner).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        println!("skipped: mounting a tmpfs needs root");
        return;
    }
    std::fs::write(inner.join("f"), "x").unwrap();
    let result = std::panic::catch_unwind(|| {
        let (manifest, found, _image) = packed(dir.path());
        assert_eq!(notes(&manifest), [("inner".to_owned(), NoteKind::MountSkipped)]);
        assert_eq!(found.keys().collect::<Vec<_>>(), [&b""[..], b"inner"]);
    });
    std::process::Command::new("umount").arg(&inner).status().unwrap();
    result.unwrap();
}

#[test]
fn a_link_to_the_directory_is_followed_and_progress_ends_with_the_totals() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::fs::write(dir.path().join("real/f"), vec![1; 600_000]).unwrap();
    std::fs::write(dir.path().join("real/g"), "x").unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    let mut heard = Vec::new();
    let mut progress = |files, bytes| heard.push((files, bytes));
    let image = dir.path().join("image");
    let manifest = pack(&dir.path().join("link"), &image, &PackLimits::default(), &mut progress).unwrap();
    assert_eq!(manifest.dir, dir.path().canonicalize().unwrap().join("real"));
    assert_eq!(heard.last(), Some(&(2, 600_001)));
    assert!(heard.is_sorted() && heard.len() > 3, "also within a large file: {heard:?}");
}

#[test]
fn a_full_disk_is_an_error_that_names_the_image_and_leaves_none() {
    let Some(disk) = crate::erofs::tests::SmallDisk::new("1m") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), vec![1; 3 << 20]).unwrap();
    let error = pack(dir.path(), &disk.path().join("image"), &PackLimits::default(), &mut |_, _| {}).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("image") && cause.contains("free space"), "{cause}");
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
}

#[test]
fn a_file_replaced_while_the_tree_is_walked_is_packed_as_it_was_found() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["1", "2", "3", "4"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    let images = tempfile::tempdir().unwrap();
    let mut step = 0;
    let mut meanwhile = |_, _| {
        step += 1;
        if step == 1 {
            std::fs::remove_file(dir.path().join("2")).unwrap();
            symlink("/etc/passwd", dir.path().join("2")).unwrap();
            std::fs::remove_file(dir.path().join("3")).unwrap();
        }
    };
    let manifest = pack(dir.path(), &images.path().join("image"), &PackLimits::default(), &mut meanwhile).unwrap();
    assert_eq!(
        notes(&manifest),
        [("2".to_owned(), NoteKind::LinkLeavesTree), ("3".to_owned(), NoteKind::GoneWhileRead)]
    );
    assert_eq!(manifest.entries[&rel("2")].content, Content::Symlink { target: b"/etc/passwd".to_vec() });
    let found = reader::walk(&std::fs::read(images.path().join("image")).unwrap());
    assert_eq!(found.keys().collect::<Vec<_>>(), [&b""[..], b"1", b"2", b"4"]);
}

#[test]
fn the_same_directory_gives_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    for name in ["d/a", "d/b", "c"] {
        std::fs::write(dir.path().join(name), name.repeat(900)).unwrap();
    }
    let images = tempfile::tempdir().unwrap();
    let pack_to = |name: &str| {
        pack(dir.path(), &images.path().join(name), &PackLimits::default(), &mut |_, _| {}).unwrap();
        std::fs::read(images.path().join(name)).unwrap()
    };
    assert_eq!(pack_to("1"), pack_to("2"));
    assert_eq!(images.path().join("1").metadata().unwrap().mode() & 0o777, 0o600, "for the user's eyes only");
}

#[test]
fn ten_thousand_entries_keep_their_content() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..100 {
        let sub = dir.path().join(format!("d{number}"));
        std::fs::create_dir(&sub).unwrap();
        (0..100).for_each(|n| std::fs::write(sub.join(format!("f{n}")), format!("{number}-{n}")).unwrap());
    }
    let (manifest, found, _image) = packed(dir.path());
    assert_eq!((manifest.files, found.len()), (10_000, 10_101));
    assert_eq!(found[b"d7/f42".as_slice()].data, b"7-42");
}
