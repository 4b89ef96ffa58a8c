// SPDX-License-Identifier: Apache-2.0
//! What a child does: a command, or a task for a tool loop of its own; and what its parent hears of it meanwhile.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use midge_broker::ledger::Ledger;
use midge_protocol::broker::{Run, Told, Work};
use midge_record::{Entry, Line, Recorder};
use tokio::io::AsyncReadExt as _;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::super::{ROOT, cwd, start, with_doors};
use super::{HOST_FAILED, Next};
use crate::error::{Error, chain};
use crate::exec::{Exec, OutputReader};
use crate::sandbox::Sandbox;

/// The most of a command's output that is its result: the end of it, in bytes.
const TAIL_MAX_BYTES: usize = 32 << 10;
/// Output that is passed on at once, in bytes.
const PIECE_BYTES: usize = 16 << 10;
/// The exit code of what SIGKILL ended.
pub(super) const KILLED: i32 = 137;

/// How work ended: in one word, by a code, and with these last words.
pub(super) type Done = (String, i32, String);

pub(super) struct Job<'a> {
    pub(super) sandbox: &'a Sandbox,
    pub(super) ledger: &'a Ledger,
    pub(super) recorder: &'a Recorder,
    pub(super) out: &'a mpsc::Sender<Next>,
}

impl Job<'_> {
    /// Does it all, whatever comes of it.
    pub(super) async fn done(&self, work: Work, turn: Option<Run>) -> Done {
        let done = match work {
            Work::Command(argv) => self.command(argv).await,
            Work::Task(task) => self.task(task, turn).await,
        };
        done.unwrap_or_else(|error| match error {
            Error::NotStarted { exit_code, ref text, .. } => ("failed".to_owned(), i32::from(exit_code), text.clone()),
            error => ("failed".to_owned(), HOST_FAILED, chain(&error)),
        })
    }

    async fn command(&self, argv: Vec<String>) -> Result<Done, Error> {
        let exec = with_doors(Exec::new(argv).user(ROOT).cwd(cwd(self.sandbox)));
        let mut running = self.sandbox.exec(exec).await?;
        let (stdout, stderr) = (running.stdout.take(), running.stderr.take());
        let tail = Mutex::new(Tail::default());
        let (status, (), ()) = tokio::join!(running.wait(), self.pass_on(stdout, &tail), self.pass_on(stderr, &tail));
        let code = i32::from(status?.shell_code());
        let tail = tail.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((if code == 0 { "done" } else { "failed" }.to_owned(), code, tail.text()))
    }

    /// Passes one stream of a command on, and keeps its end.
    async fn pass_on(&self, stream: Option<OutputReader>, tail: &Mutex<Tail>) {
        let Some(mut stream) = stream else { return };
        let (mut piece, mut open) = (vec![0; PIECE_BYTES], Vec::new());
        // A broken stream is told by the command's end.
        while let Ok(len @ 1..) = stream.read(&mut piece).await {
            tail.lock().unwrap_or_else(PoisonError::into_inner).add(&piece[..len]);
            open.extend_from_slice(&piece[..len]);
            self.say(whole_characters(&mut open)).await;
        }
        self.say(String::from_utf8_lossy(&open).into_owned()).await;
    }

    async fn say(&self, text: String) {
        if !text.is_empty() {
            // When nobody hears it the child is about to be ended.
            let _ = self.out.send(Next::Output(text)).await;
        }
    }

    async fn task(&self, task: String, turn: Option<Run>) -> Result<Done, Error> {
        let Some(turn) = turn else {
            let why = "this run has no model: give the child a command";
            return Ok(("failed".to_owned(), HOST_FAILED, why.to_owned()));
        };
        let run = Run { task, cwd: cwd(self.sandbox).to_owned(), left: self.ledger.left(), ..turn };
        let lines = self.recorder.listen();
        let turning = start(self.sandbox, &run, self.ledger, self.recorder).await?;
        let ended = tokio::select! {
            ended = turning.ended() => ended?,
            never = self.retell(lines) => match never {},
        };
        Ok((super::super::word_of(&ended.how), i32::from(ended.how.exit_code()), ended.text))
    }

    /// Passes on what a loop says of itself, for ever.
    async fn retell(&self, mut lines: Receiver<Arc<Line>>) -> Infallible {
        loop {
            match lines.recv().await {
                Ok(line) => {
                    if let Some(Entry::Told { told }) = line.entry() {
                        self.say(words(&told)).await;
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }
}

/// What a parent hears of a step of its child's loop.
fn words(told: &Told) -> String {
    match told {
        Told::Said { text } if !text.trim().is_empty() => format!("{}\n", text.trim_end()),
        Told::ToolCall { name, .. } => format!("> {name}\n"),
        _ => String::new(),
    }
}

/// Takes what is whole characters; the beginning of one stays. What is no UTF-8 is replaced.
fn whole_characters(open: &mut Vec<u8>) -> String {
    let rest = match std::str::from_utf8(open) {
        Err(error) if error.error_len().is_none() => open.split_off(error.valid_up_to()),
        _ => Vec::new(),
    };
    let whole = std::mem::replace(open, rest);
    String::from_utf8_lossy(&whole).into_owned()
}

/// The end of a command's output.
#[derive(Debug, Default)]
struct Tail {
    kept: Vec<u8>,
    dropped_bytes: usize,
}

impl Tail {
    fn add(&mut self, piece: &[u8]) {
        self.kept.extend_from_slice(piece);
        let more = self.kept.len().saturating_sub(TAIL_MAX_BYTES);
        self.dropped_bytes += more;
        self.kept.drain(..more);
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        if self.dropped_bytes == 0 {
            return text.into_owned();
        }
        format!("[{} bytes of output before this are left out]\n{text}", self.dropped_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_end_and_say_what_is_left_out() {
        let mut tail = Tail::default();
        tail.add(b"short");
        assert_eq!(tail.text(), "short");
        tail.add(&vec![b'x'; TAIL_MAX_BYTES - 1]);
        assert!(tail.text().starts_with("[4 bytes of output before this are left out]\ntx"), "{:.60}", tail.text());
        assert_eq!(tail.kept.len(), TAIL_MAX_BYTES);
    }

    #[test]
    fn characters_are_passed_on_whole() {
        let mut open = "aé".as_bytes()[..2].to_vec();
        assert_eq!((whole_characters(&mut open).as_str(), open.len()), ("a", 1));
        open.push("é".as_bytes()[1]);
        assert_eq!((whole_characters(&mut open).as_str(), open.len()), ("é", 0));
        open = b"a\xffb".to_vec();
        assert_eq!((whole_characters(&mut open).as_str(), open.len()), ("a\u{fffd}b", 0));
    }

    #[test]
    fn words_of_a_loop_are_its_own() {
        assert_eq!(words(&Told::Said { text: "hm \n".into() }), "hm\n");
        assert_eq!(words(&Told::ToolCall { id: "1".into(), name: "shell".into(), input: 1.into() }), "> shell\n");
        assert_eq!(words(&Told::Said { text: " ".into() }), "");
    }
}
