// SPDX-License-Identifier: Apache-2.0
//! The overlay in a file: against the model, across reopening, crashes and full disks.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::power_cut::CutFile;
use super::*;
use crate::dice::Dice;
use crate::disk::model::{Model, Op, any_op, base_content, base_of, content, run, step};

const LEN: usize = 20 * 4096 + 1536;
const CAP: u64 = 16 * 4096;

fn base() -> Box<dyn Disk> {
    Box::new(base_of(base_content(LEN)))
}

fn write(at: usize, len: usize, fill: u8) -> Op {
    Op::Write { at, len, fill, cut: usize::MAX }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn overlay_agrees_with_the_model_and_survives_reopening(
        rounds in prop::collection::vec(prop::collection::vec(any_op(LEN), 1..20), 1..4),
    ) {
        let file = tempfile::tempfile().unwrap();
        let mut model = Model::new(&base_content(LEN), usize::try_from(CAP).unwrap());
        for ops in rounds {
            let mut disk = Overlay::in_backing(base(), file.try_clone().unwrap(), CAP).unwrap();
            prop_assert_eq!(disk.used_bytes(), model.used_bytes() as u64);
            for op in &ops {
                step(&mut disk, &mut model, op)?;
            }
            prop_assert!(content(&mut disk) == model.bytes);
            disk.flush().unwrap();
        }
    }

    /// A crash between any two file operations leaves the last flush or later writes over it.
    #[test]
    fn crash_leaves_nothing_that_was_never_written(
        ops in prop::collection::vec(any_op(LEN), 1..30),
        operations in 0_u32..150,
        seed in any::<u64>(),
    ) {
        let file = CutFile::default();
        let mut disk = Overlay::in_backing(base(), file.clone(), CAP).unwrap();
        let mut model = Model::new(&base_content(LEN), usize::try_from(CAP).unwrap());
        file.fail_after(Some(operations));
        for op in &ops {
            let before = model.clone();
            model.apply(op);
            match run(&mut disk, op) {
                Ok(_) | Err(DiskError::NoSpace { .. }) => {}
                Err(_) => {
                    // A flush that failed has promised nothing.
                    if matches!(op, Op::Flush) {
                        model = before;
                    }
                    break;
                }
            }
        }
        let mut found = Overlay::in_backing(base(), file.cut(&mut Dice(seed)), CAP).unwrap();
        prop_assert_eq!(model.impossible(&content(&mut found)), None);
    }
}

#[test]
fn flush_makes_data_durable_before_the_map() {
    let file = CutFile::default();
    let mut disk = Overlay::in_backing(base(), file.clone(), CAP).unwrap();
    run(&mut disk, &write(0, 4096, 5)).unwrap();
    // Sync of the data, then the map, and the crash before its sync; its sector arrives or not.
    file.fail_after(Some(2));
    assert!(disk.flush().is_err());
    let mut arrived = 0;
    for seed in 0..64 {
        let mut found = Overlay::in_backing(base(), file.cut(&mut Dice(seed)), CAP).unwrap();
        if found.used_bytes() == 0 {
            assert!(content(&mut found) == base_content(LEN), "seed {seed}");
        } else {
            assert_eq!(content(&mut found)[..512], [5; 512], "seed {seed}");
            arrived += 1;
        }
    }
    assert!((1..64).contains(&arrived), "both were seen: {arrived} of 64");
}

#[test]
fn flush_that_failed_once_fails_for_ever() {
    let file = CutFile::default();
    let mut disk = Overlay::in_backing(base(), file.clone(), CAP).unwrap();
    file.fail_after(Some(0));
    assert!(disk.flush().is_err());
    file.fail_after(None);
    assert!(disk.flush().is_err(), "the host may have dropped what it could not write");
    assert!(content(&mut disk) == base_content(LEN), "reading goes on");
}

#[test]
fn full_host_disk_fails_the_request_only() {
    let file = CutFile::default();
    let mut disk = Overlay::in_backing(base(), file.clone(), CAP).unwrap();
    run(&mut disk, &write(0, 4096, 5)).unwrap();
    let before = content(&mut disk);
    file.0.lock().unwrap().full = true;
    for op in [write(4096, 8192, 6), write(5000, 10, 6)] {
        assert!(matches!(run(&mut disk, &op), Err(DiskError::Io { .. })));
        assert!(content(&mut disk) == before);
    }
    file.0.lock().unwrap().full = false;
    run(&mut disk, &write(4096, 8192, 6)).unwrap();
}

#[test]
fn discard_gives_the_blocks_back() {
    let file = tempfile::tempfile().unwrap();
    let mut disk = Overlay::in_file(base(), file.try_clone().unwrap(), CAP).unwrap();
    run(&mut disk, &write(0, 16 * 4096, 5)).unwrap();
    disk.flush().unwrap();
    let full = file.metadata().unwrap().blocks();
    run(&mut disk, &Op::Discard { at: 0, len: 16 * 4096 }).unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.used_bytes(), 0);
    assert!(file.metadata().unwrap().blocks() + 16 * 8 <= full, "the file is sparse again");
}

#[test]
fn overlay_is_locked_while_it_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("overlay");
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    let first = Overlay::in_file(base(), open(), CAP).unwrap();
    assert!(matches!(Overlay::in_file(base(), open(), CAP), Err(OpenError::InUse)));
    drop(first);
    assert!(Overlay::in_file(base(), open(), CAP).is_ok());
}

#[test]
fn another_base_or_a_damaged_file_is_refused() {
    let file = tempfile::tempfile().unwrap();
    drop(Overlay::in_backing(base(), file.try_clone().unwrap(), CAP).unwrap());
    let open = |base: Box<dyn Disk>| Overlay::in_backing(base, file.try_clone().unwrap(), CAP).map(|_| ());
    let mut other = base_content(LEN);
    other[1080] ^= 1;
    assert!(matches!(open(Box::new(base_of(other))), Err(OpenError::OtherBase)));
    assert!(matches!(open(Box::new(base_of(base_content(LEN - 512)))), Err(OpenError::OtherBase)));
    let longer = Box::new(base_of(base_content(LEN + 40960)));
    assert!(matches!(open(longer), Err(OpenError::Format { .. })));
    assert!(open(base()).is_ok());
    for (at, what) in [(0, "magic"), (9, "version"), (33, "checksum"), (4096, "map"), (4096 + 4095, "map end")] {
        let mut byte = [0];
        let mut handle = &file;
        handle.seek(SeekFrom::Start(at)).unwrap();
        handle.read_exact(&mut byte).unwrap();
        handle.seek(SeekFrom::Start(at)).unwrap();
        handle.write_all(&[byte[0] | 0xc3]).unwrap();
        assert!(matches!(open(base()), Err(OpenError::Format { .. })), "{what}");
        handle.seek(SeekFrom::Start(at)).unwrap();
        handle.write_all(&byte).unwrap();
    }
    file.set_len(8192).unwrap();
    assert!(matches!(open(base()), Err(OpenError::Format { .. })));
}

#[test]
fn any_content_of_an_existing_file_is_survived() {
    for len in [1_usize, 40, 4096, 8192, 8192 + LEN, 20 * 4096 + 4096 * 4] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&base_content(len)).unwrap();
        assert!(Overlay::in_backing(base(), file, CAP).is_err());
    }
}
