// SPDX-License-Identifier: Apache-2.0
//! What a node of the schema accepts, in words.

use serde_json::Value;

/// How alike a key must be to one that is known to be taken for a slip, of 1.
const ALIKE: f64 = 0.75;

/// The node that a reference leads to.
pub(super) fn resolve<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    let target = node["$ref"].as_str().and_then(|path| path.strip_prefix('#')).and_then(|path| root.pointer(path));
    target.unwrap_or(node)
}

/// The texts that a node accepts, if it is a choice of texts.
pub(super) fn consts(node: &Value) -> Option<Vec<&str>> {
    if let Some(names) = node["enum"].as_array() {
        return names.iter().map(Value::as_str).collect();
    }
    node["oneOf"].as_array()?.iter().map(|one| one["const"].as_str()).collect()
}

/// What is accepted, in words.
pub(super) fn accepted(root: &Value, node: &Value) -> String {
    let node = resolve(root, node);
    if let Some(names) = consts(node) {
        return names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    }
    if let Some(forms) = node["oneOf"].as_array() {
        let key = |form: &Value| {
            let (name, node) = form["properties"].as_object()?.iter().next()?;
            Some(format!("{{ {name} = {} }}", example(node)))
        };
        return forms.iter().filter_map(key).collect::<Vec<_>>().join(", ");
    }
    if let Some(words) = node["x-accepted"].as_str() {
        return words.to_owned();
    }
    let range = |low: &str, high: &str| match (node[low].as_u64(), node[high].as_u64()) {
        (Some(low), Some(high)) if low == high => format!(" {low}"),
        (Some(low), Some(high)) => format!(" {low} to {high}"),
        (None, Some(high)) => format!(" at most {high}"),
        (Some(low), None) => format!(" at least {low}"),
        (None, None) => String::new(),
    };
    match node["type"].as_str().unwrap_or_default() {
        "integer" => format!("a whole number:{}", range("minimum", "maximum")),
        "boolean" => "true or false".to_owned(),
        "string" => format!("a text, characters:{}", range("minLength", "maxLength")),
        "array" => {
            format!("a list, entries:{}, each {}", range("minItems", "maxItems"), accepted(root, &node["items"]))
        }
        "object" => "a table".to_owned(),
        _ => String::new(),
    }
    .replace(":,", ",")
    .trim_end_matches(':')
    .to_owned()
}

fn example(node: &Value) -> &'static str {
    if node["type"] == "array" { "[\"...\"]" } else { "\"...\"" }
}

/// The known name that is most like `name`, if any is.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A name that long is no slip of another.
    let name: String = name.chars().take(64).collect();
    let alike = |known: &str| strsim::jaro_winkler(&name.to_lowercase(), known);
    known
        .map(|known| (alike(known), known))
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}
