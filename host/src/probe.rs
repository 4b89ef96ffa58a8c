// SPDX-License-Identifier: Apache-2.0
//! Whether this machine's KVM can run an unmodified guest, found by trying.
//!
//! A guest of five instructions in 64-bit mode executes `cmpxchg16b`, which hardware virtualization runs like any
//! other and which a software KVM would have to emulate. Names of modules are never asked: a module may do either.
#![expect(unsafe_code, reason = "KVM is given the address of the probe's memory")]

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";

const PAGE_BYTES: usize = 4096;
/// Pages of the probe's guest: its four tables and code, and one to exchange 16 bytes in.
const PAGES: usize = 6;
/// Guest address and page index of each part.
const PML4: usize = 1;
const PDPT: usize = 2;
const PD: usize = 3;
const CODE: usize = 4;
const DATA: usize = 5;

/// Present and writable (SDM 3A §5.5.4).
const TABLE_FLAGS: u64 = 0x3;
/// Present, writable, a page of 2 MiB.
const LARGE_FLAGS: u64 = 0x83;
const CR0_PROTECTED_PAGED: u64 = 0x8000_0011;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 0x20;
const EFER_LONG_MODE_ACTIVE: u64 = 0x500;

/// The port and value by which the guest says that it got through.
const PORT: u16 = 0x10;
const PASSED: u8 = 0x42;
/// `cmpxchg16b [rsi]` · `mov edx, 0x10` · `mov al, 0x42` · `out dx, al` · `hlt` (SDM 2A).
const PROGRAM: [u8; 13] = [0x48, 0x0f, 0xc7, 0x0e, 0xba, 0x10, 0, 0, 0, 0xb0, PASSED, 0xee, 0xf4];
/// Entries into the guest before the probe gives up: one is enough, a signal may interrupt some.
const ENTRIES_MAX: usize = 64;

/// What KVM is good for here.
#[derive(Debug)]
pub enum KvmState {
    /// Runs unmodified guests.
    Usable,
    /// Runs only kernels made for it: software virtualization without the CPU's help.
    SoftwareOnly {
        /// How the probe's guest ended.
        detail: String,
    },
    /// There is no /dev/kvm.
    Absent,
    /// /dev/kvm may not be opened.
    NoPermission,
    /// /dev/kvm is there and something else is wrong.
    Broken {
        /// What was attempted.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl KvmState {
    /// Whether a kernel that is not made for this KVM runs.
    #[must_use]
    pub const fn runs_unmodified(&self) -> bool {
        matches!(self, Self::Usable)
    }

    /// Whether there is a KVM that can be opened at all, so that a kernel of the user's choice may be tried.
    #[must_use]
    pub const fn can_be_tried(&self) -> bool {
        matches!(self, Self::Usable | Self::SoftwareOnly { .. })
    }

    /// The command or step that mends it, where there is one.
    #[must_use]
    pub const fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Usable => None,
            Self::SoftwareOnly { .. } => {
                Some("give a kernel made for this KVM with --kernel, or use a machine with VT-x or SVM")
            }
            Self::Absent => {
                Some("enable virtualization in the firmware, then: sudo modprobe kvm_intel || sudo modprobe kvm_amd")
            }
            Self::NoPermission => Some("sudo usermod -aG kvm \"$USER\", then log in again"),
            Self::Broken { .. } => Some("see the kernel's log: sudo dmesg | grep -i kvm"),
        }
    }
}

impl fmt::Display for KvmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable => write!(f, "KVM runs unmodified kernels"),
            Self::SoftwareOnly { detail } => {
                write!(f, "this machine's KVM is software only and cannot run an unmodified kernel ({detail})")
            }
            Self::Absent => write!(f, "this machine has no {DEVICE}"),
            Self::NoPermission => write!(f, "no permission to open {DEVICE}"),
            Self::Broken { step, source } => write!(f, "{DEVICE} does not work: {step} failed: {source}"),
        }
    }
}

/// Tries the machine's KVM. Takes about a millisecond.
#[must_use]
pub fn probe() -> KvmState {
    probe_at(Path::new(DEVICE))
}

/// [`probe`] for the device at `path`.
#[must_use]
pub fn probe_at(path: &Path) -> KvmState {
    let opened = CString::new(path.as_os_str().as_bytes())
        .map_err(io::Error::other)
        .and_then(|path| Kvm::new_with_path(path).map_err(io::Error::from));
    match opened {
        Ok(kvm) => run(&kvm).unwrap_or_else(|(step, source)| KvmState::Broken { step, source }),
        Err(source) => refused(source),
    }
}

fn refused(source: io::Error) -> KvmState {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => KvmState::Absent,
        Some(libc::EACCES | libc::EPERM) => KvmState::NoPermission,
        _ => KvmState::Broken { step: "opening it", source },
    }
}

/// One page of guest memory, where KVM wants it.
#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

type Failed = (&'static str, io::Error);

fn step<T>(step: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, Failed> {
    result.map_err(|error| (step, error.into()))
}

fn run(kvm: &Kvm) -> Result<KvmState, Failed> {
    let vm = step("creating a VM", kvm.create_vm())?;
    let memory = memory();
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: (PAGES * PAGE_BYTES) as u64,
        userspace_addr: memory.as_ptr() as u64,
    };
    // SAFETY: the range is `memory`, page-aligned and of this size; nothing here reads it afterwards, and it is
    // freed only after the VM and its vCPU are gone (they are dropped below, before it).
    step("giving the VM its memory", unsafe { vm.set_user_memory_region(region) })?;
    let mut vcpu = step("creating a vCPU", vm.create_vcpu(0))?;
    // KVM refuses 64-bit mode to a vCPU that does not say it has it.
    let cpuid = step("reading the processor's features", kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))?;
    step("giving the vCPU its features", vcpu.set_cpuid2(&cpuid))?;
    let state = start(&vcpu).and_then(|()| watch(&mut vcpu));
    drop(vcpu);
    drop(vm);
    drop(memory);
    state
}

fn memory() -> Box<[Page]> {
    let mut pages = vec![Page([0; PAGE_BYTES]); PAGES].into_boxed_slice();
    let tables = [
        (PML4, (PDPT * PAGE_BYTES) as u64 | TABLE_FLAGS),
        (PDPT, (PD * PAGE_BYTES) as u64 | TABLE_FLAGS),
        (PD, LARGE_FLAGS),
    ];
    for (page, entry) in tables {
        pages[page].0[..8].copy_from_slice(&entry.to_le_bytes());
    }
    pages[CODE].0[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    pages
}

fn start(vcpu: &VcpuFd) -> Result<(), Failed> {
    let mut sregs = step("reading the system registers", vcpu.get_sregs())?;
    let data =
        kvm_segment { limit: u32::MAX, type_: 3, present: 1, s: 1, db: 1, g: 1, selector: 0x10, ..Default::default() };
    sregs.cs = kvm_segment { type_: 11, db: 0, l: 1, selector: 0x8, ..data };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr0 = CR0_PROTECTED_PAGED;
    sregs.cr3 = (PML4 * PAGE_BYTES) as u64;
    sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = EFER_LONG_MODE_ACTIVE;
    step("setting the system registers", vcpu.set_sregs(&sregs))?;
    let regs =
        kvm_regs { rip: (CODE * PAGE_BYTES) as u64, rsi: (DATA * PAGE_BYTES) as u64, rflags: 2, ..Default::default() };
    step("setting the registers", vcpu.set_regs(&regs))
}

fn watch(vcpu: &mut VcpuFd) -> Result<KvmState, Failed> {
    for _ in 0..ENTRIES_MAX {
        let detail = match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, [PASSED])) => return Ok(KvmState::Usable),
            Ok(VcpuExit::Intr) => continue,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Ok(VcpuExit::InternalError) => "it cannot emulate cmpxchg16b".to_owned(),
            Ok(exit) => format!("a guest of five instructions ended with {exit:?}"),
            Err(error) => return Err(("running a guest", error.into())),
        };
        return Ok(KvmState::SoftwareOnly { detail });
    }
    Err(("running a guest", io::Error::from(io::ErrorKind::TimedOut)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_state_and_its_remedy() {
        let of = |errno| refused(io::Error::from_raw_os_error(errno));
        assert!(matches!(of(libc::ENOENT), KvmState::Absent));
        assert!(matches!(of(libc::ENODEV), KvmState::Absent));
        assert!(matches!(of(libc::EACCES), KvmState::NoPermission));
        assert!(matches!(of(libc::EMFILE), KvmState::Broken { .. }));
        for state in [of(libc::ENOENT), of(libc::EACCES), of(libc::EMFILE)] {
            assert!(!state.runs_unmodified() && !state.can_be_tried() && state.remedy().is_some(), "{state}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_absent() {
        assert!(matches!(probe_at(Path::new("/nonexistent/kvm")), KvmState::Absent));
    }

    #[test]
    fn a_file_that_is_not_kvm_is_broken_and_says_where() {
        let state = probe_at(Path::new("/dev/null"));
        assert!(matches!(state, KvmState::Broken { .. }), "{state}");
        assert!(state.to_string().contains("creating a VM"), "{state}");
    }

    #[test]
    fn trying_this_machine_answers_twice_the_same() {
        let (first, second) = (probe(), probe());
        println!("this machine: {first}");
        assert_eq!(std::mem::discriminant(&first), std::mem::discriminant(&second));
        assert_eq!(first.runs_unmodified(), first.remedy().is_none());
    }

    #[test]
    fn the_program_is_what_the_comment_says() {
        assert_eq!(usize::from(PROGRAM[5]), usize::from(PORT));
        assert_eq!(PROGRAM.last(), Some(&0xf4));
        let pages = memory();
        assert_eq!(pages.as_ptr() as usize % PAGE_BYTES, 0);
        assert_eq!(pages[CODE].0[..PROGRAM.len()], PROGRAM);
    }
}
