// SPDX-License-Identifier: Apache-2.0
//! Taking in the guest's report: records of its overlay's upper layer, each file followed by its data. Everything here is
//! hostile input: paths are parsed into [`RelPath`]s, lengths, counts and totals are bounded, and data goes to numbered files
//! in a private directory, so that no name of the guest's is ever used as a name on the host.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use super::changes::{ChangeSet, compare};
use super::manifest::{Digest, MODE_MASK, Manifest, NoteKind, Notes};
use super::path::{PATH_MAX_BYTES, PathFault, RelPath, printable};

/// One record of the report, as the guest sent it: nothing is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestEntry {
    /// Relative to the workspace.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: GuestKind,
    /// Permission bits; others are ignored.
    pub mode: u32,
    /// Bytes of data that follow; files only.
    pub size: u64,
    /// Target; symbolic links only.
    pub target: Vec<u8>,
}

/// Kinds of entries in an overlay's upper layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// The entry was deleted.
    Whiteout,
    /// A directory that hides everything the base has below it.
    OpaqueDir,
    /// A directory that is merged with the base's.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A socket, pipe or device.
    Special,
}

/// How much a guest may report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Records.
    pub entries: u64,
    /// Bytes of data in all.
    pub bytes: u64,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 16 << 30 }
    }
}

/// Why a report was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Guest: a path that names nothing in the workspace.
    #[error("take in the sandbox's changes: the reported path \"{shown}\" {fault}")]
    Path {
        /// The path, printable, shortened.
        shown: String,
        /// What is wrong with it.
        fault: PathFault,
    },
    /// Guest: more than the limit.
    #[error("take in the sandbox's changes: more than {limit} {what}; raise the limit, or change less in one run")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Guest: data that belongs to no file, or more than the file's size.
    #[error("take in the sandbox's changes: {len_bytes} bytes of data where {expected_bytes} were announced")]
    Data {
        /// Bytes received at once.
        len_bytes: u64,
        /// Bytes still expected.
        expected_bytes: u64,
    },
    /// Guest: the next record or the end while data of a file is missing.
    #[error("take in the sandbox's changes: {missing_bytes} bytes of \"{path}\" are missing")]
    Short {
        /// The file.
        path: RelPath,
        /// Bytes that did not come.
        missing_bytes: u64,
    },
    /// Guest: a link without target, or with one that no link can have.
    #[error(
        "take in the sandbox's changes: the link \"{path}\" has a target of {len_bytes} bytes; accepted: 1 to {PATH_MAX_BYTES} without NUL"
    )]
    Target {
        /// The link.
        path: RelPath,
        /// Length of the target.
        len_bytes: usize,
    },
    /// Host: the spool cannot be written.
    #[error("store the sandbox's changes in {}: check free space there", path.display())]
    Write {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SpoolError {
    /// Whether the guest is at fault, not the host.
    #[must_use]
    pub fn is_guest_fault(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }
}

/// A private directory that goes away when dropped, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct SpoolDir {
    path: PathBuf,
    keep: AtomicBool,
}

impl SpoolDir {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file with the data numbered `number`.
    pub(crate) fn data(&self, number: u32) -> PathBuf {
        self.path.join(format!("data-{number}"))
    }

    /// From now on the directory outlives this value.
    pub(crate) fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }
}

impl Drop for SpoolDir {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Relaxed) {
            let _ = std::fs::remove_dir_all(&self.path); // nobody is left to tell; the run directory is removed later anyway
        }
    }
}

/// What the guest said of one path, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reported {
    Whiteout,
    Special,
    Dir { mode: u32, opaque: bool },
    File { mode: u32, size: u64, sha256: Digest, number: u32 },
    Symlink { target: Vec<u8> },
}

/// Takes in one report; see the module's header.
#[derive(Debug)]
pub struct Spool {
    dir: Arc<SpoolDir>,
    limits: SpoolLimits,
    reported: BTreeMap<RelPath, Reported>,
    records: u64,
    bytes: u64,
    numbers: u32,
    notes: Notes,
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    path: RelPath,
    mode: u32,
    size: u64,
    left: u64,
    number: u32,
    file: File,
    hasher: Sha256,
}

impl Spool {
    /// Makes the new directory `dir` (mode 0700), which must not exist; its parent must be out of the guest's reach.
    ///
    /// # Errors
    /// [`SpoolError::Write`].
    pub fn create(dir: &Path, limits: SpoolLimits) -> Result<Self, SpoolError> {
        let made = DirBuilder::new().mode(0o700).create(dir);
        made.map_err(|source| SpoolError::Write { path: dir.into(), source })?;
        Ok(Self {
            dir: Arc::new(SpoolDir { path: dir.into(), keep: AtomicBool::new(false) }),
            limits,
            reported: BTreeMap::new(),
            records: 0,
            bytes: 0,
            numbers: 0,
            notes: Notes::default(),
            open: None,
        })
    }

    /// Takes a record. After a file's record, [`Spool::data`] must bring exactly `size` bytes. Records may come in any order;
    /// of several for one path the last counts.
    ///
    /// # Errors
    /// [`SpoolError`]; after one of them the spool should be dropped.
    pub fn entry(&mut self, entry: &GuestEntry) -> Result<(), SpoolError> {
        self.close_file()?;
        self.records += 1;
        if self.records > self.limits.entries {
            return Err(SpoolError::Limit { what: "changed entries", limit: self.limits.entries });
        }
        let path = RelPath::parse(&entry.path).map_err(|fault| {
            let shown = printable(&entry.path[..entry.path.len().min(200)]);
            SpoolError::Path { shown, fault }
        })?;
        let mode = entry.mode & MODE_MASK;
        let reported = match entry.kind {
            GuestKind::Whiteout => Reported::Whiteout,
            GuestKind::Special => Reported::Special,
            GuestKind::Dir => Reported::Dir { mode, opaque: false },
            GuestKind::OpaqueDir => Reported::Dir { mode, opaque: true },
            GuestKind::Symlink => Reported::Symlink { target: checked_target(&path, &entry.target)? },
            GuestKind::File => return self.open_file(path, mode, entry.size),
        };
        self.report(path, reported)
    }

    /// Takes data of the file whose record came last.
    ///
    /// # Errors
    /// [`SpoolError::Data`] for more than was announced, [`SpoolError::Write`].
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let len_bytes = bytes.len() as u64;
        let expected_bytes = self.open.as_ref().map_or(0, |open| open.left);
        let Some(open) = self.open.as_mut().filter(|open| open.left >= len_bytes) else {
            return Err(SpoolError::Data { len_bytes, expected_bytes });
        };
        open.left -= len_bytes;
        open.hasher.update(bytes);
        let written = open.file.write_all(bytes);
        written.map_err(|source| SpoolError::Write { path: self.dir.data(open.number), source })
    }

    /// Ends the report and compares it with what was packed.
    ///
    /// # Errors
    /// [`SpoolError::Short`] when data is missing.
    pub fn finish(mut self, manifest: &Manifest) -> Result<ChangeSet, SpoolError> {
        self.close_file()?;
        let (changes, unneeded) = compare(&manifest.entries, &self.reported, &mut self.notes);
        for number in unneeded {
            self.remove(number)?;
        }
        Ok(ChangeSet::new(changes, self.notes, self.dir, manifest))
    }

    fn open_file(&mut self, path: RelPath, mode: u32, size: u64) -> Result<(), SpoolError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(SpoolError::Limit { what: "bytes of changed files", limit: self.limits.bytes });
        }
        let number = self.numbers;
        self.numbers += 1; // bounded by the number of records
        let at = self.dir.data(number);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&at);
        let file = file.map_err(|source| SpoolError::Write { path: at, source })?;
        self.open = Some(OpenFile { path, mode, size, left: size, number, file, hasher: Sha256::new() });
        Ok(())
    }

    fn close_file(&mut self) -> Result<(), SpoolError> {
        let Some(OpenFile { path, mode, size, left, number, hasher, .. }) = self.open.take() else { return Ok(()) };
        if left > 0 {
            return Err(SpoolError::Short { path, missing_bytes: left });
        }
        self.report(path, Reported::File { mode, size, sha256: hasher.finalize().into(), number })
    }

    fn report(&mut self, path: RelPath, reported: Reported) -> Result<(), SpoolError> {
        if reported == Reported::Special {
            self.notes.add(path.clone(), NoteKind::GuestSpecial);
        }
        let Some(before) = self.reported.insert(path.clone(), reported) else { return Ok(()) };
        self.notes.add(path, NoteKind::ReportedTwice);
        match before {
            Reported::File { number, .. } => self.remove(number),
            _ => Ok(()),
        }
    }

    fn remove(&self, number: u32) -> Result<(), SpoolError> {
        let path = self.dir.data(number);
        std::fs::remove_file(&path).map_err(|source| SpoolError::Write { path, source })
    }
}

fn checked_target(path: &RelPath, target: &[u8]) -> Result<Vec<u8>, SpoolError> {
    if (1..=PATH_MAX_BYTES).contains(&target.len()) && !target.contains(&0) {
        return Ok(target.to_vec());
    }
    Err(SpoolError::Target { path: path.clone(), len_bytes: target.len() })
}

#[cfg(test)]
mod tests;
