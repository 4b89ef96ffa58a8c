// SPDX-License-Identifier: Apache-2.0
//! A process in namespaces of its own, or the name of the one that cannot be had.

use std::io;

use super::{JailError, host};
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
pub(super) fn make(allow_missing: &[JailPart]) -> Result<(Made, Vec<(JailPart, io::Error)>), JailError> {
    let all = NAMESPACES.iter().fold(0, |flags, (_, flag)| flags | flag);
    let is_root = rustix::process::geteuid().is_root();
    let attempts = [(is_root, all), (true, all | libc::CLONE_NEWUSER)];
    for (_, flags) in attempts.into_iter().filter(|(is_worth_trying, _)| *is_worth_trying) {
        if let Ok(first) = sys::clone(flags) {
            let in_user_namespace = flags & libc::CLONE_NEWUSER != 0;
            return Ok((Made { first, in_user_namespace }, Vec::new()));
        }
    }
    make_with_less(is_root, allow_missing)
}

/// Finds out one by one what can be had.
fn make_with_less(is_root: bool, allow_missing: &[JailPart]) -> Result<(Made, Vec<(JailPart, io::Error)>), JailError> {
    let mut missing = Vec::new();
    let mut note = |part, source| {
        if allow_missing.contains(&part) {
            missing.push((part, source));
            return Ok(());
        }
        Err(JailError::Missing { part, source })
    };
    let mut flags = 0;
    if !is_root || try_out(libc::CLONE_NEWNS).is_err() {
        match try_out(libc::CLONE_NEWUSER) {
            Ok(()) => flags = libc::CLONE_NEWUSER,
            Err(error) => note(JailPart::UserNamespace, error)?,
        }
    }
    for (part, flag) in NAMESPACES {
        match try_out(flags | flag) {
            Ok(()) => flags |= flag,
            Err(error) => note(part, error)?,
        }
    }
    let first = sys::clone(flags).map_err(host("making a process"))?;
    Ok((Made { first, in_user_namespace: flags & libc::CLONE_NEWUSER != 0 }, missing))
}

/// Makes a process with these flags that ends at once.
fn try_out(flags: i32) -> io::Result<()> {
    let Some(pid) = sys::clone(flags)? else { sys::exit_now(0) };
    sys::wait_for(pid).map(drop)
}
