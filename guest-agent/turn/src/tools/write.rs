// SPDX-License-Identifier: Apache-2.0
//! The tool `write`: a whole file, in one step.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, Outcome, Spec, Tool, files, input};

/// Longest file that is written, in bytes.
const CONTENT_MAX_BYTES: usize = 8 << 20;

/// The tool.
#[derive(Debug)]
pub(super) struct WriteFile {
    /// Where relative paths begin.
    pub(super) cwd: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    path: String,
    content: String,
}

impl Tool for WriteFile {
    fn spec(&self) -> Spec {
        let description = format!(
            "Writes a whole file, new or in place of an old one; missing directories are made, the mode stays. To change a part use edit. \
             Relative paths begin at {}.",
            files::shown(&self.cwd),
        );
        let content = format!("the whole text, at most {} MiB", CONTENT_MAX_BYTES >> 20);
        let input_schema = json!({
            "type": "object",
            "properties": {"path": {"type": "string"}, "content": {"type": "string", "description": content}},
            "required": ["path", "content"],
            "additionalProperties": false,
        });
        Spec { name: "write".into(), description, input_schema }
    }

    fn call(&self, input: Value, _context: &Context<'_>) -> Outcome {
        let input: Input = match input::parse(input) {
            Ok(input) => input,
            Err(outcome) => return outcome,
        };
        let length = input.content.len();
        if length > CONTENT_MAX_BYTES {
            return Outcome::failed(format!(
                "`content` has {length} bytes, accepted are {CONTENT_MAX_BYTES}; nothing was written"
            ));
        }
        let written = files::resolve(&self.cwd, &input.path).and_then(|path| {
            let old = files::replace(&path, input.content.as_bytes(), None)?;
            let name = files::shown(&path);
            Ok(match old {
                Some(old) => format!("wrote {length} bytes to `{name}`, which had {old}"),
                None => format!("wrote {length} bytes to `{name}`, a new file"),
            })
        });
        written.map_or_else(Outcome::failed, Outcome::done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, call};
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn tool() -> (tempfile::TempDir, WriteFile) {
        let dir = tempfile::tempdir().unwrap();
        let cwd = dir.path().to_owned();
        (dir, WriteFile { cwd })
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let (dir, tool) = tool();
        let new = call(&tool, json!({"path": "a/b/c", "content": "x\r\ny"}));
        assert!(new.text.contains("wrote 4 bytes") && new.text.ends_with("a new file"), "{}", new.text);
        assert_eq!(fs::read(dir.path().join("a/b/c")).unwrap(), b"x\r\ny");
        assert!(call(&tool, json!({"path": "a/b/c", "content": ""})).text.ends_with("which had 4"));
        for path in ["a/b", "", "a/b/c/d", "/dev/full", "/proc/version", "a\0b", &"n".repeat(300)] {
            assert!(call(&tool, json!({"path": path, "content": "x"})).is_error(), "{path:?}");
        }
        let long = call(&tool, json!({"path": "long", "content": "x".repeat(CONTENT_MAX_BYTES + 1)}));
        assert!(long.text.contains("accepted are 8388608") && !dir.path().join("long").exists());
    }

    #[test]
    fn what_its_schema_admits_the_tool_accepts() {
        let (_dir, tool) = tool();
        assert!(input::parse::<Input>(testing::sample(&tool.spec().input_schema)).is_ok());
    }

    proptest! {
        #[test]
        fn no_input_panics(input in testing::any_json()) {
            call(&tool().1, input);
        }
    }
}
