// SPDX-License-Identifier: Apache-2.0
//! Bringing all commands to a stand, by the freezer of cgroup v2. What runs in the root group goes on: the agent, and
//! nothing that a command started unless it was put there on purpose.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long processes may take to stand still: one that waits for a disk does not before its disk has answered.
const STANDSTILL_MAX: Duration = Duration::from_secs(5);
/// First pause between two looks; doubles up to the longest.
const LOOK_MIN: Duration = Duration::from_micros(50);
/// Longest pause between two looks.
const LOOK_MAX: Duration = Duration::from_millis(2);

/// Why commands could not be brought to a stand. They run again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezeError {
    #[error("freezing commands: this kernel has no cgroup v2; boot one with CONFIG_CGROUPS")]
    NoGroups,
    #[error("freezing the commands below {dir}")]
    System { dir: PathBuf, source: io::Error },
    #[error("freezing the commands below {dir}: one still runs after {} s; end it and try again", STANDSTILL_MAX.as_secs())]
    StillRunning { dir: PathBuf },
}

/// Commands that stand still, for as long as this lives or until [`Standstill::end`].
#[derive(Debug, Default)]
pub(crate) struct Standstill {
    groups: Vec<Group>,
    is_over: bool,
}

/// A group that was made to stand still, with its open `cgroup.freeze`.
#[derive(Debug)]
struct Group {
    dir: PathBuf,
    switch: File,
}

impl Standstill {
    /// Freezes every group below the mount at `root`, so that also processes that made groups of their own stand still.
    pub(crate) fn begin(root: &Path) -> Result<Self, FreezeError> {
        let mut standstill = Self::default();
        let since = Instant::now();
        // Until a look finds no group that was made in the meantime.
        while standstill.freeze_more(root)? {
            standstill.wait(since)?;
        }
        Ok(standstill)
    }

    /// Freezes the groups at `root` that are not yet; false when there are none.
    fn freeze_more(&mut self, root: &Path) -> Result<bool, FreezeError> {
        let before = self.groups.len();
        let entries = fs::read_dir(root).map_err(at(root))?.flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let dir = entry.path();
            self.groups.extend(Group::freeze(&dir).map_err(at(&dir))?);
        }
        Ok(self.groups.len() > before)
    }

    fn wait(&self, since: Instant) -> Result<(), FreezeError> {
        for group in &self.groups {
            let mut pause = LOOK_MIN;
            while !group.stands_still().map_err(at(&group.dir))? {
                if since.elapsed() > STANDSTILL_MAX {
                    return Err(FreezeError::StillRunning { dir: group.dir.clone() });
                }
                thread::sleep(pause);
                pause = (pause * 2).min(LOOK_MAX);
            }
        }
        Ok(())
    }

    /// Lets them run on; those that have ended since need nothing.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.groups.iter().try_for_each(|group| or_gone(group.switch.write_all_at(b"0", 0), ()))?;
        self.is_over = true;
        Ok(())
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        // After an error none may be left behind.
        let _ = if self.is_over { Ok(()) } else { self.end() };
    }
}

fn at(dir: &Path) -> impl FnOnce(io::Error) -> FreezeError {
    let dir = dir.to_owned();
    move |source| FreezeError::System { dir, source }
}

/// `there_is_none` for a group that has been removed.
fn or_gone<T>(result: io::Result<T>, there_is_none: T) -> io::Result<T> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(there_is_none),
        result => result,
    }
}

impl Group {
    /// Freezes the group at `dir`; `None` when somebody else has, or when it is gone.
    fn freeze(dir: &Path) -> io::Result<Option<Self>> {
        let freeze = || {
            let switch = OpenOptions::new().read(true).write(true).open(dir.join("cgroup.freeze"))?;
            let mut state = [0];
            if switch.read_at(&mut state, 0)? == 1 && state == *b"1" {
                return Ok(None);
            }
            switch.write_all_at(b"1", 0)?;
            Ok(Some(Self { dir: dir.to_owned(), switch }))
        };
        or_gone(freeze(), None)
    }

    fn stands_still(&self) -> io::Result<bool> {
        let events = or_gone(fs::read_to_string(self.dir.join("cgroup.events")), "frozen 1".to_owned())?;
        Ok(events.lines().any(|line| line == "frozen 1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A directory of groups of our own, where this machine lets us make one; removed with what runs in it.
    struct Groups(PathBuf);

    impl Groups {
        fn make() -> Option<Self> {
            static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mounts = fs::read_to_string("/proc/mounts").unwrap();
            let mount = mounts.lines().find_map(|line| line.split(' ').nth(1).filter(|_| line.starts_with("cgroup2 ")));
            let made = mount.map(|mount| Path::new(mount).join(format!("midge-test-{}-{number}", std::process::id())));
            match made.map(|dir| fs::create_dir_all(dir.join("inner/exec-1")).map(|()| Self(dir))) {
                Some(Ok(groups)) => Some(groups),
                other => {
                    eprintln!("skipped: no cgroup v2 to make groups in: {other:?}");
                    None
                }
            }
        }

        fn inner(&self) -> PathBuf {
            self.0.join("inner/exec-1")
        }

        fn start(&self, script: &str) -> Child {
            let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            fs::write(self.inner().join("cgroup.procs"), child.id().to_string()).unwrap();
            child
        }
    }

    impl std::fmt::Debug for Groups {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.fmt(f)
        }
    }

    impl Drop for Groups {
        fn drop(&mut self) {
            fs::write(self.inner().join("cgroup.kill"), "1").unwrap();
            for dir in [self.inner(), self.0.join("inner"), self.0.clone()] {
                let since = Instant::now();
                while fs::remove_dir(&dir).is_err() && since.elapsed() < Duration::from_secs(10) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    fn size(path: &Path) -> u64 {
        fs::metadata(path).map_or(0, |metadata| metadata.len())
    }

    #[test]
    fn commands_stand_still_until_the_end_of_it() {
        let Some(groups) = Groups::make() else { return };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out");
        let mut child = groups.start(&format!("while :; do echo x >> {}; done", file.display()));
        let wait_for_more = |than: u64| {
            let since = Instant::now();
            while size(&file) <= than {
                assert!(since.elapsed() < Duration::from_secs(10), "the command does not run");
                thread::sleep(Duration::from_millis(1));
            }
        };
        wait_for_more(0);
        let mut standstill = Standstill::begin(&groups.0).unwrap();
        let before = size(&file);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(size(&file), before);
        // One that is frozen already is somebody else's, and stays so.
        assert!(Standstill::begin(&groups.0).unwrap().groups.is_empty());
        assert_eq!(size(&file), before);
        standstill.end().unwrap();
        wait_for_more(before);
        drop(Standstill::begin(&groups.0).unwrap());
        wait_for_more(size(&file));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn groups_that_are_gone_need_nothing() {
        let Some(groups) = Groups::make() else { return };
        let mut standstill = Standstill::begin(&groups.0).unwrap();
        drop(groups);
        standstill.end().unwrap();
        assert!(standstill.groups[0].stands_still().unwrap());
    }

    #[test]
    fn a_directory_without_groups_is_told() {
        let error = Standstill::begin(Path::new("/no/such/mount")).unwrap_err();
        assert!(error.to_string().contains("/no/such/mount"), "{error}");
    }
}
