// SPDX-License-Identifier: Apache-2.0

use std::os::unix::ffi::OsStrExt as _;

use proptest::prelude::*;

use super::super::changes::tests::random_tree;
use super::super::fixture::{Fixture, Item, Tree, file, tree, upper};
use super::*;

/// What a tree becomes when a tar is taken into it after `removed` went.
fn taken(before: &Tree, since: &Since) -> Tree {
    let mut tree = before.clone();
    let below = |tree: &mut Tree, top: &str| tree.retain(|path, _| !path.starts_with(&format!("{top}/")));
    for path in since.removed() {
        tree.remove(&path);
        below(&mut tree, &path);
    }
    let mut bytes = Vec::new();
    since.write_tar(&mut bytes).unwrap();
    for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap().trim_end_matches('/').to_owned();
        let mode = entry.header().mode().unwrap();
        let item = match entry.header().entry_type() {
            EntryType::Directory => Item::Dir(mode),
            EntryType::Symlink => {
                Item::Link(entry.link_name().unwrap().unwrap().as_os_str().to_str().unwrap().to_owned())
            }
            _ => {
                let mut data = Vec::new();
                entry.read_to_end(&mut data).unwrap();
                Item::File(mode, data)
            }
        };
        if !matches!(item, Item::Dir(_)) {
            below(&mut tree, &path);
        }
        tree.insert(path, item);
    }
    tree
}

/// With the fixture that has the data.
fn between(packed: &Tree, earlier: &Tree, later: &Tree) -> (Since, Fixture) {
    let fixture = Fixture::new(packed);
    let moment = fixture.changes(&upper(packed, earlier)).moment();
    (fixture.changes(&upper(packed, later)).since(&moment), fixture)
}

#[test]
fn only_what_changed_since_is_told() {
    let packed = tree(&[("kept", file("1")), ("back", file("old")), ("gone", file("x")), ("d/e", file("y"))]);
    let earlier = tree(&[("kept", file("1")), ("back", file("new")), ("mine", file("m")), ("d/e", file("y"))]);
    let later = tree(&[("kept", Item::File(0o755, b"1".to_vec())), ("back", file("old")), ("mine", file("m"))]);
    let (since, _data) = between(&packed, &earlier, &later);
    assert_eq!(since.names(), ["M back", "D d", "D d/e", "M kept"], "neither `gone` nor `mine`, which were so before");
    assert_eq!((since.removed(), since.data_bytes()), (vec!["d".to_owned()], 4));
    assert_eq!(taken(&earlier, &since), later);
}

#[test]
fn what_is_removed_is_told_once() {
    let packed = tree(&[("a/x", file("1")), ("a-b", file("2")), ("a/y/z", file("3"))]);
    let (since, _data) = between(&packed, &packed, &tree(&[]));
    assert_eq!(since.removed(), ["a", "a-b"]);
    assert_eq!(taken(&packed, &since), tree(&[]));
}

#[test]
fn names_that_are_long_or_no_text_go_into_the_tar() {
    let long = "n".repeat(200);
    let later = tree(&[(&format!("{long}/{long}"), file("deep")), ("l", Item::Link("t".repeat(150)))]);
    let (since, _data) = between(&tree(&[]), &tree(&[]), &later);
    assert_eq!(taken(&tree(&[]), &since), later);
    let fixture = Fixture::new(&tree(&[]));
    let odd = (super::super::fixture::entry(b"\xff\xfe", super::super::GuestKind::File), Vec::new());
    let mut bytes = Vec::new();
    fixture.changes(&[odd]).since(&Moment::default()).write_tar(&mut bytes).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let path = archive.entries().unwrap().next().unwrap().unwrap().path().unwrap().into_owned();
    assert_eq!(path.as_os_str().as_bytes(), b"\xff\xfe");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_changed_makes_the_earlier_the_later(packed in random_tree(), earlier in random_tree(), later in random_tree()) {
        let (since, _data) = between(&packed, &earlier, &later);
        prop_assert_eq!(taken(&earlier, &since), later.clone());
        prop_assert_eq!(since.is_empty(), earlier == later);
    }
}
