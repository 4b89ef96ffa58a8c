// SPDX-License-Identifier: Apache-2.0
//! A TOML value held against the schema: keys, types, ranges, formats. What is wrong is told and left out; the rest goes on as
//! JSON for serde, with the place of each field.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::accepted::{accepted, consts, nearest, resolve};
use super::formats;
use crate::problem::{PROBLEMS_MAX, Problem, place, sentence, shown};

/// One walk through a file.
pub(super) struct Walk<'a> {
    text: &'a str,
    root: &'a Value,
    /// What is wrong.
    pub(super) problems: Vec<Problem>,
    /// Rules and credentials that are right by themselves, whatever is wrong beside them.
    pub(super) entries: BTreeMap<String, Vec<(usize, Value)>>,
    /// Where each field's value stands, in bytes.
    pub(super) places: BTreeMap<String, Range<usize>>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(text: &'a str, root: &'a Value) -> Self {
        Self { text, root, problems: Vec::new(), entries: BTreeMap::new(), places: BTreeMap::new() }
    }

    /// Tells a problem of `field`, at its place or at that of what it is in.
    pub(super) fn tell(&mut self, field: &str, what: &str, accepted: &str, next: &str) {
        let mut near = field;
        let span = loop {
            match self.places.get(near) {
                Some(span) => break Some(span.clone()),
                None if near.is_empty() => break None,
                None => near = near.rfind(['.', '[']).map_or("", |end| &near[..end]),
            }
        };
        let value = span.clone().filter(|_| near == field && !field.is_empty());
        self.tell_at(span.unwrap_or(0..0), value, field, what, accepted, next);
    }

    fn tell_at(
        &mut self,
        at: Range<usize>,
        value: Option<Range<usize>>,
        field: &str,
        what: &str,
        accepted: &str,
        next: &str,
    ) {
        if self.problems.len() >= PROBLEMS_MAX {
            // It is counted, and not told: what it would say is not worth the time.
            return self.problems.push(Problem::default());
        }
        let (line, column) = place(self.text, at.start);
        let source = value.and_then(|span| self.text.get(span)).unwrap_or_default();
        // Of a table or a long list only the first line says anything.
        let value = shown(source.lines().next().unwrap_or_default());
        let (field, what) = (sentence(field), sentence(what));
        self.problems.push(Problem {
            line,
            column,
            field,
            value,
            what,
            accepted: accepted.to_owned(),
            next: next.to_owned(),
        });
    }

    fn wrong(&mut self, field: &str, what: &str, node: &Value, next: &str) -> Option<Value> {
        self.tell(field, what, &accepted(self.root, node), next);
        None
    }

    /// The value as JSON, as far as nothing is wrong with it.
    pub(super) fn value(&mut self, node: &Value, value: &Spanned<DeValue<'_>>, field: &str) -> Option<Value> {
        self.places.insert(field.to_owned(), value.span());
        let node = resolve(self.root, node);
        if let Some(names) = consts(node) {
            return self.one_of(node, &names, value.get_ref(), field);
        }
        if let Some(forms) = node["oneOf"].as_array() {
            return self.form(node, forms, value.get_ref(), field);
        }
        match (node["type"].as_str().unwrap_or_default(), value.get_ref()) {
            ("object", DeValue::Table(table)) => self.table(node, table, field),
            ("array", DeValue::Array(items)) => self.array(node, items, field),
            ("string", DeValue::String(text)) => self.string(node, text, field),
            ("boolean", DeValue::Boolean(value)) => Some(Value::Bool(*value)),
            ("integer", DeValue::Integer(number)) => {
                let digits = i128::from_str_radix(number.as_str(), number.radix()).ok();
                self.integer(node, digits, field)
            }
            (wanted, found) => {
                let next = match (wanted, found) {
                    ("string", DeValue::Integer(_) | DeValue::Float(_)) => "write it in quotes",
                    ("integer" | "boolean", DeValue::String(_)) => "write it without quotes",
                    ("array", _) => "write it in brackets",
                    ("object", DeValue::Array(_)) => "write one table, with [single brackets]",
                    _ => "write it as it is accepted",
                };
                self.wrong(field, &format!("is {}", kind(found)), node, next)
            }
        }
    }

    fn one_of(&mut self, node: &Value, names: &[&str], value: &DeValue<'_>, field: &str) -> Option<Value> {
        match value {
            DeValue::String(text) if names.contains(&text.as_ref()) => Some(Value::String(text.to_string())),
            DeValue::String(text) => {
                let near = nearest(text, names.iter().copied());
                let next =
                    near.map_or_else(|| "take one of these".to_owned(), |near| format!("did you mean \"{near}\"?"));
                self.wrong(field, "is not one of them", node, &next)
            }
            found => self.wrong(field, &format!("is {}", kind(found)), node, "write one of these in quotes"),
        }
    }

    /// A table with one key that says which form it is.
    fn form(&mut self, node: &Value, forms: &[Value], value: &DeValue<'_>, field: &str) -> Option<Value> {
        let DeValue::Table(table) = value else {
            return self.wrong(
                field,
                &format!("is {}", kind(value)),
                node,
                "write a table in braces, such as { env = \"NAME\" }",
            );
        };
        let [(key, _)] = table.iter().collect::<Vec<_>>()[..] else {
            return self.wrong(field, "does not have exactly one key", node, "keep one of them");
        };
        match forms.iter().find(|form| form["properties"].get(key.get_ref().as_ref()).is_some()) {
            Some(form) => self.table(form, table, field),
            None => self.wrong(field, "has a key that is not known", node, "take one of these keys"),
        }
    }

    fn table(&mut self, node: &Value, table: &DeTable<'_>, field: &str) -> Option<Value> {
        let (mut json, before) = (Map::new(), self.problems.len());
        let known = node["properties"].as_object();
        for (key, value) in table {
            let (name, inner) = (key.get_ref().as_ref(), join(field, key.get_ref()));
            let child = match known.and_then(|known| known.get(name)) {
                Some(child) => child,
                None if node["additionalProperties"].is_object() => {
                    self.key(&node["propertyNames"], key, &inner);
                    &node["additionalProperties"]
                }
                None => {
                    self.unknown(key, &inner, known);
                    continue;
                }
            };
            if let Some(value) = self.value(child, value, &inner) {
                json.insert(name.to_owned(), value);
            }
        }
        for name in node["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !table.keys().any(|key| key.get_ref() == name) {
                let child = &node["properties"][name];
                let accepted = accepted(self.root, resolve(self.root, child));
                self.tell(&join(field, name), "is missing", &accepted, &format!("add `{name} = ...`"));
            }
        }
        if let Some(max) = node["maxProperties"].as_u64().filter(|max| table.len() as u64 > *max) {
            self.tell(field, &format!("has {} keys", table.len()), &format!("at most {max} keys"), "take some out");
        }
        (self.problems.len() == before).then_some(Value::Object(json))
    }

    fn key(&mut self, names: &Value, key: &Spanned<std::borrow::Cow<'_, str>>, field: &str) {
        if let Err(why) = formats::check(names, key.get_ref()) {
            let accepted = names["x-accepted"].as_str().unwrap_or_default();
            self.tell_at(key.span(), Some(key.span()), field, &format!("as a key {why}"), accepted, "change the key");
        }
    }

    pub(super) fn unknown(
        &mut self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        field: &str,
        known: Option<&Map<String, Value>>,
    ) {
        let names = || known.into_iter().flat_map(Map::keys).map(String::as_str);
        let next = match nearest(key.get_ref(), names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "take it out".to_owned(),
        };
        let accepted = names().collect::<Vec<_>>().join(", ");
        self.tell_at(key.span(), None, field, "is not a known key", &accepted, &next);
    }

    fn array(&mut self, node: &Value, items: &[Spanned<DeValue<'_>>], field: &str) -> Option<Value> {
        let before = self.problems.len();
        let (min, max) = (node["minItems"].as_u64().unwrap_or(0), node["maxItems"].as_u64().unwrap_or(u64::MAX));
        if !(min..=max).contains(&(items.len() as u64)) {
            let next = if items.is_empty() { "name at least one" } else { "take some out" };
            self.wrong(field, &format!("has {} entries", items.len()), node, next);
        }
        let mut json = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(value) = self.value(&node["items"], item, &format!("{field}[{index}]")) else { continue };
            if matches!(field, "network.rules" | "credentials") {
                self.entries.entry(field.to_owned()).or_default().push((index, value.clone()));
            }
            json.push(value);
        }
        (self.problems.len() == before).then_some(Value::Array(json))
    }

    fn string(&mut self, node: &Value, text: &str, field: &str) -> Option<Value> {
        let (min, max) = (node["minLength"].as_u64().unwrap_or(0), node["maxLength"].as_u64().unwrap_or(u64::MAX));
        if let Err(why) = formats::check(node, text) {
            return self.wrong(field, &why, node, "write it as it is accepted");
        }
        if !(min..=max).contains(&(text.chars().count() as u64)) {
            let what = if text.is_empty() { "is empty" } else { "is too long" };
            return self.wrong(field, what, node, "write it as it is accepted");
        }
        Some(Value::String(text.to_owned()))
    }

    fn integer(&mut self, node: &Value, number: Option<i128>, field: &str) -> Option<Value> {
        let min = node["minimum"].as_u64().unwrap_or(0);
        let max = node["maximum"].as_u64().unwrap_or(u64::MAX);
        match number.and_then(|number| u64::try_from(number).ok()).filter(|number| (min..=max).contains(number)) {
            Some(number) => Some(number.into()),
            None => self.wrong(field, "is out of range", node, "take a number in that range"),
        }
    }
}

/// `field` with `key` after it, in quotes where TOML needs them.
pub(super) fn join(field: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if field.is_empty() { key } else { format!("{field}.{key}") }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
