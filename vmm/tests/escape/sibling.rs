// SPDX-License-Identifier: Apache-2.0
//! A fork of the same template: born in the same jail, with the same ids, and known by its number there.
//!
//! Played by two twins of a process that has entered its jail as a resident does; each enters what a fork enters, and then
//! one of them attempts something on the other. Real forks are looked at in `guest/siblings.rs`.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use midge_vmm::jail::{self, Thread};
use midge_vmm::sys;

use crate::neighbour::{copy_memory, take_descriptors};
use crate::raw;

/// What is said of a victim to which nothing has happened.
pub(crate) const WELL: &str = "sibling is well";

/// At the same address in both; another value in the victim.
static SECRET: AtomicU64 = AtomicU64::new(0);
const VICTIMS: u64 = 0x5ec2_e700;

/// What the layers below the filters refuse.
pub(crate) const BELOW: [&str; 6] = [
    "trace my sibling",
    "read my sibling's memory",
    "write my sibling's memory",
    "take my sibling's descriptors",
    "open my sibling's memory",
    "make a message queue",
];
/// What the filters alone refuse: siblings have the same user and see one another. Signals are refused by Landlock as well,
/// where it is new enough.
pub(crate) const FILTERED: [&str; 5] = [
    "end my sibling",
    "end a thread of my sibling",
    "limit my sibling",
    "move my sibling to another processor",
    "share memory with my sibling by a key",
];
/// What a monitor's main thread and a resident may do; the sibling must stand it.
pub(crate) const STOOD: &str = "interrupt my sibling";

/// Makes both; the attacker says what its attempt came to, unless it is ended. Gives whether the victim is well.
pub(crate) fn attempt(kind: Option<Thread>, deed: &str, say: impl FnOnce(io::Result<String>)) -> bool {
    let Some(victim) = twin() else { be_victim() };
    let Some(attacker) = twin() else {
        if let Some(kind) = kind {
            jail::lock_in(kind).unwrap();
        }
        say(attack(i64::from(victim), deed));
        sys::exit_now(0);
    };
    // Nobody can ask how it ended: children of a monitor leave no zombie.
    let _ = sys::wait_for(attacker);
    // Signal 0 looks whether there is somebody.
    let is_well = raw(libc::SYS_kill, [i64::from(victim), 0, 0, 0]).is_ok();
    let _ = sys::signal(victim, libc::SIGKILL);
    is_well
}

/// A twin as a resident makes it.
fn twin() -> Option<u32> {
    let made = sys::fork().unwrap();
    if made.is_none() {
        jail::enter_as_fork().unwrap();
    }
    made
}

fn be_victim() -> ! {
    SECRET.store(VICTIMS, Ordering::Relaxed);
    midge_vmm::machine::threads::expect_interrupts().unwrap();
    loop {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

fn attack(victim: i64, deed: &str) -> io::Result<String> {
    let secret = std::ptr::from_ref(&SECRET).addr();
    let term = i64::from(libc::SIGTERM);
    match deed {
        "trace my sibling" => raw(libc::SYS_ptrace, [i64::from(libc::PTRACE_SEIZE), victim, 0, 0]),
        "read my sibling's memory" => copy_memory(libc::SYS_process_vm_readv, victim, secret),
        "write my sibling's memory" => copy_memory(libc::SYS_process_vm_writev, victim, secret),
        "take my sibling's descriptors" => take_descriptors(victim),
        "open my sibling's memory" => std::fs::File::open(format!("/proc/{victim}/mem")).map(|_| String::new()),
        "end my sibling" => raw(libc::SYS_kill, [victim, term, 0, 0]),
        "end a thread of my sibling" => raw(libc::SYS_tgkill, [victim, victim, term, 0]),
        STOOD => raw(libc::SYS_tgkill, [victim, victim, i64::from(libc::SIGRTMIN()), 0]),
        "limit my sibling" => {
            let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            let at = i64::try_from(std::ptr::from_ref(&limit).expose_provenance()).unwrap();
            raw(libc::SYS_prlimit64, [victim, i64::from(libc::RLIMIT_NOFILE), at, 0])
        }
        "move my sibling to another processor" => {
            let first = 1_u64;
            let at = i64::try_from(std::ptr::from_ref(&first).expose_provenance()).unwrap();
            raw(libc::SYS_sched_setaffinity, [victim, 8, at, 0])
        }
        "share memory with my sibling by a key" => {
            raw(libc::SYS_shmget, [0x4d, 4096, i64::from(libc::IPC_CREAT | 0o600), 0])
        }
        "make a message queue" => {
            let name = i64::try_from(c"midge".as_ptr().expose_provenance()).unwrap();
            raw(libc::SYS_mq_open, [name, i64::from(libc::O_CREAT | libc::O_RDWR), 0o600, 0])
        }
        other => panic!("no attempt {other}"),
    }
}
