// SPDX-License-Identifier: Apache-2.0
//! A resident: a monitor without a VM, which holds one at rest and makes forks of it.
//!
//! It comes from a running VM ([`Reach::freeze`]) or from the files of a snapshot ([`Place::hold`]). Forks do not
//! need it any more once they are made.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch as channel};

use super::native;
use super::place::{Remote, allowance, allowance_there, emulated, line};
use super::reach::{Reach, Way};
use super::twin::Twin;
use super::watch::{Clock, Heard, gone, listen};
use super::{Dialer, End, Life, Monitor, MonitorError, Place, VmmConfig};
use crate::doorman;
use crate::groups::Quarters;
use crate::orders::{self, Answer, Order, OrderError, Orders, PROMPT, Pause, SAVING};
use crate::timeline::Recorder;

/// Where a snapshot is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFiles {
    /// CPUs and devices.
    pub state: PathBuf,
    /// Guest memory.
    pub memory: PathBuf,
    /// The changed pages of each disk that has some, in order.
    pub layers: Vec<PathBuf>,
}

impl SnapshotFiles {
    /// All of them, in the order in which a monitor writes them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.state, &self.memory].into_iter().chain(&self.layers)
    }
}

/// A resident. Dropping it ends it; its forks run on.
#[derive(Debug)]
pub struct Resident {
    place: Place,
    life: ResidentLife,
    recorder: Recorder,
    ended: channel::Receiver<Option<Arc<End>>>,
    /// Where its forks are born, where this machine has control groups.
    quarters: Option<Arc<Quarters>>,
    /// One fork at a time: each is born where the resident is.
    turn: Mutex<()>,
}

/// What a resident says when it takes orders.
const READY_STAGE: &str = "resident";

#[derive(Debug)]
enum ResidentLife {
    /// Made by a monitor of ours.
    Twin(Twin),
    /// A child of ours.
    Child(native::Process),
    /// On an emulated host, under this name.
    Remote(Remote),
}

pub(super) fn refused(action: &'static str) -> impl Fn(OrderError) -> MonitorError {
    move |source| MonitorError::Order { action, source }
}

fn local(action: &'static str) -> impl Fn(std::io::Error) -> MonitorError {
    move |source| MonitorError::Order { action, source: source.into() }
}

/// Nobody takes orders any more.
pub(super) fn gone_already(action: &'static str) -> impl Fn() -> MonitorError {
    move || local(action)(std::io::ErrorKind::NotConnected.into())
}

/// An answer to another order.
pub(super) fn unexpected(action: &'static str, answer: &Answer) -> MonitorError {
    refused(action)(OrderError::Unexpected { answer: format!("{answer:?}") })
}

impl Reach {
    /// Has the monitor stand still and twin itself into a resident called `id`; the VM goes on. Its agent must have
    /// brought everything in the guest to a stand before. Whoever keeps it longer than the monitor calls
    /// `Resident::prepare`.
    ///
    /// # Errors
    /// [`MonitorError::Order`] when the monitor refuses, as it does unless it was started to be forked.
    pub async fn freeze(&self, id: &str) -> Result<(Resident, Pause), MonitorError> {
        const ACTION: &str = "freezing the VM";
        let (place, silent) = (self.place.clone(), Recorder::new());
        let orders = match &self.way {
            Way::Here(orders) => orders,
            Way::There(host, own_id) => {
                let (monitor, pause) = host.freeze(own_id, id).await.map_err(emulated("freeze a VM"))?;
                let (remote, heard) = Remote::new(host, id, monitor, &silent, None);
                return Ok((Resident::new(place, ResidentLife::Remote(remote), silent, heard, None), pause));
            }
        };
        let (near, far) = orders::streams().map_err(local(ACTION))?;
        if let Some(quarters) = &self.quarters {
            quarters.grow();
        }
        let answer = orders.order(&Order::Freeze {}, &far.descriptors(), PROMPT).await;
        let (process, pause) = match answer.map_err(refused(ACTION))? {
            (Answer::Frozen { pause }, process) => (process, pause),
            (other, _) => return Err(unexpected(ACTION, &other)),
        };
        let twin = Twin::new(process, Arc::new(near.orders)).map_err(local(ACTION))?;
        let quarters = self.quarters.as_ref().map(|quarters| quarters.of_copy());
        let streams = (near.events, near.stderr);
        let heard = listen(streams, twin.gone(), &silent, Clock::Ours, None, quarters.as_ref());
        Ok((Resident::new(place, ResidentLife::Twin(twin), silent, heard, quarters), pause))
    }
}

impl Place {
    /// Starts a resident called `id` over the snapshot that `config` names. It takes orders once it is
    /// [`ready`](Resident::ready).
    ///
    /// # Errors
    /// As for [`Place::spawn`].
    pub async fn hold(&self, id: &str, config: &VmmConfig, recorder: &Recorder) -> Result<Resident, MonitorError> {
        match self {
            Self::Native { vmm, allow_missing, share } => {
                let text = line(&config.allowing(allow_missing))
                    .map_err(|source| MonitorError::Spawn { path: vmm.clone(), source })?;
                let quarters = Quarters::make(allowance(config, share)?)?;
                let native::Spawned { process, events, stderr, status } = native::spawn(vmm, &text, &quarters)?;
                let heard = listen((events, stderr), gone(status), recorder, Clock::Ours, None, Some(&quarters));
                let life = ResidentLife::Child(process);
                Ok(Resident::new(self.clone(), life, recorder.clone(), heard, Some(quarters)))
            }
            Self::Emulated(host, share) => {
                let text = line(config)
                    .map_err(|source| MonitorError::Emulated { action: "start a resident", source: source.into() })?;
                let allowance = allowance_there(config, share)?;
                let monitor = host.spawn(id, &text, allowance).await.map_err(emulated("start a resident"))?;
                let (remote, heard) = Remote::new(host, id, monitor, recorder, None);
                Ok(Resident::new(self.clone(), ResidentLife::Remote(remote), recorder.clone(), heard, None))
            }
        }
    }
}

impl Resident {
    fn new(
        place: Place,
        life: ResidentLife,
        recorder: Recorder,
        Heard { ended, .. }: Heard,
        quarters: Option<Arc<Quarters>>,
    ) -> Self {
        Self { place, life, recorder, ended, quarters, turn: Mutex::default() }
    }

    /// Its control group's directory, where it is one of this machine.
    #[must_use]
    pub fn group(&self) -> Option<PathBuf> {
        self.quarters.as_ref()?.path()
    }

    /// Has the next fork's group made, and the resident moved there, if it is not yet: what is born next is born there. Until
    /// then one that a running monitor has made is in that one's group, which goes with that one.
    pub(crate) async fn prepare(&self) -> Result<(), MonitorError> {
        let Some(quarters) = self.quarters.as_ref().filter(|quarters| quarters.is_unprepared()) else { return Ok(()) };
        let twin = match &self.life {
            ResidentLife::Twin(twin) => twin.process(),
            ResidentLife::Child(_) | ResidentLife::Remote(_) => None,
        };
        let quarters = Arc::clone(quarters);
        // On most kernels moving a process waits for all processors.
        let done = tokio::task::spawn_blocking(move || quarters.prepare(twin)).await;
        Ok(done.unwrap_or(Ok(()))?)
    }

    /// Where it is, and its forks will be.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Waits until it takes orders, at most `limit`.
    ///
    /// # Errors
    /// Its end: a snapshot that cannot be used, mostly.
    pub async fn ready(&self, limit: Duration) -> Result<(), Arc<End>> {
        super::reached(self.ended.clone(), READY_STAGE, &self.recorder, limit).await
    }

    /// Its process id, where it is a process of this machine.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &self.life {
            ResidentLife::Twin(twin) => twin.pid(),
            ResidentLife::Child(process) => Some(process.pid()),
            ResidentLife::Remote(_) => None,
        }
    }

    /// Where it takes orders, where it is a process of this machine.
    fn orders(&self) -> Option<Arc<Orders>> {
        match &self.life {
            ResidentLife::Twin(twin) => Some(twin.orders()),
            ResidentLife::Child(process) => process.orders(),
            ResidentLife::Remote(_) => None,
        }
    }

    /// Makes a VM called `id`, whose vsock's Unix socket will be `socket`. Its agent waits to be resumed.
    ///
    /// # Errors
    /// [`MonitorError::Order`] when the resident refuses or is gone, [`MonitorError::Listen`].
    pub async fn fork(&self, id: &str, socket: &Path, recorder: &Recorder) -> Result<Monitor, MonitorError> {
        const ACTION: &str = "forking a VM";
        recorder.note("fork");
        let dialer = Dialer::new(self.place.clone(), id, socket);
        if let ResidentLife::Remote(remote) = &self.life {
            let host = remote.host();
            let monitor = host.fork(remote.id(), id).await.map_err(emulated("fork a VM"))?;
            let (remote, Heard { ended, reaped }) = Remote::new(host, id, monitor, recorder, None);
            return Ok(Monitor { dialer, ended, reaped, life: Life::Remote(remote), quarters: None });
        }
        let _turn = self.turn.lock().await;
        self.prepare().await?;
        recorder.note("group");
        let orders = self.orders().ok_or_else(gone_already(ACTION))?;
        let listener =
            UnixListener::bind(socket).map_err(|source| MonitorError::Listen { path: socket.to_owned(), source })?;
        let (near, far) = orders::streams().map_err(local(ACTION))?;
        let line = doorman::attend(socket.to_owned()).map_err(local(ACTION))?;
        let [control, events, stderr] = far.descriptors();
        let order = Order::Fork { uds: socket.to_owned() };
        let answer = orders.order(&order, &[control, events, stderr, listener.as_fd(), line.as_fd()], PROMPT).await;
        let process = match answer.map_err(refused(ACTION))? {
            (Answer::Forked {}, process) => process,
            (other, _) => return Err(unexpected(ACTION, &other)),
        };
        let twin = Twin::new(process, Arc::new(near.orders)).map_err(local(ACTION))?;
        let quarters = self.quarters.as_ref().map(|quarters| quarters.hand_over());
        let streams = (near.events, near.stderr);
        let Heard { ended, reaped } = listen(streams, twin.gone(), recorder, Clock::Ours, None, quarters.as_ref());
        let monitor = Monitor { dialer, ended, reaped, life: Life::Twin(twin), quarters };
        // While the fork comes up. Before a command runs in it the resident must be out of its group: what ends one for want
        // of memory ends all.
        self.prepare().await?;
        Ok(monitor)
    }

    /// Writes what it holds into new files. Returns the bytes of memory that were not zero.
    ///
    /// # Errors
    /// [`MonitorError::Order`]: a file cannot be made, the disk is full.
    pub async fn save(&self, files: &SnapshotFiles) -> Result<u64, MonitorError> {
        const ACTION: &str = "writing the snapshot";
        if let ResidentLife::Remote(remote) = &self.life {
            let files: Vec<PathBuf> = files.all().cloned().collect();
            return remote.host().save(remote.id(), &files).await.map_err(emulated("write a snapshot"));
        }
        let orders = self.orders().ok_or_else(gone_already(ACTION))?;
        // A guest's memory is its user's own.
        let private = |path| File::options().write(true).create_new(true).mode(0o600).open(path);
        let made: Result<Vec<File>, _> = files.all().map(private).collect();
        let made = made.map_err(local(ACTION))?;
        let descriptors: Vec<_> = made.iter().map(AsFd::as_fd).collect();
        match orders.order(&Order::Save {}, &descriptors, SAVING).await.map_err(refused(ACTION))? {
            (Answer::Saved { memory_bytes }, _) => Ok(memory_bytes),
            (other, _) => Err(unexpected(ACTION, &other)),
        }
    }
}
