// SPDX-License-Identifier: Apache-2.0
//! The Model Context Protocol's messages (JSON-RPC 2.0, one a line), from text to types and back. No I/O.

use serde_json::{Value, json};

use super::super::{clip, input};

/// Versions of the protocol that are spoken, the newest first: it is offered.
pub(super) const VERSIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// What JSON-RPC answers to a request for something that there is not.
const METHOD_NOT_FOUND: i64 = -32601;
/// Most bytes of a server's own words in an error.
const ERROR_MAX_BYTES: usize = 4 << 10;

/// A message of a server.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Heard {
    /// The answer to our request of this number.
    Answer {
        /// The request's number.
        id: u64,
        /// What it gives, or why it gives nothing.
        result: Result<Value, String>,
    },
    /// It wants something of us.
    Request {
        /// Its name for the request; comes back as it is.
        id: Value,
        /// What.
        method: String,
    },
    /// Its tools are others now.
    ToolsChanged,
    /// How far our request of this number is.
    Progress {
        /// The request's number, which was its token.
        id: u64,
        /// In words, when it has some.
        words: Option<String>,
    },
    /// Something else that asks for nothing.
    Noted,
    /// No message.
    Garbage,
}

/// What a line says: one message, or several in a list as an older version has it.
pub(super) fn heard(line: &[u8]) -> Vec<Heard> {
    match serde_json::from_slice(line) {
        Ok(Value::Array(messages)) => messages.into_iter().map(message).collect(),
        Ok(one) => vec![message(one)],
        Err(_) => vec![Heard::Garbage],
    }
}

fn message(mut message: Value) -> Heard {
    let id = message.get("id").filter(|id| !id.is_null()).cloned();
    let method = message.get("method").and_then(Value::as_str).map(str::to_owned);
    match (id, method) {
        (Some(id), Some(method)) => Heard::Request { id, method },
        (None, Some(method)) => notification(&method, &message["params"]),
        (Some(id), None) => {
            let Some(id) = id.as_u64() else { return Heard::Garbage };
            let Some(map) = message.as_object_mut() else { return Heard::Garbage };
            match (map.remove("result"), map.remove("error")) {
                (_, Some(error)) => Heard::Answer { id, result: Err(error_text(&error)) },
                (Some(result), None) => Heard::Answer { id, result: Ok(result) },
                (None, None) => Heard::Garbage,
            }
        }
        (None, None) => Heard::Garbage,
    }
}

fn notification(method: &str, params: &Value) -> Heard {
    match (method, params["progressToken"].as_u64()) {
        ("notifications/tools/list_changed", _) => Heard::ToolsChanged,
        ("notifications/progress", Some(id)) => {
            let words = params["message"].as_str().map(|words| clip::text_of(input::shortened(words).as_bytes()));
            Heard::Progress { id, words }
        }
        _ => Heard::Noted,
    }
}

fn error_text(error: &Value) -> String {
    let text = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
    let text = clip::head(&text, ERROR_MAX_BYTES);
    match error["code"].as_i64() {
        Some(code) => format!("{text} (error {code})"),
        None => text.to_owned(),
    }
}

/// A request of ours.
pub(super) fn request(id: u64, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// A message of ours that asks for nothing.
pub(super) fn notice(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "method": method, "params": params})
}

/// The answer to a server's request: a sign of life, or that there is no such thing here.
pub(super) fn reply(id: &Value, method: &str) -> Value {
    match method {
        "ping" => json!({"jsonrpc": "2.0", "id": id, "result": {}}),
        method => {
            let message = format!("{} is not offered by this client", input::shortened(method));
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": METHOD_NOT_FOUND, "message": message}})
        }
    }
}

/// The first request of a conversation.
pub(super) fn hello() -> Value {
    json!({
        "protocolVersion": VERSIONS[0],
        "capabilities": {},
        "clientInfo": {"name": "midge", "version": env!("CARGO_PKG_VERSION")},
    })
}

/// Whether the server's answer to it leaves a version that both speak.
///
/// # Errors
/// The version that it wants, in words.
pub(super) fn agreed(answer: &Value) -> Result<(), String> {
    let version = answer["protocolVersion"].as_str().unwrap_or_default();
    if VERSIONS.contains(&version) {
        return Ok(());
    }
    Err(format!(
        "it speaks version {:?} of the protocol, not one of {}",
        input::shortened(version),
        VERSIONS.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(message: &Value) -> Heard {
        heard(message.to_string().as_bytes()).remove(0)
    }

    #[test]
    fn messages_are_told_apart() {
        assert_eq!(
            one(&json!({"jsonrpc": "2.0", "id": 3, "result": {"a": 1}})),
            Heard::Answer { id: 3, result: Ok(json!({"a": 1})) }
        );
        let error = json!({"id": 3, "error": {"code": -32602, "message": "no"}});
        assert_eq!(one(&error), Heard::Answer { id: 3, result: Err("no (error -32602)".into()) });
        assert_eq!(
            one(&json!({"id": "x", "method": "ping"})),
            Heard::Request { id: json!("x"), method: "ping".into() }
        );
        assert_eq!(one(&json!({"method": "notifications/tools/list_changed"})), Heard::ToolsChanged);
        let progress = json!({"method": "notifications/progress", "params": {"progressToken": 4, "progress": 1, "message": "half"}});
        assert_eq!(one(&progress), Heard::Progress { id: 4, words: Some("half".into()) });
        assert_eq!(one(&json!({"method": "notifications/message", "params": {}})), Heard::Noted);
        assert_eq!(heard(br#"[{"id":1,"result":null},{"method":"x"}]"#).len(), 2);
        for garbage in [
            "",
            "null",
            "{}",
            "[1]",
            "{\"id\":\"1\",\"result\":1}",
            "{\"id\":1}",
            "log: hi",
            "{\"id\":-1,\"result\":1}",
        ] {
            assert!(heard(garbage.as_bytes()).iter().all(|heard| *heard == Heard::Garbage), "{garbage}");
        }
    }

    #[test]
    fn only_a_ping_is_answered_with_a_result() {
        assert_eq!(reply(&json!("a"), "ping"), json!({"jsonrpc": "2.0", "id": "a", "result": {}}));
        assert_eq!(reply(&json!(1), "sampling/createMessage")["error"]["code"], json!(-32601));
    }

    #[test]
    fn a_version_that_is_not_spoken_is_named() {
        assert!(VERSIONS.iter().all(|version| agreed(&json!({"protocolVersion": version})).is_ok()));
        assert!(agreed(&json!({"protocolVersion": "1999"})).unwrap_err().contains("1999"));
        assert!(agreed(&json!(null)).is_err());
    }

    proptest! {
        #[test]
        fn any_line_is_heard(line in proptest::collection::vec(any::<u8>(), 0..100), value in super::super::super::testing::any_json()) {
            heard(&line);
            heard(value.to_string().as_bytes());
            let _ = agreed(&value);
        }
    }
}
