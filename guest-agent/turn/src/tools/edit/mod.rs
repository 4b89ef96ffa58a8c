// SPDX-License-Identifier: Apache-2.0
//! The tool `edit`: exact replacements in one file, all of them or none. The new text is worked out before anything is written.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, Outcome, Spec, Tool, files, input};

mod near;

/// Longest file that is edited, before and after, in bytes.
const FILE_MAX_BYTES: u64 = 16 << 20;
/// Most edits of one call, in number.
const EDITS_MAX: usize = 100;
/// Line numbers of matches that are told.
const PLACES_SHOWN: usize = 8;

/// The tool.
#[derive(Debug)]
pub(super) struct EditFile {
    /// Where relative paths begin.
    pub(super) cwd: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    path: String,
    edits: Vec<Edit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    old: String,
    new: String,
    #[serde(default)]
    replace_all: bool,
}

impl Tool for EditFile {
    fn spec(&self) -> Spec {
        let description = format!(
            "Replaces exact text in a file. Each old must stand there exactly once, white space included, unless replace_all; give more \
             lines around it to make it unique. Edits apply in order, each to the result of those before; if one fails, none is done. \
             Line numbers of read are not part of the text. Line ends (LF or CR LF) stay as the file has them. Relative paths begin at {}.",
            files::shown(&self.cwd),
        );
        let input_schema = json!({
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "edits": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": EDITS_MAX,
                    "items": {
                        "type": "object",
                        "properties": {
                            "old": {"type": "string", "description": "text that is there"},
                            "new": {"type": "string", "description": "text to put in its place"},
                            "replace_all": {"type": "boolean", "description": "all places, not just one; default false"},
                        },
                        "required": ["old", "new"],
                        "additionalProperties": false,
                    },
                },
            },
            "required": ["path", "edits"],
            "additionalProperties": false,
        });
        Spec { name: "edit".into(), description, input_schema }
    }

    fn call(&self, input: Value, _context: &Context<'_>) -> Outcome {
        match input::parse::<Input>(input) {
            Ok(input) => self.edit(&input).map_or_else(Outcome::failed, Outcome::done),
            Err(outcome) => outcome,
        }
    }
}

impl EditFile {
    fn edit(&self, input: &Input) -> Result<String, String> {
        if input.edits.is_empty() || input.edits.len() > EDITS_MAX {
            let count = input.edits.len();
            return Err(format!("`edits` has {count} entries, accepted are 1 to {EDITS_MAX}; nothing was changed"));
        }
        let path = files::resolve(&self.cwd, &input.path)?;
        let (bytes, stamp) = files::read(&path, FILE_MAX_BYTES)?;
        let name = files::shown(&path);
        let mut text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            format!("`{name}` is not UTF-8 (byte {at}); nothing was changed, use shell (sed, python)")
        })?;
        let mut told = vec![format!("edited `{name}`:")];
        for (index, edit) in input.edits.iter().enumerate() {
            let refused = |why: String| format!("`edits[{index}]`: {why}\nNothing was changed.");
            let (after, places) = apply(&text, edit).map_err(refused)?;
            if after.len() as u64 > FILE_MAX_BYTES {
                return Err(refused(format!("the file would be larger than {} MiB", FILE_MAX_BYTES >> 20)));
            }
            text = after;
            told.push(format!("edits[{index}]: {}", lines_told(&places)));
        }
        files::replace(&path, text.as_bytes(), Some(stamp))?;
        Ok(told.join("\n"))
    }
}

/// `text` after one edit, and the lines where it was done.
fn apply(text: &str, edit: &Edit) -> Result<(String, Vec<usize>), String> {
    if edit.old.is_empty() {
        return Err("`old` is empty; use write for a whole file".into());
    }
    if edit.old == edit.new {
        return Err("`old` and `new` are the same".into());
    }
    let (mut old, mut new) = (edit.old.clone(), edit.new.clone());
    if !text.contains(&old) && text.contains("\r\n") {
        // The model sees lines without their ends; the file keeps its own.
        (old, new) = (with_returns(&old), with_returns(&new));
    }
    let places: Vec<usize> = places(text, &old);
    match places.len() {
        0 => {
            let hint = near::hint(text, &old).map_or(String::new(), |hint| format!("; {hint}"));
            Err(format!("`old` is not in the file{hint}"))
        }
        1 => Ok((text.replacen(&old, &new, 1), places)),
        _ if edit.replace_all => Ok((text.replace(&old, &new), places)),
        count => Err(format!(
            "`old` is there {count} times ({}); give more lines around it, or set replace_all",
            lines_told(&places)
        )),
    }
}

/// The line of each match.
fn places(text: &str, old: &str) -> Vec<usize> {
    let mut line = 1;
    let mut counted = 0;
    let mut places = Vec::new();
    for (at, _) in text.match_indices(old) {
        line += text.as_bytes()[counted..at].iter().filter(|byte| **byte == b'\n').count();
        counted = at;
        places.push(line);
    }
    places
}

fn with_returns(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\n', "\r\n")
}

fn lines_told(places: &[usize]) -> String {
    let shown: Vec<String> = places.iter().take(PLACES_SHOWN).map(usize::to_string).collect();
    let more = places.len().saturating_sub(PLACES_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("line {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests;
