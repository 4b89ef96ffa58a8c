// SPDX-License-Identifier: Apache-2.0
//! Base images: lengths, ranges, and files that change under us.

use std::io::Write;

use super::*;
use crate::disk::model::{Op, base_content, run};

fn image(len: usize) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&base_content(len)).unwrap();
    file
}

#[test]
fn length_is_a_positive_number_of_sectors() {
    for (len, fits) in [(0, false), (1, false), (511, false), (512, true), (513, false), (4096 + 512, true)] {
        match Base::new(image(len)) {
            Ok(base) => assert!(fits && base.len_bytes() == len as u64),
            Err(OpenError::Length { len: found }) => assert!(!fits && found == len as u64),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn reads_any_bytes_in_any_cut() {
    let content = base_content(64 * 1024);
    let mut base = Base::new(image(content.len())).unwrap();
    for (at, len, cut) in [(0, 65536, usize::MAX), (1, 5000, 7), (65535, 1, 1), (4095, 2, 1), (100, 0, 1)] {
        let read = run(&mut base, &Op::Read { at, len, cut }).unwrap();
        assert_eq!(read, &content[at..at + len], "{len} bytes at {at}");
    }
}

#[test]
fn ranges_outside_are_refused() {
    let mut base = Base::new(image(1024)).unwrap();
    for (offset, len) in [(1024, 1), (1023, 2), (0, 1025), (u64::MAX, 1), (u64::MAX - 1, 2)] {
        let mut memory = vec![0; len];
        let refused = base.read_at(offset, &[VolatileSlice::from(&mut memory[..])]);
        assert!(matches!(refused, Err(DiskError::Range { .. })), "{len} bytes at {offset}");
    }
}

#[test]
fn file_that_shrinks_is_an_error_of_the_request_only() {
    let file = image(8192);
    let mut base = Base::new(file.try_clone().unwrap()).unwrap();
    file.set_len(4096 + 100).unwrap();
    let cut = usize::MAX;
    let refused = run(&mut base, &Op::Read { at: 4096, len: 512, cut });
    assert!(matches!(refused, Err(DiskError::Shrunk { offset: 4196 })));
    assert!(run(&mut base, &Op::Read { at: 0, len: 4096, cut }).is_ok());
    file.set_len(8192).unwrap();
    assert!(run(&mut base, &Op::Read { at: 4096, len: 512, cut }).is_ok(), "the disk goes on serving");
}

#[test]
fn nothing_can_be_written() {
    let mut base = Base::new(image(4096)).unwrap();
    assert!(base.is_read_only());
    let ops = [
        Op::Write { at: 0, len: 512, fill: 1, cut: 512 },
        Op::Discard { at: 0, len: 4096 },
        Op::WriteZeroes { at: 0, len: 512, may_free: true },
    ];
    for op in ops {
        assert!(matches!(run(&mut base, &op), Err(DiskError::ReadOnly)));
    }
    assert!(base.flush().is_ok());
}
