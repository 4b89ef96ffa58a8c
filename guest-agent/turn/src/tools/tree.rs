// SPDX-License-Identifier: Apache-2.0
//! Processes that tools start, and whatever those start: found by parent, by a mark in their environment, and, when they ran away from
//! both, as orphans that this process has adopted; ended whole. Every child of this process must be started here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{self, Pid, PidfdFlags, Signal, WaitOptions};

/// The variable that marks what belongs to a tree.
const MARK: &str = "MIDGE_TOOL";
/// Most rounds, in number, in which processes are stopped before all are ended: a tree that grows faster is ended while it grows.
const STOP_ROUNDS_MAX: u32 = 50;
/// How long ended processes may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at them.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Children that somebody here waits for; everybody else's are orphans that were adopted.
static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// One tool's processes.
#[derive(Debug)]
pub(super) struct Tree {
    mark: String,
}

/// A process, told from a later one with the same number by when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Known {
    pid: i32,
    began: u64,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    known: Known,
    parent: i32,
    state: u8,
}

impl Seen {
    fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

impl Tree {
    /// A tree whose processes carry `mark`, which no other tree of the guest has.
    pub(super) fn new(mark: String) -> Self {
        // Without it orphans go to PID 1, where they are found by their mark alone.
        let _ = process::set_child_subreaper(Some(process::getpid()));
        Self { mark }
    }

    /// Starts a child in a process group of its own.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // The lock is held until the child has its mark: before, it would look like an orphan.
        let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.env(MARK, &self.mark).process_group(0).spawn()?;
        ours.insert(child.id().cast_signed());
        Ok(child)
    }

    /// Everything that lives now, other than `root`.
    pub(super) fn living(&self, root: &Child) -> BTreeSet<Known> {
        let nobody = BTreeSet::new();
        let members = self.members(&scan(), Some(root.id().cast_signed()), &nobody, &nobody);
        members.into_iter().filter(|known| known.pid != root.id().cast_signed()).collect()
    }

    /// Ends `root` and everything of this tree but `spared` and its children. How many still live, because they are not ours to
    /// end or hang in the kernel.
    pub(super) fn end(&self, root: Option<&Child>, spared: &BTreeSet<Known>) -> usize {
        let root = root.map(|child| child.id().cast_signed());
        let mut found = BTreeSet::new();
        for _ in 0..STOP_ROUNDS_MAX {
            let members = self.members(&scan(), root, &found, spared);
            let fresh: Vec<Known> = members.difference(&found).copied().collect();
            if fresh.is_empty() {
                break;
            }
            for known in &fresh {
                signal(*known, Signal::STOP);
            }
            found.extend(fresh);
        }
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            let living = self.members(&scan(), root, &found, spared);
            if living.is_empty() || Instant::now() >= deadline {
                reap_orphans();
                return living.len();
            }
            for known in &living {
                signal(*known, Signal::KILL);
            }
            found.extend(living);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What of `seen` is alive and of this tree: `root`, those in `found`, marked ones, adopted orphans without a mark, and all
    /// their children; without `spared` and all of theirs.
    fn members(
        &self,
        seen: &[Seen],
        root: Option<i32>,
        found: &BTreeSet<Known>,
        spared: &BTreeSet<Known>,
    ) -> BTreeSet<Known> {
        let us = process::getpid().as_raw_nonzero().get();
        let ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
        let is_start = |one: &&Seen| {
            Some(one.known.pid) == root || found.contains(&one.known) || {
                let adopted = one.parent == us && !ours.contains(&one.known.pid);
                one.known.pid != us && one.is_alive() && self.is_marked(one.known.pid, adopted)
            }
        };
        let starts = seen.iter().filter(is_start).map(|one| one.known.pid).collect();
        let spared_starts = seen.iter().filter(|one| spared.contains(&one.known)).map(|one| one.known.pid).collect();
        let spared = with_children(seen, spared_starts);
        let all = with_children(seen, starts);
        let wanted = |one: &&Seen| one.is_alive() && all.contains(&one.known.pid) && !spared.contains(&one.known.pid);
        seen.iter().filter(wanted).map(|one| one.known).collect()
    }

    /// Whether the process carries this tree's mark; `unmarked` when it carries none.
    fn is_marked(&self, pid: i32, unmarked: bool) -> bool {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let prefix = format!("{MARK}=");
        let mark = environ.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(prefix.as_bytes()));
        mark.map_or(unmarked, |mark| mark == self.mark.as_bytes())
    }
}

/// Takes note that `child` has been waited for.
pub(super) fn forget(child: &Child) {
    OURS.lock().unwrap_or_else(PoisonError::into_inner).remove(&child.id().cast_signed());
}

/// Takes the exit status of every adopted orphan that has ended, so that it is gone.
pub(super) fn reap_orphans() {
    let us = process::getpid().as_raw_nonzero().get();
    let seen = scan();
    let ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = |one: &&Seen| !one.is_alive() && one.parent == us && !ours.contains(&one.known.pid);
    for one in seen.iter().filter(ended) {
        // Somebody else's is left alone by the kernel's answer.
        let _ = Pid::from_raw(one.known.pid).map(|pid| process::waitpid(Some(pid), WaitOptions::NOHANG));
    }
}

/// `starts` and all their descendants.
fn with_children(seen: &[Seen], starts: Vec<i32>) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for one in seen {
        children.entry(one.parent).or_default().push(one.known.pid);
    }
    let mut all = BTreeSet::new();
    let mut queue = starts;
    while let Some(pid) = queue.pop() {
        if all.insert(pid) {
            queue.extend(children.get(&pid).into_iter().flatten());
        }
    }
    all
}

/// All processes that this one can see.
fn scan() -> Vec<Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| seen(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)).collect()
}

/// One line of `/proc/PID/stat`; the name in it may hold anything, so fields are counted from its last bracket.
fn seen(pid: i32, stat: &[u8]) -> Option<Seen> {
    let bracket = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(bracket + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let state = *fields.first()?.as_bytes().first()?;
    // Fields 3 (state), 4 (parent) and 22 (start time) of proc_pid_stat(5).
    let (parent, began) = (fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?);
    Some(Seen { known: Known { pid, began }, parent, state })
}

/// Sends a signal to a process that is still the one that was seen.
fn signal(known: Known, signal: Signal) {
    let Some(pid) = Pid::from_raw(known.pid) else { return };
    let Ok(pidfd) = process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    let stat = fs::read(format!("/proc/{}/stat", known.pid)).unwrap_or_default();
    if seen(known.pid, &stat).is_some_and(|now| now.known == known) {
        // It may be gone, or not ours: the next look tells.
        let _ = process::pidfd_send_signal(&pidfd, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = b"7 (a) R 1 (b) S 5 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        let seen = seen(7, stat).unwrap();
        assert_eq!((seen.parent, seen.state, seen.known), (5, b'S', Known { pid: 7, began: 12345 }));
    }

    #[test]
    fn children_of_what_is_spared_are_spared_and_a_cycle_ends() {
        let one = |pid, parent| Seen { known: Known { pid, began: 1 }, parent, state: b'S' };
        let seen = [one(900_001, 900_003), one(900_002, 900_001), one(900_003, 900_002), one(900_004, 900_002)];
        let tree = Tree { mark: "nothing".into() };
        let none = BTreeSet::new();
        assert_eq!(tree.members(&seen, Some(900_001), &none, &none).len(), 4);
        let spared = BTreeSet::from([Known { pid: 900_004, began: 1 }]);
        assert_eq!(tree.members(&seen, Some(900_001), &none, &spared).len(), 3);
    }

    #[test]
    fn a_tree_that_hides_is_ended_whole() {
        let tree = Tree::new(format!("test-hides-{}", std::process::id()));
        let script = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; sleep 1000' &) ; \
                      (env -i setsid sleep 1001 &) ; sleep 1002 & echo ready; wait";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(std::process::Stdio::piped());
        let mut child = tree.spawn(&mut command).unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert!(tree.living(&child).len() >= 3, "{:?}", tree.living(&child));
        assert_eq!(tree.end(Some(&child), &BTreeSet::new()), 0);
        child.wait().unwrap();
        forget(&child);
        assert!(tree.living(&child).is_empty());
    }

    proptest! {
        #[test]
        fn any_stat_is_read_or_refused(stat in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = seen(1, &stat);
        }
    }
}
