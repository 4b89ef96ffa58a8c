// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeSet;

use super::*;

/// Every object of the schema and every node below it.
fn walk(node: &Value, at: &str, each: &mut impl FnMut(&str, &Value)) {
    each(at, node);
    match node {
        Value::Array(items) => items.iter().for_each(|item| walk(item, at, each)),
        Value::Object(map) => map.iter().for_each(|(key, value)| walk(value, &format!("{at}/{key}"), each)),
        _ => {}
    }
}

/// The fields of the file by their last names, with where they are.
fn fields() -> Vec<(String, String)> {
    let mut fields = Vec::new();
    walk(root(), "", &mut |at, node| {
        if at.ends_with("/properties") {
            let section = at.trim_end_matches("/properties").rsplit('/').next().unwrap_or_default().to_owned();
            fields.extend(node.as_object().unwrap().keys().map(|name| (section.clone(), name.clone())));
        }
    });
    fields
}

#[test]
fn every_object_is_closed_and_every_field_is_described() {
    walk(root(), "", &mut |at, node| {
        assert!(node.get("type") != Some(&"null".into()), "{at}");
        let Some(properties) =
            node.get("properties").and_then(Value::as_object).filter(|_| !at.ends_with("/properties"))
        else {
            return;
        };
        assert_eq!(node["additionalProperties"], false, "{at}");
        for (name, field) in properties {
            assert!(field["description"].is_string() || at.contains("SecretSource"), "{at}/{name}");
        }
    });
}

#[test]
fn every_number_has_a_range_and_every_text_a_format_or_a_length() {
    walk(root(), "", &mut |at, node| {
        if node["type"] == "integer" {
            assert!(node["minimum"].is_u64() && node["maximum"].is_u64(), "{at}: {node}");
        }
        let format = node["format"].as_str().is_some_and(|format| format.starts_with("midge-"));
        // Words of a command are held by the length of its list; a path by the system.
        if node["type"] == "string" && node["const"].is_null() && !at.contains("SecretSource") && !at.contains("/oneOf")
        {
            assert!(format || node["maxLength"].is_u64(), "{at}: {node}");
        }
        if node["type"] == "array" {
            assert!(node["maxItems"].is_u64(), "{at}: {node}");
        }
    });
}

#[test]
fn the_reference_names_every_field_and_every_format() {
    let reference = include_str!("../../../../docs/policy.md");
    let fields = fields();
    assert!(fields.len() > 60, "{}", fields.len());
    for (section, name) in fields {
        assert!(reference.contains(&format!("`{name}`")), "docs/policy.md does not name `{name}` of {section}");
    }
    for value in [
        "allow",
        "ask",
        "deny",
        "discard",
        "review",
        "apply",
        "http",
        "https",
        "tcp",
        "anthropic",
        "openai",
        "compatible",
    ] {
        assert!(reference.contains(&format!("`{value}`")), "{value}");
    }
}

#[test]
fn the_reference_tells_the_ranges_and_defaults_of_the_schema() {
    let reference = include_str!("../../../../docs/policy.md");
    walk(root(), "", &mut |at, node| {
        let Some(name) =
            at.strip_prefix("/$defs/").and_then(|rest| rest.split_once("/properties/")).map(|(_, name)| name)
        else {
            return;
        };
        let rows: Vec<&str> = reference.lines().filter(|line| line.starts_with(&format!("| `{name}`"))).collect();
        let plain = |number: &Value| number.to_string().trim_matches('"').to_owned();
        for key in ["minimum", "maximum", "default"] {
            let value = &node[key];
            if (value.is_number() || value.is_string() || value.is_boolean()) && !name.contains('/') {
                let said = rows.iter().any(|row| row.replace(' ', "").contains(&plain(value)));
                assert!(said, "docs/policy.md: no row of `{name}` has its {key} {value}");
            }
        }
    });
}

#[test]
fn every_format_has_a_type_that_reads_it() {
    let known: BTreeSet<&str> = crate::check::format_names().collect();
    walk(root(), "", &mut |at, node| {
        if let Some(format) = node["format"].as_str().filter(|format| format.starts_with("midge-")) {
            assert!(known.contains(format), "{at}: {format}");
        }
    });
}
