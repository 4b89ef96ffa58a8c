// SPDX-License-Identifier: Apache-2.0
//! Keeping a conversation inside the model's window: how much it holds, old output taken out, the old part made a summary.
//!
//! Nothing here breaks a pair of call and result, or changes a block of the model: whole answers go, with their thinking, together
//! with their results; or the text of a result is replaced and its call stays.

use serde_json::Value;

use crate::talk::{self, CallResult, Turn};

/// Bytes of text that make a token, at the least; English has four, code three.
const BYTES_PER_TOKEN: u64 = 3;
/// Where the window is too full, in percent of what input may have.
const FULL_PERCENT: u64 = 80;
/// How full it is at most after output was taken out; more, and the old part becomes a summary.
const GOAL_PERCENT: u64 = 50;
/// Rounds of results whose output stays.
const KEEP_ROUNDS: usize = 3;
/// Output that is not worth taking out, in bytes.
const SMALL_BYTES: usize = 400;
/// What stays of output that is taken out, in bytes.
const HEAD_BYTES: usize = 160;

/// How much of the window is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meter {
    known_tokens: u64,
    since_bytes: u64,
}

impl Meter {
    /// The provider has counted everything up to now.
    pub fn counted(&mut self, tokens: u64) {
        *self = Self { known_tokens: tokens, since_bytes: 0 };
    }

    /// So much was added.
    pub fn added(&mut self, bytes: u64) {
        self.since_bytes = self.since_bytes.saturating_add(bytes);
    }

    /// So much was taken out.
    pub fn removed(&mut self, bytes: u64) {
        let rest = bytes.saturating_sub(self.since_bytes);
        self.since_bytes = self.since_bytes.saturating_sub(bytes);
        self.known_tokens = self.known_tokens.saturating_sub(rest / BYTES_PER_TOKEN);
    }

    /// Nothing is known but that the conversation has so many bytes.
    pub fn restart(&mut self, bytes: u64) {
        *self = Self { known_tokens: 0, since_bytes: bytes };
    }

    /// Tokens in use, estimated.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.known_tokens.saturating_add(self.since_bytes / BYTES_PER_TOKEN)
    }
}

/// What input may have of a window of `context_tokens` when an answer may have `output_tokens`.
#[must_use]
pub fn room_tokens(context_tokens: u64, output_tokens: u64) -> u64 {
    context_tokens.saturating_sub(output_tokens).max(context_tokens / 2)
}

/// Whether `tokens` are too many for `room`.
#[must_use]
pub fn is_full(tokens: u64, room: u64) -> bool {
    tokens > room / 100 * FULL_PERCENT
}

/// How many bytes have to go so that `tokens` reach the goal for `room`.
#[must_use]
pub fn excess_bytes(tokens: u64, room: u64) -> u64 {
    tokens.saturating_sub(room / 100 * GOAL_PERCENT).saturating_mul(BYTES_PER_TOKEN)
}

/// Bytes of an entry as a provider reads it, nearly.
#[must_use]
pub fn bytes(turn: &Turn) -> u64 {
    let count = match turn {
        Turn::User(said) => said.len(),
        Turn::Answer(blocks) => blocks.iter().map(|block| block_bytes(&block.raw, &block.kind)).sum(),
        Turn::Results { results, note } => {
            note.len() + results.iter().map(|result| result.text.len() + result.id.len() + 40).sum::<usize>()
        }
    };
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn block_bytes(raw: &Value, kind: &crate::talk::Kind) -> usize {
    match kind {
        crate::talk::Kind::Text(said) => said.len(),
        _ => raw.to_string().len(),
    }
}

/// Takes old output out, the oldest first, until `want_bytes` are gone or no more is old; how many are gone.
pub fn elide(turns: &mut [Turn], want_bytes: u64) -> u64 {
    let mut rounds = turns.iter().enumerate().rev().filter(|(_, turn)| matches!(turn, Turn::Results { .. }));
    let end = rounds.nth(KEEP_ROUNDS - 1).map_or(0, |(index, _)| index);
    elide_results(turns.iter_mut().take(end), want_bytes)
}

/// Takes all output out, new and old; how many bytes are gone.
pub fn elide_all(turns: &mut [Turn]) -> u64 {
    elide_results(turns.iter_mut(), u64::MAX)
}

fn elide_results<'a>(turns: impl Iterator<Item = &'a mut Turn>, want_bytes: u64) -> u64 {
    let mut gone = 0u64;
    for turn in turns {
        let Turn::Results { results, .. } = turn else { continue };
        for result in results.iter_mut().filter(|result| !result.is_elided && result.text.len() > SMALL_BYTES) {
            if gone >= want_bytes {
                return gone;
            }
            let before = result.text.len();
            elide_one(result);
            gone = gone.saturating_add(u64::try_from(before.saturating_sub(result.text.len())).unwrap_or(0));
        }
    }
    gone
}

fn elide_one(result: &mut CallResult) {
    let bytes = result.text.len();
    let head = talk::head(&result.text, HEAD_BYTES);
    // Where the tool itself has said how the rest of its output is read, that stays true.
    let way =
        result.text.lines().rev().find(|line| line.starts_with('[') && line.contains("offset")).unwrap_or_default();
    let way = if way.is_empty() { "call the tool again to see it" } else { way };
    result.text = format!("{head}\n[this output of {bytes} bytes was taken out to save room: {way}]");
    result.is_elided = true;
}

/// The conversation with everything but its last `keep_rounds` rounds replaced by `summary`; none when that would replace nothing.
#[must_use]
pub fn replaced(turns: &[Turn], task: &str, summary: &str, keep_rounds: usize) -> Option<Vec<Turn>> {
    let answers = turns.iter().enumerate().rev().filter(|(_, turn)| matches!(turn, Turn::Answer(_)));
    let from = match keep_rounds {
        0 => turns.len(),
        // Only answers whose results are there may begin the rest.
        rounds => answers.map(|(index, _)| index).nth(rounds - 1).unwrap_or(turns.len()),
    };
    if from <= 1 {
        return None;
    }
    let said =
        format!("{task}\n\n[The earlier part of this conversation was replaced by this summary of it.]\n\n{summary}");
    let rest = turns.get(from..).unwrap_or_default();
    let mut all = vec![Turn::User(said)];
    all.extend(rest.iter().cloned());
    Some(all)
}

#[cfg(test)]
mod tests;
