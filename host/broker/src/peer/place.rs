// SPDX-License-Identifier: Apache-2.0
//! Where the sandboxes of one user find each other, whichever process has them: a directory with a socket for each name. Knows
//! nothing of policies, and of what is said on a socket no more than who says it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use midge_policy::Name;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::net::{UnixListener, UnixStream};

/// What the name of a socket ends with.
const SUFFIX: &str = ".peer";
/// Most entries of the directory that are looked at for sockets of processes that are gone.
const ENTRIES_MAX: usize = 10_000;

/// The directory; it must be its user's own, with mode 0700. Clones are the same.
#[derive(Debug, Clone)]
pub struct Place(Arc<File>);

/// Why a sandbox cannot have a name.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// There is a sandbox of that name.
    #[error("naming the sandbox {name}: {holder} has one of that name; name it otherwise, or end the other")]
    Taken {
        /// The name.
        name: Name,
        /// The process that has it.
        holder: String,
    },
    /// The operating system refused something.
    #[error("naming the sandbox {name}")]
    Io {
        /// The name.
        name: Name,
        /// The refusal.
        source: io::Error,
    },
}

/// A name that others call. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    listener: UnixListener,
    /// The path leads through it.
    _place: Place,
}

/// Who listens at a socket.
enum Listens {
    Somebody(String),
    Nobody,
}

impl Place {
    /// Opens the directory.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(dir: &Path) -> io::Result<Self> {
        File::open(dir).map(|dir| Self(Arc::new(dir)))
    }

    /// By way of the open directory, which is short enough for a socket's address whatever the directory is called.
    fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{file}", self.0.as_raw_fd()))
    }

    fn socket(&self, name: &Name) -> PathBuf {
        self.path(&format!("{name}{SUFFIX}"))
    }

    /// Takes a name, also from a process that is gone; and removes what other such processes left.
    pub(super) fn claim(&self, name: &Name) -> Result<Claim, ClaimError> {
        let failed = |source| ClaimError::Io { name: name.clone(), source };
        let lock = File::open(self.path(".")).map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        self.sweep().map_err(failed)?;
        self.check_free(name)?;
        let path = self.socket(name);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(Claim { path, listener, _place: self.clone() })
    }

    /// Refuses a name that a sandbox has at this moment. Whether it can be had is settled when a door takes it.
    ///
    /// # Errors
    /// [`ClaimError`], as it would be of [`super::PeerDoor::open`].
    pub fn check_free(&self, name: &Name) -> Result<(), ClaimError> {
        match who_listens(&self.socket(name)) {
            Ok(Listens::Nobody) => Ok(()),
            Ok(Listens::Somebody(holder)) => Err(ClaimError::Taken { name: name.clone(), holder }),
            Err(source) => Err(ClaimError::Io { name: name.clone(), source }),
        }
    }

    /// Removes sockets that nobody listens at. The directory's lock is held.
    fn sweep(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.path("."))?.take(ENTRIES_MAX) {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(SUFFIX) && matches!(who_listens(&path), Ok(Listens::Nobody)) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Calls the sandbox of that name.
    pub(super) async fn call(&self, name: &Name) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.socket(name)).await?;
        if is_own(&stream)? { Ok(stream) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl Claim {
    /// The next caller of the same user. Can be dropped and called again: nobody is lost.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            if is_own(&stream)? {
                return Ok(stream);
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While it still listens: nobody has taken its place, whose socket this would remove.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a sandbox's name is left behind");
        }
    }
}

/// Whether the other end belongs to this process' user.
fn is_own(stream: &UnixStream) -> io::Result<bool> {
    Ok(stream.peer_cred()?.uid() == rustix::process::geteuid().as_raw())
}

/// Does not wait, however many others do.
fn who_listens(path: &Path) -> io::Result<Listens> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {
            let pid = UnixStream::from_std(socket.into())?.peer_cred()?.pid();
            Ok(Listens::Somebody(pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"))))
        }
        Err(Errno::AGAIN) => Ok(Listens::Somebody("a process whose callers wait".to_owned())),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(Listens::Nobody),
        Err(errno) => Err(errno.into()),
    }
}
