// SPDX-License-Identifier: Apache-2.0
//! The stages of a run, on one clock: host, monitor and agent side by side.
//!
//! Everybody who does something worth timing notes it in a shared [`Recorder`]; a [`Timeline`] is a copy
//! for printing. Never decides anything: a run without a timeline behaves the same.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Who noted a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// This process.
    Host,
    /// The monitor process of the sandbox.
    Monitor,
    /// The agent in the guest.
    Agent,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Host => "host",
            Self::Monitor => "monitor",
            Self::Agent => "agent",
        })
    }
}

/// One moment of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// What had been reached.
    pub name: String,
    /// Who says so.
    pub source: Source,
    /// Microseconds since the timeline's origin; negative for what came before it.
    pub at_us: i64,
}

/// The stages so far, in order of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Timeline {
    /// Sorted by [`Stage::at_us`].
    pub stages: Vec<Stage>,
}

impl Timeline {
    /// The first stage of that name.
    #[must_use]
    pub fn stage(&self, source: Source, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.source == source && stage.name == name)
    }
}

/// A table: time since the origin, time since the line before, who, what.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>12} {:>12}  {:<8} stage", "at ms", "+ ms", "source")?;
        let mut before_us = self.stages.first().map_or(0, |stage| stage.at_us);
        for stage in &self.stages {
            let (at, step) = (Millis(stage.at_us), Millis(stage.at_us - before_us));
            writeln!(f, "{:>12} {:>12}  {:<8} {}", at.to_string(), step.to_string(), stage.source, stage.name)?;
            before_us = stage.at_us;
        }
        Ok(())
    }
}

/// Microseconds, shown as milliseconds with three places.
struct Millis(i64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let us = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:03}", us / 1000, us % 1000)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock that monitors on this machine report in as well.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Where stages are noted; clones share one list.
#[derive(Debug, Clone)]
pub struct Recorder {
    inner: Arc<Mutex<Noted>>,
}

#[derive(Debug)]
struct Noted {
    origin_ns: u64,
    stages: Vec<(u64, Source, String)>,
}

/// More than any honest run notes; a bound, because some names come from the guest.
const STAGES_MAX: usize = 256;
/// Longest name that is kept, in characters, for the same reason.
const NAME_MAX_CHARS: usize = 64;

impl Recorder {
    /// An empty list whose origin is now.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::new(Mutex::new(Noted { origin_ns: monotonic_ns(), stages: Vec::new() })) }
    }

    /// Notes a stage of this process that was reached just now.
    pub fn note(&self, name: &str) {
        self.note_at(Source::Host, name, monotonic_ns());
    }

    /// Notes a stage that was reached at `mono_ns` of this machine's monotonic clock.
    pub fn note_at(&self, source: Source, name: &str, mono_ns: u64) {
        let mut noted = self.lock();
        if noted.stages.len() < STAGES_MAX {
            // It may be shown on a terminal.
            let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
            noted.stages.push((mono_ns, source, name.chars().take(NAME_MAX_CHARS).map(visible).collect()));
        }
    }

    /// Whether a stage of this name was reached.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.lock().stages.iter().any(|(.., noted)| noted == name)
    }

    /// Makes `mono_ns` the origin: the moment the monitor was executed, once that is known.
    pub fn set_origin(&self, mono_ns: u64) {
        self.lock().origin_ns = mono_ns;
    }

    /// A sorted copy of what has been noted so far.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        let noted = self.lock();
        let mut sorted = noted.stages.clone();
        sorted.sort_by_key(|(at_ns, ..)| *at_ns);
        let origin_ns = noted.origin_ns;
        let stage = |(at_ns, source, name)| Stage { name, source, at_us: difference_us(at_ns, origin_ns) };
        Timeline { stages: sorted.into_iter().map(stage).collect() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

fn difference_us(at_ns: u64, origin_ns: u64) -> i64 {
    let us = i64::try_from(at_ns.abs_diff(origin_ns) / 1000).unwrap_or(i64::MAX);
    if at_ns >= origin_ns { us } else { -us }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_sorted_and_relative_to_the_origin() {
        let recorder = Recorder::new();
        recorder.set_origin(1_000_000);
        recorder.note_at(Source::Agent, "hello", 31_500_999);
        recorder.note_at(Source::Host, "spawn", 400_000);
        recorder.note_at(Source::Monitor, "exec", 1_000_000);
        let timeline = recorder.timeline();
        let seen: Vec<_> = timeline.stages.iter().map(|s| (s.name.as_str(), s.at_us)).collect();
        assert_eq!(seen, [("spawn", -600), ("exec", 0), ("hello", 30_500)]);
        assert_eq!(timeline.stage(Source::Agent, "hello").unwrap().at_us, 30_500);
        assert!(timeline.stage(Source::Host, "hello").is_none());
    }

    #[test]
    fn table_shows_time_and_step() {
        let recorder = Recorder::new();
        recorder.set_origin(5_000_000);
        recorder.note_at(Source::Host, "spawn", 4_000_000);
        recorder.note_at(Source::Monitor, "exec", 5_001_000);
        let table = recorder.timeline().to_string();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["-1.000", "0.000", "host", "spawn"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["0.001", "1.001", "monitor", "exec"]);
    }

    #[test]
    fn a_guest_cannot_grow_the_list_without_end() {
        let recorder = Recorder::new();
        for _ in 0..STAGES_MAX + 10 {
            recorder.note("again");
        }
        assert_eq!(recorder.timeline().stages.len(), STAGES_MAX);
    }

    #[test]
    fn a_name_is_cut_and_cannot_steer_a_terminal() {
        let recorder = Recorder::new();
        recorder.note_at(Source::Monitor, &format!("\u{1b}[2J{}", "x".repeat(1 << 20)), 0);
        let name = &recorder.timeline().stages[0].name;
        assert!(name.starts_with("\u{fffd}[2Jx"), "{name}");
        assert_eq!(name.chars().count(), NAME_MAX_CHARS);
    }

    #[test]
    fn serialises_as_a_plain_list() {
        let recorder = Recorder::new();
        recorder.set_origin(0);
        recorder.note_at(Source::Host, "spawn", 7_000);
        let json = serde_json::to_string(&recorder.timeline()).unwrap();
        assert_eq!(json, r#"[{"name":"spawn","source":"host","at_us":7}]"#);
    }
}
