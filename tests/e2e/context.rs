// SPDX-License-Identifier: Apache-2.0
//! What a test gets: the place its guests run in, and calls of the `midge` binary with a deadline.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::place::Place;

/// Longest a single call of `midge` may take unless a test says otherwise.
const CALL_MAX: Duration = Duration::from_secs(120);

/// The surroundings of one place's tests.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where guests run.
    pub(crate) place: Place,
    /// Directory with copies of `midge`, `midge-vmm` and `midge-agent`: whoever runs from here was started by a test.
    pub(crate) bin: PathBuf,
    /// `XDG_RUNTIME_DIR` of every call: what is left in it was left by Midge.
    pub(crate) runtime: tempfile::TempDir,
    /// `TMPDIR` of every call.
    pub(crate) temporary: tempfile::TempDir,
}

impl Context {
    /// A call of `midge` with these arguments, in this place.
    pub(crate) fn midge<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Call {
        self.program(&self.bin.join("midge"), args)
    }

    /// A call of another program in the same surroundings.
    pub(crate) fn program<S: AsRef<OsStr>>(&self, program: &Path, args: impl IntoIterator<Item = S>) -> Call {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .env("TMPDIR", self.temporary.path())
            .env_remove("MIDGE_LOG");
        Call { command, stdin: Vec::new(), limit: CALL_MAX }.at(&self.place)
    }

    /// `midge run FLAGS -- sh -c SCRIPT`.
    pub(crate) fn sh(&self, flags: &[&str], script: &str) -> Call {
        let words = ["run"].into_iter().chain(flags.iter().copied()).chain(["--", "sh", "-c", script]);
        self.midge(words)
    }

    /// Picks by place: natively things are fast, in the emulated host they are not.
    pub(crate) fn scaled<T>(&self, native: T, emulated: T) -> T {
        if matches!(self.place, Place::Emulated(_)) { emulated } else { native }
    }

    /// Processes of this machine that run the monitor under test.
    pub(crate) fn monitors(&self) -> Vec<i32> {
        let binary = self.bin.join("midge-vmm");
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == binary)).collect()
    }

    /// The directories of the runs that there are, or were.
    pub(crate) fn run_directories(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.runtime.path().join("midge")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Fails unless every run directory is gone (waits a little: a killed monitor is reaped late).
    pub(crate) fn assert_nothing_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = self.run_directories();
            // Those of an emulated host are in it; here there are only the other lane's.
            let is_here = self.scaled(true, false);
            let processes = if is_here { self.monitors() } else { Vec::new() };
            if left.is_empty() && processes.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: files {left:?}, processes {processes:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A call of `midge` that has not started.
#[derive(Debug)]
pub(crate) struct Call {
    command: Command,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Call {
    /// Sets a variable of `midge`'s environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Has guests run in this place.
    pub(crate) fn at(mut self, place: &Place) -> Self {
        self.command.envs(place.environment());
        self
    }

    /// Bytes for standard input.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Runs `midge` as this user and group.
    pub(crate) fn user(mut self, id: u32) -> Self {
        self.command.uid(id).gid(id);
        self
    }

    /// Another deadline.
    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Outcome {
        self.start().finish()
    }

    /// Starts it with pipes on all three streams.
    pub(crate) fn start(mut self) -> Running {
        let words: Vec<OsString> = self.command.get_args().map(OsStr::to_owned).collect();
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
        let mut input = child.stdin.take().expect("piped");
        let bytes = self.stdin;
        // A writer of its own: the command may print before it has read everything. It may also never read.
        std::thread::spawn(move || drop(input.write_all(&bytes)));
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        Running { child, stdout, stderr, start: Instant::now(), limit: self.limit, words }
    }

    /// The command itself, for tests that arrange the streams themselves.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    })
}

/// A call of `midge` under way.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process.
    pub(crate) child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    start: Instant,
    limit: Duration,
    words: Vec<OsString>,
}

impl Running {
    /// Sends a signal by number.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("the process is ours");
    }

    /// Waits for the end; past the deadline it is killed and the test fails.
    pub(crate) fn finish(mut self) -> Outcome {
        let status = wait(&mut self.child, self.start + self.limit);
        let took = self.start.elapsed();
        let late = status.is_none();
        let status = status.unwrap_or_else(|| {
            self.child.kill().expect("the process is ours");
            self.child.wait().expect("the process is ours")
        });
        let stdout = self.stdout.join().expect("reads");
        let stderr = String::from_utf8_lossy(&self.stderr.join().expect("reads")).into_owned();
        let outcome = Outcome { status, stdout, stderr, took, words: self.words };
        assert!(!late, "no end within {:?}: {outcome}", self.limit);
        outcome
    }
}

/// The child's status, or `None` when it still runs at the deadline.
pub(crate) fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().expect("the process is ours") {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a call of `midge` did.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Its standard output.
    pub(crate) stdout: Vec<u8>,
    /// Its standard error.
    pub(crate) stderr: String,
    /// From start to end.
    pub(crate) took: Duration,
    words: Vec<OsString>,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2000)]).into_owned();
        write!(
            f,
            "midge {:?}: {} after {:.1?}\nstdout: {shown}\nstderr: {}",
            self.words, self.status, self.took, self.stderr
        )
    }
}

impl Outcome {
    /// Fails unless `midge` exited with `code`.
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Exit code as a shell would see it.
    pub(crate) fn shell_code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Fails unless standard output is exactly `text`.
    pub(crate) fn out(self, text: &str) -> Self {
        assert_eq!(String::from_utf8_lossy(&self.stdout), text, "{self}");
        self
    }

    /// Fails unless standard error holds every one of `parts`, letter case aside.
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        let lower = self.stderr.to_lowercase();
        for part in parts {
            assert!(lower.contains(&part.to_lowercase()), "stderr does not say `{part}`: {self}");
        }
        self
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}
