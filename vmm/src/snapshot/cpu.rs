// SPDX-License-Identifier: Apache-2.0
//! Whether this host's CPU can go on where another's stopped.
//!
//! A guest looks at its CPU once and relies on it for ever: every feature it was shown must be
//! here. More may be here than it was shown; it does not see them.

use kvm_bindings::kvm_cpuid_entry2;

/// Leaves whose registers are sets of features: function, index, and which of eax, ebx, ecx and
/// edx are such (SDM vol. 2, CPUID; APM vol. 3, appendix E).
const FEATURE_LEAVES: [(u32, u32, [bool; 4]); 8] = [
    (0x1, 0, [false, false, true, true]),
    (0x7, 0, [false, true, true, true]),
    (0x7, 1, [true, false, false, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0007, 0, [false, false, false, true]),
    (0x8000_0008, 0, [false, true, false, false]),
];
/// Bits that say what the system has switched on, not what the CPU can: OSXSAVE, the APIC, OSPKE.
const DYNAMIC: [(u32, u32, [u32; 4]); 3] =
    [(0x1, 0, [0, 0, 1 << 27, 1 << 9]), (0x7, 0, [0, 0, 1 << 4, 0]), (0x8000_0001, 0, [0, 0, 0, 1 << 9])];
const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

/// Why this host cannot go on with a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// Another maker's CPU.
    #[error("it was made on a CPU of {made}, this is one of {here}; make the template anew on this host")]
    Vendor {
        /// Where it was made.
        made: String,
        /// This one.
        here: String,
    },
    /// Features that the guest was shown are missing here.
    #[error(
        "its CPU had features that this one lacks: CPUID {function:#x}.{index} {register} bits {missing:#010x}; \
         make the template anew on this host"
    )]
    Features {
        /// CPUID function.
        function: u32,
        /// CPUID index.
        index: u32,
        /// Register.
        register: &'static str,
        /// The bits that are missing.
        missing: u32,
    },
}

/// Compares what a guest was shown with what KVM can give here.
///
/// # Errors
/// [`CpuError`] names the first difference.
pub fn check(shown: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<(), CpuError> {
    let (made, vendor) = (maker(shown), maker(here));
    if made != vendor {
        return Err(CpuError::Vendor { made, here: vendor });
    }
    for (function, index, is_set) in FEATURE_LEAVES {
        let Some(shown) = find(shown, function, index) else { continue };
        let here = find(here, function, index).unwrap_or_default();
        let dynamic = DYNAMIC.iter().find(|(f, i, _)| (*f, *i) == (function, index)).map_or([0; 4], |entry| entry.2);
        for (place, register) in REGISTERS.iter().enumerate().filter(|(place, _)| is_set[*place]) {
            let missing = shown[place] & !here[place] & !dynamic[place];
            if missing != 0 {
                return Err(CpuError::Features { function, index, register, missing });
            }
        }
    }
    Ok(())
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<[u32; 4]> {
    let entry = entries.iter().find(|entry| (entry.function, entry.index) == (function, index))?;
    Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
}

/// Leaf 0: the maker's name in ebx, edx, ecx. From a file it may be anything.
fn maker(entries: &[kvm_cpuid_entry2]) -> String {
    let [_, ebx, ecx, edx] = find(entries, 0, 0).unwrap_or_default();
    let bytes: Vec<u8> = [ebx, edx, ecx].iter().flat_map(|register| register.to_le_bytes()).collect();
    bytes.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn cpu(features: u32) -> Vec<kvm_cpuid_entry2> {
        vec![entry(0, 0, [7, 0x6874_7541, 0x444d_4163, 0x6974_6e65]), entry(7, 0, [0, features, 0, 0])]
    }

    #[test]
    fn more_features_are_fine_fewer_are_named() {
        assert_eq!(check(&cpu(0b0110), &cpu(0b1110)), Ok(()));
        let lacks = check(&cpu(0b0110), &cpu(0b0010)).unwrap_err();
        assert_eq!(lacks, CpuError::Features { function: 7, index: 0, register: "ebx", missing: 0b100 });
        assert!(lacks.to_string().contains("0x7.0 ebx"), "{lacks}");
    }

    #[test]
    fn a_leaf_that_is_missing_here_has_no_features() {
        let here = &cpu(0)[..1];
        assert!(matches!(check(&cpu(1), here), Err(CpuError::Features { missing: 1, .. })));
        assert_eq!(check(here, &cpu(1)), Ok(()));
    }

    #[test]
    fn another_maker_is_refused_by_name_whatever_its_bytes() {
        let mut other = cpu(0);
        other[0].ebx = 0x0a1b_ff00;
        let error = check(&other, &cpu(0)).unwrap_err();
        assert!(error.to_string().contains("AuthenticAMD"), "{error}");
        assert!(error.to_string().chars().all(|c| !c.is_control()));
    }

    #[test]
    fn what_the_system_switched_on_is_no_feature_of_the_cpu() {
        let with_osxsave = [cpu(0), vec![entry(1, 0, [0, 0, 1 << 27, 1 << 9])]].concat();
        let without = [cpu(0), vec![entry(1, 0, [0; 4])]].concat();
        assert_eq!(check(&with_osxsave, &without), Ok(()));
    }
}
