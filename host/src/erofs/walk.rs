// SPDX-License-Identifier: Apache-2.0
//! A walk over a directory tree that cannot be led out of it: every directory is opened relative to the one above it and
//! never through a symbolic link, whatever is renamed meanwhile. Entries come sorted by name, parents first.
//!
//! The walk reads no file and decides nothing: the caller says which directories to enter.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

/// One step of the walk.
#[derive(Debug)]
pub(crate) enum Step {
    /// An entry; [`Walk::path`] is its path, [`Walk::dir`] the directory it is in.
    Entry { name: CString, stat: Stat },
    /// An entry that was listed but is gone.
    Gone,
    /// All entries of the directory entered last have been seen.
    Leave,
}

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Walk {
    frames: Vec<Frame>,
    /// Of the entry last returned, relative to the top, without a leading '/'.
    path: Vec<u8>,
}

#[derive(Debug)]
struct Frame {
    dir: OwnedFd,
    names: std::vec::IntoIter<CString>,
    path_len: usize,
}

impl Walk {
    /// Opens the top; here alone symbolic links are followed.
    pub(crate) fn open(top: &Path) -> io::Result<Self> {
        let dir = rustix::fs::open(top, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let names = sorted_names(&dir)?;
        Ok(Self { frames: vec![Frame { dir, names, path_len: 0 }], path: Vec::new() })
    }

    /// The next step; `None` after the top's last entry.
    pub(crate) fn step(&mut self) -> io::Result<Option<Step>> {
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        self.path.truncate(frame.path_len);
        let Some(name) = frame.names.next() else {
            self.frames.pop();
            return Ok(if self.frames.is_empty() { None } else { Some(Step::Leave) });
        };
        if frame.path_len > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.as_bytes());
        match rustix::fs::statat(&frame.dir, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Step::Entry { name, stat })),
            Err(rustix::io::Errno::NOENT) => Ok(Some(Step::Gone)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Enters the directory `name`, which is the entry last returned.
    pub(crate) fn enter(&mut self, name: &CStr) -> io::Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(self.dir(), name, flags, Mode::empty())?;
        let names = sorted_names(&dir)?;
        self.frames.push(Frame { dir, names, path_len: self.path.len() });
        Ok(())
    }

    /// Opens the entry last returned if it is (still) a regular file; neither follows links nor waits for a pipe.
    pub(crate) fn open_file(&self, name: &CStr) -> io::Result<Option<(File, Stat)>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(self.dir(), name, flags, Mode::empty()) {
            Ok(file) => file,
            // Gone, or replaced by a link, a socket or a device without driver since it was listed.
            Err(
                rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NXIO | rustix::io::Errno::NODEV,
            ) => {
                return Ok(None);
            }
            Err(errno) => return Err(errno.into()),
        };
        let stat = rustix::fs::fstat(&file)?;
        Ok((FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then(|| (File::from(file), stat)))
    }

    /// The target of the symbolic link last returned, `None` when it is gone.
    pub(crate) fn read_link(&self, name: &CStr) -> io::Result<Option<Vec<u8>>> {
        match rustix::fs::readlinkat(self.dir(), name, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Path of the entry last returned.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Directories entered and not left, the top included.
    pub(crate) fn depth(&self) -> usize {
        self.frames.len()
    }

    /// The directory that holds the entry last returned.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.frames.last().expect("an entry was returned from a directory").dir.as_fd()
    }
}

/// Names of a directory without "." and "..", sorted as bytes.
fn sorted_names(dir: &OwnedFd) -> io::Result<std::vec::IntoIter<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk_all(top: &Path) -> Vec<String> {
        let mut walk = Walk::open(top).unwrap();
        let mut seen = Vec::new();
        while let Some(step) = walk.step().unwrap() {
            match step {
                Step::Entry { name, stat } => {
                    seen.push(String::from_utf8_lossy(walk.path()).into_owned());
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        walk.enter(&name).unwrap();
                    }
                }
                Step::Leave => seen.push("<".into()),
                Step::Gone => seen.push("gone".into()),
            }
        }
        seen
    }

    #[test]
    fn entries_come_sorted_parents_first_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("b/c")).unwrap();
        std::fs::write(dir.path().join("b.x"), "").unwrap();
        std::fs::write(dir.path().join("b/c/f"), "").unwrap();
        std::os::unix::fs::symlink("b", dir.path().join("a")).unwrap();
        assert_eq!(walk_all(dir.path()), ["a", "b", "b/c", "b/c/f", "<", "<", "b.x"]);
    }

    #[test]
    fn a_directory_replaced_by_a_link_after_it_was_listed_is_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let mut walk = Walk::open(dir.path()).unwrap();
        let Some(Step::Entry { name, .. }) = walk.step().unwrap() else { panic!("an entry is there") };
        std::fs::remove_dir(dir.path().join("d")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("d")).unwrap();
        assert!(walk.enter(&name).is_err());
        assert!(walk.open_file(&name).unwrap().is_none());
    }

    #[test]
    fn a_file_gone_or_replaced_by_a_pipe_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        std::fs::write(dir.path().join("g"), "").unwrap();
        let mut walk = Walk::open(dir.path()).unwrap();
        let Some(Step::Entry { name, .. }) = walk.step().unwrap() else { panic!("an entry is there") };
        std::fs::remove_file(dir.path().join("f")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("f"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(walk.open_file(&name).unwrap().is_none());
        std::fs::remove_file(dir.path().join("g")).unwrap();
        assert!(matches!(walk.step().unwrap(), Some(Step::Gone)));
    }
}
