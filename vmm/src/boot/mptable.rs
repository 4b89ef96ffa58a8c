// SPDX-License-Identifier: Apache-2.0
//! The MP table: which CPUs and interrupt lines exist, for a Linux without ACPI.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4; offsets are the specification's. The
//! whole table fits the last KiB below 640 KiB, which is where Linux looks second (after an
//! EBDA that is not there) and is what bounds the number of CPUs.

use super::layout::{IO_APIC, LOCAL_APIC, MP_TABLE};

/// Interrupt lines of the I/O APIC that are wired, one to one.
const LINES: u8 = 24;
/// §4.1: size of the floating pointer structure.
const POINTER_BYTES: usize = 16;
/// §4.2: size of the configuration table header.
const HEADER_BYTES: usize = 44;
const VERSION_1_4: u8 = 4;
/// Version of a local APIC built into the CPU.
const APIC_VERSION: u8 = 0x14;
/// §4.3.1: enabled, and the one that boots.
const CPU_ENABLED: u8 = 1;
const CPU_BOOTS: u8 = 2;
/// §4.3: entry types.
const ENTRY_CPU: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_LINE: u8 = 3;
const ENTRY_LOCAL_LINE: u8 = 4;
/// §4.3.4: interrupt types.
const TYPE_INT: u8 = 0;
const TYPE_NMI: u8 = 1;
const TYPE_EXT_INT: u8 = 3;
/// §4.3.5: "all local APICs".
const ALL_CPUS: u8 = 0xff;

/// The bytes at [`MP_TABLE`] for `cpus` CPUs with APIC ids from 0.
pub fn bytes(cpus: u8) -> Vec<u8> {
    let (entries, count) = entries(cpus);
    let mut table = header(entries.len(), count);
    table.extend(entries);
    set_checksum(&mut table, 7);
    let mut bytes = pointer();
    bytes.extend(table);
    bytes
}

/// §4.1: found by its signature on a 16-byte boundary.
fn pointer() -> Vec<u8> {
    let table = low_u32(MP_TABLE.start) + 16;
    let mut bytes = Vec::with_capacity(POINTER_BYTES);
    bytes.extend(b"_MP_");
    bytes.extend(table.to_le_bytes());
    bytes.extend([1, VERSION_1_4, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut bytes, 10);
    bytes
}

/// §4.2.
fn header(entries_len: usize, count: u16) -> Vec<u8> {
    let len = u16::try_from(HEADER_BYTES + entries_len).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + entries_len);
    bytes.extend(b"PCMP");
    bytes.extend(len.to_le_bytes());
    bytes.extend([VERSION_1_4, 0]);
    bytes.extend(b"MIDGE   ");
    bytes.extend(b"MIDGE VM    ");
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(low_u32(LOCAL_APIC.start).to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// §4.3: CPUs, one ISA bus, the I/O APIC, its lines, the local lines.
fn entries(cpus: u8) -> (Vec<u8>, u16) {
    let mut bytes = Vec::new();
    let mut count = 0_u16;
    let mut add = |entry: &[u8]| {
        bytes.extend(entry);
        count += 1;
    };
    for id in 0..cpus {
        let flags = if id == 0 { CPU_ENABLED | CPU_BOOTS } else { CPU_ENABLED };
        let mut cpu = [0; 20];
        cpu[..4].copy_from_slice(&[ENTRY_CPU, id, APIC_VERSION, flags]);
        // Signature (family 6) and features (FPU, APIC); Linux asks CPUID for the real ones.
        cpu[4..8].copy_from_slice(&0x600_u32.to_le_bytes());
        cpu[8..12].copy_from_slice(&0x201_u32.to_le_bytes());
        add(&cpu);
    }
    add(&[ENTRY_BUS, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = low_u32(IO_APIC.start).to_le_bytes();
    add(&[ENTRY_IO_APIC, cpus, 0x11, 1, a, b, c, d]);
    for line in 0..LINES {
        add(&[ENTRY_LINE, TYPE_INT, 0, 0, 0, line, cpus, line]);
    }
    add(&[ENTRY_LOCAL_LINE, TYPE_EXT_INT, 0, 0, 0, 0, 0, 0]);
    add(&[ENTRY_LOCAL_LINE, TYPE_NMI, 0, 0, 0, 0, ALL_CPUS, 1]);
    (bytes, count)
}

/// Makes the bytes sum to zero.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

/// The low 32 bits of an address that is known to lie below 4 GiB.
const fn low_u32(addr: u64) -> u32 {
    assert!(addr <= 0xffff_ffff, "an address in the MP table must have 32 bits");
    let [a, b, c, d, ..] = addr.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CPUS_MAX;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
    }

    fn word(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    }

    #[test]
    fn both_checksums_are_zero_for_every_number_of_cpus() {
        for cpus in 1..=u8::try_from(CPUS_MAX).unwrap() {
            let bytes = bytes(cpus);
            assert_eq!(sum(&bytes[..16]), 0, "pointer, {cpus}");
            assert_eq!(sum(&bytes[16..]), 0, "table, {cpus}");
            assert_eq!(usize::from(word(&bytes, 16 + 4)), bytes.len() - 16);
        }
    }

    #[test]
    fn the_most_cpus_fit_the_region_and_hardly_more_would() {
        let most = u8::try_from(CPUS_MAX).unwrap();
        let room = usize::try_from(MP_TABLE.len).unwrap();
        assert!(bytes(most).len() <= room);
        assert!(bytes(most + 6).len() > room);
    }

    #[test]
    fn an_independent_walk_finds_every_entry() {
        let bytes = bytes(3);
        assert_eq!(&bytes[..4], b"_MP_");
        assert_eq!(u32::from_le_bytes(bytes[4..8].try_into().unwrap()), 0x9_fc10);
        let table = &bytes[16..];
        let (mut at, mut seen) = (44, [0_u16; 5]);
        while at < table.len() {
            let kind = usize::from(table[at]);
            seen[kind] += 1;
            at += if kind == 0 { 20 } else { 8 };
        }
        assert_eq!(at, table.len());
        assert_eq!(seen, [3, 1, 1, 24, 2]);
        assert_eq!(word(table, 34), seen.iter().sum::<u16>());
    }

    #[test]
    fn exactly_the_first_cpu_boots_and_the_io_apic_has_its_own_id() {
        let bytes = bytes(4);
        let table = &bytes[16..];
        for cpu in 0..4_u8 {
            let entry = &table[44 + 20 * usize::from(cpu)..][..4];
            assert_eq!(entry[1], cpu);
            assert_eq!(entry[3], if cpu == 0 { 3 } else { 1 });
        }
        let io_apic = &table[44 + 80 + 8..][..8];
        assert_eq!(io_apic[..2], [2, 4]);
    }
}
