// SPDX-License-Identifier: Apache-2.0
//! KVM: opening it, and making a VM with its memory, interrupt chip, events and vCPUs.
//!
//! The order is fixed here because it is worth milliseconds: memory slots come before the
//! interrupt chip (a slot added after it waits 6 ms for an SRCU grace period), and there is no
//! PIT, which an unmodified Linux does not need once it sees a TSC deadline timer and kvm-clock.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_cpuid_entry2, kvm_msr_entry,
    kvm_userspace_memory_region,
};
use kvm_bindings::{Msrs, kvm_regs, kvm_sregs};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::config::WORKING_SET_PARTS_MAX;
use crate::memory::{self, GuestRam};
use crate::sys;

use super::bus::WINDOWS_START;
use super::cpuid;
use super::pages::ReadPages;
use super::state::{self, MachineState, VcpuState};

/// The page with which Intel CPUs enter real mode; inside the MMIO gap, below the TSS.
pub const IDENTITY_MAP_START: u64 = 0xfffb_c000;
/// Three pages that Intel CPUs need for a task state; inside the MMIO gap.
pub const TSS_START: u64 = 0xfffb_d000;
/// The only version of the interface that exists.
const API_VERSION: i32 = 12;

/// What is needed of KVM, and for what.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "guest memory"),
    (Cap::Irqchip, "interrupt controllers in the kernel"),
    (Cap::Ioeventfd, "queue notifications"),
    (Cap::Irqfd, "device interrupts"),
    (Cap::ExtCpuid, "CPU features"),
    (Cap::SetTssAddr, "real mode on Intel CPUs"),
    (Cap::TscDeadlineTimer, "a timer without a PIT"),
];

/// Revision of the microcode, the same number on Intel and AMD. Linux judges by it which defects
/// of the CPU are mended; KVM's own default is so old that it finds defects the host has not.
const MSR_MICROCODE: u32 = 0x8b;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back: without it Linux maps memory uncached in places.
const MTRR_ON_WRITE_BACK: u64 = (1 << 11) | 6;

/// Why KVM cannot be used, or a VM not be made.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// /dev/kvm does not exist.
    #[error("opening /dev/kvm failed: it does not exist; load kvm_intel or kvm_amd, or run `midge doctor`")]
    Absent(#[source] io::Error),
    /// /dev/kvm may not be opened.
    #[error("opening /dev/kvm failed: no permission; add the user to the group that owns it, or run `midge doctor`")]
    Permission(#[source] io::Error),
    /// Opening /dev/kvm failed for another reason.
    #[error("opening /dev/kvm failed")]
    Open(#[source] io::Error),
    /// The interface has another version.
    #[error("KVM speaks API version {found}; needed: {API_VERSION}")]
    Version {
        /// The version found.
        found: i32,
    },
    /// A capability is missing.
    #[error("this KVM lacks {cap:?}, needed for {purpose}; a newer host kernel is needed")]
    Lacks {
        /// The capability.
        cap: Cap,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// More vCPUs than the host takes.
    #[error("KVM takes at most {max} vCPUs on this host; asked for: {asked}")]
    Vcpus {
        /// The configured number.
        asked: u8,
        /// What KVM says.
        max: usize,
    },
    /// One step of making the VM failed.
    #[error("KVM: {step} failed")]
    Step {
        /// What was attempted.
        step: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

pub(super) fn step(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Step { step, source: source.into() }
}

/// An opened KVM with everything that is needed of it.
#[derive(Debug)]
pub struct Host(Kvm);

impl Host {
    /// Opens /dev/kvm and checks version, capabilities and the number of vCPUs.
    ///
    /// # Errors
    /// [`KvmError`] says what is missing and what to do about it.
    pub fn open(vcpus: u8) -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|e| classify_open(e.into()))?;
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(KvmError::Version { found });
        }
        if let Some(&(cap, purpose)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Lacks { cap, purpose });
        }
        let max = kvm.get_max_vcpus();
        if usize::from(vcpus) > max {
            return Err(KvmError::Vcpus { asked: vcpus, max });
        }
        Ok(Self(kvm))
    }

    /// The CPU features KVM can give a guest here.
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub fn cpu_features(&self) -> Result<Features, KvmError> {
        let cpuid =
            self.0.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(step("reading the supported CPU features"))?;
        let mut list = msrs(&[(MSR_MICROCODE, 0)])?;
        // A KVM that does not tell keeps its own default.
        let known = self.0.get_msrs(&mut list).is_ok_and(|count| count == 1);
        let microcode = list.as_slice().first().map(|entry| entry.data).filter(|&data| known && data != 0);
        Ok(Features { cpuid, microcode })
    }

    /// The MSRs that a snapshot carries on this host: KVM's list and `extra`.
    ///
    /// # Errors
    /// [`KvmError::Step`], also when the host's extended state is larger than a snapshot's.
    pub fn snapshot_msrs(&self, extra: &[u32]) -> Result<Vec<u32>, KvmError> {
        state::check_xsave_size(&self.0)?;
        state::msr_list(&self.0, extra)
    }

    /// Makes a VM over `ram`, with interrupt controllers. Reads of the device windows find `pages`. With `track_writes`
    /// KVM keeps a log of the pages that the guest writes to, for [`Machine::written`].
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub fn create(&self, ram: &GuestRam, pages: Option<ReadPages>, track_writes: bool) -> Result<Machine, KvmError> {
        let vm = self.0.create_vm().map_err(step("creating a VM"))?;
        for (slot, region) in (0..).zip(ram.iter()) {
            add_slot(&vm, slot, region, if track_writes { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })?;
        }
        if let Some(pages) = &pages {
            add_pages(&vm, u32::try_from(ram.num_regions()).unwrap_or(u32::MAX), pages)?;
        }
        vm.set_identity_map_address(IDENTITY_MAP_START).map_err(step("placing the identity map"))?;
        let tss = usize::try_from(TSS_START).unwrap_or(usize::MAX);
        vm.set_tss_address(tss).map_err(step("placing the task state"))?;
        vm.create_irq_chip().map_err(step("creating the interrupt controllers"))?;
        let tracked = (0..).zip(ram.iter()).map(|(slot, region)| (slot, region.start_addr().0, region.len()));
        Ok(Machine { vm, tracked: tracked.filter(|_| track_writes).collect(), _pages: pages })
    }
}

impl AsRawFd for Host {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What the guest's CPUs can be here.
#[derive(Debug)]
pub struct Features {
    cpuid: CpuId,
    microcode: Option<u64>,
}

impl Features {
    /// What vCPU `index` of `count` is shown.
    pub fn for_vcpu(&self, index: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        cpuid::for_vcpu(self.cpuid.as_slice(), index, count)
    }
}

fn classify_open(source: io::Error) -> KvmError {
    match source.kind() {
        io::ErrorKind::NotFound => KvmError::Absent(source),
        io::ErrorKind::PermissionDenied => KvmError::Permission(source),
        _ if source.raw_os_error() == Some(libc::ENODEV) => KvmError::Absent(source),
        _ => KvmError::Open(source),
    }
}

#[expect(unsafe_code, reason = "KVM is given the address of guest memory")]
fn add_slot(vm: &VmFd, slot: u32, region: &impl GuestMemoryRegion, flags: u32) -> Result<(), KvmError> {
    let userspace_addr = region
        .get_host_address(vm_memory::MemoryRegionAddress(0))
        .map_err(|e| KvmError::Step { step: "finding guest memory", source: io::Error::other(e) })?;
    let slot = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: userspace_addr.addr() as u64,
    };
    // SAFETY: the range is a mapping of this process that is never unmapped (memory.rs), and no
    // other slot covers it, as the regions of a guest memory are disjoint.
    unsafe { vm.set_user_memory_region(slot) }.map_err(step("giving the VM its memory"))
}

/// A slot the guest can read without an exit; a write to it is one, or an ioeventfd's.
#[expect(unsafe_code, reason = "KVM is given the address of the device windows")]
fn add_pages(vm: &VmFd, slot: u32, pages: &ReadPages) -> Result<(), KvmError> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: WINDOWS_START,
        memory_size: pages.len_bytes(),
        userspace_addr: pages.host_address(),
    };
    // SAFETY: the range is a mapping that `Machine` keeps until the VM is closed, and the windows
    // lie in the gap of guest memory, where no other slot is.
    unsafe { vm.set_user_memory_region(slot) }.map_err(step("giving the VM its device windows"))
}

/// A VM with memory and interrupt controllers.
#[derive(Debug)]
pub struct Machine {
    vm: VmFd,
    /// Slot, guest-physical address and length in bytes of the memory whose writes are logged.
    tracked: Vec<(u32, u64, u64)>,
    /// Mapped as long as the VM lives: closed after it.
    _pages: Option<ReadPages>,
}

impl Machine {
    /// The memory that the guest has written to since the last time, if that is logged: guest-physical address and length of
    /// each part, ascending, at most [`WORKING_SET_PARTS_MAX`] of them. The lower ones, where there are more; none of a
    /// region whose log KVM does not give.
    pub fn written(&self) -> Vec<(u64, u64)> {
        let mut parts = Vec::new();
        for (slot, start, len_bytes) in &self.tracked {
            let log = usize::try_from(*len_bytes).ok().and_then(|len| self.vm.get_dirty_log(*slot, len).ok());
            parts.extend(memory::runs(&log.unwrap_or_default()).map(|(at, len)| (start + at, len)));
        }
        parts.truncate(WORKING_SET_PARTS_MAX);
        parts
    }

    /// A vCPU whose mapping is no twin's: it would keep this VM alive for as long as the twin lives.
    fn new_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        let mut vcpu = self.vm.create_vcpu(u64::from(index)).map_err(step("creating a vCPU"))?;
        let kept = sys::keep_from_twins(vcpu.get_kvm_run(), self.vm.run_size());
        kept.map_err(|source| KvmError::Step { step: "keeping a vCPU to this process", source })?;
        Ok(vcpu)
    }

    /// Makes vCPU `index` with the CPU features of `entries`; it is not yet told where to start.
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub fn create_vcpu(
        &self,
        index: u8,
        entries: &[kvm_cpuid_entry2],
        features: &Features,
    ) -> Result<VcpuFd, KvmError> {
        let vcpu = self.new_vcpu(index)?;
        let cpuid = CpuId::from_entries(entries).map_err(|e| KvmError::Step {
            step: "listing the CPU features",
            source: io::Error::other(format!("{e:?}")),
        })?;
        vcpu.set_cpuid2(&cpuid).map_err(step("setting the CPU features"))?;
        let mut values = vec![(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MSR_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK)];
        values.extend(features.microcode.map(|revision| (MSR_MICROCODE, revision)));
        // Hosts that refuse one of them (the count tells) run Linux all the same.
        vcpu.set_msrs(&msrs(&values)?).map_err(step("setting the MSRs"))?;
        Ok(vcpu)
    }

    /// Makes vCPU `index` as `state` describes it.
    ///
    /// # Errors
    /// [`KvmError::Step`] names what this host refuses.
    pub fn restore_vcpu(&self, index: u8, state: &VcpuState) -> Result<VcpuFd, KvmError> {
        let vcpu = self.new_vcpu(index)?;
        state.restore(&vcpu)?;
        Ok(vcpu)
    }

    /// The state of interrupt controllers and clock, while no vCPU runs.
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub fn state(&self) -> Result<MachineState, KvmError> {
        MachineState::save(&self.vm)
    }

    /// Puts the interrupt controllers where `state` says; before there are vCPUs.
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub fn restore_irqchips(&self, state: &MachineState) -> Result<(), KvmError> {
        state.restore_irqchips(&self.vm)
    }

    /// Lets the guest's clock go on where `state` says; before any vCPU runs.
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub fn restore_clock(&self, state: &MachineState) -> Result<(), KvmError> {
        state.restore_clock(&self.vm)
    }

    /// An eventfd that fires when the guest writes `value` (32 bits) at `addr`.
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub fn on_write(&self, addr: u64, value: u32, fd: &EventFd) -> Result<(), KvmError> {
        self.vm
            .register_ioevent(fd, &IoEventAddress::Mmio(addr), value)
            .map_err(step("registering a queue notification"))
    }

    /// Lets writes to `fd` raise interrupt line `gsi`.
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub fn connect_interrupt(&self, fd: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.vm.register_irqfd(fd, gsi).map_err(step("registering a device interrupt"))
    }
}

/// Puts the boot CPU where the guest's kernel starts.
///
/// `place` gets the segment and control registers as KVM made them and changes what it must.
///
/// # Errors
/// [`KvmError::Step`].
pub fn set_start(vcpu: &VcpuFd, regs: &kvm_regs, place: impl FnOnce(&mut kvm_sregs)) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(step("reading the system registers"))?;
    place(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(step("setting the system registers"))?;
    vcpu.set_regs(regs).map_err(step("setting the registers"))
}

/// A list of model-specific registers for KVM.
pub(super) fn msrs(values: &[(u32, u64)]) -> Result<Msrs, KvmError> {
    let entries: Vec<_> =
        values.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    Msrs::from_entries(&entries)
        .map_err(|e| KvmError::Step { step: "listing the MSRs", source: io::Error::other(format!("{e:?}")) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn failures_to_open_are_told_apart_and_say_what_to_do() {
        let absent = classify_open(io::Error::from_raw_os_error(libc::ENOENT));
        assert!(matches!(absent, KvmError::Absent(_)));
        assert!(absent.to_string().contains("midge doctor"));
        let no_module = classify_open(io::Error::from_raw_os_error(libc::ENODEV));
        assert!(matches!(no_module, KvmError::Absent(_)));
        let denied = classify_open(io::Error::from_raw_os_error(libc::EACCES));
        assert!(matches!(denied, KvmError::Permission(_)));
        assert!(denied.to_string().contains("group"));
        let other = classify_open(io::Error::from_raw_os_error(libc::EMFILE));
        assert!(matches!(other, KvmError::Open(_)));
        assert!(other.source().is_some());
    }
}
