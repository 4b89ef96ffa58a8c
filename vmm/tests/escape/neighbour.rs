// SPDX-License-Identifier: Apache-2.0
//! Another live sandbox, and what can be attempted on it from inside a jail of one's own.
//!
//! It is a process that has entered its jail by the product's own way and waits in it, locked in as a monitor's main
//! thread; and, where this machine has KVM, a real monitor whose guest counts. Both have what a sandbox has: a run
//! directory, a socket in it, an overlay file; and things with a name or a key that a careless one could have.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use midge_vmm::jail::{self, Thread};
use serde_json::json;

use crate::code::Code;
use crate::held::{Held, children_of};
use crate::{CASE, DIRECTORY, raw};

/// How the attacker hears of its neighbour: process, run directory, key, with colons between them.
pub(crate) const NEIGHBOUR: &str = "MIDGE_ESCAPE_NEIGHBOUR";
/// The case of the process that is a neighbour.
pub(crate) const CASE_OF_NEIGHBOUR: &str = "neighbour waits";
/// What it says when it is in its jail.
const UP: &str = "neighbour is up";

const SOCKET: &str = "v.sock";

/// What must fail, each with or without a filter.
pub(crate) const ATTEMPTS: [&str; 15] = [
    "signal my neighbour",
    "trace my neighbour",
    "read my neighbour's memory",
    "write my neighbour's memory",
    "hold my neighbour's process",
    "take my neighbour's descriptors",
    "open my neighbour's memory",
    "list my neighbour's descriptors",
    "list my neighbour's run directory",
    "connect to my neighbour's socket",
    "open my neighbour's overlay",
    "connect to my neighbour's abstract socket",
    "open my neighbour's shared memory by its name",
    "find my neighbour's shared memory by its key",
    "open my neighbour's message queue",
];

/// A live sandbox, and its things.
pub(crate) struct Neighbour {
    pub(crate) what: &'static str,
    life: Life,
    pid: u32,
    dir: PathBuf,
    overlay: PathBuf,
    key: i64,
    _things: (tempfile::TempDir, UnixListener, UnixListener, NamedMemory),
}

enum Life {
    StandIn(Child, #[expect(dead_code, reason = "closing it ends the process")] ChildStdin),
    Real(Box<Held>),
}

/// A file in /dev/shm; removed when dropped.
struct NamedMemory(PathBuf);

impl Drop for NamedMemory {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Neighbour {
    /// All that can be had here.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::new("a process in its jail", stand_in)];
        if File::options().read(true).write(true).open("/dev/kvm").is_ok() {
            all.push(Self::new("a monitor", real));
        } else {
            println!("skipped for a real monitor: /dev/kvm cannot be used here");
        }
        all
    }

    fn new(what: &'static str, start: impl FnOnce(&Path, &Path) -> (Life, u32, PathBuf)) -> Self {
        let own = tempfile::TempDir::new().unwrap();
        let overlay = own.path().join("overlay");
        let (life, pid, dir) = start(own.path(), &overlay);
        // Others than the owner may go in: what keeps them out must be the jail.
        for path in [own.path(), &dir, &overlay] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        }
        // A monitor has one of its own.
        let socket = dir.join(if dir.join(SOCKET).exists() { "other" } else { SOCKET });
        let abstract_name = SocketAddr::from_abstract_name(format!("midge-escape-{pid}")).unwrap();
        let memory = NamedMemory(format!("/dev/shm/midge-escape-{pid}").into());
        std::fs::write(&memory.0, "secret").unwrap();
        let key = i64::from(0x4d00_0000 | pid);
        // What is there by a key in the namespace of this process; a kernel without such has nothing to be found.
        let _ = raw(libc::SYS_shmget, [key, 4096, i64::from(libc::IPC_CREAT | 0o666), 0]);
        let listeners = (UnixListener::bind(socket).unwrap(), UnixListener::bind_addr(&abstract_name).unwrap());
        Self { what, life, pid, dir, overlay, key, _things: (own, listeners.0, listeners.1, memory) }
    }

    /// What the attacker is told.
    pub(crate) fn told(&self) -> String {
        format!("{}:{}:{}:{}", self.pid, self.dir.display(), self.overlay.display(), self.key)
    }

    /// Whether nothing has happened to it.
    pub(crate) fn is_well(&mut self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let runs = status.lines().any(|line| ["State:\tR", "State:\tS"].iter().any(|good| line.starts_with(good)));
        runs && match &mut self.life {
            Life::StandIn(child, _) => {
                let is_whole = std::fs::read(&self.overlay).is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 7));
                child.try_wait().unwrap().is_none() && is_whole
            }
            Life::Real(held) => held.is_running(),
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = shared_memory(self.key).and_then(|id| raw(libc::SYS_shmctl, [id, i64::from(libc::IPC_RMID), 0, 0]));
        if let Life::StandIn(child, _) = &mut self.life {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn shared_memory(key: i64) -> io::Result<i64> {
    crate::call(libc::SYS_shmget, [key, 0, 0, 0])
}

/// This binary again, which enters its jail and waits in it.
fn stand_in(dir: &Path, overlay: &Path) -> (Life, u32, PathBuf) {
    std::fs::write(overlay, vec![7; 1 << 16]).unwrap();
    let mut child = Command::new("/proc/self/exe")
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CASE, CASE_OF_NEIGHBOUR)
        .env(DIRECTORY, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut said = String::new();
    while !said.contains(UP) {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "no neighbour: {said}");
        said.push(byte[0].into());
    }
    let stdin = child.stdin.take().unwrap();
    let pid = inmost(child.id());
    (Life::StandIn(child, stdin), pid, dir.to_path_buf())
}

/// The last of a line of children.
fn inmost(pid: u32) -> u32 {
    children_of(pid).first().map_or(pid, |child| inmost(*child))
}

/// A monitor whose guest counts.
fn real(dir: &Path, overlay: &Path) -> (Life, u32, PathBuf) {
    let base = dir.join("base");
    std::fs::write(&base, vec![0; 1 << 16]).unwrap();
    let mode = json!({ "overlay_file": { "path": overlay, "cap_mib": 1 } });
    let config = json!({ "forkable": false, "disks": [{ "path": base, "mode": mode }], "vsock": { "guest_cid": 3 } });
    let held = Held::boot(&Code::new().count(), config);
    let (pid, run_dir) = (held.pid, held.dir.path().to_path_buf());
    (Life::Real(Box::new(held)), pid, run_dir)
}

/// In the jail, as a neighbour: waits for the end of its input.
pub(crate) fn wait() -> ! {
    jail::lock_in(Thread::Main).unwrap();
    let _ = io::stdout().write_all(format!("\n{UP}\n").as_bytes());
    let _ = io::stdout().flush();
    let _ = io::stdin().read(&mut [0]);
    midge_vmm::sys::exit_now(0)
}

/// What the attacker knows of its neighbour.
pub(crate) struct Known {
    pid: i64,
    dir: PathBuf,
    overlay: PathBuf,
    key: i64,
}

impl Known {
    pub(crate) fn from_environment() -> Option<Self> {
        let told = std::env::var(NEIGHBOUR).ok()?;
        let mut fields = told.split(':');
        let (pid, dir, overlay, key) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(Self { pid: pid.parse().ok()?, dir: dir.into(), overlay: overlay.into(), key: key.parse().ok()? })
    }

    /// Attempts one of [`ATTEMPTS`].
    pub(crate) fn attempt(&self, deed: &str) -> io::Result<String> {
        let nothing = |_| String::new();
        let file = |path: String| File::open(path).map(|_| String::new());
        match deed {
            "signal my neighbour" => raw(libc::SYS_kill, [self.pid, i64::from(libc::SIGURG), 0, 0]),
            "trace my neighbour" => raw(libc::SYS_ptrace, [i64::from(libc::PTRACE_SEIZE), self.pid, 0, 0]),
            "read my neighbour's memory" => copy_memory(libc::SYS_process_vm_readv, self.pid, 0x1000),
            "write my neighbour's memory" => copy_memory(libc::SYS_process_vm_writev, self.pid, 0x1000),
            "hold my neighbour's process" => raw(libc::SYS_pidfd_open, [self.pid, 0, 0, 0]),
            "take my neighbour's descriptors" => take_descriptors(self.pid),
            "open my neighbour's memory" => file(format!("/proc/{}/mem", self.pid)),
            "list my neighbour's descriptors" => std::fs::read_dir(format!("/proc/{}/fd", self.pid)).map(nothing),
            "list my neighbour's run directory" => std::fs::read_dir(&self.dir).map(|_| String::new()),
            "connect to my neighbour's socket" => UnixStream::connect(self.dir.join(SOCKET)).map(|_| String::new()),
            "open my neighbour's overlay" => File::open(&self.overlay).map(|_| String::new()),
            "connect to my neighbour's abstract socket" => {
                let name = SocketAddr::from_abstract_name(format!("midge-escape-{}", self.pid))?;
                UnixStream::connect_addr(&name).map(|_| String::new())
            }
            "open my neighbour's shared memory by its name" => file(format!("/dev/shm/midge-escape-{}", self.pid)),
            "find my neighbour's shared memory by its key" => shared_memory(self.key).map(|id| format!(" {id}")),
            "open my neighbour's message queue" => message_queue(),
            other => panic!("no attempt {other}"),
        }
    }
}

/// Copies a few bytes between here and `at` in another process.
pub(crate) fn copy_memory(number: i64, pid: i64, at: usize) -> io::Result<String> {
    let mut bytes = [0_u64; 1];
    let near = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 8 };
    let far = libc::iovec { iov_base: std::ptr::without_provenance_mut(at), iov_len: 8 };
    let address = |iovec: &libc::iovec| i64::try_from(std::ptr::from_ref(iovec).expose_provenance()).unwrap();
    crate::call6(number, [pid, address(&near), 1, address(&far), 1, 0]).map(|_| format!(" {:x}", bytes[0]))
}

/// Takes what a process has open, if that process can be held.
pub(crate) fn take_descriptors(pid: i64) -> io::Result<String> {
    let held = crate::call(libc::SYS_pidfd_open, [pid, 0, 0, 0])?;
    let taken = (0..32).find_map(|number| crate::call(libc::SYS_pidfd_getfd, [held, number, 0, 0]).ok());
    taken.map(|number| format!(" {number}")).ok_or_else(|| io::Error::other("held, but nothing can be taken"))
}

fn message_queue() -> io::Result<String> {
    let name = c"midge-escape".as_ptr().expose_provenance();
    raw(libc::SYS_mq_open, [i64::try_from(name).unwrap(), i64::from(libc::O_RDONLY), 0, 0])
}
