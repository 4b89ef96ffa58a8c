// SPDX-License-Identifier: Apache-2.0
//! Comparison of a report with what was packed: every kind of change, and everything that is none.

use proptest::prelude::*;

use super::super::fixture::{Fixture, Item, Tree, entry, file, guest_file, tree, upper};
use super::super::spool::{GuestEntry, GuestKind};
use super::*;

fn listed(set: &ChangeSet) -> Vec<(String, ChangeKind)> {
    set.changes().iter().map(|change| (change.path.to_string(), change.kind)).collect()
}

fn kinds(before: &Tree, after: &Tree) -> Vec<(String, ChangeKind)> {
    listed(&Fixture::new(before).changes(&upper(before, after)))
}

fn expect(list: &[(&str, ChangeKind)]) -> Vec<(String, ChangeKind)> {
    list.iter().map(|(path, kind)| ((*path).to_owned(), *kind)).collect()
}

fn base() -> Tree {
    tree(&[
        ("a/deep/f", file("one")),
        ("a/g", file("two")),
        ("a-b", file("sorts between a and a/")),
        ("link", Item::Link("a/g".into())),
        ("run", Item::File(0o755, b"#!".to_vec())),
    ])
}

#[test]
fn an_untouched_and_a_merely_touched_tree_have_no_changes() {
    let fixture = Fixture::new(&base());
    assert!(fixture.changes(&[]).is_empty());
    let dir = |path: &[u8]| (GuestEntry { mode: 0o755, ..entry(path, GuestKind::Dir) }, Vec::new());
    let set = fixture.changes(&[dir(b"a"), dir(b"a/deep"), guest_file("a/deep/f", b"one"), guest_file("a/g", b"two")]);
    assert!(set.is_empty(), "{:?}", listed(&set));
    assert_eq!(std::fs::read_dir(set.spool_path()).unwrap().count(), 0, "equal content is not kept");
}

#[test]
fn every_kind_of_change_is_told() {
    let mut after = base();
    after.insert("a/new".into(), file("new"));
    after.insert("a/deep/f".into(), file("other"));
    after.insert("run".into(), Item::File(0o644, b"#!".to_vec()));
    after.insert("link".into(), Item::Link("a/deep".into()));
    after.remove("a-b");
    after.insert("a/g".into(), Item::Link("deep/f".into()));
    let expected = expect(&[
        ("a-b", ChangeKind::Deleted),
        ("a/deep/f", ChangeKind::Modified),
        ("a/g", ChangeKind::TypeChanged),
        ("a/new", ChangeKind::Added),
        ("link", ChangeKind::Modified),
        ("run", ChangeKind::ModeChanged),
    ]);
    assert_eq!(kinds(&base(), &after), expected);
}

#[test]
fn a_deleted_directory_lists_all_below_and_nothing_beside() {
    let mut after = base();
    after.retain(|path, _| path != "a" && !path.starts_with("a/"));
    let deleted = ChangeKind::Deleted;
    let expected = expect(&[("a", deleted), ("a/deep", deleted), ("a/deep/f", deleted), ("a/g", deleted)]);
    assert_eq!(kinds(&base(), &after), expected);
}

#[test]
fn an_opaque_directory_hides_what_was_below() {
    let fixture = Fixture::new(&base());
    let opaque = (GuestEntry { mode: 0o755, ..entry(b"a", GuestKind::OpaqueDir) }, Vec::new());
    let set = fixture.changes(&[opaque, guest_file("a/g", b"two"), guest_file("a/x", b"x")]);
    let deleted = ChangeKind::Deleted;
    let expected = expect(&[("a/deep", deleted), ("a/deep/f", deleted), ("a/x", ChangeKind::Added)]);
    assert_eq!(listed(&set), expected, "a/g was written again with the same content");
}

#[test]
fn a_directory_that_becomes_a_file_deletes_what_was_below_and_the_other_way_adds() {
    let mut after = base();
    after.retain(|path, _| !path.starts_with("a/"));
    after.insert("a".into(), file("now a file"));
    after.insert("run".into(), Item::Dir(0o755));
    after.insert("run/inside".into(), file("x"));
    let deleted = ChangeKind::Deleted;
    let expected = expect(&[
        ("a", ChangeKind::TypeChanged),
        ("a/deep", deleted),
        ("a/deep/f", deleted),
        ("a/g", deleted),
        ("run", ChangeKind::TypeChanged),
        ("run/inside", ChangeKind::Added),
    ]);
    assert_eq!(kinds(&base(), &after), expected);
}

#[test]
fn records_out_of_order_and_without_their_parents_are_understood() {
    let fixture = Fixture::new(&base());
    let dir = (GuestEntry { mode: 0o700, ..entry(b"n", GuestKind::Dir) }, Vec::new());
    let set = fixture.changes(&[guest_file("n/m/f", b"1"), guest_file("a/deep/f", b"2"), dir]);
    let added = ChangeKind::Added;
    let expected = expect(&[("a/deep/f", ChangeKind::Modified), ("n", added), ("n/m", added), ("n/m/f", added)]);
    assert_eq!(listed(&set), expected);
    assert_eq!(set.changes()[1].after.as_ref().unwrap().mode, 0o700);
}

#[test]
fn records_below_a_file_are_ignored_with_a_note() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[guest_file("x", b"file"), guest_file("x/y", b"below")]);
    assert_eq!(listed(&set), expect(&[("x", ChangeKind::Added)]));
    assert_eq!(set.notes().counts()[&NoteKind::BelowNonDirectory], 1);
    assert_eq!(std::fs::read_dir(set.spool_path()).unwrap().count(), 1);
}

#[test]
fn special_files_of_the_guest_are_noted_and_count_as_absent() {
    let fixture = Fixture::new(&base());
    let special = |path: &[u8]| (entry(path, GuestKind::Special), Vec::new());
    let set = fixture.changes(&[special(b"run"), special(b"socket")]);
    assert_eq!(listed(&set), expect(&[("run", ChangeKind::Deleted)]));
    assert_eq!(set.notes().counts()[&NoteKind::GuestSpecial], 2);
}

#[test]
fn setuid_bits_of_the_guest_are_no_change() {
    let fixture = Fixture::new(&base());
    let (mut record, data) = guest_file("run", b"#!");
    record.mode = 0o6755;
    assert!(fixture.changes(&[(record, data)]).is_empty());
}

#[test]
fn guards_are_set_on_what_git_acts_upon_and_on_links_that_leave() {
    let before = tree(&[
        (".git/config", file("[core]")),
        (".git/HEAD", file("ref")),
        (".git/objects/ab/cd", file("o")),
        ("src", file("")),
    ]);
    let mut after = before.clone();
    after.insert(".git/config".into(), file("[core] fsmonitor = evil"));
    after.insert(".git/HEAD".into(), file("ref: other"));
    after.insert(".git/objects/ab/ef".into(), file("o2"));
    after.insert(".git/refs".into(), Item::Link("../src".into()));
    after.insert("out".into(), Item::Link("/etc".into()));
    after.insert("in".into(), Item::Link("src".into()));
    after.insert("sub".into(), Item::Dir(0o755));
    after.insert("sub/.git".into(), file("gitdir: ../fake"));
    after.insert(".envrc".into(), file("x"));
    let set = Fixture::new(&before).changes(&upper(&before, &after));
    let guards: Vec<(String, Option<Guard>)> =
        set.changes().iter().map(|change| (change.path.to_string(), change.guard)).collect();
    let git = Some(Guard::GitInternals);
    let expected = [
        (".envrc", None),
        (".git/HEAD", None),
        (".git/config", git),
        (".git/objects/ab/ef", None),
        (".git/refs", git),
        ("in", None),
        ("out", Some(Guard::LinkLeavesTree)),
        ("sub", None),
        ("sub/.git", git),
    ];
    assert_eq!(guards, expected.map(|(path, guard)| (path.to_owned(), guard)));
    assert!(set.changes()[0].starts_by_itself);
}

#[test]
fn losing_a_repository_is_guarded_as_a_whole() {
    let before = tree(&[(".git/HEAD", file("ref")), (".git/objects/ab/cd", file("o")), ("src", file(""))]);
    let after = tree(&[]);
    let set = Fixture::new(&before).changes(&upper(&before, &after));
    assert_eq!(set.changes().len(), 6);
    for change in set.changes() {
        assert_eq!(change.guard.is_some(), change.path.to_string().starts_with(".git"), "{}", change.path);
    }
}

#[test]
fn content_of_both_sides_can_be_read() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[guest_file("a/g", b"three")]);
    let change = &set.changes()[0];
    assert_eq!(set.read_before(change, 100).unwrap(), b"two");
    assert_eq!(set.read_after(change, 100).unwrap(), b"three");
    assert_eq!(set.read_after(change, 2).unwrap(), b"th");
}

/// A random tree: few names, so that edits meet.
pub(crate) fn random_tree() -> impl Strategy<Value = Tree> {
    let item = prop_oneof![
        2 => (prop_oneof![Just(0o644), Just(0o755), Just(0o600)], 0usize..4)
            .prop_map(|(mode, data)| Item::File(mode, b"text".repeat(data))),
        1 => prop_oneof![Just("x"), Just("x/y")].prop_map(|target| Item::Link(target.into())),
        2 => prop_oneof![Just(0o755), Just(0o700)].prop_map(Item::Dir),
    ];
    proptest::collection::vec(("[a-c](/[a-c-]){0,3}", item), 0..14).prop_map(|items| {
        let mut tree = Tree::new();
        for (path, item) in items {
            let parents: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
            if parents.iter().any(|above| tree.get(*above).is_some_and(|item| !matches!(item, Item::Dir(_)))) {
                continue;
            }
            for above in parents {
                tree.entry(above.to_owned()).or_insert(Item::Dir(0o755));
            }
            tree.entry(path).or_insert(item);
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_changes_are_exactly_the_difference(before in random_tree(), after in random_tree()) {
        let set = Fixture::new(&before).changes(&upper(&before, &after));
        let mut expected = std::collections::BTreeMap::new();
        for path in before.keys().chain(after.keys()) {
            let kind = match (before.get(path), after.get(path)) {
                (None, _) => ChangeKind::Added,
                (_, None) => ChangeKind::Deleted,
                (Some(old), Some(new)) if old == new => continue,
                (Some(Item::File(_, old)), Some(Item::File(_, new))) if old == new => ChangeKind::ModeChanged,
                (Some(Item::File(..)), Some(Item::File(..))) | (Some(Item::Link(_)), Some(Item::Link(_))) => ChangeKind::Modified,
                (Some(Item::Dir(_)), Some(Item::Dir(_))) => ChangeKind::ModeChanged,
                _ => ChangeKind::TypeChanged,
            };
            expected.insert(path.as_bytes().to_vec(), kind);
        }
        let found: std::collections::BTreeMap<_, _> =
            set.changes().iter().map(|change| (change.path.as_bytes().to_vec(), change.kind)).collect();
        prop_assert_eq!(found, expected);
    }
}
