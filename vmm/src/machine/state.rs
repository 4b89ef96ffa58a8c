// SPDX-License-Identifier: Apache-2.0
//! What KVM holds of a stopped machine, out of it as plain data and into another one.
//!
//! Order matters on the way in and is fixed here: CPU features before everything, system
//! registers (which place the APIC) before the APIC, the APIC before the MSRs, or a TSC deadline
//! that was set is lost. Nothing here decides when a machine stops or whether a state may be
//! trusted: [`crate::snapshot`] does.
#![expect(unsafe_code, reason = "KVM_SET_XSAVE is unsafe in kvm-ioctls: its length depends on the host")]

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data, kvm_cpuid_entry2,
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::kvm::{KvmError, msrs, step};

/// Most MSRs in one call (KVM_MAX_MSR_ENTRIES).
const MSRS_AT_ONCE: usize = 256;
/// Length of `struct kvm_xsave` without its flexible tail, in bytes.
const XSAVE_BYTES: i32 = 4096;

/// Everything about one stopped vCPU.
#[derive(Debug, Default)]
pub struct VcpuState {
    /// The CPU features the guest was shown.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Running, halted, waiting for its start-up interrupt.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, the APIC's place.
    pub sregs: kvm_sregs,
    /// Floating point and vectors.
    pub xsave: kvm_xsave,
    /// Which parts of those are in use.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug_regs: kvm_debugregs,
    /// The local APIC, timer included.
    pub lapic: kvm_lapic_state,
    /// Model-specific registers that this KVM lets be read, the TSC among them.
    pub msrs: Vec<kvm_msr_entry>,
    /// Exceptions and interrupts between two instructions.
    pub events: kvm_vcpu_events,
}

/// The machine beside its vCPUs and memory.
#[derive(Debug, Default)]
pub struct MachineState {
    /// Both PICs and the I/O APIC.
    pub irqchips: [kvm_irqchip; 3],
    /// The clock that kvm-clock shows.
    pub clock: kvm_clock_data,
}

/// The MSRs that a state carries: KVM's own list and `extra`, each once.
///
/// # Errors
/// [`KvmError::Step`].
pub fn msr_list(kvm: &Kvm, extra: &[u32]) -> Result<Vec<u32>, KvmError> {
    let known = kvm.get_msr_index_list().map_err(step("listing the MSRs"))?;
    let mut list = known.as_slice().to_vec();
    list.extend(extra.iter().filter(|index| !known.as_slice().contains(index)));
    Ok(list)
}

/// Whether a vCPU's extended state fits [`VcpuState`]: it does unless this process asked the host
/// for AMX, which it never does.
///
/// # Errors
/// [`KvmError::Step`] with the size.
pub fn check_xsave_size(kvm: &Kvm) -> Result<(), KvmError> {
    let bytes = kvm.check_extension_int(Cap::Xsave2);
    if bytes <= XSAVE_BYTES {
        return Ok(());
    }
    let source = std::io::Error::other(format!("it takes {bytes} bytes; accepted: at most {XSAVE_BYTES}"));
    Err(KvmError::Step { step: "carrying the CPU's extended state", source })
}

impl VcpuState {
    /// Takes the state out of `vcpu`, which must not be running and has no exit left to complete.
    /// `cpuid` is what it was made with.
    ///
    /// # Errors
    /// [`KvmError::Step`] says which part could not be read.
    pub fn save(vcpu: &VcpuFd, cpuid: &[kvm_cpuid_entry2], msrs: &[u32]) -> Result<Self, KvmError> {
        Ok(Self {
            cpuid: cpuid.to_vec(),
            mp_state: vcpu.get_mp_state().map_err(step("reading a vCPU's run state"))?,
            regs: vcpu.get_regs().map_err(step("reading the registers"))?,
            sregs: vcpu.get_sregs().map_err(step("reading the system registers"))?,
            xsave: vcpu.get_xsave().map_err(step("reading the extended state"))?,
            xcrs: vcpu.get_xcrs().map_err(step("reading the extended control registers"))?,
            debug_regs: vcpu.get_debug_regs().map_err(step("reading the debug registers"))?,
            lapic: vcpu.get_lapic().map_err(step("reading the local APIC"))?,
            msrs: read_msrs(vcpu, msrs)?,
            events: vcpu.get_vcpu_events().map_err(step("reading the pending events"))?,
        })
    }

    /// Puts the state into a new vCPU.
    ///
    /// # Errors
    /// [`KvmError::Step`] says which part this host refuses.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|e| KvmError::Step {
            step: "listing the CPU features",
            source: std::io::Error::other(format!("{e:?}")),
        })?;
        vcpu.set_cpuid2(&cpuid).map_err(step("setting the CPU features"))?;
        vcpu.set_mp_state(self.mp_state).map_err(step("setting a vCPU's run state"))?;
        vcpu.set_regs(&self.regs).map_err(step("setting the registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(step("setting the system registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(step("setting the extended control registers"))?;
        // SAFETY: KVM reads the 4,096 bytes of this struct, as no part of the extended state that
        // needs more was ever enabled in this process (`check_xsave_size`).
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(step("setting the extended state"))?;
        vcpu.set_debug_regs(&self.debug_regs).map_err(step("setting the debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(step("setting the local APIC"))?;
        write_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(step("setting the pending events"))
    }
}

impl MachineState {
    /// Takes the state out of `vm`, whose vCPUs have stopped.
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub(super) fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let mut irqchips = [kvm_irqchip::default(); 3];
        for (chip, id) in irqchips.iter_mut().zip([KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]) {
            chip.chip_id = id;
            vm.get_irqchip(chip).map_err(step("reading an interrupt controller"))?;
        }
        let clock = vm.get_clock().map_err(step("reading the guest's clock"))?;
        Ok(Self { irqchips, clock })
    }

    /// Puts the interrupt controllers into a new VM.
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub(super) fn restore_irqchips(&self, vm: &VmFd) -> Result<(), KvmError> {
        self.irqchips.iter().try_for_each(|chip| vm.set_irqchip(chip).map_err(step("setting an interrupt controller")))
    }

    /// Lets the guest's clock go on where it stood: a fork has not lived through the time in
    /// which its template lay still, so its timers find nothing to catch up with. What time it is
    /// in the world the agent is told (`Welcome`).
    ///
    /// # Errors
    /// [`KvmError::Step`].
    pub(super) fn restore_clock(&self, vm: &VmFd) -> Result<(), KvmError> {
        let clock = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(step("setting the guest's clock"))
    }
}

/// Reads what it can of `indices`; registers that this vCPU does not have are left out.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let mut read = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(MSRS_AT_ONCE)];
        let values: Vec<_> = asked.iter().map(|&index| (index, 0)).collect();
        let mut list = msrs(&values)?;
        let count = vcpu.get_msrs(&mut list).map_err(step("reading the MSRs"))?.min(asked.len());
        read.extend_from_slice(&list.as_slice()[..count]);
        // The one after the last that was read is refused.
        let refused = usize::from(count < asked.len());
        rest = &rest[count + refused..];
    }
    Ok(read)
}

/// Writes all of `entries`. A register that refuses is fine where it has the value already.
fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(MSRS_AT_ONCE)];
        let list = Msrs::from_entries(asked).map_err(|e| KvmError::Step {
            step: "listing the MSRs",
            source: std::io::Error::other(format!("{e:?}")),
        })?;
        let count = vcpu.set_msrs(&list).map_err(step("setting the MSRs"))?.min(asked.len());
        if let Some(refused) = asked.get(count) {
            let has = read_msrs(vcpu, &[refused.index])?;
            if has.first().map(|entry| entry.data) != Some(refused.data) {
                let text = format!("register {:#x} does not take {:#x}", refused.index, refused.data);
                return Err(KvmError::Step { step: "setting the MSRs", source: std::io::Error::other(text) });
            }
        }
        rest = &rest[count + usize::from(count < asked.len())..];
    }
    Ok(())
}
