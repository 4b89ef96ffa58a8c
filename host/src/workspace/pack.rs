// SPDX-License-Identifier: Apache-2.0
//! Packing: the user's directory becomes an EROFS image for the guest and a [`Manifest`] for the host, in one pass that reads
//! each file once. The directory is never written and, whatever is renamed under our feet, never left.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Stat};
use sha2::{Digest as _, Sha256};

use super::WorkspaceError;
use super::guard::link_stays_inside;
use super::manifest::{Content, Digest, Entry, MODE_MASK, Manifest, NoteKind, Notes};
use super::path::{DEPTH_MAX, RelPath};
use crate::erofs::walk::{Step, Walk};
use crate::erofs::{Attributes, Builder, NodeId};

/// Owner of everything in the guest: the user that commands run as.
const GUEST_ID: u32 = 1000;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 18;

/// How much may be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackLimits {
    /// Entries of any kind, 1 to 4,000,000.
    pub entries: u64,
    /// Bytes of file content, 1 to 8 TiB.
    pub bytes: u64,
    /// Directories inside one another, 1 to 512.
    pub depth: usize,
    /// Leave out what the user cannot read, with a note, instead of failing.
    pub skip_unreadable: bool,
}

impl Default for PackLimits {
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 16 << 30, depth: 128, skip_unreadable: false }
    }
}

impl PackLimits {
    pub(super) const ENTRIES_MAX: u64 = 4_000_000;
    const BYTES_MAX: u64 = 8 << 40;
}

/// Packs `dir` into the new image file `into`; `progress` hears of the files and bytes read so far, several times a second
/// on a fast disk.
///
/// A file that changes while it is read is packed as it was read and noted. Hard links become independent files that share
/// their data in the image.
///
/// # Errors
/// [`WorkspaceError::Open`] when `dir` is absent, no directory or unreadable; [`WorkspaceError::Unreadable`] naming an entry;
/// [`WorkspaceError::Limit`]; [`WorkspaceError::Image`]. A half-written image is removed.
pub fn pack(
    dir: &Path,
    into: &Path,
    limits: &PackLimits,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Manifest, WorkspaceError> {
    check_limits(dir, limits)?;
    let open = |source| WorkspaceError::Open { path: dir.into(), source };
    let absolute = dir.canonicalize().map_err(open)?;
    let walk = Walk::open(&absolute).map_err(open)?;
    let top = rustix::fs::fstat(walk.dir()).map_err(|errno| open(errno.into()))?;
    let builder = Builder::create(into, &attributes(&top)).map_err(WorkspaceError::Image)?;
    let packed = Packing::new(absolute, walk, builder, limits, progress, &top).and_then(Packing::run);
    if packed.is_err() {
        let _ = std::fs::remove_file(into); // the error that matters is the one we return
    }
    packed
}

fn check_limits(dir: &Path, limits: &PackLimits) -> Result<(), WorkspaceError> {
    let depth_max = DEPTH_MAX as u64;
    let settings = [
        ("entries", limits.entries, PackLimits::ENTRIES_MAX, "1 to 4000000"),
        ("bytes", limits.bytes, PackLimits::BYTES_MAX, "1 to 8796093022208"),
        ("levels of directories", limits.depth as u64, depth_max, "1 to 512"),
    ];
    for (what, limit, max, accepted) in settings {
        if limit == 0 || limit > max {
            return Err(WorkspaceError::Limit { path: dir.into(), what, found: 0, limit, accepted });
        }
    }
    Ok(())
}

struct Packing<'a> {
    dir: PathBuf,
    walk: Walk,
    builder: Builder,
    limits: &'a PackLimits,
    progress: &'a mut dyn FnMut(u64, u64),
    /// Nodes of the directories entered.
    parents: Vec<NodeId>,
    /// Files with several names that were read already.
    linked: HashMap<(u64, u64), Twin>,
    nodes: Vec<(RelPath, NodeId)>,
    entries: BTreeMap<RelPath, Entry>,
    notes: Notes,
    files: u64,
    bytes: u64,
    device: u64,
    image: (u64, u64),
    chunk: Vec<u8>,
}

#[derive(Clone)]
struct Twin {
    node: NodeId,
    size: u64,
    sha256: Digest,
    stamp: Stamp,
}

/// What changes when a file's content does.
type Stamp = (i64, i64, i64, i64, i64);

impl<'a> Packing<'a> {
    fn new(
        dir: PathBuf,
        walk: Walk,
        builder: Builder,
        limits: &'a PackLimits,
        progress: &'a mut dyn FnMut(u64, u64),
        top: &Stat,
    ) -> Result<Self, WorkspaceError> {
        let image = rustix::fs::fstat(builder.image_file());
        let image = image.map_err(|errno| WorkspaceError::Open { path: dir.clone(), source: errno.into() })?;
        Ok(Self {
            parents: vec![builder.root()],
            dir,
            walk,
            builder,
            limits,
            progress,
            linked: HashMap::new(),
            nodes: Vec::new(),
            entries: BTreeMap::new(),
            notes: Notes::default(),
            files: 0,
            bytes: 0,
            device: top.st_dev,
            image: (image.st_dev, image.st_ino),
            chunk: vec![0; CHUNK_BYTES],
        })
    }

    fn run(mut self) -> Result<Manifest, WorkspaceError> {
        loop {
            match self.walk.step() {
                Ok(None) => break,
                Ok(Some(Step::Leave)) => drop(self.parents.pop()),
                Ok(Some(Step::Gone)) => self.note(NoteKind::GoneWhileRead)?,
                Ok(Some(Step::Entry { stat, .. })) if (stat.st_dev, stat.st_ino) == self.image => {}
                Ok(Some(Step::Entry { name, stat })) => self.entry(&name, &stat)?,
                Err(source) => self.unreadable(source)?,
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Result<Manifest, WorkspaceError> {
        (self.progress)(self.files, self.bytes);
        let image = self.builder.finish().map_err(WorkspaceError::Image)?;
        for (path, node) in &self.nodes {
            if let Some(Entry { content: Content::File { image_offset, .. }, .. }) = self.entries.get_mut(path) {
                *image_offset = image.content_offset(*node);
            }
        }
        Ok(Manifest {
            dir: self.dir,
            entries: self.entries,
            files: self.files,
            bytes: self.bytes,
            image_bytes: image.len_bytes,
            notes: self.notes,
            image: Arc::new(image.file),
        })
    }

    fn entry(&mut self, name: &CStr, stat: &Stat) -> Result<(), WorkspaceError> {
        let path = self.path()?;
        let content = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.directory(name, stat)?,
            FileType::Symlink => self.symlink(name, &path, stat)?,
            FileType::RegularFile => self.file(name, &path, stat)?,
            _ => {
                self.notes.add(path, NoteKind::SpecialSkipped);
                return Ok(());
            }
        };
        let Some(content) = content else { return Ok(()) };
        self.entries.insert(path, Entry { mode: stat.st_mode & MODE_MASK, content });
        self.bound("entries", self.entries.len() as u64, self.limits.entries, "1 to 4000000")
    }

    fn directory(&mut self, name: &CStr, stat: &Stat) -> Result<Option<Content>, WorkspaceError> {
        let depth = self.walk.depth() as u64;
        self.bound("levels of directories", depth, self.limits.depth as u64, "1 to 512")?;
        let mounted = stat.st_dev != self.device;
        if mounted {
            self.note(NoteKind::MountSkipped)?;
        } else if let Err(source) = self.walk.enter(name) {
            self.unreadable(source)?;
            return Ok(None);
        }
        let node =
            self.builder.directory(self.parent(), name.to_bytes(), &attributes(stat)).map_err(WorkspaceError::Image)?;
        if !mounted {
            self.parents.push(node);
        }
        Ok(Some(Content::Dir))
    }

    fn symlink(&mut self, name: &CStr, path: &RelPath, stat: &Stat) -> Result<Option<Content>, WorkspaceError> {
        let target = match self.walk.read_link(name) {
            Ok(Some(target)) => target,
            Ok(None) => return self.note(NoteKind::GoneWhileRead).map(|()| None),
            Err(source) => return self.unreadable(source).map(|()| None),
        };
        if !link_stays_inside(path, &target) {
            self.note(NoteKind::LinkLeavesTree)?;
        }
        let added = self.builder.symlink(self.parent(), name.to_bytes(), &attributes(stat), &target);
        added.map_err(WorkspaceError::Image)?;
        Ok(Some(Content::Symlink { target }))
    }

    fn file(&mut self, name: &CStr, path: &RelPath, listed: &Stat) -> Result<Option<Content>, WorkspaceError> {
        let (file, stat) = match self.walk.open_file(name) {
            Ok(Some(opened)) => opened,
            Ok(None) => return self.note(NoteKind::GoneWhileRead).map(|()| None),
            Err(source) => return self.unreadable(source).map(|()| None),
        };
        let identity = (stat.st_dev, stat.st_ino);
        let twin = match self.linked.get(&identity) {
            Some(twin) if twin.stamp == stamp(&stat) => {
                let (of, parent) = (twin.clone(), self.parent());
                let node = self.builder.twin(parent, name.to_bytes(), &attributes(listed), of.node);
                Twin { node: node.map_err(WorkspaceError::Image)?, ..of }
            }
            _ => self.read_file(name, file, &stat, listed)?,
        };
        self.files += 1;
        self.nodes.push((path.clone(), twin.node));
        let content = Content::File { size: twin.size, sha256: twin.sha256, image_offset: 0 };
        if stat.st_nlink > 1 {
            self.linked.insert(identity, twin);
        }
        (self.progress)(self.files, self.bytes);
        Ok(Some(content))
    }

    /// Reads a file into the image. It is read to its end, but not beyond the size it was opened with: a log that grows as
    /// fast as it is read must not keep us for ever.
    fn read_file(&mut self, name: &CStr, mut file: File, stat: &Stat, listed: &Stat) -> Result<Twin, WorkspaceError> {
        let parent = *self.parents.last().expect("the root is left last");
        let attributes = attributes(listed);
        let path = self.dir.join(OsStr::from_bytes(self.walk.path()));
        let limit = u64::try_from(stat.st_size).unwrap_or(0).max(CHUNK_BYTES as u64);
        let (mut hasher, mut size) = (Sha256::new(), 0);
        let mut writer = self.builder.file(parent, name.to_bytes(), &attributes).map_err(WorkspaceError::Image)?;
        while size < limit {
            let want = usize::try_from(limit - size).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
            let len = match file.read(&mut self.chunk[..want]) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(WorkspaceError::Unreadable { path, source }),
            };
            hasher.update(&self.chunk[..len]);
            writer.write(&self.chunk[..len]).map_err(WorkspaceError::Image)?;
            size += len as u64;
            self.bytes += len as u64;
            if self.bytes > self.limits.bytes {
                let (found, limit) = (self.bytes, self.limits.bytes);
                return Err(WorkspaceError::Limit {
                    path,
                    what: "bytes",
                    found,
                    limit,
                    accepted: "1 to 8796093022208",
                });
            }
            if size > CHUNK_BYTES as u64 {
                (self.progress)(self.files, self.bytes);
            }
        }
        let node = writer.end().map_err(WorkspaceError::Image)?;
        let after = rustix::fs::fstat(&file);
        let stamp_after = after.map(|after| stamp(&after));
        if stamp_after != Ok(stamp(stat)) || u64::try_from(stat.st_size) != Ok(size) {
            self.note(NoteKind::ChangedWhileRead)?;
        }
        Ok(Twin { node, size, sha256: hasher.finalize().into(), stamp: stamp(stat) })
    }

    /// Decides on an entry that cannot be read.
    fn unreadable(&mut self, source: io::Error) -> Result<(), WorkspaceError> {
        if self.limits.skip_unreadable && source.kind() == io::ErrorKind::PermissionDenied {
            return self.note(NoteKind::UnreadableSkipped);
        }
        Err(WorkspaceError::Unreadable { path: self.dir.join(OsStr::from_bytes(self.walk.path())), source })
    }

    fn parent(&self) -> NodeId {
        *self.parents.last().expect("the root is left last")
    }

    fn note(&mut self, kind: NoteKind) -> Result<(), WorkspaceError> {
        let path = self.path()?;
        self.notes.add(path, kind);
        Ok(())
    }

    fn path(&self) -> Result<RelPath, WorkspaceError> {
        RelPath::parse(self.walk.path()).map_err(|_| WorkspaceError::Limit {
            path: self.dir.clone(),
            what: "bytes in a path",
            found: self.walk.path().len() as u64,
            limit: super::path::PATH_MAX_BYTES as u64,
            accepted: "paths up to 4095 bytes",
        })
    }

    fn bound(&self, what: &'static str, found: u64, limit: u64, accepted: &'static str) -> Result<(), WorkspaceError> {
        if found <= limit {
            return Ok(());
        }
        let path = self.dir.join(OsStr::from_bytes(self.walk.path()));
        Err(WorkspaceError::Limit { path, what, found, limit, accepted })
    }
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & MODE_MASK,
        uid: GUEST_ID,
        gid: GUEST_ID,
        mtime_s: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        xattrs: Vec::new(),
    }
}

fn stamp(stat: &Stat) -> Stamp {
    let nanos = |value| i64::try_from(value).unwrap_or(0);
    (stat.st_size, stat.st_mtime, nanos(stat.st_mtime_nsec), stat.st_ctime, nanos(stat.st_ctime_nsec))
}

#[cfg(test)]
mod tests;
