// SPDX-License-Identifier: Apache-2.0
//! What is spent at once, and what a model's answer costs. Integers only.

use midge_protocol::broker::Left;
use midge_record::Usage;

use super::axis::{AXES, by_axis};

/// Tokens that a price is for.
const PRICED_TOKENS: u128 = 1_000_000;

/// What is spent, or set aside, at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charge(pub(super) [u64; AXES]);

impl Charge {
    /// One call of a model.
    #[must_use]
    pub fn turn() -> Self {
        Self::of(&Left { turns: Some(1), ..Left::default() })
    }

    /// What `spent` says; wall time is not charged, it passes.
    #[must_use]
    pub fn of(spent: &Left) -> Self {
        Self(by_axis(spent).map(Option::unwrap_or_default))
    }

    /// One call of a model with what its answer used.
    #[must_use]
    pub fn exchange(usage: &Usage, money_micros: u64) -> Self {
        Self::of(&Left {
            turns: Some(1),
            tool_calls: Some(usage.tool_calls),
            tokens: Some(usage.tokens()),
            money_micros: Some(money_micros),
            ..Left::default()
        })
    }
}

/// What a model's tokens cost, in millionths of a US dollar for a million tokens (so: US dollars a million tokens, times a million).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prices {
    /// Tokens in.
    pub input: u64,
    /// Tokens out.
    pub output: u64,
    /// Tokens read from the provider's cache.
    pub cache_read: u64,
    /// Tokens written to it.
    pub cache_write: u64,
}

impl Prices {
    /// What `usage` costs in millionths of a US dollar, rounded up: a budget never pays less than the bill.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> u64 {
        let parts = [
            (usage.input_tokens, self.input),
            (usage.output_tokens, self.output),
            (usage.cache_read_tokens, self.cache_read),
            (usage.cache_write_tokens, self.cache_write),
        ];
        let sum = parts
            .iter()
            .fold(0_u128, |sum, (tokens, price)| sum.saturating_add(u128::from(*tokens) * u128::from(*price)));
        u64::try_from(sum.div_ceil(PRICED_TOKENS)).unwrap_or(u64::MAX)
    }
}
