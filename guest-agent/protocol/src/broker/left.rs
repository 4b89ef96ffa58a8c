// SPDX-License-Identifier: Apache-2.0
//! Budgets, as they are told to the guest and to the model. The broker counts; this is what it says.

use super::{Deserialize, Serialize};

/// What is left to spend. Absent: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Left {
    /// Calls of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns: Option<u64>,
    /// Tool calls that the model asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<u64>,
    /// Tokens, in and out, by the provider's count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Millionths of a US dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub money_micros: Option<u64>,
    /// Milliseconds of wall time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    /// Bytes through the door `egress`, both ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_bytes: Option<u64>,
}

impl Left {
    /// The first budget, by name, of which nothing is left.
    #[must_use]
    pub fn exhausted(&self) -> Option<&'static str> {
        let all = [
            ("turns", self.turns),
            ("tool_calls", self.tool_calls),
            ("tokens", self.tokens),
            ("money", self.money_micros),
            ("wall", self.wall_ms),
            ("egress", self.egress_bytes),
        ];
        all.into_iter().find(|(_, left)| *left == Some(0)).map(|(name, _)| name)
    }
}
