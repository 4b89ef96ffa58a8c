// SPDX-License-Identifier: Apache-2.0
//! The state file: whole round trips, and everything that is refused.

use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry};
use proptest::prelude::*;

use super::*;
use crate::disk::page_map::PageState;

fn geometry(seed: u64) -> Geometry {
    Geometry { size: 256, descriptors: seed << 12, avail: (seed << 12) + 0x1000, used: (seed << 12) + 0x2000 }
}

fn transport(queues: u64) -> TransportState {
    TransportState {
        status: 0xf,
        device_features_sel: 1,
        driver_features_sel: 1,
        driver_features: 1 << 32 | 0b1010,
        queue_sel: 2,
        interrupt_status: 1,
        needs_reset: false,
        queues: (0..queues).map(|index| QueueRegisters { geometry: geometry(index), ready: true }).collect(),
        serving: (0..queues)
            .map(|index| QueueState { geometry: geometry(index), next_avail: 65_535, next_used: 7 })
            .collect(),
    }
}

fn vcpu(seed: u8) -> VcpuState {
    let cpuid = vec![kvm_cpuid_entry2 { function: 1, eax: u32::from(seed), ..Default::default() }; 3];
    let mut vcpu = VcpuState { cpuid, ..Default::default() };
    vcpu.regs.rip = 0xffff_ffff_8100_0000 + u64::from(seed);
    vcpu.sregs.cr3 = 0x1234_5000;
    vcpu.xsave.region[1023] = 7;
    vcpu.lapic.regs[0x20] = 1;
    vcpu.msrs = vec![kvm_msr_entry { index: 0x10, data: u64::MAX, ..Default::default() }];
    vcpu.events.flags = 0xd;
    vcpu
}

fn state() -> VmState {
    let mut map = PageMap::new(40_000);
    map.set(3..7, PageState::Data);
    map.set(39_999..40_000, PageState::Zero);
    let mut machine = MachineState::default();
    machine.clock.clock = 99;
    machine.irqchips[2].chip_id = 2;
    VmState {
        mem_bytes: 128 << 20,
        kernel_range: (0x100_0000, 0x200_0000),
        has_console: false,
        machine,
        vcpus: vec![vcpu(1), vcpu(2)],
        disks: vec![
            DiskState { transport: transport(1), len_bytes: 512, is_read_only: true, layer: None },
            DiskState { transport: transport(1), len_bytes: 40_000 * 4096, is_read_only: false, layer: Some(map) },
        ],
        vsock: Some(VsockDeviceState {
            transport: transport(3),
            device: VsockState { next_host_port: 1 << 30, had_connections: true },
            guest_cid: 3,
        }),
    }
}

/// Checksum and length made right again, so that what is behind them is looked at.
fn mend(file: &mut [u8]) {
    let body_bytes = (file.len() - HEADER_BYTES) as u64;
    file[16..24].copy_from_slice(&body_bytes.to_le_bytes());
    let checksum = crc32fast::hash(&file[16..]);
    file[12..16].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn what_is_written_is_read_back_byte_for_byte() {
    let file = encode(&state(), &[]).unwrap();
    let read = decode(&file).unwrap();
    assert_eq!(encode(&read, &[]).unwrap(), file);
    assert_eq!(read.vcpus[1].regs.rip, 0xffff_ffff_8100_0002);
    assert_eq!(read.vcpus[0].msrs[0].data, u64::MAX);
    assert_eq!(read.vcpus[0].xsave.region[1023], 7);
    assert_eq!(read.machine.clock.clock, 99);
    assert_eq!(read.disks[1].transport, transport(1));
    let map = read.disks[1].layer.as_ref().unwrap();
    assert_eq!((map.data_pages(), map.get(39_999), map.get(2)), (4, PageState::Zero, PageState::Base));
    let vsock = read.vsock.unwrap();
    assert_eq!(vsock.transport, transport(3));
    assert!(vsock.device.had_connections);
}

#[test]
fn a_disks_own_map_goes_before_one_from_a_file() {
    let mut map = PageMap::new(40_000);
    map.set(0..1, PageState::Data);
    let file = encode(&state(), &[None, Some(&map)]).unwrap();
    assert_eq!(decode(&file).unwrap().disks[1].layer.as_ref().unwrap().data_pages(), 1);
}

#[test]
fn magic_version_length_and_checksum_are_refused_by_name() {
    let file = encode(&state(), &[]).unwrap();
    assert!(matches!(decode(b""), Err(FormatError::Magic)));
    assert!(matches!(decode(&[b'M'; 100]), Err(FormatError::Magic)));
    let mut other = file.clone();
    other[8] = 2;
    assert!(matches!(decode(&other), Err(FormatError::Version { found: 2 })));
    let cut = decode(&file[..file.len() - 1]).unwrap_err();
    assert!(matches!(cut, FormatError::Length { .. }) && cut.to_string().contains("cut short"), "{cut}");
    let mut damaged = file.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let error = decode(&damaged).unwrap_err();
    assert!(matches!(error, FormatError::Checksum { .. }) && error.to_string().contains("template"), "{error}");
}

#[test]
fn a_body_that_ends_early_or_late_is_refused_where_it_ends() {
    let file = encode(&state(), &[]).unwrap();
    for cut in [HEADER_BYTES, HEADER_BYTES + 1, 100, 2000, file.len() - 1] {
        let mut short = file[..cut].to_vec();
        mend(&mut short);
        assert!(matches!(decode(&short), Err(FormatError::Content(CodecError::Short { .. }))), "{cut}");
    }
    let mut long = [file, vec![0]].concat();
    mend(&mut long);
    assert!(matches!(decode(&long), Err(FormatError::Content(CodecError::Trailing { left: 1 }))));
}

#[test]
fn absurd_lengths_are_refused_before_memory_is_taken_for_them() {
    let mut absurd = state();
    absurd.disks[1].len_bytes = u64::MAX;
    let mut file = encode(&absurd, &[]).unwrap();
    mend(&mut file);
    let error = decode(&file).unwrap_err();
    assert!(matches!(error, FormatError::Content(CodecError::Range { what: "the pages of a layer", .. })), "{error}");
    let mut many = state();
    many.vcpus = (0..33).map(vcpu).collect();
    let error = decode(&encode(&many, &[]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("vCPUs is 33; accepted: at most 32"), "{error}");
}

#[test]
fn a_page_in_a_state_that_does_not_exist_is_refused() {
    let file = encode(&state(), &[]).unwrap();
    let map_at = file.windows(1).len() - BLOCK_BYTES; // anywhere inside the last block of some map
    let mut wrong = file;
    // The first page of the second disk's map: found by what is known to stand there (pages 3 to 6 are data).
    let pattern = 0b10_1010_1000_0000_u64.to_le_bytes();
    let at = wrong.windows(8).position(|window| window == pattern).unwrap();
    assert!(at < map_at);
    wrong[at] |= 0b11;
    mend(&mut wrong);
    assert!(matches!(decode(&wrong), Err(FormatError::Content(CodecError::Range { .. }))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_or_read_without_panic(bytes: Vec<u8>) {
        let _ = decode(&bytes);
        let mut file = encode(&VmState { vcpus: vec![], disks: vec![], vsock: None, ..state() }, &[]).unwrap();
        file.truncate(HEADER_BYTES);
        file.extend_from_slice(&bytes);
        mend(&mut file);
        let _ = decode(&file);
    }

    #[test]
    fn a_changed_byte_is_never_taken_for_the_truth(at in 0_usize..30_000, bit in 0_u8..8) {
        let good = encode(&state(), &[]).unwrap();
        let mut file = good.clone();
        let at = at % file.len();
        file[at] ^= 1 << bit;
        prop_assert!(decode(&file).is_err());
        // Behind a right checksum it is another state, or refused; never a panic.
        if at >= HEADER_BYTES {
            mend(&mut file);
            let _ = decode(&file);
        }
    }
}
