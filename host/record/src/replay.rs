// SPDX-License-Identifier: Apache-2.0
//! A recorded run as a model: its answers in the order in which they were asked for, and where a new run's tools differ from it.

mod results;

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;

use serde_json::Value;

pub use results::{ToolResult, tool_results};

use crate::{Body, Entry, Lines, ReadError, Started};

/// Most bytes of answers that are kept in memory for a replay.
const ANSWERS_MAX_BYTES: usize = 1 << 30;

/// Why a transcript cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("reading the transcript to replay it")]
    Read(#[from] ReadError),
    /// Its answers do not fit.
    #[error("replaying the transcript: its answers have more than {ANSWERS_MAX_BYTES} bytes")]
    TooLong,
    /// Nobody asked a model.
    #[error("replaying the transcript: no model was asked in that run, so there is nothing to answer with")]
    NoExchange,
    /// The new run asks more often.
    #[error(
        "answering call {number} of the model from the transcript: {count} were recorded; the runs have parted, see where their \
         tools' results differ"
    )]
    Over {
        /// The call, from 1.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// The new run asks another API.
    #[error(
        "answering call {number} of the model from the transcript: {asked} was asked, and {recorded} was recorded; the runs have parted"
    )]
    Other {
        /// The call, from 1.
        number: usize,
        /// Path that was asked.
        asked: String,
        /// Path that was recorded.
        recorded: String,
    },
    /// Its answer was not recorded whole.
    #[error("answering call {number} of the model from the transcript: its answer was not recorded whole: {why}")]
    Missing {
        /// The call, from 1.
        number: usize,
        /// Why.
        why: String,
    },
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// HTTP status.
    pub status: u16,
    /// Headers to give again.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Body,
    /// Why it was not whole then, if it was not.
    pub broken: Option<String>,
}

/// One call of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// Its number in the transcript.
    pub number: u64,
    /// Path of the API.
    pub path: String,
    /// The model that was asked.
    pub model: String,
    /// What tools had answered since the call before.
    pub results: Vec<ToolResult>,
    /// The answer; none when the transcript ends before it.
    pub answer: Option<Recorded>,
}

/// Where a tool's result in a new run is not the recorded one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The provider's name for the call.
    pub id: String,
    /// What was recorded; none when there was no such result.
    pub recorded: Option<String>,
    /// What there is now; none when there is no such result.
    pub now: Option<String>,
}

/// A recorded run that answers instead of a model.
#[derive(Debug)]
pub struct Replay {
    run: String,
    started: Option<Started>,
    exchanges: Vec<Exchange>,
    next: usize,
    seen: BTreeSet<String>,
}

impl Replay {
    /// Reads a transcript. One without a root will do: a run that was killed can be replayed as far as it came.
    ///
    /// # Errors
    /// [`ReplayError`] when it is broken, too long, or holds no call of a model.
    pub fn read(reader: impl BufRead) -> Result<Self, ReplayError> {
        let mut lines = Lines::new(reader);
        let (mut started, mut exchanges) = (None, Vec::<Exchange>::new());
        let (mut seen, mut bytes) = (BTreeSet::new(), 0);
        for line in &mut lines {
            match line?.entry() {
                Some(Entry::Started(found)) if started.is_none() => started = Some(*found),
                Some(Entry::ModelRequest { exchange, path, model, body }) => {
                    let results = unseen(&body, &mut seen);
                    exchanges.push(Exchange { number: exchange, path, model, results, answer: None });
                }
                Some(Entry::ModelAnswer { exchange, status, headers, body, broken, .. }) => {
                    bytes += body.text.len();
                    if bytes > ANSWERS_MAX_BYTES {
                        return Err(ReplayError::TooLong);
                    }
                    if let Some(open) = exchanges.iter_mut().rev().find(|open| open.number == exchange) {
                        open.answer = Some(Recorded { status, headers, body, broken });
                    }
                }
                _ => {}
            }
        }
        if exchanges.is_empty() {
            return Err(ReplayError::NoExchange);
        }
        Ok(Self { run: lines.run().to_owned(), started, exchanges, next: 0, seen: BTreeSet::new() })
    }

    /// The recorded run's name.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    /// What the recorded run was started with.
    #[must_use]
    pub fn started(&self) -> Option<&Started> {
        self.started.as_ref()
    }

    /// All calls, in the order of their requests.
    #[must_use]
    pub fn exchanges(&self) -> &[Exchange] {
        &self.exchanges
    }

    /// The answer to the next call, to `path` with the request `body`, and where the results of tools in it differ from the recorded ones.
    ///
    /// # Errors
    /// [`ReplayError::Over`] when there is no further call, [`ReplayError::Other`] when it was to another path,
    /// [`ReplayError::Missing`] when its answer is not there or was cut.
    pub fn answer(&mut self, path: &str, body: &Value) -> Result<(&Recorded, Vec<Difference>), ReplayError> {
        let number = self.next + 1;
        let now = unseen(body, &mut self.seen);
        let Some(exchange) = self.exchanges.get(self.next) else {
            return Err(ReplayError::Over { number, count: self.exchanges.len() });
        };
        if exchange.path != path {
            return Err(ReplayError::Other { number, asked: path.to_owned(), recorded: exchange.path.clone() });
        }
        let missing = |why: &str| ReplayError::Missing { number, why: why.to_owned() };
        let answer = exchange.answer.as_ref().ok_or_else(|| missing("the run ended before it"))?;
        if answer.body.cut_bytes > 0 {
            return Err(missing(&format!("{} bytes were cut off", answer.body.cut_bytes)));
        }
        self.next += 1;
        Ok((answer, differences(&exchange.results, &now)))
    }
}

/// The results in a request that no request before it had: a conversation is sent whole each time.
fn unseen(body: &Value, seen: &mut BTreeSet<String>) -> Vec<ToolResult> {
    tool_results(body).into_iter().filter(|result| seen.insert(result.id.clone())).collect()
}

/// Where two lists of results differ, by the names of their calls.
#[must_use]
pub fn differences(recorded: &[ToolResult], now: &[ToolResult]) -> Vec<Difference> {
    let text = |result: &ToolResult| result.text.clone();
    let find = |list: &[ToolResult], id: &str| list.iter().find(|result| result.id == id).map(text);
    let changed = recorded.iter().filter_map(|was| {
        let is = find(now, &was.id);
        (is.as_ref() != Some(&was.text)).then(|| Difference { id: was.id.clone(), recorded: Some(text(was)), now: is })
    });
    let more = now.iter().filter(|is| !recorded.iter().any(|was| was.id == is.id));
    changed.chain(more.map(|is| Difference { id: is.id.clone(), recorded: None, now: Some(text(is)) })).collect()
}

#[cfg(test)]
mod tests;
