// SPDX-License-Identifier: Apache-2.0
//! OpenAI Chat Completions: counts are in the last chunk, if the request asked for them (`stream_options.include_usage`).

use serde_json::Value;

use super::{Tally, take};

pub(super) fn event(tally: &mut Tally, event: &Value) {
    counts(tally, &event["usage"]);
    for choice in event["choices"].as_array().into_iter().flatten() {
        let delta = &choice["delta"];
        for part in ["content", "reasoning_content", "reasoning", "refusal"] {
            tally.said(&delta[part]);
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            tally.said(&call["function"]["arguments"]);
            tally.calls.insert((choice["index"].as_u64().unwrap_or(0), call["index"].as_u64().unwrap_or(0)));
        }
    }
}

pub(super) fn whole(tally: &mut Tally, body: &Value) {
    counts(tally, &body["usage"]);
    for (choice, number) in body["choices"].as_array().into_iter().flatten().zip(0..) {
        let calls = choice["message"]["tool_calls"].as_array().map_or(0, Vec::len) as u64;
        tally.calls.extend((0..calls).map(|index| (number, index)));
    }
}

fn counts(tally: &mut Tally, counts: &Value) {
    if take(&mut tally.usage.input_tokens, &counts["prompt_tokens"]) {
        tally.input_counted = true;
        take(&mut tally.usage.cache_read_tokens, &counts["prompt_tokens_details"]["cached_tokens"]);
        tally.usage.input_tokens = tally.usage.input_tokens.saturating_sub(tally.usage.cache_read_tokens);
    }
    tally.output_counted |= take(&mut tally.usage.output_tokens, &counts["completion_tokens"]);
}
