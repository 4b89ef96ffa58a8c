// SPDX-License-Identifier: Apache-2.0
//! The words of a review.

use super::super::fixture::{Fixture, Item, file, guest_file, tree, upper};
use super::*;

#[test]
fn the_list_has_a_letter_a_path_and_what_there_is_to_say() {
    let before = tree(&[
        ("d/gone", file("x")),
        ("f", file("1\n2\n")),
        ("mode", Item::File(0o644, b"#!".to_vec())),
        ("t", file("")),
        (".git/config", file("")),
    ]);
    let mut after = tree(&[
        ("f", file("1\n3\n4\n")),
        ("mode", Item::File(0o755, b"#!".to_vec())),
        ("t", Item::Link("f".into())),
        ("new", Item::File(0o644, vec![0; 3000])),
        (".envrc", file("x\n")),
        (".git/config", file("evil\n")),
    ]);
    after.insert("n".into(), Item::Dir(0o755));
    let fixture = Fixture::new(&before);
    let set = fixture.changes(&upper(&before, &after));
    let text = list(&set, &ApplyOptions::default());
    let expected = "*A  .envrc  +1 -0  (tools may act upon it by themselves)
!M  .git/config  +1 -0  (could make git on this machine run commands)
 D  d/
 D  d/gone
 M  f  +2 -1
 P  mode  0644 -> 0755
 A  n/
 A  new  2.9 KiB
 T  t -> f
3 added, 2 modified, 1 with other permissions, 1 of another type, 2 deleted; 1 marked '!' would not be applied
";
    assert_eq!(text, expected);
    let all = ["A .envrc", "M .git/config", "D d", "D d/gone", "M f", "M mode", "A n", "A new", "M t"];
    assert_eq!(names(&set), all);
    let text = list(&set, &ApplyOptions { allow_git_internals: true, ..ApplyOptions::default() });
    assert!(text.contains("*M  .git/config  +1 -0  (could make git") && !text.contains('!'), "{text}");
    assert_eq!(list(&fixture.changes(&[]), &ApplyOptions::default()), "No changes.\n");
}

#[test]
fn notes_name_the_first_and_count_the_rest() {
    let fixture = Fixture::new(&tree(&[("a", Item::Link("/etc".into())), ("b", Item::Link("/".into()))]));
    let expected = "note: a links out of the workspace: the link is kept, what it names is not in the sandbox \
        (and 1 more like it)\n";
    assert_eq!(notes(&fixture.manifest.notes), expected);
}

#[test]
fn long_lists_are_cut_and_say_so() {
    let fixture = Fixture::new(&tree(&[]));
    let report: Vec<_> = (0..=LISTED_MAX).map(|number| guest_file(&format!("f{number:04}"), b"x")).collect();
    let text = list(&fixture.changes(&report), &ApplyOptions::default());
    assert_eq!(text.lines().count(), LISTED_MAX + 2);
    assert!(text.contains("... and 1 more\n501 added"), "{}", &text[text.len() - 100..]);
}

#[test]
fn answers_are_understood_and_an_empty_one_applies_nothing() {
    let cases = [
        ("a\n", Choice::All),
        ("YES", Choice::All),
        ("\n", Choice::Nothing),
        ("n", Choice::Nothing),
        ("d", Choice::Diff),
    ];
    for (line, choice) in cases {
        assert_eq!(Choice::parse(line), choice, "{line:?}");
    }
    assert_eq!(Choice::parse("what"), Choice::Help);
    assert_eq!(FileChoice::parse(""), FileChoice::No);
    assert_eq!(FileChoice::parse("what"), FileChoice::Again);
}

#[test]
fn file_by_file_gathers_what_was_chosen_and_skips_what_is_guarded() {
    let fixture = Fixture::new(&tree(&[]));
    let names = ["a", "b", "c", "d", "sub/.git/config"];
    let set = fixture.changes(&names.map(|name| guest_file(name, b"x")));
    let allowing = |allow_git_internals| ApplyOptions { allow_git_internals, ..ApplyOptions::default() };
    let choose_with = |options: &ApplyOptions, answers: &[FileChoice]| {
        let mut each = EachFile::new(&set, options);
        for answer in answers {
            assert!(each.current().is_some());
            each.answer(*answer);
        }
        (
            each.current().map(|change| change.path.to_string()),
            each.chosen().iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
    };
    let choose = |answers: &[FileChoice]| choose_with(&allowing(false), answers);
    use FileChoice::{AllTheRest, Diff, No, NoneOfTheRest, Yes};
    assert_eq!(choose(&[Yes, Diff, No]), (Some("c".into()), vec!["a".into()]));
    let (left, chosen) = choose(&[No, AllTheRest]);
    assert_eq!((left, chosen), (None, ["b", "c", "d", "sub", "sub/.git"].map(String::from).to_vec()));
    let (_, chosen) = choose_with(&allowing(true), &[No, AllTheRest]);
    assert!(chosen.contains(&"sub/.git/config".into()), "{chosen:?}");
    assert_eq!(choose(&[Yes, NoneOfTheRest]), (None, vec!["a".into()]));
}

#[test]
fn sizes_read_as_people_write_them() {
    for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 20, "1.0 MiB"), (3 << 29, "1.5 GiB")] {
        assert_eq!(human_bytes(bytes), text);
    }
}
