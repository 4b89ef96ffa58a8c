// SPDX-License-Identifier: Apache-2.0
//! The tool `ask`: a question to the human who answers for the run.

use std::sync::Arc;

use midge_protocol::broker::{Asked, Verdict};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Asker, Context, OUTCOME_MAX_BYTES, Outcome, Spec, Tool, clip, input};

/// Longest question, in bytes.
const QUESTION_MAX_BYTES: usize = 4 << 10;
/// Most answers to choose from, in number.
const CHOICES_MAX: usize = 10;
/// Longest of them, in bytes.
const CHOICE_MAX_BYTES: usize = 200;

/// The tool.
pub(super) struct Ask(pub(super) Arc<dyn Asker>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    question: String,
    #[serde(default)]
    choices: Vec<String>,
}

impl Input {
    fn check(&self) -> Result<(), Outcome> {
        let asked = self.question.trim().len();
        if asked == 0 || self.question.len() > QUESTION_MAX_BYTES {
            return Err(Outcome::failed(format!(
                "`question` must have 1 to {QUESTION_MAX_BYTES} bytes; nobody was asked"
            )));
        }
        if self.choices.len() > CHOICES_MAX {
            let count = self.choices.len();
            return Err(Outcome::failed(format!(
                "`choices` has {count} entries, accepted are 0 to {CHOICES_MAX}; nobody was asked"
            )));
        }
        let bad = |choice: &String| choice.trim().is_empty() || choice.len() > CHOICE_MAX_BYTES;
        match self.choices.iter().position(bad) {
            Some(index) => Err(Outcome::failed(format!(
                "`choices[{index}]` must have 1 to {CHOICE_MAX_BYTES} bytes; nobody was asked"
            ))),
            None => Ok(()),
        }
    }
}

impl Tool for Ask {
    fn spec(&self) -> Spec {
        let input_schema = json!({
            "type": "object",
            "properties": {
                "question": {"type": "string", "description": format!("at most {} KiB", QUESTION_MAX_BYTES >> 10)},
                "choices": {
                    "type": "array",
                    "maxItems": CHOICES_MAX,
                    "items": {"type": "string"},
                    "description": "answers to choose from, if only these make sense",
                },
            },
            "required": ["question"],
            "additionalProperties": false,
        });
        let description = "Asks the human who started the run, and waits. Only for what cannot be found out here and changes what is to be \
                           done; there may be nobody, then go on as seems best and say so.";
        Spec { name: "ask".into(), description: description.into(), input_schema }
    }

    fn call(&self, input: Value, context: &Context<'_>) -> Outcome {
        let input: Input = match input::parse::<Input>(input).and_then(|input| input.check().map(|()| input)) {
            Ok(input) => input,
            Err(outcome) => return outcome,
        };
        let asked = Asked::Human { text: input.question, choices: input.choices };
        match self.0.ask(&asked, context.cancel) {
            Ok(Verdict::Text { text }) => Outcome::done(clip::head(&text, OUTCOME_MAX_BYTES)),
            Ok(Verdict::Allow | Verdict::AllowForRun | Verdict::Edited { .. }) => Outcome::done("yes"),
            Ok(Verdict::Deny { why }) => {
                Outcome::denied(format!("there is no answer: {}", clip::head(&why, QUESTION_MAX_BYTES)))
            }
            Err(_) if context.cancel.is_cancelled() => Outcome::cancelled("cancelled before there was an answer"),
            Err(why) => Outcome::failed(format!("nobody could be asked: {}", clip::head(&why, QUESTION_MAX_BYTES))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ending;
    use super::super::testing::{self, Says, call};
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    fn tool(says: Result<Verdict, String>) -> (Ask, Arc<Says>) {
        let says = Arc::new(Says(says, Mutex::default()));
        (Ask(says.clone()), says)
    }

    #[test]
    fn the_question_is_asked_and_each_answer_is_told() {
        let (ask, says) = tool(Ok(Verdict::Text { text: "blue".into() }));
        assert_eq!(call(&ask, json!({"question": "which?", "choices": ["red", "blue"]})), Outcome::done("blue"));
        let asked = Asked::Human { text: "which?".into(), choices: vec!["red".into(), "blue".into()] };
        assert_eq!(*says.1.lock().unwrap(), [asked]);
        let ending = |says| call(&tool(says).0, json!({"question": "?"})).ending;
        assert_eq!(ending(Ok(Verdict::Deny { why: "time".into() })), Ending::Denied);
        assert_eq!(ending(Ok(Verdict::Allow)), Ending::Done);
        assert_eq!(ending(Err("the door is shut".into())), Ending::Failed);
    }

    #[test]
    fn what_is_out_of_range_asks_nobody() {
        let (ask, says) = tool(Ok(Verdict::Allow));
        for input in [
            json!({"question": " "}),
            json!({"question": "x".repeat(QUESTION_MAX_BYTES + 1)}),
            json!({"question": "x", "choices": vec!["y"; CHOICES_MAX + 1]}),
            json!({"question": "x", "choices": ["y", ""]}),
        ] {
            assert!(call(&ask, input).is_error());
        }
        assert!(says.1.lock().unwrap().is_empty());
        assert!(input::parse::<Input>(testing::sample(&ask.spec().input_schema)).is_ok());
    }

    proptest! {
        #[test]
        fn no_input_panics(input in testing::any_json()) {
            call(&tool(Ok(Verdict::Allow)).0, input);
        }
    }
}
