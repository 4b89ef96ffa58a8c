// SPDX-License-Identifier: Apache-2.0

use std::os::unix::fs::symlink;

use super::super::testing::{self, call};
use super::super::{Cancel, Ending};
use super::*;
use proptest::prelude::*;

fn tree() -> (tempfile::TempDir, Search) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("src")).unwrap();
    for (path, text) in [
        ("src/a.rs", "fn one() {\n    two(1);\n}\n"),
        ("src/b.py", "def two(x):\n    return x\r\n"),
        ("binary", "two(\0\n"),
        (".hidden", "two(h)\n"),
        ("ignored.log", "two(l)\n"),
        (".gitignore", "*.log\n"),
    ] {
        fs::write(dir.path().join(path), text).unwrap();
    }
    let cwd = dir.path().to_owned();
    (dir, Search { cwd })
}

#[test]
fn lines_that_match_are_given_with_their_place() {
    let (_dir, tool) = tree();
    let text = |input| call(&tool, input).text;
    let both = "src/a.rs:2:    two(1);\nsrc/b.py:1:def two(x):\n";
    assert_eq!(text(json!({"pattern": r"two\("})), format!("{both}[1 binary files left out]\n"));
    assert_eq!(text(json!({"pattern": "TWO(", "literal": true, "ignore_case": true, "glob": "src/*"})), both);
    assert_eq!(text(json!({"pattern": "two", "glob": "*.py"})), "src/b.py:1:def two(x):\n");
    assert_eq!(text(json!({"pattern": "two", "path": "src", "files_only": true})), "a.rs\nb.py\n");
    let around = "src/a.rs-1-fn one() {\nsrc/a.rs:2:    two(1);\nsrc/a.rs-3-}\n";
    assert_eq!(text(json!({"pattern": "two", "glob": "*.rs", "context": 1})), around);
    assert_eq!(text(json!({"pattern": "x$", "path": "src/b.py"})), "[no match]\n");
    assert_eq!(text(json!({"pattern": "l", "glob": "*.log", "ignored": true})), "ignored.log:1:two(l)\n");
    assert!(text(json!({"pattern": "two", "hidden": true})).contains(".hidden:1:"));
    let spans = text(json!({"pattern": r"one\(\) \{.*two", "multiline": true}));
    assert!(spans.starts_with("src/a.rs:1:fn one() {\nsrc/a.rs:2:    two(1);\n"), "{spans}");
}

#[test]
fn what_is_no_pattern_is_told_with_a_way_out() {
    let (_dir, tool) = tree();
    for (input, word) in [
        (json!({"pattern": "two("}), "set literal"),
        (json!({"pattern": "a\\nb"}), "multiline"),
        (json!({"pattern": "(?=x)"}), "look-around"),
        (json!({"pattern": "(a{1000}){1000}"}), "size"),
        (json!({"pattern": "x", "glob": "a["}), "`glob`"),
        (json!({"pattern": "x", "context": 21}), "0 to 20 lines"),
        (json!({"pattern": "x", "path": "gone"}), "does not exist"),
        (json!({"pattern": "x", "path": "/dev/zero"}), "device"),
    ] {
        let outcome = call(&tool, input.clone());
        assert!(outcome.is_error() && outcome.text.contains(word), "{input}: {}", outcome.text);
    }
}

#[test]
fn many_matches_and_long_lines_are_cut_and_told() {
    let (dir, tool) = tree();
    fs::write(dir.path().join("many"), "needle\n".repeat(5000)).unwrap();
    fs::write(dir.path().join("src/wide"), format!("{}needle{}\n", "x".repeat(1 << 20), "y".repeat(1 << 20))).unwrap();
    let text = call(&tool, json!({"pattern": "needle", "path": "many", "limit": 3})).text;
    assert_eq!(text.lines().count(), 4);
    assert!(text.ends_with("[there are more than these 3 matches; narrow the search or raise limit]\n"), "{text}");
    let exact = call(&tool, json!({"pattern": "needle", "path": "src", "limit": 1})).text;
    assert!(exact.ends_with(" [cut]\n") && exact.len() < 1000, "{}", exact.len());
    let all = call(&tool, json!({"pattern": "needle", "limit": 2000})).text;
    assert!(all.len() <= OUTCOME_MAX_BYTES);
}

#[test]
fn what_hangs_or_turns_in_circles_is_passed_by() {
    let (dir, tool) = tree();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    symlink("..", dir.path().join("src/up")).unwrap();
    symlink("/dev/zero", dir.path().join("zero")).unwrap();
    assert_eq!(call(&tool, json!({"pattern": "def two"})).text, "src/b.py:1:def two(x):\n[1 binary files left out]\n");
    File::create(dir.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
    assert!(!call(&tool, json!({"pattern": "def two"})).is_error());
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let outcome = testing::call_with(&tool, json!({"pattern": "two"}), &cancel);
    assert_eq!(outcome.ending, Ending::Cancelled);
}

#[test]
fn what_its_schema_admits_the_tool_accepts() {
    assert!(input::parse::<Input>(testing::sample(&tree().1.spec().input_schema)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_input_panics(input in testing::any_json(), pattern in ".{0,16}", literal in any::<bool>()) {
        let (_dir, tool) = tree();
        call(&tool, json!({"pattern": pattern, "literal": literal, "context": 2}));
        prop_assume!(input["path"].as_str().is_none_or(|path| !path.starts_with(['/', '.'])));
        call(&tool, input);
    }
}
