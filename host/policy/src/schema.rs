// SPDX-License-Identifier: Apache-2.0
//! The JSON Schema of a policy file, from the types that are read. What it says of keys, types, ranges and numbers is what
//! [`crate::check`] enforces: there is no second list.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::policy::Doc;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Doc>();
    let mut value = schema.to_value();
    without_null(&mut value);
    value
});

/// The JSON Schema (draft 2020-12) of a policy file. `format` names one of Midge's text types, `x-accepted` says what it takes.
#[must_use]
pub fn schema() -> Value {
    SCHEMA.clone()
}

pub(crate) fn root() -> &'static Value {
    &SCHEMA
}

/// A file cannot say null: what is absent is left away.
fn without_null(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Object(map) => {
            if map.get("default") == Some(&Value::Null) {
                map.remove("default");
            }
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|name| name != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    map.insert("type".to_owned(), one);
                }
            }
            if let Some(Value::Array(mut any)) = map.remove("anyOf") {
                any.retain(|one| one["type"] != "null");
                match any.as_slice() {
                    [Value::Object(one)] => one.iter().for_each(|(key, value)| {
                        map.entry(key).or_insert(value.clone());
                    }),
                    _ => drop(map.insert("anyOf".to_owned(), Value::Array(any))),
                }
            }
            map.values_mut().for_each(without_null);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
