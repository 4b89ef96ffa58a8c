// SPDX-License-Identifier: Apache-2.0
//! One group: made, filled, removed; and those that killed processes left behind.
//!
//! Whoever holds the flock of a group's directory owns it, and holds it until the group is gone. One whose lock is free
//! belonged to a process that was killed; between its making and its locking such a group may be taken for one of those,
//! and so it is made again if it is not there any more once it is locked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::base::{Base, base};
use super::{Allowance, GroupError, failed};
use crate::orders::number_of;
use crate::run_dir::{is_id, new_id};

/// What names of our groups begin with; a random name follows.
const PREFIX: &str = "midge-";
/// How often a group is made anew that somebody has cleared away before it was locked.
const TRIES: u32 = 4;
/// How long those who lived in a group may take to be gone.
const EMPTY_MAX: Duration = Duration::from_secs(5);
/// The same for what a killed process left: the next start tries again.
const STALE_MAX: Duration = Duration::from_millis(500);
/// First pause between two tries to remove a group; doubles with each.
const PAUSE_MIN: Duration = Duration::from_micros(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Longest file of a group that is read, in bytes: some thousand process numbers.
const FILE_MAX_BYTES: u64 = 64 << 10;

/// Groups of this process that have not been removed.
static STANDING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn standing() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    STANDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A group that is ours. Dropping it removes it if it is empty; else the next [`sweep`] does.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
    /// Holds its lock.
    dir: File,
}

impl Group {
    /// Makes one in `base` with these limits.
    pub(super) fn make(base: &Base, allowance: &Allowance) -> Result<Self, GroupError> {
        if let Some(controller) = allowance.asked().find(|wanted| !base.controllers().contains(wanted)) {
            return Err(GroupError::Without { dir: base.dir().to_owned(), controller });
        }
        let mut tries = 0;
        loop {
            let path = base.dir().join(format!("{PREFIX}{}", new_id()));
            fs::create_dir(&path).map_err(failed("making", &path))?;
            standing().insert(path.clone());
            tries += 1;
            match Self::set_up(&path, base, allowance) {
                Ok(group) => return Ok(group),
                Err(error) => {
                    is_removed(&path);
                    let is_swept = matches!(&error, GroupError::Io { source, .. } if is_gone(source));
                    if !is_swept || tries == TRIES {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn set_up(path: &Path, base: &Base, allowance: &Allowance) -> Result<Self, GroupError> {
        let group = Self::own(path, FlockOperation::LockExclusive).map_err(failed("locking", path))?;
        for (controller, file, text) in allowance.settings() {
            if !base.controllers().contains(&controller) {
                continue;
            }
            match group.put(file, &text) {
                // A kernel without swap has no limit for it.
                Err(error) if file == "memory.swap.max" && error.kind() == io::ErrorKind::NotFound => {}
                done => done.map_err(failed("limiting", &path.join(file)))?,
            }
        }
        // Whatever there is to be limited, this is in every group: is it still there?
        group.open("cgroup.procs", OFlags::WRONLY).map_err(failed("opening", path))?;
        Ok(group)
    }

    /// Takes the lock of a group that is there.
    pub(super) fn own(path: &Path, lock: FlockOperation) -> io::Result<Self> {
        let dir = File::open(path)?;
        flock(&dir, lock)?;
        Ok(Self { path: path.to_owned(), dir })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, name: &str, flags: OFlags) -> io::Result<File> {
        Ok(openat(&self.dir, name, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    fn put(&self, name: &str, text: &str) -> io::Result<()> {
        self.open(name, OFlags::WRONLY)?.write_all(text.as_bytes())
    }

    fn get(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.open(name, OFlags::RDONLY)?.take(FILE_MAX_BYTES).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Moves a child of this process, which has not been waited for: its number is nobody else's.
    pub(super) fn take_in(&self, child: u32) -> Result<(), GroupError> {
        self.put("cgroup.procs", &child.to_string()).map_err(failed("moving a process into", &self.path))
    }

    /// Moves a process. Its number could be another's only if it had ended meanwhile, which is seen afterwards: then
    /// whoever has been moved is moved out again.
    pub(super) fn move_in(&self, process: &OwnedFd) -> Result<(), GroupError> {
        let number = number_of(process).ok_or(io::ErrorKind::NotFound.into());
        let moved = number.map_err(failed("moving a process into", &self.path)).and_then(|pid| self.take_in(pid));
        if moved.is_ok() && number_of(process).is_some() {
            return Ok(());
        }
        if let Some(above) = self.path.parent() {
            for stranger in self.get("cgroup.procs").unwrap_or_default().lines() {
                let _ = fs::write(above.join("cgroup.procs"), stranger);
            }
        }
        moved.and_then(|()| Err(failed("moving a process into", &self.path)(io::ErrorKind::NotFound.into())))
    }

    /// The one process inside that is nobody's parent there.
    pub(super) fn leaf(&self) -> Option<OwnedFd> {
        let text = self.get("cgroup.procs").ok()?;
        let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        let parents: Vec<u32> = pids.iter().filter_map(|pid| parent_of(*pid)).collect();
        let mut leaves = pids.iter().filter(|pid| !parents.contains(pid));
        let (leaf, None) = (*leaves.next()?, leaves.next()) else { return None };
        let process = pidfd_open(Pid::from_raw(leaf.cast_signed())?, PidfdFlags::empty()).ok()?;
        // In this group, and alive: so it is the one, and not another of its number.
        let is_here = self.get("cgroup.procs").ok()?.lines().any(|line| line == leaf.to_string());
        (is_here && number_of(&process) == Some(leaf)).then_some(process)
    }

    /// Most memory, from now on.
    pub(super) fn allow_memory(&self, most_bytes: u64) {
        if let Err(error) = self.put("memory.max", &most_bytes.to_string())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "allowing a sandbox more memory");
        }
    }

    /// Removes it once nobody is in it.
    pub(super) async fn remove(self) {
        let mut wait = Waits::new(EMPTY_MAX);
        while !is_removed(&self.path) {
            let Some(pause) = wait.next() else {
                tracing::warn!(path = %self.path.display(), "a control group stays: somebody is in it");
                return;
            };
            tokio::time::sleep(pause).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        is_removed(&self.path);
    }
}

/// Pauses that grow, up to a limit in all.
struct Waits {
    until: Instant,
    pause: Duration,
}

impl Waits {
    fn new(limit: Duration) -> Self {
        Self { until: Instant::now() + limit, pause: PAUSE_MIN }
    }

    fn next(&mut self) -> Option<Duration> {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        (Instant::now() < self.until).then_some(pause)
    }
}

/// Tries to remove a group; `false` while somebody is in it.
fn is_removed(path: &Path) -> bool {
    let removed = fs::remove_dir(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    match removed {
        Ok(()) => {
            standing().remove(path);
            true
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::ResourceBusy {
                tracing::debug!(%error, path = %path.display(), "removing a control group");
            }
            false
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(is_id)
}

/// Groups with names like ours beside one of them.
pub(super) fn beside(path: &Path) -> usize {
    let entries = path.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten();
    entries.filter(|entry| entry.path() != path && entry.file_name().to_str().is_some_and(is_ours)).count()
}

/// Removes the groups of processes that were killed, and ends whoever is still in there: a monitor does not outlive its
/// host process. Returns how many. Nothing that has another name, or an owner, is touched.
pub fn sweep() -> usize {
    base().map_or(0, |base| sweep_in(base.dir()))
}

fn sweep_in(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_ours));
    let stale = ours.filter_map(|entry| Group::own(&entry.path(), FlockOperation::NonBlockingLockExclusive).ok());
    let mut wait = Waits::new(STALE_MAX);
    stale.filter(|group| is_cleared(&group.path, &mut wait)).count()
}

fn is_cleared(path: &Path, wait: &mut Waits) -> bool {
    while !is_removed(path) {
        // It is there since Linux 5.14; before, who is in there ends by itself.
        let _ = fs::write(path.join("cgroup.kill"), "1");
        let Some(pause) = wait.next() else { return false };
        std::thread::sleep(pause);
    }
    true
}

/// Removes every group of this process, with all who are in there. For the way out of `main`, when no sandbox is left.
pub fn remove_all() {
    let mut wait = Waits::new(STALE_MAX);
    let left: Vec<PathBuf> = standing().iter().cloned().collect();
    for path in left.iter().filter(|path| !is_cleared(path, &mut wait)) {
        tracing::warn!(path = %path.display(), "a control group stays: somebody is in it");
    }
}

#[cfg(test)]
mod tests;
