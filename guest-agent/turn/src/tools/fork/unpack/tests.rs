// SPDX-License-Identifier: Apache-2.0

use std::fs as std_fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use proptest::prelude::*;
use tar::{Builder, Header};

/// An archive whose names are written as they are given, whatever they are.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        let data = if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
            ""
        } else {
            content
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// `outside/secret` beside the directory that is unpacked into.
fn bench() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std_fs::create_dir_all(dir.path().join("outside")).unwrap();
    std_fs::write(dir.path().join("outside/secret"), "secret").unwrap();
    let root = dir.path().join("root");
    std_fs::create_dir(&root).unwrap();
    (dir, root)
}

fn take(root: &Path, entries: &[(&str, EntryType, &str)], removed: &[&str]) -> Taken {
    let removed: Vec<String> = removed.iter().map(|path| (*path).to_owned()).collect();
    unpack(root, &archive(entries)[..], &removed, &Cancel::new().unwrap()).unwrap()
}

fn is_untouched(dir: &tempfile::TempDir) -> bool {
    let names = |path: &Path| {
        let mut names: Vec<_> = std_fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let secret = dir.path().join("outside/secret");
    names(dir.path()) == ["outside", "root"]
        && names(&dir.path().join("outside")) == ["secret"]
        && std_fs::read(&secret).unwrap() == b"secret"
        && std_fs::metadata(&secret).unwrap().nlink() == 1
}

use EntryType::{Directory, Link, Regular, Symlink};

#[test]
fn changes_are_taken_and_what_was_removed_goes() {
    let (_dir, root) = bench();
    for path in ["gone/a/b", "kind/x", "old", "file"] {
        std_fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        std_fs::write(root.join(path), "old").unwrap();
    }
    let entries = [
        ("./", Directory, ""),
        ("new/deep/file", Regular, "content"),
        ("old", Regular, "new"),
        ("kind", Regular, "was a directory"),
        ("file", Directory, ""),
        ("link", Symlink, "new/deep"),
        ("other", Link, "old"),
    ];
    let taken = take(&root, &entries, &["gone", "never-there", "kind/x"]);
    assert_eq!((taken.written, taken.removed, taken.troubles), (7, 2, vec![]));
    assert_eq!(std_fs::read(root.join("new/deep/file")).unwrap(), b"content");
    assert_eq!(std_fs::read(root.join("link/file")).unwrap(), b"content");
    assert_eq!(std_fs::read(root.join("kind")).unwrap(), b"was a directory");
    assert_eq!(std_fs::metadata(root.join("old")).unwrap().nlink(), 2);
    assert!(root.join("file").is_dir() && !root.join("gone").exists() && !root.join(TEMPORARY).exists());
    let mode = std_fs::metadata(root.join("old")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "bits that lend an identity are not taken");
}

#[test]
fn no_name_and_no_link_leads_out() {
    let (dir, root) = bench();
    symlink("../outside", root.join("there")).unwrap();
    symlink("/", root.join("top")).unwrap();
    let out = dir.path().join("outside/by-path").display().to_string();
    let attempts: [(&str, EntryType, &str); 9] = [
        ("../outside/up", Regular, "x"),
        ("a/../../outside/up", Regular, "x"),
        (&out, Regular, "x"),
        ("there/through", Regular, "x"),
        ("there/secret", Regular, "x"),
        ("brought", Symlink, "../outside"),
        ("brought/through", Regular, "x"),
        ("hard", Link, "../outside/secret"),
        ("hard2", Link, "there/secret"),
    ];
    let taken = take(&root, &attempts, &["../outside/secret", "there/secret", "/", ".", "", "a/.."]);
    assert_eq!((taken.written, taken.removed), (1, 0), "{taken:?}");
    assert_eq!(taken.troubles.len() as u64 + taken.more_troubles, 8 + 6);
    assert!(is_untouched(&dir));
    let device = take(&root, &[("dev", EntryType::Char, ""), ("pipe", EntryType::Fifo, "")], &[]);
    assert_eq!((device.written, device.troubles.len()), (0, 2));
    let over = take(&root, &[("there", Regular, "now a file")], &["top"]);
    assert_eq!((over.written, over.removed), (1, 1));
    assert!(is_untouched(&dir) && std_fs::read(root.join("there")).unwrap() == b"now a file");
}

#[test]
fn an_archive_that_ends_in_its_middle_is_told() {
    let (_dir, root) = bench();
    let whole = archive(&[("a", Regular, &"x".repeat(5000))]);
    let result = unpack(&root, &whole[..2000], &[], &Cancel::new().unwrap());
    assert!(result.is_err() || !result.unwrap().troubles.is_empty());
    assert!(!root.join("a").exists() && !root.join(TEMPORARY).exists());
    assert!(unpack(&root, &[0xff; 2048][..], &[], &Cancel::new().unwrap()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn no_program_of_entries_leaves_the_directory(
        entries in proptest::collection::vec(
            ("(/|\\./|\\.\\./|a/|b/|outside/|secret){1,4}", 0_u8..4, "(/|\\./|\\.\\./|a|b|outside/|secret){1,4}"), 1..8),
        removed in proptest::collection::vec("(/|\\./|\\.\\./|a/|b/|outside/|secret){1,4}", 0..3),
    ) {
        let (dir, root) = bench();
        let kinds = [Regular, Directory, Symlink, Link];
        let entries: Vec<_> =
            entries.iter().map(|(path, kind, content)| (path.as_str(), kinds[usize::from(*kind)], content.as_str())).collect();
        let _ = unpack(&root, &archive(&entries)[..], &removed, &Cancel::new().unwrap());
        prop_assert!(is_untouched(&dir));
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let (dir, root) = bench();
        let _ = unpack(&root, &bytes[..], &[], &Cancel::new().unwrap());
        prop_assert!(is_untouched(&dir));
    }
}
