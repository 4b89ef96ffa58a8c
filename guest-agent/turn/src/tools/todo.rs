// SPDX-License-Identifier: Apache-2.0
//! The tool `todo`: the list of what is to be done, whole, for whoever watches; nothing is kept here.

use midge_protocol::broker::{Item, ItemState};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, Outcome, Spec, Step, Tool, input};

/// Most items, in number.
const ITEMS_MAX: usize = 100;
/// Longest item, in bytes.
const TEXT_MAX_BYTES: usize = 500;

/// The tool.
#[derive(Debug)]
pub(super) struct Todo;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    items: Vec<Item>,
}

impl Tool for Todo {
    fn spec(&self) -> Spec {
        let input_schema = json!({
            "type": "object",
            "properties": {
                "items": {
                    "type": "array",
                    "maxItems": ITEMS_MAX,
                    "items": {
                        "type": "object",
                        "properties": {
                            "text": {"type": "string", "description": format!("at most {TEXT_MAX_BYTES} bytes")},
                            "state": {"type": "string", "enum": ["pending", "doing", "done"]},
                        },
                        "required": ["text", "state"],
                        "additionalProperties": false,
                    },
                },
            },
            "required": ["items"],
            "additionalProperties": false,
        });
        let description = "Sets the list of what is to be done, for the human who watches and for you. Give the whole list each time; for \
                           work of several steps, and whenever a step begins or ends.";
        Spec { name: "todo".into(), description: description.into(), input_schema }
    }

    fn call(&self, input: Value, context: &Context<'_>) -> Outcome {
        let input: Input = match input::parse(input) {
            Ok(input) => input,
            Err(outcome) => return outcome,
        };
        if input.items.len() > ITEMS_MAX {
            return Outcome::failed(format!(
                "`items` has {} entries, accepted are 0 to {ITEMS_MAX}",
                input.items.len()
            ));
        }
        let bad = |item: &Item| item.text.trim().is_empty() || item.text.len() > TEXT_MAX_BYTES;
        if let Some(index) = input.items.iter().position(bad) {
            return Outcome::failed(format!(
                "`items[{index}].text` must have 1 to {TEXT_MAX_BYTES} bytes; the list is as it was"
            ));
        }
        context.tell(Step::Todo(&input.items));
        let count = |state| input.items.iter().filter(|item| item.state == state).count();
        let (pending, doing, done) = (count(ItemState::Pending), count(ItemState::Doing), count(ItemState::Done));
        Outcome::done(format!("{} items: {done} done, {doing} doing, {pending} pending", input.items.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, call};
    use super::super::{Cancel, Context};
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    #[test]
    fn the_whole_list_is_told() {
        let told = Mutex::new(Vec::new());
        let progress = |id: &str, step: Step<'_>| {
            if let Step::Todo(items) = step {
                told.lock().unwrap().push((id.to_owned(), items.to_vec()));
            }
        };
        let cancel = Cancel::new().unwrap();
        let context = Context { call_id: "c1", cancel: &cancel, progress: &progress };
        let input = json!({"items": [{"text": "a", "state": "done"}, {"text": "b", "state": "doing"}]});
        assert_eq!(Todo.call(input, &context), Outcome::done("2 items: 1 done, 1 doing, 0 pending"));
        let told = told.into_inner().unwrap();
        assert_eq!((told.len(), told[0].0.as_str(), told[0].1.len()), (1, "c1", 2));
    }

    #[test]
    fn both_sides_of_each_limit() {
        let items = |count: usize, length: usize| {
            let item = json!({"text": "x".repeat(length), "state": "pending"});
            call(&Todo, json!({"items": vec![item; count]})).is_error()
        };
        assert!(!items(ITEMS_MAX, 1) && items(ITEMS_MAX + 1, 1) && !items(0, 0));
        assert!(!items(1, TEXT_MAX_BYTES) && items(1, TEXT_MAX_BYTES + 1) && items(1, 0));
        let state = call(&Todo, json!({"items": [{"text": "a", "state": "later"}]}));
        assert!(state.text.contains("`items[0].state`") && state.text.contains("`doing`"), "{}", state.text);
        assert!(input::parse::<Input>(testing::sample(&Todo.spec().input_schema)).is_ok());
    }

    proptest! {
        #[test]
        fn no_input_panics(input in testing::any_json()) {
            call(&Todo, input);
        }
    }
}
