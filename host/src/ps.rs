// SPDX-License-Identifier: Apache-2.0
//! Which sandboxes of this user are alive on this machine, whoever started them, and what memory they hold.
//!
//! Reads what each sandbox has written into its run directory, believes it as far as the processes that it names are
//! there, and asks the kernel about those. Changes nothing, and holds nobody up.
//!
//! What memory is counted: the monitor's processes, guest memory and memory overlays included. *Private* pages are its
//! own, *shared* ones are mapped by others too (a template and its forks, the page cache); *page tables* map both.
//! What KVM holds besides (its own page tables of the guest) the kernel accounts to control groups and to no process:
//! it is told where the monitor is alone in a control group of version 2 with the memory controller, else not. For a
//! sandbox in an emulated host nothing is counted here: its monitor is a process there.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::groups::Usage;
use crate::run_dir::{About, Record, RunDirError, records, since_boot};

/// Longest file of `/proc` that is read, in bytes.
const FILE_MAX_BYTES: u64 = 64 << 10;
/// Milliseconds of a tick, in which `/proc` gives start times; 100 a second on every x86-64.
const TICK_MS: u64 = 10;

/// A sandbox that is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alive {
    /// Its name, 12 hexadecimal digits.
    pub id: String,
    /// What it is.
    #[serde(flatten)]
    pub about: About,
    /// How long ago it was made, in milliseconds.
    pub age_ms: u64,
    /// What it holds, where the kernel tells.
    pub memory: Option<Account>,
    /// Memory of its control group, in KiB: all that its processes use and the kernel holds for them, files that they read
    /// included; `None` where it has no group, or that does not count memory.
    pub group_memory_kib: Option<u64>,
}

/// Memory of a monitor's processes, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Pages that nobody else maps.
    pub private_kib: u64,
    /// Pages that others map too.
    pub shared_kib: u64,
    /// Of private and shared, this process' part: shared pages are divided by the number of their users.
    pub proportional_kib: u64,
    /// Page tables of the process.
    pub page_table_kib: u64,
    /// Page tables that KVM has made for the guest; `None` where the kernel does not tell.
    pub kvm_kib: Option<u64>,
}

/// Every sandbox that is alive, the oldest first.
///
/// # Errors
/// [`RunDirError`] when the directory of the run directories is not this user's own, or cannot be listed.
pub fn list() -> Result<Vec<Alive>, RunDirError> {
    let now_ms = u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX);
    let proc = Path::new("/proc");
    let mut alive: Vec<Alive> =
        records()?.into_iter().filter_map(|(id, record)| look(id, record, now_ms, proc)).collect();
    alive.sort_by(|one, other| other.age_ms.cmp(&one.age_ms).then_with(|| one.id.cmp(&other.id)));
    Ok(alive)
}

/// `None` when the processes of the record are gone, or are others by now.
fn look(id: String, record: Record, now_ms: u64, proc: &Path) -> Option<Alive> {
    let Record { about, at_ms } = record;
    let is_there = |pid: u32| is_older(&proc.join(pid.to_string()), at_ms);
    if !is_there(about.owner_pid) || !about.monitor_pid.is_none_or(is_there) {
        return None;
    }
    let memory = about.monitor_pid.and_then(|pid| account_of_all(proc, pid));
    let age_ms = now_ms.saturating_sub(at_ms);
    let used = about.group.as_deref().and_then(Usage::of);
    let group_memory_kib = used.and_then(|usage| usage.memory_bytes).map(|bytes| bytes >> 10);
    Some(Alive { id, about, age_ms, memory, group_memory_kib })
}

/// Whether the process lives, and lived when a record was written: a number that was given anew belongs to a younger one.
fn is_older(process: &Path, at_ms: u64) -> bool {
    let Some(stat) = read(&process.join("stat")) else { return false };
    // Behind the name, which may hold anything: the state is the 3rd field, the start the 22nd.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_whitespace();
    let is_running = fields.next().is_some_and(|state| !matches!(state, "Z" | "X"));
    let start = fields.nth(18).and_then(|ticks| ticks.parse::<u64>().ok());
    is_running && start.is_some_and(|ticks| ticks.saturating_mul(TICK_MS) <= at_ms)
}

/// The processes of the monitor that is known by `pid`: that one, and where it keeps a jail, the first process in there
/// and the one that runs the VM. Forks that were made in the jail are others' monitors.
#[must_use]
pub fn processes(pid: u32) -> Vec<u32> {
    processes_in(Path::new("/proc"), pid)
}

fn processes_in(proc: &Path, pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    // In its process namespace the first has number 1, and the monitor number 2.
    for number in 1..=2 {
        let parent = found.last().copied().unwrap_or(pid);
        let is_it = |child: &u32| number_inside(&proc.join(child.to_string())) == Some(number);
        found.extend(children_of(proc, parent).into_iter().find(is_it));
    }
    found
}

/// The children of a process. Where the kernel keeps no list of them, everybody is asked for their parent.
fn children_of(proc: &Path, parent: u32) -> Vec<u32> {
    if let Some(children) = read(&proc.join(format!("{parent}/task/{parent}/children"))) {
        return children.split_whitespace().filter_map(|child| child.parse().ok()).collect();
    }
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let is_child = |pid: &u32| {
        let stat = read(&proc.join(format!("{pid}/stat"))).unwrap_or_default();
        // Behind the name, which may hold anything, come the state and the parent.
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok()) == Some(parent)
    };
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

/// The number that a process has in the innermost process namespace that it is in.
fn number_inside(process: &Path) -> Option<u32> {
    let status = read(&process.join("status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().nth(1)?.parse().ok()
}

/// What the processes of a monitor hold together; `None` when one is gone, or may not be looked at.
fn account_of_all(proc: &Path, pid: u32) -> Option<Account> {
    let own = processes_in(proc, pid);
    let accounts = own.iter().map(|pid| account(&proc.join(pid.to_string())));
    let kvm_kib = group_of(&proc.join(pid.to_string())).and_then(|group| kvm_kib(&group, &own));
    let sum = accounts.reduce(|sum, next| {
        let (sum, next) = (sum?, next?);
        Some(Account {
            private_kib: sum.private_kib + next.private_kib,
            shared_kib: sum.shared_kib + next.shared_kib,
            proportional_kib: sum.proportional_kib + next.proportional_kib,
            page_table_kib: sum.page_table_kib + next.page_table_kib,
            kvm_kib: None,
        })
    })?;
    sum.map(|sum| Account { kvm_kib, ..sum })
}

/// What a process holds; `None` when it is gone, or may not be looked at.
fn account(process: &Path) -> Option<Account> {
    let sizes = read(&process.join("smaps_rollup"))?;
    let status = read(&process.join("status"))?;
    let size = |name| kib(&sizes, name).unwrap_or(0);
    Some(Account {
        private_kib: size("Private_Clean") + size("Private_Dirty") + size("Private_Hugetlb"),
        shared_kib: size("Shared_Clean") + size("Shared_Dirty") + size("Shared_Hugetlb"),
        proportional_kib: size("Pss"),
        page_table_kib: kib(&status, "VmPTE")?,
        kvm_kib: None,
    })
}

/// The value of `name:` in text like `/proc/self/status`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The control group of version 2 that a process is in.
fn group_of(process: &Path) -> Option<PathBuf> {
    let groups = read(&process.join("cgroup"))?;
    let name = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new("/sys/fs/cgroup").join(name))
}

/// What KVM holds for the processes `own`, which are all that are in a control group.
fn kvm_kib(group: &Path, own: &[u32]) -> Option<u64> {
    let is_own = |line: &str| line.parse().is_ok_and(|pid| own.contains(&pid));
    let is_alone = read(&group.join("cgroup.procs"))?.lines().all(is_own);
    let account = read(&group.join("memory.stat"))?;
    let bytes = account.lines().find_map(|line| line.strip_prefix("sec_pagetables "))?;
    if is_alone { Some(bytes.trim().parse::<u64>().ok()? >> 10) } else { None }
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_MAX_BYTES).read_to_end(&mut bytes).ok()?;
    // The name of a process is any bytes.
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::Kind;
    use std::fs;

    fn record(owner_pid: u32, monitor_pid: Option<u32>, at_ms: u64) -> Record {
        let (kind, place) = (Kind::Run, "native".to_owned());
        let about = About {
            kind,
            template: None,
            parent: None,
            place,
            owner_pid,
            monitor_pid,
            group: None,
            cpus: 1,
            mem_mib: 64,
        };
        Record { about, at_ms }
    }

    /// A process in a `/proc` of our own; `start` in ticks.
    fn process(proc: &Path, pid: u32, state: &str, start: u64) {
        let dir = proc.join(pid.to_string());
        fs::create_dir_all(&dir).unwrap();
        let zeros = "0 ".repeat(18);
        fs::write(dir.join("stat"), format!("{pid} (a) S (b) {state} {zeros}{start} 1 2\n")).unwrap();
        let sizes = "5-7 ---p [rollup]\nPss: 30 kB\nPss_Dirty: 9 kB\nShared_Clean: 1 kB\nShared_Dirty: 2 kB\n\
            Private_Clean: 4 kB\nPrivate_Dirty: 8 kB\n";
        fs::write(dir.join("smaps_rollup"), sizes).unwrap();
        fs::write(dir.join("status"), "Name:\tVmPTE: 9\nVmPTE:\t      16 kB\n").unwrap();
    }

    #[test]
    fn alive_is_whose_processes_are_there_and_older_than_their_record() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 10, "S", 100);
        process(proc.path(), 11, "S", 200);
        process(proc.path(), 12, "Z", 100);
        let is_alive = |owner, monitor, at_ms| {
            look("a".to_owned(), record(owner, monitor, at_ms), 5000, proc.path()).map(|alive| alive.age_ms)
        };
        assert_eq!(is_alive(10, Some(11), 2000), Some(3000));
        assert_eq!(is_alive(10, Some(11), 1999), None, "the monitor's number is another's by now");
        assert_eq!(is_alive(11, Some(10), 1999), None, "the owner's is");
        assert_eq!(is_alive(10, None, 6000), Some(0));
        assert_eq!(is_alive(10, Some(12), 2000), None, "a zombie");
        assert_eq!(is_alive(13, Some(10), 2000), None, "nobody");
    }

    #[test]
    fn memory_is_what_the_kernel_says() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 10, "S", 100);
        let expected =
            Account { private_kib: 12, shared_kib: 3, proportional_kib: 30, page_table_kib: 16, kvm_kib: None };
        assert_eq!(account(&proc.path().join("10")), Some(expected));
        assert_eq!(account(&proc.path().join("11")), None);
        let own = account(Path::new("/proc/self")).unwrap();
        assert!(own.private_kib > 0 && own.page_table_kib > 0, "{own:?}");
    }

    #[test]
    fn a_monitor_in_a_jail_is_its_keeper_the_first_inside_and_itself_but_not_its_forks() {
        let proc = tempfile::tempdir().unwrap();
        let family = [
            (10, "10", "11 99"),
            (99, "99 5", ""),
            (11, "11 1", "14 12"),
            (14, "14 3", ""),
            (12, "12 2", "13"),
            (13, "13 4", ""),
        ];
        for (pid, numbers, children) in family {
            process(proc.path(), pid, "S", 100);
            let dir = proc.path().join(pid.to_string());
            let status = fs::read_to_string(dir.join("status")).unwrap();
            fs::write(dir.join("status"), format!("{status}NSpid:\t{}\n", numbers.replace(' ', "\t"))).unwrap();
            fs::create_dir_all(dir.join(format!("task/{pid}"))).unwrap();
            fs::write(dir.join(format!("task/{pid}/children")), children).unwrap();
        }
        assert_eq!(children_of(Path::new("/proc"), 0).first(), Some(&1), "without a list of its own");
        assert_eq!(processes_in(proc.path(), 10), [10, 11, 12]);
        assert_eq!(processes_in(proc.path(), 13), [13], "a fork");
        assert_eq!(processes_in(proc.path(), 12), [12], "a fork that has forks");
        assert_eq!(account_of_all(proc.path(), 10).unwrap().private_kib, 36);
        assert_eq!(account_of_all(proc.path(), 77), None);
    }

    #[test]
    fn kvm_is_told_apart_only_where_a_monitor_is_alone() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        let kvm_kib = |group: &Path| kvm_kib(group, &[12]);
        assert_eq!(kvm_kib(group.path()), None);
        write("memory.stat", "anon 5\npagetables 6\nsec_pagetables 8192\n");
        write("cgroup.procs", "12\n13\n");
        assert_eq!(kvm_kib(group.path()), None);
        write("cgroup.procs", "12\n");
        assert_eq!(kvm_kib(group.path()), Some(8));
    }

    #[test]
    fn this_process_is_older_than_now_and_younger_than_the_machine() {
        let now_ms = u64::try_from(since_boot().as_millis()).unwrap();
        assert!(is_older(Path::new("/proc/self"), now_ms));
        assert!(!is_older(Path::new("/proc/self"), 0));
    }
}
