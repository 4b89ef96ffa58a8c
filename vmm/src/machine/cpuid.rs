// SPDX-License-Identifier: Apache-2.0
//! What the guest's CPUs say about themselves: the host's answer, minus nested virtualisation,
//! plus a flat topology.
//!
//! Pure: entries in, entries out. Hiding VMX and SVM is part of the security contract (a guest
//! inside a sandbox is a sibling made by the host, never a nested VM).

use kvm_bindings::kvm_cpuid_entry2;

/// Leaf 1: features, APIC id, logical CPUs.
const FEATURES: u32 = 0x1;
/// Leaf 4 (Intel) and 0x8000_001d (AMD): how caches are shared.
const CACHES_INTEL: u32 = 0x4;
/// Leaf 0xb: topology by x2APIC id.
const TOPOLOGY: u32 = 0xb;
/// Leaf 0x1f: topology, version 2.
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_SVM: u32 = 0x8000_000a;
const CACHES_AMD: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
/// Leaf 0x8000_001f: memory encryption, which this monitor does not offer.
const AMD_SEV: u32 = 0x8000_001f;
/// Leaf 0x8000_0026: AMD's extended topology.
const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;
const AMD_ECX_TOPOLOGY_EXT: u32 = 1 << 22;

/// The entries for vCPU `index` of `count`, out of what KVM supports on this host.
pub fn for_vcpu(supported: &[kvm_cpuid_entry2], index: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = supported.iter().copied().filter(|e| keep(e.function, e.index)).collect();
    for entry in &mut entries {
        adapt(entry, u32::from(index), u32::from(count));
    }
    entries
}

/// Leaves that describe hardware the guest does not have are left out and read as zero.
fn keep(function: u32, index: u32) -> bool {
    match function {
        AMD_SVM | AMD_SEV | AMD_TOPOLOGY_V2 | TOPOLOGY_V2 => false,
        TOPOLOGY => index <= 1,
        _ => true,
    }
}

fn adapt(entry: &mut kvm_cpuid_entry2, apic_id: u32, count: u32) {
    match entry.function {
        FEATURES => {
            entry.ebx = (entry.ebx & 0xffff) | (count << 16) | (apic_id << 24);
            entry.ecx &= !LEAF1_ECX_VMX;
            // KVM leaves this bit to whoever made the APIC in the kernel: without it Linux
            // wants a PIT to calibrate against, which costs a boot a quarter of its time.
            entry.ecx |= LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR;
            set(&mut entry.edx, LEAF1_EDX_HTT, count > 1);
        }
        // Bits 31:26 cores in the package - 1, bits 25:14 CPUs that share this cache - 1.
        CACHES_INTEL if entry.eax & 0x1f != 0 => {
            let last_level = (entry.eax >> 5) & 7 >= 3;
            let sharing = if last_level { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | ((count - 1) << 26);
        }
        CACHES_AMD if entry.eax & 0x1f != 0 => {
            let last_level = (entry.eax >> 5) & 7 >= 3;
            let sharing = if last_level { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
        }
        TOPOLOGY => topology(entry, apic_id, count),
        AMD_FEATURES => {
            entry.ecx &= !AMD_ECX_SVM;
            set(&mut entry.ecx, AMD_ECX_CMP_LEGACY, count > 1);
            entry.ecx &= !AMD_ECX_TOPOLOGY_EXT;
        }
        // Bits 7:0 CPUs - 1, bits 15:12 width of a core's id in the APIC id.
        AMD_SIZES => entry.ecx = (id_bits(count) << 12) | (count - 1),
        AMD_TOPOLOGY => {
            entry.eax = apic_id;
            entry.ebx = apic_id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Level 0 is one thread a core, level 1 all cores of one package.
fn topology(entry: &mut kvm_cpuid_entry2, apic_id: u32, count: u32) {
    let (shift, cpus, kind) = if entry.index == 0 { (0, 1, 1) } else { (id_bits(count), count, 2) };
    entry.eax = shift;
    entry.ebx = cpus;
    entry.ecx = entry.index | (kind << 8);
    entry.edx = apic_id;
}

/// Bits that hold every id below `count`.
fn id_bits(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: !0, ebx: !0, ecx: !0, edx: !0, ..Default::default() }
    }

    fn host() -> Vec<kvm_cpuid_entry2> {
        let plain =
            [0, 1, 4, 7, 0xb, 0x1f, 0x4000_0000, AMD_FEATURES, AMD_SIZES, AMD_SVM, CACHES_AMD, AMD_TOPOLOGY, AMD_SEV];
        let mut all: Vec<_> = plain.iter().map(|&function| entry(function, 0)).collect();
        all.extend([entry(0xb, 1), entry(0xb, 2), entry(0x1f, 1)]);
        all
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        entries.iter().copied().find(|e| e.function == function && e.index == index)
    }

    #[test]
    fn nested_virtualisation_is_hidden_from_every_vcpu() {
        for index in 0..4 {
            let entries = for_vcpu(&host(), index, 4);
            assert_eq!(find(&entries, 1, 0).unwrap().ecx & (1 << 5), 0, "VMX");
            assert_eq!(find(&entries, AMD_FEATURES, 0).unwrap().ecx & (1 << 2), 0, "SVM");
            assert!(find(&entries, AMD_SVM, 0).is_none());
            assert!(find(&entries, AMD_SEV, 0).is_none());
        }
    }

    #[test]
    fn every_leaf_that_names_the_apic_id_agrees() {
        for (index, count) in [(0, 1), (2, 3), (31, 32)] {
            let entries = for_vcpu(&host(), index, count);
            let id = u32::from(index);
            assert_eq!(find(&entries, 1, 0).unwrap().ebx >> 24, id);
            assert_eq!(find(&entries, 0xb, 0).unwrap().edx, id);
            assert_eq!(find(&entries, 0xb, 1).unwrap().edx, id);
            assert_eq!(find(&entries, AMD_TOPOLOGY, 0).unwrap().eax, id);
        }
    }

    #[test]
    fn topology_covers_all_cpus_and_ends_after_two_levels() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (32, 5)] {
            let entries = for_vcpu(&host(), 0, count);
            let cores = find(&entries, 0xb, 1).unwrap();
            assert_eq!(cores.eax, bits, "{count}");
            assert_eq!(cores.ebx, u32::from(count));
            assert_eq!(cores.ecx, 1 | (2 << 8));
            assert!(find(&entries, 0xb, 2).is_none());
            assert!(find(&entries, 0x1f, 0).is_none());
            assert_eq!(find(&entries, 1, 0).unwrap().edx & (1 << 28) != 0, count > 1);
            assert_eq!(find(&entries, AMD_SIZES, 0).unwrap().ecx & 0xff, u32::from(count) - 1);
        }
    }

    #[test]
    fn the_deadline_timer_and_the_hypervisor_bit_are_shown_even_if_kvm_left_them_out() {
        let mut bare = entry(1, 0);
        bare.ecx = 0;
        let ecx = for_vcpu(&[bare], 0, 1)[0].ecx;
        assert_eq!(ecx, (1 << 24) | (1 << 31));
    }

    #[test]
    fn other_leaves_pass_unchanged() {
        let entries = for_vcpu(&host(), 1, 2);
        for function in [0, 7, 0x4000_0000] {
            assert_eq!(find(&entries, function, 0).unwrap(), entry(function, 0));
        }
    }

    #[test]
    fn a_cache_below_the_last_level_is_not_shared() {
        let mut l1 = entry(4, 0);
        l1.eax = 1 | (1 << 5) | (7 << 14) | (7 << 26);
        let got = for_vcpu(&[l1], 0, 4)[0].eax;
        assert_eq!((got >> 14) & 0xfff, 0);
        assert_eq!(got >> 26, 3);
    }
}
