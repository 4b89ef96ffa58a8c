// SPDX-License-Identifier: Apache-2.0
//! Starting a program: a child that shares our memory until it has become the program (as `posix_spawn` does), so that
//! the price does not grow with the agent, and a failure in the child is told step by step.
//!
//! In the child only system calls happen: no allocation, no lock, no destructor.
#![expect(unsafe_code, reason = "the child of clone(2) lives under rules that no safe wrapper offers")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::RawFd;

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
    pub(crate) stdio: [RawFd; 3],
    /// Standard input is a terminal that shall control the session.
    pub(crate) terminal: bool,
    /// Whom the program runs as; `None` leaves it as the agent.
    pub(crate) ids: Option<Ids>,
    /// An open `cgroup.procs`.
    pub(crate) cgroup: Option<RawFd>,
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
    pub(crate) groups: Vec<u32>,
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
    failed: Option<(Step, i32)>,
}

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
    let step = match prepare(task.program) {
        Ok(()) => execute(task),
        Err(step) => step,
    };
    if task.failed.is_none() {
        task.failed = Some((step, errno()));
    }
    127
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn done(answer: c_int, step: Step) -> Result<(), Step> {
    if answer < 0 { Err(step) } else { Ok(()) }
}

/// Makes the child what the program expects, in an order that matters: rights are dropped last but one.
fn prepare(program: &Program) -> Result<(), Step> {
    reset_signals();
    if let Some(cgroup) = program.cgroup {
        // SAFETY: writes one byte of a constant.
        let written = unsafe { libc::write(cgroup, c"0".as_ptr().cast(), 1) };
        done(if written == 1 { 0 } else { -1 }, Step::Cgroup)?;
    }
    if program.killable {
        forget_protection();
    }
    // SAFETY: takes nothing.
    done(unsafe { libc::setsid() }, Step::Session)?;
    for (target, source) in (0..).zip(program.stdio) {
        // SAFETY: takes two numbers; the sources are above all targets.
        done(unsafe { libc::dup2(source, target) }, Step::Stdio)?;
    }
    // SAFETY: takes three numbers. What the agent itself inherited stays with the agent.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if program.terminal {
        // SAFETY: takes numbers.
        done(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }, Step::Terminal)?;
    }
    if let Some((soft, hard)) = program.open_files {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: the kernel reads one `rlimit`. Its failure leaves the agent's limit, which is harmless.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
    if let Some(ids) = &program.ids {
        become_user(ids)?;
    }
    if let Some(cwd) = &program.cwd {
        // SAFETY: the string ends with NUL.
        done(unsafe { libc::chdir(cwd.as_ptr()) }, Step::Dir)?;
    }
    Ok(())
}

/// Nothing blocked, nothing ignored: ignored signals would survive the execution.
fn reset_signals() {
    // SAFETY: the child has dispositions of its own; no function of ours is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: writes one set where there is room for one.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: reads the set that was just written.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) };
}

/// The agent's protection against the out-of-memory killer is inherited; programs shall not have it.
fn forget_protection() {
    // SAFETY: the string ends with NUL.
    let file = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if file >= 0 {
        // SAFETY: writes one byte of a constant; without effect where the kernel has no such killer.
        unsafe { libc::write(file, c"0".as_ptr().cast(), 1) };
    }
}

/// By bare system calls: the C library's functions would change all threads of the agent, whose memory this child shares.
fn become_user(ids: &Ids) -> Result<(), Step> {
    let (uid, gid) = (ids.uid, ids.gid);
    // SAFETY: the kernel reads `len` numbers.
    let answer = unsafe { libc::syscall(libc::SYS_setgroups, ids.groups.len(), ids.groups.as_ptr()) };
    done(if answer < 0 { -1 } else { 0 }, Step::User)?;
    // SAFETY: takes three numbers.
    let answer = unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) };
    done(if answer < 0 { -1 } else { 0 }, Step::User)?;
    // SAFETY: takes three numbers.
    let answer = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    done(if answer < 0 { -1 } else { 0 }, Step::User)
}

/// Tries the candidates as `execvp` does, without its shell: a path that is not there lets the next one try, one that
/// may not be executed is remembered. Returns only on failure.
fn execute(task: &mut Task<'_>) -> Step {
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
    task.failed = Some((Step::Execute, refused.unwrap_or(libc::ENOENT)));
    Step::Execute
}
