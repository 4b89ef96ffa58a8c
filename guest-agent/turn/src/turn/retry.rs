// SPDX-License-Identifier: Apache-2.0
//! What the machine does when there is no answer: learn, make room, wait and try again, or end.

use midge_protocol::broker::{End, Told};

use super::{ANSWER_MAX_MS, Effect, Machine, Phase, SILENCE_MAX_MS};
use crate::talk::{Failure, Trouble};
use crate::wire;

/// Most attempts for one answer after the first.
pub(super) const RETRIES_MAX_COUNT: u32 = 8;
/// The first wait in milliseconds; each further one is twice as long.
const WAIT_FIRST_MS: u64 = 500;
/// The longest wait of our own, in milliseconds.
const WAIT_MAX_MS: u64 = 32_000;
/// The longest wait that a provider may ask for, in milliseconds.
const RETRY_AFTER_MAX_MS: u64 = 10 * 60 * 1000;

/// How often it was tried, and the dice for the next wait.
#[derive(Debug)]
pub(super) struct Retry {
    count: u32,
    state: u64,
}

impl Retry {
    pub(super) fn new(seed: u64) -> Self {
        Self { count: 0, state: seed }
    }

    pub(super) fn succeeded(&mut self) {
        self.count = 0;
    }

    /// The next wait: half of it is sure, half of it is thrown, so that many who were refused at once do not come back at once.
    fn wait_ms(&mut self) -> u64 {
        let whole = WAIT_FIRST_MS.saturating_mul(1 << self.count.min(16)).min(WAIT_MAX_MS);
        self.count += 1;
        whole / 2 + self.throw() % (whole / 2 + 1)
    }

    /// SplitMix64.
    fn throw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Machine {
    pub(super) fn failed(&mut self, at_ms: u64, failure: &Failure, todo: &mut Vec<Effect>) {
        self.unsaid.flush(todo);
        // The call is over by itself.
        self.phase = Phase::Waiting { until_ms: at_ms };
        match &failure.kind {
            Trouble::Budget(name) => {
                return self.end(End::Budget(name.clone()), format!("the budget of {name} is used up"), todo);
            }
            Trouble::Denied => return self.end(End::Denied, failure.text.clone(), todo),
            Trouble::Status(400 | 422) if self.quirks.learn(self.wire, &failure.text) => return self.ask(at_ms, todo),
            _ if wire::window_is_full(failure) => return self.squeeze(at_ms, todo),
            _ => {}
        }
        let too_long = failure.retry_after_ms.is_some_and(|wait_ms| wait_ms > RETRY_AFTER_MAX_MS);
        if !is_passing(&failure.kind) || failure.is_final || too_long || self.retry.count >= RETRIES_MAX_COUNT {
            let text = match self.retry.count {
                0 => format!("the model's endpoint refuses: {}", failure.text),
                count => format!("the model's endpoint does not answer, {} tries: {}", count + 1, failure.text),
            };
            return self.end(End::Failed, text, todo);
        }
        let wait_ms = self.retry.wait_ms().max(failure.retry_after_ms.unwrap_or(0));
        self.phase = Phase::Waiting { until_ms: at_ms.saturating_add(wait_ms) };
        todo.push(Effect::Note(Told::Retry { why: failure.text.clone(), wait_ms }));
    }

    pub(super) fn watch_call(&mut self, at_ms: u64, since_ms: u64, heard_ms: u64, todo: &mut Vec<Effect>) {
        let silent = at_ms.saturating_sub(heard_ms) >= SILENCE_MAX_MS;
        let endless = at_ms.saturating_sub(since_ms) >= ANSWER_MAX_MS;
        if silent || endless {
            let what =
                if silent { ("said nothing", SILENCE_MAX_MS) } else { ("did not end its answer", ANSWER_MAX_MS) };
            todo.push(Effect::DropCall);
            let text = format!("the model {} for {} s", what.0, what.1 / 1000);
            self.failed(at_ms, &Failure::new(Trouble::TimedOut, text), todo);
        }
    }
}

/// Whether the same request may have an answer later.
fn is_passing(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Unreachable | Trouble::Malformed | Trouble::TimedOut | Trouble::TooLong => true,
        Trouble::Status(status) => matches!(status, 408 | 409 | 425 | 429 | 500..),
        Trouble::Budget(_) | Trouble::Denied => false,
    }
}
