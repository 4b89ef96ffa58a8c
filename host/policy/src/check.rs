// SPDX-License-Identifier: Apache-2.0
//! The whole check of a policy file: text, TOML, shape (keys, types, ranges), sense (what contradicts itself). A part of the file
//! whose shape is wrong is left out of the check of its sense, so that no problem is told that is only another's echo.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use toml::de::DeTable;

use crate::policy::{Doc, FILE_MAX_BYTES};
use crate::problem::{PROBLEMS_MAX, Problem, Problems, place, sentence};
use crate::schema;

mod accepted;
mod formats;
mod sense;
mod sense_network;
mod shape;

use shape::Walk;

/// What some editors put before the text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The document, or everything that is wrong with it.
pub(crate) fn parse(bytes: &[u8], origin: &str) -> Result<Doc, Problems> {
    let problems = match text(bytes).and_then(document) {
        Ok(doc) => return Ok(doc),
        Err(problems) => problems,
    };
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    let mut problems: Vec<Problem> = problems.into_iter().take(PROBLEMS_MAX).collect();
    problems.sort_by_key(|problem| (problem.line, problem.column));
    Err(Problems { origin: sentence(origin), problems, more })
}

/// One problem of the file as a whole.
fn whole((line, column): (usize, usize), what: impl Into<String>, accepted: &str, next: &str) -> Vec<Problem> {
    let (field, value, what) = (String::new(), String::new(), what.into());
    vec![Problem { line, column, field, value, what, accepted: accepted.to_owned(), next: next.to_owned() }]
}

/// The file's text, without a byte-order mark.
fn text(bytes: &[u8]) -> Result<&str, Vec<Problem>> {
    if bytes.len() > FILE_MAX_BYTES {
        let accepted = format!("at most {FILE_MAX_BYTES} bytes");
        return Err(whole(
            (1, 1),
            "the file is too large",
            &accepted,
            "is it a policy? then take out what it does not need",
        ));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(whole((1, 1), "the file is UTF-16", "UTF-8", "save it as UTF-8"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        whole(place(&valid, valid.len()), "the file has bytes that are not UTF-8", "UTF-8", "save it as UTF-8")
    })?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

fn document(text: &str) -> Result<Doc, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let told = errors.iter().take(PROBLEMS_MAX).flat_map(|error| {
            let at = error.span().map_or(0, |span| span.start);
            whole(
                place(text, at),
                sentence(&format!("the text is no TOML: {}", error.message())),
                "",
                "see https://toml.io",
            )
        });
        let counted = errors.iter().skip(PROBLEMS_MAX).map(|_| Problem::default());
        return Err(told.chain(counted).collect());
    }
    let root = schema::root();
    let mut walk = Walk::new(text, root);
    // The file itself is where what is missing at the top is told.
    walk.places.insert(String::new(), 0..0);
    let (json, hurt) = sections(&mut walk, root, table.get_ref());
    let read = serde_json::from_value::<Doc>(Value::Object(json));
    match &read {
        Ok(doc) => sense::check(doc, &hurt, &mut walk),
        // The shape was right, so this is a mistake of ours: it is told, and nothing is started.
        Err(error) => walk.tell("", &format!("the file cannot be read: {error}"), "", "report this as a bug of midge"),
    }
    read.ok().filter(|_| walk.problems.is_empty()).ok_or(walk.problems)
}

/// The sections whose shape is right, and the names of the others.
fn sections(walk: &mut Walk<'_>, root: &Value, table: &DeTable<'_>) -> (Map<String, Value>, BTreeSet<String>) {
    let (mut json, mut hurt) = (Map::new(), BTreeSet::new());
    json.insert("version".to_owned(), 1.into());
    if !table.keys().any(|key| key.get_ref() == "version") {
        walk.tell("version", "is missing", "1", "add `version = 1` as the first line");
    }
    let known = root["properties"].as_object();
    for (key, value) in table {
        let before = walk.problems.len();
        let (name, field) = (key.get_ref().as_ref(), shape::join("", key.get_ref()));
        match known.and_then(|known| known.get(name)) {
            Some(node) => json.extend(walk.value(node, value, &field).map(|value| (name.to_owned(), value))),
            None => walk.unknown(key, &field, known),
        }
        if walk.problems.len() > before {
            hurt.insert(name.to_owned());
        }
    }
    (json, hurt)
}

#[cfg(test)]
pub(crate) fn format_names() -> impl Iterator<Item = &'static str> {
    formats::FORMATS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests;
