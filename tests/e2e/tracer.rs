// SPDX-License-Identifier: Apache-2.0
//! Stands in for the monitor: runs the real one, which lies beside it, and notes the system calls that threads with a
//! filter make.
//!
//! This test binary under the name of the monitor, as two processes more. The one that was started becomes the monitor's
//! parent, waits for it and ends as it does; the *tracer* follows the monitor and whatever comes of it by `ptrace(2)`, to
//! the last fork's end. Whose filter a thread has is seen when it puts it on: the program is compared with those that the
//! monitor was built with. A call is noted as the filter sees it, before the filter does.
//!
//! A monitor whose guest would have one of three odd sizes of memory meets something that no host can be asked for.
//!
//! All of it runs in an emulated host, whose files nobody can fetch: what monitors were seen to do is collected beside this
//! program, and told on the console whenever the last of them has ended.
#![expect(unsafe_code, reason = "ptrace(2) of a process with real-time signals has no safe name")]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use midge_vmm::disk::overlay::Overlay;
use midge_vmm::disk::{Base, Disk as _};
use midge_vmm::jail::{Thread, lock_in};
use nix::libc;
use vm_memory::VolatileSlice;

/// Memory of a guest whose monitor is told to stop by a signal to the process that was started, in MiB.
pub(crate) const STOPPED_MIB: u64 = 131;
/// Memory of a guest whose monitor is killed in its jail.
pub(crate) const KILLED_MIB: u64 = 133;
/// Memory of a guest for which no monitor is started, but a thread of one kind: a disk's, with its changes in a file. An
/// emulated host has no disk for such.
pub(crate) const DISK_MIB: u64 = 135;

/// What the real monitor's name ends with.
pub(crate) const REAL: &str = ".real";
/// And that of the file with the calls.
const CALLS: &str = ".calls";
/// How a line on the console begins.
pub(crate) const TOLD: &str = "midge-calls ";
/// Calls in a line on the console.
const CALLS_PER_LINE: usize = 16;
/// The first word of a process of ours that is no monitor's parent.
const BECOME: &str = "--become";
const FOLLOW: &str = "--follow";

/// System calls with an argument that some policy looks at, and which one that is.
pub(crate) const CONSTRAINED: [(i64, &str, usize); 9] = [
    (libc::SYS_ioctl, "ioctl", 1),
    (libc::SYS_mmap, "mmap", 2),
    (libc::SYS_mprotect, "mprotect", 2),
    (libc::SYS_madvise, "madvise", 2),
    (libc::SYS_fcntl, "fcntl", 1),
    (libc::SYS_socket, "socket", 0),
    (libc::SYS_clone, "clone", 0),
    (libc::SYS_prctl, "prctl", 0),
    (libc::SYS_tgkill, "tgkill", 2),
];

/// A call as it is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Call {
    /// The filters of the thread that made it: bit N is that of `Thread::ALL[N]`.
    pub(crate) filters: u8,
    /// Its number.
    pub(crate) number: u64,
    /// The argument that is looked at ([`CONSTRAINED`]), else 0.
    pub(crate) argument: u64,
}

impl Call {
    /// Whether the thread has the filter of this kind.
    pub(crate) fn is_filtered(&self, kind: usize) -> bool {
        self.filters >> kind & 1 == 1
    }

    fn text(&self) -> String {
        format!("{:x}.{:x}.{:x}", self.filters, self.number, self.argument)
    }

    /// What [`Call::text`] has made.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('.').map(|field| u64::from_str_radix(field, 16).ok());
        let (filters, number, argument) = (fields.next()??, fields.next()??, fields.next()??);
        Some(Self { filters: u8::try_from(filters).ok()?, number, argument })
    }
}

/// Whether this process was started as a monitor, or by one that was.
pub(crate) fn is_called() -> bool {
    own_path().file_name().is_some_and(|name| name == "midge-vmm")
}

fn own_path() -> PathBuf {
    std::env::current_exe().expect("this program has a path")
}

/// The path of this program with an ending.
pub(crate) fn beside(ending: &str) -> PathBuf {
    let mut path = own_path().into_os_string();
    path.push(ending);
    path.into()
}

/// One of the three processes.
pub(crate) fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some(BECOME) => become_monitor(&words[1..]),
        Some(FOLLOW) => follow(words[1].parse().expect("a process id"), words[2].parse().expect("a size")),
        _ => attend(&words),
    }
}

/// The monitor's configuration, which stays where it is: the first datagram of the control socket.
pub(crate) fn configuration() -> serde_json::Value {
    let mut text = vec![0; 128 << 10];
    // SAFETY: `text` is alive and as long as it is said to be.
    let len = unsafe { libc::recv(0, text.as_mut_ptr().cast(), text.len(), libc::MSG_PEEK) };
    text.truncate(usize::try_from(len).unwrap_or(0));
    serde_json::from_slice(&text).unwrap_or_default()
}

/// The parent: starts the other two and ends as the monitor does.
fn attend(words: &[String]) -> ExitCode {
    let mib = configuration()["mem_mib"].as_u64().unwrap_or(0).to_string();
    let mut monitor = Command::new(own_path()).args([BECOME, &mib]).args(words).spawn().expect("a process");
    let mut tracer = Command::new(own_path())
        .args([FOLLOW, &monitor.id().to_string(), &mib])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process");
    leave_streams();
    let status = monitor.wait().expect("a child of ours");
    // It follows forks that go on; whoever adopts it reaps it.
    let _ = tracer.try_wait();
    end_as(status)
}

/// Leaves the standard streams to the monitor alone: who listens for their ends waits for its end, and not for its forks' or
/// ours.
pub(crate) fn leave_streams() {
    for stream in 0..3 {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").expect("there is /dev/null");
        // SAFETY: the standard streams are owned by nobody, and nothing is written to them from here on.
        unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), stream) };
    }
}

/// Ends this process as the monitor did.
pub(crate) fn end_as(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => {
            let signal = signal.unwrap_or(libc::SIGKILL);
            // SAFETY: a signal to this process itself.
            unsafe { libc::raise(signal) };
            ExitCode::FAILURE
        }
    }
}

/// The monitor, once somebody follows it. It does not outlive its parent.
fn become_monitor(words: &[String]) -> ExitCode {
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: a signal to this process itself.
    unsafe { libc::raise(libc::SIGSTOP) };
    if words[0] == DISK_MIB.to_string() {
        return be_disk();
    }
    let error = Command::new(beside(REAL)).args(&words[1..]).env_clear().exec();
    eprintln!("tracer: {}: {error}", beside(REAL).display());
    ExitCode::FAILURE
}

/// A disk's thread with its changes in a file, once around.
fn be_disk() -> ExitCode {
    const DISK_BYTES: u64 = 1 << 20;
    let base = tempfile::tempfile().expect("a file");
    base.set_len(DISK_BYTES).expect("a file");
    let base = Box::new(Base::new(base).expect("a base"));
    let overlay = Overlay::in_file(base, tempfile::tempfile().expect("a file"), DISK_BYTES);
    let mut disk = overlay.expect("an overlay");
    let mut bytes = vec![7; 10_000];
    let slice = [VolatileSlice::from(bytes.as_mut_slice())];
    lock_in(Thread::Block).expect("a filter");
    disk.write_at(1000, &slice).expect("written");
    disk.read_at(500, &slice).expect("read");
    disk.flush().expect("flushed");
    disk.discard(4096, 4096).expect("discarded");
    disk.write_zeroes(0, DISK_BYTES, true).expect("zeroed");
    disk.flush().expect("flushed");
    // No thread of this kind ends its process.
    loop {
        // SAFETY: it ends this thread, the last one.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

fn ptrace(request: u32, pid: i32, address: usize, data: usize) -> io::Result<u64> {
    // SAFETY: requests that write to this process are given the address of a live value of their kind; what they do to the
    // process that is traced is its concern.
    let got = unsafe { libc::ptrace(request, pid, address, data) };
    // A word of a program is never -1.
    if got == -1 { Err(io::Error::last_os_error()) } else { Ok(got.cast_unsigned()) }
}

/// The tracer.
fn follow(monitor: i32, mib: u64) -> ExitCode {
    merge(&BTreeSet::new(), 1);
    let options = libc::PTRACE_O_EXITKILL
        | libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACEEXEC;
    let options = usize::try_from(options).expect("bits");
    // It stops by itself, sooner or later; only then may it go on.
    while !is_stopped(monitor) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    ptrace(libc::PTRACE_SEIZE, monitor, 0, options).expect("root may trace its processes");
    // SAFETY: a signal to a process of ours.
    unsafe { libc::kill(monitor, libc::SIGCONT) };
    let calls = Tracer::new(monitor, mib).run();
    let calls: BTreeSet<String> = calls.iter().map(Call::text).collect();
    merge(&calls, -1);
    ExitCode::SUCCESS
}

fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
}

/// Adds calls to those of other monitors; `change` in the number of monitors that live.
fn merge(calls: &BTreeSet<String>, change: i64) {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(beside(CALLS));
    let mut file: File = file.expect("a file beside this program");
    file.lock().expect("a lock");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("text");
    let mut words = text.split_whitespace();
    let alive = words.next().map_or(0, |word| word.parse::<i64>().expect("a number")) + change;
    let mut all: BTreeSet<String> = words.map(str::to_owned).collect();
    all.extend(calls.iter().cloned());
    file.rewind().expect("a file");
    file.set_len(0).expect("a file");
    let words: Vec<&str> = all.iter().map(String::as_str).collect();
    file.write_all(format!("{alive}\n{}\n", words.join("\n")).as_bytes()).expect("there is room");
    if alive == 0
        && let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console")
    {
        let lines = words.chunks(CALLS_PER_LINE);
        let count = lines.len();
        for (index, line) in lines.enumerate() {
            let _ = console.write_all(format!("{TOLD}{index}/{count} {}\n", line.join(" ")).as_bytes());
        }
    }
}

/// What is known of the threads that are followed.
struct Tracer {
    programs: Vec<Vec<u64>>,
    /// The filters of each.
    threads: HashMap<i32, u8>,
    /// Those that stand still until it is known whose they are.
    waiting: HashSet<i32>,
    calls: HashSet<Call>,
    /// The process that was started, and the memory of its guest.
    monitor: (i32, u64),
}

impl Tracer {
    fn new(monitor: i32, mib: u64) -> Self {
        let words = |kind: Thread| {
            kind.policy()
                .chunks_exact(8)
                .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
                .collect()
        };
        Self {
            programs: Thread::ALL.map(words).to_vec(),
            threads: HashMap::from([(monitor, 0)]),
            waiting: HashSet::new(),
            calls: HashSet::new(),
            monitor: (monitor, mib),
        }
    }

    /// Follows them to the end of the last one.
    fn run(mut self) -> HashSet<Call> {
        loop {
            let mut status = 0;
            // SAFETY: `status` is alive.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
            if pid < 0 {
                return self.calls;
            }
            if libc::WIFSTOPPED(status) {
                self.stopped(pid, libc::WSTOPSIG(status), status >> 16);
            } else {
                self.threads.remove(&pid);
            }
        }
    }

    fn stopped(&mut self, pid: i32, signal: i32, event: i32) {
        let go_on = |pid, signal: i32| {
            // One that was killed meanwhile does not go on.
            let _ = ptrace(libc::PTRACE_SYSCALL, pid, 0, usize::try_from(signal).unwrap_or(0));
        };
        match event {
            libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => {
                let mut made = 0_u64;
                if ptrace(libc::PTRACE_GETEVENTMSG, pid, 0, (&raw mut made).addr()).is_ok() {
                    let made = i32::try_from(made).expect("a thread's number");
                    self.threads.insert(made, self.threads.get(&pid).copied().unwrap_or(0));
                    if self.waiting.remove(&made) {
                        go_on(made, 0);
                    }
                }
                go_on(pid, 0);
            }
            libc::PTRACE_EVENT_STOP if !self.threads.contains_key(&pid) => drop(self.waiting.insert(pid)),
            libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => {
                let _ = ptrace(libc::PTRACE_LISTEN, pid, 0, 0);
            }
            0 if signal == libc::SIGTRAP | 0x80 => {
                self.note(pid);
                go_on(pid, 0);
            }
            0 => go_on(pid, signal),
            _ => go_on(pid, 0),
        }
    }

    /// Notes the call that a thread is about to make.
    fn note(&mut self, pid: i32) {
        // SAFETY: all of it are numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        if ptrace(libc::PTRACE_GETREGS, pid, 0, (&raw mut registers).addr()).is_err() {
            return;
        }
        // What a call will give is not known before it is made; behind it, it is noted once more at worst.
        if registers.rax.cast_signed() != -i64::from(libc::ENOSYS) {
            return;
        }
        let number = registers.orig_rax;
        let arguments = [registers.rdi, registers.rsi, registers.rdx];
        let filters = self.threads.get(&pid).copied().unwrap_or(0);
        if filters != 0 {
            let looked_at = CONSTRAINED.iter().find(|(constrained, ..)| constrained.cast_unsigned() == number);
            let argument = looked_at.map_or(0, |(_, _, index)| arguments[*index]);
            self.calls.insert(Call { filters, number, argument });
            self.meddle(pid, number);
        }
        if number == libc::SYS_seccomp.cast_unsigned() && arguments[0] == u64::from(libc::SECCOMP_SET_MODE_FILTER) {
            let program = program_of(pid, usize::try_from(arguments[2]).expect("an address"));
            if let Some(kind) = self.programs.iter().position(|known| *known == program) {
                self.threads.insert(pid, filters | 1 << kind);
            }
        }
    }
}

impl Tracer {
    /// What some monitors meet as soon as they wait for events.
    fn meddle(&mut self, pid: i32, number: u64) {
        if number != libc::SYS_epoll_wait.cast_unsigned() {
            return;
        }
        let (to, signal) = match self.monitor {
            (keeper, STOPPED_MIB) => (keeper, libc::SIGTERM),
            (_, KILLED_MIB) => (pid, libc::SIGKILL),
            _ => return,
        };
        self.monitor.1 = 0;
        // SAFETY: a signal to a process that is followed.
        unsafe { libc::kill(to, signal) };
    }
}

/// The filter that a thread is putting on: `struct sock_fprog` is a half word, the length, and an address.
fn program_of(pid: i32, at: usize) -> Vec<u64> {
    let word = |at: usize| ptrace(libc::PTRACE_PEEKDATA, pid, at, 0);
    let read = || {
        let len = usize::try_from(word(at)? & 0xffff).map_err(io::Error::other)?;
        let first = usize::try_from(word(at + 8)?).map_err(io::Error::other)?;
        (0..len).map(|index| word(first + 8 * index)).collect::<io::Result<Vec<u64>>>()
    };
    read().unwrap_or_default()
}
