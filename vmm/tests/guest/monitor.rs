// SPDX-License-Identifier: Apache-2.0
//! A monitor process under test.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use super::held::{MONITOR, monitor_of};

/// Ends the test with a printed reason where there is no KVM.
macro_rules! kvm_or_skip {
    () => {
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            println!("skipped: /dev/kvm cannot be used here ({error})");
            return;
        }
    };
}
pub(crate) use kvm_or_skip;

/// Ends the test with a printed reason where processes cannot be looked into.
macro_rules! root_or_skip {
    () => {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can look into a monitor, which cannot be dumped");
            return;
        }
    };
}
pub(crate) use root_or_skip;

/// By root, in a namespace of mounts that ends with it: a copy of the monitor and a `/dev/kvm` that the user may use, then the
/// monitor as that user.
const AS_USER: &str = r#"mount -t tmpfs none "$1" && cp "$2" "$1/monitor" && mknod -m 666 "$1/kvm" c 10 232 &&
    mount --bind "$1/kvm" /dev/kvm &&
    exec setpriv --reuid "$3" --regid "$3" --clear-groups --inh-caps=-all -- "$1/monitor" --config -"#;

/// A running monitor; killed when dropped.
pub(crate) struct Monitor {
    child: Child,
    lifeline: Option<ChildStdin>,
    events: Receiver<Value>,
    seen: Vec<Value>,
    stderr: Option<JoinHandle<String>>,
    _kernel: NamedTempFile,
    _place: Option<TempDir>,
}

/// How a monitor ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    /// Its last event, or null when it was killed before one.
    pub(crate) exit: Value,
    pub(crate) stderr: String,
    events: Vec<Value>,
}

/// One thread of a monitor, as /proc shows it.
pub(crate) struct Thread {
    pub(crate) name: String,
    status: String,
}

impl Monitor {
    /// Starts a guest with `kernel` as its kernel's file; `config` adds to the least document.
    pub(crate) fn start(kernel: &[u8], config: Value) -> Self {
        let mut command = Command::new(MONITOR);
        command.args(["--config", "-"]);
        Self::start_by(command, None, kernel, config)
    }

    /// The same, by root, as a user who has no rights but to use KVM.
    pub(crate) fn start_as(user: u32, kernel: &[u8], config: Value) -> Self {
        let place = TempDir::new().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", AS_USER, "sh"]);
        command.arg(place.path()).arg(MONITOR).arg(user.to_string());
        Self::start_by(command, Some(place), kernel, config)
    }

    fn start_by(mut command: Command, place: Option<TempDir>, kernel: &[u8], config: Value) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(kernel).unwrap();
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).unwrap();
        let mut document = serde_json::json!({ "kernel": file.path(), "mem_mib": 64, "cpus": 1 });
        for (field, value) in config.as_object().unwrap() {
            document[field] = value.clone();
        }
        let mut child =
            command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lifeline = child.stdin.take().unwrap();
        lifeline.write_all(format!("{document}\n").as_bytes()).unwrap();
        let (sender, events) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).unwrap();
            text
        });
        Self {
            child,
            lifeline: Some(lifeline),
            events,
            seen: Vec::new(),
            stderr: Some(stderr),
            _kernel: file,
            _place: place,
        }
    }

    /// Waits until the guest runs.
    pub(crate) fn wait_running(&mut self) {
        while !self.seen.iter().any(|event| event["name"] == "first_run") {
            let event = self.events.recv_timeout(Duration::from_secs(20)).expect("the guest never ran");
            self.seen.push(event);
        }
    }

    /// Waits until the guest has printed this line.
    pub(crate) fn wait_console(&mut self, line: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.seen.iter().any(|event| event["event"] == "console" && event["text"] == line) {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            self.seen.push(event.unwrap_or_else(|_| panic!("\"{line}\" never came; events: {:?}", self.seen)));
        }
    }

    pub(crate) fn close_lifeline(&mut self) {
        self.lifeline = None;
    }

    pub(crate) fn signal(&self, signal: i32) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// The process that runs the VM.
    pub(crate) fn pid(&self) -> u32 {
        monitor_of(self.child.id()).expect("it runs")
    }

    /// Its threads, but for the one that KVM keeps in the process.
    pub(crate) fn threads(&self) -> Vec<Thread> {
        let dir = format!("/proc/{}/task", self.pid());
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = fs::read_to_string(path.join("comm")).unwrap().trim().to_owned();
                Thread { name, status: fs::read_to_string(path.join("status")).unwrap() }
            })
            .filter(|thread| !thread.name.starts_with("kvm"))
            .collect()
    }

    /// What the monitor's descriptors refer to.
    pub(crate) fn open_files(&self) -> Vec<String> {
        let links = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        links.map(|link| fs::read_link(link.unwrap().path()).unwrap().to_string_lossy().into_owned()).collect()
    }

    /// Waits for the end, which must come within `patience`.
    pub(crate) fn wait(mut self, patience: Duration) -> End {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the monitor did not end; events: {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(2));
        };
        let mut events = std::mem::take(&mut self.seen);
        events.extend(self.events.iter());
        let exit = events.last().filter(|event| event["event"] == "exit").cloned().unwrap_or(Value::Null);
        let stderr = self.stderr.take().unwrap().join().unwrap();
        End { status, exit, stderr, events }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    /// The console's lines.
    pub(crate) fn console(&self) -> Vec<&str> {
        let lines = self.events.iter().filter(|event| event["event"] == "console");
        lines.map(|event| event["text"].as_str().unwrap()).collect()
    }

    /// The stages in the order in which they were told.
    pub(crate) fn stages(&self) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(|event| event["event"] == "stage")
    }
}

impl Thread {
    /// A field of the thread's status.
    pub(crate) fn status(&self, field: &str) -> &str {
        let line = self.status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {field} in {}", self.status)).trim()
    }
}
