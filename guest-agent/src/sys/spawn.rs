// SPDX-License-Identifier: Apache-2.0
//! Starting a program: a child that shares our memory until it has become the program (as `posix_spawn` does), so that
//! the price does not grow with the agent, and a failure in the child is told step by step.
//!
//! In the child only system calls happen: no allocation, no lock, no destructor.
#![expect(unsafe_code, reason = "the child of clone(2) lives under rules that no safe wrapper offers")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid, chdir, ioctl_tiocsctty, setrlimit, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::check;

/// Stack of the child until it has become the program, in bytes.
const STACK_BYTES: usize = 64 * 1024;

/// Everything a child needs to become a program.
#[derive(Debug)]
pub(crate) struct Program {
    /// Paths to try, in order.
    pub(crate) candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub(crate) argv: Vec<CString>,
    /// `NAME=value` each.
    pub(crate) env: Vec<CString>,
    /// Working directory.
    pub(crate) cwd: Option<CString>,
    /// Standard input, output, error; all above 2.
    pub(crate) stdio: [OwnedFd; 3],
    /// Standard input is a terminal that shall control the session.
    pub(crate) terminal: bool,
    /// Whom the program runs as; `None` leaves it as the agent.
    pub(crate) ids: Option<Ids>,
    /// An open `cgroup.procs`.
    pub(crate) cgroup: Option<File>,
    /// Take back the protection that the agent has against the out-of-memory killer.
    pub(crate) killable: bool,
    /// Files it may open: now, and at most.
    pub(crate) open_files: Option<(u64, u64)>,
}

/// Numbers of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<Gid>,
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Clone,
    Cgroup,
    Session,
    Stdio,
    Terminal,
    User,
    Dir,
    Execute,
}

/// What the child sees of its parent's memory.
struct Task<'a> {
    program: &'a Program,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    failed: Option<Failed>,
}

/// A step and its error number.
type Failed = (Step, i32);

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Starts `program` in a session of its own and answers its process id once it runs.
pub(crate) fn spawn(program: &Program) -> Result<libc::pid_t, (Step, io::Error)> {
    let (argv, env) = (pointers(&program.argv), pointers(&program.env));
    let mut task = Task { program, argv, env, failed: None };
    let mut stack = Vec::<u128>::with_capacity(STACK_BYTES / size_of::<u128>());
    let top = stack.as_mut_ptr().wrapping_add(stack.capacity());
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let argument = (&raw mut task).cast::<c_void>();
    // SAFETY: CLONE_VFORK stops this thread until the child has executed or ended, so `task` and `stack` outlive the
    // child's use of them and nobody else touches them; `top` is the aligned end of the stack's memory.
    let pid =
        check(unsafe { libc::clone(child, top.cast(), flags, argument) }).map_err(|error| (Step::Clone, error))?;
    match task.failed {
        None => Ok(pid),
        // The child has ended by itself; the reaper takes it as it takes every orphan.
        Some((step, errno)) => Err((step, io::Error::from_raw_os_error(errno))),
    }
}

extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes its `Task` and does not run until this function is done with it.
    let task = unsafe { &mut *argument.cast::<Task<'_>>() };
    task.failed = match prepare(task.program) {
        Ok(()) => Some((Step::Execute, execute(task))),
        Err(failed) => Some(failed),
    };
    127
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Ties a failed system call to its step.
fn at(step: Step) -> impl FnOnce(Errno) -> Failed {
    move |errno| (step, errno.raw_os_error())
}

/// Makes the child what the program expects, in an order that matters: rights are dropped last but one.
fn prepare(program: &Program) -> Result<(), Failed> {
    reset_signals();
    if let Some(cgroup) = &program.cgroup {
        rustix::io::write(cgroup, b"0").map_err(at(Step::Cgroup))?;
    }
    if program.killable {
        forget_protection();
    }
    setsid().map_err(at(Step::Session))?;
    let [stdin, stdout, stderr] = &program.stdio;
    dup2_stdin(stdin).map_err(at(Step::Stdio))?;
    dup2_stdout(stdout).map_err(at(Step::Stdio))?;
    dup2_stderr(stderr).map_err(at(Step::Stdio))?;
    // SAFETY: takes three numbers. What the agent itself inherited stays with the agent.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if program.terminal {
        ioctl_tiocsctty(stdin).map_err(at(Step::Terminal))?;
    }
    if let Some((soft, hard)) = program.open_files {
        // Its failure leaves the agent's limit, which is harmless.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: Some(hard) });
    }
    if let Some(ids) = &program.ids {
        become_user(ids).map_err(at(Step::User))?;
    }
    if let Some(cwd) = &program.cwd {
        chdir(&**cwd).map_err(at(Step::Dir))?;
    }
    Ok(())
}

/// Nothing blocked, nothing ignored: ignored signals would survive the execution.
fn reset_signals() {
    // The agent ignores SIGPIPE; the others a shell ignores for what it starts in the background, tests among them.
    for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: the child has dispositions of its own; no function of ours is installed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: writes one set where there is room for one.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: reads the set that was just written.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) };
}

/// The agent's protection against the out-of-memory killer is inherited; programs shall not have it. Without effect
/// where the kernel has no such killer.
fn forget_protection() {
    if let Ok(file) = open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(&file, b"0");
    }
}

/// By system calls for one thread: the C library's functions would change all of the agent, whose memory this child
/// shares.
fn become_user(ids: &Ids) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    set_thread_groups(&ids.groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Tries the candidates as `execvp` does, without its shell: a path that is not there lets the next one try, one that
/// may not be executed is remembered. Returns only on failure.
fn execute(task: &Task<'_>) -> i32 {
    let mut refused = None;
    for candidate in &task.program.candidates {
        // SAFETY: the path ends with NUL, and both lists are NUL-ended strings with a null pointer at the end.
        unsafe { libc::execve(candidate.as_ptr(), task.argv.as_ptr(), task.env.as_ptr()) };
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            errno => {
                refused = refused.or(Some(errno));
                if errno != libc::EACCES {
                    break;
                }
            }
        }
    }
    refused.unwrap_or(libc::ENOENT)
}
