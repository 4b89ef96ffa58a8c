// SPDX-License-Identifier: Apache-2.0
//! Diffs: git takes them as patches, terminals are safe from them, and no file is too much.

use std::process::{Command, Stdio};

use super::super::fixture::{Fixture, Item, Tree, file, guest_file, read, tree, upper, write as write_tree};
use super::*;

fn plain() -> DiffOptions {
    DiffOptions { for_terminal: false, ..DiffOptions::default() }
}

fn diff(set: &ChangeSet, options: &DiffOptions) -> String {
    let mut out = Vec::new();
    set.write_diff(&mut out, options).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_changed_line_is_shown_with_its_surroundings() {
    let before = tree(&[("src/f", file("1\n2\n3\n4\n5\n6\n7\n8\n"))]);
    let fixture = Fixture::new(&before);
    let set = fixture.changes(&[guest_file("src/f", b"1\n2\n3\n4\nfive\n6\n7\n8\n")]);
    let expected =
        "diff --git a/src/f b/src/f\n--- a/src/f\n+++ b/src/f\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n";
    assert_eq!(diff(&set, &plain()), expected);
    assert_eq!(set.line_counts(&set.changes()[0], &plain()).unwrap(), Some(LineCounts { added: 1, removed: 1 }));
}

#[test]
fn added_deleted_empty_and_unended_files_have_gits_form() {
    let before = tree(&[("gone", file("x\n")), ("end", file("a\nb")), ("mode", Item::File(0o644, b"#!".to_vec()))]);
    let mut after = tree(&[("new", Item::File(0o755, b"n".to_vec())), ("empty", file("")), ("end", file("a\nc\n"))]);
    after.insert("mode".into(), Item::File(0o755, b"#!".to_vec()));
    let text = diff(&Fixture::new(&before).changes(&upper(&before, &after)), &plain());
    for part in [
        "diff --git a/empty b/empty\nnew file mode 100644\ndiff",
        "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+c\n",
        "deleted file mode 100644\n--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n",
        "diff --git a/mode b/mode\nold mode 100644\nnew mode 100755\ndiff",
        "new file mode 100755\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+n\n\\ No newline at end of file\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn binary_and_large_files_are_only_named() {
    let before = tree(&[("bin", Item::File(0o644, b"\0\x01".to_vec())), ("large", file("x"))]);
    let fixture = Fixture::new(&before);
    let set = fixture.changes(&[guest_file("bin", b"\0\x02"), guest_file("large", &vec![b'y'; 2000])]);
    let text = diff(&set, &DiffOptions { file_max_bytes: 1999, ..plain() });
    assert!(text.contains("Binary files a/bin (2 bytes) and b/bin (2 bytes) differ\n"), "{text}");
    assert!(text.contains("Large files a/large (1 bytes) and b/large (2000 bytes) differ\n"), "{text}");
    let text = diff(&set, &DiffOptions { file_max_bytes: 2000, ..plain() });
    assert!(text.contains("+yyyy"), "just within the limit");
}

#[test]
fn nothing_of_the_guests_steers_the_terminal() {
    let before = tree(&[("f", file("a\n"))]);
    let evil = "\x1b]0;title\x07\x1b[2Jx\r\u{202e}gnp\tend\r\n".as_bytes();
    let (mut named, data) = guest_file("x", evil);
    named.path = b"na\x1b[31mme\n+++ b/other".to_vec();
    let fixture = Fixture::new(&before);
    let set = fixture.changes(&[guest_file("f", evil), (named, data)]);
    let text = diff(&set, &DiffOptions::default());
    let controls: Vec<char> = text.chars().filter(|c| c.is_control() && !"\n\t\r".contains(*c)).collect();
    assert!(controls.is_empty(), "{text:?}");
    assert!(!text.contains('\u{202e}') && !text.contains("x\r\\u"));
    assert!(text.contains("\\u{1b}]0;title") && text.contains("\tend\r\n"));
    assert!(text.contains("\"b/na\\033[31mme\\012+++ b/other\""), "{text}");
    let colored = diff(&set, &DiffOptions { color: true, ..DiffOptions::default() });
    assert!(colored.contains("\x1b[32m+") && colored.matches("\x1b[").count().is_multiple_of(2));
}

#[test]
fn a_hostile_pair_of_files_takes_bounded_time() {
    let lines = |seed: u64| -> Vec<u8> {
        (0..200_000u64).flat_map(|n| [b'a' + u8::try_from((n * n + n * seed) % 23).unwrap(), b'\n']).collect()
    };
    let before = tree(&[("f", Item::File(0o644, lines(7)))]);
    let fixture = Fixture::new(&before);
    let set = fixture.changes(&[guest_file("f", &lines(11))]);
    let start = std::time::Instant::now();
    let options = DiffOptions { file_timeout_ms: 200, ..plain() };
    assert!(!diff(&set, &options).is_empty());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn a_diff_of_very_many_files_is_cut_and_says_so() {
    let fixture = Fixture::new(&tree(&[]));
    let report: Vec<_> = (0..20).map(|number| guest_file(&format!("f{number:02}"), &[b'x'; 1000])).collect();
    let set = fixture.changes(&report);
    let text = diff(&set, &DiffOptions { total_max_bytes: 3000, ..plain() });
    assert!(text.len() < 5000 && text.contains("b/f02") && !text.contains("b/f03"), "{text}");
    assert!(text.ends_with(" bytes\n") && text.contains("... 17 more changes are not shown"), "{text}");
    assert!(!diff(&set, &plain()).contains("not shown"));
    let hurried = diff(&set, &DiffOptions { total_timeout_ms: 0, ..plain() });
    assert_eq!(hurried.matches("\n+xxx").count(), 20, "without time the diffs are coarse but whole");
}

#[test]
fn odd_names_are_quoted_as_git_quotes_them() {
    for (name, quotation) in [
        ("plain", "a/plain"),
        ("with space", "a/with space"),
        ("tab\there", "\"a/tab\\011here\""),
        ("quote\"back\\slash", "\"a/quote\\\"back\\\\slash\""),
        ("ümlaut", "\"a/\\303\\274mlaut\""),
    ] {
        assert_eq!(quoted("a/", &RelPath::parse(name.as_bytes()).unwrap()), quotation);
    }
}

#[test]
fn a_link_that_becomes_a_file_goes_and_comes() {
    let before = tree(&[("x", Item::Link("target".into()))]);
    let fixture = Fixture::new(&before);
    let text = diff(&fixture.changes(&[guest_file("x", b"now text\n")]), &plain());
    let expected = "diff --git a/x b/x\ndeleted file mode 120000\n--- a/x\n+++ /dev/null\n@@ -1 +0,0 @@\n-target\n\\ No newline at end of file\ndiff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+now text\n";
    assert_eq!(text, expected);
}

#[test]
fn modes_git_does_not_know_and_directories_have_no_diff() {
    let before = tree(&[("f", file("x")), ("d/g", file("y"))]);
    let mut after = before.clone();
    after.insert("f".into(), Item::File(0o600, b"x".to_vec()));
    after.insert("d".into(), Item::Dir(0o700));
    after.insert("e".into(), Item::Dir(0o755));
    let fixture = Fixture::new(&before);
    let set = fixture.changes(&upper(&before, &after));
    assert_eq!(set.changes().len(), 3);
    assert_eq!(diff(&set, &plain()), "");
}

/// A tree as git sees it: no empty directories, and of modes only whether the owner may execute.
fn as_git_sees(tree: &Tree) -> Tree {
    let normal = |item: &Item| match item {
        Item::File(mode, data) => Item::File(if mode & 0o100 == 0 { 0o644 } else { 0o755 }, data.clone()),
        other => other.clone(),
    };
    tree.iter()
        .filter(|(_, item)| !matches!(item, Item::Dir(_)))
        .map(|(path, item)| (path.clone(), normal(item)))
        .collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn git_applies_the_diff(
        before in super::super::changes::tests::random_tree(),
        after in super::super::changes::tests::random_tree()
    ) {
        if Command::new("git").arg("--version").output().is_err() {
            println!("skipped: git is not installed");
            return Ok(());
        }
        let text = diff(&Fixture::new(&before).changes(&upper(&before, &after)), &plain());
        let dir = tempfile::tempdir().unwrap();
        let tracked: Vec<(String, Item)> = as_git_sees(&before).into_iter().collect();
        write_tree(&tree(&tracked.iter().map(|(path, item)| (&**path, item.clone())).collect::<Vec<_>>()), dir.path());
        if text.is_empty() {
            return Ok(());
        }
        let mut git = Command::new("git");
        git.args(["-c", "core.fileMode=true", "apply", "--whitespace=nowarn", "-"]).current_dir(dir.path());
        git.env("GIT_CEILING_DIRECTORIES", dir.path().parent().unwrap());
        let mut child = git.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        proptest::prop_assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), text);
        proptest::prop_assert_eq!(as_git_sees(&read(dir.path())), as_git_sees(&after));
    }
}
