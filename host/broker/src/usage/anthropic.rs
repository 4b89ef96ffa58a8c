// SPDX-License-Identifier: Apache-2.0
//! Anthropic Messages: `message_start` counts what went in, each `message_delta` what came out so far, the last one all of it.

use serde_json::Value;

use super::{Tally, take};

pub(super) fn event(tally: &mut Tally, event: &Value) {
    match event["type"].as_str() {
        Some("message_start") => {
            counts(tally, &event["message"]["usage"]);
            // What is said here of the output is a beginning only.
            tally.output_counted = false;
        }
        Some("message_delta") => counts(tally, &event["usage"]),
        Some("content_block_start") if is_call(&event["content_block"]) => {
            tally.calls.insert((0, event["index"].as_u64().unwrap_or(u64::MAX)));
        }
        Some("content_block_delta") => {
            for part in ["text", "thinking", "partial_json"] {
                tally.said(&event["delta"][part]);
            }
        }
        _ => {}
    }
}

pub(super) fn whole(tally: &mut Tally, body: &Value) {
    counts(tally, &body["usage"]);
    let blocks = body["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    tally.calls.extend((0..).zip(blocks).filter(|(_, block)| is_call(block)).map(|(index, _)| (0, index)));
}

fn is_call(block: &Value) -> bool {
    block["type"] == "tool_use"
}

fn counts(tally: &mut Tally, counts: &Value) {
    tally.input_counted |= take(&mut tally.usage.input_tokens, &counts["input_tokens"]);
    take(&mut tally.usage.cache_read_tokens, &counts["cache_read_input_tokens"]);
    take(&mut tally.usage.cache_write_tokens, &counts["cache_creation_input_tokens"]);
    tally.output_counted |= take(&mut tally.usage.output_tokens, &counts["output_tokens"]);
}
