// SPDX-License-Identifier: Apache-2.0
//! One command from its start to its last message: a loop on one thread that owns the program's pipes, the client's
//! stream and the clock. It waits only in one place, and every buffer in it is bounded.
//!
//! The end: when the program has ended its output is read to its end. If something it left behind still holds the
//! pipes, output ends after a short silence (`output.rs`), and what is left behind goes on running.

use std::sync::Arc;
use std::time::{Duration, Instant};

use midge_protocol::{Exited, Failure, Outcome, OutputStream, Started, ToAgent, ToHost, Usage};

use super::client::{Client, Received, misplaced};
use super::command::Command;
use super::input::Input;
use super::output::Output;
use super::reaper::Child;
use super::{Offer, Shared};
use crate::cgroup::Tree;
use crate::link::{ReadBuffer, failure};
use crate::serve::Pass;
use crate::sys::fd::{Watch, wait};
use crate::sys::tty;

/// A finished command that keeps a replay can be attached to for this time.
const FINISHED_KEEP: Duration = Duration::from_secs(60);

/// A command that was started.
pub(crate) struct Session {
    shared: Arc<Shared>,
    child: Child,
    tree: Tree,
    terminal: Option<std::fs::File>,
    input: Input,
    outputs: [Output; 2],
    client: Option<Client>,
    /// What the last client came with.
    pass: Pass,
    /// Without a replay the command belongs to its client.
    has_replay: bool,
    deadline: Option<Instant>,
    timed_out: bool,
    exited: Option<(Instant, Exited)>,
    buffer: ReadBuffer,
}

impl Session {
    pub(crate) fn new(
        shared: Arc<Shared>,
        (child, tree): (Child, Tree),
        command: Command,
        (client, pass): (Client, Pass),
        (timeout_ms, replay_bytes): (u64, u32),
    ) -> Self {
        let ends = command.ends;
        let keep = usize::try_from(replay_bytes).unwrap_or(0);
        let deadline =
            (timeout_ms > 0).then(|| child.started().checked_add(Duration::from_millis(timeout_ms))).flatten();
        Self {
            input: Input::new(ends.stdin, ends.terminal.is_some()),
            terminal: ends.terminal,
            outputs: [
                Output::new(OutputStream::Stdout, Some(ends.stdout), keep),
                Output::new(OutputStream::Stderr, ends.stderr, keep),
            ],
            has_replay: replay_bytes > 0,
            buffer: ReadBuffer::default(),
            timed_out: false,
            exited: None,
            client: Some(client),
            pass,
            shared,
            child,
            tree,
            deadline,
        }
    }

    /// Runs the command to its end.
    pub(crate) fn run(mut self) {
        self.greet();
        while !self.is_over() {
            if let Err(error) = self.turn() {
                self.lose_client(Some(failure(&error)));
                self.tree.kill(self.child.pid);
                return;
            }
        }
    }

    fn greet(&mut self) {
        let pid = u32::try_from(self.child.pid).unwrap_or(0);
        let started = Started { exec_id: self.shared.exec_id, pid, stdin_offset: self.input.taken() };
        if let Some(client) = &mut self.client {
            client.send(&ToHost::Started(started));
        }
        self.flush();
    }

    /// Waits for anything to happen and does what it asks for.
    fn turn(&mut self) -> std::io::Result<()> {
        let takes_input = self.input.has_room();
        let has_more = self.outputs.iter().any(|output| !output.replay.is_drained());
        let client = self.client.as_ref().map_or(Watch::idle(), |client| client.watch(takes_input, has_more));
        let bell = Watch::new(&*self.shared.bell, true, false);
        let mut watches = [bell, client, self.input.watch(), self.outputs[0].watch(), self.outputs[1].watch()];
        let has_early_input = takes_input && self.client.as_ref().is_some_and(Client::has_early_input);
        let timeout = if has_early_input { Some(Duration::ZERO) } else { self.timeout(Instant::now()) };
        wait(&mut watches, timeout)?;
        let [bell, client, input, stdout, stderr] = watches;
        if bell.readable() {
            self.shared.bell.silence();
            self.take_offer();
        }
        for (watch, output) in [stdout, stderr].into_iter().zip(&mut self.outputs) {
            if watch.readable() {
                output.read(&mut self.buffer, self.exited.is_some());
            }
        }
        if input.writable() {
            self.input.write();
        }
        if takes_input && (client.readable() || has_early_input) {
            self.receive(client.hung_up());
        } else if client.hung_up() {
            self.lose_client(None);
        }
        self.tell_the_time();
        self.report_input();
        self.finish();
        self.flush();
        Ok(())
    }

    /// How long nothing needs to be done unless something happens.
    fn timeout(&mut self, now: Instant) -> Option<Duration> {
        let mut next = self.deadline.filter(|_| !self.timed_out && self.exited.is_none());
        let mut at_least = |moment: Instant| next = Some(next.map_or(moment, |next| next.min(moment)));
        if let Some((ended, _)) = &self.exited {
            let ended = *ended;
            self.outputs.iter_mut().filter_map(|output| output.patience(ended, now)).for_each(&mut at_least);
            if self.has_replay {
                at_least(ended + FINISHED_KEEP);
            }
        }
        next.map(|next| next.saturating_duration_since(now))
    }

    fn receive(&mut self, hung_up: bool) {
        let Some(client) = &mut self.client else { return };
        match client.receive(&mut self.buffer) {
            Received::Messages(messages) => {
                for message in messages {
                    if let Err(failure) = self.obey(message) {
                        return self.lose_client(Some(failure));
                    }
                }
            }
            // A stream that is gone is no end of the input: the client may come back with the rest.
            Received::End if hung_up => self.lose_client(None),
            Received::End => self.input.end(),
            Received::Broken(failure) => self.lose_client(failure),
        }
    }

    /// Opens the window for what the program has taken, also long after it came: the client may be waiting for just that.
    fn report_input(&mut self) {
        if let Some(client) = &mut self.client
            && let Some(taken) = self.input.report()
        {
            client.send(&ToHost::StdinTaken(taken));
        }
    }

    fn obey(&mut self, message: ToAgent) -> Result<(), Failure> {
        match message {
            ToAgent::Stdin(bytes) => self.input.push(&bytes),
            ToAgent::StdinEof => self.input.end(),
            ToAgent::Signal(number) if (1..=64).contains(&number) => {
                let group = self.terminal.as_ref().and_then(|terminal| tty::foreground(terminal).ok());
                // Whoever has ended cannot be signalled, which is what the sender wants.
                let _ = self.child.signal_group(group.filter(|group| *group > 1), i32::from(number));
            }
            ToAgent::Resize(size) => {
                let _ = self.terminal.as_ref().map(|terminal| tty::resize(terminal, &size));
            }
            other => return Err(misplaced(midge_protocol::Message::name(&other))),
        }
        Ok(())
    }

    /// A client came to take over.
    fn take_offer(&mut self) {
        let Some(Offer { mut client, pass, stdout_offset, stderr_offset }) = self.shared.take_offer() else { return };
        let [stdout, stderr] = &mut self.outputs;
        match stdout.replay.seek(stdout_offset).and_then(|()| stderr.replay.seek(stderr_offset)) {
            Ok(()) => {
                (self.client, self.pass) = (Some(client), pass);
                self.greet();
            }
            Err(error) => {
                client.send(&ToHost::Error(failure(&error)));
                // Best effort: the host sees the stream's end in any case.
                let _ = client.flush();
            }
        }
    }

    /// The client is gone, or has broken the rules and is told so.
    fn lose_client(&mut self, failure: Option<Failure>) {
        if let (Some(mut client), Some(failure)) = (self.client.take(), failure) {
            client.send(&ToHost::Error(failure));
            let _ = client.flush();
        }
        // A client that is lost because the guest was copied has its command elsewhere; this one goes on without.
        if !self.has_replay && self.exited.is_none() && !self.pass.is_from_before_a_copy() {
            self.tree.kill(self.child.pid);
        }
    }

    /// Acts on the clock.
    fn tell_the_time(&mut self) {
        let now = Instant::now();
        if !self.timed_out && self.child.ended().is_none() && self.deadline.is_some_and(|deadline| deadline <= now) {
            self.timed_out = true;
            self.tree.kill(self.child.pid);
        }
        if let Some((ended, _)) = &self.exited {
            let ended = *ended;
            for output in &mut self.outputs {
                if output.patience(ended, now).is_some_and(|until| until <= now) {
                    output.abandon(self.terminal.is_some());
                }
            }
        }
    }

    /// Notices the program's end, and puts the last message under way once all output is.
    fn finish(&mut self) {
        if self.exited.is_none()
            && let Some((ended, wall)) = self.child.ended()
        {
            let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            let (outcome, number) =
                ended.code().map_or((Outcome::Signal, ended.signal()), |code| (Outcome::Code, code));
            let (user_us, system_us) = (micros(ended.user), micros(ended.system));
            let usage = Usage { wall_us: micros(wall), user_us, system_us, max_rss_kib: ended.max_rss_kib };
            let timed_out = self.timed_out;
            let exited = Exited { outcome, number, timed_out, stdout_bytes: 0, stderr_bytes: 0, usage };
            self.exited = Some((Instant::now(), exited));
            self.shared.finished();
        }
        let Some(client) = &mut self.client else {
            if !self.has_replay {
                self.outputs.iter_mut().for_each(|output| output.replay.discard());
            }
            return;
        };
        for output in &mut self.outputs {
            client.send_output(output);
        }
        let all_sent = self.outputs.iter().all(|output| output.is_closed() && output.replay.is_drained());
        if let Some((_, exited)) = self.exited.as_ref().filter(|_| all_sent && !client.is_told_the_end) {
            let [stdout_bytes, stderr_bytes] = [0, 1].map(|index: usize| self.outputs[index].replay.end());
            client.send(&ToHost::Exited(Exited { stdout_bytes, stderr_bytes, ..exited.clone() }));
            client.is_told_the_end = true;
        }
    }

    fn flush(&mut self) {
        let Some(client) = &mut self.client else { return };
        match client.flush() {
            // Told everything: closing the stream is the agent's last word.
            Ok(()) if client.is_told_the_end && client.is_flushed() => self.client = None,
            Ok(()) => {}
            Err(_) => self.lose_client(None),
        }
    }

    /// Nobody needs this session any more.
    fn is_over(&self) -> bool {
        let Some((ended, _)) = &self.exited else { return false };
        match self.has_replay {
            false => self.client.is_none(),
            true => self.shared.is_evicted() || ended.elapsed() > FINISHED_KEEP,
        }
    }
}
