// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::prelude::*;
use serde_json::json;

const WIRES: [Wire; 3] = [Wire::Anthropic, Wire::Responses, Wire::Chat];

fn text(body: &Value, wire: Wire) -> Result<Asked, Refusal> {
    read(body.to_string().as_bytes(), wire)
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    for raw in [
        r#"{"model":"cheap","model":"dear"}"#,
        r#"{"model":"cheap","mod\u0065l":"dear"}"#,
        r#"{"model":"cheap","Model":"dear"}"#,
        r#"{"model":"cheap","tools":[{"type":"web_search","type":"function"}]}"#,
        r#"{"model":"cheap","Tools":[]}"#,
        r#"{"model":"cheap"} {"model":"dear"}"#,
        r#"{"model":7}"#,
        r#"{"messages":[]}"#,
        r#"["model"]"#,
        r#"{"model":"x""#,
        "",
        "\u{feff}{\"model\":\"x\"}",
    ] {
        for wire in WIRES {
            assert!(matches!(read(raw.as_bytes(), wire), Err(Refusal::Malformed(_))), "{raw}");
        }
    }
    assert!(matches!(read(b"{\"model\":\"\xff\"}", Wire::Chat), Err(Refusal::Malformed(_))));
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow() {
    let raw = format!("{{\"model\":\"x\",\"a\":{}", "[".repeat(1_000_000));
    assert!(matches!(read(raw.as_bytes(), Wire::Chat), Err(Refusal::Malformed(_))));
}

#[test]
fn what_is_set_aside_follows_the_request_up_to_a_bound() {
    let tokens = |body: &Value| text(body, Wire::Chat).unwrap().output_tokens;
    assert_eq!(tokens(&json!({"model": "x", "max_tokens": 10})), 10);
    assert_eq!(tokens(&json!({"model": "x", "max_completion_tokens": 11})), 11);
    assert_eq!(tokens(&json!({"model": "x", "max_output_tokens": 1_000_000})), RESERVED_OUTPUT_TOKENS);
    assert_eq!(tokens(&json!({"model": "x"})), RESERVED_OUTPUT_TOKENS);
}

#[test]
fn tools_of_the_client_pass() {
    for (wire, tool) in [
        (Wire::Anthropic, json!({"name": "shell", "input_schema": {"type": "object"}})),
        (Wire::Anthropic, json!({"type": "custom", "name": "x"})),
        (Wire::Anthropic, json!({"type": "bash_20250124", "name": "bash"})),
        (Wire::Responses, json!({"type": "function", "name": "x"})),
        (Wire::Responses, json!({"type": "local_shell"})),
        (Wire::Responses, json!({"type": "shell", "environment": {"type": "local"}})),
        (Wire::Chat, json!({"type": "function", "function": {}})),
    ] {
        text(&json!({"model": "x", "tools": [tool]}), wire).unwrap();
    }
}

#[test]
fn tools_of_the_provider_are_refused() {
    for (wire, tool) in [
        (Wire::Anthropic, json!({"type": "web_search_20250305", "name": "web_search"})),
        (Wire::Anthropic, json!({"type": "web_fetch_20250910"})),
        (Wire::Anthropic, json!({"type": "code_execution_20250825"})),
        (Wire::Anthropic, json!({"type": "mcp_toolset"})),
        (Wire::Anthropic, json!({"type": 7})),
        (Wire::Responses, json!({"type": "web_search"})),
        (Wire::Responses, json!({"type": "mcp", "server_url": "https://evil.test"})),
        (Wire::Responses, json!({"type": "code_interpreter"})),
        (Wire::Responses, json!({"type": "shell", "environment": {"type": "container_auto"}})),
        (Wire::Responses, json!({})),
        (Wire::Chat, json!({"type": "web_search"})),
    ] {
        let refused = text(&json!({"model": "x", "tools": [tool]}), wire);
        assert!(matches!(refused, Err(Refusal::Forbidden(_))), "{tool}");
    }
    for field in ["mcp_servers", "container", "web_search_options", "plugins", "prompt", "models"] {
        let body = json!({"model": "x", field: [{"url": "https://evil.test"}]});
        assert!(matches!(text(&body, Wire::Chat), Err(Refusal::Forbidden(_))), "{field}");
    }
}

#[test]
fn pictures_by_address_are_refused_and_data_passes() {
    let anthropic = |source: Value| json!([{"role": "user", "content": [{"type": "image", "source": source}]}]);
    let nested = |source: Value| {
        json!([{"role": "user", "content": [
        {"type": "tool_result", "content": [{"type": "image", "source": source}]}]}])
    };
    let url = || json!({"type": "url", "url": "https://evil.test/?secret"});
    let data = || json!({"type": "base64", "data": "AA=="});
    for (wire, field, turns, good) in [
        (Wire::Anthropic, "messages", anthropic(url()), false),
        (Wire::Anthropic, "messages", nested(url()), false),
        (Wire::Anthropic, "messages", anthropic(data()), true),
        (Wire::Anthropic, "messages", nested(data()), true),
        (Wire::Chat, "messages", json!([{"content": [{"image_url": {"url": "https://evil.test"}}]}]), false),
        (Wire::Chat, "messages", json!([{"content": [{"image_url": {"url": "data:image/png;base64,AA"}}]}]), true),
        (Wire::Responses, "input", json!([{"content": [{"image_url": "http://evil.test"}]}]), false),
        (Wire::Responses, "input", json!([{"content": [{"file_url": "http://evil.test"}]}]), false),
        (Wire::Responses, "input", json!([{"output": [{"image_url": "http://evil.test"}]}]), false),
        (Wire::Responses, "input", json!([{"content": [{"image_url": "data:,"}]}]), true),
    ] {
        let asked = text(&json!({"model": "x", field: turns}), wire);
        assert_eq!(asked.is_ok(), good, "{turns}");
    }
}

#[test]
fn what_a_tool_is_called_with_may_look_like_anything() {
    let body = json!({"model": "x", "messages": [{"role": "assistant", "content": [
        {"type": "tool_use", "input": {"source": {"type": "url", "url": "https://x"}}}]}]});
    text(&body, Wire::Anthropic).unwrap();
}

proptest! {
    /// What is accepted says the same to an ordinary reader.
    #[test]
    fn accepted_bodies_have_one_reading(raw in r#"\{("model":"[a-c]",?|"a":[0-9]{1,3},?|"b":\[\],?|"model":null){1,4}\}"#) {
        if let Ok(asked) = read(raw.as_bytes(), Wire::Chat) {
            prop_assert_eq!(asked.body, serde_json::from_str::<Value>(&raw).unwrap());
        }
    }
}
