// SPDX-License-Identifier: Apache-2.0
//! The escape rehearsal: somebody has taken over a thread of the monitor and runs what he likes.
//!
//! This test binary is started anew, enters the jail as the monitor does ([`midge_vmm::jail::enter`]), and attempts one
//! thing. Twice: without a system-call filter, to see that the layers below hold by themselves, and with the filter of
//! each kind of thread, which must not even let it be tried. What the attempt came to is told on a pipe that was open
//! before.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking")]

#[expect(dead_code, reason = "shared with the tests of guests, which use all of it")]
#[path = "../guest/code.rs"]
mod code;
#[expect(dead_code, reason = "shared with the tests of guests, which use all of it")]
#[path = "../guest/held.rs"]
mod held;
mod neighbour;
mod sibling;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};

use midge_vmm::jail::{self, Limits, Thread, Wanted};
use midge_vmm::trace::Trace;

use held::NOBODY_ID;
use neighbour::{CASE_OF_NEIGHBOUR, Known, NEIGHBOUR, Neighbour};

pub(crate) const CASE: &str = "MIDGE_ESCAPE_CASE";
/// Where the child may make a socket.
pub(crate) const DIRECTORY: &str = "MIDGE_ESCAPE_DIRECTORY";
/// What the child says when an attempt was refused, before the error.
const REFUSED: &str = "refused";
/// And when it was not.
const DONE: &str = "done";

/// Before the kind of a thread: what it attempts, it attempts on a sibling.
const SIBLING: &str = "sibling:";
/// Threads whose filters are tried.
const KINDS: [&str; 5] = ["main", "vcpu", "block", "resident", "first"];

/// What the jail is entered with: enough for a thread to speak.
const LIMITS: Limits = Limits { descriptors: 64, file_bytes: 1 << 20 };

/// Whom the attempts are made as: whoever runs the test, and nobody, where that can be had.
fn users() -> Vec<Option<u32>> {
    if rustix::process::geteuid().is_root() { vec![None, Some(NOBODY_ID)] } else { vec![None] }
}

/// Runs one attempt; gives what was said, and how the process ended.
fn attempt(user: Option<u32>, kind: &str, deed: &str) -> (String, ExitStatus) {
    attempt_on("", user, kind, deed)
}

/// The same, on a neighbour.
fn attempt_on(neighbour: &str, user: Option<u32>, kind: &str, deed: &str) -> (String, ExitStatus) {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut command = Command::new("/proc/self/fd/0");
    if let Some(id) = user {
        command.uid(id).gid(id);
    }
    let mut child = command
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CASE, format!("{kind} {deed}"))
        .env(NEIGHBOUR, neighbour)
        .env(DIRECTORY, dir.path())
        // By a descriptor: nobody may not be able to reach the path.
        .stdin(File::open("/proc/self/exe").unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let said = text.lines().filter(|line| line.starts_with(REFUSED) || line.starts_with(DONE)).collect::<Vec<_>>();
    (said.join("; "), child.wait().unwrap())
}

/// Attempts that must fail without any filter, each with the error that the layer below gives.
const ATTEMPTS: [&str; 15] = [
    "read /etc/passwd",
    "read /proc/self/status",
    "list the root",
    "make a file",
    "open /dev/kvm",
    "connect to a socket of the host by its path",
    "connect to TCP on the loopback",
    "send UDP to somewhere",
    "run a program",
    "signal a process of the host",
    "trace the first process",
    "mount a file system",
    "become root",
    "make more descriptors than allowed",
    "leave the root by a descriptor",
];

#[test]
fn without_a_filter_the_layers_below_refuse_everything_that_leads_out() {
    for (user, deed) in users().into_iter().flat_map(|user| ATTEMPTS.map(|deed| (user, deed))) {
        let (said, status) = attempt(user, "none", deed);
        assert!(said.starts_with(REFUSED) && !said.contains(DONE), "{user:?}, {deed}: {said:?}, {status}");
        println!("{user:?}, {deed}: {said}");
    }
}

#[test]
fn with_the_filter_of_a_thread_it_is_not_even_tried() {
    for kind in KINDS {
        for deed in ATTEMPTS.iter().filter(|deed| !deed.starts_with("make more descriptors")) {
            let (said, _) = attempt(None, kind, deed);
            assert!(said.is_empty(), "{kind}: {deed}: {said}");
        }
    }
}

#[test]
fn a_live_neighbour_cannot_be_reached_and_stays_well() {
    for mut neighbour in Neighbour::all() {
        let (what, told) = (neighbour.what, neighbour.told());
        for (user, deed) in users().into_iter().flat_map(|user| neighbour::ATTEMPTS.map(|deed| (user, deed))) {
            let (said, status) = attempt_on(&told, user, "none", deed);
            assert!(said.starts_with(REFUSED) && !said.contains(DONE), "{what}, {user:?}, {deed}: {said:?}, {status}");
            println!("{what}, {user:?}, {deed}: {said}");
        }
        for (kind, deed) in KINDS.into_iter().flat_map(|kind| neighbour::ATTEMPTS.map(|deed| (kind, deed))) {
            let (said, _) = attempt_on(&told, None, kind, deed);
            // A resident may hold the processes that it sees, and sees none but those of its jail.
            let is_asked = kind == "resident" && (deed.contains("hold") || deed.contains("take"));
            let is_ended = if is_asked { said.starts_with(REFUSED) } else { said.is_empty() };
            assert!(is_ended && !said.contains(DONE), "{kind}: {deed}: {said}");
        }
        assert!(neighbour.is_well(), "{what}");
    }
}

#[test]
fn a_sibling_in_the_same_jail_cannot_be_reached_and_stays_well() {
    let ended = format!("{DONE}; {}", sibling::WELL);
    let attempt = |user, kind: &str, deed| attempt(user, &format!("{SIBLING}{kind}"), deed);
    for user in users() {
        for deed in sibling::BELOW {
            let (said, status) = attempt(user, "none", deed);
            assert!(said.starts_with(REFUSED) && said.ends_with(&ended), "{user:?}, {deed}: {said:?}, {status}");
            println!("{user:?}, {deed}: {said}");
        }
        for deed in sibling::FILTERED {
            println!("without a filter: {user:?}, {deed}: {}", attempt(user, "none", deed).0);
        }
    }
    for kind in KINDS.into_iter().filter(|kind| *kind != "first") {
        for deed in sibling::BELOW.into_iter().chain(sibling::FILTERED) {
            assert_eq!(attempt(None, kind, deed).0, ended, "{kind}: {deed}");
        }
        let (said, _) = attempt(None, kind, sibling::STOOD);
        assert!(said.ends_with(&ended), "{kind}: {said}");
        println!("{kind}, {}: {said}", sibling::STOOD);
    }
}

#[test]
fn whoever_is_inside_sees_nobody_outside_and_has_no_name_and_no_rights() {
    for user in users() {
        let (said, status) = attempt(user, "none", "look around");
        assert!(said.starts_with(DONE), "{said}, {status}");
        for expected in ["process 2", "parent 1", "host midge", "capabilities 0", "new privileges never", "dumpable no"]
        {
            assert!(said.contains(expected), "{user:?}: {expected}: {said}");
        }
    }
}

/// A working control: the same child, doing something allowed, is heard.
#[test]
fn what_is_allowed_is_done_and_told() {
    for (user, kind) in users().into_iter().flat_map(|user| ["none", "main", "resident"].map(|kind| (user, kind))) {
        let (said, status) = attempt(user, kind, "nothing");
        assert_eq!(said, DONE, "{user:?}, {kind}: {status}");
    }
}

/// The child process of the other tests; on its own it has nothing to do.
#[test]
#[expect(clippy::exit, reason = "the test harness' own way out makes calls that no policy lists")]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    // The harness runs tests in threads; a jail is entered by a process that has one.
    if midge_vmm::sys::fork().unwrap().is_some() {
        let _ = midge_vmm::sys::reap_any();
        loop {
            match midge_vmm::sys::reap_any().unwrap() {
                midge_vmm::sys::Reaped::None => std::thread::sleep(std::time::Duration::from_millis(1)),
                midge_vmm::sys::Reaped::Nobody => std::process::exit(0),
                midge_vmm::sys::Reaped::Child { status, .. } => midge_vmm::sys::end_as(status),
            }
        }
    }
    let (kind, deed) = case.split_once(' ').unwrap();
    let (kind, is_sibling) = kind.strip_prefix(SIBLING).map_or((kind, false), |kind| (kind, true));
    let (outside, known) = (Outside::prepare(), Known::from_environment());
    let wanted = Wanted { allow_missing: &[], limits: LIMITS, uds: None };
    let entered = jail::enter(&wanted, &mut Trace::start());
    let entered = entered.unwrap_or_else(|error| {
        println!("the jail cannot be entered: {error}");
        midge_vmm::sys::exit_now(1)
    });
    let thread = match kind {
        "main" => Some(Thread::Main),
        "vcpu" => Some(Thread::Vcpu),
        "block" => Some(Thread::Block),
        "resident" => Some(Thread::Resident),
        "first" => Some(Thread::First),
        _ => None,
    };
    if case == CASE_OF_NEIGHBOUR {
        neighbour::wait();
    }
    if is_sibling {
        let is_well = sibling::attempt(thread, deed, tell);
        tell(Ok(format!("; {}", if is_well { sibling::WELL } else { "sibling is gone" })));
    } else {
        if let Some(thread) = thread {
            jail::lock_in(thread).unwrap();
        }
        tell(match known.filter(|_| deed.contains("my neighbour")) {
            Some(neighbour) => neighbour.attempt(deed),
            None => outside.attempt(deed),
        });
    }
    drop(entered);
    midge_vmm::sys::exit_now(0);
}

/// Tells what an attempt came to.
fn tell(done: io::Result<String>) {
    let said = match done {
        Ok(what) => format!("{DONE}{what}"),
        Err(error) => format!("{REFUSED}: {error}"),
    };
    let _ = io::stdout().write_all(format!("\n{said}\n").as_bytes());
    let _ = io::stdout().flush();
}

/// What is there outside, before there is an inside.
struct Outside {
    /// A socket of the host with a path.
    _listener: UnixListener,
    uds: std::path::PathBuf,
    tcp: std::net::TcpListener,
    host_pid: u32,
}

impl Outside {
    fn prepare() -> Self {
        let uds = std::path::Path::new(&std::env::var_os(DIRECTORY).unwrap()).join("socket");
        let listener = UnixListener::bind(&uds).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self { _listener: listener, uds, tcp, host_pid: std::os::unix::process::parent_id() }
    }

    fn attempt(&self, deed: &str) -> io::Result<String> {
        let nothing = String::new;
        match deed {
            "read /etc/passwd" => File::open("/etc/passwd").map(|_| nothing()),
            "read /proc/self/status" => File::open("/proc/self/status").map(|_| nothing()),
            "list the root" => {
                let names: Vec<_> =
                    std::fs::read_dir("/")?.map_while(Result::ok).map(|entry| entry.file_name()).collect();
                if names.is_empty() { Err(io::Error::other("it is empty")) } else { Ok(format!(" {names:?}")) }
            }
            "make a file" => File::create("/file").map(|_| nothing()),
            "open /dev/kvm" => File::options().read(true).write(true).open("/dev/kvm").map(|_| nothing()),
            "connect to a socket of the host by its path" => UnixStream::connect(&self.uds).map(|_| nothing()),
            "connect to TCP on the loopback" => TcpStream::connect(self.tcp.local_addr()?).map(|_| nothing()),
            "send UDP to somewhere" => UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", "192.0.2.1:9").map(|_| nothing()),
            "run a program" => Command::new("/bin/true").status().map(|_| nothing()),
            "signal a process of the host" => midge_vmm::sys::signal(self.host_pid, libc::SIGURG).map(|()| nothing()),
            "trace the first process" => raw(libc::SYS_ptrace, [i64::from(libc::PTRACE_ATTACH), 1, 0, 0]),
            "mount a file system" => {
                let flags = rustix::mount::MountFlags::empty();
                Ok(rustix::mount::mount("none", "/", "tmpfs", flags, None).map(|()| nothing())?)
            }
            "become root" => raw(libc::SYS_setresuid, [0, 0, 0, 0]),
            "make more descriptors than allowed" => {
                let many: io::Result<Vec<_>> = (0..100).map(|_| Ok(rustix::io::dup(io::stdout())?)).collect();
                many.map(|_| nothing())
            }
            "leave the root by a descriptor" => {
                // The host's directories may still be reachable from one that was left open.
                for number in 3..32 {
                    if raw(libc::SYS_fchdir, [number, 0, 0, 0]).is_ok() {
                        return Ok(format!(" by {number}"));
                    }
                }
                Err(io::Error::other("none is a directory"))
            }
            "look around" => Ok(look_around()),
            _ => Ok(nothing()),
        }
    }
}

fn look_around() -> String {
    let parent = std::os::unix::process::parent_id();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let sets = rustix::thread::capabilities(None).unwrap();
    let capabilities = (sets.effective | sets.permitted | sets.inheritable).bits();
    let new = if rustix::thread::no_new_privs().unwrap() { "never" } else { "possible" };
    let is_dumpable = rustix::process::dumpable_behavior().unwrap() != rustix::process::DumpableBehavior::NotDumpable;
    let dumpable = if is_dumpable { "yes" } else { "no" };
    let own = std::process::id();
    format!(
        " process {own}, parent {parent}, host {host}, capabilities {capabilities}, new privileges {new}, dumpable {dumpable}"
    )
}

/// A call past the library.
pub(crate) fn raw(number: i64, arguments: [i64; 4]) -> io::Result<String> {
    call(number, arguments).map(|_| String::new())
}

/// The same, for what it gives.
pub(crate) fn call(number: i64, [a, b, c, d]: [i64; 4]) -> io::Result<i64> {
    call6(number, [a, b, c, d, 0, 0])
}

#[expect(unsafe_code, reason = "a system call by its number")]
pub(crate) fn call6(number: i64, [a, b, c, d, e, f]: [i64; 6]) -> io::Result<i64> {
    // SAFETY: calls made here touch no memory of this process but what they are given, which is alive.
    let got = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got) }
}
