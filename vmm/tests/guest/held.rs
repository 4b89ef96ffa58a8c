// SPDX-License-Identifier: Apache-2.0
//! Monitors that take orders, as their host holds them: a control socket and events of each.
//!
//! Orders and answers are written out as JSON here, from the table in the monitor's manual and not
//! from its types.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use midge_vmm::vsock::doorman;
use midge_vmm::vsock::host_socket::connect;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const MONITOR: &str = env!("CARGO_BIN_EXE_midge-vmm");
/// A user without any rights, whom root can become: how a monitor of somebody who is not root fares.
pub(crate) const NOBODY_ID: u32 = 54_321;
/// Memory of these guests.
pub(crate) const MEM_MIB: u64 = 32;
/// Far more than any order takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A VM, a resident or a fork. Ends when dropped, as its control socket closes.
pub(crate) struct Held {
    control: Option<OwnedFd>,
    events: Receiver<Value>,
    seen: Vec<Value>,
    /// Only what was started by this process is its child.
    child: Option<Child>,
    stderr: File,
    pub(crate) pid: u32,
    has_vsock: bool,
    pub(crate) dir: TempDir,
}

/// The files of a snapshot.
#[derive(Debug)]
pub(crate) struct Saved {
    _dir: TempDir,
    pub(crate) state: PathBuf,
    pub(crate) memory: PathBuf,
    pub(crate) layer: PathBuf,
    pub(crate) memory_bytes: u64,
}

/// What a process gets for its streams: control, events, stderr.
type Streams = [OwnedFd; 3];

impl Held {
    fn new(has_vsock: bool) -> (Self, Streams) {
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_timeout(&control, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        let stderr = tempfile::tempfile().unwrap();
        let their_stderr = stderr.try_clone().unwrap();
        let dir = TempDir::new().unwrap();
        let held =
            Self { control: Some(control), events, seen: Vec::new(), child: None, stderr, pid: 0, has_vsock, dir };
        (held, [theirs, writer.into(), their_stderr.into()])
    }

    /// Starts the binary; `config` adds to the least document.
    pub(crate) fn start(config: &Value) -> Self {
        let (mut held, [control, events, stderr]) = Self::new(config["vsock"].is_object());
        let mut document = json!({ "mem_mib": MEM_MIB, "cpus": 1, "forkable": true });
        for (field, value) in config.as_object().unwrap() {
            document[field] = value.clone();
        }
        if held.has_vsock {
            document["vsock"]["uds"] = json!(held.dir.path().join("v.sock"));
        }
        let child = Command::new(MONITOR)
            .args(["--config", "-"])
            .env_clear()
            .stdin(Stdio::from(control))
            .stdout(Stdio::from(events))
            .stderr(Stdio::from(stderr))
            .spawn()
            .unwrap();
        held.pid = child.id();
        held.child = Some(child);
        held.send(document.to_string().as_bytes(), &[]);
        held
    }

    /// Boots a kernel and waits until it runs.
    pub(crate) fn boot(kernel: &[u8], config: Value) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(kernel).unwrap();
        let mut config = config;
        config["kernel"] = json!(file.path());
        let mut held = Self::start(&config);
        held.wait_stage("first_run");
        held.pid = monitor_of(held.pid).unwrap_or(held.pid);
        held
    }

    /// Sends a datagram.
    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        self.try_send(bytes, descriptors).unwrap();
    }

    fn try_send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
        sendmsg(self.control.as_ref().unwrap(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next answer; `None` when the other end is closed.
    pub(crate) fn hear(&self) -> Option<Value> {
        self.hear_of().map(|(answer, _)| answer)
    }

    /// The next answer, and the number of the process that came with it.
    fn hear_of(&self) -> Option<(Value, Option<u32>)> {
        let mut bytes = vec![0; 1 << 16];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let socket = self.control.as_ref().unwrap();
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) if got.bytes == 0 => None,
            Err(rustix::io::Errno::CONNRESET) => None,
            Ok(got) => {
                let process = control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
                    _ => None,
                });
                Some((serde_json::from_slice(&bytes[..got.bytes]).unwrap(), process.as_ref().map(number_of)))
            }
            Err(error) => panic!("no answer: {error}"),
        }
    }

    /// Gives an order that is carried out, or says why it was not.
    pub(crate) fn order(&self, order: &Value, descriptors: &[BorrowedFd<'_>]) -> Result<Value, String> {
        self.order_of(order, descriptors).map(|(answer, _)| answer)
    }

    /// The same, with the number of the process that was made; 0 when it has ended already.
    fn order_of(&self, order: &Value, descriptors: &[BorrowedFd<'_>]) -> Result<(Value, u32), String> {
        self.send(order.to_string().as_bytes(), descriptors);
        let (answer, process) = self.hear_of().expect("an order is answered");
        match answer["failed"]["what"].as_str() {
            Some(what) => Err(what.to_owned()),
            None => Ok((answer, process.unwrap_or(0))),
        }
    }

    /// The resident that a freeze makes.
    pub(crate) fn try_freeze(&self) -> Result<Self, String> {
        let (mut held, streams) = Self::new(self.has_vsock);
        let (answer, process) = self.order_of(&json!({ "freeze": {} }), &streams.each_ref().map(AsFd::as_fd))?;
        assert!(answer["frozen"]["pause_us"].as_u64().unwrap() >= answer["frozen"]["fork_us"].as_u64().unwrap());
        held.pid = process;
        Ok(held)
    }

    /// Orders a freeze of a guest that may end meanwhile; `None` when it did.
    pub(crate) fn freeze_if_it_lives(&self) -> Option<Self> {
        let (held, streams) = Self::new(self.has_vsock);
        self.try_send(b"{\"freeze\":{}}", &streams.each_ref().map(AsFd::as_fd)).ok()?;
        let answer = self.hear();
        answer.is_some_and(|answer| answer["frozen"].is_object()).then_some(held)
    }

    pub(crate) fn freeze(&self) -> Self {
        self.try_freeze().unwrap()
    }

    /// A fork that a resident makes, not waited for.
    pub(crate) fn try_fork(&self) -> Result<Self, String> {
        let (mut held, streams) = Self::new(self.has_vsock);
        let uds = held.dir.path().join("v.sock");
        let doors = self.has_vsock.then(|| (UnixListener::bind(&uds).unwrap(), attend(&uds)));
        let doors: Vec<_> = doors.iter().flat_map(|(listener, line)| [listener.as_fd(), line.as_fd()]).collect();
        let descriptors: Vec<_> = streams.iter().map(AsFd::as_fd).chain(doors).collect();
        (_, held.pid) = self.order_of(&json!({ "fork": { "uds": uds } }), &descriptors)?;
        Ok(held)
    }

    /// A fork that runs.
    pub(crate) fn fork(&self) -> Self {
        let mut held = self.try_fork().unwrap();
        held.wait_stage("first_run");
        held
    }

    /// Writes what a resident holds; `layers` of its disks have changed pages.
    pub(crate) fn save(&self, layers: usize) -> Saved {
        let dir = TempDir::new().unwrap();
        let [state, memory, layer] = ["state", "memory", "layer"].map(|name| dir.path().join(name));
        let mut saved = Saved { _dir: dir, state, memory, layer, memory_bytes: 0 };
        let paths = [&saved.state, &saved.memory, &saved.layer];
        let files: Vec<_> = paths.iter().take(2 + layers).map(|path| File::create(path).unwrap()).collect();
        let answer = self.order(&json!({ "save": {} }), &files.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
        saved.memory_bytes = answer["saved"]["memory_bytes"].as_u64().unwrap();
        saved
    }

    /// Waits until a stage is told.
    pub(crate) fn wait_stage(&mut self, name: &str) {
        while !self.seen.iter().any(|event| event["name"] == name) {
            let event = self.events.recv_timeout(PATIENCE);
            let event = event.unwrap_or_else(|_| panic!("{name} was never reached: {:?}", self.seen));
            self.seen.push(event);
        }
    }

    pub(crate) fn stages(&self) -> Vec<&str> {
        self.seen.iter().filter_map(|event| event["name"].as_str()).collect()
    }

    /// Waits for the end of the process; its last event, or null when it was killed before one.
    pub(crate) fn wait_end(&mut self) -> Value {
        loop {
            match self.events.recv_timeout(PATIENCE) {
                Ok(event) => self.seen.push(event),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it did not end; events: {:?}", self.seen),
            }
        }
        self.seen.last().filter(|event| event["event"] == "exit").cloned().unwrap_or(Value::Null)
    }

    /// The exit code of a process that was started here.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.child.as_mut().unwrap().wait().unwrap().code()
    }

    /// Closes the control socket and returns how the process took it.
    pub(crate) fn end(&mut self) -> Value {
        self.close();
        self.wait_end()
    }

    pub(crate) fn close(&mut self) {
        self.control = None;
    }

    /// Whether the process' end of the control socket is closed.
    pub(crate) fn is_left(&self) -> bool {
        self.hear().is_none()
    }

    pub(crate) fn signal(&self, signal: i32) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.pid.to_string()).status();
        assert!(status.unwrap().success());
    }

    pub(crate) fn is_running(&self) -> bool {
        state_of(self.pid).is_some_and(|(_, state)| state != 'Z')
    }

    /// What its descriptors refer to.
    pub(crate) fn open_files(&self) -> Vec<String> {
        let links = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        let mut paths: Vec<_> =
            links.map(|link| fs::read_link(link.unwrap().path()).unwrap().to_string_lossy().into_owned()).collect();
        paths.sort();
        paths
    }

    /// A field of the main thread's status.
    pub(crate) fn status(&self, field: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
    }
}

impl Drop for Held {
    /// Whatever a test was about: its processes end when their hosts let go, and without a fault
    /// of their own.
    fn drop(&mut self) {
        self.control = None;
        if std::thread::panicking() || self.pid == 0 {
            self.child.as_mut().map(Child::kill);
        } else {
            self.wait_end();
            let mut said = vec![0; 4096];
            let len = self.stderr.read_at(&mut said, 0).unwrap();
            let said = String::from_utf8_lossy(&said[..len]);
            assert!(!said.contains("fatal") && !said.contains("panicked"), "{said}");
        }
        self.child.as_mut().map(Child::wait);
    }
}

impl Saved {
    /// The configuration of a VM that goes on here.
    pub(crate) fn config(&self, layers: &[Option<&Path>]) -> Value {
        json!({ "restore": { "state": self.state, "memory": self.memory, "layers": layers } })
    }

    /// Eight bytes of memory.
    pub(crate) fn word(&self, at: u32) -> u64 {
        word(&self.memory, u64::from(at))
    }
}

/// Lets the guest of a fork out, to paths that begin with `uds`; gives the fork's end of the line.
fn attend(uds: &Path) -> OwnedFd {
    let (theirs, line) = doorman::line().unwrap();
    let uds = uds.to_path_buf();
    std::thread::spawn(move || while doorman::attend(&line, |port| connect(&uds, port)).unwrap_or(false) {});
    theirs
}

/// The number of a process, from a descriptor of it; 0 when it is gone.
fn number_of(process: &OwnedFd) -> u32 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).unwrap();
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim();
    number.parse().unwrap_or(0)
}

/// The monitor in the jail whose keeper is `keeper`, while it is there: number 2 of its process namespace.
pub(crate) fn monitor_of(keeper: u32) -> Option<u32> {
    let is_second = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t2"))
    };
    children_of(keeper).into_iter().flat_map(children_of).find(is_second)
}

/// Eight bytes of a file.
pub(crate) fn word(path: &Path, at: u64) -> u64 {
    let mut bytes = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

/// Undoes for new processes that this one was started with `signal` ignored, as what a shell runs in the background is: a
/// signal with a handler has its default effect after an exec.
pub(crate) fn not_ignored_by_children(signal: i32) {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    if u64::from_str_radix(ignored, 16).unwrap() >> (signal - 1) & 1 == 1 {
        vmm_sys_util::signal::register_signal_handler(signal, nothing).unwrap();
    }
}

/// Parent and state of a process.
fn state_of(pid: u32) -> Option<(u32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?)).map(|(state, parent)| (parent, state))
}

fn processes() -> Vec<(u32, u32, char)> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    entries.filter_map(|pid| state_of(pid).map(|(parent, state)| (pid, parent, state))).collect()
}

/// The living children of a process.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    processes().iter().filter(|(_, of, state)| *of == parent && *state != 'Z').map(|(pid, ..)| *pid).collect()
}

/// The dead children of a process that nobody has asked after.
pub(crate) fn zombies_of(parent: u32) -> usize {
    processes().iter().filter(|(_, of, state)| *of == parent && *state == 'Z').count()
}

/// Waits for something that other processes do.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
