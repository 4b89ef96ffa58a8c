// SPDX-License-Identifier: Apache-2.0
//! What was packed: one record for each entry of the user's directory, kept on the host for the whole run, or with a template
//! (`stored`). What the guest reports is compared with it, and what apply finds on the host as well. Data only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::path::RelPath;

/// SHA-256 of a file's content.
pub type Digest = [u8; 32];

/// Permission bits that are packed and compared: no set-user-ID, no set-group-ID.
pub const MODE_MASK: u32 = 0o1777;

/// One entry as it was packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Permission bits, masked with [`MODE_MASK`].
    pub mode: u32,
    /// What it is.
    pub content: Content,
}

/// Kind and content of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Bytes, as packed.
        size: u64,
        /// Of the bytes as packed.
        sha256: Digest,
        /// Where in the image they start.
        image_offset: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Its target, any bytes.
        #[serde(with = "super::stored::lossless")]
        target: Vec<u8>,
    },
}

/// Something the user should know of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The entry.
    pub path: RelPath,
    /// What about it.
    pub kind: NoteKind,
}

/// What a [`Note`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// Packing: a socket, pipe or device, which the guest does not get.
    SpecialSkipped,
    /// Packing: a symbolic link that leads out of the directory: the guest gets the link but not what it names.
    LinkLeavesTree,
    /// Packing: another file system is mounted here; the guest sees an empty directory.
    MountSkipped,
    /// Packing: not readable by the user and left out, as asked.
    UnreadableSkipped,
    /// Packing: changed while it was read; the guest gets what was read.
    ChangedWhileRead,
    /// Packing: gone between being listed and being read.
    GoneWhileRead,
    /// Report: a socket, pipe or device of the guest, which is not brought back.
    GuestSpecial,
    /// Report: reported more than once; the last report counts.
    ReportedTwice,
    /// Report: reported below something that is no directory, and ignored.
    BelowNonDirectory,
}

impl NoteKind {
    /// One clause for the user.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::SpecialSkipped => "is a socket, pipe or device: the sandbox does not see it",
            Self::LinkLeavesTree => "links out of the workspace: the link is kept, what it names is not in the sandbox",
            Self::MountSkipped => "is a mount point of another file system: the sandbox sees an empty directory",
            Self::UnreadableSkipped => "is not readable by you: the sandbox does not see it",
            Self::ChangedWhileRead => "changed while it was packed: the sandbox sees what was read",
            Self::GoneWhileRead => "went away while the workspace was packed",
            Self::GuestSpecial => "is a socket, pipe or device made in the sandbox: it is not brought back",
            Self::ReportedTwice => "was reported twice by the sandbox: the last report counts",
            Self::BelowNonDirectory => "was reported below something that is no directory: ignored",
        }
    }
}

/// A bounded list of notes: the first ones are kept, all are counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Notes {
    items: Vec<Note>,
    counts: BTreeMap<NoteKind, u64>,
}

impl Notes {
    /// Notes kept in full.
    pub const KEPT_MAX: usize = 1000;

    /// Adds one.
    pub fn add(&mut self, path: RelPath, kind: NoteKind) {
        *self.counts.entry(kind).or_default() += 1;
        if self.items.len() < Self::KEPT_MAX {
            self.items.push(Note { path, kind });
        }
    }

    /// The first [`Notes::KEPT_MAX`].
    #[must_use]
    pub fn items(&self) -> &[Note] {
        &self.items
    }

    /// How many of each kind there were.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<NoteKind, u64> {
        &self.counts
    }
}

/// Everything that was packed.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The directory, made absolute.
    pub dir: PathBuf,
    /// All entries below it, without the top itself.
    pub entries: BTreeMap<RelPath, Entry>,
    /// Regular files.
    pub files: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// Size of the image.
    pub image_bytes: u64,
    /// What the user should know of.
    pub notes: Notes,
    pub(crate) image: Arc<File>,
}

impl Manifest {
    /// The first `max_bytes` of a file as packed, read back from the image; empty for others.
    ///
    /// # Errors
    /// What reading the image says.
    pub fn read_base(&self, entry: &Entry, max_bytes: u64) -> io::Result<Vec<u8>> {
        read_base(&self.image, &entry.content, max_bytes)
    }
}

pub(crate) fn read_base(image: &File, content: &Content, max_bytes: u64) -> io::Result<Vec<u8>> {
    let Content::File { size, image_offset, .. } = content else { return Ok(Vec::new()) };
    let len = usize::try_from((*size).min(max_bytes)).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; len];
    image.read_exact_at(&mut bytes, *image_offset)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, file, tree};
    use super::*;

    #[test]
    fn notes_are_bounded_but_all_counted() {
        let mut notes = Notes::default();
        for number in 0..Notes::KEPT_MAX + 5 {
            let path = RelPath::parse(format!("n{number}").as_bytes()).unwrap();
            notes.add(path, if number == 0 { NoteKind::MountSkipped } else { NoteKind::SpecialSkipped });
        }
        assert_eq!(notes.items().len(), Notes::KEPT_MAX);
        assert_eq!(notes.counts()[&NoteKind::SpecialSkipped], Notes::KEPT_MAX as u64 + 4);
        assert_eq!(notes.counts()[&NoteKind::MountSkipped], 1);
    }

    #[test]
    fn base_content_is_read_up_to_a_limit_and_outlives_the_image_file() {
        let fixture = Fixture::new(&tree(&[("f", file("0123456789")), ("d/g", file(""))]));
        let entry = |path: &str| &fixture.manifest.entries[path.as_bytes()];
        std::fs::remove_file(fixture.dir.path().join("image")).unwrap();
        for (max, expected) in [(0, &b""[..]), (4, b"0123"), (10, b"0123456789"), (u64::MAX, b"0123456789")] {
            assert_eq!(fixture.manifest.read_base(entry("f"), max).unwrap(), expected);
        }
        assert_eq!(fixture.manifest.read_base(entry("d"), 10).unwrap(), b"", "a directory has no content");
    }

    #[test]
    fn every_note_says_something_of_its_own() {
        let kinds = [
            NoteKind::SpecialSkipped,
            NoteKind::LinkLeavesTree,
            NoteKind::MountSkipped,
            NoteKind::UnreadableSkipped,
            NoteKind::ChangedWhileRead,
            NoteKind::GoneWhileRead,
            NoteKind::GuestSpecial,
            NoteKind::ReportedTwice,
            NoteKind::BelowNonDirectory,
        ];
        let texts: std::collections::BTreeSet<&str> = kinds.iter().map(|kind| kind.text()).collect();
        assert_eq!(texts.len(), kinds.len());
    }
}
