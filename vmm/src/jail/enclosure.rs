// SPDX-License-Identifier: Apache-2.0
//! What the first process of a jail takes from itself, and so from all that descend from it.

use std::fs;
use std::io;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_move, mount_remount, unmount,
};
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, chdir, chroot, getegid, geteuid, pivot_root, set_dumpable_behavior,
    setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{JailError, Parts, host, landlock};
use crate::config::JailPart;
use crate::trace::{Stage, Trace};

/// User and group in a namespace of users: what the user who started the monitor is called there.
const ID_INSIDE: u32 = 1000;
/// First of the ids that a monitor takes when root starts it; far from any that systems give out.
const ID_FIRST: u32 = 0x7000_0000;
/// No core dump, and no ptrace by other processes of the same user: guest memory stays here.
pub(super) const NOT_DUMPABLE: DumpableBehavior = DumpableBehavior::NotDumpable;
/// Where the empty root is mounted first: a directory that every system has, and which is not needed any more.
const MOUNT_POINT: &str = "/proc";
/// The empty root: one page, one inode, which is that of the root itself.
const ROOT_OPTIONS: &std::ffi::CStr = c"size=4k,nr_inodes=1,mode=0555";
/// Most processes and threads in one jail: a monitor and all its forks, about five for each.
pub const PROCESSES_MAX: u64 = 16_384;

/// What a monitor may use of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most descriptors.
    pub descriptors: u64,
    /// Longest file that may be written, in bytes.
    pub file_bytes: u64,
}

/// Who started the monitor, looked at from outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outside {
    user: Uid,
    group: Gid,
    process: u32,
}

impl Outside {
    /// Looks, before there is an inside.
    pub(super) fn look() -> Self {
        Self { user: geteuid(), group: getegid(), process: std::process::id() }
    }
}

/// Takes everything away that can be taken. The order matters: ids are mapped while there is a
/// `/proc`, and nothing can be mounted without capabilities.
pub(super) fn enclose(
    (outside, in_user_namespace): (Outside, bool),
    limits: &Limits,
    parts: &mut Parts<'_>,
    trace: &mut Trace,
) -> Result<(), JailError> {
    if in_user_namespace {
        let mapped = map_ids(outside);
        parts.has(JailPart::UserNamespace, mapped)?;
    }
    if parts.is_missing(JailPart::MountNamespace) {
        let none = io::Error::other("there is no mount namespace for it");
        parts.has(JailPart::EmptyRoot, Err(none))?;
    } else {
        parts.has(JailPart::EmptyRoot, empty_root())?;
    }
    trace.mark(Stage::EmptyRoot);
    if !parts.is_missing(JailPart::UtsNamespace) {
        parts.has(JailPart::UtsNamespace, rustix::system::sethostname(b"midge").map_err(io::Error::from))?;
    }
    set_limits(limits).map_err(host("setting resource limits"))?;
    // Needs a capability itself, and so comes before all are gone.
    parts.has(JailPart::NoCapabilities, forbid_capabilities())?;
    if geteuid().is_root() {
        parts.has(JailPart::OwnIds, take_own_ids(outside))?;
    }
    parts.has(JailPart::NoCapabilities, drop_capabilities())?;
    set_no_new_privs(true).map_err(|error| host("giving up new privileges")(error.into()))?;
    set_dumpable_behavior(NOT_DUMPABLE).map_err(|error| host("forbidding dumps")(error.into()))?;
    if let Err(source) = landlock::forbid_all() {
        // An addition where the host has it: nothing else relies on it.
        parts.missing.push((JailPart::Landlock, source));
    }
    Ok(())
}

/// Maps the one id that an unprivileged user may map: its own.
fn map_ids(outside: Outside) -> io::Result<()> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/self/{file}");
        fs::write(&path, text).map_err(|error| io::Error::new(error.kind(), format!("writing {path}: {error}")))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{ID_INSIDE} {} 1", outside.user.as_raw()))?;
    write("gid_map", format!("{ID_INSIDE} {} 1", outside.group.as_raw()))
}

/// Puts an empty file system in place of the root, and lets go of everything else.
fn empty_root() -> io::Result<()> {
    // Nothing that happens here may be seen outside, nor the other way round.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", MOUNT_POINT, "tmpfs", flags, ROOT_OPTIONS)?;
    chdir(MOUNT_POINT)?;
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH)?,
        // The first root of a system cannot be exchanged, only covered: nobody inside can uncover it.
        Err(rustix::io::Errno::INVAL) => {
            mount_move(".", "/")?;
            chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    chdir("/")?;
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | flags, c"")?;
    Ok(())
}

fn set_limits(limits: &Limits) -> io::Result<()> {
    let none = [Resource::Core, Resource::Memlock, Resource::Msgqueue];
    let some = [
        (Resource::Nofile, limits.descriptors),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Nproc, PROCESSES_MAX),
    ];
    for (resource, most) in none.map(|resource| (resource, 0)).into_iter().chain(some) {
        let hard = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let most = Some(most.min(hard));
        setrlimit(resource, Rlimit { current: most, maximum: most })?;
    }
    Ok(())
}

/// Becomes somebody whom nothing belongs to. The keepers of two jails that are alive have
/// different process numbers, and so the jails different ids.
fn take_own_ids(outside: Outside) -> io::Result<()> {
    let id = ID_FIRST | outside.process;
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    Ok(())
}

/// No program that is ever run can have a capability again.
fn forbid_capabilities() -> io::Result<()> {
    clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // Beyond the last one there is.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}
