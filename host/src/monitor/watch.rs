// SPDX-License-Identifier: Apache-2.0
//! Listens to a monitor until it is gone, and then says how it ended.
//!
//! One task per VM. Turns events into timeline stages, console lines and at last an [`End`]; never blocks
//! the monitor: what nobody fetches is dropped.

use std::process::ExitStatus;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{oneshot, watch};

use super::ConsoleSender;
use super::end::End;
use super::events::{Event, Lines, bounded, parse};
use crate::groups::Quarters;
use crate::timeline::{Recorder, Source, monotonic_ns};

/// Kept of what the monitor writes to stderr: the last bytes.
const STDERR_TAIL_BYTES: usize = 8 << 10;
const READ_BYTES: usize = 16 << 10;
/// Lines that are no event and are complained of one by one.
const COMPLAINTS_MAX: usize = 8;

/// Whose clock stamps a monitor's stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// This machine's: stamps can be taken as they are.
    Ours,
    /// Another machine's: the first event's arrival is taken for the moment it tells of.
    Foreign,
}

/// What a monitor wrote that is no event: the first lines are complained of one by one, the others counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Nonsense {
    lines: usize,
    complaints: usize,
}

impl Nonsense {
    fn note(&mut self, error: &impl std::fmt::Display, bytes: usize) {
        self.lines += 1;
        if self.complaints < COMPLAINTS_MAX {
            self.complaints += 1;
            tracing::warn!(%error, bytes, "the monitor wrote something that is no event");
        }
    }

    fn sum_up(&self) {
        if self.lines > self.complaints {
            tracing::warn!(lines = self.lines, "the monitor wrote that many lines that are no events");
        }
    }
}

/// Where a monitor's news go.
struct Outlets {
    recorder: Recorder,
    clock: Clock,
    console: Option<ConsoleSender>,
    ended: watch::Sender<Option<Arc<End>>>,
    reaped: watch::Sender<bool>,
    /// What is removed when it is gone.
    quarters: Option<Arc<Quarters>>,
}

/// What becomes known of a monitor that somebody listens to.
pub(super) struct Heard {
    /// How it ended.
    pub(super) ended: watch::Receiver<Option<Arc<End>>>,
    /// That its process is gone.
    pub(super) reaped: watch::Receiver<bool>,
}

/// Listens in the background, until the monitor is gone.
pub(super) fn listen(
    (events, stderr): (impl AsyncRead + Unpin + Send + 'static, impl AsyncRead + Unpin + Send + 'static),
    status: impl Future<Output = Option<ExitStatus>> + Send + 'static,
    recorder: &Recorder,
    clock: Clock,
    console: Option<ConsoleSender>,
    quarters: Option<&Arc<Quarters>>,
) -> Heard {
    let (ended_sender, ended) = watch::channel(None);
    let (reaped_sender, reaped) = watch::channel(false);
    let quarters = quarters.map(Arc::clone);
    let recorder = recorder.clone();
    let outlets = Outlets { recorder, clock, console, ended: ended_sender, reaped: reaped_sender, quarters };
    tokio::spawn(watch(events, stderr, status, outlets));
    Heard { ended, reaped }
}

/// A status that arrives once the process is gone, if it does.
pub(super) async fn gone(status: oneshot::Receiver<ExitStatus>) -> Option<ExitStatus> {
    status.await.ok()
}

/// Runs until the monitor is gone. `status` resolves when its process was reaped, or to `None` when that
/// cannot be known.
async fn watch<E, R, S>(events: E, stderr: R, status: S, mut outlets: Outlets)
where
    E: AsyncRead + Unpin,
    R: AsyncRead + Unpin,
    S: Future<Output = Option<ExitStatus>>,
{
    let ((end, nonsense), stderr_tail) = tokio::join!(follow_events(events, &mut outlets), last_bytes(stderr));
    nonsense.sum_up();
    let announced = end.is_some();
    let status = status.await;
    let mut end = match (end, status) {
        (Some(end), _) => end,
        (None, Some(status)) => End::from_status(status),
        (None, None) => End::lost("it fell silent without an exit event"),
    };
    end.stderr_tail = stderr_tail;
    tracing::debug!(%end, announced, ?status, "monitor gone");
    outlets.ended.send_replace(Some(Arc::new(end)));
    outlets.recorder.note("reaped");
    if let Some(quarters) = outlets.quarters {
        quarters.clear().await;
    }
    outlets.reaped.send_replace(true);
}

/// Follows the events to their end; gives the end that was announced, if one was, and what was no event.
async fn follow_events<E: AsyncRead + Unpin>(mut events: E, outlets: &mut Outlets) -> (Option<End>, Nonsense) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; READ_BYTES];
    let mut exit = None;
    let mut exec_ns = None;
    let mut nonsense = Nonsense::default();
    loop {
        let got = match events.read(&mut buffer).await {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) => {
                tracing::debug!(%error, "reading the monitor's events");
                break;
            }
        };
        lines.push(&buffer[..got], |line| match parse(line) {
            Ok(Event::Stage { name, t_us, mono_ns }) => {
                let stamp_ns = mono_ns.filter(|_| outlets.clock == Clock::Ours);
                let now_ns = stamp_ns.unwrap_or_else(monotonic_ns);
                let exec_ns = *exec_ns.get_or_insert_with(|| {
                    let exec_ns = now_ns.saturating_sub(t_us.saturating_mul(1000));
                    outlets.recorder.set_origin(exec_ns);
                    exec_ns
                });
                let at_ns = stamp_ns.unwrap_or_else(|| exec_ns.saturating_add(t_us.saturating_mul(1000)));
                outlets.recorder.note_at(Source::Monitor, &name, at_ns);
            }
            Ok(Event::Console { text }) => {
                if let Some(console) = &outlets.console {
                    // A full channel means that nobody keeps up; the guest must not wait for that.
                    let _ = console.try_send(bounded(text));
                }
            }
            Ok(Event::Exit(told)) => {
                outlets.recorder.note("ended");
                let end = End::from_event(told);
                outlets.ended.send_replace(Some(Arc::new(end.clone())));
                exit = Some(end);
            }
            Ok(Event::Unknown) => {}
            Err(error) => nonsense.note(&error, line.len()),
        });
    }
    (exit, nonsense)
}

/// Reads to the end and gives the last [`STDERR_TAIL_BYTES`].
async fn last_bytes<R: AsyncRead + Unpin>(mut reader: R) -> String {
    let mut tail: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(got @ 1..) = reader.read(&mut buffer).await {
        tail.extend_from_slice(&buffer[..got]);
        let surplus = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..surplus);
    }
    String::from_utf8_lossy(&tail).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::end::Cause;
    use crate::monitor::events::TEXT_MAX_CHARS;
    use std::os::unix::process::ExitStatusExt;
    use tokio::sync::mpsc;

    struct Seen {
        end: End,
        recorder: Recorder,
        console: Vec<String>,
    }

    fn outlets(clock: Clock) -> (Outlets, Heard, mpsc::Receiver<String>) {
        let (console, lines) = mpsc::channel(2);
        let (ended, was_ended) = watch::channel(None);
        let (reaped, was_reaped) = watch::channel(false);
        let outlets =
            Outlets { recorder: Recorder::new(), clock, console: Some(console), ended, reaped, quarters: None };
        (outlets, Heard { ended: was_ended, reaped: was_reaped }, lines)
    }

    async fn watched(events: &[u8], stderr: &[u8], status: Option<ExitStatus>, clock: Clock) -> Seen {
        let (outlets, heard, mut lines) = outlets(clock);
        let recorder = outlets.recorder.clone();
        watch(events, stderr, std::future::ready(status), outlets).await;
        assert!(*heard.reaped.borrow());
        let mut console = Vec::new();
        while let Some(line) = lines.recv().await {
            console.push(line);
        }
        let end = heard.ended.borrow().as_deref().unwrap().clone();
        Seen { end, recorder, console }
    }

    #[tokio::test]
    async fn announced_end_wins_over_the_status() {
        let events = b"{\"event\":\"exit\",\"reason\":\"panic\",\"detail\":\"Kernel panic\"}\n";
        let status = Some(ExitStatus::from_raw(4 << 8));
        let seen = watched(events, b"midge-vmm: x\n", status, Clock::Ours).await;
        assert_eq!(seen.end.cause, Cause::GuestPanic);
        assert_eq!(seen.end.stderr_tail, "midge-vmm: x\n");
    }

    #[tokio::test]
    async fn silent_end_is_told_by_the_status() {
        let garbage = b"\xff\xfe\nnot json\n{\"event\":\"stage\"";
        let seen = watched(garbage, b"", Some(ExitStatus::from_raw(9)), Clock::Ours).await;
        assert_eq!(seen.end.cause, Cause::Signal(9));
        let seen = watched(b"", b"", None, Clock::Foreign).await;
        assert_eq!(seen.end.cause, Cause::Lost);
    }

    #[tokio::test]
    async fn stages_keep_their_distances_on_either_clock() {
        let events = b"{\"event\":\"stage\",\"name\":\"exec\",\"t_us\":0,\"mono_ns\":1000000}\n\
                       {\"event\":\"stage\",\"name\":\"first_run\",\"t_us\":2500,\"mono_ns\":3500000}\n";
        for clock in [Clock::Ours, Clock::Foreign] {
            let seen = watched(events, b"", None, clock).await;
            let timeline = seen.recorder.timeline();
            assert_eq!(timeline.stage(Source::Monitor, "exec").unwrap().at_us, 0, "{clock:?}");
            assert_eq!(timeline.stage(Source::Monitor, "first_run").unwrap().at_us, 2500, "{clock:?}");
        }
    }

    #[tokio::test]
    async fn console_lines_beyond_the_channel_are_dropped_not_waited_for() {
        let events = b"{\"event\":\"console\",\"text\":\"x\"}\n".repeat(5);
        let seen = watched(&events, b"", None, Clock::Ours).await;
        assert_eq!(seen.console.len(), 2);
    }

    #[tokio::test]
    async fn nonsense_without_end_is_complained_of_a_few_times() {
        for lines in [COMPLAINTS_MAX, COMPLAINTS_MAX + 1, 100_000] {
            let (mut outlets, ..) = outlets(Clock::Ours);
            let (end, nonsense) = follow_events(&b"{\n".repeat(lines)[..], &mut outlets).await;
            assert!(end.is_none());
            assert_eq!(nonsense, Nonsense { lines, complaints: COMPLAINTS_MAX });
        }
    }

    #[tokio::test]
    async fn a_console_line_is_bounded_and_the_last_claim_of_an_end_counts() {
        let line = format!("{{\"event\":\"console\",\"text\":\"{}\"}}\n", "x".repeat(1 << 19));
        let exit = |reason: &str| format!("{{\"event\":\"exit\",\"reason\":\"{reason}\"}}\n");
        let events = [line, exit("reset").repeat(1000), exit("panic")].concat();
        let seen = watched(events.as_bytes(), b"", None, Clock::Ours).await;
        assert_eq!(seen.console[0].len(), TEXT_MAX_CHARS);
        assert_eq!(seen.end.cause, Cause::GuestPanic);
    }

    #[tokio::test]
    async fn stages_of_any_moment_are_told_apart_and_printed() {
        let stage = |t_us: u64, mono_ns: u64| {
            format!("{{\"event\":\"stage\",\"name\":\"s\",\"t_us\":{t_us},\"mono_ns\":{mono_ns}}}\n")
        };
        let moments = [0, 1, u64::MAX];
        let events: String = moments.into_iter().flat_map(|t| moments.map(|mono| stage(t, mono))).collect();
        for clock in [Clock::Ours, Clock::Foreign] {
            let seen = watched(events.repeat(100).as_bytes(), b"", None, clock).await;
            assert!(seen.recorder.timeline().to_string().lines().count() <= 300, "{clock:?}");
        }
    }

    #[tokio::test]
    async fn endless_stderr_leaves_its_tail() {
        let stderr = [&vec![b'x'; 3 * STDERR_TAIL_BYTES][..], b"last"].concat();
        let seen = watched(b"", &stderr, None, Clock::Ours).await;
        assert_eq!(seen.end.stderr_tail.len(), STDERR_TAIL_BYTES);
        assert!(seen.end.stderr_tail.ends_with("last"));
    }
}
