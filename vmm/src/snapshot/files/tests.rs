// SPDX-License-Identifier: Apache-2.0
//! Memory and layers through real files.

use std::os::unix::fs::{FileExt, MetadataExt};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::disk::overlay::Overlay;
use crate::disk::{Base, Disk};
use crate::machine::state::MachineState;
use crate::memory;

const MEM_BYTES: u64 = 8 << 20;

fn at_rest(disks: Vec<crate::snapshot::DiskState>) -> VmState {
    VmState {
        mem_bytes: MEM_BYTES,
        kernel_range: (0, 0),
        has_console: false,
        machine: MachineState::default(),
        vcpus: Vec::new(),
        disks,
        vsock: None,
    }
}

fn files(count: usize) -> Vec<File> {
    (0..count).map(|_| tempfile::tempfile().unwrap()).collect()
}

#[test]
fn memory_comes_back_as_it_was_and_zeros_take_no_room() {
    let ram = memory::allocate(MEM_BYTES, false).unwrap();
    ram.write_slice(b"first", GuestAddress(0)).unwrap();
    ram.write_slice(b"across two pages", GuestAddress(0x5ff8)).unwrap();
    ram.write_slice(b"last", GuestAddress(MEM_BYTES - 4)).unwrap();
    let files = files(2);
    let written = write(&at_rest(vec![]), &ram, &[], &files).unwrap();
    assert_eq!(written, 4 * 4096);
    assert_eq!(files[1].metadata().unwrap().len(), MEM_BYTES);
    assert!(files[1].metadata().unwrap().blocks() * 512 < MEM_BYTES / 8, "sparse");
    let twin = memory::map_file(&files[1], MEM_BYTES).unwrap();
    for at in [0, 0x5ff8, MEM_BYTES - 4, 0x1000] {
        let (one, other): (u32, u32) =
            (ram.read_obj(GuestAddress(at)).unwrap(), twin.read_obj(GuestAddress(at)).unwrap());
        assert_eq!(one, other, "{at:#x}");
    }
}

#[test]
fn a_twins_writes_reach_neither_the_file_nor_another_twin() {
    let ram = memory::allocate(MEM_BYTES, false).unwrap();
    ram.write_obj(1_u64, GuestAddress(0x1000)).unwrap();
    let files = files(2);
    write(&at_rest(vec![]), &ram, &[], &files).unwrap();
    let (one, other) =
        (memory::map_file(&files[1], MEM_BYTES).unwrap(), memory::map_file(&files[1], MEM_BYTES).unwrap());
    one.write_obj(2_u64, GuestAddress(0x1000)).unwrap();
    assert_eq!(other.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 1);
    let mut bytes = [0; 8];
    files[1].read_exact_at(&mut bytes, 0x1000).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 1);
}

#[test]
fn memory_of_another_length_is_refused_with_both_numbers() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEM_BYTES - 4096).unwrap();
    let error = memory::map_file(&file, MEM_BYTES).unwrap_err().to_string();
    assert!(error.contains(&MEM_BYTES.to_string()) && error.contains(&(MEM_BYTES - 4096).to_string()), "{error}");
}

fn base_disk() -> Box<dyn Disk> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![b'b'; 40_960], 0).unwrap();
    Box::new(Base::new(file).unwrap())
}

fn read_disk(disk: &mut dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let slice = vm_memory::VolatileSlice::from(&mut bytes[..]);
    disk.read_at(offset, &[slice]).unwrap();
    bytes
}

fn write_disk(disk: &mut dyn Disk, offset: u64, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    disk.write_at(offset, &[vm_memory::VolatileSlice::from(&mut bytes[..])]).unwrap();
}

#[test]
fn a_layer_comes_back_over_the_same_base() {
    let mut disk = Overlay::in_memory(base_disk(), 1 << 20).unwrap();
    write_disk(&mut disk, 4100, b"changed");
    write_disk(&mut disk, 12_288, &[0; 4096]);
    disk.discard(20_480, 8192).unwrap();
    let expected = read_disk(&mut disk, 0, 40_960);
    let files = files(3);
    let state = at_rest(vec![crate::snapshot::DiskState {
        transport: Default::default(),
        len_bytes: 40_960,
        is_read_only: false,
        layer: None,
    }]);
    let ram = memory::allocate(MEM_BYTES, false).unwrap();
    write(&state, &ram, &[disk.layer().unwrap()], &files).unwrap();
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut &files[0]).unwrap();
    (&files[0]).read_to_end(&mut bytes).unwrap();
    let map = format::decode(&bytes).unwrap().disks.remove(0).layer.unwrap();
    let mut twin = Overlay::over_layer(base_disk(), 1 << 20, files[2].try_clone().unwrap(), map).unwrap();
    assert_eq!(read_disk(&mut twin, 0, 40_960), expected);
    write_disk(&mut twin, 4096, b"mine");
    twin.discard(12_288, 4096).unwrap();
    assert_eq!(read_disk(&mut twin, 12_288, 4096), [0; 4096]);
    assert_eq!(read_disk(&mut disk, 4096, 4), [b'b'; 4], "the first disk has not changed");
    let mut page = [0; 4];
    files[2].read_exact_at(&mut page, 4096).unwrap();
    assert_eq!(page, [b'b'; 4], "nor has the layer");
}

#[test]
fn a_layer_for_another_disk_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let error = Overlay::over_layer(base_disk(), 1 << 20, file, PageMap::new(10)).err().unwrap();
    assert!(error.to_string().contains("not as long"), "{error}");
}

#[test]
fn a_wrong_number_of_files_writes_nothing() {
    let ram = memory::allocate(MEM_BYTES, false).unwrap();
    for count in [0, 1, 3] {
        let files = files(count);
        assert_eq!(write(&at_rest(vec![]), &ram, &[], &files).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(files.iter().all(|file| file.metadata().unwrap().len() == 0));
    }
}

#[test]
fn a_full_disk_is_told_with_what_was_being_written() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ram = memory::allocate(MEM_BYTES, false).unwrap();
    ram.write_obj(1_u8, GuestAddress(0)).unwrap();
    let error = write(&at_rest(vec![]), &ram, &[], &[tempfile::tempfile().unwrap(), full]).unwrap_err();
    assert!(error.to_string().contains("writing memory"), "{error}");
}

#[test]
fn a_state_file_is_read_to_its_limit_only() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(STATE_MAX_BYTES + 1).unwrap();
    assert!(matches!(read_state(&file), Err(StateError::Read(_))));
}
