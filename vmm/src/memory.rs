// SPDX-License-Identifier: Apache-2.0
//! Guest memory: where it lies in guest-physical space and how the host holds it.
//!
//! One private mapping, anonymous or of a snapshot's file, aligned to 2 MiB so that the host can use huge pages for it
//! (facts: a boot takes 334 page-fault exits with them, 4,515 without), cut into at most two
//! regions around the MMIO gap below 4 GiB. It is written here only to copy a snapshot, and never unmapped: it
//! lives as long as the process, which is one VM. What the guest has no use for goes back to the
//! host page by page ([`discard`]), what it will write soon is copied beforehand ([`populate`]).
#![expect(unsafe_code, reason = "mmap and madvise of guest memory, before anyone refers to it")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

/// The guest's RAM as every part of the monitor sees it; clones are cheap and share one mapping.
pub type GuestRam = GuestMemoryMmap<()>;

/// First guest-physical address that is never RAM: devices answer from here to 4 GiB.
pub const MMIO_GAP_START: u64 = 0xc000_0000;
/// First guest-physical address above the MMIO gap.
pub const MMIO_GAP_END: u64 = 0x1_0000_0000;

/// Size and alignment of a huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Size of the pages that memory is discarded in.
const PAGE_BYTES: u64 = 4096;
/// Most ranges that are discarded by one order.
pub const DISCARD_RANGES_MAX: usize = 2048;

/// Why memory was not discarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscardError {
    /// More ranges than an order may have.
    #[error("discarding memory: {count} ranges, at most {DISCARD_RANGES_MAX} are accepted")]
    TooMany {
        /// How many came.
        count: usize,
    },
    /// Not whole pages of one region of guest memory. Nothing was discarded.
    #[error("discarding memory: {len_bytes} bytes at {start:#x} are not whole pages of guest memory")]
    Range {
        /// Guest-physical address.
        start: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// The host refused one range; those before it are discarded.
    #[error("discarding {len_bytes} bytes of memory at {start:#x}: the host refused (errno {errno})")]
    Host {
        /// Guest-physical address.
        start: u64,
        /// Length in bytes.
        len_bytes: u64,
        /// The kernel's error number.
        errno: i32,
    },
}

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("mapping {len_bytes} bytes of guest memory failed; give the VM less memory or free some")]
    Map {
        /// Bytes asked for.
        len_bytes: u64,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The file of a snapshot's memory has another length.
    #[error(
        "mapping guest memory: its file has {found} bytes, the VM {len_bytes}; it was not written for this state or was cut short"
    )]
    File {
        /// Bytes in the file.
        found: u64,
        /// Bytes of guest memory.
        len_bytes: u64,
    },
    /// The regions do not form a guest address space.
    #[error("guest memory of {len_bytes} bytes does not fit the guest's address space")]
    Layout {
        /// Bytes asked for.
        len_bytes: u64,
    },
}

/// Guest-physical ranges of RAM (start, length in bytes), ascending, for `len_bytes` of memory.
pub fn ranges(len_bytes: u64) -> Vec<(u64, u64)> {
    if len_bytes <= MMIO_GAP_START {
        return vec![(0, len_bytes)];
    }
    vec![(0, MMIO_GAP_START), (MMIO_GAP_END, len_bytes - MMIO_GAP_START)]
}

/// Maps `len_bytes` of zeroed guest memory.
///
/// # Errors
/// [`MemoryError::Map`] when the host has not that much address space or commit charge.
pub fn allocate(len_bytes: u64, huge_pages: bool) -> Result<GuestRam, MemoryError> {
    let len = usize::try_from(len_bytes).map_err(|_| MemoryError::Layout { len_bytes })?;
    let base = map_aligned(len).map_err(|source| MemoryError::Map { len_bytes, source })?;
    if huge_pages {
        // SAFETY: the range was mapped just now and is ours; the advice changes no content.
        // A host without transparent huge pages refuses it and the VM is only slower.
        let _ = unsafe { libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE) };
    }
    regions(base, len_bytes)
}

/// Maps `len_bytes` of guest memory from a file that a snapshot wrote: pages are read when they
/// are touched and copied when they are changed; the file is never written. What is not touched
/// is shared with everybody who maps it.
///
/// # Errors
/// [`MemoryError::File`] when the file is not that long, [`MemoryError::Map`].
pub fn map_file(file: &File, len_bytes: u64) -> Result<GuestRam, MemoryError> {
    let map = |source| MemoryError::Map { len_bytes, source };
    check_length(file, len_bytes)?;
    let len = usize::try_from(len_bytes).map_err(|_| MemoryError::Layout { len_bytes })?;
    let base = map_aligned(len).map_err(map)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: replaces the mapping made just now, of this length, which nobody refers to yet.
    let mapped = unsafe { libc::mmap(base.cast(), len, prot, flags, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED {
        return Err(map(io::Error::last_os_error()));
    }
    regions(base, len_bytes)
}

/// Copies `len_bytes` of guest memory from such a file into huge pages; its holes are not read. For a process that is
/// forked again and again: its pages are mapped before the first fork, and one fault of a fork's guest maps 2 MiB.
///
/// # Errors
/// [`MemoryError::File`] when the file is not that long, [`MemoryError::Map`] when it cannot be read or there is no room.
pub fn copy_file(file: &File, len_bytes: u64) -> Result<GuestRam, MemoryError> {
    check_length(file, len_bytes)?;
    let ram = allocate(len_bytes, true)?;
    let mut before = 0;
    for (start, len) in ranges(len_bytes) {
        read_data(file, before, &ram, start, len).map_err(|source| MemoryError::Map { len_bytes, source })?;
        before += len;
    }
    Ok(ram)
}

/// Reads `len` bytes from `offset` of `file` to `start` in guest memory, but for its holes.
fn read_data(mut file: &File, offset: u64, ram: &GuestRam, start: u64, len: u64) -> io::Result<()> {
    let end = offset + len;
    let mut at = offset;
    while at < end {
        at = match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // Nothing but a hole up to the end.
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let hole = seek(file, SeekFrom::Hole(at))?.min(end);
        seek(file, SeekFrom::Start(at))?;
        let count = usize::try_from(hole - at).map_err(io::Error::other)?;
        ram.read_exact_volatile_from(GuestAddress(start + (at - offset)), &mut file, count)
            .map_err(io::Error::other)?;
        at = hole;
    }
    Ok(())
}

fn check_length(file: &File, len_bytes: u64) -> Result<(), MemoryError> {
    let found = file.metadata().map_err(|source| MemoryError::Map { len_bytes, source })?.len();
    if found == len_bytes { Ok(()) } else { Err(MemoryError::File { found, len_bytes }) }
}

/// Drops the content of these guest-physical ranges (start, length in bytes), and gives their pages back to the host.
/// Returns how many bytes that were. The guest, which may be running, finds zeros there, or what the file holds that the
/// memory was mapped from: it must have said that it needs nothing of it. Whatever it said, it can only lose what is its own.
///
/// Afterwards the host no longer makes huge pages of this memory by itself: that would fill the gaps again.
///
/// # Errors
/// [`DiscardError`]; every range is checked before the first is discarded.
pub fn discard(ram: &GuestRam, ranges: &[(u64, u64)]) -> Result<u64, DiscardError> {
    if ranges.len() > DISCARD_RANGES_MAX {
        return Err(DiscardError::TooMany { count: ranges.len() });
    }
    let places = ranges.iter().map(|range| place(ram, *range)).collect::<Result<Vec<_>, _>>()?;
    for region in ram.iter() {
        // A host without transparent huge pages refuses it and makes none anyway.
        let _ = advise(region.as_ptr(), region.size(), libc::MADV_NOHUGEPAGE);
    }
    let mut bytes = 0;
    for ((at, len), (start, len_bytes)) in places.into_iter().zip(ranges) {
        advise(at, len, libc::MADV_DONTNEED).map_err(|error| DiscardError::Host {
            start: *start,
            len_bytes: *len_bytes,
            errno: error.raw_os_error().unwrap_or(0),
        })?;
        bytes += len_bytes;
    }
    Ok(bytes)
}

/// Has the host copy the pages of these ranges now that will be written to soon, so that the guest does not leave for each
/// of them. An advice: a host that cannot (before Linux 5.14, or for want of memory) copies them one by one as ever, and
/// what is no guest memory is left out.
pub fn populate(ram: &GuestRam, ranges: &[(u64, u64)]) {
    for (at, len) in ranges.iter().filter_map(|range| place(ram, *range).ok()) {
        if advise(at, len, libc::MADV_POPULATE_WRITE).is_err() {
            return;
        }
    }
}

/// The runs of pages whose bits are set, the lowest bit first: offset and length in bytes.
pub fn runs(bits: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    let is_set = |page: u64| bits.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1);
    let end = 64 * bits.len() as u64;
    let mut page = 0;
    std::iter::from_fn(move || {
        let first = (page..end).find(|page| is_set(*page))?;
        page = (first..end).find(|page| !is_set(*page)).unwrap_or(end);
        Some((first * PAGE_BYTES, (page - first) * PAGE_BYTES))
    })
}

/// The first of these ranges that is not whole pages of guest memory.
pub fn find_outside(ram: &GuestRam, ranges: &[(u64, u64)]) -> Option<(u64, u64)> {
    ranges.iter().find(|range| place(ram, **range).is_err()).copied()
}

/// Where a range that the guest has named lies, if it is whole pages of one region.
fn place(ram: &GuestRam, (start, len_bytes): (u64, u64)) -> Result<(*mut u8, usize), DiscardError> {
    let refused = || DiscardError::Range { start, len_bytes };
    let is_pages = start.is_multiple_of(PAGE_BYTES) && len_bytes.is_multiple_of(PAGE_BYTES) && len_bytes > 0;
    let len = usize::try_from(len_bytes).ok().filter(|_| is_pages).ok_or_else(refused)?;
    let slice = ram.get_slice(GuestAddress(start), len).map_err(|_| refused())?;
    Ok((slice.ptr_guard_mut().as_ptr(), len))
}

/// Advises the host about a part of guest memory.
fn advise(at: *mut u8, len: usize, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: [at, at + len) is part of guest memory, which is mapped for good and read and written by nobody but by way
    // of volatile accesses, so content may change under them; pages that vanish come back when they are touched.
    match unsafe { libc::madvise(at.cast(), len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Cuts the mapping of `len_bytes` at `base` into the guest's regions.
fn regions(base: *mut u8, len_bytes: u64) -> Result<GuestRam, MemoryError> {
    let layout = || MemoryError::Layout { len_bytes };
    let mut regions = Vec::with_capacity(2);
    let mut taken = 0;
    for (start, region_len) in ranges(len_bytes) {
        let size = usize::try_from(region_len).map_err(|_| layout())?;
        // SAFETY: `taken` stays below the length of the mapping, so the pointer stays inside it.
        let at = unsafe { base.add(taken) };
        // SAFETY: [at, at + size) is part of the mapping, which is never unmapped, and no
        // other region covers it, as `taken` advances by `size`.
        let builder = unsafe { MmapRegionBuilder::new(size).with_raw_mmap_pointer(at) };
        let mapping = builder
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|_| layout())?;
        regions.push(GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or_else(layout)?);
        taken += size;
    }
    GuestRam::from_regions(regions).map_err(|_| layout())
}

/// Maps `len` zeroed bytes at a multiple of the huge page size; never unmapped.
fn map_aligned(len: usize) -> io::Result<*mut u8> {
    let padded = len.checked_add(HUGE_PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces nothing.
    let raw = unsafe { libc::mmap(std::ptr::null_mut(), padded, prot, flags, -1, 0) };
    if raw == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let skip = raw.align_offset(HUGE_PAGE_BYTES);
    // SAFETY: skip < HUGE_PAGE_BYTES, the amount by which the mapping is longer than `len`.
    Ok(unsafe { raw.cast::<u8>().add(skip) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_below_the_gap_is_one_range_and_above_it_two() {
        assert_eq!(ranges(32 << 20), [(0, 32 << 20)]);
        assert_eq!(ranges(MMIO_GAP_START), [(0, MMIO_GAP_START)]);
        assert_eq!(ranges(MMIO_GAP_START + 4096), [(0, MMIO_GAP_START), (MMIO_GAP_END, 4096)]);
        let total: u64 = ranges(7 << 30).iter().map(|r| r.1).sum();
        assert_eq!(total, 7 << 30);
    }

    #[test]
    fn both_regions_are_zeroed_aligned_and_apart() {
        let ram = allocate(MMIO_GAP_START + (4 << 20), true).unwrap();
        assert_eq!(ram.iter().count(), 2);
        for region in ram.iter() {
            assert_eq!(region.as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
        }
        let last_low = GuestAddress(MMIO_GAP_START - 8);
        let first_high = GuestAddress(MMIO_GAP_END);
        assert_eq!(ram.read_obj::<u64>(first_high).unwrap(), 0);
        ram.write_obj(0x1122_3344_5566_7788_u64, last_low).unwrap();
        assert_eq!(ram.read_obj::<u64>(first_high).unwrap(), 0);
        assert!(ram.write_obj(1_u8, GuestAddress(MMIO_GAP_START)).is_err());
        assert!(ram.write_obj(1_u8, GuestAddress(MMIO_GAP_END + (4 << 20))).is_err());
    }

    /// Every range of whole and half pages around memory with a hole: what is taken is whole pages of one region.
    #[test]
    fn every_range_is_whole_pages_of_memory_or_outside() {
        let regions = [(0, 4), (4, 2), (8, 2)];
        let places = regions.map(|(first, count)| (GuestAddress(first << 12), count << 12));
        let ram = GuestRam::from_ranges(&places).unwrap();
        for start in 0..=24_u64 {
            for len in 0..=24_u64 {
                let (first, count) = (start / 2, len / 2);
                let is_whole = start % 2 == 0 && len % 2 == 0 && len != 0;
                let inside =
                    regions.iter().any(|(from, pages)| first >= *from && first + count <= from + *pages as u64);
                let range = (start << 11, len << 11);
                assert_eq!(find_outside(&ram, &[range]).is_none(), is_whole && inside, "{range:x?}");
            }
            for range in [(start << 11, u64::MAX << 12), (u64::MAX << 12, start << 11), (start << 11, 1 << 63)] {
                assert_eq!(find_outside(&ram, &[range]), Some(range));
            }
        }
    }

    #[test]
    fn discarded_pages_are_zero_again_and_their_neighbours_as_they_were() {
        let ram = allocate(MMIO_GAP_START + (4 << 20), true).unwrap();
        let pages = [0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000, MMIO_GAP_END, MMIO_GAP_END + 0x1000];
        for page in pages {
            ram.write_obj(page | 1, GuestAddress(page + 8)).unwrap();
        }
        assert_eq!(discard(&ram, &[(0x10_1000, 0x2000), (MMIO_GAP_END, 0x1000)]), Ok(0x3000));
        let left = pages.map(|page| ram.read_obj::<u64>(GuestAddress(page + 8)).unwrap());
        assert_eq!(left, [0x10_0001, 0, 0, 0x10_3001, 0, (MMIO_GAP_END + 0x1000) | 1]);
        assert_eq!(discard(&ram, &[]), Ok(0));
    }

    #[test]
    fn runs_are_of_set_bits_and_cross_words() {
        assert_eq!(runs(&[]).count(), 0);
        assert_eq!(runs(&[0, 0]).count(), 0);
        assert_eq!(runs(&[u64::MAX, 1]).collect::<Vec<_>>(), [(0, 65 * 4096)]);
        let bits = [0b1011 | 1 << 63, 0b1, 1 << 63];
        let pages = [(0, 2), (3, 1), (63, 2), (191, 1)];
        assert_eq!(runs(&bits).collect::<Vec<_>>(), pages.map(|(first, count)| (first * 4096, count * 4096)));
    }

    /// Pages of ours, beside those that are shared, by `/proc/self/pagemap`.
    fn own_pages(ram: &GuestRam, pages: u64) -> Vec<bool> {
        use std::os::unix::fs::FileExt;
        let start = ram.iter().next().unwrap().as_ptr().addr() as u64;
        let map = File::open("/proc/self/pagemap").unwrap();
        (0..pages)
            .map(|page| {
                let mut entry = [0; 8];
                map.read_exact_at(&mut entry, (start / PAGE_BYTES + page) * 8).unwrap();
                let entry = u64::from_ne_bytes(entry);
                // Present, and no page of a file.
                entry >> 63 == 1 && entry >> 61 & 1 == 0
            })
            .collect()
    }

    #[test]
    fn what_is_populated_is_ours_before_it_is_touched_and_keeps_its_content() {
        use std::os::unix::fs::FileExt;
        let file = file_of(4 << 20);
        file.write_all_at(b"template", 0x2000).unwrap();
        let ram = map_file(&file, 4 << 20).unwrap();
        populate(&ram, &[(0x1000, 0x2000), (0x2000_0000, 0x1000), (0x5001, 1), (0x8000, 0x1000)]);
        let own = own_pages(&ram, 10);
        assert_eq!(own, [false, true, true, false, false, false, false, false, true, false]);
        assert_eq!(&ram.read_obj::<[u8; 8]>(GuestAddress(0x2000)).unwrap(), b"template");
        assert_eq!(find_outside(&ram, &[(0x1000, 0x2000), (0x8000, 0x1000)]), None);
        assert_eq!(find_outside(&ram, &[(0x1000, 0x2000), (4 << 20, 0x1000)]), Some((4 << 20, 0x1000)));
    }

    #[test]
    fn discarded_pages_of_a_file_are_what_it_holds() {
        use std::os::unix::fs::FileExt;
        let file = file_of(4 << 20);
        file.write_all_at(b"template", 0x1000).unwrap();
        let ram = map_file(&file, 4 << 20).unwrap();
        ram.write_slice(b"mine now", GuestAddress(0x1000)).unwrap();
        assert_eq!(discard(&ram, &[(0x1000, 0x1000)]), Ok(0x1000));
        assert_eq!(&ram.read_obj::<[u8; 8]>(GuestAddress(0x1000)).unwrap(), b"template");
    }

    #[test]
    fn ranges_that_are_not_whole_pages_of_guest_memory_are_refused_and_nothing_is_discarded() {
        let ram = allocate(MMIO_GAP_START + (4 << 20), false).unwrap();
        ram.write_obj(7_u64, GuestAddress(0x2000)).unwrap();
        let end = MMIO_GAP_END + (4 << 20);
        for (start, len_bytes) in [
            (0x1001, 0x1000),
            (0x1000, 0xfff),
            (0x1000, 0),
            (MMIO_GAP_START - 0x1000, 0x2000),
            (MMIO_GAP_START - 0x1000, MMIO_GAP_END - MMIO_GAP_START + 0x2000),
            (MMIO_GAP_START, 0x1000),
            (end, 0x1000),
            (end - 0x1000, 0x2000),
            (0, u64::MAX - 0xfff),
            (u64::MAX - 0xfff, 0x1000),
            (u64::MAX - 0xfff, u64::MAX - 0xfff),
            (0x1000, 1 << 63),
        ] {
            let error = discard(&ram, &[(0x2000, 0x1000), (start, len_bytes)]);
            assert_eq!(error, Err(DiscardError::Range { start, len_bytes }));
        }
        let many = vec![(0x2000, 0x1000); DISCARD_RANGES_MAX + 1];
        assert_eq!(discard(&ram, &many), Err(DiscardError::TooMany { count: 2049 }));
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x2000)).unwrap(), 7);
        assert_eq!(discard(&ram, &many[1..]), Ok(2048 * 0x1000), "twice the same is harmless");
    }

    fn file_of(len_bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len_bytes).unwrap();
        file
    }

    #[test]
    fn a_file_is_cut_around_the_gap_as_memory_is() {
        use std::os::unix::fs::FileExt;
        let len_bytes = MMIO_GAP_START + (4 << 20);
        let file = file_of(len_bytes);
        file.write_all_at(b"last low", MMIO_GAP_START - 8).unwrap();
        file.write_all_at(b"1st high", MMIO_GAP_START).unwrap();
        let ram = map_file(&file, len_bytes).unwrap();
        assert_eq!(ram.iter().count(), 2);
        for region in ram.iter() {
            assert_eq!(region.as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
        }
        assert_eq!(&ram.read_obj::<[u8; 8]>(GuestAddress(MMIO_GAP_START - 8)).unwrap(), b"last low");
        assert_eq!(&ram.read_obj::<[u8; 8]>(GuestAddress(MMIO_GAP_END)).unwrap(), b"1st high");
        assert!(ram.write_obj(1_u8, GuestAddress(MMIO_GAP_END + (4 << 20))).is_err());
    }

    #[test]
    fn a_file_is_copied_where_it_has_data_and_stays_as_it_is() {
        use std::os::unix::fs::FileExt;
        let file = file_of(16 << 20);
        for at in [0, (4 << 20) + 4096, (16 << 20) - 8] {
            file.write_all_at(b"midge!!!", at).unwrap();
        }
        let ram = copy_file(&file, 16 << 20).unwrap();
        for at in [0, (4 << 20) + 4096, (16 << 20) - 8] {
            assert_eq!(&ram.read_obj::<[u8; 8]>(GuestAddress(at)).unwrap(), b"midge!!!");
        }
        assert_eq!(ram.read_obj::<u64>(GuestAddress(8 << 20)).unwrap(), 0);
        ram.write_obj(1_u64, GuestAddress(0)).unwrap();
        assert_eq!(&ram.iter().next().unwrap().as_ptr().align_offset(HUGE_PAGE_BYTES), &0);
        let mut found = [0; 8];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"midge!!!");
        assert!(matches!(copy_file(&file_of(4096), 16 << 20), Err(MemoryError::File { found: 4096, .. })));
        assert!(copy_file(&file_of(16 << 20), 16 << 20).is_ok(), "nothing but a hole");
        let len_bytes = MMIO_GAP_START + (4 << 20);
        let file = file_of(len_bytes);
        file.write_all_at(b"last low1st high", MMIO_GAP_START - 8).unwrap();
        let ram = copy_file(&file, len_bytes).unwrap();
        assert_eq!(&ram.read_obj::<[u8; 8]>(GuestAddress(MMIO_GAP_START - 8)).unwrap(), b"last low");
        assert_eq!(&ram.read_obj::<[u8; 8]>(GuestAddress(MMIO_GAP_END)).unwrap(), b"1st high");
    }

    #[test]
    fn a_file_that_is_only_readable_will_do_and_stays_as_it_is() {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(4 << 20).unwrap();
        let ram = map_file(&File::open(named.path()).unwrap(), 4 << 20).unwrap();
        ram.write_obj(7_u64, GuestAddress(0x1000)).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 7);
        assert!(std::fs::read(named.path()).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_file_of_another_length_is_refused_whichever_is_longer() {
        for found in [0, 1, (4 << 20) - 4096, (4 << 20) + 1] {
            let error = map_file(&file_of(found), 4 << 20).unwrap_err();
            assert!(matches!(error, MemoryError::File { found: said, len_bytes: 0x40_0000 } if said == found));
            assert!(error.to_string().contains(&format!("{found} bytes, the VM 4194304")), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_cannot_be_mapped() {
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        assert!(matches!(map_file(&pipe, 4 << 20), Err(MemoryError::File { found: 0, .. })));
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(map_file(&null, 4 << 20), Err(MemoryError::File { found: 0, .. })));
    }

    #[test]
    fn more_than_the_address_space_is_an_error_with_the_number() {
        let error = allocate(1 << 60, false).unwrap_err();
        assert!(error.to_string().contains(&(1_u64 << 60).to_string()), "{error}");
        assert!(matches!(error, MemoryError::Map { .. }));
    }
}
