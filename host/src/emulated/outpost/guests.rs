// SPDX-License-Identifier: Apache-2.0
//! The monitors of an emulated host and their sockets, by the sandbox's id.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, pidfd_send_signal, waitpid};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use super::super::wire::{RUN_DIR, is_id, socket};
use super::Outpost;
use crate::groups::Quarters;
use crate::orders::Orders;

/// Every sandbox that is known: it runs, or somebody listens for it.
#[derive(Debug, Default)]
pub(super) struct Guests {
    by_id: RefCell<HashMap<String, Guest>>,
}

#[derive(Debug, Default)]
struct Guest {
    /// Its monitor, once spawned, while it was there to be seen.
    life: Option<Life>,
    /// Where its monitor takes orders, once spawned.
    orders: Option<Rc<Orders>>,
    /// Its control group.
    quarters: Option<Arc<Quarters>>,
    listeners: HashMap<u32, Rc<UnixListener>>,
}

/// How a monitor is known.
#[derive(Debug, Clone)]
pub(super) enum Life {
    /// A child, by its number.
    Child(u32),
    /// A process that a monitor has made, by a descriptor.
    Twin(Rc<AsyncFd<OwnedFd>>),
}

impl Life {
    fn child(&self) -> Option<Pid> {
        match self {
            Self::Child(pid) => Pid::from_raw(pid.cast_signed()),
            Self::Twin(_) => None,
        }
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match self {
            Self::Twin(process) => Ok(pidfd_send_signal(process.get_ref(), signal)?),
            Self::Child(_) => Ok(kill_process(self.child().ok_or(io::ErrorKind::NotFound)?, signal)?),
        }
    }
}

impl Guests {
    /// Makes the directory of a sandbox that does not run yet.
    pub(super) fn prepare(&self, id: &str) -> io::Result<()> {
        if self.by_id.borrow().get(id).is_some_and(|guest| guest.orders.is_some()) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("sandbox {id:?} runs already")));
        }
        self.directory(id).map(drop)
    }

    /// Notes the monitor of a prepared sandbox.
    pub(super) fn started(&self, id: &str, life: Option<Life>, orders: Rc<Orders>, quarters: Arc<Quarters>) {
        let mut guests = self.by_id.borrow_mut();
        let guest = guests.entry(id.to_owned()).or_default();
        guest.life = life;
        guest.orders = Some(orders);
        guest.quarters = Some(quarters);
    }

    /// Where the monitor of a sandbox lives.
    pub(super) fn quarters(&self, id: &str) -> io::Result<Arc<Quarters>> {
        let quarters = self.by_id.borrow().get(id).and_then(|guest| guest.quarters.clone());
        quarters.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no sandbox {id:?} runs")))
    }

    /// The process of a sandbox, where a monitor has made it.
    pub(super) fn twin(&self, id: &str) -> Option<OwnedFd> {
        match self.by_id.borrow().get(id)?.life.as_ref()? {
            Life::Child(_) => None,
            Life::Twin(process) => process.get_ref().try_clone().ok(),
        }
    }

    /// Where the monitor of a sandbox takes orders.
    pub(super) fn orders(&self, id: &str) -> io::Result<Rc<Orders>> {
        let orders = self.by_id.borrow().get(id).and_then(|guest| guest.orders.clone());
        orders.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no sandbox {id:?} runs")))
    }

    /// Forgets a sandbox, its sockets and its files; its control group goes as soon as its processes have.
    pub(super) fn ended(&self, id: &str) {
        let guest = self.by_id.borrow_mut().remove(id);
        if let Some(quarters) = guest.and_then(|guest| guest.quarters).filter(|quarters| quarters.path().is_some()) {
            tokio::task::spawn_local(async move { quarters.clear().await });
        }
        // What is left in it cannot be reached by anybody; the next sandbox of that name would find it in its way.
        let _ = fs::remove_dir_all(Path::new(RUN_DIR).join(id));
    }

    /// The listener for a port, bound now if it is not yet.
    pub(super) fn listener(&self, id: &str, port: u32) -> io::Result<Rc<UnixListener>> {
        self.directory(id)?;
        let mut guests = self.by_id.borrow_mut();
        let guest = guests.entry(id.to_owned()).or_default();
        if let Some(listener) = guest.listeners.get(&port) {
            return Ok(Rc::clone(listener));
        }
        let listener = Rc::new(UnixListener::bind(format!("{}_{port}", socket(id)))?);
        guest.listeners.insert(port, Rc::clone(&listener));
        Ok(listener)
    }

    /// Signals the monitor of a sandbox.
    pub(super) fn signal(&self, id: &str, number: i32) -> io::Result<()> {
        let life = self.by_id.borrow().get(id).and_then(|guest| guest.life.clone());
        let life = life.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no sandbox {id:?} runs")))?;
        let signal = Signal::from_named_raw(number)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{number} is not a signal")))?;
        life.signal(signal)
    }

    /// Kills every monitor.
    pub(super) fn kill_all(&self) {
        for life in self.by_id.borrow().values().filter_map(|guest| guest.life.as_ref()) {
            // It has ended already, then.
            let _ = life.signal(Signal::KILL);
        }
    }

    /// Whether this is the monitor of a sandbox, whose end is waited for by whoever spawned it.
    fn is_monitor(&self, pid: Pid) -> bool {
        self.by_id.borrow().values().any(|guest| guest.life.as_ref().and_then(Life::child) == Some(pid))
    }

    fn directory(&self, id: &str) -> io::Result<PathBuf> {
        if !is_id(id) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{id:?} is not a sandbox's id")));
        }
        let dir = Path::new(RUN_DIR).join(id);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// Reaps what monitors leave behind, and only that: how a monitor ended is for its conversation to tell.
pub(super) async fn reap_orphans(outpost: Rc<Outpost>) {
    let Ok(mut children) = signal(SignalKind::child()) else { return };
    while children.recv().await.is_some() {
        for pid in zombies(Path::new("/proc")).into_iter().filter(|pid| !outpost.guests.is_monitor(*pid)) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Children of PID 1 that have ended and were not waited for.
fn zombies(proc: &Path) -> Vec<Pid> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| fs::read_to_string(proc.join(format!("{pid}/stat"))).is_ok_and(|stat| is_zombie_of_init(&stat)))
        .filter_map(Pid::from_raw)
        .collect()
}

/// `/proc/<pid>/stat`: pid, name in parentheses (which may hold anything), state, parent.
fn is_zombie_of_init(stat: &str) -> bool {
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut fields = after_name.split(' ');
    fields.next() == Some("Z") && fields.next() == Some("1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zombies_of_the_first_process_are_known_by_state_and_parent() {
        assert!(is_zombie_of_init("12 (sh) Z 1 1 1 0 -1"));
        assert!(is_zombie_of_init("12 (a) Z 9 (x) Z 1 1"));
        for other in ["12 (sh) S 1 1", "12 (sh) Z 7 1", "12 (sh) Z", "", "12 (Z 1"] {
            assert!(!is_zombie_of_init(other), "{other}");
        }
    }

    #[test]
    fn zombies_are_read_from_a_proc_tree() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, stat) in [("7", "7 (a) Z 1 0"), ("8", "8 (b) R 1 0"), ("self", "9 (c) Z 1 0")] {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("stat"), stat).unwrap();
        }
        fs::create_dir(proc.path().join("10")).unwrap();
        assert_eq!(zombies(proc.path()), [Pid::from_raw(7).unwrap()]);
    }

    /// To nobody.
    fn orders() -> Rc<Orders> {
        Rc::new(Orders::pair().unwrap().0)
    }

    #[tokio::test]
    async fn sandbox_that_does_not_run_cannot_be_signalled() {
        let guests = Guests::default();
        assert_eq!(guests.signal("a", 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        guests.started("a", Some(Life::Child(std::process::id())), orders(), Quarters::none());
        assert_eq!(guests.signal("a", 0xffff).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn ids_with_paths_in_them_make_no_directory() {
        let guests = Guests::default();
        for id in ["../x", "", "a/b"] {
            assert_eq!(guests.prepare(id).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(guests.listener(id, 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[tokio::test]
    async fn monitors_are_no_orphans() {
        let guests = Guests::default();
        guests.started("a", Some(Life::Child(7)), orders(), Quarters::none());
        assert!(guests.is_monitor(Pid::from_raw(7).unwrap()) && !guests.is_monitor(Pid::from_raw(8).unwrap()));
        guests.ended("a");
        assert!(!guests.is_monitor(Pid::from_raw(7).unwrap()));
    }

    #[tokio::test]
    async fn running_sandbox_is_not_prepared_twice() {
        let guests = Guests::default();
        guests.started("a", Some(Life::Child(1)), orders(), Quarters::none());
        assert_eq!(guests.prepare("a").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
