// SPDX-License-Identifier: Apache-2.0
//! OpenAI Responses: the event that ends a response has its counts; tokens read from a cache are a part of those that went in.

use serde_json::Value;

use super::{Tally, take};

pub(super) fn event(tally: &mut Tally, event: &Value) {
    match event["type"].as_str() {
        Some("response.completed" | "response.incomplete" | "response.failed") => whole(tally, &event["response"]),
        Some("response.output_item.added" | "response.output_item.done") if is_call(&event["item"]) => {
            tally.calls.insert((0, event["output_index"].as_u64().unwrap_or(u64::MAX)));
        }
        Some(kind) if kind.ends_with(".delta") => tally.said(&event["delta"]),
        _ => {}
    }
}

pub(super) fn whole(tally: &mut Tally, body: &Value) {
    let counts = &body["usage"];
    if take(&mut tally.usage.input_tokens, &counts["input_tokens"]) {
        tally.input_counted = true;
        take(&mut tally.usage.cache_read_tokens, &counts["input_tokens_details"]["cached_tokens"]);
        tally.usage.input_tokens = tally.usage.input_tokens.saturating_sub(tally.usage.cache_read_tokens);
    }
    tally.output_counted |= take(&mut tally.usage.output_tokens, &counts["output_tokens"]);
    let items = body["output"].as_array().map(Vec::as_slice).unwrap_or_default();
    tally.calls.extend((0..).zip(items).filter(|(_, item)| is_call(item)).map(|(index, _)| (0, index)));
}

fn is_call(item: &Value) -> bool {
    item["type"].as_str().is_some_and(|kind| kind.ends_with("_call"))
}
