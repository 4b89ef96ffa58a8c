// SPDX-License-Identifier: Apache-2.0
//! Any document as a configuration, and as an order: what is accepted as a configuration keeps every
//! limit that its table names, and an order to discard memory touches whole pages of RAM only.
//!
//! `./dev fuzz 60 config`. Input: the document.
#![no_main]

use std::cell::OnceCell;

use libfuzzer_sys::fuzz_target;
use midge_vmm::config::{
    CMDLINE_MAX_BYTES, CPUS_MAX, DISKS_MAX, DiskMode, EXTRA_MSRS_MAX, MEM_MIN_MIB, OVERLAY_CAP_MAX_MIB, Start,
    UDS_PATH_MAX_BYTES, VmmConfig,
};
use midge_vmm::memory::{GuestRam, discard, find_outside};
use midge_vmm::orders::Order;
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;
/// Two regions side by side, and one behind a hole.
const REGIONS: [(u64, u64); 3] = [(0, 4), (4 * PAGE, 2), (8 * PAGE, 2)];

thread_local! {
    static RAM: OnceCell<GuestRam> = const { OnceCell::new() };
}

fn ram() -> GuestRam {
    let regions = REGIONS.map(|(start, pages)| (GuestAddress(start), (pages * PAGE) as usize));
    let make = || GuestRam::from_ranges(&regions).expect("small regions can be mapped");
    RAM.with(|cell| cell.get_or_init(make).clone())
}

fn pages() -> impl Iterator<Item = u64> {
    REGIONS.iter().flat_map(|(start, pages)| (0..*pages).map(move |page| start + page * PAGE))
}

/// Whole pages of one region.
fn is_sound((start, len): (u64, u64)) -> bool {
    let inside = |(first, pages): &(u64, u64)| {
        start >= *first && start.checked_add(len).is_some_and(|end| end <= first + pages * PAGE)
    };
    start % PAGE == 0 && len % PAGE == 0 && len != 0 && REGIONS.iter().any(inside)
}

/// What is discarded is whole pages of RAM, all of what was named or nothing, and its neighbours stay as they were.
fn order(data: &[u8]) {
    let Ok(Order::Discard { ranges }) = serde_json::from_slice::<Order>(data) else { return };
    let ram = ram();
    for page in pages() {
        ram.write_obj(!page, GuestAddress(page + 8)).expect("it is memory");
    }
    let are_sound = ranges.iter().all(|range| is_sound(*range));
    assert_eq!(find_outside(&ram, &ranges).is_none(), are_sound, "{ranges:x?}");
    let done = discard(&ram, &ranges);
    assert_eq!(done.is_ok(), are_sound && ranges.len() <= 2048, "{ranges:x?}: {done:?}");
    for page in pages() {
        let named = ranges.iter().any(|(start, len)| page >= *start && page - start < *len);
        let expected = if named && done.is_ok() { 0 } else { !page };
        assert_eq!(ram.read_obj::<u64>(GuestAddress(page + 8)).expect("it is memory"), expected, "page {page:#x}");
    }
    if let Ok(bytes) = done {
        assert_eq!(bytes, ranges.iter().map(|(_, len)| len).sum::<u64>());
    }
}

/// What is accepted keeps every limit.
fn config(data: &[u8]) {
    let Ok(config) = VmmConfig::from_json(data) else { return };
    assert!((1..=CPUS_MAX).contains(&u64::from(config.cpus())) && config.mem_bytes() >= MEM_MIN_MIB << 20);
    assert!(config.disks().len() <= DISKS_MAX && config.extra_msrs().len() <= EXTRA_MSRS_MAX);
    assert!(config.cmdline().len() <= CMDLINE_MAX_BYTES && !config.cmdline().contains(['\0', '\n']));
    for disk in config.disks() {
        if let DiskMode::OverlayMemory { cap_mib } | DiskMode::OverlayFile { cap_mib, .. } = disk.mode() {
            assert!(*cap_mib <= OVERLAY_CAP_MAX_MIB);
        }
    }
    if let Some(vsock) = config.vsock() {
        assert!((3..1 << 32).contains(&vsock.guest_cid()));
        assert!(vsock.uds().as_os_str().len() <= UDS_PATH_MAX_BYTES);
    }
    if let Start::Restore(restore) = config.start() {
        assert_eq!(restore.layers().len(), config.disks().len());
        assert!(restore.working_set().iter().all(|(start, len)| start % 4096 == 0 && len % 4096 == 0 && *len != 0));
        assert!(restore.working_set().iter().map(|(_, len)| u128::from(*len)).sum::<u128>() <= 16 << 20);
    }
}

fuzz_target!(|data: &[u8]| {
    config(data);
    order(data);
});
