// SPDX-License-Identifier: Apache-2.0
//! Does what the machine says: requests in one thread, tools in another, notes to the record, ticks of the clock. It decides nothing.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use midge_protocol::broker::{End, Run, Told, Wire};
use serde_json::Value;
use thiserror::Error;

use crate::doors::{AskDoor, FromRecord, Record};
use crate::http::{Exchange, Stopper};
use crate::talk::{Failure, Trouble};
use crate::tools::{Call, Cancel, Outcome, Place, Step, Toolbox, ToolboxError};
use crate::turn::{Effect, Event, Machine};

/// How often the machine is told that time has passed.
const TICK: Duration = Duration::from_millis(50);
/// How long tools that were told to end are waited for at the end of a run.
const TOOLS_END_MAX: Duration = Duration::from_secs(5);

/// Where a run takes place, beside what [`Run`] says.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The directory with the sockets of the doors.
    pub doors: PathBuf,
    /// A directory for output that is too long for the model.
    pub spool: PathBuf,
    /// For the jitter of waits.
    pub seed: u64,
}

/// Why a run could not begin.
#[derive(Debug, Error)]
pub enum DriveError {
    /// The door of the record.
    #[error("the door of the record in {dir} cannot be opened; is this a sandbox with a broker?")]
    Record {
        /// The directory of the doors.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tools.
    #[error("the tools cannot be made ready")]
    Tools(#[from] ToolboxError),
    /// A thread or a descriptor.
    #[error("the guest has no room for a thread or a descriptor")]
    System(#[from] io::Error),
}

enum Message {
    Event(Event),
    Note(Told),
}

/// Runs `run` to its end; `stop` ends it in good order when it is set.
///
/// # Errors
/// [`DriveError`] before anything was done; what goes wrong later is an [`End`].
pub fn drive(run: &Run, setting: &Setting, stop: &AtomicBool) -> Result<End, DriveError> {
    let (sender, receiver) = channel();
    let record = open_record(&setting.doors, sender.clone())?;
    let place = Place {
        cwd: PathBuf::from(&run.cwd),
        spool: setting.spool.clone(),
        doors: setting.doors.clone(),
        tools: run.tools.clone(),
        mcp: run.mcp.clone(),
        peers: run.peers.clone(),
        asker: Arc::new(AskDoor::new(&setting.doors)),
    };
    let mut driver = Driver {
        machine: Machine::new(run, setting.seed),
        toolbox: Arc::new(Toolbox::new(place)?),
        wire: run.wire,
        base_url: run.base_url.clone(),
        record,
        sender,
        begun: Instant::now(),
        request: None,
        round: None,
    };
    driver.start_tools()?;
    let end = driver.go_on(&receiver, stop);
    driver.close();
    Ok(end)
}

fn open_record(dir: &Path, sender: Sender<Message>) -> Result<Record, DriveError> {
    let told = move |from| {
        let event = match from {
            FromRecord::Left(left) => Event::Left(left),
            FromRecord::Lost(why) => Event::RecordLost(why),
        };
        // Nobody listens when the run is over.
        let _ = sender.send(Message::Event(event));
    };
    Record::open(dir, told).map_err(|source| DriveError::Record { dir: dir.to_owned(), source })
}

struct Driver {
    machine: Machine,
    toolbox: Arc<Toolbox>,
    wire: Wire,
    base_url: String,
    record: Record,
    sender: Sender<Message>,
    begun: Instant,
    request: Option<Stopper>,
    round: Option<(Cancel, JoinHandle<()>)>,
}

impl Driver {
    fn start_tools(&mut self) -> io::Result<()> {
        let (toolbox, sender, cancel) = (Arc::clone(&self.toolbox), self.sender.clone(), Cancel::new()?);
        let flag = cancel.clone();
        let start = move || {
            let hints = toolbox.start(&flag);
            let _ = sender.send(Message::Event(Event::Started(toolbox.specs(), hints)));
        };
        self.round = Some((cancel, std::thread::Builder::new().name("tools".into()).spawn(start)?));
        Ok(())
    }

    fn go_on(&mut self, receiver: &Receiver<Message>, stop: &AtomicBool) -> End {
        let mut ticked = Instant::now();
        loop {
            let message = match receiver.recv_timeout(TICK) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                // We hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => return End::Failed,
            };
            let mut events = Vec::new();
            if stop.load(Ordering::SeqCst) {
                events.push(Event::Cancel);
            }
            match message {
                Some(Message::Event(event)) => events.push(event),
                Some(Message::Note(told)) => events.extend(self.note(told)),
                None => {}
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                events.push(Event::Tick);
            }
            if let Some(end) = events.into_iter().find_map(|event| self.handle(event)) {
                return end;
            }
        }
    }

    /// Gives the machine an event and does what it says; the end, when it is one.
    fn handle(&mut self, event: Event) -> Option<End> {
        let at_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut ended = None;
        let mut lost = None;
        for effect in self.machine.handle(at_ms, event) {
            match effect {
                Effect::Call { number, body } => self.request(number, body),
                Effect::DropCall => drop(self.request.take().map(Stopper::stop)),
                Effect::Tools { number, calls } => self.tools(number, calls),
                Effect::DropTools => self.drop_tools(),
                Effect::Note(told) => lost = lost.or(self.note(told)),
                Effect::End(end) => ended = Some(end),
            }
        }
        ended.or_else(|| lost.and_then(|event| self.handle(event)))
    }

    fn note(&self, told: Told) -> Option<Event> {
        self.record.note(told).err().map(|error| Event::RecordLost(error.to_string()))
    }

    fn send(&self, event: Event) {
        let _ = self.sender.send(Message::Event(event));
    }

    fn request(&mut self, number: u64, body: Value) {
        let exchange = Exchange::new(&self.base_url, self.wire);
        self.request = Some(exchange.stopper());
        let sender = self.sender.clone();
        let exchange = move || {
            let mut piece = |piece| {
                // Nobody listens when the run is over.
                let _ = sender.send(Message::Event(Event::Piece(number, piece)));
            };
            let event = match exchange.call(number, &body, &mut piece) {
                Ok(answer) => Event::Answered(number, answer),
                Err(failure) => Event::Failed(number, failure),
            };
            let _ = sender.send(Message::Event(event));
        };
        if let Err(error) = std::thread::Builder::new().name("model".into()).spawn(exchange) {
            let text = format!("no thread for a request: {error}");
            self.send(Event::Failed(number, Failure::new(Trouble::Unreachable, text)));
        }
    }

    fn tools(&mut self, number: u64, calls: Vec<Call>) {
        let count = calls.len();
        let begun = Cancel::new().and_then(|cancel| {
            let (toolbox, sender, flag) = (Arc::clone(&self.toolbox), self.sender.clone(), cancel.clone());
            let work = move || {
                let teller = Teller { calls: &calls, sender: Mutex::new(sender.clone()), begun: Mutex::default() };
                let outcomes = toolbox.call_all(&calls, &flag, &|id, step| teller.tell(id, step));
                let _ = sender.send(Message::Event(Event::ToolsEnded(number, outcomes, toolbox.specs())));
            };
            Ok((cancel, std::thread::Builder::new().name("tools".into()).spawn(work)?))
        });
        match begun {
            Ok(round) => self.round = Some(round),
            Err(error) => {
                let outcomes = vec![Outcome::failed(format!("the guest has no room for the tool: {error}")); count];
                self.send(Event::ToolsEnded(number, outcomes, self.toolbox.specs()));
            }
        }
    }

    fn drop_tools(&self) {
        if let Some((cancel, _)) = &self.round {
            cancel.cancel();
        }
    }

    /// Waits for tools that were told to end, so that they leave nothing behind; the record has its last line already.
    fn close(self) {
        self.drop_tools();
        let until = Instant::now() + TOOLS_END_MAX;
        if let Some((_, thread)) = &self.round {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.record.close();
    }
}

/// Tells the record of the calls of one round.
struct Teller<'a> {
    calls: &'a [Call],
    sender: Mutex<Sender<Message>>,
    begun: Mutex<HashMap<String, Instant>>,
}

impl Teller<'_> {
    fn tell(&self, id: &str, step: Step<'_>) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Step::Began(input) => {
                begun.insert(id.to_owned(), Instant::now());
                self.called(id, input.clone());
            }
            Step::Ended(outcome) => {
                let at = begun.remove(id);
                if at.is_none() {
                    // It was refused before it began; the record has the call all the same.
                    let input = self.calls.iter().find(|call| call.id == id).map(|call| call.input.clone());
                    self.called(id, input.unwrap_or(Value::Null));
                }
                let elapsed_ms = at.map_or(0, |at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
                self.send(Told::ToolResult {
                    id: id.to_owned(),
                    is_error: outcome.is_error(),
                    output: outcome.text.clone(),
                    elided_bytes: outcome.elided_bytes,
                    elapsed_ms,
                });
            }
            Step::Todo(items) => self.send(Told::Todo { items: items.to_vec() }),
            Step::Words(_) => {}
        }
    }

    fn called(&self, id: &str, input: Value) {
        let name = self.calls.iter().find(|call| call.id == id).map(|call| call.name.clone()).unwrap_or_default();
        self.send(Told::ToolCall { id: id.to_owned(), name, input });
    }

    fn send(&self, told: Told) {
        let _ = self.sender.lock().unwrap_or_else(PoisonError::into_inner).send(Message::Note(told));
    }
}

#[cfg(test)]
mod tests;
