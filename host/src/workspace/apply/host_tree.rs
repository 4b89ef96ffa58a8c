// SPDX-License-Identifier: Apache-2.0
//! Finding one's way in the user's directory: every directory is opened relative to the one above and never through a symbolic
//! link, on the file system of the top. Reads what is there now; writes nothing but missing directories of the run's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::super::changes::{After, AfterContent};
use super::super::manifest::{Content, Digest};
use super::super::path::RelPath;
use super::write::{Step, Steps};

/// Why the directory of an entry cannot be reached.
#[derive(Debug)]
pub(super) enum ParentFault {
    Gone,
    Changed,
    Io(io::Error),
}

/// What is at a path now.
#[derive(Debug)]
pub(super) enum State {
    Absent,
    Dir {
        stat: Stat,
    },
    File {
        stat: Stat,
        sha256: Digest,
    },
    Symlink {
        stat: Stat,
        target: Vec<u8>,
    },
    /// A socket, pipe or device.
    Other,
}

impl State {
    /// Whether it is what was packed, its mode aside.
    pub(super) fn has_content_of(&self, content: &Content) -> bool {
        match (self, content) {
            (Self::Dir { .. }, Content::Dir) => true,
            (Self::File { sha256, .. }, Content::File { sha256: packed, .. }) => sha256 == packed,
            (Self::Symlink { target, .. }, Content::Symlink { target: packed }) => target == packed,
            _ => false,
        }
    }

    /// Whether it is of the same kind as what was packed.
    pub(super) fn has_content_kind_of(&self, content: &Content) -> bool {
        matches!((self, content), (Self::Dir { .. }, Content::Dir) | (Self::File { .. }, Content::File { .. }))
    }

    /// Whether it is what the run left, its mode aside.
    pub(super) fn is_already(&self, after: &After) -> bool {
        match (self, &after.content) {
            (Self::Dir { .. }, AfterContent::Dir) => true,
            (Self::File { sha256, .. }, AfterContent::File { sha256: new, .. }) => sha256 == new,
            (Self::Symlink { target, .. }, AfterContent::Symlink { target: new }) => target == new,
            _ => false,
        }
    }

    /// Permission bits of a file or directory.
    pub(super) fn mode(&self) -> Option<u32> {
        match self {
            Self::Dir { stat } | Self::File { stat, .. } => Some(stat.st_mode & 0o7777),
            _ => None,
        }
    }

    /// As the system tells of it; `None` when nothing of ours is there.
    pub(super) fn stat(&self) -> Option<&Stat> {
        match self {
            Self::Dir { stat } | Self::File { stat, .. } | Self::Symlink { stat, .. } => Some(stat),
            Self::Absent | Self::Other => None,
        }
    }
}

/// The user's directory, open; keeps the directory used last open, as changes come sorted.
#[derive(Debug)]
pub(super) struct HostTree {
    top: OwnedFd,
    device: u64,
    current: Option<(Option<RelPath>, OwnedFd)>,
    unflushed: BTreeMap<Option<RelPath>, String>,
}

/// The directory that holds an entry.
#[derive(Debug)]
pub(super) struct Parent<'a> {
    pub(super) dir: BorrowedFd<'a>,
}

impl HostTree {
    /// Opens the top; here alone symbolic links are followed.
    pub(super) fn open(top: &Path) -> io::Result<Self> {
        let top = rustix::fs::open(top, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let device = rustix::fs::fstat(&top)?.st_dev;
        Ok(Self { top, device, current: None, unflushed: BTreeMap::new() })
    }

    /// Opens the directory that holds `path`; a missing directory is made when the run made it: `new` has
    /// those, with their modes.
    pub(super) fn parent(
        &mut self,
        path: &RelPath,
        new: &BTreeMap<&RelPath, u32>,
        steps: &mut dyn Steps,
    ) -> Result<Parent<'_>, ParentFault> {
        let wanted = path.parent();
        if self.current.as_ref().is_none_or(|(path, _)| *path != wanted) {
            self.leave(steps);
            let dir = self.descend(wanted.as_ref(), new, steps)?;
            self.current = Some((wanted, dir));
        }
        let dir = &self.current.as_ref().expect("set above").1;
        Ok(Parent { dir: dir.as_fd() })
    }

    /// Flushes the directory used last, so that its renames survive a power cut; what fails is in [`HostTree::unflushed`].
    pub(super) fn leave(&mut self, steps: &mut dyn Steps) {
        if let Some((path, dir)) = self.current.take()
            && let Err(error) = steps.sync(Step::SyncDir, dir.as_fd())
        {
            self.unflushed.insert(path, error.to_string());
        }
    }

    /// Directories that could not be flushed, and why: what was done in them may be undone by a power cut.
    pub(super) fn unflushed(&self) -> &BTreeMap<Option<RelPath>, String> {
        &self.unflushed
    }

    fn descend(
        &self,
        dir: Option<&RelPath>,
        new: &BTreeMap<&RelPath, u32>,
        steps: &mut dyn Steps,
    ) -> Result<OwnedFd, ParentFault> {
        let io = |errno: Errno| ParentFault::Io(errno.into());
        let mut open = rustix::fs::openat(&self.top, c".", DIRECTORY, Mode::empty()).map_err(io)?;
        let mut so_far: Option<RelPath> = None;
        for name in dir.iter().flat_map(|dir| dir.components()) {
            let path = RelPath::join(so_far.as_ref(), name).expect("a part of a valid path");
            let next = match rustix::fs::openat(&open, name, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) if new.contains_key(&path) => {
                    let mode = new[&path] | 0o700;
                    let made = Parent { dir: open.as_fd() }.make_dir(&path, mode, steps);
                    made.and_then(|()| steps.sync(Step::SyncDir, open.as_fd())).map_err(ParentFault::Io)?;
                    rustix::fs::openat(&open, name, DIRECTORY, Mode::empty())
                }
                next => next,
            };
            open = next.map_err(|errno| match errno {
                Errno::NOENT => ParentFault::Gone,
                Errno::LOOP | Errno::NOTDIR => ParentFault::Changed,
                errno => io(errno),
            })?;
            if rustix::fs::fstat(&open).map_err(io)?.st_dev != self.device {
                return Err(ParentFault::Changed);
            }
            so_far = Some(path);
        }
        Ok(open)
    }
}

/// How directories are opened: the last component must not be a symbolic link either.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::RDONLY).union(OFlags::CLOEXEC);

impl Parent<'_> {
    /// What is at `path`, whose directory this is; a file's content is read.
    pub(super) fn state(&self, path: &RelPath) -> io::Result<State> {
        let name = path.name();
        let stat = match rustix::fs::statat(self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(State::Absent),
            stat => stat?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(State::Dir { stat }),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(self.dir, name, Vec::new())?.into_bytes();
                Ok(State::Symlink { stat, target })
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(self.dir, name, flags, Mode::empty())?);
                let stat = rustix::fs::fstat(&file)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(State::Other); // replaced since the line above
                }
                let sha256 = digest(file)?;
                Ok(State::File { stat, sha256 })
            }
            _ => Ok(State::Other),
        }
    }

    /// Whether `path` is still what `state` was read from.
    pub(super) fn is_still(&self, path: &RelPath, state: &State) -> io::Result<bool> {
        match (rustix::fs::statat(self.dir, path.name(), AtFlags::SYMLINK_NOFOLLOW), state.stat()) {
            (Err(Errno::NOENT), None) => Ok(matches!(state, State::Absent)),
            (Ok(now), Some(then)) => Ok(same(&now, then)),
            (Ok(_), None) | (Err(Errno::NOENT), Some(_)) => Ok(false),
            (Err(errno), _) => Err(errno.into()),
        }
    }
}

fn same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino, a.st_size, a.st_mtime, a.st_mtime_nsec)
        == (b.st_dev, b.st_ino, b.st_size, b.st_mtime, b.st_mtime_nsec)
}

fn digest(mut file: File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 1 << 17];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finalize().into()),
            len => hasher.update(&chunk[..len]),
        }
    }
}
