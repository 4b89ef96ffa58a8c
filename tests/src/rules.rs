// SPDX-License-Identifier: Apache-2.0
//! The rules of the tree that no compiler checks, each a pure function from text to findings.
//! What clippy or rustc can say is left to them.

use std::fmt;

use crate::source::{Source, has_word, is_word};

/// The first line of every source file.
pub const SPDX: &str = "SPDX-License-Identifier: Apache-2.0";
/// Longest line of product code, in characters.
pub const LINE_MAX_CHARS: usize = 160;
/// Most non-test lines of a file.
pub const FILE_MAX_LINES: usize = 400;
/// Most lines of a product function.
pub const FUNCTION_MAX_LINES: usize = 70;

/// A rule that is not kept, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path relative to the root.
    pub path: String,
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong and what is accepted.
    pub text: String,
}

impl Finding {
    /// A finding at `path`:`line`.
    #[must_use]
    pub fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// The licence first, then (Rust) a header that gives the file's place in the flow.
#[must_use]
pub fn header(path: &str, text: &str) -> Vec<Finding> {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    if path.ends_with(".rs") {
        if first != format!("// {SPDX}") {
            return vec![Finding::new(path, 1, format!("the first line must be `// {SPDX}`"))];
        }
        let second = lines.find(|line| !line.trim().is_empty()).unwrap_or_default();
        if !second.starts_with("//! ") && !path.ends_with("/tests.rs") {
            return vec![Finding::new(
                path,
                2,
                "a header `//! ...` must follow the licence: place in the flow, what it never does",
            )];
        }
    }
    if first.starts_with("#!/") && !text.lines().take(3).any(|line| line == format!("# {SPDX}")) {
        return vec![Finding::new(path, 2, format!("a script must have `# {SPDX}` in its first 3 lines"))];
    }
    Vec::new()
}

/// Lines, files and functions have a size that can be read.
#[must_use]
pub fn sizes(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, (line, _)) in source.raw.iter().zip(&source.test).enumerate().filter(|(_, (_, test))| !**test) {
        let chars = line.chars().count();
        if chars > LINE_MAX_CHARS {
            found.push(Finding::new(
                &source.path,
                index + 1,
                format!("line of {chars} characters, at most {LINE_MAX_CHARS}"),
            ));
        }
    }
    let lines = source.non_test_lines();
    if lines > FILE_MAX_LINES {
        found.push(Finding::new(&source.path, 1, format!("{lines} lines without tests, at most {FILE_MAX_LINES}")));
    }
    for function in source.functions().iter().filter(|function| !source.test[function.lines.start]) {
        let lines = function.lines.len();
        if lines > FUNCTION_MAX_LINES {
            let text = format!("function `{}` has {lines} lines, at most {FUNCTION_MAX_LINES}", function.name);
            found.push(Finding::new(&source.path, function.lines.start + 1, text));
        }
    }
    found
}

/// Words that do not belong into product code, and those that belong nowhere.
#[must_use]
pub fn words(source: &Source) -> Vec<Finding> {
    const PRODUCT: [&str; 4] = [".unwrap()", "todo!(", "unimplemented!(", "#[allow("];
    let mut found = Vec::new();
    for (line, code) in source.product_code() {
        for word in PRODUCT.iter().filter(|word| code.contains(**word)) {
            found.push(Finding::new(&source.path, line, format!("`{word}` outside tests")));
        }
    }
    for (index, code) in source.code.iter().enumerate() {
        if code.contains("dbg!(") || code.contains("#![allow(") {
            found.push(Finding::new(&source.path, index + 1, "`dbg!` and `#![allow]` are not kept anywhere"));
        }
    }
    for (index, (raw, code)) in source.raw.iter().zip(&source.code).enumerate() {
        let comment = raw.find("//").is_some_and(|at| code.get(at..).is_none_or(|code| code.trim().is_empty()));
        if comment && ["TODO", "FIXME", "XXX"].iter().any(|mark| has_word(raw, mark)) {
            found.push(Finding::new(
                &source.path,
                index + 1,
                "a mark for later: do it, or write down in ARCHITECTURE.md what is absent",
            ));
        }
    }
    found
}

/// Unsafe code only where the file (or the root file of its module, in `roots`) or the function expects it with a reason.
#[must_use]
pub fn unsafe_fence(source: &Source, roots: &[&Source]) -> Vec<Finding> {
    let admits = |file: &Source| expects_unsafe(&file.code.join(" "), "#![expect(");
    if admits(source) || roots.iter().any(|root| admits(root)) {
        return Vec::new();
    }
    let sites = source.product_code().filter(|(_, code)| has_word(code, "unsafe"));
    let functions = source.functions();
    // An item's attributes stand right above it; the item before ends with a brace, a semicolon or a blank line.
    let above = |row: usize| {
        let ends = |line: &usize| {
            source.raw[*line].trim().is_empty() || source.code[*line].trim_end().ends_with(['{', '}', ';'])
        };
        let first = (0..row).rev().find(ends).map_or(0, |line| line + 1);
        source.code[first..=row].join(" ")
    };
    let lone = sites.filter(|(line, _)| {
        let around = functions.iter().filter(|function| function.lines.contains(&(line - 1)));
        let rows = around.map(|function| function.lines.start).chain([line - 1]);
        !rows.into_iter().any(|row| expects_unsafe(&above(row), "#[expect("))
    });
    lone.map(|(line, _)| {
        Finding::new(&source.path, line, "`unsafe` in a module without `#![expect(unsafe_code, reason = ...)]`")
    })
    .collect()
}

/// Whether `code` holds an attribute that starts with `open`, names `unsafe_code` and gives a reason.
fn expects_unsafe(code: &str, open: &str) -> bool {
    let attributes = code.match_indices(open).map(|(at, _)| &code[at..]);
    let inside = attributes.filter_map(|rest| rest.split(")]").next());
    inside.into_iter().any(|text| has_word(text, "unsafe_code") && has_word(text, "reason"))
}

/// Names of the place where this was written must not be in the tree.
#[must_use]
pub fn places(path: &str, text: &str, names: &[String]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for name in names.iter().filter(|name| line.contains(name.as_str())) {
            found.push(Finding::new(path, index + 1, format!("`{name}` names a place outside the repository")));
        }
    }
    found
}

/// The lines of the first fenced block under the README's set-up heading are `commands`, no more and no fewer.
#[must_use]
pub fn set_up_commands(readme: &str, commands: &[&str]) -> Vec<Finding> {
    let start = readme.lines().position(|line| line.starts_with("## ") && line.to_lowercase().contains("set up"));
    let Some(start) = start else {
        return vec![Finding::new("README.md", 1, "no heading `## Set up`")];
    };
    let fenced = readme.lines().skip(start + 1).skip_while(|line| !line.starts_with("```")).skip(1);
    let block = fenced.take_while(|line| !line.starts_with("```"));
    let stripped = block.map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned());
    let found: Vec<String> = stripped.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    if found == commands {
        return Vec::new();
    }
    vec![Finding::new("README.md", start + 1, format!("set-up commands are {found:?}, must be {commands:?}"))]
}

/// The rows of the first Markdown table after the line that contains `marker`, header and rule left out.
#[must_use]
pub fn table_after(text: &str, marker: &str) -> Vec<Vec<String>> {
    let after = text.lines().skip_while(|line| !line.contains(marker)).skip(1);
    let rows = after.skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

/// A seccomp policy (a map from thread to filter): every rule names its caller, every filter kills by default.
#[must_use]
pub fn seccomp_policy(path: &str, text: &str) -> Vec<Finding> {
    let policy: serde_json::Value = match serde_json::from_str(text) {
        Ok(policy) => policy,
        Err(error) => {
            return vec![Finding::new(path, error.line(), format!("not JSON: {error}"))];
        }
    };
    let line_of = |name: &str| {
        let needle = format!("\"{name}\"");
        text.lines().position(|line| line.contains(&needle)).map_or(1, |index| index + 1)
    };
    let mut found = Vec::new();
    for (thread, filter) in policy.as_object().into_iter().flatten() {
        let default = filter["mismatch_action"].as_str().or(filter["default_action"].as_str());
        // A filter on top of another may refuse instead: what it lets through, the other has judged.
        let only_refuses = default == Some("allow") && filter["match_action"]["errno"].is_number();
        if default != Some("kill_process") && !only_refuses {
            found.push(Finding::new(
                path,
                line_of(thread),
                format!("filter `{thread}`: the default must be kill_process"),
            ));
        }
        for rule in filter["filter"].as_array().into_iter().flatten() {
            let syscall = rule["syscall"].as_str().unwrap_or("?");
            if rule["comment"].as_str().unwrap_or_default().trim().len() < 4 {
                found.push(Finding::new(
                    path,
                    line_of(syscall),
                    format!("rule `{syscall}` must name its caller in `comment`"),
                ));
            }
        }
    }
    found
}

/// A numeric limit says its unit, in its name or in its doc comment. Numbers of a standard (`spec.rs`) keep its words.
#[must_use]
pub fn units(source: &Source) -> Vec<Finding> {
    const LIMIT: [&str; 7] = ["MAX", "MIN", "LIMIT", "CAP", "TIMEOUT", "INTERVAL", "WINDOW"];
    const UNIT: [&str; 40] = [
        "byte",
        "bytes",
        "kib",
        "mib",
        "gib",
        "bit",
        "bits",
        "ns",
        "us",
        "ms",
        "s",
        "secs",
        "seconds",
        "millisecond",
        "milliseconds",
        "microseconds",
        "count",
        "number",
        "entries",
        "entry",
        "lines",
        "chars",
        "characters",
        "pages",
        "sectors",
        "blocks",
        "frames",
        "packets",
        "connections",
        "descriptors",
        "queues",
        "requests",
        "processes",
        "vcpus",
        "files",
        "words",
        "percent",
        "times",
        "levels",
        "length",
    ];
    const TYPES: [&str; 6] = ["u8", "u16", "u32", "u64", "usize", "i32"];
    let mut found = Vec::new();
    if source.path.ends_with("/spec.rs") {
        return found;
    }
    for (line, code) in source.product_code() {
        let Some((name, rest)) = const_item(code) else {
            continue;
        };
        let is_limit = name.split('_').any(|part| LIMIT.contains(&part));
        let kind = rest.split('=').next().unwrap_or_default().trim();
        if !is_limit || !TYPES.contains(&kind) {
            continue;
        }
        let mut said: Vec<String> = name.split('_').map(str::to_lowercase).collect();
        let docs = source.raw[..line - 1].iter().rev().take_while(|line| line.trim_start().starts_with("//"));
        said.extend(docs.flat_map(|line| line.split(|c| !is_word(c)).map(str::to_lowercase).collect::<Vec<_>>()));
        let plural = |word: &String| UNIT.contains(&word.as_str()) || UNIT.contains(&word.trim_end_matches('s'));
        if !said.iter().any(plural) && !said.iter().any(|word| word.len() > 4 && word.ends_with('s')) {
            found.push(Finding::new(
                &source.path,
                line,
                format!("limit `{name}` has no unit in its name or doc comment"),
            ));
        }
    }
    found
}

/// `const NAME: rest` of a line of code.
fn const_item(code: &str) -> Option<(&str, &str)> {
    let trimmed = code.trim_start();
    let after = trimmed.split_once("const ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"))?.1;
    let (name, rest) = after.split_once(':')?;
    name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_').then_some((name, rest))
}

#[cfg(test)]
#[path = "rules/tests.rs"]
mod tests;
