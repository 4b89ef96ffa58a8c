// SPDX-License-Identifier: Apache-2.0
//! Locking in: what each thread may still ask of the host once guest code runs.
//!
//! One allow-list per thread kind, written in `seccomp/<kind>.json` with the caller of each rule,
//! compiled by build.rs, the same in debug and release. Whatever is not listed kills the process.
//! Nothing here can be undone, and nothing here opens anything.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{BpfProgram, apply_filter, sock_filter};

/// Kinds of threads, each with its own policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The process outside that keeps a jail.
    Keeper,
    /// The first process inside.
    First,
    /// The event loop: vsock, lifeline, signals, console lines.
    Main,
    /// A vCPU.
    Vcpu,
    /// A disk's worker.
    Block,
    /// The one thread of a resident, and the main thread of a VM that may have twins: it makes
    /// VMs. Threads that it starts have this policy and their own.
    Resident,
}

impl Thread {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Keeper, Self::First, Self::Main, Self::Vcpu, Self::Block, Self::Resident];

    /// Its filter as it is given to the kernel: instructions of 8 bytes.
    #[must_use]
    pub fn policy(self) -> &'static [u8] {
        match self {
            Self::Keeper => include_bytes!(concat!(env!("OUT_DIR"), "/keeper.bpf")),
            Self::First => include_bytes!(concat!(env!("OUT_DIR"), "/first.bpf")),
            Self::Main => include_bytes!(concat!(env!("OUT_DIR"), "/main.bpf")),
            Self::Vcpu => include_bytes!(concat!(env!("OUT_DIR"), "/vcpu.bpf")),
            Self::Block => include_bytes!(concat!(env!("OUT_DIR"), "/block.bpf")),
            Self::Resident => include_bytes!(concat!(env!("OUT_DIR"), "/resident.bpf")),
        }
    }
}

thread_local! {
    static LOCKED_IN: Cell<Option<Thread>> = const { Cell::new(None) };
}

/// Whether [`leave_off`] was called.
static LEFT_OFF: AtomicBool = AtomicBool::new(false);

/// From here on [`lock_in`] does nothing, in this process and in its twins. Says so on stderr.
///
/// Only for measuring what the filters cost: the configuration has to ask for it by name.
pub fn leave_off() {
    eprintln!("midge-vmm: THE JAIL IS OFF: no thread has a system-call filter; never run a guest like this");
    LEFT_OFF.store(true, Ordering::Relaxed);
}

/// Locks the calling thread in for good. A thread that is locked in as this kind already stays as
/// it is: it may be a twin's, and every call of the host would pass one more filter for nothing.
///
/// # Errors
/// The kernel's error when it has no seccomp filters; the VM must not run then.
pub fn lock_in(kind: Thread) -> io::Result<()> {
    if LOCKED_IN.get() == Some(kind) || LEFT_OFF.load(Ordering::Relaxed) {
        return Ok(());
    }
    if kind == Thread::Resident {
        // clone3 hides its flags from a filter. Refused like this, glibc takes clone, whose flags are checked.
        apply_filter(&program(include_bytes!(concat!(env!("OUT_DIR"), "/no-clone3.bpf")))).map_err(io::Error::other)?;
    }
    apply_filter(&program(kind.policy())).map_err(io::Error::other)?;
    LOCKED_IN.set(Some(kind));
    Ok(())
}

/// The instructions as build.rs wrote them: u16 code, u8 jt, u8 jf, u32 k.
fn program(bytes: &[u8]) -> BpfProgram {
    let mut program = BpfProgram::with_capacity(bytes.len() / 8);
    for chunk in bytes.chunks_exact(8) {
        if let [c0, c1, jt, jf, k0, k1, k2, k3] = *chunk {
            let code = u16::from_le_bytes([c0, c1]);
            program.push(sock_filter { code, jt, jf, k: u32::from_le_bytes([k0, k1, k2, k3]) });
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// BPF_RET | BPF_K.
    const RETURN: u16 = 0x06;
    const SECCOMP_RET_ALLOW: u32 = 0x7fff_0000;

    #[test]
    fn every_policy_is_a_program_that_kills_by_default() {
        for kind in Thread::ALL {
            let program = program(kind.policy());
            assert!(program.len() > 10, "{kind:?}");
            assert!(program.len() <= 4096, "{kind:?}: the kernel takes no more");
            let last = program.last().unwrap();
            assert_eq!(last.code, RETURN, "{kind:?}");
            let returns: Vec<u32> = program.iter().filter(|i| i.code == RETURN).map(|i| i.k).collect();
            assert!(returns.contains(&libc::SECCOMP_RET_KILL_PROCESS), "{kind:?}");
            let others = [SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS, libc::SECCOMP_RET_KILL_THREAD];
            assert!(returns.iter().all(|k| others.contains(k)), "{kind:?}: {returns:x?}");
        }
    }

    const KEEPER: &str = include_str!("../../../seccomp/keeper.json");
    const FIRST: &str = include_str!("../../../seccomp/first.json");
    const MAIN: &str = include_str!("../../../seccomp/main.json");
    const VCPU: &str = include_str!("../../../seccomp/vcpu.json");
    const BLOCK: &str = include_str!("../../../seccomp/block.json");
    const RESIDENT: &str = include_str!("../../../seccomp/resident.json");
    const NO_CLONE3: &str = include_str!("../../../seccomp/no-clone3.json");

    /// The one filter of a policy.
    fn filter(text: &str) -> Value {
        let policy: Value = serde_json::from_str(text).unwrap();
        policy.as_object().unwrap().values().next().unwrap().clone()
    }

    fn rules(text: &str) -> Vec<Value> {
        filter(text)["filter"].as_array().unwrap().clone()
    }

    fn name(rule: &Value) -> &str {
        rule["syscall"].as_str().unwrap()
    }

    /// The conditions of a rule, without their comments.
    fn conditions(rule: &Value) -> Vec<Value> {
        let args = rule["args"].as_array().into_iter().flatten();
        args.map(|arg| json!([arg["index"], arg["type"], arg["op"], arg["val"]])).collect()
    }

    /// What the kernel would answer: a program of loads, `and`, comparisons, jumps and returns.
    fn answer(program: &[sock_filter], data: &[u8; 64]) -> u32 {
        let (mut pc, mut a) = (0, 0_u32);
        loop {
            let i = &program[pc];
            pc += 1;
            let at = i.k as usize;
            let jump = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
            match i.code {
                0x20 => a = u32::from_le_bytes(data[at..at + 4].try_into().unwrap()),
                0x54 => a &= i.k,
                0x05 => pc += at,
                0x15 => pc += jump(a == i.k),
                0x25 => pc += jump(a > i.k),
                0x35 => pc += jump(a >= i.k),
                0x06 => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn data(nr: u32, args: [u64; 6]) -> [u8; 64] {
        const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
        let mut data = [0; 64];
        data[..4].copy_from_slice(&nr.to_le_bytes());
        data[4..8].copy_from_slice(&AUDIT_ARCH_X86_64.to_le_bytes());
        for (to, arg) in data[16..].chunks_exact_mut(8).zip(args) {
            to.copy_from_slice(&arg.to_le_bytes());
        }
        data
    }

    /// The compiler's own program, before build.rs put an index in front, answers the same.
    #[test]
    fn index_changes_no_answer() {
        let policies = [
            (KEEPER, &include_bytes!(concat!(env!("OUT_DIR"), "/keeper.plain"))[..]),
            (FIRST, include_bytes!(concat!(env!("OUT_DIR"), "/first.plain"))),
            (MAIN, include_bytes!(concat!(env!("OUT_DIR"), "/main.plain"))),
            (VCPU, include_bytes!(concat!(env!("OUT_DIR"), "/vcpu.plain"))),
            (BLOCK, include_bytes!(concat!(env!("OUT_DIR"), "/block.plain"))),
            (RESIDENT, include_bytes!(concat!(env!("OUT_DIR"), "/resident.plain"))),
        ];
        for (kind, (text, plain)) in Thread::ALL.into_iter().zip(policies) {
            let (plain, indexed) = (program(plain), program(kind.policy()));
            let rules = rules(text);
            let values = rules
                .iter()
                .flat_map(|rule| rule["args"].as_array().into_iter().flatten())
                .filter_map(|arg| arg["val"].as_u64());
            let values: Vec<u64> = values.chain([0, 1, u64::MAX]).collect();
            let mut allowed = 0;
            for nr in (0..600).chain([u32::MAX, 1 << 30]) {
                for value in &values {
                    let data = data(nr, [*value; 6]);
                    let answers = (answer(&plain, &data), answer(&indexed, &data));
                    assert_eq!(answers.0, answers.1, "{kind:?}, call {nr}, arguments {value:#x}");
                    allowed += usize::from(answers.0 == SECCOMP_RET_ALLOW);
                }
            }
            assert!(allowed > 10, "{kind:?}");
            let mut other_arch = data(0, [0; 6]);
            other_arch[4] = 3;
            assert_eq!(answer(&indexed, &other_arch), libc::SECCOMP_RET_KILL_PROCESS);
            let steps = indexed.len() - plain.len();
            assert!((2..=30).contains(&steps), "{kind:?}: an index of {steps} instructions");
        }
    }

    #[test]
    fn no_thread_may_start_a_program_open_a_file_or_make_a_descriptor_executable() {
        let forbidden =
            ["execve", "execveat", "fork", "vfork", "clone", "clone3", "open", "openat", "openat2", "ptrace"];
        for text in [KEEPER, FIRST, MAIN, VCPU, BLOCK] {
            assert_eq!(filter(text)["mismatch_action"], "kill_process");
            for rule in rules(text) {
                let name = name(&rule);
                assert!(!forbidden.contains(&name), "{name}");
                assert!(rule["comment"].as_str().is_some_and(|why| why.len() > 5), "{name} names no caller");
                let constrained = ["ioctl", "mmap", "mprotect", "madvise", "socket", "tgkill"];
                assert!(!constrained.contains(&name) || rule["args"].is_array(), "{name} is not constrained");
            }
        }
    }

    /// A fork's threads have the resident's policy and their own: what their own lets through must
    /// not be held up by the other.
    #[test]
    fn a_resident_may_do_whatever_a_thread_of_its_forks_may() {
        let resident = rules(RESIDENT);
        for (kind, text) in [("main", MAIN), ("vcpu", VCPU), ("block", BLOCK)] {
            for rule in rules(text) {
                let wanted = conditions(&rule);
                let is_covered = |allowed: &Value| {
                    name(allowed) == name(&rule)
                        && conditions(allowed).iter().all(|condition| wanted.contains(condition))
                };
                assert!(resident.iter().any(is_covered), "{kind}: {} {wanted:?}", name(&rule));
            }
        }
    }

    #[test]
    fn a_resident_may_make_processes_and_vms_and_nothing_else_that_is_new() {
        let forbidden = [
            "execve",
            "execveat",
            "fork",
            "vfork",
            "open",
            "openat",
            "openat2",
            "open_by_handle_at",
            "creat",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "pidfd_getfd",
            "kcmp",
            "mount",
            "umount2",
            "pivot_root",
            "chroot",
            "fsopen",
            "move_mount",
            "open_tree",
            "unshare",
            "setns",
            "bind",
            "listen",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "io_uring_setup",
            "io_uring_enter",
            "keyctl",
            "add_key",
            "init_module",
            "finit_module",
            "kexec_load",
            "memfd_create",
            "setuid",
            "setgid",
            "setresuid",
            "capset",
            "kill",
            "reboot",
        ];
        let rules = rules(RESIDENT);
        assert_eq!(filter(RESIDENT)["mismatch_action"], "kill_process");
        for rule in &rules {
            let name = name(rule);
            assert!(!forbidden.contains(&name), "{name}");
            let constrained = ["ioctl", "mmap", "mprotect", "madvise", "socket", "clone", "prctl", "fcntl", "tgkill"];
            assert!(!constrained.contains(&name) || !conditions(rule).is_empty(), "{name} is not constrained");
        }
        let only = |wanted: &str| rules.iter().filter(|rule| name(rule) == wanted).map(conditions).collect::<Vec<_>>();
        assert_eq!(only("socket").len() + only("connect").len(), 0, "the keeper connects");
        // Every CLONE_NEW* there is; that of time shares its bit with the signal of a child's end.
        let namespaces =
            [0x80, 0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000_u64];
        let all: u64 = namespaces.iter().sum();
        assert_eq!(only("clone"), [[json!([0, "qword", { "masked_eq": all }, 0])]]);
        let never_executable = json!([2, "dword", { "masked_eq": libc::PROT_EXEC }, 0]);
        assert_eq!([only("mmap"), only("mprotect")].concat(), vec![[never_executable]; 2]);
    }

    #[test]
    fn clone3_whose_flags_no_filter_sees_is_answered_as_if_it_did_not_exist() {
        let filter = filter(NO_CLONE3);
        assert_eq!(filter["match_action"], json!({ "errno": libc::ENOSYS }));
        assert_eq!(filter["mismatch_action"], "allow", "the other filter decides");
        assert_eq!(rules(NO_CLONE3).iter().map(name).collect::<Vec<_>>(), ["clone3"]);
    }

    /// Firecracker's VMM thread may make 50, its API thread 31, a vCPU 27 (x86-64): nobody here may make as many.
    #[test]
    fn nobody_may_make_as_many_calls_as_the_same_thread_of_firecracker() {
        let most = [(MAIN, 50), (RESIDENT, 50), (VCPU, 27), (KEEPER, 31), (FIRST, 31), (BLOCK, 50)];
        for (text, most) in most {
            let rules = rules(text);
            let calls: std::collections::BTreeSet<_> = rules.iter().map(name).collect();
            assert!(
                (1..most).contains(&calls.len()),
                "{} calls, and less than {most} are wanted: {calls:?}",
                calls.len()
            );
        }
    }

    #[test]
    fn no_rule_is_there_twice() {
        for text in [KEEPER, FIRST, MAIN, VCPU, BLOCK, RESIDENT] {
            let rules = rules(text);
            for (index, rule) in rules.iter().enumerate() {
                let same = |other: &&Value| name(other) == name(rule) && conditions(other) == conditions(rule);
                assert_eq!(rules[index + 1..].iter().find(same), None, "{rule}");
            }
        }
    }
}
