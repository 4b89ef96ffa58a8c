// SPDX-License-Identifier: Apache-2.0
//! What the monitor tells the world: one JSON object a line on stdout.
//!
//! Stages are kept in memory until the guest runs, so that reporting costs a boot nothing, and
//! are then written in one go. A reader that went away is no error: the VM does not depend on it.
//! Nothing here ever carries guest memory except console text, which is marked as such.

use std::io::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sys;

/// Points of a start, in the order in which they are passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// `main` was entered.
    Exec,
    /// A resident got the order to make this VM: the beginning of a fork, in place of `Exec`.
    ForkAsked,
    /// The fork is a process of its own.
    Forked,
    /// The configuration was read and checked.
    ConfigRead,
    /// The jail: a process in namespaces of its own.
    Namespaces,
    /// Its root is empty.
    EmptyRoot,
    /// It has no rights left, and the monitor is a process of its own in it.
    Enclosed,
    /// The state of a snapshot was read and its memory mapped.
    StateRead,
    /// A resident waits for orders.
    Resident,
    /// /dev/kvm was opened and its capabilities checked.
    KvmReady,
    /// Guest memory is mapped and known to KVM.
    MemoryReady,
    /// Kernel, initramfs and boot tables are in guest memory.
    KernelMapped,
    /// vCPUs exist with their registers and threads.
    VcpusReady,
    /// Every thread runs under its system-call filter.
    Jailed,
    /// The first vCPU is about to enter the guest.
    FirstRun,
}

/// Why a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The guest asked for a reset: an orderly end.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// The guest's CPU gave up: a fault while handling a fault while handling a fault.
    TripleFault,
    /// The host asked for it: SIGTERM, or the lifeline closed.
    Stopped,
    /// The host failed the VM.
    HostError,
    /// The configuration was refused; nothing ran.
    Config,
}

impl Reason {
    /// The exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Reset | Self::Stopped => 0,
            Self::Config => 2,
            Self::HostError => 3,
            Self::Panic => 4,
            Self::TripleFault => 5,
        }
    }
}

/// A reading of the vCPUs' counters: exits to this process by kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExitCounts {
    /// Port accesses.
    pub io: u64,
    /// Accesses to device registers that no ioeventfd took.
    pub mmio: u64,
    /// Returns because of a signal to the thread.
    pub interrupted: u64,
    /// Everything else.
    pub other: u64,
}

/// How a VM ended, with what is known about it.
#[derive(Debug, Serialize)]
pub struct Ending {
    /// Why.
    pub reason: Reason,
    /// One line for a human.
    pub detail: String,
    /// The console's last lines, oldest first.
    pub console_tail: Vec<String>,
    /// How often the guest left to this process, by kind.
    pub exits: ExitCounts,
    /// The memory that the guest has written to, where that was to be told: guest-physical address and length of each part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<(u64, u64)>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Stage { name: Stage, t_us: u128, mono_ns: u128 },
    Console { text: &'a str },
    Exit(&'a Ending),
}

/// The clock of one run and the stages passed so far.
#[derive(Debug)]
pub struct Trace {
    start: Instant,
    start_mono: Duration,
    stages: Vec<(Stage, Instant)>,
}

impl Trace {
    /// Starts the clock; the first thing `main` does.
    pub fn start() -> Self {
        let start = Instant::now();
        let start_mono = Duration::from_nanos(sys::monotonic_ns());
        Self { start, start_mono, stages: vec![(Stage::Exec, start)] }
    }

    /// Starts the clock at `stage`, which was reached at `when`, a moment ago.
    pub fn begin(stage: Stage, when: Instant) -> Self {
        let since = Duration::from_nanos(sys::monotonic_ns());
        Self { start: when, start_mono: since.saturating_sub(when.elapsed()), stages: vec![(stage, when)] }
    }

    /// Marks a stage as reached now.
    pub fn mark(&mut self, stage: Stage) {
        self.mark_at(stage, Instant::now());
    }

    /// Marks a stage as reached at `when`, by another thread's clock reading. A stage is not
    /// reached before the one marked before it, even if its own part of the work was.
    pub fn mark_at(&mut self, stage: Stage, when: Instant) {
        let when = self.stages.last().map_or(when, |&(_, before)| when.max(before));
        self.stages.push((stage, when));
    }

    /// Writes the stages marked since the last flush.
    pub fn flush(&mut self, out: &mut dyn Write) {
        let mut text = Vec::new();
        for (name, when) in self.stages.drain(..) {
            let since = when.saturating_duration_since(self.start);
            let mono_ns = self.start_mono.saturating_add(since).as_nanos();
            append_line(&mut text, &Event::Stage { name, t_us: since.as_micros(), mono_ns });
        }
        emit(out, &text);
    }

    /// Writes the stages and how the VM ended: the last line of a run.
    pub fn finish(&mut self, ending: &Ending, out: &mut dyn Write) {
        self.flush(out);
        let mut text = Vec::new();
        append_line(&mut text, &Event::Exit(ending));
        emit(out, &text);
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Writes one line of guest console output.
pub fn console_line(text: &str, out: &mut dyn Write) {
    let mut line = Vec::new();
    append_line(&mut line, &Event::Console { text });
    emit(out, &line);
}

fn append_line(text: &mut Vec<u8>, event: &Event<'_>) {
    // Serialising these types into memory cannot fail; a lost line would be the worst outcome.
    if serde_json::to_writer(&mut *text, event).is_ok() {
        text.push(b'\n');
    }
}

/// A reader that went away must not end the VM, so the error is dropped on purpose.
fn emit(out: &mut dyn Write, text: &[u8]) {
    if !text.is_empty() {
        let _ = out.write_all(text).and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_written_once_and_in_order_as_json_lines() {
        let mut trace = Trace::start();
        trace.mark(Stage::ConfigRead);
        let mut out = Vec::new();
        trace.flush(&mut out);
        trace.flush(&mut out);
        let lines: Vec<serde_json::Value> =
            std::str::from_utf8(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["event"], "stage");
        assert_eq!(lines[0]["name"], "exec");
        assert_eq!(lines[0]["t_us"], 0);
        assert_eq!(lines[1]["name"], "config_read");
        assert!(lines[1]["mono_ns"].as_u64().unwrap() >= lines[0]["mono_ns"].as_u64().unwrap());
    }

    #[test]
    fn a_stage_is_never_reached_before_the_one_before_it() {
        let mut trace = Trace::start();
        let early = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        trace.mark(Stage::MemoryReady);
        trace.mark_at(Stage::KernelMapped, early);
        let times: Vec<_> = trace.stages.iter().map(|stage| stage.1).collect();
        assert!(times.is_sorted());
    }

    #[test]
    fn mono_ns_is_the_clock_that_other_processes_read() {
        let before = Duration::from_nanos(sys::monotonic_ns()).as_nanos();
        let mut trace = Trace::start();
        let after = Duration::from_nanos(sys::monotonic_ns()).as_nanos();
        let mut out = Vec::new();
        trace.flush(&mut out);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let mono_ns = u128::from(line["mono_ns"].as_u64().unwrap());
        assert!((before..=after).contains(&mono_ns), "{before} {mono_ns} {after}");
    }

    #[test]
    fn the_last_line_tells_reason_detail_tail_and_exits() {
        let ending = Ending {
            reason: Reason::Panic,
            detail: "Kernel panic - not syncing: x".to_owned(),
            console_tail: vec!["a \"quoted\" line".to_owned()],
            exits: ExitCounts::default(),
            written: vec![(4096, 8192)],
        };
        let mut out = Vec::new();
        Trace::start().finish(&ending, &mut out);
        let last = std::str::from_utf8(&out).unwrap().lines().last().unwrap().to_owned();
        let json: serde_json::Value = serde_json::from_str(&last).unwrap();
        assert_eq!(json["event"], "exit");
        assert_eq!(json["reason"], "panic");
        assert_eq!(json["console_tail"][0], "a \"quoted\" line");
        assert_eq!(json["exits"]["io"], 0);
        assert_eq!(json["written"], serde_json::json!([[4096, 8192]]));
    }

    #[test]
    fn console_text_cannot_forge_an_event_line() {
        let mut out = Vec::new();
        console_line("x\n{\"event\":\"exit\"}", &mut out);
        assert_eq!(out.iter().filter(|&&b| b == b'\n').count(), 1);
    }

    #[test]
    fn a_vanished_reader_is_no_error() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        console_line("text", &mut Gone);
        Trace::start().flush(&mut Gone);
    }

    #[test]
    fn every_reason_has_the_exit_code_of_the_contract() {
        let codes = [
            (Reason::Reset, 0),
            (Reason::Stopped, 0),
            (Reason::Config, 2),
            (Reason::HostError, 3),
            (Reason::Panic, 4),
            (Reason::TripleFault, 5),
        ];
        for (reason, code) in codes {
            assert_eq!(reason.exit_code(), code, "{reason:?}");
        }
    }
}
