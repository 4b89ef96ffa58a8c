// SPDX-License-Identifier: Apache-2.0
//! The guest's ends of the doors to its host: sockets below [`GUEST_DIR`], and ports of the loopback interface for programs
//! that expect an address of the network. A connection to one becomes a connection to the host's port of that door; bytes and
//! the end of each direction pass unchanged. What they mean is for the broker on the host to judge.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use midge_protocol::{Door, Failure, GUEST_DIR};

use crate::link::{Host, failure};
use crate::relay::relay;
use crate::serve::Gate;
use crate::sys::fd::{Watch, set_nonblocking, wait};

/// Connections through all doors at once. One more waits in its socket's backlog until one ends.
const CONNECTIONS_MAX: usize = 256;
/// Stack of a connection's thread, in bytes.
const STACK_BYTES: usize = 64 * 1024;
/// Pause after something failed for want of memory, descriptors or connections.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(10);
/// How long a connection waits for the host's `Welcome`.
const WELCOME_MAX: Duration = Duration::from_secs(30);

static OPEN: Mutex<Vec<Door>> = Mutex::new(Vec::new());
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// A door that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("opening the door `{door}` at {place}")]
struct OpenError {
    door: &'static str,
    place: String,
    source: io::Error,
}

/// Where programs come in.
#[derive(Debug)]
enum Entrance {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Entrance {
    /// The next connection, as a stream of any family.
    fn accept(&self) -> io::Result<UnixStream> {
        match self {
            Self::Tcp(listener) => {
                let stream = listener.accept()?.0;
                stream.set_nodelay(true)?;
                Ok(UnixStream::from(OwnedFd::from(stream)))
            }
            Self::Unix(listener) => Ok(listener.accept()?.0),
        }
    }
}

impl AsRawFd for Entrance {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(listener) => listener.as_raw_fd(),
            Self::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

/// Opens the doors whose bits, in the order of [`Door::ALL`], are set; those that are open stay so.
pub(crate) fn open(host: &Host, bits: u64, gate: &'static Gate) -> Result<(), Failure> {
    let (dir, is_guest) = match host {
        Host::Vsock => (PathBuf::from(GUEST_DIR), true),
        Host::Unix(dir) => (dir.join("doors"), false),
    };
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = Door::ALL.into_iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0).map(|(_, door)| door);
    for door in wanted {
        if !open.contains(&door) {
            open_one(door, &dir, is_guest, host, gate).map_err(|error| failure(&error))?;
            open.push(door);
        }
    }
    Ok(())
}

fn open_one(door: Door, dir: &Path, is_guest: bool, host: &Host, gate: &'static Gate) -> Result<(), OpenError> {
    let named = |place: String| move |source| OpenError { door: door.name(), place, source };
    let path = dir.join(door.name());
    let socket = bind(dir, &path).map_err(named(path.display().to_string()))?;
    let mut entrances = vec![Entrance::Unix(socket)];
    if let Some(port) = door.loopback().filter(|_| is_guest) {
        let listener = bind_loopback(port).map_err(named(format!("127.0.0.1:{port}")))?;
        entrances.push(Entrance::Tcp(listener));
    }
    let host = host.clone();
    let serve = move || serve(&entrances, door, &host, gate);
    thread::Builder::new()
        .name(door.name().into())
        .stack_size(STACK_BYTES)
        .spawn(serve)
        .map_err(named("a thread".to_owned()))?;
    Ok(())
}

/// A socket that every user of the guest may connect to.
fn bind(dir: &Path, path: &Path) -> io::Result<UnixListener> {
    fs::create_dir_all(dir)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    set_nonblocking(&listener)?;
    Ok(listener)
}

fn bind_loopback(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    set_nonblocking(&listener)?;
    Ok(listener)
}

/// Takes connections for ever.
fn serve(entrances: &[Entrance], door: Door, host: &Host, gate: &'static Gate) {
    loop {
        let mut watches: Vec<Watch> = entrances.iter().map(|entrance| Watch::new(entrance, true, false)).collect();
        let waited = wait(&mut watches, None);
        for (entrance, _) in entrances.iter().zip(&watches).filter(|(_, watch)| watch.readable()) {
            if CONNECTIONS.load(Ordering::Relaxed) >= CONNECTIONS_MAX || take(entrance, door, host, gate).is_err() {
                thread::sleep(SHORTAGE_PAUSE);
            }
        }
        if waited.is_err() {
            thread::sleep(SHORTAGE_PAUSE);
        }
    }
}

/// One connection among those that are counted.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn take(entrance: &Entrance, door: Door, host: &Host, gate: &'static Gate) -> io::Result<()> {
    let inside = match entrance.accept() {
        Ok(stream) => stream,
        // It has hung up in between.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error),
    };
    CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let (counted, host) = (Counted, host.clone());
    let relay = move || {
        let _counted = counted;
        // Nobody may reach the host as the guest that this one was copied from.
        if gate.pass(WELCOME_MAX).is_some()
            && let Ok(outside) = host.connect_door(door)
        {
            // Either side may leave whenever it likes.
            let _ = relay(&inside, &outside, Vec::new());
        }
    };
    thread::Builder::new().name("door".into()).stack_size(STACK_BYTES).spawn(relay)?;
    Ok(())
}

#[cfg(test)]
mod tests;
