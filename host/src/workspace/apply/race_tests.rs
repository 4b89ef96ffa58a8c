// SPDX-License-Identifier: Apache-2.0
//! Applying while the host, the disk or the permissions are against it: edits in the very moment of a step, a kill in the
//! middle, a full disk, a user who may not write, and a real repository.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::super::fixture::{Fixture, Item, Tree, file, guest_file, read, tree, upper, write as write_tree};
use super::*;
use crate::erofs::tests::SmallDisk;

/// Does something on the host right before the `nth` time of one step.
struct Meanwhile<F> {
    step: Step,
    nth: usize,
    act: Option<F>,
}

impl<F: FnOnce()> Steps for Meanwhile<F> {
    fn before(&mut self, step: Step) -> io::Result<()> {
        if step == self.step {
            if self.nth == 0
                && let Some(act) = self.act.take()
            {
                act();
            }
            self.nth = self.nth.saturating_sub(1);
        }
        Ok(())
    }
}

fn meanwhile(fixture: &Fixture, set: &ChangeSet, step: Step, act: impl FnOnce()) -> ApplyReport {
    let options = ApplyOptions {
        keep_in: Some(fixture.dir.path().join("kept")),
        allow_outside_links: true,
        ..ApplyOptions::default()
    };
    let mut steps = Meanwhile { step, nth: 0, act: Some(act) };
    let report = set.apply_with(&fixture.top, &options, &mut steps).unwrap();
    assert!(steps.act.is_none(), "{step:?} came");
    report
}

fn base() -> Tree {
    tree(&[("f", file("base")), ("d/g", file("two")), ("link", Item::Link("f".into()))])
}

#[test]
fn an_edit_right_before_the_rename_is_not_lost() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[guest_file("f", b"run")]);
    for step in [Step::CreateTemporary, Step::Copy, Step::SyncFile, Step::Rename] {
        std::fs::write(fixture.top.join("f"), "base").unwrap();
        let _ = std::fs::remove_dir_all(fixture.dir.path().join("kept"));
        let report = meanwhile(&fixture, &set, step, || std::fs::write(fixture.top.join("f"), "host edit").unwrap());
        assert_eq!(report.conflicts.len(), 1, "{step:?}: {report:?}");
        assert_eq!(report.conflicts[0].1, Conflict::Changed);
        assert_eq!(std::fs::read(fixture.top.join("f")).unwrap(), b"host edit", "{step:?}");
        assert_eq!(std::fs::read(report.kept_in.unwrap().join("f")).unwrap(), b"run");
    }
    assert_eq!(read(&fixture.top).len(), base().len(), "no temporary file is left");
}

#[test]
fn a_file_that_appears_right_before_the_rename_is_not_lost() {
    let fixture = Fixture::new(&base());
    let set = fixture.changes(&[guest_file("new", b"run")]);
    let report = meanwhile(&fixture, &set, Step::Rename, || std::fs::write(fixture.top.join("new"), "host").unwrap());
    assert_eq!(report.conflicts[0].1, Conflict::Appeared);
    assert_eq!(std::fs::read(fixture.top.join("new")).unwrap(), b"host");
}

#[test]
fn a_file_replaced_by_a_link_right_before_the_rename_does_not_lead_out() {
    let fixture = Fixture::new(&base());
    let outside = fixture.dir.path().join("outside");
    std::fs::write(&outside, "outside").unwrap();
    let set = fixture.changes(&[guest_file("f", b"run")]);
    let report = meanwhile(&fixture, &set, Step::Rename, || {
        std::fs::remove_file(fixture.top.join("f")).unwrap();
        symlink(&outside, fixture.top.join("f")).unwrap();
    });
    assert_eq!(report.conflicts[0].1, Conflict::Changed);
    assert_eq!(std::fs::read(&outside).unwrap(), b"outside");
}

#[test]
fn a_directory_moved_away_and_replaced_by_a_link_while_a_file_is_written_does_not_lead_out() {
    let fixture = Fixture::new(&base());
    let outside = fixture.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("g"), "two").unwrap();
    let set = fixture.changes(&[guest_file("d/g", b"run"), guest_file("d/new", b"run")]);
    meanwhile(&fixture, &set, Step::Copy, || {
        std::fs::rename(fixture.top.join("d"), fixture.top.join("moved")).unwrap();
        symlink(&outside, fixture.top.join("d")).unwrap();
    });
    let found = read(&outside);
    assert_eq!(found, tree(&[("g", file("two"))]), "whatever became of the change, nothing came here");
}

#[test]
fn a_file_edited_right_before_it_is_deleted_stays() {
    let fixture = Fixture::new(&base());
    let after: Tree = base().into_iter().filter(|(path, _)| path != "f").collect();
    let set = fixture.changes(&upper(&base(), &after));
    let report =
        meanwhile(&fixture, &set, Step::Unlink, || std::fs::write(fixture.top.join("f"), "host edit").unwrap());
    assert_eq!(report.conflicts.len(), 1);
    assert_eq!(std::fs::read(fixture.top.join("f")).unwrap(), b"host edit");
}

#[test]
fn a_file_replaced_right_before_its_mode_is_set_keeps_its_mode() {
    let fixture = Fixture::new(&base());
    let mut after = base();
    after.insert("f".into(), Item::File(0o755, b"base".to_vec()));
    let set = fixture.changes(&upper(&base(), &after));
    let report = meanwhile(&fixture, &set, Step::SetMode, || {
        std::fs::write(fixture.top.join("other"), "other").unwrap();
        std::fs::set_permissions(fixture.top.join("other"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(fixture.top.join("other"), fixture.top.join("f")).unwrap();
    });
    assert_eq!(report.conflicts[0].1, Conflict::Changed);
    assert_eq!(fixture.top.join("f").metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn modes_of_entries_that_cannot_be_opened_are_set() {
    let before = tree(&[("closed", Item::File(0o000, b"x".to_vec())), ("d", Item::Dir(0o755))]);
    let mut after = before.clone();
    after.insert("closed".into(), Item::File(0o400, b"x".to_vec()));
    after.insert("d".into(), Item::Dir(0o500));
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: packing an unreadable file needs root");
        return;
    }
    let fixture = Fixture::new(&before);
    let set = fixture.changes(&upper(&before, &after));
    assert!(set.apply(&fixture.top, &ApplyOptions::default()).unwrap().is_complete());
    assert_eq!(read(&fixture.top), after);
}

#[test]
fn a_full_disk_fails_that_file_and_keeps_the_old_one() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let before = tree(&[("large", file("old")), ("small", file("old"))]);
    let fixture = Fixture::new(&before);
    let set = fixture.changes(&[guest_file("large", &vec![1; 2 << 20]), guest_file("small", b"new")]);
    let top = disk.path().join("tree");
    write_tree(&before, &top);
    let keep_in = Some(fixture.dir.path().join("kept"));
    let report = set.apply(&top, &ApplyOptions { keep_in, ..ApplyOptions::default() }).unwrap();
    assert_eq!(report.failed.len(), 1);
    assert!(report.failed[0].1.contains("No space left"), "{report:?}");
    assert_eq!(read(&top), tree(&[("large", file("old")), ("small", file("new"))]));
    assert_eq!(report.kept_in.unwrap().join("large").metadata().unwrap().len(), 2 << 20);
}

#[test]
fn a_directory_that_may_not_be_written_fails_and_the_rest_is_applied() {
    let before = tree(&[("closed/f", file("old")), ("open/f", file("old"))]);
    let fixture = Fixture::new(&before);
    let set = fixture.changes(&[guest_file("closed/f", b"new"), guest_file("open/f", b"new")]);
    std::fs::set_permissions(fixture.dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let report = if nix::unistd::geteuid().is_root() {
        let spool = set.spool_path();
        for (path, uid) in
            [(fixture.top.join("open"), 65_534), (fixture.top.join("open/f"), 65_534), (spool.into(), 65_534)]
        {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
        for number in 0..2 {
            std::os::unix::fs::chown(spool.join(format!("data-{number}")), Some(65_534), Some(65_534)).unwrap();
        }
        // Another file system user, for this thread only; the kernel takes the overriding capabilities with it.
        std::thread::scope(|scope| {
            let apply = || {
                nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
                let keep_in = Some(fixture.dir.path().join("kept"));
                set.apply(&fixture.top, &ApplyOptions { keep_in, ..ApplyOptions::default() }).unwrap()
            };
            scope.spawn(apply).join().unwrap()
        })
    } else {
        std::fs::set_permissions(fixture.top.join("closed"), std::fs::Permissions::from_mode(0o555)).unwrap();
        let keep_in = Some(fixture.dir.path().join("kept"));
        set.apply(&fixture.top, &ApplyOptions { keep_in, ..ApplyOptions::default() }).unwrap()
    };
    assert_eq!(report.failed.len(), 1, "{report:?}");
    assert_eq!(report.failed[0].0.to_string(), "closed/f");
    assert!(report.failed[0].1.contains("ermission denied"), "{report:?}");
    assert_eq!(std::fs::read(fixture.top.join("closed/f")).unwrap(), b"old");
    assert_eq!(std::fs::read(fixture.top.join("open/f")).unwrap(), b"new");
}

#[test]
fn a_name_as_long_as_names_can_be_is_applied() {
    let name = "n".repeat(255);
    let fixture = Fixture::new(&tree(&[(&name, file("old"))]));
    let set = fixture.changes(&[guest_file(&name, b"new")]);
    assert!(set.apply(&fixture.top, &ApplyOptions::default()).unwrap().is_complete());
    assert_eq!(std::fs::read(fixture.top.join(name)).unwrap(), b"new");
}

/// Set for the child of [`a_kill_at_any_step_leaves_each_file_old_or_new`]: directory of the fixture, and the step to die at.
const CHILD: &str = "MIDGE_TEST_APPLY_CHILD";

struct KillAt(usize);

impl Steps for KillAt {
    fn before(&mut self, _: Step) -> io::Result<()> {
        if self.0 == 0 {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)?;
        }
        self.0 -= 1;
        Ok(())
    }
}

fn large_edit() -> (Tree, Tree) {
    let data = |byte| Item::File(0o644, vec![byte; 300_000]);
    let before = tree(&[("a", data(1)), ("b/c", data(2)), ("gone", data(3))]);
    let after = tree(&[("a", data(4)), ("b/c", data(5)), ("b/new", data(6))]);
    (before, after)
}

#[test]
fn a_kill_at_any_step_leaves_each_file_old_or_new() {
    let (before, after) = large_edit();
    if let Some(order) = std::env::var_os(CHILD) {
        let order = order.to_str().unwrap().to_owned();
        let (top, step) = order.rsplit_once(':').unwrap();
        let fixture = Fixture::new(&before);
        let set = fixture.changes(&upper(&before, &after));
        set.apply_with(Path::new(top), &ApplyOptions::default(), &mut KillAt(step.parse().unwrap())).unwrap();
        return;
    }
    let test = "workspace::apply::race_tests::a_kill_at_any_step_leaves_each_file_old_or_new";
    for step in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("tree");
        write_tree(&before, &top);
        let order = format!("{}:{step}", top.display());
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", test]).env(CHILD, order).env("TMPDIR", dir.path()).output().unwrap();
        let found = read(&top);
        for (path, item) in found.iter().filter(|(path, _)| !path.contains(".midge-")) {
            let same = before.get(path) == Some(item) || after.get(path) == Some(item);
            assert!(same, "step {step}: {path} is neither old nor new");
        }
        if output.status.success() {
            assert!(step > 15, "{step} steps: {}", String::from_utf8_lossy(&output.stdout));
            assert_eq!(found, after);
            break;
        }
        for path in ["a", "b/c"] {
            assert!(found.contains_key(path), "step {step}: {path} is there, old or new");
        }
    }
}

#[test]
fn a_commit_made_in_the_sandbox_is_a_sound_commit_on_the_host() {
    let git = |dir: &Path, args: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "core.hooksPath=/dev/null"]);
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        let output = git.args(args).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    if Command::new("git").arg("--version").output().is_err() {
        println!("skipped: git is not installed");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let guest = scratch.path().join("guest");
    write_tree(&tree(&[("src/a", file("one\n")), ("b", file("two\n"))]), &guest);
    git(&guest, &["init", "-q", "-b", "main"]);
    git(&guest, &["add", "."]);
    git(&guest, &["commit", "-q", "-m", "first"]);
    let before = read(&guest);
    let fixture = Fixture::new(&before);
    std::fs::write(guest.join("src/a"), "changed\n").unwrap();
    std::fs::write(guest.join("src/new"), "new\n").unwrap();
    git(&guest, &["add", "."]);
    git(&guest, &["commit", "-q", "-m", "second"]);
    git(&guest, &["switch", "-q", "-c", "side"]);
    git(&guest, &["gc", "-q"]);
    git(&guest, &["config", "core.fsmonitor", "evil"]);
    std::fs::write(guest.join(".git/hooks/post-commit"), "#!/bin/sh\nevil\n").unwrap();
    let set = fixture.changes(&upper(&before, &read(&guest)));
    let keep_in = Some(fixture.dir.path().join("kept"));
    let report = set.apply(&fixture.top, &ApplyOptions { keep_in, ..ApplyOptions::default() }).unwrap();
    let refused: Vec<String> = report.refused.iter().map(|(path, _)| path.to_string()).collect();
    assert_eq!(refused, [".git/config", ".git/hooks/post-commit"]);
    assert_eq!((report.conflicts, report.failed), (vec![], vec![]));
    git(&fixture.top, &["fsck", "--strict"]);
    assert_eq!(git(&fixture.top, &["status", "--porcelain"]), "");
    assert_eq!(git(&fixture.top, &["log", "--format=%s", "side"]), "second\nfirst\n");
    assert!(!std::fs::read_to_string(fixture.top.join(".git/config")).unwrap().contains("evil"));
}
