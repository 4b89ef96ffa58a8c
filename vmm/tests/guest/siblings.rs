// SPDX-License-Identifier: Apache-2.0
//! Forks of one template, and what each of them could do to the others if it were taken over.
//!
//! They are born in one jail, by one process, whose descriptors they inherit. Which of them two forks have in common, the
//! kernel says (`kcmp(2)`). What code in a fork could do, code in a fork shows: its main thread is stopped by `ptrace(2)`
//! and made to ask its host for something, with everything that it has put on.
#![expect(unsafe_code, reason = "ptrace(2), and calls by their numbers")]

use std::collections::BTreeMap;
use std::fs;
use std::io;

use serde_json::{Value, json};

use super::code::{COUNTER, Code};
use super::counting::goes_on;
use super::held::{Held, eventually, monitor_of};
use super::monitor::{kvm_or_skip, root_or_skip};

/// What both have open, by the number in the first: one open file, with one offset and one set of flags.
fn shared(first: u32, second: u32) -> BTreeMap<i32, String> {
    const KCMP_FILE: i64 = 0;
    let open = |pid: u32| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(Result::unwrap);
        let link = |entry: fs::DirEntry| {
            let number = entry.file_name().to_str().unwrap().parse::<i32>().unwrap();
            (number, fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned())
        };
        links.map(link).collect::<BTreeMap<_, _>>()
    };
    let theirs = open(second);
    let is_same = |near: i32, far: i32| {
        // SAFETY: plain numbers.
        unsafe { libc::syscall(libc::SYS_kcmp, first, second, KCMP_FILE, i64::from(near), i64::from(far)) == 0 }
    };
    open(first).into_iter().filter(|(near, _)| theirs.keys().any(|far| is_same(*near, *far))).collect()
}

/// Kinds of what is shared, each once, for a table.
fn kinds(shared: &BTreeMap<i32, String>, dir: &std::path::Path) -> Vec<String> {
    let dir = dir.to_string_lossy();
    let mut kinds: Vec<_> = shared.values().map(|link| link.replace(&*dir, "DIR")).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

/// A disk with a base and changes in memory, and a vsock device.
fn config(dir: &std::path::Path) -> Value {
    let base = dir.join("base");
    fs::write(&base, vec![0; 1 << 16]).unwrap();
    let mode = json!({ "overlay_memory": { "cap_mib": 1 } });
    json!({ "disks": [{ "path": base, "mode": mode }], "vsock": { "guest_cid": 3 } })
}

#[test]
fn siblings_share_the_door_to_kvm_and_files_that_nobody_can_write() {
    kvm_or_skip!();
    root_or_skip!();
    let dir = tempfile::TempDir::new().unwrap();
    let vm = Held::boot(&Code::new().count(), config(dir.path()));
    let resident = vm.freeze();
    let forks = [resident.fork(), resident.fork()];
    let expected = ["/dev/kvm", "DIR/base"];
    assert_eq!(kinds(&shared(forks[0].pid, forks[1].pid), dir.path()), expected);
    assert_eq!(kinds(&shared(vm.pid, forks[1].pid), dir.path()), expected, "with the VM they were copied from");
    assert_eq!(kinds(&shared(resident.pid, forks[1].pid), dir.path()), expected, "with the one that made them");
    let deeper = forks[0].freeze().fork();
    assert_eq!(kinds(&shared(deeper.pid, forks[1].pid), dir.path()), expected, "over two generations");
    // The same of a resident that came from files.
    let saved = resident.save(1);
    let mut again = config(dir.path());
    again["restore"] = saved.config(&[Some(&saved.layer)])["restore"].clone();
    again["restore"]["resident"] = json!(true);
    let mut held = Held::start(&again);
    held.wait_stage("resident");
    let forks = [held.fork(), held.fork()];
    let both = shared(forks[0].pid, forks[1].pid);
    let layer = saved.layer.to_string_lossy().into_owned();
    for link in both.values() {
        assert!(link == "/dev/kvm" || link.ends_with("/base") || *link == layer, "{both:?}");
    }
    assert_eq!(
        shared(monitor_of(held.pid).unwrap(), forks[0].pid),
        both,
        "a fork has nothing of its resident's but these"
    );
    // Whatever they share of files, nobody can write.
    for (number, link) in both.iter().filter(|(_, link)| *link != "/dev/kvm") {
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", forks[0].pid)).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let mode = i32::from_str_radix(flags, 8).unwrap() & libc::O_ACCMODE;
        assert_eq!(mode, libc::O_RDONLY, "{link}: {flags}");
    }
    println!("{both:?}");
}

/// A thread of a live monitor that does what it is told.
struct Puppet {
    pid: i32,
    before: libc::user_regs_struct,
}

fn ptrace(request: u32, pid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: requests that write to this process are given the address of a live value of their kind.
    let got = unsafe { libc::ptrace(request, pid, address, data) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// By which signal a process that is traced stops next, or by which it has ended instead.
fn stop_of(pid: i32) -> Result<i32, i32> {
    let mut status = 0;
    // SAFETY: `status` is alive.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }, pid);
    if libc::WIFSTOPPED(status) { Ok(libc::WSTOPSIG(status)) } else { Err(libc::WTERMSIG(status)) }
}

impl Puppet {
    /// Stops the main thread of a fork while it waits for events.
    fn new(fork: &Held) -> Self {
        let pid = i32::try_from(fork.pid).unwrap();
        ptrace(libc::PTRACE_SEIZE, pid, 0, usize::try_from(libc::PTRACE_O_TRACESYSGOOD).unwrap()).unwrap();
        // In a call, so that the instruction before the next one is that of a call.
        eventually("the main thread waits", || {
            fs::read_to_string(format!("/proc/{pid}/syscall"))
                .is_ok_and(|text| text.starts_with(|c: char| c.is_ascii_digit()))
        });
        ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0).unwrap();
        stop_of(pid).unwrap();
        let mut puppet = Self { pid, before: registers(pid) };
        // The call that was interrupted is made again in the end.
        puppet.before.rip -= 2;
        puppet.before.rax = puppet.before.orig_rax;
        puppet
    }

    /// Makes a call; what it gave, or the signal that it ended the process by.
    fn call(&self, number: i64, arguments: [u64; 4]) -> Result<i64, i32> {
        let mut set = self.before;
        set.rax = number.cast_unsigned();
        set.orig_rax = u64::MAX;
        [set.rdi, set.rsi, set.rdx, set.r10] = arguments;
        ptrace(libc::PTRACE_SETREGS, self.pid, 0, (&raw const set).addr()).unwrap();
        let mut is_inside = false;
        loop {
            ptrace(libc::PTRACE_SYSCALL, self.pid, 0, 0).unwrap();
            let is_call = stop_of(self.pid)? == libc::SIGTRAP | 0x80;
            let now = registers(self.pid);
            // A call that a filter ends its process for is rolled back before the process dies.
            if is_inside && is_call && now.rax != set.rax {
                return Ok(now.rax.cast_signed());
            }
            is_inside |= is_call && now.orig_rax == set.rax;
        }
    }

    /// Lets it go on as if nothing had been.
    fn let_go(self) {
        let mut before = self.before;
        before.orig_rax = u64::MAX;
        ptrace(libc::PTRACE_SETREGS, self.pid, 0, (&raw const before).addr()).unwrap();
        ptrace(libc::PTRACE_DETACH, self.pid, 0, 0).unwrap();
    }
}

fn registers(pid: i32) -> libc::user_regs_struct {
    // SAFETY: all of it are numbers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, pid, 0, (&raw mut registers).addr()).unwrap();
    registers
}

/// A process' number in its jail.
fn number_inside(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .unwrap()
        .split('\t')
        .next_back()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn a_fork_that_was_taken_over_can_do_nothing_to_its_sibling() {
    kvm_or_skip!();
    root_or_skip!();
    let dir = tempfile::TempDir::new().unwrap();
    let mut config = config(dir.path());
    config["disks"][0]["mode"] = json!("read_only");
    let vm = Held::boot(&Code::new().count(), config);
    let resident = vm.freeze();
    let sibling = resident.fork();
    let before = resident.save(0).word(COUNTER);
    let other = number_inside(sibling.pid);
    let term = u64::try_from(libc::SIGKILL).unwrap();
    let kick = u64::try_from(libc::SIGRTMIN()).unwrap();
    // What is on no list ends whoever asks, and nobody else.
    let ending = [
        ("signal it", libc::SYS_kill, [other, term, 0, 0]),
        ("end a thread of it", libc::SYS_tgkill, [other, other, term, 0]),
        ("trace it", libc::SYS_ptrace, [u64::from(libc::PTRACE_SEIZE), other, 0, 0]),
        ("read its memory", libc::SYS_process_vm_readv, [other, 0, 0, 0]),
        ("take a descriptor of it", libc::SYS_pidfd_getfd, [0, 0, 0, 0]),
        ("signal it by a descriptor", libc::SYS_pidfd_send_signal, [0, term, 0, 0]),
        ("limit it", libc::SYS_prlimit64, [other, 0, 0, 0]),
        ("open a file", libc::SYS_openat, [0, 0, 0, 0]),
        ("make a socket", libc::SYS_socket, [1, 1, 0, 0]),
        ("share memory by a key", libc::SYS_shmget, [1, 4096, 0o1600, 0]),
        ("make a message queue", libc::SYS_mq_open, [0, 0o102, 0o600, 0]),
        ("change the flags of a shared file", libc::SYS_fcntl, [3, u64::from(libc::F_SETFL.unsigned_abs()), 0, 0]),
        ("lock a shared file", libc::SYS_flock, [3, 2, 0, 0]),
        ("map a shared file", libc::SYS_mmap, [0, 4096, 5, 1]),
        ("write a shared file at an offset", libc::SYS_pwrite64, [3, 0, 1, 0]),
        ("cut a shared file", libc::SYS_ftruncate, [3, 0, 0, 0]),
    ];
    for (deed, number, arguments) in ending {
        let fork = resident.fork();
        let came_to = Puppet::new(&fork).call(number, arguments);
        assert_eq!(came_to, Err(libc::SIGSYS), "{deed}");
    }
    // What is on the list: a process to hold, which nothing can be done with but to pass it to one's host; and the one
    // signal that everybody stands.
    let fork = resident.fork();
    let puppet = Puppet::new(&fork);
    assert_eq!(puppet.call(libc::SYS_getpid, [0; 4]), Ok(i64::try_from(number_inside(fork.pid)).unwrap()));
    let held = puppet.call(libc::SYS_pidfd_open, [other, 0, 0, 0]).unwrap();
    assert!(held > 2, "{held}");
    let kicked = puppet.call(libc::SYS_tgkill, [other, other, kick, 0]).unwrap();
    assert!([0, -i64::from(libc::EPERM)].contains(&kicked), "{kicked}");
    // Files that siblings share are read at an offset of the reader's; nobody can write them.
    for (number, link) in shared(fork.pid, sibling.pid).into_iter().filter(|(_, link)| link != "/dev/kvm") {
        let number = u64::try_from(number).unwrap();
        for (call, arguments) in [
            (libc::SYS_write, [number, puppet.before.rsp, 1, 0]),
            (libc::SYS_pwritev, [number, puppet.before.rsp, 0, 0]),
            (libc::SYS_fallocate, [number, 3, 0, 4096]),
        ] {
            let refused = puppet.call(call, arguments).unwrap();
            let expected = [libc::EBADF, libc::EINVAL].map(|errno| -i64::from(errno));
            assert!(expected.contains(&refused), "{link}: call {call}: {refused}");
        }
    }
    puppet.let_go();
    goes_on(&sibling, before);
    goes_on(&fork, before);
    goes_on(&vm, before);
}
