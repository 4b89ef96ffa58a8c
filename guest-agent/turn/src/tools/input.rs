// SPDX-License-Identifier: Apache-2.0
//! What a model gives a tool, made into the tool's own type: a refusal says which field, what is wrong and what is accepted.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Outcome, clip};

/// Most bytes of an input that a refusal quotes.
const QUOTED_MAX_BYTES: usize = 200;

/// `input`, an object (or nothing, when no field is needed), as `T`.
///
/// # Errors
/// What the model is told: the field, what is wrong with it, what would be right.
pub(super) fn parse<T: DeserializeOwned>(input: Value) -> Result<T, Outcome> {
    let input = if input.is_null() { Value::Object(serde_json::Map::new()) } else { input };
    if !input.is_object() {
        return Err(Outcome::failed(
            "the input is refused: it must be a JSON object of the tool's fields; nothing was done",
        ));
    }
    serde_path_to_error::deserialize(input).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!(" `{}`:", shortened(&path)) };
        Outcome::failed(format!(
            "the input is refused:{place} {}; nothing was done",
            shortened(&error.inner().to_string())
        ))
    })
}

/// `value` where it is given, `default` where it is not.
///
/// # Errors
/// A value out of range, with the range and its unit, for the model.
pub(super) fn within(
    name: &str,
    value: Option<u64>,
    default: u64,
    range: RangeInclusive<u64>,
    unit: &str,
) -> Result<u64, Outcome> {
    let value = value.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value);
    }
    let (low, high) = (range.start(), range.end());
    Err(Outcome::failed(format!("`{name}` is {value}, accepted are {low} to {high} {unit}; nothing was done")))
}

/// `text`, or the beginning of it.
pub(super) fn shortened(text: &str) -> String {
    let end = clip::boundary(text, QUOTED_MAX_BYTES);
    if end == text.len() { text.to_owned() } else { format!("{}…", &text[..end]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "what is refused is looked at, not what is accepted")]
    struct Shape {
        path: String,
        edits: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "what is refused is looked at, not what is accepted")]
    struct Inner {
        old: String,
    }

    #[test]
    fn a_refusal_names_the_field_and_what_is_accepted() {
        let refusal = |input: Value| parse::<Shape>(input).unwrap_err().text;
        assert!(
            refusal(json!({"path": 3, "edits": []})).contains("`path`: invalid type: integer `3`, expected a string")
        );
        assert!(refusal(json!({"path": "x", "edits": [{"old": null}]})).contains("`edits[0].old`"));
        assert!(refusal(json!({"edits": []})).contains("missing field `path`"));
        assert!(refusal(json!({"path": "x", "edits": [], "y": 1})).contains("unknown field `y`"));
        assert!(refusal(json!({"x".repeat(1 << 20): 1})).len() < 700);
        assert!(refusal(json!(["x", []])).contains("must be a JSON object"));
        assert!(refusal(Value::Null).contains("missing field `path`"));
    }

    #[test]
    fn both_ends_of_a_range_are_accepted() {
        let within = |value| within("n", value, 5, 1..=9, "lines").map_err(|outcome| outcome.text);
        assert_eq!(within(None), Ok(5));
        assert_eq!((within(Some(1)), within(Some(9))), (Ok(1), Ok(9)));
        assert!(within(Some(0)).unwrap_err().contains("`n` is 0, accepted are 1 to 9 lines"));
        assert!(within(Some(10)).is_err());
    }
}
