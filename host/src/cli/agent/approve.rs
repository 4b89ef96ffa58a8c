// SPDX-License-Identifier: Apache-2.0
//! Questions of a run at the terminal: what, why, which bytes; one answer each, in the order in which they were asked.

use std::io::{self, BufRead as _, Write as _};
use std::sync::Arc;

use midge_broker::ask::{Approver, Asking, Automatic, Pending, channel};
use midge_protocol::broker::Verdict;
use midge_record::printable;
use serde_json::Value;
use tokio::sync::mpsc;

use super::args::Approve;
use crate::cli::run::terminal;

/// Longest input that is shown whole, in characters.
const INPUT_MAX_CHARS: usize = 4000;
/// Lines typed ahead that are kept.
const LINES: usize = 4;

/// Whoever answers.
pub(in crate::cli) fn approver(how: Approve, quiet: bool) -> Arc<dyn Approver> {
    match how {
        Approve::Auto => Arc::new(Automatic::Allow),
        Approve::Ask if !quiet && terminal::can_ask() => {
            let (approver, questions) = channel();
            tokio::spawn(put(questions));
            Arc::new(approver)
        }
        Approve::Ask | Approve::Deny => Arc::new(Automatic::Deny),
    }
}

/// Puts one question after the other until nobody asks any more.
async fn put(mut questions: mpsc::Receiver<Pending>) {
    let mut typed = None;
    while let Some(mut pending) = questions.recv().await {
        // The terminal is read from the first question on, by a thread that ends with the process.
        let lines = typed.get_or_insert_with(read_lines);
        while lines.try_recv().is_ok() {}
        print(&question(&pending.asking));
        let verdict = loop {
            print(&prompt(&pending.asking));
            let line = tokio::select! {
                line = lines.recv() => line,
                () = pending.withdrawn() => {
                    print("\nmidge: too late: the question was withdrawn or its time is up\n");
                    break None;
                }
            };
            let Some(line) = line else { return };
            match answer(&pending.asking.asked, line.trim()) {
                Ok(verdict) => break Some(verdict),
                Err(help) => print(&help),
            }
        };
        if let Some(verdict) = verdict {
            pending.answer(verdict);
        }
    }
}

fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(LINES);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn print(text: &str) {
    let mut out = io::stderr().lock();
    // Whoever watched may have left; the question then waits for its time to be up.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn is_human(asked: &Value) -> bool {
    asked["kind"] == "human"
}

/// The whole question, harmless to a terminal.
fn question(asking: &Asking) -> String {
    let asked = &asking.asked;
    let text = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
    let mut words = match asked["kind"].as_str() {
        Some("human") => format!("The agent asks: {}\n{}", text("text"), choices(asked)),
        Some("tool") => format!("May the agent call {}?\n{}\n", text("name"), input(&asked["input"])),
        _ => format!("May this happen?\n{}\n", input(asked)),
    };
    if !asking.why.is_empty() {
        words.push_str(&format!("Why you are asked: {}\n", asking.why));
    }
    format!("\n{}", printable(&words))
}

fn choices(asked: &Value) -> String {
    let choices = asked["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
    choices.iter().enumerate().map(|(n, choice)| format!("  {}. {}\n", n + 1, choice.as_str().unwrap_or("?"))).collect()
}

/// Strings as they would be typed, line by line; the rest as JSON.
fn input(input: &Value) -> String {
    let Some(object) = input.as_object() else { return cut(&input.to_string()) };
    let field = |(name, value): (&String, &Value)| match value.as_str() {
        Some(text) => format!("  {name}: {}", text.replace('\n', "\n    ")),
        None => format!("  {name}: {value}"),
    };
    cut(&object.iter().map(field).collect::<Vec<_>>().join("\n"))
}

fn cut(text: &str) -> String {
    let total = text.chars().count();
    if total <= INPUT_MAX_CHARS {
        return text.to_owned();
    }
    let head: String = text.chars().take(INPUT_MAX_CHARS).collect();
    format!("{head}\n  … {} characters more", total - INPUT_MAX_CHARS)
}

fn prompt(asking: &Asking) -> String {
    if is_human(&asking.asked) {
        "your answer> ".to_owned()
    } else {
        format!(
            "[y] once  [r] for this run  [n] no  [e] edit its input  (no answer in {} s is a no)> ",
            asking.timeout.as_secs()
        )
    }
}

/// What a line means; what to say when it means nothing.
fn answer(asked: &Value, line: &str) -> Result<Verdict, String> {
    if is_human(asked) {
        if line.is_empty() {
            return Err("Type an answer.\n".to_owned());
        }
        let choices = asked["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
        let chosen = line.parse::<usize>().ok().and_then(|n| choices.get(n.checked_sub(1)?)).and_then(Value::as_str);
        return Ok(Verdict::Text { text: chosen.unwrap_or(line).to_owned() });
    }
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "y" | "yes" => Ok(Verdict::Allow),
        "r" => Ok(Verdict::AllowForRun),
        "n" | "no" => Ok(Verdict::Deny {
            why: if rest.is_empty() { "the user said no".to_owned() } else { format!("the user said no: {rest}") },
        }),
        "e" if asked["kind"] == "tool" => match serde_json::from_str::<Value>(rest) {
            Ok(input @ Value::Object(_)) => Ok(Verdict::Edited { input }),
            _ => Err(format!(
                "Type e and the whole input as one line of JSON, such as: e {}\n",
                printable(&asked["input"].to_string())
            )),
        },
        _ => Err("Type y, r, n (and why), or e and an input.\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_understood_and_others_explained() {
        let tool = json!({"kind": "tool", "name": "shell", "input": {"command": "ls"}});
        assert_eq!(answer(&tool, "y"), Ok(Verdict::Allow));
        assert_eq!(answer(&tool, "r"), Ok(Verdict::AllowForRun));
        assert_eq!(answer(&tool, "n not now"), Ok(Verdict::Deny { why: "the user said no: not now".into() }));
        assert_eq!(answer(&tool, r#"e {"command":"id"}"#), Ok(Verdict::Edited { input: json!({"command": "id"}) }));
        for line in ["", "maybe", "e", "e 3", "Y!"] {
            assert!(answer(&tool, line).is_err(), "{line:?}");
        }
        let human = json!({"kind": "human", "text": "which?", "choices": ["red", "green"]});
        assert_eq!(answer(&human, "2"), Ok(Verdict::Text { text: "green".into() }));
        assert_eq!(answer(&human, "y"), Ok(Verdict::Text { text: "y".into() }), "words, not a permission");
        assert!(answer(&human, "").is_err());
        let egress = json!({"kind": "egress", "host": "x"});
        assert!(answer(&egress, r#"e {"host":"y"}"#).is_err(), "only inputs of tools can be edited");
    }

    #[test]
    fn questions_show_every_byte_that_matters_and_no_control_character() {
        let asked = json!({"kind": "tool", "name": "shell", "input": {"command": "rm -r \u{1b}[2J\nx"}});
        let asking =
            Asking { question: 1, asked, why: "rule \u{7}".into(), timeout: std::time::Duration::from_secs(9) };
        let text = question(&asking);
        assert!(text.contains("rm -r") && text.contains("    x") && text.contains("rule"), "{text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(cut(&"x".repeat(INPUT_MAX_CHARS + 5)).ends_with("5 characters more"));
    }
}
