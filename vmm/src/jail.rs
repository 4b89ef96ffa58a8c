// SPDX-License-Identifier: Apache-2.0
//! Locking in: what each thread may still ask of the host once guest code runs.
//!
//! One allow-list per thread kind, written in `seccomp/<kind>.json` with the caller of each rule,
//! compiled by build.rs, the same in debug and release. Whatever is not listed kills the process.
//! Nothing here can be undone, and nothing here opens anything.

use std::cell::Cell;
use std::io;

use seccompiler::{BpfProgram, apply_filter, sock_filter};

/// Kinds of threads, each with its own policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
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
    pub const ALL: [Self; 4] = [Self::Main, Self::Vcpu, Self::Block, Self::Resident];

    fn policy(self) -> &'static [u8] {
        match self {
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

/// Locks the calling thread in for good. A thread that is locked in as this kind already stays as
/// it is: it may be a twin's, and every call of the host would pass one more filter for nothing.
///
/// # Errors
/// The kernel's error when it has no seccomp filters; the VM must not run then.
pub fn lock_in(kind: Thread) -> io::Result<()> {
    if LOCKED_IN.get() == Some(kind) {
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

    #[test]
    fn no_thread_may_start_a_program_open_a_file_or_make_a_descriptor_executable() {
        let forbidden =
            ["execve", "execveat", "fork", "vfork", "clone", "clone3", "open", "openat", "openat2", "ptrace"];
        for text in [
            include_str!("../../seccomp/main.json"),
            include_str!("../../seccomp/vcpu.json"),
            include_str!("../../seccomp/block.json"),
        ] {
            let policy: serde_json::Value = serde_json::from_str(text).unwrap();
            let filter = policy.as_object().unwrap().values().next().unwrap();
            assert_eq!(filter["mismatch_action"], "kill_process");
            for rule in filter["filter"].as_array().unwrap() {
                let name = rule["syscall"].as_str().unwrap();
                assert!(!forbidden.contains(&name), "{name}");
                assert!(rule["comment"].as_str().is_some_and(|why| why.len() > 5), "{name} names no caller");
                let constrained = ["ioctl", "mmap", "mprotect", "madvise", "socket"];
                assert!(!constrained.contains(&name) || rule["args"].is_array(), "{name} is not constrained");
            }
        }
    }
}
