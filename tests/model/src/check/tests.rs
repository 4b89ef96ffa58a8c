// SPDX-License-Identifier: Apache-2.0

use serde_json::json;

use super::*;

fn refused(wire: Wire, body: &Value, sent: &[Value], with: &str) {
    let problem = request(wire, body, sent).expect_err(with);
    assert!(problem.contains(with), "{problem:?} should contain {with:?}");
}

fn anthropic(messages: Value) -> Value {
    json!({"model": "m", "max_tokens": 10, "messages": messages})
}

fn tool_use(id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": "shell", "input": {}})
}

fn tool_result(id: &str) -> Value {
    json!({"type": "tool_result", "tool_use_id": id, "content": "out"})
}

fn user(content: Value) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: Value) -> Value {
    json!({"role": "assistant", "content": content})
}

#[test]
fn anthropic_takes_what_is_well() {
    let text = json!({"type": "text", "text": "x"});
    let messages = json!([
        user(json!("go")),
        assistant(json!([tool_use("a"), tool_use("b")])),
        user(json!([tool_result("b"), tool_result("a"), text]))
    ]);
    assert_eq!(request(Wire::Anthropic, &anthropic(messages.clone()), &[]), Ok(()));
    assert_eq!(last_results(Wire::Anthropic, &anthropic(messages)), ["out", "out"]);
}

#[test]
fn anthropic_wants_a_result_for_each_call_in_the_next_message() {
    for (third, with) in [
        (json!([tool_result("a")]), "without `tool_result`"),
        (json!([{"type": "text", "text": "x"}, tool_result("a"), tool_result("b")]), "must come first"),
        (json!([tool_result("a"), tool_result("b"), tool_result("c")]), "unexpected `tool_use_id`"),
        (json!([tool_result("a"), tool_result("a"), tool_result("b")]), "single result"),
        (json!([]), "non-empty"),
    ] {
        let messages = json!([user(json!("go")), assistant(json!([tool_use("a"), tool_use("b")])), user(third)]);
        refused(Wire::Anthropic, &anthropic(messages), &[], with);
    }
    refused(
        Wire::Anthropic,
        &anthropic(json!([user(json!("x")), assistant(json!([tool_use("a")]))])),
        &[],
        "without `tool_result`",
    );
}

#[test]
fn anthropic_refuses_what_the_real_one_refuses() {
    for (messages, with) in [
        (json!([]), "not empty"),
        (json!([assistant(json!("x"))]), "alternate"),
        (json!([user(json!("x")), user(json!("y"))]), "alternate"),
        (json!([user(json!("x")), assistant(json!([])), user(json!("y"))]), "non-empty content"),
        (json!([user(json!([{"type": "text", "text": ""}]))]), "must be non-empty"),
        (json!([user(json!([{"type": "text", "text": " "}]))]), "non-whitespace"),
        (json!([user(json!([{"type": "text", "text": "x", "extra": 1}]))]), "Extra inputs"),
        (json!([user(json!([{"type": "new"}]))]), "expected tags"),
        (json!([user(json!("x")), assistant(json!([tool_use("a b")]))]), "does not match"),
        (json!([user(json!("x")), assistant(json!([tool_use("a"), tool_use("a")]))]), "unique"),
    ] {
        refused(Wire::Anthropic, &anthropic(messages), &[], with);
    }
    let mut body = anthropic(json!([user(json!("x"))]));
    body["max_tokens"] = json!(0);
    refused(Wire::Anthropic, &body, &[], "max_tokens");
    body["max_tokens"] = json!(1);
    body["surprise"] = json!(1);
    refused(Wire::Anthropic, &body, &[], "Extra inputs");
    let marked = json!({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}});
    refused(Wire::Anthropic, &anthropic(json!([user(json!(vec![marked; 5]))])), &[], "maximum of 4");
    let mut body = anthropic(json!([user(json!("x"))]));
    body["tools"] =
        json!([{"name": "a", "input_schema": {"type": "object"}}, {"name": "a", "input_schema": {"type": "object"}}]);
    refused(Wire::Anthropic, &body, &[], "twice");
    body["tools"] = json!([{"name": "a", "input_schema": {}}]);
    refused(Wire::Anthropic, &body, &[], "schema");
}

#[test]
fn anthropic_wants_thinking_back_unchanged() {
    let thinking = |text: &str| json!({"type": "thinking", "thinking": text, "signature": "s"});
    let hidden = json!({"type": "redacted_thinking", "data": "d"});
    let sent = [assistant(json!([thinking("hm"), hidden, tool_use("a")]))];
    let with =
        |content: Value| anthropic(json!([user(json!("x")), assistant(content), user(json!([tool_result("a")]))]));
    assert_eq!(request(Wire::Anthropic, &with(json!([thinking("hm"), hidden, tool_use("a")])), &sent), Ok(()));
    for content in
        [json!([tool_use("a")]), json!([thinking("hm"), tool_use("a")]), json!([thinking("ha"), hidden, tool_use("a")])]
    {
        refused(Wire::Anthropic, &with(content), &sent, "cannot be modified");
    }
    let forged = anthropic(json!([user(json!("x")), assistant(json!([thinking("new")])), user(json!("y"))]));
    refused(Wire::Anthropic, &forged, &sent, "Invalid `signature`");
}

fn responses(input: Value) -> Value {
    json!({"model": "m", "store": false, "input": input})
}

fn function_call(id: &str) -> Value {
    json!({"type": "function_call", "id": "fc", "call_id": id, "name": "shell", "arguments": "{}"})
}

fn output(id: &str) -> Value {
    json!({"type": "function_call_output", "call_id": id, "output": "out"})
}

#[test]
fn responses_want_each_call_with_its_output_and_its_reasoning() {
    let reasoning = json!({"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "e"});
    let sent = [json!({"output": [reasoning, function_call("a")]})];
    let well = responses(json!([{"role": "user", "content": "x"}, reasoning, function_call("a"), output("a")]));
    assert_eq!(request(Wire::Responses, &well, &sent), Ok(()));
    assert_eq!(last_results(Wire::Responses, &well), ["out"]);
    for (input, with) in [
        (json!([reasoning, function_call("a")]), "No tool output found"),
        (json!([output("a")]), "No tool call found"),
        (json!([function_call("a"), output("a"), output("a")]), "required 'reasoning'"),
        (json!([{"type": "reasoning", "id": "rs", "summary": []}]), "not persisted"),
        (json!([{"type": "reasoning", "id": "rs", "encrypted_content": "other"}]), "could not be verified"),
        (
            json!([{"type": "message", "role": "assistant", "content": [{"type": "input_text", "text": "x"}]}]),
            "Supported values",
        ),
        (json!([{"type": "new"}]), "Invalid value"),
        (json!([]), "not empty"),
    ] {
        refused(Wire::Responses, &responses(input), &sent, with);
    }
}

fn chat(messages: Value) -> Value {
    json!({"model": "m", "stream": true, "messages": messages})
}

fn chat_call(id: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": "shell", "arguments": arguments}})
}

#[test]
fn chat_wants_each_call_answered_before_anything_else() {
    let calls = |calls: Value| json!({"role": "assistant", "content": null, "tool_calls": calls});
    let tool = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "out"});
    let two = calls(json!([chat_call("a", "{}"), chat_call("b", "{}")]));
    let well = chat(json!([user(json!("x")), two, tool("b"), tool("a"), user(json!("y"))]));
    assert_eq!(request(Wire::Chat, &well, &[]), Ok(()));
    assert_eq!(last_results(Wire::Chat, &well), ["out", "out"]);
    for (messages, with) in [
        (json!([two, tool("a"), user(json!("y"))]), "did not have response messages: b"),
        (json!([two, tool("a")]), "did not have response messages: b"),
        (json!([tool("a")]), "must be a response"),
        (json!([calls(json!([chat_call("a", "{")])), tool("a")]), "no JSON"),
        (json!([calls(json!([])), user(json!("x"))]), "too short"),
        (json!([{"role": "assistant", "content": null}]), "got null"),
        (json!([{"role": "user"}]), "expected a string"),
        (json!([{"role": "robot", "content": "x"}]), "Invalid value"),
    ] {
        refused(Wire::Chat, &chat(messages), &[], with);
    }
    let mut body = chat(json!([user(json!("x"))]));
    body["max_tokens"] = json!(1);
    body["max_completion_tokens"] = json!(1);
    refused(Wire::Chat, &body, &[], "cannot both");
    let options = json!({"model": "m", "messages": [user(json!("x"))], "stream_options": {"include_usage": true}});
    refused(Wire::Chat, &options, &[], "only allowed when");
}

#[test]
fn what_is_no_object_is_refused() {
    for wire in Wire::ALL {
        refused(wire, &Value::Null, &[], "no JSON object");
        refused(wire, &json!({}), &[], "model");
    }
}
