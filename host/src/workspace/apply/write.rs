// SPDX-License-Identifier: Apache-2.0
//! The single steps that write to the user's directory, each atomic for its entry. None of them decides whether it may; the
//! check that the entry is still what was looked at is repeated right before it is replaced.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::super::path::RelPath;
use super::host_tree::{Parent, State};

/// A step that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the temporary file.
    CreateTemporary,
    /// Fill it.
    Copy,
    /// Set owner and mode, of the temporary file or of an entry.
    SetMode,
    /// Flush the temporary file, or a file whose mode was set, to the disk.
    SyncFile,
    /// Put it, or a link, in place.
    Rename,
    /// Flush a directory.
    SyncDir,
    /// Remove a file or link.
    Unlink,
    /// Make a directory.
    MakeDir,
    /// Remove an empty directory.
    RemoveDir,
    /// Make a symbolic link under a temporary name.
    Symlink,
}

/// Hears of every step that writes before it happens; tests make steps fail with it.
pub trait Steps {
    /// An error makes the step fail.
    ///
    /// # Errors
    /// Any.
    fn before(&mut self, step: Step) -> io::Result<()>;

    /// Flushes `what` to the disk; the only way that applying does so.
    ///
    /// # Errors
    /// What the system says, or [`Steps::before`].
    fn sync(&mut self, step: Step, what: BorrowedFd<'_>) -> io::Result<()> {
        self.before(step)?;
        match rustix::io::retry_on_intr(|| rustix::fs::fsync(what)) {
            // Some file systems cannot flush a directory.
            Err(Errno::INVAL | Errno::ROFS) if step == Step::SyncDir => Ok(()),
            synced => Ok(synced?),
        }
    }
}

/// Lets every step happen.
#[derive(Clone, Copy, Debug)]
pub struct NoFaults;

impl Steps for NoFaults {
    fn before(&mut self, _: Step) -> io::Result<()> {
        Ok(())
    }
}

/// A name in a directory that is removed again unless it was renamed away.
struct Temporary<'a> {
    parent: &'a Parent<'a>,
    name: String,
    armed: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.armed {
            let _ = rustix::fs::unlinkat(self.parent.dir, &self.name, AtFlags::empty()); // the first error is what counts
        }
    }
}

impl Parent<'_> {
    /// Puts the file `from` of `size` bytes at `path`, where `state` was found.
    pub(super) fn put_file(
        &self,
        path: &RelPath,
        state: &State,
        (from, size): (&Path, u64),
        mode: u32,
        steps: &mut dyn Steps,
    ) -> io::Result<()> {
        steps.before(Step::CreateTemporary)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (temporary, file) = self
            .temporary(|name| rustix::fs::openat(self.dir, name, flags, Mode::from_raw_mode(0o600)).map(File::from))?;
        steps.before(Step::Copy)?;
        let copied = io::copy(&mut File::open(from)?, &mut &file)?;
        if copied != size {
            return Err(io::Error::other(format!("the spool holds {copied} of {size} bytes")));
        }
        steps.before(Step::SetMode)?;
        self.take_owner(&file, state.stat());
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        steps.sync(Step::SyncFile, file.as_fd())?;
        self.rename(temporary, path, state, steps)
    }

    /// Puts a symbolic link at `path`, where `state` was found.
    pub(super) fn put_link(
        &self,
        path: &RelPath,
        state: &State,
        target: &[u8],
        steps: &mut dyn Steps,
    ) -> io::Result<()> {
        steps.before(Step::Symlink)?;
        let (temporary, ()) = self.temporary(|name| rustix::fs::symlinkat(target, self.dir, name))?;
        self.rename(temporary, path, state, steps)
    }

    /// Makes a directory.
    pub(super) fn make_dir(&self, path: &RelPath, mode: u32, steps: &mut dyn Steps) -> io::Result<()> {
        steps.before(Step::MakeDir)?;
        rustix::fs::mkdirat(self.dir, path.name(), Mode::from_raw_mode(mode))?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(self.dir, path.name(), flags, Mode::empty())?;
        self.take_owner(&dir, None);
        Ok(())
    }

    /// Sets the permission bits of the file or directory at `path`, unless they are so already.
    pub(super) fn set_mode(&self, path: &RelPath, state: &State, mode: u32, steps: &mut dyn Steps) -> io::Result<()> {
        if state.mode().is_none_or(|host| host & 0o777 == mode) {
            return Ok(());
        }
        steps.before(Step::SetMode)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry: OwnedFd = rustix::fs::openat(self.dir, path.name(), flags, Mode::empty())?;
        let now = rustix::fs::fstat(&entry)?;
        if state.stat().is_none_or(|then| (then.st_dev, then.st_ino) != (now.st_dev, now.st_ino)) {
            return Err(changed());
        }
        // A descriptor opened with O_PATH, as the entry may not be readable; fchmod does not take one, its name in /proc does.
        let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&entry));
        rustix::fs::chmod(&name, Mode::from_raw_mode(mode))?;
        let step = if matches!(state, State::Dir { .. }) { Step::SyncDir } else { Step::SyncFile };
        match rustix::fs::open(&name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
            Ok(entry) => steps.sync(step, entry.as_fd()),
            // We may not read it, so it cannot be flushed; its old mode is all that a power cut could bring back.
            Err(Errno::ACCESS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what is at `path`, where `state` was found; a directory must be empty.
    pub(super) fn remove(&self, path: &RelPath, state: &State, steps: &mut dyn Steps) -> io::Result<()> {
        let (step, flags) = match state {
            State::Dir { .. } => (Step::RemoveDir, AtFlags::REMOVEDIR),
            _ => (Step::Unlink, AtFlags::empty()),
        };
        steps.before(step)?;
        if !matches!(state, State::Dir { .. }) && !self.is_still(path, state)? {
            return Err(changed());
        }
        Ok(rustix::fs::unlinkat(self.dir, path.name(), flags)?)
    }

    fn rename(
        &self,
        mut temporary: Temporary<'_>,
        path: &RelPath,
        state: &State,
        steps: &mut dyn Steps,
    ) -> io::Result<()> {
        steps.before(Step::Rename)?;
        if !self.is_still(path, state)? {
            return Err(changed());
        }
        let (from, to) = (temporary.name.as_str(), path.name());
        let renamed = match state {
            // What appears in this very moment is not replaced, where the file system can do that.
            State::Absent => match rustix::fs::renameat_with(self.dir, from, self.dir, to, RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(self.dir, from, self.dir, to),
                renamed => renamed,
            },
            _ => rustix::fs::renameat(self.dir, from, self.dir, to),
        };
        temporary.armed = renamed.is_err();
        Ok(renamed?)
    }

    /// Makes something under a name that nothing has yet.
    fn temporary<T>(&self, make: impl Fn(&str) -> Result<T, Errno>) -> io::Result<(Temporary<'_>, T)> {
        const ATTEMPTS: u32 = 100;
        for _ in 0..ATTEMPTS {
            let name = format!(".midge-{:016x}.tmp", unlikely_number());
            match make(&name) {
                // A signal that comes meanwhile is no failure; whatever was begun under that name is not looked for.
                Err(Errno::EXIST | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(made) => return Ok((Temporary { parent: self, name, armed: true }, made)),
            }
        }
        Err(io::Error::other(format!("{ATTEMPTS} temporary names are taken")))
    }

    /// Gives `made` the owner of what it replaces or, when root applies, of its directory; where we may not, it stays ours.
    fn take_owner(&self, made: impl AsFd, replaced: Option<&Stat>) {
        let owner = match replaced {
            Some(stat) => Some((stat.st_uid, stat.st_gid)),
            None if rustix::process::geteuid().is_root() => {
                rustix::fs::fstat(self.dir).ok().map(|stat| (stat.st_uid, stat.st_gid))
            }
            None => None,
        };
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            let _ = rustix::fs::fchown(made, Some(uid), Some(gid)); // not allowed: it stays ours, as with any editor
        }
    }
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, "changed on the host in this very moment")
}

/// A number for a temporary name; O_EXCL is what makes it safe, this only makes a second attempt unlikely.
fn unlikely_number() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_while_something_is_made_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::File::open(dir.path()).unwrap();
        let parent = Parent { dir: open.as_fd() };
        let calls = std::cell::Cell::new(0);
        let (made, ()) = parent
            .temporary(|name| {
                calls.set(calls.get() + 1);
                if calls.get() < 3 { Err(Errno::INTR) } else { rustix::fs::symlinkat("target", &open, name) }
            })
            .unwrap();
        assert_eq!(calls.get(), 3);
        assert!(dir.path().join(&made.name).symlink_metadata().unwrap().is_symlink());
        assert!(parent.temporary(|_| Err::<(), _>(Errno::INTR)).is_err(), "nor is it waited out for ever");
    }
}
