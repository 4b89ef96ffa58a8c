// SPDX-License-Identifier: Apache-2.0
//! What a server's tools are and give, flattened for a model: names that every provider takes, text instead of anything else.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

use super::super::{Spec, clip, files};

/// Most tools of one server, in number.
pub(super) const TOOLS_MAX: usize = 128;
/// Longest description that a model is given of such a tool, in bytes.
const DESCRIPTION_MAX_BYTES: usize = 4 << 10;
/// Largest schema, in bytes.
const SCHEMA_MAX_BYTES: usize = 64 << 10;
/// Longest name of a tool, in characters.
const NAME_MAX_CHARS: usize = 64;

/// A tool as its server lists it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Listed {
    /// Its name there.
    pub(super) name: String,
    /// What the model is told.
    pub(super) spec: Spec,
    /// Whether its server says that it changes nothing. Only the order of calls hangs on it.
    pub(super) reads_only: bool,
}

/// The tools of a page of `tools/list`, added to `all`; what is left out is told.
pub(super) fn add_page(server: &str, page: &Value, all: &mut Vec<Listed>, troubles: &mut Vec<String>) {
    let mut taken: BTreeSet<String> = all.iter().map(|listed| listed.spec.name.clone()).collect();
    for tool in page["tools"].as_array().into_iter().flatten() {
        let name = tool["name"].as_str().unwrap_or_default();
        let mut schema = tool.get("inputSchema").cloned().unwrap_or_default();
        if schema.as_object().is_none_or(|schema| schema.get("type").is_none()) {
            schema = json!({"type": "object"});
        }
        let why = match () {
            () if name.is_empty() => "it has no name",
            () if all.len() == TOOLS_MAX => "there are too many",
            () if schema.to_string().len() > SCHEMA_MAX_BYTES => "its schema is too large",
            () => {
                let description = clip::text_of(tool["description"].as_str().unwrap_or_default().as_bytes());
                let description = clip::head(&description, DESCRIPTION_MAX_BYTES).to_owned();
                let spec = Spec { name: model_name(server, name, &taken), description, input_schema: schema };
                taken.insert(spec.name.clone());
                let reads_only = tool["annotations"]["readOnlyHint"].as_bool().unwrap_or(false);
                all.push(Listed { name: name.to_owned(), spec, reads_only });
                continue;
            }
        };
        troubles.push(format!("tool `{}` of server `{}` is left out: {why}", shown(name), shown(server)));
    }
}

/// `mcp__<server>__<tool>` in the characters and the length that every provider takes, other than all `taken` ones.
fn model_name(server: &str, tool: &str, taken: &BTreeSet<String>) -> String {
    let plain = |char: char| if char.is_ascii_alphanumeric() || char == '-' || char == '_' { char } else { '_' };
    let whole: String = format!("mcp__{server}__{tool}").chars().map(plain).collect();
    let cut = whole.chars().take(NAME_MAX_CHARS).collect::<String>();
    let numbered = (2_u32..).map(|number| {
        let suffix = format!("_{number}");
        cut.chars().take(NAME_MAX_CHARS - suffix.len()).collect::<String>() + &suffix
    });
    let free = std::iter::once(cut.clone()).chain(numbered).find(|name| !taken.contains(name));
    free.unwrap_or(cut)
}

/// The text of a result of `tools/call`, and whether it is an error.
pub(super) fn flattened(result: &Value) -> (String, bool) {
    let mut text = String::new();
    for part in result["content"].as_array().into_iter().flatten() {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &part_text(part);
    }
    if text.is_empty() && !result["structuredContent"].is_null() {
        text = result["structuredContent"].to_string();
    }
    if text.is_empty() {
        text = "[no content]".into();
    }
    (clip::text_of(text.as_bytes()), result["isError"].as_bool().unwrap_or(false))
}

fn part_text(part: &Value) -> String {
    let field = |name: &str| part[name].as_str().unwrap_or_default();
    match field("type") {
        "text" => field("text").to_owned(),
        kind @ ("image" | "audio") => blob(kind, &part["mimeType"], &part["data"]),
        "resource" => {
            let resource = &part["resource"];
            let uri = shown(resource["uri"].as_str().unwrap_or_default());
            match resource["text"].as_str() {
                Some(text) => format!("[resource {uri}]\n{text}"),
                None => blob(&format!("resource {uri}"), &resource["mimeType"], &resource["blob"]),
            }
        }
        "resource_link" => {
            let mut text = format!("[resource {}", shown(field("uri")));
            if !field("name").is_empty() {
                let _ = write!(text, ": {}", shown(field("name")));
            }
            text + "]"
        }
        kind => format!("[content of kind {:?}, not shown]", shown(kind)),
    }
}

/// Something that is no text, in words.
fn blob(what: &str, mime: &Value, data: &Value) -> String {
    // Base64 is four characters for three bytes.
    let bytes = data.as_str().unwrap_or_default().trim_end_matches('=').len() * 3 / 4;
    format!("[{what}, {}, about {bytes} bytes, not shown]", shown(mime.as_str().unwrap_or("of an unknown kind")))
}

fn shown(text: &str) -> String {
    files::shown(clip::head(text, 300))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::any_json;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_of_every_kind_is_text() {
        let result = json!({"content": [
            {"type": "text", "text": "one\0two"},
            {"type": "image", "mimeType": "image/png", "data": "AAAAAAAA"},
            {"type": "resource", "resource": {"uri": "file:///a", "text": "body"}},
            {"type": "resource", "resource": {"uri": "file:///b", "mimeType": "x/y", "blob": "AAAA"}},
            {"type": "resource_link", "uri": "file:///c", "name": "c"},
            {"type": "hologram"},
        ], "isError": true});
        let (text, is_error) = flattened(&result);
        assert!(is_error);
        let expected = "one\u{fffd}two\n[image, image/png, about 6 bytes, not shown]\n[resource file:///a]\nbody\n\
                        [resource file:///b, x/y, about 3 bytes, not shown]\n[resource file:///c: c]\n\
                        [content of kind \"hologram\", not shown]";
        assert_eq!(text, expected);
        assert_eq!(flattened(&json!({"content": [], "structuredContent": {"a": 1}})), ("{\"a\":1}".into(), false));
        assert_eq!(flattened(&json!(null)), ("[no content]".into(), false));
    }

    #[test]
    fn names_are_such_as_every_provider_takes() {
        let mut all = Vec::new();
        let mut troubles = Vec::new();
        let long = "x".repeat(100);
        let names = ["a b", "a.b", "ä", "", &long, &format!("{long}y")];
        let tools: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        add_page("s", &json!({"tools": tools}), &mut all, &mut troubles);
        let given: Vec<&str> = all.iter().map(|listed| listed.spec.name.as_str()).collect();
        assert_eq!(given[..3], ["mcp__s__a_b", "mcp__s__a_b_2", "mcp__s___"]);
        assert!(given[3].len() == 64 && given[4].len() == 64 && given[3] != given[4]);
        assert_eq!(troubles, ["tool `` of server `s` is left out: it has no name"]);
        assert_eq!(all[0].spec.input_schema, json!({"type": "object"}));
    }

    #[test]
    fn what_is_too_much_is_left_out_and_told() {
        let (mut all, mut troubles) = (Vec::new(), Vec::new());
        let tools: Vec<Value> = (0..=TOOLS_MAX).map(|n| json!({"name": format!("t{n}")})).collect();
        add_page("s", &json!({"tools": tools}), &mut all, &mut troubles);
        assert_eq!((all.len(), troubles.len()), (TOOLS_MAX, 1));
        let large =
            json!({"tools": [{"name": "l", "inputSchema": {"type": "object", "x": "y".repeat(SCHEMA_MAX_BYTES)}}]});
        let (mut all, mut troubles) = (Vec::new(), Vec::new());
        add_page("s", &large, &mut all, &mut troubles);
        assert!(all.is_empty() && troubles[0].contains("too large"));
    }

    proptest! {
        #[test]
        fn nothing_panics(value in any_json(), server in ".{0,80}", tool in ".{0,80}") {
            flattened(&value);
            flattened(&json!({"content": [value.clone()]}));
            let (mut all, mut troubles) = (Vec::new(), Vec::new());
            add_page(&server, &value, &mut all, &mut troubles);
            add_page(&server, &json!({"tools": [{"name": tool}, {"name": tool}, value]}), &mut all, &mut troubles);
            let valid = |name: &str| (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            prop_assert!(all.iter().all(|listed| valid(&listed.spec.name)));
        }
    }
}
