// SPDX-License-Identifier: Apache-2.0
//! Control groups (version 2): what one sandbox may take of the machine, whatever its monitor has become.
//!
//! Each monitor lives in a group of its own, made below the nearest group that this user may divide (`base`): it is put
//! there before it is told its configuration, so that everything it ever starts is inside. A fork is *born* there: moving
//! the resident that makes it costs nothing on the way of the fork, since it has been done while the one before was
//! starting (`Quarters::prepare`). A group goes with its monitor; those of a process that was killed are known by
//! their name and by a lock that nobody holds any more, and the next start removes them ([`sweep`]).
//!
//! A machine that gives no groups is told of by `midge doctor`; sandboxes run without, unless a limit was asked for.

mod base;
mod group;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use base::{Base, Controller, DELEGATE, Missing, VARIABLE, base};
use group::Group;
pub use group::{remove_all, sweep};

/// Memory of a monitor beyond its guest's, in MiB: its own, what KVM and the kernel hold for it, and files that it reads.
pub const OVERHEAD_MIB: u64 = 64;
/// One part in so many of the guest's memory on top: page tables, the process' and KVM's.
const PAGE_TABLE_SHARE: u64 = 64;
/// Processes and threads of a monitor beside its vCPUs: keeper, first, main thread, disks, KVM's workers, a resident on
/// its way.
const SPARE_PROCESSES: u32 = 32;
/// Length of the period in which processor time is shared out, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// What a user wants a sandbox to have of the machine at most, beyond what its size says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Processor time in percent of one processor, within [`CPU_PERCENT_RANGE`]; `None`: as much as there is, in equal
    /// parts with whoever else wants it.
    pub cpu_percent: Option<u32>,
    /// MiB a second that are read from the disk, and as many written, from 1; `None`: as much as there is. A machine that
    /// does not keep to what is asked for is no place for the sandbox.
    pub io_mib_s: Option<u64>,
}

/// Range of [`Share::cpu_percent`].
pub const CPU_PERCENT_RANGE: std::ops::RangeInclusive<u32> = 1..=100_000;

/// The limits of one monitor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowance {
    /// The guest's memory and what its disks hold in memory, in MiB.
    pub memory_mib: u64,
    /// vCPUs.
    pub cpus: u32,
    /// As in [`Share`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// The disk's device, `major:minor`, and bytes a second, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<(String, u64)>,
    /// Of a template that is brought into memory: what is limited to a share is each of its forks. Nobody who asked for slow
    /// sandboxes asked for a slow start of all of them, and a resident has no guest that could use more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_rest: bool,
}

impl Allowance {
    /// What a fork may have of a resident with this allowance.
    fn of_fork(&self) -> Self {
        Self { at_rest: false, ..self.clone() }
    }

    /// Most memory, in bytes, of a monitor whose guest was copied `copies` times: what the guest writes after that comes on
    /// top of what its copies share with it.
    fn memory_max_bytes(&self, copies: u64) -> u64 {
        let guest_mib = self.memory_mib.saturating_mul(copies.saturating_add(1));
        let all_mib = guest_mib.saturating_add(guest_mib / PAGE_TABLE_SHARE).saturating_add(OVERHEAD_MIB);
        all_mib.saturating_mul(1 << 20)
    }

    /// What is written into which file, if its controller is there. Nothing that is as the kernel has it anyhow: every
    /// group weighs 100, for processor and disk.
    fn settings(&self) -> Vec<(Controller, &'static str, String)> {
        let mut all = vec![
            (Controller::Memory, "memory.max", self.memory_max_bytes(0).to_string()),
            // A guest's memory on disk would be slow, and readable there later.
            (Controller::Memory, "memory.swap.max", "0".to_owned()),
            // Half a monitor is of no use.
            (Controller::Memory, "memory.oom.group", "1".to_owned()),
            (Controller::Pids, "pids.max", self.cpus.saturating_add(SPARE_PROCESSES).to_string()),
        ];
        if self.at_rest {
            return all;
        }
        if let Some(percent) = self.cpu_percent {
            let quota_us = u64::from(percent) * CPU_PERIOD_US / 100;
            all.push((Controller::Cpu, "cpu.max", format!("{quota_us} {CPU_PERIOD_US}")));
        }
        if let Some((device, bytes)) = &self.io {
            all.push((Controller::Io, "io.max", format!("{device} rbps={bytes} wbps={bytes}")));
        }
        all
    }

    /// A sandbox goes without what nobody asked for.
    fn tolerate<T>(&self, made: Result<T, GroupError>) -> Result<Option<T>, GroupError> {
        match made {
            Ok(group) => Ok(Some(group)),
            Err(error) if self.asked().next().is_some() => Err(error),
            Err(error) => {
                tell(&error);
                Ok(None)
            }
        }
    }

    /// Controllers without which a limit that was asked for would not hold.
    fn asked(&self) -> impl Iterator<Item = Controller> {
        let cpu = self.cpu_percent.map(|_| Controller::Cpu);
        cpu.into_iter().chain(self.io.as_ref().map(|_| Controller::Io))
    }
}

/// Why a monitor has no group.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The machine gives none.
    #[error("{0}; what helps: {remedy}", remedy = .0.remedy())]
    Missing(Missing),
    /// A limit was asked for that the machine cannot keep.
    #[error("the control groups in {dir} are without the controller {controller}; what helps: {DELEGATE}")]
    Without {
        /// The group that is divided.
        dir: PathBuf,
        /// What is not there.
        controller: Controller,
    },
    /// A limit of disks was asked for where the disks are not the place's own.
    #[error("an emulated host has no disk of its own that could be limited; leave --io-limit out")]
    NoDisk,
    /// The kernel refused.
    #[error("{action} the control group {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The group, or its file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl From<Missing> for GroupError {
    fn from(missing: Missing) -> Self {
        Self::Missing(missing)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GroupError {
    let path = path.to_path_buf();
    move |source| GroupError::Io { action, path, source }
}

/// The groups that a monitor, or a resident, answers for, and removes when it is gone.
#[derive(Debug)]
pub(crate) struct Quarters {
    allowance: Allowance,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Where it lives. A resident that a running monitor has made of itself begins in that one's.
    home: Option<Arc<Group>>,
    /// Where the next fork of a resident will be born; the resident is there already.
    next: Option<Arc<Group>>,
    /// Where the first process of its jail is, if not at home: that one stays until the last of them has gone.
    jail: Option<Arc<Group>>,
    /// The resident itself, once it was looked for: the one process at home that is nobody's parent there, unless it is known.
    resident: Option<Arc<OwnedFd>>,
    /// How often it was copied while it ran.
    copies: u64,
}

impl Quarters {
    /// A group for a monitor that is about to be started. Where the machine gives none there is none in it, unless a limit
    /// was asked for.
    ///
    /// # Errors
    /// [`GroupError`], if something was asked for.
    pub(crate) fn make(allowance: Allowance) -> Result<Arc<Self>, GroupError> {
        let made = base().and_then(|base| Group::make(base, &allowance));
        let home = allowance.tolerate(made)?.map(Arc::new);
        Ok(Self::new(allowance, State { home, ..State::default() }))
    }

    /// No group at all.
    #[cfg(test)]
    pub(crate) fn none() -> Arc<Self> {
        Self::new(Allowance::default(), State::default())
    }

    /// Of a process that the monitor has made of itself: so far it lives in the same group.
    pub(crate) fn of_copy(&self) -> Arc<Self> {
        let jail = self.jail();
        let home = self.state().home.clone();
        Self::new(self.allowance.clone(), State { home, jail, ..State::default() })
    }

    fn new(allowance: Allowance, state: State) -> Arc<Self> {
        Arc::new(Self { allowance, state: Mutex::new(state) })
    }

    /// Where the first process is of the jail that it shares with all who come of it.
    fn jail(&self) -> Option<Arc<Group>> {
        let state = self.state();
        state.jail.as_ref().or(state.home.as_ref()).map(Arc::clone)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group's directory, if there is one.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        let state = self.state();
        state.home.as_ref().or(state.next.as_ref()).map(|group| group.path().to_owned())
    }

    /// Puts a child of this process, which has not been waited for, into the group.
    ///
    /// # Errors
    /// [`GroupError::Io`], if something was asked for.
    pub(crate) fn take_in(&self, child: u32) -> Result<(), GroupError> {
        let mut state = self.state();
        let Some(home) = state.home.take() else { return Ok(()) };
        state.home = self.allowance.tolerate(home.take_in(child).map(|()| home))?;
        Ok(())
    }

    /// Allows for what a running guest will write while a copy of it that is about to be made keeps what was there.
    pub(crate) fn grow(&self) {
        let mut state = self.state();
        state.copies += 1;
        let most_bytes = self.allowance.memory_max_bytes(state.copies);
        if let Some(home) = &state.home {
            home.allow_memory(most_bytes);
        }
    }

    /// Whether [`Quarters::prepare`] has something to do.
    pub(crate) fn is_unprepared(&self) -> bool {
        base().is_ok() && self.state().next.is_none()
    }

    /// Makes the group in which the next fork of a resident will be born, and moves the resident there, unless that has been
    /// done. Half a dozen system calls. `known` is the resident, where a monitor has made it of itself.
    ///
    /// # Errors
    /// [`GroupError`], if something was asked for.
    pub(crate) fn prepare(&self, known: Option<OwnedFd>) -> Result<(), GroupError> {
        let resident = {
            let mut state = self.state();
            if state.next.is_some() {
                return Ok(());
            }
            if state.resident.is_none() {
                // At the home of whom a copy was made of there are others.
                let own_home = state.home.as_ref().filter(|_| state.jail.is_none());
                state.resident = known.or_else(|| own_home?.leaf()).map(Arc::new);
            }
            state.resident.clone()
        };
        let Some(resident) = resident else { return Ok(()) };
        let made = base().and_then(|base| {
            let group = Group::make(base, &self.allowance.of_fork())?;
            group.move_in(&resident).map(|()| group)
        });
        let mut state = self.state();
        if let (Err(_), Some(home)) = (&made, &state.home) {
            // Where it is now is the group of the fork before, which goes with that fork.
            let _ = home.move_in(&resident);
        }
        state.next = self.allowance.tolerate(made)?.map(Arc::new);
        Ok(())
    }

    /// The quarters of a fork that was born where the resident was. The resident has to leave them.
    pub(crate) fn hand_over(&self) -> Arc<Self> {
        let jail = self.jail();
        let home = self.state().next.take();
        Self::new(self.allowance.of_fork(), State { home, jail, ..State::default() })
    }

    /// Removes each group, once those who lived there have gone; one that others live in as well goes with the last of them.
    pub(crate) async fn clear(&self) {
        let State { home, next, jail, .. } = std::mem::take(&mut *self.state());
        for group in [next, home, jail].into_iter().flatten().filter_map(Arc::into_inner) {
            group.remove().await;
        }
    }
}

/// What a group's processes have of the machine at the moment, as far as its controllers count it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The group's directory.
    pub path: PathBuf,
    /// Memory of them and for them, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Processor time so far, in microseconds.
    pub cpu_us: Option<u64>,
    /// How often one of them was ended for want of memory.
    pub oom_kills: Option<u64>,
    /// Groups of other sandboxes beside it.
    pub beside: usize,
}

impl Usage {
    /// Of the group with this directory; `None` when there is none.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let read = |name: &str| std::fs::read_to_string(path.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse().ok();
        let field = |name: &str, key: &str| {
            let text = read(name)?;
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?.parse().ok()
        };
        path.join("cgroup.procs").exists().then(|| Self {
            path: path.to_owned(),
            memory_bytes: number("memory.current"),
            processes: number("pids.current"),
            cpu_us: field("cpu.stat", "usage_usec"),
            oom_kills: field("memory.events", "oom_kill"),
            beside: group::beside(path),
        })
    }
}

/// The block device that a file is on, as `major:minor`; of a partition the disk that it is a part of.
///
/// # Errors
/// [`GroupError::Io`] when the file system has none of its own: one in memory, over several, over another file system.
pub(crate) fn device_of(file: &Path) -> Result<String, GroupError> {
    let number = std::fs::metadata(file).map_err(failed("limiting the disk of", file))?.dev();
    let name = |number| format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let device = Path::new("/sys/dev/block").join(name(number));
    let dir = device.canonicalize().map_err(failed("finding the block device below", file))?;
    if !dir.join("partition").exists() {
        return Ok(name(number));
    }
    let disk = dir.join("../dev");
    Ok(std::fs::read_to_string(&disk).map_err(failed("finding the disk below", file))?.trim().to_owned())
}

/// Once for each process: a pool would say it a thousand times.
fn tell(error: &GroupError) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    if let GroupError::Missing(missing) = error {
        tracing::debug!(%missing, "sandboxes run without control groups");
        return;
    }
    TOLD.call_once(
        || tracing::warn!(%error, source = ?std::error::Error::source(error), "a sandbox without a control group"),
    );
}

#[cfg(test)]
mod tests;
