// SPDX-License-Identifier: Apache-2.0
//! Any file as a kernel, any amount of RAM: what is accepted lies in the file and in RAM.
//!
//! `./dev fuzz 60 kernel`. Input: end of RAM in MiB (2 bytes), then the file.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use midge_vmm::boot::kernel::{Source, parse};
use midge_vmm::boot::layout::{HIGH_RAM, IDENTITY_MAPPED_END};

struct Bytes<'a>(&'a [u8]);

impl Source for Bytes<'_> {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.0.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((mib, file)) = data.split_first_chunk::<2>() else { return };
    let ram_end = u64::from(u16::from_le_bytes(*mib)) << 20;
    let Ok(image) = parse(&Bytes(file), ram_end) else { return };
    let mut free_from = HIGH_RAM.start;
    for segment in &image.segments {
        assert!(segment.start >= free_from);
        assert!(segment.file_len <= segment.mem_len);
        assert!(segment.file_offset + segment.file_len <= file.len() as u64);
        free_from = segment.start + segment.mem_len;
    }
    assert!(free_from <= ram_end.min(IDENTITY_MAPPED_END));
    assert!(image.segments.iter().any(|s| (s.start..s.start + s.mem_len).contains(&image.entry)));
    assert!(image.setup_header.is_none_or(|header| header.len() <= 0x290 - 0x1f1));
});
