// SPDX-License-Identifier: Apache-2.0
//! The emulated KVM host for machines whose own KVM is unusable.
//!
//! QEMU emulates an AMD machine in software (TCG); in it our `host` kernel offers an ordinary /dev/kvm, and its first
//! process is `midge` itself as the [`outpost`], which starts monitors and passes their streams on by TCP (`wire`). The
//! real host's file tree is there read-only, so that kernels, images and disks need no copying. One emulated host
//! serves any number of sandboxes. Slow (10 to 50 times), exact, and the same everywhere.
//!
//! This file is the near side: it starts QEMU (`qemu`) and opens conversations.

mod clock;
mod conversation;
pub mod counted;
mod extents;
pub mod outpost;
mod qemu;
pub mod share;
mod twins;
mod wire;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use crate::cache::Cache;
use crate::groups::Allowance;
use crate::initramfs::{self, InitramfsError};
use crate::kernel::{self, Flavour, KernelError};
use crate::progress::Watch;
use conversation::{Connection, Entrance, bind, converse, request};
use wire::{MAX_LINE_BYTES, Op, Output};

/// How long an emulated host may take to start: ten times what it does on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often QEMU is started anew because somebody else took the port in between.
const PORT_TRIES: u32 = 4;
/// Output of a monitor that is held for a slow reader.
const OUTPUT_BUFFER_BYTES: usize = 64 << 10;

/// Why the emulated host did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EmulatedError {
    /// QEMU is not installed.
    #[error(
        "starting the emulated host: {} is not installed; install it with `apt-get install qemu-system-x86`",
        qemu::PROGRAM
    )]
    NoQemu,
    /// Its kernel cannot be had.
    #[error("preparing the emulated host's kernel: {0}")]
    Kernel(#[from] KernelError),
    /// Its programs cannot be packed.
    #[error("preparing the emulated host's programs: {0}")]
    Initramfs(#[from] InitramfsError),
    /// QEMU could not be started.
    #[error("starting {path}")]
    Qemu {
        /// The program.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// It did not get ready.
    #[error("starting the emulated host: not ready after {timeout_s} s; the end of its console:\n{tail}")]
    Timeout {
        /// How long was waited.
        timeout_s: u64,
        /// The console's last lines.
        tail: String,
    },
    /// It ended while something was expected of it.
    #[error("the emulated host ended ({status}); the end of its console:\n{tail}")]
    Ended {
        /// How QEMU ended.
        status: String,
        /// The console's last lines.
        tail: String,
    },
    /// It stopped talking.
    #[error("the emulated host has said nothing for {limit_s} s; the end of its console:\n{tail}")]
    Silent {
        /// How long was waited.
        limit_s: u64,
        /// The console's last lines.
        tail: String,
    },
    /// Something of this machine's failed.
    #[error("{doing}")]
    Io {
        /// What was attempted.
        doing: String,
        /// The refusal.
        source: io::Error,
    },
    /// The outpost refused.
    #[error("{doing} on the emulated host: {reason}")]
    Refused {
        /// What was attempted.
        doing: String,
        /// What it answered.
        reason: String,
    },
    /// A configuration that it cannot take.
    #[error("starting a monitor on the emulated host: {problem}")]
    Config {
        /// Which field, and why.
        problem: String,
    },
}

/// What an emulated host is made of.
#[derive(Debug, Clone)]
pub struct EmulatedOptions {
    /// A kernel of the `host` flavour.
    pub kernel: PathBuf,
    /// Holds the outpost and the monitor.
    pub initramfs: PathBuf,
    /// Its memory, of which only what is touched is taken from this machine.
    pub mem_mib: u64,
    /// Its processors. One is as fast for one sandbox; two help several at once.
    pub cpus: u32,
    /// How long it may take to start.
    pub ready_timeout: Duration,
}

impl EmulatedOptions {
    /// Finds or builds the kernel, and packs these two programs: `midge` becomes the outpost, `vmm` the monitor.
    ///
    /// # Errors
    /// [`EmulatedError::Kernel`] and [`EmulatedError::Initramfs`].
    pub fn prepare(cache: &Cache, midge: &Path, vmm: &Path, watch: &dyn Watch) -> Result<Self, EmulatedError> {
        Ok(Self {
            kernel: kernel::ensure(cache, Flavour::Host, watch)?,
            initramfs: initramfs::ensure_programs(cache, &[("init", midge), ("midge-vmm", vmm)])?,
            mem_mib: 4096,
            cpus: 1,
            ready_timeout: READY_TIMEOUT,
        })
    }
}

/// A running emulated host; dropping it ends QEMU, and with it every sandbox there.
#[derive(Debug)]
pub struct EmulatedHost {
    /// `None` where another process started it ([`share`]).
    own: Option<Own>,
    entrance: Entrance,
    token: String,
    boot_ms: u64,
}

/// What ends with whoever started an emulated host.
#[derive(Debug)]
struct Own {
    qemu: qemu::Qemu,
    _hold: Connection,
}

/// A monitor in the emulated host.
#[derive(Debug)]
pub struct RemoteMonitor {
    /// Its stdout: one JSON event a line.
    pub events: DuplexStream,
    /// Its stderr.
    pub stderr: DuplexStream,
    /// Its end; closed without a value when the emulated host went away.
    pub status: oneshot::Receiver<ExitStatus>,
    /// Dropping it stops the monitor.
    pub lifeline: OwnedWriteHalf,
}

/// Takes a guest's connections to one port of its host.
#[derive(Debug)]
pub struct RemoteListener {
    entrance: Entrance,
    request: Vec<u8>,
    /// Bound, and waiting for the guest.
    next: Connection,
}

impl EmulatedHost {
    /// Starts an emulated host and waits until it can be asked for something (about a second).
    ///
    /// # Errors
    /// [`EmulatedError`]: no QEMU, no start within the time-out, an early end.
    pub async fn start(opts: &EmulatedOptions, watch: &dyn Watch) -> Result<Self, EmulatedError> {
        let program = qemu::program().ok_or(EmulatedError::NoQemu)?;
        let begun = Instant::now();
        let (token, token_file) = make_token()?;
        watch.begin("starting the emulated host", 0);
        let started = start_on_free_port(&program, opts, token_file.path()).await;
        watch.end("");
        let (qemu, port) = started?;
        let entrance = Entrance::new(port);
        let line = request(&token, Op::Hold);
        let hold =
            converse(&entrance, &line, "holding a connection").await.map_err(|err| with_console(err, Some(&qemu)))?;
        let boot_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(boot_ms, port, "the emulated host is ready");
        // It was read when the outpost started; gone now, it cannot outlive a `midge` that is killed.
        drop(token_file);
        Ok(Self { own: Some(Own { qemu, _hold: hold }), entrance, token, boot_ms })
    }

    /// QEMU, where it is installed.
    #[must_use]
    pub fn program() -> Option<PathBuf> {
        qemu::program()
    }

    /// How long it took to start.
    pub fn boot_ms(&self) -> u64 {
        self.boot_ms
    }

    /// QEMU's process id, while it runs and is ours.
    pub fn pid(&self) -> Option<u32> {
        self.qemu()?.pid()
    }

    /// The last lines of its console: kernel messages and what the outpost complains of.
    pub fn console_tail(&self) -> String {
        self.qemu().map(|qemu| qemu.console().tail()).unwrap_or_default()
    }

    /// Starts a monitor with this configuration, whose paths are this machine's; `id` names the sandbox, `may` is what it
    /// may have of the emulated host.
    ///
    /// # Errors
    /// [`EmulatedError::Config`], [`EmulatedError::Refused`], or the emulated host is gone.
    pub async fn spawn(&self, id: &str, config_json: &str, may: Allowance) -> Result<RemoteMonitor, EmulatedError> {
        let bad = |problem: String| EmulatedError::Config { problem };
        let mut config = serde_json::from_str(config_json).map_err(|err| bad(err.to_string()))?;
        wire::relocate(&mut config, id).map_err(bad)?;
        let connection =
            self.ask(Op::Spawn { id: id.to_owned(), config, allowance: may }, "starting a monitor").await?;
        Ok(follow(connection))
    }

    /// Opens a stream to a port of a guest.
    ///
    /// # Errors
    /// [`EmulatedError::Refused`] when nothing listens there, or the emulated host is gone.
    pub async fn connect(&self, id: &str, port: u32) -> Result<TcpStream, EmulatedError> {
        let op = Op::Connect { id: id.to_owned(), port };
        let connection = self.ask(op, &format!("connecting to port {port} of the guest")).await?;
        connection.whole()
    }

    /// Listens for a guest's connections to `port` of its host. Before the guest starts, so that it never finds it closed.
    ///
    /// # Errors
    /// [`EmulatedError::Refused`], or the emulated host is gone.
    pub async fn listen(&self, id: &str, port: u32) -> Result<RemoteListener, EmulatedError> {
        let request = request(&self.token, Op::Listen { id: id.to_owned(), port });
        let next = bind(&self.entrance, &request).await.map_err(|err| with_console(err, self.qemu()))?;
        Ok(RemoteListener { entrance: self.entrance.clone(), request, next })
    }

    /// Kills a monitor.
    ///
    /// # Errors
    /// [`EmulatedError::Refused`] when there is none of that name, or the emulated host is gone.
    pub async fn kill(&self, id: &str) -> Result<(), EmulatedError> {
        let op = Op::Signal { id: id.to_owned(), signal: libc::SIGKILL };
        self.ask(op, "killing a monitor").await.map(drop)
    }

    /// Ends it and waits until QEMU is gone; one that another process started goes on.
    pub async fn stop(mut self) {
        if let Some(own) = &mut self.own {
            own.qemu.stop().await;
        }
    }

    fn qemu(&self) -> Option<&qemu::Qemu> {
        self.own.as_ref().map(|own| &own.qemu)
    }

    async fn ask(&self, op: Op, doing: &str) -> Result<Connection, EmulatedError> {
        let asked = converse(&self.entrance, &request(&self.token, op), doing).await;
        asked.map_err(|err| with_console(err, self.qemu()))
    }
}

impl RemoteListener {
    /// The guest's next connection.
    ///
    /// # Errors
    /// When the emulated host is gone.
    pub async fn accept(&mut self) -> io::Result<TcpStream> {
        let answer = self.next.answer().await.map_err(io::Error::other)?;
        if answer != "OK" {
            return Err(io::Error::other(format!("the emulated host answered {answer:?}")));
        }
        let again = bind(&self.entrance, &self.request).await.map_err(io::Error::other)?;
        std::mem::replace(&mut self.next, again).whole().map_err(io::Error::other)
    }
}

/// An I/O error explains little when the machine behind it is gone: its console does.
fn with_console(err: EmulatedError, qemu: Option<&qemu::Qemu>) -> EmulatedError {
    match (err, qemu.map(|qemu| qemu.console())) {
        (EmulatedError::Io { doing, source }, Some(console)) if console.ended() => {
            EmulatedError::Ended { status: format!("{doing}: {source}"), tail: console.tail() }
        }
        (other, _) => other,
    }
}

fn io_error(doing: &str, source: io::Error) -> EmulatedError {
    EmulatedError::Io { doing: doing.to_owned(), source }
}

/// A random secret, and a file that only this user can read it from.
fn make_token() -> Result<(String, tempfile::NamedTempFile), EmulatedError> {
    let failed = |source| io_error("making the emulated host's token", source);
    let mut random = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut random))
        .map_err(failed)?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = tempfile::Builder::new().prefix("midge-token-").tempfile().map_err(failed)?;
    io::Write::write_all(&mut file, token.as_bytes()).map_err(failed)?;
    Ok((token, file))
}

/// QEMU binds the port itself, so that it has to be found free first: the gap in between may need another try.
async fn start_on_free_port(
    program: &Path,
    opts: &EmulatedOptions,
    token_file: &Path,
) -> Result<(qemu::Qemu, u16), EmulatedError> {
    let tsc_khz = clock::tsc_khz();
    let mut tries = 0;
    loop {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let port = port.map_err(|source| io_error("looking for a free port", source))?.port();
        let mut qemu = qemu::Qemu::start(program, &qemu::arguments(opts, token_file, port, tsc_khz))?;
        tries += 1;
        match qemu.ready(opts.ready_timeout).await {
            Ok(()) => return Ok((qemu, port)),
            Err(EmulatedError::Ended { tail, .. }) if tail.contains("host forwarding") && tries < PORT_TRIES => {}
            Err(err) => return Err(err),
        }
    }
}

/// Splits a conversation that a monitor's output follows on.
fn follow(connection: Connection) -> RemoteMonitor {
    let Connection { reader, writer: lifeline } = connection;
    let (events, events_in) = duplex(OUTPUT_BUFFER_BYTES);
    let (stderr, stderr_in) = duplex(OUTPUT_BUFFER_BYTES);
    let (status_in, status) = oneshot::channel();
    tokio::spawn(deliver(reader, events_in, stderr_in, status_in));
    RemoteMonitor { events, stderr, status, lifeline }
}

/// Sorts a monitor's output. A reader that is dropped loses its own part only.
async fn deliver(
    mut from: BufReader<OwnedReadHalf>,
    mut events: DuplexStream,
    mut stderr: DuplexStream,
    status: oneshot::Sender<ExitStatus>,
) {
    let mut buffered = BufReader::with_capacity(OUTPUT_BUFFER_BYTES, &mut from);
    // Two letters more than the longest line that the outpost passes on.
    while let Ok(Some(line)) = qemu::line(&mut buffered, MAX_LINE_BYTES + 2).await {
        let (to, text) = match wire::output(&line) {
            Some(Output::Event(text)) => (&mut events, text),
            Some(Output::Stderr(text)) => (&mut stderr, text),
            Some(Output::Exit(raw)) => {
                // Nobody may be waiting any more.
                let _ = status.send(ExitStatus::from_raw(raw));
                // Until the outpost hangs up: its directory of this sandbox is gone then.
                let _ = buffered.read_u8().await;
                return;
            }
            None => {
                tracing::warn!(line = %String::from_utf8_lossy(&line), "unexpected line from the emulated host");
                continue;
            }
        };
        let _ = to.write_all(&[text, b"\n"].concat()).await;
    }
}

#[cfg(test)]
mod tests;
