// SPDX-License-Identifier: Apache-2.0
//! Applying: the result is the model's, what changed on the host stays, nothing leaves the tree, and whatever step fails,
//! each file is wholly old or wholly new.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use proptest::prelude::*;

use super::super::changes::tests::random_tree;
use super::super::fixture::{Fixture, Item, Tree, entry, file, guest_file, read, read_upper, tree, upper};
use super::super::spool::{GuestEntry, GuestKind};
use super::*;

fn apply(fixture: &Fixture, set: &ChangeSet) -> ApplyReport {
    set.apply(&fixture.top, &options(fixture)).unwrap()
}

/// The default, but nothing is kept outside the fixture.
fn options(fixture: &Fixture) -> ApplyOptions {
    let number = std::fs::read_dir(fixture.dir.path()).unwrap().count();
    ApplyOptions { keep_in: Some(fixture.dir.path().join(format!("kept-{number}"))), ..ApplyOptions::default() }
}

fn conflicts(report: &ApplyReport) -> Vec<(String, Conflict)> {
    report.conflicts.iter().map(|(path, conflict)| (path.to_string(), *conflict)).collect()
}

pub(super) fn base() -> Tree {
    tree(&[
        ("a/deep/f", file("one")),
        ("a/g", file("two")),
        ("link", Item::Link("a/g".into())),
        ("run", Item::File(0o755, b"#!".to_vec())),
        ("keep", file("keep")),
        ("was/a/dir", file("in it")),
    ])
}

/// An edit of every kind.
pub(super) fn edited() -> Tree {
    let mut after = base();
    after.insert("a/g".into(), file("changed"));
    after.insert("a/deep/f".into(), Item::Link("../g".into()));
    after.insert("n".into(), Item::Dir(0o700));
    after.insert("n/x".into(), Item::File(0o755, b"new".to_vec()));
    after.insert("run".into(), Item::File(0o644, b"#!".to_vec()));
    after.remove("link");
    after.insert("keep".into(), Item::Dir(0o755));
    after.insert("keep/in".into(), file("in"));
    after.retain(|path, _| !path.starts_with("was"));
    after.insert("was".into(), file("now a file"));
    after
}

#[test]
fn an_edit_of_every_kind_arrives() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&upper(&base(), &edited()));
    let report = apply(&fixture, &set);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.applied.len(), set.changes().len());
    assert_eq!(report.kept_in, None);
    assert_eq!(read(&fixture.top), edited());
    let again = apply(&fixture, &set);
    assert!(again.is_complete(), "applying twice changes nothing: {again:?}");
    assert_eq!(read(&fixture.top), edited());
}

#[test]
fn only_what_was_chosen_is_applied_with_the_directories_it_needs() {
    let fixture = Fixture::new(&base());
    let after = tree(&[("n/m/x", file("x")), ("n/m/y", file("y")), ("z", file("z"))]);
    let both: Tree = base().into_iter().chain(after).collect();
    let set = fixture.changes(&upper(&base(), &both));
    let only = BTreeSet::from([RelPath::parse(b"n/m/x").unwrap()]);
    let report = set.apply(&fixture.top, &ApplyOptions { only: Some(only), ..options(&fixture) }).unwrap();
    assert_eq!(report.applied.len(), 1);
    let expected: Tree = base().into_iter().chain(tree(&[("n/m/x", file("x"))])).collect();
    assert_eq!(read(&fixture.top), expected);
}

#[test]
fn a_host_file_changed_since_is_left_and_the_runs_version_kept() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&upper(&base(), &edited()));
    std::fs::write(fixture.top.join("a/g"), "hosts").unwrap();
    std::fs::remove_file(fixture.top.join("link")).unwrap();
    symlink("elsewhere", fixture.top.join("link")).unwrap();
    std::fs::create_dir(fixture.top.join("n")).unwrap();
    std::fs::write(fixture.top.join("n/x"), "hosts too").unwrap();
    let report = apply(&fixture, &set);
    let expected = [("a/g", Conflict::Changed), ("link", Conflict::Changed), ("n/x", Conflict::Appeared)];
    assert_eq!(conflicts(&report), expected.map(|(path, conflict)| (path.to_owned(), conflict)));
    assert_eq!(std::fs::read(fixture.top.join("a/g")).unwrap(), b"hosts");
    assert_eq!(std::fs::read(fixture.top.join("n/x")).unwrap(), b"hosts too");
    assert!(fixture.top.join("keep/in").exists(), "the others are applied");
    let kept = report.kept_in.unwrap();
    drop(set);
    assert_eq!(kept.metadata().unwrap().mode() & 0o777, 0o700);
    assert_eq!(kept.join("a/g").metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read(kept.join("a/g")).unwrap(), b"changed");
    assert_eq!(std::fs::read(kept.join("n/x")).unwrap(), b"new");
}

#[test]
fn without_a_place_given_what_is_not_applied_is_kept_among_temporary_files() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[guest_file("a/g", b"changed")]);
    std::fs::write(fixture.top.join("a/g"), "hosts").unwrap();
    let report = set.apply(&fixture.top, &ApplyOptions::default()).unwrap();
    let kept = report.kept_in.unwrap();
    assert!(kept.starts_with(std::env::temp_dir()));
    assert_eq!(std::fs::read(kept.join("a/g")).unwrap(), b"changed");
    std::fs::remove_dir_all(kept).unwrap();
}

#[test]
fn the_same_edit_on_the_host_is_no_conflict() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[
        guest_file("a/g", b"same"),
        guest_file("new", b"same"),
        (entry(b"keep", GuestKind::Whiteout), Vec::new()),
    ]);
    std::fs::write(fixture.top.join("a/g"), "same").unwrap();
    std::fs::write(fixture.top.join("new"), "same").unwrap();
    std::fs::set_permissions(fixture.top.join("new"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(fixture.top.join("keep")).unwrap();
    assert!(apply(&fixture, &set).is_complete());
    let mode = fixture.top.join("new").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the host's own file keeps its mode");
}

#[test]
fn modes_are_merged_and_conflict_only_when_both_sides_changed_them() {
    let fixture = Fixture::new(&base());
    let set_mode = |path: &str, mode| {
        std::fs::set_permissions(fixture.top.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let mode = |path: &str| fixture.top.join(path).metadata().unwrap().mode() & 0o7777;
    let (mut run, data) = guest_file("run", b"#!");
    run.mode = 0o700;
    let set = fixture.changes(&[(run, data), guest_file("a/g", b"changed")]);
    set_mode("run", 0o500);
    set_mode("a/g", 0o640);
    let report = apply(&fixture, &set);
    assert_eq!(conflicts(&report), [("run".to_owned(), Conflict::Changed)]);
    assert_eq!((mode("run"), mode("a/g")), (0o500, 0o640), "content changed there, mode here");
}

#[test]
fn setuid_and_new_write_permissions_for_others_are_not_applied() {
    let fixture = Fixture::new(&base());
    let (mut new, data) = guest_file("new", b"#!");
    new.mode = 0o6777;
    let (mut run, changed) = guest_file("run", b"changed");
    run.mode = 0o4777;
    let set = fixture.changes(&[(new, data), (run, changed)]);
    assert!(apply(&fixture, &set).is_complete());
    for name in ["new", "run"] {
        let mode = fixture.top.join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "{name}");
    }
}

#[test]
fn a_link_on_the_host_never_leads_a_write_out() {
    let fixture = Fixture::new(&base());
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("deep")).unwrap();
    std::fs::write(outside.path().join("g"), "two").unwrap();
    let mut after = edited();
    after.insert("a/deep/new".into(), file("x"));
    let set = fixture.changes(&upper(&base(), &after));
    std::fs::remove_dir_all(fixture.top.join("a")).unwrap();
    symlink(outside.path(), fixture.top.join("a")).unwrap();
    let report = apply(&fixture, &set);
    let parent = Conflict::ParentChanged;
    let expected = [("a/deep/f", parent), ("a/deep/new", parent), ("a/g", parent)];
    assert_eq!(conflicts(&report), expected.map(|(path, conflict)| (path.to_owned(), conflict)));
    assert_eq!(std::fs::read(outside.path().join("g")).unwrap(), b"two");
    assert_eq!(std::fs::read_dir(outside.path().join("deep")).unwrap().count(), 0);
}

#[test]
fn a_link_of_the_guests_never_leads_a_write_out() {
    let outside = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(&base());
    let link = |path: &[u8], target: &[u8]| {
        (GuestEntry { target: target.into(), ..entry(path, GuestKind::Symlink) }, Vec::new())
    };
    let target = outside.path().to_str().unwrap().as_bytes();
    // A link, and in the same report a file below it; and a link over a directory that has files.
    let set = fixture.changes(&[
        link(b"out", target),
        guest_file("out/evil", b"x"),
        link(b"a", target),
        guest_file("a/g", b"evil"),
    ]);
    let all = ApplyOptions { allow_outside_links: true, ..options(&fixture) };
    for options in [options(&fixture), all] {
        set.apply(&fixture.top, &options).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
    assert_eq!(std::fs::read_link(fixture.top.join("out")).unwrap(), outside.path(), "allowed by name");
}

#[test]
fn links_out_and_git_internals_are_refused_unless_allowed() {
    let before = tree(&[(".git/config", file("[core]")), ("src", file(""))]);
    let fixture = Fixture::new(&before);
    let mut after = before.clone();
    after.insert(".git/config".into(), file("[core] sshCommand = evil"));
    after.insert(".git/hooks".into(), Item::Dir(0o755));
    after.insert(".git/hooks/pre-commit".into(), Item::File(0o755, b"evil".to_vec()));
    after.insert("passwd".into(), Item::Link("/etc/passwd".into()));
    let set = fixture.changes(&upper(&before, &after));
    let report = apply(&fixture, &set);
    assert_eq!(report.applied, []);
    assert_eq!(report.refused.len(), 4);
    assert_eq!(read(&fixture.top), before);
    assert_eq!(std::fs::read(report.kept_in.unwrap().join(".git/hooks/pre-commit")).unwrap(), b"evil");
    let allowed = ApplyOptions { allow_git_internals: true, allow_outside_links: true, ..options(&fixture) };
    assert!(set.apply(&fixture.top, &allowed).unwrap().is_complete());
    assert_eq!(read(&fixture.top), after);
}

#[test]
fn what_is_to_stay_stays_whatever_is_allowed() {
    let before = tree(&[("LICENSE", file("mine")), ("src/a", file("old")), ("src/b", file("old"))]);
    let fixture = Fixture::new(&before);
    let mut after = tree(&[("LICENSE", file("theirs")), ("src/a", file("new"))]);
    after.insert("src/c".into(), Item::Link("/etc/passwd".into()));
    let mut set = fixture.changes(&upper(&before, &after));
    set.keep(|path| path.as_bytes() != b"src/a");
    let all = ApplyOptions { allow_git_internals: true, allow_outside_links: true, ..options(&fixture) };
    let report = set.apply(&fixture.top, &all).unwrap();
    assert_eq!(report.applied.iter().map(ToString::to_string).collect::<Vec<_>>(), ["src/a"]);
    let kept = report.refused.iter().map(|(path, guard)| (path.to_string(), *guard)).collect::<Vec<_>>();
    assert_eq!(kept, ["LICENSE", "src/b", "src/c"].map(|path| (path.to_owned(), Guard::ReadOnly)));
    let expected = tree(&[("LICENSE", file("mine")), ("src/a", file("new")), ("src/b", file("old"))]);
    assert_eq!(read(&fixture.top), expected);
}

#[test]
fn a_directory_with_entries_of_the_hosts_is_not_deleted() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[(entry(b"a", GuestKind::Whiteout), Vec::new())]);
    std::fs::write(fixture.top.join("a/deep/mine"), "mine").unwrap();
    let report = apply(&fixture, &set);
    let expected = [("a", Conflict::NotEmpty), ("a/deep", Conflict::NotEmpty)];
    assert_eq!(conflicts(&report), expected.map(|(path, conflict)| (path.to_owned(), conflict)));
    assert!(fixture.top.join("a/deep/mine").exists());
    assert!(!fixture.top.join("a/g").exists());
}

#[test]
fn a_directory_turned_file_stays_when_the_host_put_something_in_it() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[guest_file("a", b"now a file")]);
    std::fs::write(fixture.top.join("a/mine"), "mine").unwrap();
    let report = apply(&fixture, &set);
    assert_eq!(conflicts(&report), [("a".to_owned(), Conflict::NotEmpty)]);
    assert!(fixture.top.join("a/mine").exists());
    assert_eq!(std::fs::read(report.kept_in.unwrap().join("a")).unwrap(), b"now a file");
}

#[test]
fn a_directory_gone_from_the_host_is_a_conflict_for_what_changed_in_it() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[guest_file("a/g", b"changed"), guest_file("a/deep/new", b"x")]);
    std::fs::remove_dir_all(fixture.top.join("a")).unwrap();
    let report = apply(&fixture, &set);
    let gone = Conflict::ParentGone;
    assert_eq!(conflicts(&report), [("a/deep/new".to_owned(), gone), ("a/g".to_owned(), gone)]);
    assert!(!fixture.top.join("a").exists());
}

#[test]
fn special_files_of_the_host_are_left_and_not_opened() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[guest_file("a/g", b"changed"), guest_file("new", b"x")]);
    std::fs::remove_file(fixture.top.join("a/g")).unwrap();
    nix::unistd::mkfifo(&fixture.top.join("a/g"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    nix::unistd::mkfifo(&fixture.top.join("new"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let report = apply(&fixture, &set);
    assert_eq!(conflicts(&report), [("a/g".to_owned(), Conflict::Changed), ("new".to_owned(), Conflict::Appeared)]);
}

#[test]
fn a_replaced_file_keeps_its_owner_and_a_new_one_gets_its_directorys() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: giving files away needs root");
        return;
    }
    let fixture = Fixture::new(&base());
    let owned = |path: &str| {
        let stat = fixture.top.join(path).metadata().unwrap();
        (stat.uid(), stat.gid())
    };
    std::os::unix::fs::chown(fixture.top.join("a/g"), Some(1234), Some(1235)).unwrap();
    std::os::unix::fs::chown(fixture.top.join("a"), Some(1236), Some(1237)).unwrap();
    let set = fixture.changes(&[guest_file("a/g", b"changed"), guest_file("a/n/new", b"x")]);
    assert!(apply(&fixture, &set).is_complete());
    assert_eq!((owned("a/g"), owned("a/n"), owned("a/n/new")), ((1234, 1235), (1236, 1237), (1236, 1237)));
}

#[test]
fn a_directory_that_cannot_be_opened_is_named() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[]);
    let error = set.apply(&fixture.dir.path().join("absent"), &ApplyOptions::default()).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}

/// Fails, or stops the whole process's work as a crash would, at one step.
struct FaultAt {
    left: usize,
    crash: bool,
}

impl Steps for FaultAt {
    fn before(&mut self, step: Step) -> io::Result<()> {
        if self.left > 0 {
            self.left -= 1;
            return Ok(());
        }
        if self.crash {
            std::panic::resume_unwind(Box::new(step)); // without a message from the panic hook
        }
        self.left = usize::MAX;
        Err(io::Error::other(format!("injected at {step:?}")))
    }
}

fn temporaries(top: &Path) -> usize {
    read(top).keys().filter(|path| path.contains(".midge-")).count()
}

#[test]
fn whichever_step_fails_each_file_is_old_or_new_and_a_second_apply_completes() {
    let mut steps = 0;
    loop {
        let fixture = Fixture::new(&base());
        let set = fixture.changes(&upper(&base(), &edited()));
        let mut fault = FaultAt { left: steps, crash: false };
        let report = set.apply_with(&fixture.top, &options(&fixture), &mut fault).unwrap();
        let failed = fault.left > 1 << 20;
        assert_old_or_new(&read(&fixture.top));
        assert_eq!(temporaries(&fixture.top), 0);
        if !failed {
            assert!(steps > 15, "{steps} steps were tried");
            assert!(report.is_complete());
            break;
        }
        let second = apply(&fixture, &set);
        assert!(second.is_complete(), "step {steps}: {report:?} then {second:?}");
        assert_eq!(read(&fixture.top), edited(), "step {steps}");
        steps += 1;
    }
}

#[test]
fn a_crash_at_any_step_leaves_each_file_old_or_new() {
    let mut steps = 0;
    loop {
        let fixture = Fixture::new(&base());
        let set = fixture.changes(&upper(&base(), &edited()));
        let mut fault = FaultAt { left: steps, crash: true };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            set.apply_with(&fixture.top, &options(&fixture), &mut fault).map(drop)
        }));
        assert_old_or_new(&read(&fixture.top));
        if result.is_ok() {
            assert!(steps > 15, "{steps} steps were tried");
            break;
        }
        steps += 1;
    }
}

fn assert_old_or_new(found: &Tree) {
    let (old, new) = (base(), edited());
    for (path, item) in found.iter().filter(|(path, _)| !path.contains(".midge-")) {
        let (Item::File(_, data), was, is) = (item, old.get(path), new.get(path)) else { continue };
        let same = |side: Option<&Item>| matches!(side, Some(Item::File(_, side)) if side == data);
        assert!(same(was) || same(is), "{path} is neither old nor new");
    }
    for (path, item) in old.iter().filter(|(path, item)| new.get(*path) == Some(*item)) {
        assert_eq!(found.get(path), Some(item), "{path} was not to change");
    }
}

#[test]
fn edits_in_a_real_overlay_arrive_on_the_host() {
    let before = base();
    let fixture = Fixture::new(&before);
    let at = |name: &str| {
        let path = fixture.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (lower, scratch, merged) = (at("lower"), at("scratch"), at("merged"));
    let image = fixture.dir.path().join("image");
    let script = format!(
        "set -e; mount -t tmpfs none {scratch}; mkdir {scratch}/up {scratch}/work; mount -t erofs -o loop,ro {} {lower}
         mount -t overlay none -o lowerdir={lower},upperdir={scratch}/up,workdir={scratch}/work {merged}",
        image.display()
    );
    let unmount = || {
        for dir in [&merged, &lower, &scratch] {
            let _ = Command::new("umount").arg(dir).output();
        }
    };
    let mounted = Command::new("sh").args(["-c", &script]).output().unwrap();
    if !mounted.status.success() {
        println!("skipped: no overlay over erofs here: {}", String::from_utf8_lossy(&mounted.stderr));
        return unmount();
    }
    let result = std::panic::catch_unwind(|| {
        let edit =
            "set -e; cat a/g a/deep/f > sum; echo more >> a/g; rm keep; mkdir keep; echo in > keep/in; chmod 700 run
            touch a/deep/f; mv a b; mkdir a; echo back > a/back; rm link; ln -s b/g link; mkfifo pipe; ln sum hard";
        let output = Command::new("sh").args(["-c", edit]).current_dir(&merged).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let set = fixture.changes(&read_upper(&Path::new(&scratch).join("up")));
        std::fs::remove_file(Path::new(&merged).join("pipe")).unwrap();
        let report = apply(&fixture, &set);
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(read(&fixture.top), read(Path::new(&merged)));
        assert!(fixture.top.join("a/back").exists() && fixture.top.join("b/deep/f").exists());
    });
    unmount();
    result.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn applying_gives_the_tree_the_run_left(before in random_tree(), after in random_tree()) {
        let fixture = Fixture::new(&before);
        let set = fixture.changes(&upper(&before, &after));
        let all = ApplyOptions { allow_outside_links: true, ..options(&fixture) };
        let report = set.apply(&fixture.top, &all).unwrap();
        prop_assert!(report.is_complete(), "{:?}", report);
        prop_assert_eq!(read(&fixture.top), after);
    }

    /// With edits on the host meanwhile: what the host changed is there afterwards, unless the run did the same.
    #[test]
    fn no_edit_of_the_host_is_lost(before in random_tree(), after in random_tree(), host in random_tree()) {
        let fixture = Fixture::new(&before);
        let set = fixture.changes(&upper(&before, &after));
        std::fs::remove_dir_all(&fixture.top).unwrap();
        super::super::fixture::write(&host, &fixture.top);
        let all = ApplyOptions { allow_outside_links: true, ..options(&fixture) };
        let report = set.apply(&fixture.top, &all).unwrap();
        let found = read(&fixture.top);
        let content = |item: Option<&Item>| match item {
            Some(Item::File(_, data)) => Some(data.clone()),
            _ => None,
        };
        for (path, item) in host.iter().filter(|(path, _)| !matches!(host[*path], Item::Dir(_))) {
            let (mine, base) = (content(Some(item)), content(before.get(path)));
            if mine.is_some() && mine != base {
                prop_assert_eq!(&content(found.get(path)), &mine, "{} was the host's own: {:?}", path, report);
            }
        }
        prop_assert_eq!(temporaries(&fixture.top), 0);
    }
}
