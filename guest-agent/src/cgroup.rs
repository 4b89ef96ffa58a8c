// SPDX-License-Identifier: Apache-2.0
//! One control group a command: a bound on processes, and a way to kill all of them at once. Where the kernel has no
//! cgroup v2 the command's processes are found by walking `/proc`.

mod freezer;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

pub(crate) use self::freezer::{FreezeError, Standstill};
use crate::sys::process::kill;

/// Rounds of killing by walking: a process that forks faster than this is walked is stopped by its limit.
const KILL_ROUNDS: usize = 32;

/// The group of all commands, and the processes that one command may have.
static BASE: OnceLock<(PathBuf, u64)> = OnceLock::new();

/// Groups that had a process left when their command ended.
static LEFT_BEHIND: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Makes `base`, the group that holds all commands, below the mount, so that they leave the agent its share.
pub(crate) fn prepare(base: &Path, memory_max_bytes: u64, pids_max: u64) -> io::Result<()> {
    fs::create_dir_all(base)?;
    // Memory is bounded for all commands together: a share of its own would make every command's start dearer.
    enable(base.parent().unwrap_or(base), &["pids", "memory"]);
    enable(base, &["pids"]);
    let _ = fs::write(base.join("pids.max"), pids_max.to_string());
    let _ = fs::write(base.join("memory.max"), memory_max_bytes.to_string());
    // One command that takes all it can still leaves others some.
    let _ = BASE.set((base.to_owned(), pids_max / 4 * 3));
    Ok(())
}

/// Enables controllers for the groups in `dir`. A kernel without one of them still has groups to kill by.
fn enable(dir: &Path, controllers: &[&str]) {
    let control = dir.join("cgroup.subtree_control");
    let words: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
    if fs::write(&control, words.join(" ")).is_err() {
        for word in words {
            let _ = fs::write(&control, word);
        }
    }
}

/// The processes of one command.
#[derive(Debug)]
pub(crate) struct Tree {
    dir: Option<PathBuf>,
    procs: Option<File>,
}

impl Tree {
    /// A group for the command `exec_id`, where the kernel has groups.
    pub(crate) fn new(exec_id: u64) -> Self {
        sweep();
        let Some((base, pids_max)) = BASE.get() else { return Self { dir: None, procs: None } };
        let dir = base.join(format!("exec-{exec_id}"));
        match fs::create_dir(&dir).and_then(|()| OpenOptions::new().write(true).open(dir.join("cgroup.procs"))) {
            Ok(procs) => {
                // Without the controller the bound on all commands is missing too.
                let _ = fs::write(dir.join("pids.max"), pids_max.to_string());
                Self { dir: Some(dir), procs: Some(procs) }
            }
            Err(_) => Self { dir: None, procs: None },
        }
    }

    /// Where the program enters the group.
    pub(crate) const fn entrance(&self) -> Option<&File> {
        self.procs.as_ref()
    }

    /// Kills every process of the command whose session's leader is `leader`.
    pub(crate) fn kill(&self, leader: libc::pid_t) {
        let killed = self.dir.as_ref().map(|dir| {
            OpenOptions::new().write(true).open(dir.join("cgroup.kill")).and_then(|mut file| file.write_all(b"1"))
        });
        if !matches!(killed, Some(Ok(()))) {
            kill_by_walking(|process| process.pid == leader || process.session == leader, leader);
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner).push(dir);
            sweep();
        }
    }
}

/// Removes groups whose last process has ended.
fn sweep() {
    let mut left = LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain(|dir| fs::remove_dir(dir).is_err_and(|error| error.kind() != io::ErrorKind::NotFound));
}

/// Brings everything that commands started to a stand.
pub(crate) fn freeze_everything() -> Result<Standstill, FreezeError> {
    let root = BASE.get().and_then(|(base, _)| base.parent()).ok_or(FreezeError::NoGroups)?;
    Standstill::begin(root)
}

/// Kills every process but this one.
pub(crate) fn kill_everything() {
    if let Some((base, _)) = BASE.get() {
        let _ = fs::write(base.join("cgroup.kill"), "1");
    }
    kill_by_walking(|_| true, 0);
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: libc::pid_t,
    pub(crate) parent: libc::pid_t,
    pub(crate) session: libc::pid_t,
    pub(crate) is_zombie: bool,
}

impl Process {
    /// Threads of the kernel: number 2 and its children.
    pub(crate) const fn is_kernel_thread(self) -> bool {
        self.pid == 2 || self.parent == 2
    }
}

/// Reads one `/proc/PID/stat`. The program's name in it may hold anything, so it is read from its last parenthesis on.
fn parse_stat(text: &str) -> Option<Process> {
    let pid = text.split(' ').next()?.parse().ok()?;
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Process { pid, parent, session, is_zombie: matches!(state, "Z" | "X") })
}

/// All processes that can be seen.
pub(crate) fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    numbers
        .filter_map(|entry| parse_stat(&String::from_utf8_lossy(&fs::read(entry.path().join("stat")).ok()?)))
        .collect()
}

/// Kills what `wanted` picks and all descendants of `ancestor`, until a walk finds none.
fn kill_by_walking(wanted: impl Fn(&Process) -> bool, ancestor: libc::pid_t) {
    let own = libc::pid_t::try_from(std::process::id()).unwrap_or(1);
    for _ in 0..KILL_ROUNDS {
        let all = processes();
        let mut doomed: Vec<libc::pid_t> = vec![ancestor];
        // Parents come in any order: repeat until no child of a doomed process is left.
        loop {
            let before = doomed.len();
            let more = all.iter().filter(|process| doomed.contains(&process.parent) || wanted(process));
            let more: Vec<_> = more.map(|process| process.pid).filter(|pid| !doomed.contains(pid)).collect();
            doomed.extend(more);
            if doomed.len() == before {
                break;
            }
        }
        let may_die = |process: &&Process| {
            doomed.contains(&process.pid)
                && !process.is_zombie
                && !process.is_kernel_thread()
                && process.pid != 1
                && process.pid != own
        };
        let mut found = false;
        for process in all.iter().filter(may_die) {
            found = true;
            // It may have ended since.
            let _ = kill(process.pid, libc::SIGKILL);
        }
        if !found {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_program_is_called() {
        let line = "42 (a) R) (b 7) S 7 42 40 34816 42 4194560 1 0";
        assert_eq!(parse_stat(line), Some(Process { pid: 42, parent: 7, session: 40, is_zombie: false }));
        assert!(parse_stat("43 (x) Z 7 42 40 0").unwrap().is_zombie);
    }

    #[test]
    fn a_broken_stat_line_is_no_process() {
        for line in ["", "42", "42 (x", "42 (x)", "42 (x) S", "42 (x) S 1", "42 (x) S 1 2", "y (x) S 1 2 3"] {
            assert_eq!(parse_stat(line), None, "{line}");
        }
    }

    #[test]
    fn the_test_itself_is_among_the_processes() {
        let own = libc::pid_t::try_from(std::process::id()).unwrap();
        assert!(processes().iter().any(|process| process.pid == own && !process.is_kernel_thread()));
    }
}
