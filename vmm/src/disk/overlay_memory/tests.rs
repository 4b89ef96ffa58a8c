// SPDX-License-Identifier: Apache-2.0
//! The overlay in memory against the model.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::disk::Base;
use crate::disk::fake::FakeBase;
use crate::disk::model::{Model, Op, any_op, base_content, base_of, content, run, step};
use crate::disk::page_map::{BLOCK_BYTES, PageState};

/// Twenty pages and a short one.
const LEN: usize = 20 * 4096 + 1536;
const CAP: usize = 8 * 4096;

fn overlay(cap_bytes: usize) -> Overlay<MemoryStore> {
    Overlay::in_memory(Box::new(base_of(base_content(LEN))), cap_bytes as u64).unwrap()
}

/// Resident memory of the store in pages, as the kernel counts it.
fn resident_pages(overlay: &Overlay<MemoryStore>) -> usize {
    let region = &overlay.store_for_tests().region;
    let address = region.as_ptr() as usize;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mapping = smaps.split_once(&format!("{address:08x}-")).expect("the region has a mapping of its own").1;
    let line = mapping.lines().find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 4
}

/// The layer of a disk as a file, and what a state file says of it.
fn written_down(disk: &Overlay<MemoryStore>) -> (File, PageMap) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN.next_multiple_of(4096) as u64).unwrap();
    let (map, pages) = (disk.map_for_tests(), disk.store_for_tests());
    for page in (0..map.pages()).filter(|page| map.get(*page) == PageState::Data) {
        let mut bytes = [0; 4096];
        pages.read_page(page * 4096, &mut bytes).unwrap();
        file.write_all_at(&bytes, page * 4096).unwrap();
    }
    let mut copy = PageMap::new(map.pages());
    for block in 0..PageMap::block_count(map.pages()) {
        let bytes: [u8; BLOCK_BYTES] = map.block(block).try_into().unwrap();
        assert!(copy.load_block(block, &bytes));
    }
    (file, copy)
}

#[test]
fn the_descriptors_of_a_twin_are_those_of_the_base_and_of_the_layer() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN as u64).unwrap();
    let base = || Box::new(Base::new(file.try_clone().unwrap()).unwrap());
    let fresh = Overlay::in_memory(base(), CAP as u64).unwrap();
    assert_eq!(fresh.layer().unwrap().descriptors.len(), 1);
    let (layer, map) = written_down(&fresh);
    let layer_fd = layer.as_raw_fd();
    let restored = Overlay::over_layer(base(), CAP as u64, layer, map).unwrap();
    let descriptors = restored.layer().unwrap().descriptors;
    assert_eq!((descriptors.len(), descriptors[1]), (2, layer_fd));
}

proptest! {
    /// A disk that is written down and opened again and again is the same disk, and the files
    /// stay as they were.
    #[test]
    fn overlay_over_its_own_layer_agrees_with_the_model(
        rounds in prop::collection::vec(prop::collection::vec(any_op(LEN), 1..20), 1..5),
        cap_pages in 4_usize..24,
    ) {
        let mut disk = overlay(cap_pages * 4096);
        let mut model = Model::new(&base_content(LEN), cap_pages * 4096);
        let mut layers = Vec::new();
        let bytes_of = |file: &File| {
            let mut bytes = vec![0; LEN.next_multiple_of(4096)];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        for ops in &rounds {
            for op in ops {
                step(&mut disk, &mut model, op)?;
                prop_assert_eq!(disk.used_bytes(), model.used_bytes() as u64);
            }
            let (layer, map) = written_down(&disk);
            layers.push((layer.try_clone().unwrap(), bytes_of(&layer)));
            let base = Box::new(base_of(base_content(LEN)));
            disk = Overlay::over_layer(base, cap_pages as u64 * 4096, layer, map).unwrap();
            prop_assert!(content(&mut disk) == model.bytes);
        }
        prop_assert!(layers.iter().all(|(file, before)| bytes_of(file) == *before));
    }

    #[test]
    fn overlay_agrees_with_the_model(ops in prop::collection::vec(any_op(LEN), 1..60), cap_pages in 0_usize..24) {
        let mut disk = overlay(cap_pages * 4096);
        let mut model = Model::new(&base_content(LEN), cap_pages * 4096);
        for op in &ops {
            step(&mut disk, &mut model, op)?;
            prop_assert_eq!(disk.used_bytes(), model.used_bytes() as u64);
        }
        prop_assert!(content(&mut disk) == model.bytes);
    }
}

#[test]
fn cap_refuses_the_request_and_loses_nothing() {
    let mut disk = overlay(CAP);
    let cut = usize::MAX;
    run(&mut disk, &Op::Write { at: 0, len: CAP, fill: 9, cut }).unwrap();
    let before = content(&mut disk);
    let refused = run(&mut disk, &Op::Write { at: CAP - 512, len: 1024, fill: 1, cut });
    let Err(DiskError::NoSpace { needed_bytes: 4096, used_bytes, cap_bytes }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((used_bytes, cap_bytes), (CAP as u64, CAP as u64));
    assert!(content(&mut disk) == before, "not even the half that fits is written");
    run(&mut disk, &Op::Write { at: 100, len: CAP - 200, fill: 7, cut }).expect("pages it has can be written");
}

#[test]
fn discard_makes_room_and_frees_memory() {
    let mut disk = overlay(CAP);
    let cut = usize::MAX;
    run(&mut disk, &Op::Write { at: 0, len: CAP, fill: 9, cut }).unwrap();
    assert_eq!(resident_pages(&disk), 8);
    run(&mut disk, &Op::Discard { at: 512, len: CAP - 1024 }).unwrap();
    assert_eq!(disk.used_bytes(), 2 * 4096, "only whole pages are freed");
    assert_eq!(resident_pages(&disk), 2);
    run(&mut disk, &Op::Write { at: CAP, len: 6 * 4096, fill: 9, cut }).unwrap();
}

#[test]
fn write_zeroes_without_may_free_keeps_its_pages() {
    let mut disk = overlay(CAP);
    run(&mut disk, &Op::Write { at: 0, len: CAP, fill: 9, cut: 4096 }).unwrap();
    run(&mut disk, &Op::WriteZeroes { at: 0, len: CAP, may_free: false }).unwrap();
    assert_eq!(disk.used_bytes(), CAP as u64);
    run(&mut disk, &Op::WriteZeroes { at: 0, len: CAP, may_free: true }).unwrap();
    assert_eq!(disk.used_bytes(), 0);
    assert!(content(&mut disk)[..CAP].iter().all(|byte| *byte == 0));
}

#[test]
fn empty_overlay_of_a_large_disk_takes_no_memory() {
    let huge = FakeBase { len_bytes: 1 << 40, fill: |_, into: &mut [u8]| into.fill(5) };
    let mut disk = Overlay::in_memory(Box::new(huge), 1 << 20).unwrap();
    let mut memory = [1_u8; 512];
    disk.write_at((1 << 40) - 512, &[VolatileSlice::from(&mut memory[..])]).unwrap();
    disk.read_at((1 << 40) - 1024, &[VolatileSlice::from(&mut memory[..])]).unwrap();
    assert_eq!(memory, [5; 512]);
    assert_eq!(resident_pages(&disk), 1);
}
