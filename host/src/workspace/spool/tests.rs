// SPDX-License-Identifier: Apache-2.0
//! Reports of hostile guests: nothing leaves the spool, nothing is unbounded, every fault has its name.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::super::fixture::{Fixture, entry, file, guest_file, tree};
use super::*;

fn spool(limits: SpoolLimits) -> (Spool, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Spool::create(&dir.path().join("spool"), limits).unwrap(), dir)
}

#[test]
fn paths_that_lead_out_are_refused_and_shown_harmlessly() {
    for path in [&b"../x"[..], b"/etc/passwd", b"a/../../x", b"a//b", b"", b"a\0", b".", b"x/"] {
        let (mut spool, _dir) = spool(SpoolLimits::default());
        let error = spool.entry(&entry(path, GuestKind::Dir)).unwrap_err();
        assert!(matches!(error, SpoolError::Path { .. }) && error.is_guest_fault(), "{path:?}");
    }
    let (mut spool, _dir) = spool(SpoolLimits::default());
    let text = spool.entry(&entry(b"\x1b[2J/../a", GuestKind::Dir)).unwrap_err().to_string();
    assert!(!text.contains('\x1b'), "{text:?}");
    let long = spool.entry(&entry(&b"n/".repeat(10_000), GuestKind::Dir)).unwrap_err().to_string();
    assert!(long.len() < 500, "a long path is not repeated whole");
}

#[test]
fn data_must_be_exactly_what_was_announced() {
    let announced = |size| GuestEntry { size, ..entry(b"f", GuestKind::File) };
    let (mut spool1, _dir) = spool(SpoolLimits::default());
    assert!(matches!(spool1.data(b"x"), Err(SpoolError::Data { expected_bytes: 0, .. })), "data before any record");
    spool1.entry(&announced(3)).unwrap();
    spool1.data(b"12").unwrap();
    assert!(matches!(spool1.data(b"34"), Err(SpoolError::Data { len_bytes: 2, expected_bytes: 1 })));
    let missing = spool1.entry(&entry(b"g", GuestKind::Dir)).unwrap_err();
    assert!(matches!(missing, SpoolError::Short { missing_bytes: 1, .. }));
    let (mut spool2, _dir) = spool(SpoolLimits::default());
    spool2.entry(&entry(b"d", GuestKind::Dir)).unwrap();
    assert!(matches!(spool2.data(b"x"), Err(SpoolError::Data { .. })), "data after a directory");
    spool2.data(b"").unwrap();
    spool2.entry(&announced(2)).unwrap();
    let fixture = Fixture::new(&tree(&[]));
    assert!(matches!(spool2.finish(&fixture.manifest), Err(SpoolError::Short { missing_bytes: 2, .. })));
}

#[test]
fn records_and_bytes_are_bounded_before_anything_is_stored() {
    let (mut spool, dir) = spool(SpoolLimits { entries: 2, bytes: 10 });
    let announced = |path: &[u8], size| GuestEntry { size, ..entry(path, GuestKind::File) };
    assert!(matches!(spool.entry(&announced(b"a", 11)), Err(SpoolError::Limit { limit: 10, .. })));
    assert_eq!(std::fs::read_dir(dir.path().join("spool")).unwrap().count(), 0);
    let (mut spool, _dir) = super::tests::spool(SpoolLimits { entries: 2, bytes: 10 });
    spool.entry(&announced(b"a", 0)).unwrap();
    spool.entry(&announced(b"a", 10)).unwrap();
    spool.data(&[0; 10]).unwrap();
    assert!(matches!(spool.entry(&entry(b"b", GuestKind::Dir)), Err(SpoolError::Limit { limit: 2, .. })));
    let (mut spool, _dir) = super::tests::spool(SpoolLimits { entries: 9, bytes: u64::MAX });
    let missing = spool.entry(&announced(b"a", u64::MAX)).and_then(|()| spool.entry(&announced(b"b", u64::MAX)));
    assert!(matches!(missing, Err(SpoolError::Short { .. })), "sizes do not wrap around: {missing:?}");
}

#[test]
fn link_targets_are_bounded() {
    for (len, good) in [(0, false), (1, true), (4095, true), (4096, false)] {
        let (mut spool, _dir) = spool(SpoolLimits::default());
        let record = GuestEntry { target: vec![b't'; len], ..entry(b"l", GuestKind::Symlink) };
        assert_eq!(spool.entry(&record).is_ok(), good, "{len}");
    }
    let (mut spool, _dir) = spool(SpoolLimits::default());
    let record = GuestEntry { target: b"a\0b".to_vec(), ..entry(b"l", GuestKind::Symlink) };
    assert!(matches!(spool.entry(&record), Err(SpoolError::Target { .. })));
}

#[test]
fn of_several_records_for_a_path_the_last_counts() {
    let fixture = Fixture::new(&tree(&[("f", file("base"))]));
    let set = fixture.changes(&[guest_file("f", b"first"), guest_file("f", b"second"), guest_file("g", b"x")]);
    assert_eq!(set.read_after(&set.changes()[0], 100).unwrap(), b"second");
    assert_eq!(set.notes().counts()[&NoteKind::ReportedTwice], 1);
    assert_eq!(std::fs::read_dir(set.spool_path()).unwrap().count(), 2, "the first version is not kept");
}

#[test]
fn the_spool_is_private_and_goes_away_unless_kept() {
    let fixture = Fixture::new(&tree(&[]));
    let set = fixture.changes(&[guest_file("f", b"x")]);
    let path = set.spool_path().to_path_buf();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(path.join("data-0").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    drop(set);
    assert!(!path.exists());
    let set = fixture.changes(&[guest_file("f", b"x")]);
    let path = set.spool_path().to_path_buf();
    set.keep_spool();
    drop(set);
    assert!(path.join("data-0").exists());
}

#[test]
fn a_full_disk_is_the_hosts_fault_and_leaves_nothing() {
    let Some(disk) = crate::erofs::tests::SmallDisk::new("1m") else { return };
    let mut spool = Spool::create(&disk.path().join("spool"), SpoolLimits::default()).unwrap();
    spool.entry(&GuestEntry { size: 3 << 20, ..entry(b"f", GuestKind::File) }).unwrap();
    let error = (0..48).find_map(|_| spool.data(&[1; 1 << 16]).err()).expect("the disk has 1 MiB");
    assert!(!error.is_guest_fault() && error.to_string().contains("free space"), "{error}");
    drop(spool);
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
}

#[test]
fn names_of_the_guests_are_never_names_on_the_host() {
    let fixture = Fixture::new(&tree(&[]));
    let (mut odd, data) = guest_file("x", b"x");
    odd.path = b"data-1/data-0".to_vec();
    let set = fixture.changes(&[guest_file("data-0", b"y"), (odd, data), guest_file("kept", b"z")]);
    let mut names: Vec<_> =
        std::fs::read_dir(set.spool_path()).unwrap().map(|found| found.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["data-0", "data-1", "data-2"]);
    assert_eq!(set.read_after(&set.changes()[0], 10).unwrap(), b"y");
}

#[test]
fn a_spool_directory_that_exists_is_not_reused() {
    let dir = tempfile::tempdir().unwrap();
    let error = Spool::create(dir.path(), SpoolLimits::default()).unwrap_err();
    assert!(matches!(error, SpoolError::Write { .. }) && !error.is_guest_fault());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a guest reports, the spool holds only numbered files, and what comes out is about paths in the tree.
    #[test]
    fn no_report_escapes_the_spool(
        records in proptest::collection::vec(("[a./\0]{0,6}", 0u8..6, 0u64..20, 0usize..20), 0..30)
    ) {
        let fixture = Fixture::new(&tree(&[("a/a", file("x")), ("aa", file("y"))]));
        let dir = fixture.dir.path().join("reports");
        let mut spool = Spool::create(&dir, SpoolLimits { entries: 25, bytes: 200 }).unwrap();
        let mut failed = false;
        for (path, kind, size, sent) in &records {
            let kinds = [GuestKind::Whiteout, GuestKind::OpaqueDir, GuestKind::Dir, GuestKind::File, GuestKind::Symlink, GuestKind::Special];
            let record = GuestEntry {
                path: path.clone().into_bytes(),
                kind: kinds[usize::from(*kind)],
                mode: u32::MAX,
                size: *size,
                target: b"t".repeat(*sent),
            };
            failed = spool.entry(&record).is_err() || spool.data(&vec![0; *sent]).is_err();
            if failed {
                break;
            }
        }
        for found in std::fs::read_dir(&dir).unwrap() {
            let found = found.unwrap();
            prop_assert!(found.file_name().to_str().unwrap().starts_with("data-"));
        }
        if !failed && let Ok(set) = spool.finish(&fixture.manifest) {
            for change in set.changes() {
                prop_assert!(RelPath::parse(change.path.as_bytes()).is_ok());
                prop_assert!(change.after.as_ref().is_none_or(|after| after.mode <= 0o1777));
            }
        }
    }
}
