// SPDX-License-Identifier: Apache-2.0
//! What a run changed in the workspace: shown, asked about on a terminal, applied.
//!
//! Prints to standard error only. The words and the rules are the library's; here is who is asked and when.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use midge::error::{Error, Fault};
use midge::workspace::guard::Guard;
use midge::workspace::review::{Choice, EachFile, FILE_PROMPT, FileChoice, HELP, PROMPT, line, list, report};
use midge::workspace::{ApplyOptions, ApplyReport, ChangeSet, DiffOptions};
use serde_json::Value;

use super::args::Mode;
use super::terminal;

/// Most of a diff that goes into a JSON report.
const JSON_DIFF_MAX_BYTES: usize = 4 << 20;

/// What comes first, once in the life of this process: applying, or the end that a signal asked for.
static FIRST: OnceLock<First> = OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Applying,
    End,
}

/// Which came first, once one of them is about to happen.
fn first(now: First) -> First {
    *FIRST.get_or_init(|| now)
}

/// Whether changes are being applied, or were: the run is to go on to its end then, however it was asked to end. From here on
/// no applying begins.
pub(in crate::cli) fn has_begun_to_apply() -> bool {
    first(First::End) == First::Applying
}

/// What became of the changes.
#[derive(Debug)]
pub(in crate::cli) struct Reviewed {
    pub(in crate::cli) changes: Value,
    pub(in crate::cli) diff: Option<String>,
    pub(in crate::cli) diff_truncated: bool,
    pub(in crate::cli) applied: Option<ApplyReport>,
}

/// What was asked for.
#[derive(Debug)]
pub(in crate::cli) struct Asked {
    pub(in crate::cli) mode: Mode,
    /// What may be applied; nothing is chosen in it.
    pub(in crate::cli) options: ApplyOptions,
    /// What to do where nothing is applied: [`unapplied`].
    pub(in crate::cli) next: String,
    /// Shows nothing, for a report in JSON.
    pub(in crate::cli) quiet: bool,
}

/// What to do where nothing was applied, though `wanted` was asked for and `mode` came of it; `again` is the value of
/// `--workspace` that applies everything.
pub(in crate::cli) fn unapplied(wanted: Mode, mode: Mode, again: &str) -> String {
    if mode < wanted {
        return "the policy lets changes be reviewed only: run it on a terminal to be asked, or let the policy say mode = \"apply\" \
                under [workspace]"
            .to_owned();
    }
    format!("run it again with --workspace {again}, or on a terminal to be asked")
}

/// Shows `changes` and applies what was asked for, or what the user wants.
fn review(changes: &ChangeSet, dir: &Path, asked: Asked) -> Result<Reviewed, Error> {
    let Asked { mode, options, next, quiet } = asked;
    let failed = |source| Error::Local { during: "showing the changes to the workspace", source };
    let mut reviewed = Reviewed { changes: changes.to_json(), diff: None, diff_truncated: false, applied: None };
    if quiet {
        let mut diff = Bounded::default();
        let plain = DiffOptions { for_terminal: false, ..DiffOptions::default() };
        changes.write_diff(&mut diff, &plain).map_err(failed)?;
        reviewed.diff_truncated = diff.truncated;
        reviewed.diff = Some(String::from_utf8_lossy(&diff.bytes).into_owned());
    }
    if changes.is_empty() {
        if !quiet {
            show("midge: nothing changed in the workspace\n").map_err(failed)?;
        }
        return Ok(reviewed);
    }
    let only = match mode {
        Mode::Discard => return Ok(reviewed),
        Mode::Apply => {
            if !quiet {
                show(&format!("midge: changes to {}:\n{}", dir.display(), list(changes, &options))).map_err(failed)?;
            }
            Some(options)
        }
        Mode::Review if quiet => None,
        Mode::Review if terminal::can_ask() => ask(changes, dir, options).map_err(failed)?,
        Mode::Review => {
            tell(changes, dir, &options, &next).map_err(failed)?;
            None
        }
    };
    if let Some(options) = only.filter(|_| first(First::Applying) == First::Applying) {
        let applied = changes.apply(dir, &options).map_err(|e| Error::prepare("changes to apply", Fault::Host, e))?;
        if !quiet {
            show(&format!("midge: {}{}", report(&applied), next_step(&applied))).map_err(failed)?;
        }
        keep(changes, &applied);
        reviewed.applied = Some(applied);
    }
    Ok(reviewed)
}

/// The same, beside what else is going on.
pub(in crate::cli) async fn review_aside(changes: ChangeSet, dir: PathBuf, asked: Asked) -> Result<Reviewed, Error> {
    let reviewed = tokio::task::spawn_blocking(move || review(&changes, &dir, asked)).await;
    reviewed.unwrap_or_else(|error| Err(Error::prepare("review", Fault::Midge, error)))
}

fn show(text: &str) -> io::Result<()> {
    io::stderr().lock().write_all(text.as_bytes())
}

/// How to have what was refused.
fn next_step(applied: &ApplyReport) -> String {
    let flags = [
        (Guard::GitInternals, "--allow-git-internals", "changes to git's own files"),
        (Guard::LinkLeavesTree, "--allow-outside-links", "links out of the workspace"),
    ];
    let refused = |guard| applied.refused.iter().any(|(_, reason)| *reason == guard);
    let flags = flags.iter().filter(|(guard, ..)| refused(*guard));
    flags.map(|(_, flag, what)| format!("midge: {flag} applies {what}\n")).collect()
}

/// What could not be applied stays readable after the sandbox is gone.
fn keep(changes: &ChangeSet, applied: &ApplyReport) {
    if applied.kept_in.is_some() {
        changes.keep_spool();
    }
}

fn diff(changes: &ChangeSet) -> io::Result<()> {
    let is_terminal = io::stderr().is_terminal();
    let color = is_terminal && std::env::var_os("NO_COLOR").is_none();
    let options = DiffOptions { color, for_terminal: is_terminal, ..DiffOptions::default() };
    changes.write_diff(&mut io::stderr().lock(), &options)
}

/// Nobody can be asked: everything is shown, nothing is applied.
fn tell(changes: &ChangeSet, dir: &Path, options: &ApplyOptions, next: &str) -> io::Result<()> {
    show(&format!("midge: changes to {}:\n{}\n", dir.display(), list(changes, options)))?;
    diff(changes)?;
    show(&format!("\nmidge: nothing was applied; {next}\n"))
}

/// Asks until there is an answer; `None` applies nothing.
fn ask(changes: &ChangeSet, dir: &Path, options: ApplyOptions) -> io::Result<Option<ApplyOptions>> {
    show(&format!("midge: changes to {}:\n{}", dir.display(), list(changes, &options)))?;
    while let Some(answer) = question(PROMPT)? {
        match Choice::parse(&answer) {
            Choice::All => return Ok(Some(options)),
            Choice::Nothing => break,
            Choice::EachFile => return ask_each(changes, options),
            Choice::Diff => diff(changes)?,
            Choice::List => show(&list(changes, &options))?,
            Choice::Help => show(HELP)?,
        }
    }
    show("midge: nothing was applied\n")?;
    Ok(None)
}

fn ask_each(changes: &ChangeSet, options: ApplyOptions) -> io::Result<Option<ApplyOptions>> {
    let mut each = EachFile::new(changes, &options);
    let colored = DiffOptions { color: std::env::var_os("NO_COLOR").is_none(), ..DiffOptions::default() };
    while let Some(change) = each.current() {
        show(&format!("{}\n", line(changes, change, &options)))?;
        let Some(answer) = question(FILE_PROMPT)? else {
            each.answer(FileChoice::NoneOfTheRest);
            break;
        };
        let choice = FileChoice::parse(&answer);
        if choice == FileChoice::Diff {
            changes.write_change_diff(change, &mut io::stderr().lock(), &colored)?;
        }
        each.answer(choice);
    }
    let chosen = each.chosen();
    if chosen.is_empty() {
        show("midge: nothing was applied\n")?;
        return Ok(None);
    }
    Ok(Some(ApplyOptions { only: Some(chosen), ..options }))
}

/// One line from the terminal; `None` at its end.
fn question(prompt: &str) -> io::Result<Option<String>> {
    show(prompt)?;
    io::stderr().flush()?;
    let mut answer = String::new();
    let got = io::stdin().lock().read_line(&mut answer)?;
    Ok((got > 0).then_some(answer))
}

/// Keeps the first [`JSON_DIFF_MAX_BYTES`].
#[derive(Debug, Default)]
struct Bounded {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Write for Bounded {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let room = JSON_DIFF_MAX_BYTES - self.bytes.len();
        self.truncated |= buf.len() > room;
        self.bytes.extend_from_slice(&buf[..buf.len().min(room)]);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_names_the_flag_that_applies_it() {
        let path = midge::workspace::RelPath::parse(b"x").unwrap();
        let of = |guards: &[Guard]| {
            let refused = guards.iter().map(|guard| (path.clone(), *guard)).collect();
            next_step(&ApplyReport { refused, ..ApplyReport::default() })
        };
        assert_eq!(of(&[]), "");
        let git = of(&[Guard::GitInternals, Guard::GitInternals]);
        assert_eq!(git, "midge: --allow-git-internals applies changes to git's own files\n");
        assert!(of(&[Guard::LinkLeavesTree]).contains("--allow-outside-links"));
    }

    #[test]
    fn diffs_in_reports_are_bounded() {
        let mut bounded = Bounded::default();
        bounded.write_all(&vec![b'x'; JSON_DIFF_MAX_BYTES]).unwrap();
        assert!(!bounded.truncated);
        bounded.write_all(b"y").unwrap();
        assert!(bounded.truncated && bounded.bytes.len() == JSON_DIFF_MAX_BYTES);
    }
}
