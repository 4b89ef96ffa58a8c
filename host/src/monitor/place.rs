// SPDX-License-Identifier: Apache-2.0
//! Where VMs run: on this machine's KVM, or in an emulated host. Above this file nobody can tell.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::net::tcp::OwnedWriteHalf;

use super::watch::{Clock, Heard, gone, listen};
use super::{ConsoleSender, Inbound, Life, Monitor, MonitorError, Stream, VmmConfig, native, stream};
use crate::emulated::{EmulatedError, EmulatedHost, RemoteListener, RemoteMonitor};
use crate::groups::{self, Allowance, GroupError, Quarters, Share};
use crate::timeline::Recorder;

/// How long a monitor may take to connect a conversation to its guest: far more than a guest takes that is busy.
const CONNECTED: Duration = Duration::from_secs(60);

/// Where VMs run.
#[derive(Debug, Clone)]
pub enum Place {
    /// On this machine.
    Native {
        /// The `midge-vmm` binary.
        vmm: PathBuf,
        /// Parts of its jail that the machine need not give, by the monitor's names.
        allow_missing: Vec<String>,
        /// What each sandbox may have of the machine.
        share: Share,
    },
    /// In an emulated host, which may be shared, and what each sandbox may have of that.
    Emulated(Arc<EmulatedHost>, Share),
}

/// Awaits connections from the guest to one port of its host.
#[derive(Debug)]
pub struct Listener {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Unix(UnixListener),
    Remote(RemoteListener),
}

impl Listener {
    /// The guest's next connection.
    ///
    /// # Errors
    /// When the listening socket fails.
    pub async fn accept(&mut self) -> std::io::Result<Inbound> {
        match &mut self.inner {
            Inner::Unix(listener) => Ok(listener.accept().await?.0.into()),
            Inner::Remote(listener) => Ok(listener.accept().await?.into()),
        }
    }
}

impl Place {
    /// `native` or `emulated`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Native { .. } => "native",
            Self::Emulated(..) => "emulated",
        }
    }

    /// Whether time passes there many times slower.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        matches!(self, Self::Emulated(..))
    }

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
                // Of a listener that was dropped; nobody else writes there.
                let _ = std::fs::remove_file(&path);
                let listener =
                    UnixListener::bind(&path).map_err(|source| MonitorError::Listen { path: path.into(), source })?;
                Ok(Listener { inner: Inner::Unix(listener) })
            }
            Self::Emulated(host, _) => {
                let listener = host.listen(id, port).await.map_err(emulated("listen for the guest"))?;
                Ok(Listener { inner: Inner::Remote(listener) })
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
        recorder.note("spawn");
        let mut quarters = None;
        let (life, Heard { ended, reaped }) = match self {
            Self::Native { vmm, allow_missing, share } => {
                let line = line(&config.allowing(allow_missing))
                    .map_err(|source| MonitorError::Spawn { path: vmm.clone(), source })?;
                let quarters = quarters.insert(Quarters::make(allowance(config, share)?)?);
                recorder.note("group");
                let native::Spawned { process, events, stderr, status } = native::spawn(vmm, &line, quarters)?;
                let heard = listen((events, stderr), gone(status), recorder, Clock::Ours, console, Some(quarters));
                (Life::Native(process), heard)
            }
            Self::Emulated(host, share) => {
                let start = "start a monitor";
                let line =
                    line(config).map_err(|source| MonitorError::Emulated { action: start, source: source.into() })?;
                let allowance = allowance_there(config, share)?;
                let monitor = host.spawn(id, &line, allowance).await.map_err(emulated(start))?;
                let (remote, heard) = Remote::new(host, id, monitor, recorder, console);
                (Life::Remote(remote), heard)
            }
        };
        let dialer = Dialer::new(self.clone(), id, socket);
        Ok(Monitor { dialer, ended, reaped, life, quarters })
    }
}

/// The limits of a monitor in an emulated host, whose files are all this machine's.
pub(super) fn allowance_there(config: &VmmConfig, share: &Share) -> Result<Allowance, MonitorError> {
    if share.io_mib_s.is_some() {
        return Err(GroupError::NoDisk.into());
    }
    Ok(config.allowance(share, None))
}

/// The limits of a monitor on this machine.
pub(super) fn allowance(config: &VmmConfig, share: &Share) -> Result<Allowance, MonitorError> {
    let is_asked = share.io_mib_s.is_some();
    let device = config.disk_file().filter(|_| is_asked).map(groups::device_of).transpose()?;
    Ok(config.allowance(share, device))
}

pub(super) fn line(config: &VmmConfig) -> std::io::Result<String> {
    config.to_line().map_err(std::io::Error::other)
}

pub(super) fn emulated(action: &'static str) -> impl FnOnce(EmulatedError) -> MonitorError {
    move |error| MonitorError::Emulated { action, source: error.into() }
}

/// A monitor on an emulated host. It ends with its lifeline, and with the host.
#[derive(Debug)]
pub(super) struct Remote {
    host: Arc<EmulatedHost>,
    id: String,
    lifeline: Option<OwnedWriteHalf>,
}

impl Remote {
    /// Takes over a monitor that was made on `host` under this name, and listens to it.
    pub(super) fn new(
        host: &Arc<EmulatedHost>,
        id: &str,
        monitor: RemoteMonitor,
        recorder: &Recorder,
        console: Option<ConsoleSender>,
    ) -> (Self, Heard) {
        let RemoteMonitor { events, stderr, status, lifeline } = monitor;
        let heard = listen((events, stderr), gone(status), recorder, Clock::Foreign, console, None);
        (Self { host: Arc::clone(host), id: id.to_owned(), lifeline: Some(lifeline) }, heard)
    }

    pub(super) fn host(&self) -> &Arc<EmulatedHost> {
        &self.host
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn close_lifeline(&mut self) {
        self.lifeline = None;
    }

    pub(super) fn kill(&mut self) {
        self.lifeline = None;
        // Nothing can be waited for here; should the message not arrive, the closed lifeline is enough.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (host, id) = (Arc::clone(&self.host), self.id.clone());
            runtime.spawn(async move {
                if let Err(error) = host.kill(&id).await {
                    tracing::debug!(%error, id, "killing a monitor on the emulated host");
                }
            });
        }
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

    /// Where its guest is.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Listens for the guest's connections to `port` of its host; see [`Place::listen`].
    ///
    /// # Errors
    /// [`MonitorError::Listen`] when the socket cannot be made.
    pub async fn listen(&self, port: u32) -> Result<Listener, MonitorError> {
        self.place.listen(&self.id, &self.socket, port).await
    }

    /// Opens a stream to a port on which something in the guest listens.
    ///
    /// # Errors
    /// [`MonitorError::Connect`], with `ConnectionRefused` when nothing listens there.
    pub async fn connect(&self, port: u32) -> Result<Stream, MonitorError> {
        self.connect_with(port, &[]).await
    }

    /// The same, and sends `first` on it, where it can be without waiting for the guest's answer.
    ///
    /// # Errors
    /// As for [`Dialer::connect`].
    pub async fn connect_with(&self, port: u32, first: &[u8]) -> Result<Stream, MonitorError> {
        tracing::trace!(id = %self.id, port, "connecting to the guest");
        let connect = |source| MonitorError::Connect { port, source };
        let connected = async {
            match &self.place {
                Place::Native { .. } => stream::connect_unix(&self.socket, port, first).await.map_err(connect),
                Place::Emulated(host, _) => {
                    let connected = host.connect(&self.id, port).await;
                    let mut stream = Stream::from(connected.map_err(emulated("connect to the guest"))?);
                    stream.writer.write_all(first).await.map_err(connect)?;
                    Ok(stream)
                }
            }
        };
        let late = || connect(std::io::ErrorKind::TimedOut.into());
        tokio::time::timeout(CONNECTED, connected).await.unwrap_or_else(|_| Err(late()))
    }
}
