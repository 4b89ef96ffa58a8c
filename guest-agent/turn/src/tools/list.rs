// SPDX-License-Identifier: Apache-2.0
//! The tool `list`: names in a directory, or all that match a glob below it.

use std::fs;
use std::path::{Path, PathBuf};

use globset::GlobMatcher;
use ignore::DirEntry;
use serde::Deserialize;
use serde_json::{Value, json};

use super::spool::NOTES_MAX_BYTES;
use super::walk::{self, ENTRIES_MAX, Include};
use super::{Cancel, Context, OUTCOME_MAX_BYTES, Outcome, Spec, Tool, files, input};

/// Names that are given when the model does not say.
const NAMES_DEFAULT: u64 = 500;
/// Most names that it may ask for.
const NAMES_MAX: u64 = 5000;
/// Most levels that it may ask for.
const DEPTH_MAX_LEVELS: u64 = 100;

/// The tool.
#[derive(Debug)]
pub(super) struct List {
    /// Where relative paths begin.
    pub(super) cwd: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    glob: Option<String>,
    #[serde(default)]
    depth: Option<u64>,
    #[serde(default)]
    hidden: bool,
    #[serde(default)]
    ignored: bool,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    limit: Option<u64>,
}

impl Tool for List {
    fn spec(&self) -> Spec {
        let description = format!(
            "Lists a directory, or with glob all files below it that match (*.rs: names at any depth; src/**/*.rs: paths from there). \
             Directories end with /, links show where they lead. Leaves out hidden names and what git ignores unless asked. Gives \
             {NAMES_DEFAULT} names in order unless limit says otherwise. Relative paths begin at {}.",
            files::shown(&self.cwd),
        );
        let input_schema = json!({
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "directory, default the working directory"},
                "glob": {"type": "string"},
                "depth": {
                    "type": "integer", "minimum": 1, "maximum": DEPTH_MAX_LEVELS,
                    "description": "levels; default 1, with glob all",
                },
                "hidden": {"type": "boolean", "description": "names that begin with a dot too; default false"},
                "ignored": {"type": "boolean", "description": "what git ignores too; default false"},
                "offset": {"type": "integer", "minimum": 0, "description": "names to leave out at the beginning, default 0"},
                "limit": {"type": "integer", "minimum": 1, "maximum": NAMES_MAX, "description": "number of names"},
            },
            "additionalProperties": false,
        });
        Spec { name: "list".into(), description, input_schema }
    }

    fn reads_only(&self) -> bool {
        true
    }

    fn call(&self, input: Value, context: &Context<'_>) -> Outcome {
        self.list(input, context.cancel).unwrap_or_else(|outcome| outcome)
    }
}

impl List {
    fn list(&self, input: Value, cancel: &Cancel) -> Result<Outcome, Outcome> {
        let input: Input = input::parse(input)?;
        let limit = input::within("limit", input.limit, NAMES_DEFAULT, 1..=NAMES_MAX, "names")?;
        let all_levels = if input.glob.is_some() { DEPTH_MAX_LEVELS } else { 1 };
        let depth = input::within("depth", input.depth, all_levels, 1..=DEPTH_MAX_LEVELS, "levels")?;
        let root = files::resolve(&self.cwd, input.path.as_deref().unwrap_or(".")).map_err(Outcome::failed)?;
        let metadata = fs::metadata(&root);
        if !metadata.as_ref().is_ok_and(fs::Metadata::is_dir) {
            let why = metadata.map_or_else(|error| error.to_string(), |_| "it is no directory; use read".into());
            return Err(Outcome::failed(format!("`{}` cannot be listed: {why}", files::shown(&root))));
        }
        let glob = input.glob.as_deref().map(walk::glob).transpose();
        let glob = glob.map_err(|why| Outcome::failed(format!("`glob`: {why}")))?;
        let include = Include { hidden: input.hidden, ignored: input.ignored };
        let mut page = Page { offset: input.offset, limit, seen: 0, given: 0, text: String::new(), full: false };
        let mut troubles = Vec::new();
        for (count, entry) in walk::walk(&root, include, usize::try_from(depth).ok()).enumerate() {
            if cancel.is_cancelled() {
                return Err(Outcome::cancelled("cancelled while listing"));
            }
            if count >= ENTRIES_MAX {
                troubles.push(format!("only the first {ENTRIES_MAX} entries were looked at; name a directory below"));
                break;
            }
            match entry {
                Ok(entry) if entry.depth() > 0 => page.take(&root, &entry, glob.as_ref()),
                Ok(_) => {}
                Err(error) if troubles.len() < 3 => troubles.push(files::shown(error.to_string())),
                Err(_) => {}
            }
        }
        Ok(Outcome::done(page.told(&troubles)))
    }
}

/// The part of a list that is given.
struct Page {
    offset: u64,
    limit: u64,
    seen: u64,
    given: u64,
    text: String,
    full: bool,
}

impl Page {
    fn take(&mut self, root: &Path, entry: &DirEntry, glob: Option<&GlobMatcher>) {
        let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
        let is_dir = entry.file_type().is_some_and(|kind| kind.is_dir());
        if glob.is_some_and(|glob| is_dir || !glob.is_match(path)) {
            return;
        }
        self.seen += 1;
        if self.seen <= self.offset || self.full {
            return;
        }
        let end = match (is_dir, entry.path_is_symlink()) {
            (true, _) => "/".into(),
            (_, true) => fs::read_link(entry.path()).map_or(String::new(), |to| format!(" -> {}", files::shown(to))),
            _ => String::new(),
        };
        let line = format!("{}{end}\n", files::shown(path));
        if self.given == self.limit || self.text.len() + line.len() > OUTCOME_MAX_BYTES - NOTES_MAX_BYTES {
            self.full = true;
        } else {
            self.given += 1;
            self.text += &line;
        }
    }

    fn told(mut self, troubles: &[String]) -> String {
        let rest = self.seen.saturating_sub(self.offset + self.given);
        if self.full {
            self.text += &format!("[{rest} more; go on with offset {}]\n", self.offset + self.given);
        } else if self.given == 0 {
            self.text += &format!("[nothing: {} names in all]\n", self.seen);
        }
        for trouble in troubles {
            self.text += &format!("[{}]\n", input::shortened(trouble));
        }
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, call};
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, List) {
        let dir = tempfile::tempdir().unwrap();
        for path in ["src/a.rs", "src/deep/b.rs", "target/x.o", ".hidden", "README.md", ".git/config"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::write(dir.path().join(".gitignore"), "target/\n").unwrap();
        symlink(".", dir.path().join("loop")).unwrap();
        let cwd = dir.path().to_owned();
        (dir, List { cwd })
    }

    #[test]
    fn names_are_given_in_order_past_what_git_ignores() {
        let (_dir, tool) = tree();
        let text = |input| call(&tool, input).text;
        assert_eq!(text(json!({})), "README.md\nloop -> .\nsrc/\n");
        assert_eq!(text(json!({"glob": "*.rs"})), "src/a.rs\nsrc/deep/b.rs\n");
        assert_eq!(text(json!({"glob": "*.o"})), "[nothing: 0 names in all]\n");
        assert_eq!(text(json!({"glob": "*.o", "ignored": true})), "target/x.o\n");
        assert_eq!(text(json!({"hidden": true})), ".gitignore\n.hidden\nREADME.md\nloop -> .\nsrc/\n");
        assert_eq!(text(json!({"path": "src", "depth": 2})), "a.rs\ndeep/\ndeep/b.rs\n");
        assert_eq!(text(json!({"limit": 1, "offset": 1})), "loop -> .\n[1 more; go on with offset 2]\n");
        assert_eq!(text(json!({"path": "loop/loop", "glob": "src/*"})), "src/a.rs\n");
    }

    #[test]
    fn what_cannot_be_listed_is_told() {
        let (_dir, tool) = tree();
        for input in [
            json!({"path": "README.md"}),
            json!({"path": "gone"}),
            json!({"glob": "a["}),
            json!({"depth": 0}),
            json!({"limit": 5001}),
            json!({"path": ""}),
        ] {
            assert!(call(&tool, input.clone()).is_error(), "{input}");
        }
    }

    #[test]
    fn names_that_are_no_text_are_one_line_each() {
        let (dir, tool) = tree();
        fs::create_dir(dir.path().join("odd")).unwrap();
        for name in [&b"a\nb"[..], b"c\xff", b"d\x1b[31m"] {
            fs::write(dir.path().join("odd").join(OsStr::from_bytes(name)), "").unwrap();
        }
        assert_eq!(call(&tool, json!({"path": "odd"})).text, "a\u{fffd}b\nc\u{fffd}\nd\u{fffd}[31m\n");
    }

    #[test]
    fn long_lists_are_cut_and_told() {
        let (dir, tool) = tree();
        fs::create_dir(dir.path().join("many")).unwrap();
        for n in 0..3000 {
            fs::write(dir.path().join(format!("many/{n:0>50}")), "").unwrap();
        }
        let text = call(&tool, json!({"path": "many", "limit": 5000})).text;
        assert!(text.len() <= OUTCOME_MAX_BYTES && text.contains("more; go on with offset"), "{}", text.len());
    }

    #[test]
    fn what_its_schema_admits_the_tool_accepts() {
        assert!(input::parse::<Input>(testing::sample(&tree().1.spec().input_schema)).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_input_panics(input in testing::any_json()) {
            prop_assume!(input["path"].as_str().is_none_or(|path| !path.starts_with(['/', '.'])));
            call(&tree().1, input);
        }
    }
}
