// SPDX-License-Identifier: Apache-2.0
//! What the sections mean: questions that whoever enforces them asks.

use std::fmt;

use super::{Action, Mode, Model, Price, Provider, Tools, Workspace};
use crate::names::Endpoint;

/// What the usage of one answer is counted in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// In, without those of a cache.
    pub input: u64,
    /// Out.
    pub output: u64,
    /// Read from a cache.
    pub cache_read: u64,
    /// Written to a cache.
    pub cache_write: u64,
}

/// What prices are for.
const PRICED_TOKENS: u128 = 1_000_000;

impl Provider {
    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Openai => "openai",
            Self::Compatible => "compatible",
        }
    }

    /// Where it is asked when the policy does not say.
    #[must_use]
    pub fn endpoint(self) -> Option<Endpoint> {
        let url = match self {
            Self::Anthropic => "https://api.anthropic.com",
            Self::Openai => "https://api.openai.com",
            Self::Compatible => return None,
        };
        url.parse().ok()
    }
}

impl Model {
    /// Where it is asked: what the policy says, or where the provider is.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.clone().or_else(|| self.provider.endpoint())
    }

    /// Whether a model of that name may be asked.
    #[must_use]
    pub fn allows(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| pattern.matches(model))
    }

    /// What a model's tokens cost: by its name, else by the longest pattern.
    #[must_use]
    pub fn price(&self, model: &str) -> Option<Price> {
        let named = self.prices.iter().find(|(pattern, _)| pattern.as_str() == model);
        let matching = self.prices.iter().filter(|(pattern, _)| pattern.matches(model));
        named.or_else(|| matching.max_by_key(|(pattern, _)| pattern.as_str().len())).map(|(_, price)| *price)
    }
}

impl Price {
    /// The price of `tokens` in millionths of a dollar, rounded up.
    #[must_use]
    pub fn micros(&self, tokens: Tokens) -> u64 {
        let Self { input, output, cache_read, cache_write } = self;
        let twice = crate::units::Money::from_micros(input.micros().saturating_mul(2));
        let parts = [
            (tokens.input, *input),
            (tokens.output, *output),
            (tokens.cache_read, cache_read.unwrap_or(*input)),
            (tokens.cache_write, cache_write.unwrap_or(twice)),
        ];
        let sum: u128 = parts.iter().map(|(count, price)| u128::from(*count) * u128::from(price.micros())).sum();
        u64::try_from(sum.div_ceil(PRICED_TOKENS)).unwrap_or(u64::MAX)
    }
}

impl Tools {
    /// What becomes of a call of that tool, whatever its input is.
    #[must_use]
    pub fn action(&self, tool: &str) -> Action {
        let named = self.rules.iter().find(|(name, _)| name.as_str() == tool);
        named.map_or(self.default, |(_, action)| *action)
    }

    /// The first pattern that asks about a shell command.
    #[must_use]
    pub fn asks_about(&self, command: &str) -> Option<&str> {
        self.ask_commands.iter().find(|pattern| pattern.matches(command)).map(crate::glob::Wildcard::as_str)
    }
}

impl Workspace {
    /// The first pattern that keeps a file as it is; `path` relative to the workspace, with `/` between segments.
    #[must_use]
    pub fn keeps(&self, path: &[u8]) -> Option<&str> {
        self.read_only.iter().find(|pattern| pattern.matches(path)).map(crate::glob::FileGlob::as_str)
    }
}

impl Action {
    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Ask => "ask",
            Self::Allow => "allow",
        }
    }
}

impl Mode {
    /// As the file writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Discard => "discard",
            Self::Review => "review",
            Self::Apply => "apply",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
