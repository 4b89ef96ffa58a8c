// SPDX-License-Identifier: Apache-2.0
//! The JSON object that `--json` prints about a run. Gathers; decides nothing.

use std::io::{self, Write};

use midge::error::{Error, chain};
use midge::exec::{ExitStatus, Outcome};
use midge::monitor::events::printable;
use midge::sandbox::Sandbox;
use midge::timeline::Timeline;
use midge::workspace::manifest::Notes;
use serde_json::{Map, Value, json};

use super::args::Mode;
use super::output::Captured;
use super::review::Reviewed;

/// What is known of a run so far; fields that were not reached are absent.
#[derive(Debug, Default)]
pub(in crate::cli) struct Report {
    fields: Map<String, Value>,
}

impl Report {
    pub(super) fn started(&mut self, sandbox: &Sandbox) {
        self.put("sandbox", sandbox.id().into());
        self.put("place", sandbox.place_name().into());
    }

    pub(super) fn status(&mut self, status: &ExitStatus) {
        let signal = match status.outcome {
            Outcome::Code(_) => Value::Null,
            Outcome::Signal(number) => number.into(),
        };
        self.put("signal", signal);
        self.put("timed_out", status.timed_out.into());
        self.put("usage", json!(status.usage));
    }

    pub(super) fn output(&mut self, stdout: Captured, stderr: Captured) {
        for (name, captured) in [("stdout", stdout), ("stderr", stderr)] {
            self.put(name, String::from_utf8_lossy(&captured.head).into());
            self.put(&format!("{name}_bytes"), captured.total_bytes.into());
        }
    }

    /// There is a workspace, whose changes are handled like this, and which was packed with these notes.
    pub(super) fn workspace(&mut self, mode: Mode, packed: &Notes) {
        self.put("workspace", json!({ "mode": mode, "pack_notes": packed.to_json() }));
    }

    /// What became of the changes to it.
    pub(super) fn reviewed(&mut self, reviewed: Reviewed) {
        let Reviewed { changes, diff, diff_truncated, applied } = reviewed;
        let value = self.fields.entry("workspace").or_insert(Value::Null);
        value["changes"] = changes["changes"].clone();
        value["notes"] = changes["notes"].clone();
        value["totals"] = changes["totals"].clone();
        value["diff"] = diff.into();
        value["diff_truncated"] = diff_truncated.into();
        value["applied"] = applied.map_or(Value::Null, |applied| {
            let names = |paths: Vec<String>| json!(paths);
            json!({
                "applied": names(applied.applied.iter().map(ToString::to_string).collect()),
                "refused": names(applied.refused.iter().map(|(path, _)| path.to_string()).collect()),
                "conflicts": names(applied.conflicts.iter().map(|(path, _)| path.to_string()).collect()),
                "failed": names(applied.failed.iter().map(|(path, _)| path.to_string()).collect()),
                "kept_in": applied.kept_in,
            })
        });
    }

    pub(super) fn timeline(&mut self, timeline: Timeline) {
        self.put("timeline", json!(timeline));
    }

    /// Prints it on one line of standard output.
    pub(in crate::cli) fn print(mut self, code: u8, error: Option<&Error>) {
        let line = self.line(code, error);
        // Whoever asked for it has left when this fails.
        let _ = io::stdout().lock().write_all(line.as_bytes());
    }

    fn line(&mut self, code: u8, error: Option<&Error>) -> String {
        self.put("exit_code", code.into());
        let error = error.map_or(Value::Null, |error| {
            let tail: Vec<String> = error.console_tail().iter().map(|line| printable(line)).collect();
            json!({
                "fault": error.fault(),
                "message": chain(error),
                "next_step": error.next_step(),
                "console_tail": tail,
            })
        });
        self.put("error", error);
        tame(&Value::Object(std::mem::take(&mut self.fields)).to_string()) + "\n"
    }

    /// One more field, or another value of one.
    pub(in crate::cli) fn put(&mut self, name: &str, value: Value) {
        self.fields.insert(name.to_owned(), value);
    }
}

/// JSON leaves DEL and the C1 characters as they are, which steer some terminals. They can only be in strings, where an
/// escape means the same.
fn tame(json: &str) -> String {
    let mut text = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        if character.is_control() {
            text.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use midge::exec::Usage;

    #[test]
    fn finished_run_tells_everything_on_one_line() {
        let mut report = Report::default();
        let usage = Usage { wall_us: 1, user_us: 2, system_us: 3, max_rss_kib: 4 };
        report.status(&ExitStatus { outcome: Outcome::Signal(9), timed_out: true, usage });
        let stdout = Captured { head: b"a\nb\xff".to_vec(), total_bytes: 70 };
        report.output(stdout, Captured::default());
        let line = report.line(124, None);
        assert_eq!(line.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&value["exit_code"], &value["signal"], &value["timed_out"]),
            (&json!(124), &json!(9), &json!(true))
        );
        assert_eq!((&value["stdout"], &value["stdout_bytes"]), (&json!("a\nb\u{fffd}"), &json!(70)));
        assert_eq!((&value["stderr"], &value["error"]), (&json!(""), &Value::Null));
        assert_eq!(value["usage"]["max_rss_kib"], 4);
    }

    #[test]
    fn no_character_of_the_guest_steers_a_terminal() {
        let mut report = Report::default();
        let words = "\u{9b}31m\u{7f}\u{1b}]0;ä";
        report.output(Captured { head: words.as_bytes().to_vec(), total_bytes: 12 }, Captured::default());
        let line = report.line(0, None);
        assert_eq!(line.matches(char::is_control).collect::<String>(), "\n");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["stdout"], words);
    }

    #[test]
    fn failed_run_tells_whose_fault_it_is() {
        let error = Error::BootTimeout { limit_ms: 4, console_tail: vec!["x\u{1b}".into()] };
        let value: Value = serde_json::from_str(&Report::default().line(125, Some(&error))).unwrap();
        assert_eq!((&value["exit_code"], &value["error"]["fault"]), (&json!(125), &json!("guest")));
        assert_eq!(value["error"]["console_tail"], json!(["x\u{fffd}"]));
        assert!(value.get("stdout").is_none(), "what was not reached is absent");
    }
}
