// SPDX-License-Identifier: Apache-2.0
//! The agent's one loop: the control conversation (hello, identity, what the host wants of the guest as a whole), and
//! where conversations of commands and files come in. When the control conversation is lost the agent serves on and
//! calls again, unless it is frozen: then it waits for whoever resumes it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use midge_protocol::{
    ErrorCode, Failure, Freeze, Gathered, Hello, Message as _, NEWEST_VERSION, OLDEST_VERSION, Stage, ToAgent, ToHost,
    Welcome,
};

use crate::cgroup::{self, Standstill};
use crate::doors;
use crate::gather::Gathering;
use crate::identity::{self, Prepared};
use crate::link::{Conversation, Host, LinkError, Listener, failure};
use crate::serve::{self, Gate};
use crate::stats;
use crate::sys::fd::{Watch, wait};
use crate::sys::machine;
use crate::waiting::WaitingRoom;

/// First pause before calling again a host that does not answer; doubles up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause between two calls.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Pause after something failed for want of memory or descriptors.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(10);

/// What the agent knows when it is ready.
#[derive(Debug, Default, Clone)]
pub(crate) struct Report {
    pub(crate) stages: Vec<Stage>,
    pub(crate) warnings: Vec<String>,
}

/// What the agent may do to where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    /// It is PID 1 of a guest: clock, identity, processes and the machine's end are its own.
    Machine,
    /// It is a process among others, for tests.
    Process,
}

/// The agent between two events.
#[derive(Debug)]
pub(crate) struct Agent {
    host: Host,
    listener: Listener,
    power: Power,
    gate: &'static Gate,
    report: Report,
    control: Option<Conversation>,
    call: Call,
    /// The host name of the last `Welcome`.
    name: String,
    frozen: Option<Frozen>,
    waiting: WaitingRoom,
    watches: Vec<Watch>,
}

/// When the host is called next.
#[derive(Debug)]
struct Call {
    due: Instant,
    pause: Duration,
}

impl Call {
    fn put_off(&mut self) {
        self.due = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// A guest that stands still, and all it needs to become another one. A process among others has nothing to hold.
#[derive(Debug, Default)]
struct Frozen {
    identity: Option<Prepared>,
    standstill: Option<Standstill>,
    /// Free memory, until commands run on.
    gathering: Gathering,
}

impl Frozen {
    /// Commands first, so that the files that are opened after are still those of `/etc` when they are needed.
    fn begin(power: Power, name: &str) -> Result<Self, Failure> {
        if power == Power::Process {
            return Ok(Self::default());
        }
        let standstill = cgroup::freeze_everything().map_err(|error| Failure {
            code: if matches!(error, cgroup::FreezeError::NoGroups) {
                ErrorCode::Unsupported
            } else {
                ErrorCode::Other
            },
            ..failure(&error)
        })?;
        let identity = Prepared::open(Path::new("/etc"), name)?;
        machine::sync();
        Ok(Self { identity: Some(identity), standstill: Some(standstill), gathering: Gathering::default() })
    }

    /// Makes the content of a `Welcome` true where nothing can take it back: nothing but the agent runs yet.
    fn become_copy(&self, welcome: &Welcome) -> Result<(), Failure> {
        identity::check(welcome)?;
        self.identity.as_ref().map_or(Ok(()), |identity| identity.take(welcome))
    }

    /// What is left to do in a copy before commands run on, then lets them.
    fn end_in_copy(&mut self, welcome: &Welcome) -> Result<(), Failure> {
        self.identity.as_mut().map_or(Ok(()), |identity| identity.write(welcome))?;
        self.end()
    }

    /// Lets commands run on.
    fn end(&mut self) -> Result<(), Failure> {
        self.gathering = Gathering::default();
        let ended = self.standstill.as_mut().map_or(Ok(()), Standstill::end);
        ended.map_err(|error| Failure { text: format!("letting commands run on: {error}"), ..failure(&error) })
    }
}

impl Agent {
    /// An agent that has not called `host` yet and takes conversations at `listener`.
    pub(crate) fn new(host: Host, listener: Listener, power: Power, gate: &'static Gate, report: Report) -> Self {
        let call = Call { due: Instant::now(), pause: PAUSE_MIN };
        let (name, waiting, watches) = (String::new(), WaitingRoom::default(), Vec::new());
        Self { host, listener, power, gate, report, control: None, call, name, frozen: None, waiting, watches }
    }

    /// Serves for ever; `after_hello` runs once, while the first hello is under way.
    pub(crate) fn serve(mut self, mut after_hello: Option<impl FnOnce() -> Vec<String>>) -> ! {
        loop {
            if self.wants_to_call() && self.call.due <= Instant::now() {
                self.call();
                if let Some(work) = after_hello.take() {
                    self.report.warnings.extend(work());
                }
            }
            if self.turn().is_err() {
                thread::sleep(SHORTAGE_PAUSE);
            }
        }
    }

    const fn wants_to_call(&self) -> bool {
        self.control.is_none() && self.frozen.is_none()
    }

    /// Calls the host and says hello.
    fn call(&mut self) {
        // Put off in any case: only a host that answers the hello gets the next one at once.
        self.call.put_off();
        if let Ok(stream) = self.host.connect() {
            let mut conversation = Conversation::new(stream);
            let said = conversation.send(&ToHost::Hello(hello(&self.report)));
            self.control = said.is_ok().then_some(conversation);
        }
    }

    /// Waits for anything to happen and does what it asks for.
    fn turn(&mut self) -> std::io::Result<()> {
        let timeout = self.wants_to_call().then(|| self.call.due.saturating_duration_since(Instant::now()));
        let mut watches = std::mem::take(&mut self.watches);
        watches.clear();
        watches.push(Watch::new(&self.listener, true, false));
        watches.push(self.control.as_ref().map_or(Watch::idle(), |control| control.watch(true)));
        watches.extend(self.waiting.watches());
        let waited = wait(&mut watches, timeout);
        if waited.is_ok() {
            // In this order: who resumes the guest takes the place of a control conversation that is over.
            if watches[1].readable() {
                self.hear_control();
            }
            if let Some((conversation, welcome)) = self.waiting.hear(&watches[2..]) {
                self.resume(conversation, &welcome);
            }
        }
        let arrived = waited.and_then(|()| if watches[0].readable() { self.take_conversation() } else { Ok(()) });
        self.watches = watches;
        arrived
    }

    fn take_conversation(&mut self) -> std::io::Result<()> {
        let conversation = match self.listener.accept() {
            Ok(stream) => Conversation::new(stream),
            // It has hung up in between.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.frozen.is_some() {
            self.waiting.admit(conversation);
            return Ok(());
        }
        serve::start(conversation, None, self.gate)
    }

    /// Reads once from the control conversation and obeys. Whatever ends it, the answer is the same: it is over.
    fn hear_control(&mut self) {
        let Some(mut conversation) = self.control.take() else { return };
        if matches!(conversation.read(), Ok(true)) {
            self.obey_all(conversation);
        }
    }

    /// Obeys what was received whole, and keeps the conversation if it goes on.
    fn obey_all(&mut self, mut conversation: Conversation) {
        loop {
            match conversation.received() {
                Ok(Some(message)) => match self.obey(message, &mut conversation) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return,
                },
                Ok(None) => break,
                Err(_) => return,
            }
        }
        self.control = Some(conversation);
    }

    /// Answers one message; false when the conversation shall end.
    fn obey(&mut self, message: ToAgent, conversation: &mut Conversation) -> Result<bool, LinkError> {
        let is_machine = self.power == Power::Machine;
        let answer = match message {
            ToAgent::Welcome(welcome) => match self.accept(&welcome) {
                Ok(()) => return Ok(true),
                Err(failure) => ToHost::Error(failure),
            },
            ToAgent::Ping(number) => ToHost::Pong(number),
            ToAgent::GetStats => ToHost::Stats(stats::read()),
            ToAgent::Quiesce => {
                if is_machine {
                    cgroup::kill_everything();
                    machine::sync();
                }
                ToHost::Done
            }
            ToAgent::Freeze(Freeze { leave }) => match self.freeze() {
                Ok(()) if leave => {
                    conversation.send(&ToHost::Done)?;
                    return Ok(false);
                }
                done => answer_to(done),
            },
            ToAgent::SetClock(unix_time_ns) => {
                // It was right a moment ago, by `Welcome`, in whose place nothing can be told of a failure.
                let _ = is_machine.then(|| machine::set_clock(unix_time_ns));
                return Ok(true);
            }
            ToAgent::OpenDoors(bits) => answer_to(doors::open(&self.host, bits, self.gate)),
            ToAgent::Gather => self.gather().map_or_else(ToHost::Error, ToHost::Gathered),
            ToAgent::Thaw => {
                let thawed = self.thaw();
                conversation.send(&answer_to(thawed))?;
                if self.frozen.is_none() {
                    self.waiting.release(self.gate);
                }
                return Ok(true);
            }
            ToAgent::Shutdown => {
                if is_machine {
                    machine::sync();
                }
                conversation.send(&ToHost::Done)?;
                let error = if is_machine { machine::reset() } else { leave() };
                ToHost::Error(refused(ErrorCode::Unsupported, format!("resetting the machine: {error}")))
            }
            other => {
                let text = format!("received `{}` on the control conversation", other.name());
                conversation.send(&ToHost::Error(refused(ErrorCode::Protocol, text)))?;
                return Ok(false);
            }
        };
        conversation.send(&answer)?;
        Ok(true)
    }

    /// Makes the content of the first `Welcome`, or of one after another hello, true.
    fn accept(&mut self, welcome: &Welcome) -> Result<(), Failure> {
        if self.frozen.is_some() {
            let text = "received `Welcome` while frozen; a copy is told who it is by `Resume`".to_owned();
            return Err(refused(ErrorCode::Protocol, text));
        }
        identity::check(welcome)?;
        if self.power == Power::Machine {
            identity::take_first(welcome)?;
        }
        self.is_welcome(welcome);
        self.gate.open();
        Ok(())
    }

    fn is_welcome(&mut self, welcome: &Welcome) {
        self.name.clone_from(&welcome.hostname);
        // Should the host be lost, it is called at once.
        self.call = Call { due: Instant::now(), pause: PAUSE_MIN };
    }

    /// Brings the guest to a stand.
    fn freeze(&mut self) -> Result<(), Failure> {
        if self.frozen.is_some() {
            return Err(refused(ErrorCode::Protocol, "received `Freeze` while frozen".to_owned()));
        }
        if !self.gate.is_open() {
            let text = "received `Freeze` before a `Welcome` that could be accepted".to_owned();
            return Err(refused(ErrorCode::Protocol, text));
        }
        self.gate.freeze();
        match Frozen::begin(self.power, &self.name) {
            Ok(frozen) => self.frozen = Some(frozen),
            Err(failure) => {
                self.gate.open();
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Takes free memory from the guest that stands still.
    fn gather(&mut self) -> Result<Gathered, Failure> {
        match &mut self.frozen {
            Some(frozen) if self.power == Power::Machine => frozen.gathering.next(),
            Some(_) => Ok(Gathered { ranges: Vec::new() }),
            None => Err(refused(ErrorCode::Protocol, "received `Gather`, but the guest is not frozen".to_owned())),
        }
    }

    /// Lets the same guest run on.
    fn thaw(&mut self) -> Result<(), Failure> {
        let Some(frozen) = &mut self.frozen else {
            return Err(refused(ErrorCode::Protocol, "received `Thaw`, but the guest is not frozen".to_owned()));
        };
        frozen.end()?;
        self.frozen = None;
        self.gate.open();
        Ok(())
    }

    /// Lets the guest run on as the one that `welcome` describes; `conversation` is its control conversation then. The
    /// answer goes out as soon as nobody can get what belongs to another guest: the rest is done while it is under way,
    /// before commands run on and before anything else is heard. Where that fails, the conversation ends with the reason
    /// and the guest stays frozen.
    fn resume(&mut self, mut conversation: Conversation, welcome: &Welcome) {
        let Some(frozen) = &mut self.frozen else { return };
        let answer = frozen.become_copy(welcome);
        let is_copy = answer.is_ok();
        let said = conversation.send(&answer_to(answer));
        if !is_copy {
            return;
        }
        if let Err(failure) = frozen.end_in_copy(welcome) {
            // Nobody else can be told.
            let _ = conversation.send(&ToHost::Error(failure));
            return;
        }
        self.gate.open_in_copy();
        self.frozen = None;
        self.is_welcome(welcome);
        self.control = None;
        self.waiting.release(self.gate);
        if said.is_ok() {
            self.obey_all(conversation);
        }
    }
}

fn answer_to(done: Result<(), Failure>) -> ToHost {
    done.map_or_else(ToHost::Error, |()| ToHost::Done)
}

fn hello(report: &Report) -> Hello {
    Hello {
        oldest_version: OLDEST_VERSION,
        newest_version: NEWEST_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        stages: report.stages.clone(),
        warnings: report.warnings.clone(),
    }
}

/// What a reset is to a process among others.
#[expect(clippy::exit, reason = "the process stands for a machine that is reset")]
fn leave() -> ! {
    std::process::exit(0)
}

fn refused(code: ErrorCode, text: String) -> Failure {
    Failure { code, errno: 0, text }
}

#[cfg(test)]
mod tests;
