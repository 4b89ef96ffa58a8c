// SPDX-License-Identifier: Apache-2.0
//! A process in namespaces of its own, or the name of the one that cannot be had.

use std::io;

use super::{JailError, Parts, host};
use crate::config::JailPart;
use crate::sys;

/// The namespaces, besides that of users, and the flag of `clone(2)` for each.
const NAMESPACES: [(JailPart, i32); 5] = [
    (JailPart::MountNamespace, libc::CLONE_NEWNS),
    (JailPart::NetNamespace, libc::CLONE_NEWNET),
    (JailPart::IpcNamespace, libc::CLONE_NEWIPC),
    (JailPart::UtsNamespace, libc::CLONE_NEWUTS),
    (JailPart::PidNamespace, libc::CLONE_NEWPID),
];

/// Which of the two processes this is.
#[derive(Debug)]
pub(super) struct Made {
    /// The process inside, as the one outside sees it; `None` inside.
    pub(super) first: Option<u32>,
    /// Whether it has a user namespace of its own.
    pub(super) in_user_namespace: bool,
}

/// Makes the process. Root needs no namespace of users, unless it is a root of little power.
///
/// # Errors
/// [`JailError::Missing`] names the first that cannot be had and may not be missing.
pub(super) fn make(parts: &mut Parts<'_>) -> Result<Made, JailError> {
    let all = NAMESPACES.iter().fold(0, |flags, (_, flag)| flags | flag);
    let is_root = rustix::process::geteuid().is_root();
    if is_root && let Ok(made) = clone(all) {
        return Ok(made);
    }
    clone(all | libc::CLONE_NEWUSER).or_else(|_| make_with_less(is_root, parts))
}

fn clone(flags: i32) -> io::Result<Made> {
    Ok(Made { first: sys::clone(flags)?, in_user_namespace: flags & libc::CLONE_NEWUSER != 0 })
}

/// Finds out one by one what can be had.
fn make_with_less(is_root: bool, parts: &mut Parts<'_>) -> Result<Made, JailError> {
    let mut flags = 0;
    let mut add = |part, flag| {
        let tried = try_out(flags | flag);
        flags |= if tried.is_ok() { flag } else { 0 };
        parts.has(part, tried)
    };
    if !is_root || try_out(libc::CLONE_NEWNS).is_err() {
        add(JailPart::UserNamespace, libc::CLONE_NEWUSER)?;
    }
    NAMESPACES.into_iter().try_for_each(|(part, flag)| add(part, flag))?;
    clone(flags).map_err(host("making a process"))
}

/// Makes a process with these flags that ends at once.
fn try_out(flags: i32) -> io::Result<()> {
    let Some(pid) = sys::clone(flags)? else { sys::exit_now(0) };
    sys::wait_for(pid).map(drop)
}
