// SPDX-License-Identifier: Apache-2.0
//! What a run is doing, as it does it: lines on standard error, made of the lines of its transcript. Everything in them that is not
//! ours is a guest's or a model's text, and is printed as such: no control character reaches the terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;

use midge_protocol::broker::{ItemState, Keep, Left, Told, Verdict, Work};
use midge_record::{Decision, Difference, Entry, Line, Recorder, printable};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest line, in characters.
const LINE_MAX_CHARS: usize = 160;
/// Most lines of a tool's answer that are shown.
const RESULT_LINES: usize = 4;

/// A run that is shown.
pub(super) struct Shown {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Shown {
    /// Shows what is there and stops.
    pub(super) async fn end(self) {
        let _ = self.end.send(());
        let _ = self.task.await;
    }
}

/// Shows what is recorded from now on.
pub(super) fn show(recorder: &Recorder) -> Shown {
    let mut lines = recorder.listen();
    let (end, mut ended) = oneshot::channel();
    let task = tokio::spawn(async move {
        let style = Style::of_stderr();
        loop {
            let next = tokio::select! {
                biased;
                line = lines.recv() => line,
                _ = &mut ended => break,
            };
            match next {
                Ok(line) => print(&words(&line, style)),
                Err(RecvError::Lagged(missed)) => print(&format!("… {missed} lines are in the transcript only\n")),
                Err(RecvError::Closed) => break,
            }
        }
    });
    Shown { end, task }
}

/// Shows what is recorded of a child from now on, to the end of its transcript, with its name before each line.
pub(super) fn show_child(name: &str, recorder: &Recorder) {
    let (mut lines, name) = (recorder.listen(), one_line(name));
    tokio::spawn(async move {
        let style = Style::of_stderr();
        loop {
            match lines.recv().await {
                Ok(line) => print(&below(&name, &words(&line, style))),
                Err(RecvError::Lagged(missed)) => {
                    print(&below(&name, &format!("… {missed} lines are in its transcript only\n")));
                }
                Err(RecvError::Closed) => return,
            }
        }
    });
}

/// Lines of a child.
fn below(name: &str, text: &str) -> String {
    text.lines().map(|line| format!("  [{name}] {line}\n")).collect()
}

/// How the run ended and what it took.
pub(super) fn last_words(how: &str, text: &str, spent: &Left) {
    let text = printable(text);
    if !text.trim().is_empty() {
        // Standard output has the agent's answer, and nothing else.
        let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
    }
    print(&format!("midge: {how}; {}\n", spent_words(spent)));
}

/// Where a replay's tools gave other results than those recorded.
pub(super) fn differences(differences: &[Difference]) {
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| "(none)".to_owned(), one_line);
    let each = |difference: &Difference| {
        let (id, then, now) = (one_line(&difference.id), text(&difference.recorded), text(&difference.now));
        format!("  {id}\n    recorded: {then}\n    now:      {now}\n")
    };
    let words = match differences.len() {
        0 => "midge: every tool answered as it was recorded\n".to_owned(),
        count => format!(
            "midge: {count} results of tools differ from the recording:\n{}",
            differences.iter().map(each).collect::<String>()
        ),
    };
    print(&words);
}

fn spent_words(spent: &Left) -> String {
    let count =
        |count: Option<u64>, one: &str, many: &str| count.map(|n| format!("{n} {}", if n == 1 { one } else { many }));
    let parts = [
        count(spent.turns, "turn", "turns"),
        count(spent.tool_calls, "tool call", "tool calls"),
        count(spent.tokens, "token", "tokens"),
        spent.money_micros.filter(|micros| *micros > 0).map(dollars),
        spent.egress_bytes.filter(|bytes| *bytes > 0).map(|bytes| format!("{} KiB of egress", bytes.div_ceil(1024))),
        spent.wall_ms.map(|ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn dollars(micros: u64) -> String {
    format!("${}.{:04}", micros / 1_000_000, micros % 1_000_000 / 100)
}

fn print(text: &str) {
    // Whoever watched may have left.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Whether to use colours.
#[derive(Debug, Clone, Copy)]
struct Style(bool);

impl Style {
    fn of_stderr() -> Self {
        Self(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }
}

/// What a line of the transcript is to whoever watches; often nothing.
fn words(line: &Arc<Line>, style: Style) -> String {
    match line.entry() {
        Some(Entry::Told { told }) => told_words(&told, style),
        Some(Entry::ModelAnswer { status, usage, money_micros, elapsed_ms, .. }) => {
            let money = if money_micros > 0 { format!(", {}", dollars(money_micros)) } else { String::new() };
            let (input, output) = (usage.tokens() - usage.output_tokens, usage.output_tokens);
            let problem = if status == 200 { String::new() } else { format!(", status {status}") };
            let text = format!("  model: {input} tokens in, {output} out{money}, {elapsed_ms} ms{problem}\n");
            style.faint(&text)
        }
        Some(Entry::ModelRefused { why, .. }) => style.bad(&one_line(&format!("  model: {why}"))) + "\n",
        Some(Entry::EgressDecided { method, scheme, host, port, path, rule, decision, why, .. }) => {
            let rule = rule.map_or_else(String::new, |rule| format!(" (rule {rule})"));
            let place = format!("{method} {scheme}://{host}:{port}{}", path.unwrap_or_default());
            match decision {
                Decision::Allow => style.faint(&one_line(&format!("  network: {place}{rule}"))) + "\n",
                Decision::Deny => style.bad(&one_line(&format!("  network: denied {place}{rule}: {why}"))) + "\n",
            }
        }
        Some(Entry::Decided { verdict, by, .. }) => {
            let verdict = match verdict {
                Verdict::Allow => "allowed".to_owned(),
                Verdict::AllowForRun => "allowed for this run".to_owned(),
                Verdict::Edited { .. } => "allowed with another input".to_owned(),
                Verdict::Deny { why } => format!("denied: {why}"),
                Verdict::Text { .. } => "answered".to_owned(),
            };
            style.faint(&one_line(&format!("  question: {verdict} ({by:?})"))) + "\n"
        }
        Some(Entry::Exhausted { budget }) => style.bad(&one_line(&format!("  budget: {budget} is used up"))) + "\n",
        Some(Entry::ChildAsked { request, .. }) => {
            let work = match &request.work {
                Work::Task(task) => format!("the task: {task}"),
                Work::Command(argv) => argv.join(" "),
            };
            style.faint(&one_line(&format!("  child: asked for, with {work}"))) + "\n"
        }
        Some(Entry::ChildKept { keep: Keep::Take, tar_bytes, .. }) => {
            style.faint(&format!("  child: its changes go to its parent, {} KiB\n", tar_bytes.div_ceil(1024)))
        }
        Some(Entry::ChildStarted { name, .. }) => one_line(&format!("  child: {name} runs")) + "\n",
        Some(Entry::ChildRefused { why, .. }) => {
            style.bad(&one_line(&format!("  child: refused: {}", why.join("; ")))) + "\n"
        }
        Some(Entry::ChildEnded { code, changed, .. }) => {
            let code = code.map_or_else(|| "was ended".to_owned(), |code| format!("left with {code}"));
            one_line(&format!("  child: {code}, {} changes", changed.len())) + "\n"
        }
        Some(Entry::Malformed { door, why, .. }) => style.bad(&one_line(&format!("  door {door}: {why}"))) + "\n",
        _ => String::new(),
    }
}

fn told_words(told: &Told, style: Style) -> String {
    match told {
        Told::Said { text } => {
            let text = printable(text);
            if text.trim().is_empty() { String::new() } else { format!("{}\n", text.trim_end()) }
        }
        Told::ToolCall { name, input, .. } => {
            let head = style.paint("1", &one_line(&format!("> {name}")));
            format!("{head} {}\n", one_line(&input_words(input)))
        }
        Told::ToolResult { is_error, output, elided_bytes, elapsed_ms, .. } => {
            result_words(*is_error, output, *elided_bytes, *elapsed_ms, style)
        }
        Told::Todo { items } => items.iter().fold(String::new(), |all, item| {
            let mark = match item.state {
                ItemState::Pending => ' ',
                ItemState::Doing => '~',
                ItemState::Done => 'x',
            };
            all + &one_line(&format!("  [{mark}] {}", item.text)) + "\n"
        }),
        Told::Retry { why, wait_ms } => {
            style.bad(&one_line(&format!("  model: {why}; again in {} s", wait_ms.div_ceil(1000)))) + "\n"
        }
        Told::Compacted { what } => style.faint(&one_line(&format!("  context: {what}"))) + "\n",
        Told::Thought { .. } | Told::Finished { .. } => String::new(),
    }
}

fn result_words(is_error: bool, output: &str, elided_bytes: u64, elapsed_ms: u64, style: Style) -> String {
    let output = printable(output);
    let mut lines = output.lines().filter(|line| !line.trim().is_empty());
    let mut shown: String = lines.by_ref().take(RESULT_LINES).map(|line| format!("  | {}\n", one_line(line))).collect();
    let more = lines.count();
    if more > 0 || elided_bytes > 0 {
        shown.push_str(&format!("  | … {more} more lines\n"));
    }
    let head = format!("  {}, {elapsed_ms} ms\n", if is_error { "failed" } else { "ok" });
    style.faint(&shown) + &if is_error { style.bad(&head) } else { style.faint(&head) }
}

/// A tool's input, the short way: one string as it is, else JSON.
fn input_words(input: &Value) -> String {
    let object = input.as_object();
    let first = object.and_then(|object| {
        ["command", "path", "pattern", "task", "question"].iter().find_map(|name| object.get(*name)?.as_str())
    });
    first.map_or_else(|| input.to_string(), ToOwned::to_owned)
}

/// One line of a bounded length, safe for a terminal.
fn one_line(text: &str) -> String {
    let safe = printable(text).replace(['\n', '\t'], " ");
    let mut line: String = safe.chars().take(LINE_MAX_CHARS).collect();
    if safe.chars().count() > LINE_MAX_CHARS {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PLAIN: Style = Style(false);

    #[test]
    fn nothing_of_a_guest_steers_the_terminal() {
        let evil = "a\u{1b}[2Jb\u{202e}c".to_owned();
        let all = [
            Told::Said { text: evil.clone() },
            Told::ToolCall { id: evil.clone(), name: evil.clone(), input: json!({"command": evil}) },
            Told::ToolResult { id: evil.clone(), is_error: true, output: evil.clone(), elided_bytes: 1, elapsed_ms: 2 },
            Told::Retry { why: evil.clone(), wait_ms: 1 },
            Told::Compacted { what: evil },
        ];
        for told in all {
            let text = told_words(&told, PLAIN);
            assert!(!text.contains(['\u{1b}', '\u{202e}']) && text.ends_with('\n'), "{text:?}");
        }
    }

    #[test]
    fn calls_and_results_are_short() {
        let call = Told::ToolCall { id: "1".into(), name: "shell".into(), input: json!({"command": "make\ntest"}) };
        assert_eq!(told_words(&call, PLAIN), "> shell make test\n");
        let output = (0..9).map(|n| format!("line {n}\n")).collect::<String>();
        let text = result_words(false, &output, 0, 12, PLAIN);
        assert!(
            text.contains("line 3")
                && !text.contains("line 4")
                && text.contains("5 more lines")
                && text.contains("ok, 12 ms"),
            "{text}"
        );
    }

    #[test]
    fn what_was_spent_is_said_in_words() {
        let spent = Left {
            turns: Some(1),
            tokens: Some(20),
            money_micros: Some(1_234_567),
            wall_ms: Some(1250),
            ..Left::default()
        };
        assert_eq!(spent_words(&spent), "1 turn, 20 tokens, $1.2345, 1.2 s");
    }
}
