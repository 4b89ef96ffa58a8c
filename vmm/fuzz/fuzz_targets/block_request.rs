// SPDX-License-Identifier: Apache-2.0
//! Any header, any lengths, any disk: an accepted request lies on the disk.
//!
//! `./dev fuzz 60 block_request`. Input: flags (1 byte), sectors of the disk
//! (8), bytes given (4) and wanted (4), then the header (16) and a range (16).
#![no_main]

use libfuzzer_sys::fuzz_target;
use midge_vmm::block::request::{Limits, Request, parse, parse_range};

fn take<const N: usize>(data: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = data.split_first_chunk::<N>()?;
    *data = tail;
    Some(*head)
}

fn run(mut data: &[u8]) -> Option<()> {
    let [flags] = take(&mut data)?;
    // A disk's length in bytes fits an off_t.
    let sectors = u64::from_le_bytes(take(&mut data)?) % (i64::MAX as u64 / 512);
    let given = u32::from_le_bytes(take(&mut data)?);
    let wanted = u32::from_le_bytes(take(&mut data)?);
    let limits = Limits { sectors, read_only: flags & 1 != 0, discard: flags & 2 != 0, write_zeroes: flags & 4 != 0 };
    let disk_len = sectors * 512;
    match parse(take(&mut data)?, given as usize, wanted as usize, &limits) {
        Ok(Request::Read { offset }) => assert!(offset + u64::from(wanted) <= disk_len && wanted % 512 == 0),
        Ok(Request::Write { offset }) => {
            assert!(!limits.read_only && offset + u64::from(given) <= disk_len && given % 512 == 0);
        }
        Ok(Request::Discard) => assert!(limits.discard && given <= 256),
        Ok(Request::WriteZeroes) => assert!(limits.write_zeroes && given <= 256),
        Ok(Request::Flush | Request::GetId) | Err(_) => {}
    }
    if let Ok(range) = parse_range(take(&mut data)?, flags & 8 != 0, &limits) {
        assert!(range.offset + range.len <= disk_len && range.len <= 1 << 31);
    }
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let _ = run(data);
});
