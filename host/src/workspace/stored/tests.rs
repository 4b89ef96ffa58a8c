// SPDX-License-Identifier: Apache-2.0
//! Manifests that come back as they were, and files that are none.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use super::super::fixture::{Fixture, Item, file, tree};
use super::super::{NoteKind, pack};
use super::*;

struct Kept {
    dir: tempfile::TempDir,
    manifest: Manifest,
}

impl Kept {
    /// A directory with every kind of entry, names that are no text among them.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        let odd = |bytes: &'static [u8]| top.join(std::ffi::OsStr::from_bytes(bytes));
        std::fs::create_dir_all(odd(b"d\xff/empty")).unwrap();
        std::fs::write(odd(b"d\xff/f \"\n"), "deep").unwrap();
        std::fs::write(odd(b"none"), "").unwrap();
        std::fs::write(odd(b"some"), "0123456789").unwrap();
        symlink(std::ffi::OsStr::from_bytes(b"/out\xfe"), odd(b"link")).unwrap();
        let manifest = pack(&top, &dir.path().join("image"), &PackLimits::default(), &mut |_, _| {}).unwrap();
        manifest.save(&dir.path().join("manifest")).unwrap();
        Self { dir, manifest }
    }

    fn load(&self) -> Result<Manifest, StoredError> {
        Manifest::load(&self.dir.path().join("manifest"), &self.dir.path().join("image"))
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("manifest")).unwrap()
    }

    /// What is said of this content.
    fn refusal(&self, content: &[u8]) -> String {
        std::fs::write(self.dir.path().join("manifest"), content).unwrap();
        self.load().map(drop).unwrap_err().to_string()
    }
}

#[test]
fn a_manifest_comes_back_as_it_was() {
    let kept = Kept::new();
    let (was, is) = (&kept.manifest, kept.load().unwrap());
    assert_eq!((&is.dir, &is.entries), (&was.dir, &was.entries));
    assert_eq!((is.files, is.bytes, is.image_bytes), (3, was.bytes, was.image_bytes));
    assert_eq!((is.notes.items(), is.notes.counts()), (was.notes.items(), was.notes.counts()));
    assert_eq!(is.notes.counts()[&NoteKind::LinkLeavesTree], 1);
    assert_eq!(is.read_base(&is.entries[b"some".as_slice()], 4).unwrap(), b"0123");
    assert!(matches!(was.save(&kept.dir.path().join("manifest")), Err(StoredError::Io { .. })), "nothing is replaced");
}

#[test]
fn what_changed_is_told_from_a_manifest_that_was_kept() {
    let mut fixture = Fixture::new(&tree(&[("a", file("one")), ("d/b", Item::File(0o755, b"two".to_vec()))]));
    let path = fixture.dir.path().join("manifest");
    fixture.manifest.save(&path).unwrap();
    fixture.manifest = Manifest::load(&path, &fixture.dir.path().join("image")).unwrap();
    let changes = fixture.changes(&[super::super::fixture::guest_file("a", b"new")]);
    let paths: Vec<String> = changes.changes().iter().map(|change| change.path.to_string()).collect();
    assert_eq!(paths, ["a"]);
}

#[test]
fn a_file_that_is_cut_short_anywhere_is_refused() {
    let kept = Kept::new();
    let text = kept.text();
    for length in 0..text.len() {
        let refusal = kept.refusal(&text.as_bytes()[..length]);
        assert!(refusal.contains("line "), "{length}: {refusal}");
    }
}

#[test]
fn a_file_that_lies_is_refused_with_the_line() {
    let kept = Kept::new();
    let text = kept.text();
    let lines: Vec<&str> = text.lines().collect();
    let swapped = lines[..5].join("\n") + "\n" + lines[6] + "\n" + lines[5] + "\n";
    let cases = [
        (text.replace("\"version\":1", "\"version\":2"), "line 1: it has version 2"),
        (text.replace("\"entries\":6", "\"entries\":4000001"), "line 1: 4000001 entries; accepted: up to 4000000"),
        (text.replace("\"entries\":6", "\"entries\":7"), "line 8: it ends here"),
        (text.replace("\"entries\":6", "\"entries\":5"), "line 7: there are more lines than entries"),
        (text.replace("\"dir\":\"/", "\"dir\":\""), "line 1: the directory is no absolute path"),
        (text.replace("\"image_bytes\":", "\"image_bytes\":1"), "line 1: it is of an image of 1"),
        (text.replace("\"none\"", "\"../none\""), "component"),
        (text.replace("\"none\"", "\"nowhere/none\""), "nowhere/none lies in no directory"),
        (text.replace("\"none\"", "\"link/none\""), "link/none lies in no directory"),
        (text.replace("\"size\":10", "\"size\":18446744073709551615"), "some reaches beyond the image"),
        (text.replace("\"size\":10", "\"size\":1000000"), "some reaches beyond the image"),
        (text.replace("\"mode\":", "\"mode\":4"), "accepted: up to 1777"),
        (text.replace("\"mode\":", "\"mode\":-"), "line 2: "),
        (swapped, "line 7: none is out of order"),
        (text.clone() + "x", "line 8: there are more lines than entries"),
        ("\n".to_owned(), "line 1: EOF"),
    ];
    for (content, expected) in cases {
        assert_ne!(content, text, "{expected}");
        let refusal = kept.refusal(content.as_bytes());
        assert!(refusal.contains(expected), "{expected}: {refusal}");
    }
}

proptest::proptest! {
    /// Whatever stands in the file: no panic, and what is accepted is in order.
    #[test]
    fn no_content_is_too_odd(at in 0_usize..2000, byte: u8, insert: bool) {
        let kept = Kept::new();
        let mut bytes = kept.text().into_bytes();
        let at = at % bytes.len();
        if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
        std::fs::write(kept.dir.path().join("manifest"), bytes).unwrap();
        if let Ok(manifest) = kept.load() {
            proptest::prop_assert_eq!(manifest.entries.len(), 6);
            for entry in manifest.entries.values() {
                proptest::prop_assert!(manifest.read_base(entry, u64::MAX).is_ok());
            }
        }
    }
}
