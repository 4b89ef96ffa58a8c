// SPDX-License-Identifier: Apache-2.0
//! The jail: what a monitor still can do once guest code runs, which is next to nothing.
//!
//! Everything with a path has been opened ([`crate::vm::opened`]). Then [`enter`], in this order:
//!
//! 1. A new process in namespaces of its own: users (unless root made it), mounts, network, IPC, host name, processes.
//!    It is the *first* of its process namespace (`first.rs`); the process that was started stays outside as its
//!    *keeper* (`keeper.rs`).
//! 2. `enclosure.rs`: an empty read-only root without `/proc` or devices, resource limits, an id that is nobody else's
//!    (or a mapped one), no capability, no way to gain any, no dumps, a Landlock domain that forbids what is left.
//! 3. The monitor itself, a child of the first. Forks of it are born here and need nothing but a Landlock domain of
//!    their own ([`enter_as_fork`]), which keeps siblings from signalling each other.
//! 4. One system-call filter for each kind of thread ([`filters`]), before the guest runs.
//!
//! ```text
//!  host process ── keeper (outside; connects sockets for the guest, passes signals and the exit status on)
//!                    └─ first (PID 1 inside; reaps)
//!                         └─ monitor ── its forks, which outlive it under the first
//! ```
//!
//! What a host cannot give is refused by name, unless the configuration allows just that to be missing.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::config::JailPart;
use crate::trace::{Stage, Trace};
use crate::vsock::doorman;

mod enclosure;
pub mod filters;
mod first;
mod keeper;
mod landlock;
mod namespaces;

use enclosure::Outside;

pub use enclosure::{Limits, PROCESSES_MAX};
pub use filters::{Thread, lock_in};

/// Why the jail could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The host does not give a part of it.
    #[error(
        "entering the jail: this host gives no {part}; let its users have namespaces (sysctl \
         user.max_user_namespaces, kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), \
         or start it as root with CAP_SYS_ADMIN; `--allow-missing {part}` goes without"
    )]
    Missing {
        /// What is missing.
        part: JailPart,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A process or a descriptor.
    #[error("entering the jail: {step} failed")]
    Host {
        /// What was attempted.
        step: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

fn host(step: &'static str) -> impl Fn(io::Error) -> JailError {
    move |source| JailError::Host { step, source }
}

/// What a jail is made for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Parts that may be missing.
    pub allow_missing: &'a [JailPart],
    /// What the monitor may use of the host.
    pub limits: Limits,
    /// Where the guest's connections go: this path with `_<port>` behind it.
    pub uds: Option<&'a Path>,
}

/// What one has inside.
#[derive(Debug)]
pub struct Entered {
    /// The line to the keeper, who connects sockets for the guest.
    pub doorman: OwnedFd,
    /// What is missing, as was allowed, and why.
    pub missing: Vec<(JailPart, io::Error)>,
}

/// What cannot be had here, where it may be missing.
struct Parts<'a> {
    allow_missing: &'a [JailPart],
    missing: Vec<(JailPart, io::Error)>,
}

impl Parts<'_> {
    /// Notes that a part is missing, unless it is `done`.
    fn has(&mut self, part: JailPart, done: io::Result<()>) -> Result<(), JailError> {
        let Err(source) = done else { return Ok(()) };
        if !self.allow_missing.contains(&part) {
            return Err(JailError::Missing { part, source });
        }
        self.missing.push((part, source));
        Ok(())
    }

    fn is_missing(&self, part: JailPart) -> bool {
        self.missing.iter().any(|(missing, _)| *missing == part)
    }
}

/// Goes inside: returns there, in a process of its own. The calling process becomes its keeper and
/// never returns; it ends as the monitor ends. It must have one thread.
///
/// # Errors
/// [`JailError`]; nothing of a jail that could not be completed is left.
pub fn enter(wanted: &Wanted<'_>, trace: &mut Trace) -> Result<Entered, JailError> {
    let (ours, doorman) = doorman::line().map_err(host("making a socket"))?;
    let (family, inside) = doorman::line().map_err(host("making a socket"))?;
    let outside = Outside::look();
    let mut parts = Parts { allow_missing: wanted.allow_missing, missing: Vec::new() };
    let made = namespaces::make(&mut parts)?;
    match made.first {
        Some(first) => {
            drop((ours, inside));
            keeper::keep(first, family, doorman, wanted.uds)
        }
        None => drop((family, doorman)),
    }
    trace.mark(Stage::Namespaces);
    enclosure::enclose((outside, made.in_user_namespace), &wanted.limits, &mut parts, trace)?;
    match first::split().map_err(host("making the monitor's process"))? {
        Some(monitor) => first::watch(monitor, inside),
        None => drop(inside),
    }
    trace.mark(Stage::Enclosed);
    Ok(Entered { doorman: ours, missing: parts.missing })
}

/// In a fork of an enclosed monitor: a Landlock domain of its own, where the host has such. The
/// kernel nests 16 of them; a fork of forks beyond that shares its parent's.
///
/// # Errors
/// The kernel's, but that there are none, or no more of them.
pub fn enter_as_fork() -> io::Result<()> {
    match landlock::forbid_all() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSYS | libc::EOPNOTSUPP)) => Ok(()),
        done => done,
    }
}

/// In place of [`enter`] where the jail is left off: no process but this, and a thread that
/// connects sockets. Says so on stderr.
///
/// # Errors
/// [`JailError::Host`].
pub fn leave_off(uds: Option<&Path>) -> Result<Entered, JailError> {
    filters::leave_off();
    let (ours, doorman) = doorman::line().map_err(host("making a socket"))?;
    keeper::attend_in_thread(doorman, uds).map_err(host("starting a thread"))?;
    Ok(Entered { doorman: ours, missing: Vec::new() })
}
