// SPDX-License-Identifier: Apache-2.0

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::super::testing::{self, call};
use super::*;
use proptest::prelude::*;

fn tool() -> (tempfile::TempDir, EditFile) {
    let dir = tempfile::tempdir().unwrap();
    let cwd = dir.path().to_owned();
    (dir, EditFile { cwd })
}

fn after(text: &[u8], edits: &Value) -> (Outcome, Vec<u8>) {
    let (dir, tool) = tool();
    let path = dir.path().join("f");
    fs::write(&path, text).unwrap();
    let outcome = call(&tool, json!({"path": "f", "edits": edits}));
    (outcome, fs::read(path).unwrap())
}

#[test]
fn one_place_is_replaced_and_its_line_told() {
    let (outcome, bytes) = after(b"a\nb\nc", &json!([{"old": "b", "new": "x\ny"}, {"old": "y\nc", "new": "z"}]));
    assert!(outcome.text.ends_with("edits[0]: line 2\nedits[1]: line 3"), "{}", outcome.text);
    assert_eq!(bytes, b"a\nx\nz");
}

#[test]
fn all_edits_are_done_or_none() {
    let (outcome, bytes) = after(b"a b a\na", &json!([{"old": "b", "new": "x"}, {"old": "a", "new": "y"}]));
    assert!(outcome.is_error() && outcome.text.contains("`edits[1]`: `old` is there 3 times (line 1, 1, 2)"));
    assert_eq!(bytes, b"a b a\na");
    let (outcome, bytes) = after(b"a b a\na", &json!([{"old": "a", "new": "$1", "replace_all": true}]));
    assert!(!outcome.is_error());
    assert_eq!(bytes, b"$1 b $1\n$1");
}

#[test]
fn what_is_not_there_is_refused_with_what_is_like_it() {
    let (outcome, _) = after(b"fn main() {\n    run();\n}\n", &json!([{"old": "fn main() {\n  run();\n", "new": "x"}]));
    assert!(outcome.text.contains("line 1 differs from it only in white space"), "{}", outcome.text);
    for (edits, word) in [
        (json!([]), "0 entries"),
        (json!([{"old": "", "new": "x"}]), "empty"),
        (json!([{"old": "x", "new": "x"}]), "the same"),
        (json!([{"old": "x"}]), "`edits[0]`: missing field `new`"),
        (json!("x"), "`edits`"),
    ] {
        let (outcome, bytes) = after(b"x", &edits);
        assert!(outcome.is_error() && outcome.text.contains(word), "{edits}: {}", outcome.text);
        assert_eq!(bytes, b"x");
    }
}

#[test]
fn line_ends_and_a_missing_last_one_stay() {
    let (_, bytes) = after(b"a\r\nb\r\nc", &json!([{"old": "a\nb", "new": "x\ny\nz"}]));
    assert_eq!(bytes, b"x\r\ny\r\nz\r\nc");
    let (_, bytes) = after(b"a\r\nb\nc", &json!([{"old": "b\nc", "new": "d\ne"}]));
    assert_eq!(bytes, b"a\r\nd\ne");
}

#[test]
fn what_cannot_be_edited_is_told() {
    let (outcome, bytes) = after(b"ab\xffcd", &json!([{"old": "ab", "new": "x"}]));
    assert!(outcome.text.contains("not UTF-8 (byte 2)"), "{}", outcome.text);
    assert_eq!(bytes, b"ab\xffcd");
    let growth = json!([{"old": "a", "new": "b".repeat(1 << 20), "replace_all": true}]);
    assert!(after("a".repeat(17).as_bytes(), &growth).0.text.contains("larger than 16 MiB"));
    let (dir, tool) = tool();
    symlink("gone", dir.path().join("dangling")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    for path in [".", "fifo", "dangling", "missing", "/dev/zero", ""] {
        assert!(call(&tool, json!({"path": path, "edits": [{"old": "a", "new": "b"}]})).is_error(), "{path}");
    }
}

#[test]
fn a_file_that_changed_since_it_was_read_is_judged_as_it_is_now() {
    let (dir, tool) = tool();
    let path = dir.path().join("f");
    fs::write(&path, "as it was").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "as it is").unwrap();
    assert!(call(&tool, json!({"path": "f", "edits": [{"old": "as it was", "new": "x"}]})).is_error());
    assert!(!call(&tool, json!({"path": "f", "edits": [{"old": "is", "new": "was"}]})).is_error());
    assert_eq!(fs::read(&path).unwrap(), b"as it was");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_its_schema_admits_the_tool_accepts() {
    assert!(input::parse::<Input>(testing::sample(&tool().1.spec().input_schema)).is_ok());
}

proptest! {
    #[test]
    fn no_input_panics(input in testing::any_json()) {
        call(&tool().1, input);
    }

    #[test]
    fn an_edit_does_what_replacing_does(text in "[ab\r\n]{0,30}", old in "[ab\n]{1,3}", new in "[ab\n]{0,3}") {
        let (outcome, bytes) = after(text.as_bytes(), &json!([{"old": old, "new": new, "replace_all": true}]));
        if !outcome.is_error() && text.contains(&old) {
            prop_assert_eq!(bytes, text.replace(&old, &new).into_bytes());
        } else if outcome.is_error() {
            prop_assert_eq!(bytes, text.into_bytes());
        }
    }
}
