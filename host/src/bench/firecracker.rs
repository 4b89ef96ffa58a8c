// SPDX-License-Identifier: Apache-2.0
//! Firecracker's way to a sandbox that answers: a snapshot that is made once, of a guest with our kernel, agent and root,
//! and loaded by a process of its own for each run. Its agent was frozen and is resumed as ours are.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use midge_protocol::{AGENT_PORT, Freeze, NEWEST_VERSION, ToAgent, ToHost};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::greeting::{Greeter, since_us};
use super::lab::{TRUE, Timed};
use super::launch::{PEER_WORDS, Payload, Started, firecracker_config, firecracker_drive, prepare};
use super::talk::{Talk, connect, welcome};
use super::{BenchError, Sample, exits};
use crate::exec::Exec;
use crate::monitor::VmmConfig;

const WHO: &str = "firecracker";
/// Its files in the directory of a run; relative, so that every run has its own.
const UDS: &str = "v.sock";
const API: &str = "api.sock";
const DISK: &str = "disk";
/// After which silence a restored guest is asked again.
const AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// How long a frozen guest is left alone before it is paused.
const SETTLE: Duration = Duration::from_millis(200);
/// How often its socket is looked for, which it makes within milliseconds.
const PAUSE: Duration = Duration::from_micros(100);

/// A snapshot of Firecracker's.
#[derive(Debug)]
pub(super) struct Snapshot {
    program: PathBuf,
    limit: Duration,
    dir: tempfile::TempDir,
}

/// A guest that goes on where the snapshot was taken.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) started: Started,
    _control: Talk,
    _dir: tempfile::TempDir,
}

fn temporary() -> Result<tempfile::TempDir, BenchError> {
    tempfile::Builder::new().prefix("midge-bench-").tempdir().map_err(prepare(WHO))
}

fn guest(text: String) -> BenchError {
    BenchError::Guest { contender: WHO, text }
}

impl Snapshot {
    /// Boots the machine that `config` describes, has its agent bring everything to a stand, and keeps it.
    pub(super) fn make(program: &Path, config: &VmmConfig, limit: Duration) -> Result<Self, BenchError> {
        let program = program.canonicalize().map_err(prepare(WHO))?;
        let dir = temporary()?;
        write_config(dir.path(), config, limit)?;
        let greeter = Greeter::bind(&dir.path().join(UDS)).map_err(prepare(WHO))?;
        let mut command = Command::new(&program);
        command.args(["--api-sock", API, "--config-file", "config.json"]).current_dir(dir.path()).stdin(Stdio::null());
        let mut started = Started::run(WHO, &mut command, dir.path().join(UDS), limit)?;
        let Some(mut greeted) = greeter.greet(started.start, || started.is_late()).map_err(guest)? else {
            return Err(started.late());
        };
        greeted.talk.send(&[ToAgent::Freeze(Freeze { leave: true })]).map_err(guest)?;
        greeted.talk.expect(&ToHost::Done, || started.is_late()).map_err(guest)?;
        // Until its processor has nothing to do: a guest is best caught halted, and ours are.
        std::thread::sleep(SETTLE);
        let mut api = UnixStream::connect(dir.path().join(API)).map_err(prepare(WHO))?;
        request(&mut api, "PATCH", "/vm", &json!({"state": "Paused"}))?;
        let files = json!({"snapshot_type": "Full", "snapshot_path": "state", "mem_file_path": "memory"});
        request(&mut api, "PUT", "/snapshot/create", &files)?;
        drop(started);
        Ok(Self { program, limit, dir })
    }

    /// The files that a run reads.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let own = ["state", "memory", DISK].map(|name| self.dir.path().join(name));
        own.into_iter().chain([self.program.clone()]).collect()
    }

    /// Loads it, has the guest run a command, and ends it.
    pub(super) fn once(&self) -> Result<Timed, BenchError> {
        let (mut restored, mut stages) = self.load()?;
        let started = &mut restored.started;
        run_true(&mut self.call(started)?, || started.is_late()).map_err(guest)?;
        stages.push(("answered".to_owned(), since_us(started.start)));
        let answered = Sample { value: stages.last().map_or(0, |(_, us)| *us), stages };
        let exits = exits::of(started.child.id());
        let end = Instant::now();
        drop(restored.started);
        Ok(Timed { answered, gone_us: Some(since_us(end)), exits })
    }

    /// A guest that runs; it needs the snapshot's files.
    pub(super) fn restored(&self) -> Result<Restored, BenchError> {
        Ok(self.load()?.0)
    }

    /// Loads it and resumes its agent; tells the stages on the way.
    fn load(&self) -> Result<(Restored, Vec<(String, u64)>), BenchError> {
        let dir = temporary()?;
        // A run may write to its disk; the copy is not part of its time.
        std::fs::copy(self.dir.path().join(DISK), dir.path().join(DISK)).map_err(prepare(WHO))?;
        let mut command = Command::new(&self.program);
        command.args(["--api-sock", API]).current_dir(dir.path()).stdin(Stdio::null());
        let mut started = Started::run(WHO, &mut command, dir.path().join(UDS), self.limit)?;
        let start = started.start;
        let mut stages = Vec::new();
        let mut note = |name: &str| stages.push((name.to_owned(), since_us(start)));
        let Some(mut api) = self.socket(&dir.path().join(API), &mut started) else { return Err(started.late()) };
        note("api_ready");
        let path = |name: &str| self.dir.path().join(name);
        let backend = json!({"backend_path": path("memory"), "backend_type": "File"});
        let load = json!({"snapshot_path": path("state"), "mem_backend": backend, "resume_vm": true});
        request(&mut api, "PUT", "/snapshot/load", &load)?;
        note("loaded");
        let control = self.resume(&mut started)?;
        note("resumed");
        Ok((Restored { started, _control: control, _dir: dir }, stages))
    }

    fn socket(&self, path: &Path, started: &mut Started) -> Option<UnixStream> {
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return stream.set_read_timeout(Some(self.limit)).is_ok().then_some(stream),
                Err(_) if started.is_late() => return None,
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Resumes the agent. What is opened before its guest has heard of the restore is lost, sometimes in silence: it is
    /// asked again every [`AGAIN`] until an answer comes.
    fn resume(&self, started: &mut Started) -> Result<Talk, BenchError> {
        let mut asked: Vec<Talk> = Vec::new();
        while !started.is_late() {
            if let Ok(mut talk) = self.call(started)
                && talk.send(&[ToAgent::Resume(welcome(NEWEST_VERSION))]).is_ok()
            {
                asked.push(talk);
            }
            let mut fds: Vec<_> = asked.iter().map(|talk| PollFd::new(talk, PollFlags::IN)).collect();
            poll(&mut fds, Some(&AGAIN)).map_err(|error| prepare(WHO)(error.into()))?;
            let speaks = fds.iter().position(|fd| !fd.revents().is_empty());
            let Some(mut talk) = speaks.map(|index| asked.remove(index)) else { continue };
            match talk.next(|| true) {
                // An error: it has heard an earlier one.
                Ok(Some(ToHost::Done | ToHost::Error(_))) => return Ok(talk),
                Ok(Some(other)) => return Err(guest(format!("{other:?} in place of Done"))),
                Ok(None) | Err(_) => {}
            }
        }
        Err(guest("its agent does not answer after a restore".to_owned()))
    }

    fn call(&self, started: &Started) -> Result<Talk, BenchError> {
        connect(&started.uds, AGENT_PORT, self.limit).and_then(Talk::over).map_err(guest)
    }
}

/// Writes what Firecracker is told, and the disk that its guest writes to.
fn write_config(dir: &Path, config: &VmmConfig, limit: Duration) -> Result<(), BenchError> {
    let payload = Payload {
        kernel: config.kernel.clone().unwrap_or_default(),
        initramfs: config.initramfs.clone().unwrap_or_default(),
        mem_mib: config.mem_mib,
        disk: None,
        limit,
    };
    let mut drives = Vec::new();
    for (index, disk) in config.disks.iter().enumerate() {
        let name = format!("disk{index}");
        if disk.is_writable() {
            std::fs::copy(&disk.path, dir.join(DISK)).map_err(prepare(WHO))?;
            drives.push(firecracker_drive(&name, Path::new(DISK), false));
        } else {
            drives.push(firecracker_drive(&name, &disk.path, true));
        }
    }
    let words = format!("{PEER_WORDS} {}", config.cmdline);
    let mut document = firecracker_config(&payload, &words, &drives, Path::new(UDS));
    if !config.extra_msrs.is_empty() {
        document["cpu-config"] = json!("cpu.json");
        std::fs::write(dir.join("cpu.json"), cpu_template(&config.extra_msrs).to_string()).map_err(prepare(WHO))?;
    }
    std::fs::write(dir.join("config.json"), document.to_string()).map_err(prepare(WHO))
}

/// A template that changes nothing, but has these registers kept in snapshots.
fn cpu_template(registers: &[u32]) -> Value {
    let unchanged = format!("0b{}", "x".repeat(64));
    let modifiers = registers.iter().map(|register| json!({"addr": format!("{register:#x}"), "bitmap": unchanged}));
    json!({"msr_modifiers": modifiers.collect::<Vec<_>>()})
}

/// Runs the command whose end is the answer.
pub(super) fn run_true(talk: &mut Talk, mut give_up: impl FnMut() -> bool) -> Result<(), String> {
    talk.send(&[ToAgent::Exec(Exec::new([TRUE]).message)])?;
    loop {
        match talk.next(&mut give_up)? {
            Some(ToHost::Started(_)) => {}
            Some(ToHost::Exited(exited)) if exited.number == 0 => return Ok(()),
            Some(other) => return Err(format!("{other:?} in place of an exit status")),
            None => return Err("no exit status in time".to_owned()),
        }
    }
}

/// A request to Firecracker's API that must succeed.
fn request(api: &mut UnixStream, method: &str, path: &str, body: &Value) -> Result<(), BenchError> {
    let body = body.to_string();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length:");
    let whole = format!("{head} {}\r\n\r\n{body}", body.len());
    let answer = api.write_all(whole.as_bytes()).and_then(|()| answer(api)).map_err(prepare(WHO))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status.starts_with('2') {
        Ok(())
    } else {
        Err(guest(format!("{method} {path} was answered: {}", answer.trim())))
    }
}

/// Head and body of an answer.
fn answer(api: &mut impl Read) -> std::io::Result<String> {
    const MAX_BYTES: usize = 64 << 10;
    let (mut text, mut chunk) = (String::new(), [0; 4096]);
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|(_, length)| length.trim().parse().ok()).unwrap_or(0);
            if body.len() >= length {
                return Ok(text);
            }
        }
        let got = api.read(&mut chunk)?;
        if got == 0 || text.len() > MAX_BYTES {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.push_str(&String::from_utf8_lossy(&chunk[..got]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_to_their_end_and_no_further() {
        let pieces: &[&[u8]] = &[b"HTTP/1.1 400 Bad\r\nContent-", b"Length: 5\r\n\r\nwh", b"y??", b"next"];
        let mut left = pieces.iter();
        struct Pieces<'a, 'b>(&'a mut std::slice::Iter<'b, &'b [u8]>);
        impl Read for Pieces<'_, '_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let piece = self.0.next().copied().unwrap_or_default();
                buffer[..piece.len()].copy_from_slice(piece);
                Ok(piece.len())
            }
        }
        assert!(answer(&mut Pieces(&mut left)).unwrap().ends_with("why??"));
        assert_eq!(left.next().copied(), Some(&b"next"[..]));
        assert_eq!(answer(&mut &b"HTTP/1.1 204 \r\n\r\n"[..]).unwrap(), "HTTP/1.1 204 \r\n\r\n");
        assert!(answer(&mut &b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nx"[..]).is_err());
    }

    #[test]
    fn registers_are_kept_and_not_changed() {
        let template = cpu_template(&[0x4b56_4d10]);
        assert_eq!(template["msr_modifiers"][0]["addr"], "0x4b564d10");
        assert_eq!(template["msr_modifiers"][0]["bitmap"].as_str().unwrap().len(), 66);
    }
}
