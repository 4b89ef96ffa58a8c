// SPDX-License-Identifier: Apache-2.0
//! The guest-physical address space at boot: one table, with a reason for each region.
//!
//! Printed by `midge-vmm --explain-boot`. The build fails when two regions overlap.

use crate::machine::bus::{WINDOW_BYTES, WINDOWS_START};
use crate::machine::kvm::{IDENTITY_MAP_START, TSS_START};
use crate::memory::{MMIO_GAP_END, MMIO_GAP_START};

/// What answers at a region's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// RAM the guest may use once it has read what is there.
    Ram,
    /// RAM that the guest is told to leave alone.
    Reserved,
    /// Nothing.
    Hole,
    /// A device.
    Device,
}

/// A named range of guest-physical addresses.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// Its name.
    pub name: &'static str,
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What answers there.
    pub kind: Kind,
    /// Why it is there.
    pub why: &'static str,
}

impl Region {
    const fn new(name: &'static str, start: u64, len: u64, kind: Kind, why: &'static str) -> Self {
        Self { name, start, len, kind, why }
    }

    /// First address behind the region.
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Left zero: Linux looks for the BIOS data area here and must find nothing.
pub const BIOS_DATA: Region =
    Region::new("bios data", 0, 0x1000, Kind::Ram, "zero: Linux must not find a BIOS data area");
/// Identity map of the first GiB in 2 MiB pages: three tables.
pub const PAGE_TABLES: Region =
    Region::new("page tables", 0x1000, 0x3000, Kind::Ram, "the 64-bit entry needs an identity map; 1 GiB of it");
/// Code and data segment.
pub const GDT: Region =
    Region::new("gdt", 0x5000, 0x1000, Kind::Ram, "the segments of the 64-bit entry: 0x10 and 0x18");
/// `struct boot_params`.
pub const BOOT_PARAMS: Region =
    Region::new("boot_params", 0x1_0000, 0x1000, Kind::Ram, "Linux' zero page; rsi points at it");
/// The kernel's command line with its zero byte.
pub const COMMAND_LINE: Region =
    Region::new("command line", 0x2_0000, 0x1000, Kind::Ram, "longer than the 2,048 bytes Linux takes");
/// A `setup_data` record with random bytes.
pub const RNG_SEED: Region =
    Region::new("rng seed", 0x3_0000, 0x1000, Kind::Ram, "entropy before the first device; Linux wipes it");
/// The last KiB of conventional memory, where Linux looks for an MP table.
pub const MP_TABLE: Region =
    Region::new("mp table", 0x9_fc00, 0x400, Kind::Reserved, "found at once; without it Linux scans 64 KiB of ROM");
/// The old video and ROM area.
pub const LEGACY_HOLE: Region =
    Region::new("legacy hole", 0xa_0000, 0x6_0000, Kind::Hole, "never listed as RAM, as on every PC");
/// Kernel, then initramfs, then free memory up to the end of RAM or the gap.
pub const HIGH_RAM: Region = Region::new(
    "ram",
    0x10_0000,
    MMIO_GAP_START - 0x10_0000,
    Kind::Ram,
    "kernel where it wants to be, initramfs behind it",
);
/// One page for each virtio-mmio device.
pub const VIRTIO_WINDOWS: Region = Region::new(
    "virtio-mmio",
    WINDOWS_START,
    16 * WINDOW_BYTES,
    Kind::Device,
    "disks in order, then vsock; named on the command line",
);
/// The I/O interrupt controller, in the kernel of the host.
pub const IO_APIC: Region = Region::new("io-apic", 0xfec0_0000, 0x1000, Kind::Device, "where every PC has it");
/// The local interrupt controller, in the kernel of the host.
pub const LOCAL_APIC: Region = Region::new("local apic", 0xfee0_0000, 0x1000, Kind::Device, "where every PC has it");
/// A page for real mode on Intel CPUs.
pub const IDENTITY_MAP: Region =
    Region::new("identity map", IDENTITY_MAP_START, 0x1000, Kind::Hole, "KVM's own on Intel CPUs");
/// Three pages for a task state on Intel CPUs.
pub const TSS: Region = Region::new("task state", TSS_START, 0x3000, Kind::Hole, "KVM's own on Intel CPUs");

/// Every region, ascending.
pub const REGIONS: &[Region] = &[
    BIOS_DATA,
    PAGE_TABLES,
    GDT,
    BOOT_PARAMS,
    COMMAND_LINE,
    RNG_SEED,
    MP_TABLE,
    LEGACY_HOLE,
    HIGH_RAM,
    VIRTIO_WINDOWS,
    IO_APIC,
    LOCAL_APIC,
    IDENTITY_MAP,
    TSS,
];

/// Nothing of the kernel or the initramfs may lie behind this address: the identity map ends here.
pub const IDENTITY_MAPPED_END: u64 = 1 << 30;

const _: () = assert!(ascending_and_disjoint(REGIONS), "two regions overlap or stand in the wrong order");
const _: () = assert!(TSS.end() <= MMIO_GAP_END && VIRTIO_WINDOWS.start >= MMIO_GAP_START);

const fn ascending_and_disjoint(regions: &[Region]) -> bool {
    let mut index = 1;
    while index < regions.len() {
        if regions[index - 1].end() > regions[index].start {
            return false;
        }
        index += 1;
    }
    true
}

/// The table as text, for `--explain-boot`.
pub fn explain() -> String {
    use std::fmt::Write as _;

    let mut text = String::from("start         end           what          kind      why\n");
    for region in REGIONS {
        let kind = match region.kind {
            Kind::Ram => "ram",
            Kind::Reserved => "reserved",
            Kind::Hole => "hole",
            Kind::Device => "device",
        };
        let (start, end) = (region.start, region.end());
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{start:#012x}  {end:#012x}  {:<12}  {kind:<8}  {}", region.name, region.why);
    }
    text.push_str("RAM beyond 3 GiB continues at 0x0100000000.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_and_a_wrong_order_are_noticed() {
        let at = |start, len| Region::new("x", start, len, Kind::Ram, "test");
        assert!(ascending_and_disjoint(&[at(0, 10), at(10, 10)]));
        assert!(!ascending_and_disjoint(&[at(0, 11), at(10, 10)]));
        assert!(!ascending_and_disjoint(&[at(10, 10), at(0, 10)]));
        assert!(ascending_and_disjoint(&[]));
    }

    #[test]
    fn the_table_names_every_region_once() {
        let text = explain();
        for region in REGIONS {
            assert!(text.contains(region.why), "{}", region.name);
            assert!(region.len > 0);
            assert!(!region.why.is_empty());
        }
        assert_eq!(text.lines().count(), REGIONS.len() + 2);
    }

    #[test]
    fn everything_the_entry_reads_is_identity_mapped() {
        for region in [PAGE_TABLES, GDT, BOOT_PARAMS, COMMAND_LINE, RNG_SEED, MP_TABLE] {
            assert!(region.end() <= IDENTITY_MAPPED_END);
        }
    }
}
