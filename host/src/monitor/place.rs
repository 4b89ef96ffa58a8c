// SPDX-License-Identifier: Apache-2.0
//! Where VMs run: on this machine's KVM, or in an emulated host. Above this file nobody can tell.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::watch as channel;

use super::watch::{Clock, Outlets, watch};
use super::{ConsoleSender, Life, Monitor, MonitorError, Stream, VmmConfig, native, stream};
use crate::timeline::Recorder;

/// Where VMs run.
#[derive(Debug, Clone)]
pub enum Place {
    /// On this machine.
    Native {
        /// The `midge-vmm` binary.
        vmm: PathBuf,
    },
}

/// Awaits connections from the guest to one port of its host.
#[derive(Debug)]
pub struct Listener {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Unix(UnixListener),
}

impl Listener {
    /// The guest's next connection.
    ///
    /// # Errors
    /// When the listening socket fails.
    pub async fn accept(&mut self) -> std::io::Result<Stream> {
        match &mut self.inner {
            Inner::Unix(listener) => Ok(listener.accept().await?.0.into()),
        }
    }
}

impl Place {
    /// Listens for the guest's connections to `port` of its host. Comes before [`Place::spawn`], so that
    /// the guest never finds the port closed. `socket` is the vsock's Unix socket of the sandbox `id`.
    ///
    /// # Errors
    /// [`MonitorError::Listen`] when the socket cannot be made.
    pub async fn listen(&self, id: &str, socket: &Path, port: u32) -> Result<Listener, MonitorError> {
        tracing::trace!(id, port, "listening for the guest");
        match self {
            Self::Native { .. } => {
                let mut path = socket.as_os_str().to_owned();
                path.push(format!("_{port}"));
                let listener =
                    UnixListener::bind(&path).map_err(|source| MonitorError::Listen { path: path.into(), source })?;
                Ok(Listener { inner: Inner::Unix(listener) })
            }
        }
    }

    /// Starts a monitor for the sandbox `id`, whose vsock's Unix socket is `socket`.
    ///
    /// # Errors
    /// [`MonitorError::Missing`] and [`MonitorError::Spawn`]; what goes wrong later is an [`super::End`].
    pub async fn spawn(
        &self,
        id: &str,
        socket: &Path,
        config: &VmmConfig,
        recorder: &Recorder,
        console: Option<ConsoleSender>,
    ) -> Result<Monitor, MonitorError> {
        let (ended_sender, ended) = channel::channel(None);
        let (reaped_sender, reaped) = channel::channel(false);
        let outlets =
            |clock| Outlets { recorder: recorder.clone(), clock, console, ended: ended_sender, reaped: reaped_sender };
        recorder.note("spawn");
        let life = match self {
            Self::Native { vmm } => {
                let line = config
                    .to_line()
                    .map_err(|error| MonitorError::Spawn { path: vmm.clone(), source: error.into() })?;
                let native::Spawned { process, events, stderr, status } = native::spawn(vmm, &line)?;
                let status = async move { status.await.ok() };
                tokio::spawn(watch(events, stderr, status, outlets(Clock::Ours)));
                Life::Native(process)
            }
        };
        let dialer = Dialer::new(self.clone(), id, socket);
        Ok(Monitor { dialer, ended, reaped, life })
    }
}

/// Opens streams to the ports of one guest; cheap to clone.
#[derive(Debug, Clone)]
pub struct Dialer {
    place: Place,
    id: Arc<str>,
    socket: Arc<Path>,
}

impl Dialer {
    /// For the sandbox `id` at `place`, whose vsock's Unix socket is `socket`.
    #[must_use]
    pub fn new(place: Place, id: &str, socket: &Path) -> Self {
        Self { place, id: id.into(), socket: socket.into() }
    }

    /// Opens a stream to a port on which something in the guest listens.
    ///
    /// # Errors
    /// [`MonitorError::Connect`], with `ConnectionRefused` when nothing listens there.
    pub async fn connect(&self, port: u32) -> Result<Stream, MonitorError> {
        tracing::trace!(id = %self.id, port, "connecting to the guest");
        match &self.place {
            Place::Native { .. } => {
                let connected = stream::connect_unix(&self.socket, port).await;
                Ok(connected.map_err(|source| MonitorError::Connect { port, source })?.into())
            }
        }
    }
}
