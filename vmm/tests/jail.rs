// SPDX-License-Identifier: Apache-2.0
//! The policies in force: what is forbidden kills the process, what is needed does not.
//!
//! A filter cannot be taken off again, so each case runs in a process of its own: this test
//! binary, started anew for one test with the case in the environment.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::fs::File;
use std::net::UdpSocket;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use midge_vmm::disk::overlay::Overlay;
use midge_vmm::disk::{Base, Disk};
use midge_vmm::jail::{Thread, leave_off, lock_in};
use vm_memory::VolatileSlice;

const CASE: &str = "MIDGE_JAIL_CASE";
/// What the child says when nothing killed it. Some kinds of threads may not end their process, and die of that then.
const SURVIVED: &str = "survived";

/// Whether the child survived its deed, and how it ended.
fn run(kind: &str, deed: &str) -> (bool, ExitStatus) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CASE, format!("{kind} {deed}"))
        .stderr(std::process::Stdio::null())
        .output()
        .unwrap();
    (String::from_utf8_lossy(&child.stdout).contains(SURVIVED), child.status)
}

fn assert_killed(kind: &str, deed: &str) {
    let (has_survived, status) = run(kind, deed);
    assert!(!has_survived && status.signal() == Some(libc::SIGSYS), "{kind} may {deed}: {status}");
}

fn assert_survives(kind: &str, deed: &str) {
    let (has_survived, status) = run(kind, deed);
    assert!(has_survived, "{kind}, {deed}: {status}");
}

#[test]
fn what_a_policy_does_not_list_kills_the_process() {
    let everybody = ["open a file", "use the network", "start a program", "map code", "leave its namespaces"];
    for kind in ["main", "vcpu", "block", "resident"] {
        for deed in everybody {
            assert_killed(kind, deed);
        }
    }
    for kind in ["main", "vcpu", "block"] {
        for deed in ["start a thread", "make a twin", "lock in as a resident"] {
            assert_killed(kind, deed);
        }
    }
    assert_killed("resident", "make a twin in namespaces of its own");
    for kind in ["main", "resident"] {
        assert_killed(kind, "end its thread by a signal");
        assert_survives(kind, "interrupt its thread");
    }
}

#[test]
fn a_resident_can_make_twins_and_threads_which_lock_themselves_in() {
    for deed in ["start a thread", "make a twin", "ask for clone3"] {
        assert_survives("resident", deed);
    }
}

/// A fork of a fork of a fork is a resident's twin each time, and every filter costs every call.
#[test]
fn locking_in_twice_as_the_same_kind_adds_no_filter() {
    for kind in ["block", "resident"] {
        assert_survives(kind, "lock in again");
    }
}

#[test]
fn a_jail_that_is_left_off_holds_nobody() {
    for kind in ["main", "vcpu", "block", "resident"] {
        assert_survives(kind, "open a file with the jail left off");
    }
}

#[test]
fn what_every_thread_needs_is_listed() {
    for kind in ["main", "vcpu", "block", "resident"] {
        assert_survives(kind, "allocate and wait");
    }
}

#[test]
fn a_disk_thread_can_do_everything_a_disk_does() {
    for deed in ["use a disk in a file", "use a disk in memory"] {
        assert_survives("block", deed);
    }
}

/// The child process of the other tests; on its own it has nothing to do.
#[test]
#[expect(clippy::exit, reason = "the test harness' own way out makes calls that no policy lists")]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let (kind, deed) = case.split_once(' ').unwrap();
    let kind = match kind {
        "main" => Thread::Main,
        "vcpu" => Thread::Vcpu,
        "resident" => Thread::Resident,
        _ => Thread::Block,
    };
    let [before, after] = ["before", "after"].map(|_| File::open("/proc/self/status").unwrap());
    let disk = deed.starts_with("use a disk").then(|| open_disk(deed.ends_with("file")));
    if deed.ends_with("left off") {
        drop(leave_off(None).unwrap());
    }
    midge_vmm::machine::threads::expect_interrupts().unwrap();
    lock_in(kind).unwrap();
    if let Some(disk) = disk {
        use_disk(disk);
        survive();
    }
    match deed {
        "open a file" | "open a file with the jail left off" => drop(File::open("/dev/null")),
        "use the network" => drop(UdpSocket::bind("127.0.0.1:0")),
        "start a program" => drop(Command::new("/bin/true").status()),
        "start a thread" => drop(std::thread::Builder::new().spawn(|| ())),
        "map code" => map_code(),
        "leave its namespaces" => raw_call(libc::SYS_unshare, [NEW_USER, 0, 0]),
        "make a twin" => drop(midge_vmm::sys::fork().unwrap()),
        "make a twin in namespaces of its own" => raw_call(libc::SYS_clone, [NEW_USER | 17, 0, 0]),
        "end its thread by a signal" => signal_itself(libc::SIGTERM),
        "interrupt its thread" => {
            signal_itself(libc::SIGRTMIN());
        }
        "ask for clone3" => raw_call(libc::SYS_clone3, [0, 0, 0]),
        "lock in as a resident" => lock_in(Thread::Resident).unwrap(),
        "lock in again" => {
            let first = filters(&after);
            (0..3).for_each(|_| lock_in(kind).unwrap());
            if filters(&before) != first {
                std::process::exit(1);
            }
        }
        _ => {
            let blocks: Vec<Vec<u8>> = (0..64).map(|n| vec![1; 1 << (n % 22)]).collect();
            drop(blocks);
            std::thread::yield_now();
        }
    }
    survive();
}

/// Says so, and ends.
#[expect(clippy::exit, reason = "the test harness' own way out makes calls that no policy lists")]
fn survive() -> ! {
    let _ = rustix::io::write(std::io::stdout(), SURVIVED.as_bytes());
    std::process::exit(0);
}

/// Its own thread, as a sibling would be named.
fn signal_itself(number: i32) {
    let own = i64::from(std::process::id());
    raw_call(libc::SYS_tgkill, [own, own, number.into()]);
}

/// CLONE_NEWUSER.
const NEW_USER: i64 = 0x1000_0000;

/// A call past the library, which would ask for more than this.
#[expect(unsafe_code, reason = "a system call by its number")]
fn raw_call(number: i64, [first, second, third]: [i64; 3]) {
    // SAFETY: no such call touches memory of this process.
    unsafe { libc::syscall(number, first, second, third, 0, 0) };
}

/// How many filters this thread has, from a file that was opened before it had.
fn filters(status: &File) -> String {
    let mut text = [0; 8192];
    let len = rustix::io::read(status, &mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..len]).into_owned();
    text.lines().find(|line| line.starts_with("Seccomp_filters:")).unwrap().to_owned()
}

const DISK_BYTES: u64 = 1 << 20;

fn open_disk(in_file: bool) -> Box<dyn Disk> {
    let base = tempfile::tempfile().unwrap();
    base.set_len(DISK_BYTES).unwrap();
    let base = Box::new(Base::new(base).unwrap());
    if in_file {
        Box::new(Overlay::in_file(base, tempfile::tempfile().unwrap(), DISK_BYTES).unwrap())
    } else {
        Box::new(Overlay::in_memory(base, DISK_BYTES).unwrap())
    }
}

fn use_disk(mut disk: Box<dyn Disk>) {
    let mut bytes = vec![7; 10_000];
    let slice = [VolatileSlice::from(bytes.as_mut_slice())];
    disk.write_at(1000, &slice).unwrap();
    disk.read_at(500, &slice).unwrap();
    disk.flush().unwrap();
    disk.discard(4096, 4096).unwrap();
    disk.write_zeroes(0, DISK_BYTES, true).unwrap();
    disk.write_zeroes(0, 8192, false).unwrap();
    disk.flush().unwrap();
}

#[expect(unsafe_code, reason = "mmap with PROT_EXEC has no safe name")]
fn map_code() {
    let prot = libc::PROT_READ | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping replaces nothing, and is not used.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
}
