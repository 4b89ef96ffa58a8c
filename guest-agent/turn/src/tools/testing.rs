// SPDX-License-Identifier: Apache-2.0
//! What the tests of all tools share: one call, and inputs that no tool may panic at.

use std::sync::Mutex;

use midge_protocol::broker::{Asked, Verdict};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Asker, Cancel, Context, Outcome, Tool};

/// One call that nobody ends or watches.
pub(super) fn call(tool: &dyn Tool, input: Value) -> Outcome {
    call_with(tool, input, &Cancel::new().unwrap())
}

/// One call that `cancel` ends.
pub(super) fn call_with(tool: &dyn Tool, input: Value, cancel: &Cancel) -> Outcome {
    tool.call(input, &Context { call_id: "call", cancel, progress: &|_, _| {} })
}

/// Any JSON, with the names of fields that tools know among its keys.
pub(super) fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("path".to_owned()),
        Just("offset".to_owned()),
        Just("limit".to_owned()),
        Just("pattern".to_owned()),
        Just("edits".to_owned()),
        Just("old".to_owned()),
        Just("new".to_owned()),
        Just("id".to_owned()),
        "[a-z]{0,4}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// An input that the tool's own schema admits: whatever the model was told is accepted by the tool's type.
pub(super) fn sample(schema: &Value) -> Value {
    let first = |key: &str| schema[key].as_array().and_then(|all| all.first()).cloned();
    if let Some(choice) = first("enum") {
        return choice;
    }
    match schema["type"].as_str() {
        Some("object") => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            Value::Object(fields.map(|(name, schema)| (name.clone(), sample(schema))).collect())
        }
        Some("array") => json!([sample(&schema["items"])]),
        Some("integer") => schema.get("minimum").cloned().unwrap_or(json!(1)),
        Some("boolean") => json!(true),
        _ => json!("x"),
    }
}

/// Says always the same.
pub(super) struct Says(pub(super) Result<Verdict, String>, pub(super) Mutex<Vec<Asked>>);

impl Asker for Says {
    fn ask(&self, asked: &Asked, _cancel: &Cancel) -> Result<Verdict, String> {
        self.1.lock().unwrap().push(asked.clone());
        self.0.clone()
    }
}
