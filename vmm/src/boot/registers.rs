// SPDX-License-Identifier: Apache-2.0
//! The boot CPU's state at the 64-bit entry point of Linux, as data.
//!
//! Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL": long mode, paging with an identity
//! map of what the kernel reads, flat segments 0x10 (code) and 0x18 (data), interrupts off,
//! `rsi` = address of `boot_params`.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::layout::{BOOT_PARAMS, GDT, PAGE_TABLES};

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// Flat 64-bit code, present, accessed; flat data, writable, present, accessed.
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// PAE.
const CR4: u64 = 0x20;
/// LME, LMA.
const EFER: u64 = 0x500;
/// Bit 1 is always one; interrupts off.
const RFLAGS: u64 = 2;

/// Present, writable.
const TABLE: u64 = 0x3;
/// Present, writable, 2 MiB page.
const LARGE_PAGE: u64 = 0x83;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const ENTRIES: u64 = 512;
const TABLE_BYTES: u64 = 0x1000;

/// The general registers at `entry`.
pub fn general(entry: u64) -> kvm_regs {
    kvm_regs { rip: entry, rsi: BOOT_PARAMS.start, rflags: RFLAGS, ..Default::default() }
}

/// Changes KVM's reset state into long mode over our tables.
pub fn enter_long_mode(sregs: &mut kvm_sregs) {
    sregs.cs = segment(CODE_SELECTOR, 11, true);
    let data = segment(DATA_SELECTOR, 3, false);
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.gdt.base = GDT.start;
    sregs.gdt.limit = 8 * 4 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0;
    sregs.cr3 = PAGE_TABLES.start;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
}

fn segment(selector: u16, type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

/// The bytes at [`GDT`].
pub fn gdt() -> Vec<u8> {
    GDT_ENTRIES.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// The bytes at [`PAGE_TABLES`]: one entry, one entry, 512 large pages.
pub fn page_tables() -> Vec<u8> {
    let mut tables = Vec::with_capacity(3 * 4096);
    for next in [PAGE_TABLES.start + TABLE_BYTES, PAGE_TABLES.start + 2 * TABLE_BYTES] {
        tables.push(next | TABLE);
        tables.extend((1..ENTRIES).map(|_| 0));
    }
    tables.extend((0..ENTRIES).map(|page| (page * LARGE_PAGE_BYTES) | LARGE_PAGE));
    tables.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::layout::IDENTITY_MAPPED_END;

    /// Walks the tables as the CPU does, from their bytes alone.
    fn translate(tables: &[u8], addr: u64) -> Option<u64> {
        let entry = |table: u64, index: u64| {
            let at = usize::try_from(table - PAGE_TABLES.start + 8 * index).unwrap();
            u64::from_le_bytes(tables.get(at..at + 8)?.try_into().unwrap()).checked_add(0)
        };
        let mut table = PAGE_TABLES.start;
        for shift in [39, 30] {
            let value = entry(table, (addr >> shift) & 511)?;
            if value & 1 == 0 {
                return None;
            }
            table = value & !0xfff;
        }
        let value = entry(table, (addr >> 21) & 511)?;
        (value & 0x81 == 0x81).then_some((value & !0x1f_ffff) | (addr & 0x1f_ffff))
    }

    #[test]
    fn the_first_gib_is_identity_mapped_and_nothing_else() {
        let tables = page_tables();
        assert_eq!(tables.len(), 3 * 4096);
        for addr in [0, 0x1000, 0x10_0000, 0x100_0123, IDENTITY_MAPPED_END - 1] {
            assert_eq!(translate(&tables, addr), Some(addr), "{addr:#x}");
        }
        assert_eq!(translate(&tables, IDENTITY_MAPPED_END), None);
        assert_eq!(translate(&tables, 1 << 39), None);
    }

    #[test]
    fn the_segments_agree_with_the_descriptor_table() {
        let mut sregs = kvm_sregs::default();
        enter_long_mode(&mut sregs);
        let gdt = gdt();
        for segment in [sregs.cs, sregs.ds, sregs.ss] {
            let at = usize::from(segment.selector);
            let entry = u64::from_le_bytes(gdt[at..at + 8].try_into().unwrap());
            assert_eq!((entry >> 40) & 0xf, u64::from(segment.type_));
            assert_eq!((entry >> 47) & 1, 1, "present");
            assert_eq!((entry >> 53) & 1, u64::from(segment.l));
            assert_eq!((entry >> 54) & 1, u64::from(segment.db));
        }
        assert_eq!(usize::from(sregs.gdt.limit), gdt.len() - 1);
    }

    #[test]
    fn the_cpu_starts_in_long_mode_with_interrupts_off() {
        let mut sregs = kvm_sregs::default();
        enter_long_mode(&mut sregs);
        assert_eq!(sregs.cr0 & 0x8000_0001, 0x8000_0001, "paging and protection");
        assert_eq!(sregs.cr4 & 0x20, 0x20, "PAE");
        assert_eq!(sregs.efer & 0x500, 0x500, "long mode on and active");
        let regs = general(0x100_0000);
        assert_eq!((regs.rip, regs.rsi, regs.rflags & 0x200), (0x100_0000, 0x1_0000, 0));
    }
}
