// SPDX-License-Identifier: Apache-2.0
//! What a request to a model says, read so that no other reader can read it differently: which model, and whether it asks the
//! provider to reach the network in the guest's place, which would be a way around the door `egress`.

mod hosted;
mod strict;

use midge_protocol::broker::Wire;
use serde_json::Value;

use super::refusal::Refusal;

/// Tokens of an answer that are set aside when the request does not say how many there may be, and most that are in any case: the
/// next call need not wait for an answer that hardly ever comes out so long.
const RESERVED_OUTPUT_TOKENS: u64 = 4096;

/// A request that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    /// The model's name.
    pub(super) model: String,
    /// The whole body.
    pub(super) body: Value,
    /// Tokens to set aside for the answer.
    pub(super) output_tokens: u64,
}

/// Reads a body in the format of `wire`.
///
/// # Errors
/// It is malformed, ambiguous, or asks for what a provider would do in the guest's place.
pub(super) fn read(raw: &[u8], wire: Wire) -> Result<Asked, Refusal> {
    let malformed = |why: String| Refusal::Malformed(format!("the request's body is refused: {why}"));
    let body = strict::parse(raw).map_err(|error| malformed(error.to_string()))?;
    let Value::Object(fields) = &body else { return Err(malformed("it is not a JSON object".into())) };
    // Some servers read field names whatever their case.
    if let Some(odd) = fields.keys().find(|name| name.chars().any(|c| !c.is_ascii() || c.is_ascii_uppercase())) {
        return Err(malformed(format!("no API has a field {odd:?}; names of fields are in lower case")));
    }
    let Some(model) = body["model"].as_str() else {
        return Err(malformed("it has no field `model` with a name".into()));
    };
    hosted::check(&body, wire)?;
    let most =
        ["max_tokens", "max_completion_tokens", "max_output_tokens"].iter().find_map(|name| body[*name].as_u64());
    let output_tokens = most.unwrap_or(RESERVED_OUTPUT_TOKENS).min(RESERVED_OUTPUT_TOKENS);
    Ok(Asked { model: model.to_owned(), output_tokens, body })
}

#[cfg(test)]
mod tests;
