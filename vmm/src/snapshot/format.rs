// SPDX-License-Identifier: Apache-2.0
//! The state file.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | `MIDGE-VM` |
//! | 8 | 4 | version of the format: [`VERSION`] |
//! | 12 | 4 | CRC-32 (IEEE) of everything from offset 16 on |
//! | 16 | 8 | bytes from offset 24 on |
//! | 24 | | the body |
//!
//! The body, in this order; lists are a `u32` count and their items:
//!
//! | what | as |
//! | --- | --- |
//! | memory | `u64` bytes; `u64`, `u64` first and last address of the kernel; `u8` has a console |
//! | interrupt controllers | three `kvm_irqchip`: master, slave, I/O APIC |
//! | clock | `kvm_clock_data` |
//! | vCPUs | list of vCPUs |
//! | disks | list: registers; `u64` bytes; `u8` read-only; `u8` has a layer, then its page map: two bits a page, whole blocks of 4,096 bytes |
//! | vsock | `u8` present, then registers; `u32` next host port; `u8` had connections; `u64` guest CID |
//!
//! | part | as |
//! | --- | --- |
//! | a vCPU | list of `kvm_cpuid_entry2`; `kvm_mp_state`, `kvm_regs`, `kvm_sregs`, `kvm_xsave`, `kvm_xcrs` |
//! | | `kvm_debugregs`, `kvm_lapic_state`; list of `kvm_msr_entry`; `kvm_vcpu_events` |
//! | registers | `u32` status, device feature selector, driver feature selector; `u64` driver features |
//! | | `u32` queue selector, interrupt status; `u8` needs reset; list of queues; list of queues in use |
//! | a queue | geometry; `u8` ready |
//! | a queue in use | geometry; `u16` next avail, next used |
//! | geometry | `u32` size; `u64` descriptors, avail, used |

use std::io;

use super::codec::{CodecError, Reader, Writer};
use super::{DiskState, VmState, VsockDeviceState};
use crate::disk::PageMap;
use crate::disk::page_map::BLOCK_BYTES;
use crate::machine::state::{MachineState, VcpuState};
use crate::virtio::{Geometry, QueueRegisters, QueueState, TransportState};
use crate::vsock::VsockState;

/// First bytes of the file.
pub const MAGIC: [u8; 8] = *b"MIDGE-VM";
/// The only version that this monitor reads and writes.
pub const VERSION: u32 = 1;
/// Longest state file: every vCPU and disk at its largest stays far below.
pub const STATE_MAX_BYTES: u64 = 256 << 20;
/// Bytes before the body.
const HEADER_BYTES: usize = 24;
/// Most entries of CPU features and MSRs; KVM's own limits are 256 each.
const ENTRIES_MAX: usize = 1024;
/// Most queues of a device; ours have three.
const QUEUES_MAX: usize = 8;
/// Most vCPUs, as a configuration may have.
const VCPUS_MAX: usize = 32;
const _: () = assert!(VCPUS_MAX as u64 == crate::config::CPUS_MAX);
const DISKS_MAX: usize = crate::config::DISKS_MAX;
/// Largest disk with a layer, in pages: 16 TiB, as for overlays in memory.
const LAYER_PAGES_MAX: u64 = 1 << 32;

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Not a state file.
    #[error("it is no state of a midge VM")]
    Magic,
    /// Written by another version.
    #[error("it has version {found}, this monitor reads version {VERSION}; make the template anew")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Damaged or cut short.
    #[error("it is damaged: its checksum is {found:#010x}, its content's {computed:#010x}; make the template anew")]
    Checksum {
        /// What the file says.
        found: u32,
        /// What it should say.
        computed: u32,
    },
    /// Its length is wrong.
    #[error("it has {found} bytes where its header says {expected}: cut short; make the template anew")]
    Length {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The content makes no sense.
    #[error("its content is wrong: {0}")]
    Content(#[from] CodecError),
}

/// The file's content for `state`; `layers` are the page maps of the disks that have one.
///
/// # Errors
/// `FileTooLarge` beyond [`STATE_MAX_BYTES`].
pub fn encode(state: &VmState, layers: &[Option<&PageMap>]) -> io::Result<Vec<u8>> {
    let mut body = Writer::default();
    put_state(&mut body, state, layers);
    let body = body.into_bytes();
    let mut checked = (body.len() as u64).to_le_bytes().to_vec();
    checked.extend_from_slice(&body);
    let total = checked.len() as u64 + 16;
    if total > STATE_MAX_BYTES {
        let text = format!("a state of {total} bytes; accepted: at most {STATE_MAX_BYTES}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&crc32fast::hash(&checked).to_le_bytes());
    file.extend_from_slice(&checked);
    Ok(file)
}

/// The state in a file's content.
///
/// # Errors
/// [`FormatError`].
pub fn decode(file: &[u8]) -> Result<VmState, FormatError> {
    let mut reader = Reader::new(file);
    if reader.bytes("the magic number", MAGIC.len()).ok() != Some(&MAGIC[..]) {
        return Err(FormatError::Magic);
    }
    let found = reader.u32("the version")?;
    if found != VERSION {
        return Err(FormatError::Version { found });
    }
    let checksum = reader.u32("the checksum")?;
    let body_bytes = reader.u64("the length")?;
    let (found, expected) = (file.len() as u64, body_bytes.saturating_add(HEADER_BYTES as u64));
    if found != expected {
        return Err(FormatError::Length { found, expected });
    }
    let computed = crc32fast::hash(file.get(16..).unwrap_or_default());
    if computed != checksum {
        return Err(FormatError::Checksum { found: checksum, computed });
    }
    let state = take_state(&mut reader)?;
    reader.finish()?;
    Ok(state)
}

fn put_state(out: &mut Writer, state: &VmState, layers: &[Option<&PageMap>]) {
    out.u64(state.mem_bytes);
    out.u64(state.kernel_range.0);
    out.u64(state.kernel_range.1);
    out.bool(state.has_console);
    state.machine.irqchips.iter().for_each(|chip| out.plain(chip));
    out.plain(&state.machine.clock);
    out.count(state.vcpus.len());
    state.vcpus.iter().for_each(|vcpu| put_vcpu(out, vcpu));
    out.count(state.disks.len());
    for (index, disk) in state.disks.iter().enumerate() {
        put_transport(out, &disk.transport);
        out.u64(disk.len_bytes);
        out.bool(disk.is_read_only);
        let layer = layers.get(index).copied().flatten().or(disk.layer.as_ref());
        out.bool(layer.is_some());
        if let Some(map) = layer {
            (0..PageMap::block_count(map.pages())).for_each(|block| out.bytes(&map.block(block)));
        }
    }
    out.bool(state.vsock.is_some());
    if let Some(vsock) = &state.vsock {
        put_transport(out, &vsock.transport);
        out.u32(vsock.device.next_host_port);
        out.bool(vsock.device.had_connections);
        out.u64(vsock.guest_cid);
    }
}

fn take_state(from: &mut Reader<'_>) -> Result<VmState, CodecError> {
    Ok(VmState {
        mem_bytes: from.u64("the size of memory")?,
        kernel_range: (from.u64("the kernel's start")?, from.u64("the kernel's end")?),
        has_console: from.bool("the console")?,
        machine: MachineState {
            irqchips: [from.plain("the master PIC")?, from.plain("the slave PIC")?, from.plain("the I/O APIC")?],
            clock: from.plain("the clock")?,
        },
        vcpus: from.list("the number of vCPUs", VCPUS_MAX, take_vcpu)?,
        disks: from.list("the number of disks", DISKS_MAX, take_disk)?,
        vsock: if from.bool("the vsock device")? { Some(take_vsock(from)?) } else { None },
    })
}

fn put_vcpu(out: &mut Writer, vcpu: &VcpuState) {
    out.count(vcpu.cpuid.len());
    vcpu.cpuid.iter().for_each(|entry| out.plain(entry));
    out.plain(&vcpu.mp_state);
    out.plain(&vcpu.regs);
    out.plain(&vcpu.sregs);
    out.plain(&vcpu.xsave);
    out.plain(&vcpu.xcrs);
    out.plain(&vcpu.debug_regs);
    out.plain(&vcpu.lapic);
    out.count(vcpu.msrs.len());
    vcpu.msrs.iter().for_each(|entry| out.plain(entry));
    out.plain(&vcpu.events);
}

fn take_vcpu(from: &mut Reader<'_>) -> Result<VcpuState, CodecError> {
    Ok(VcpuState {
        cpuid: from.list("the number of CPU features", ENTRIES_MAX, |from| from.plain("a CPU feature"))?,
        mp_state: from.plain("a run state")?,
        regs: from.plain("registers")?,
        sregs: from.plain("system registers")?,
        xsave: from.plain("extended state")?,
        xcrs: from.plain("extended control registers")?,
        debug_regs: from.plain("debug registers")?,
        lapic: from.plain("a local APIC")?,
        msrs: from.list("the number of MSRs", ENTRIES_MAX, |from| from.plain("an MSR"))?,
        events: from.plain("pending events")?,
    })
}

fn put_geometry(out: &mut Writer, geometry: &Geometry) {
    out.u32(geometry.size);
    out.u64(geometry.descriptors);
    out.u64(geometry.avail);
    out.u64(geometry.used);
}

fn take_geometry(from: &mut Reader<'_>) -> Result<Geometry, CodecError> {
    const WHAT: &str = "a queue's place";
    Ok(Geometry { size: from.u32(WHAT)?, descriptors: from.u64(WHAT)?, avail: from.u64(WHAT)?, used: from.u64(WHAT)? })
}

fn put_transport(out: &mut Writer, registers: &TransportState) {
    out.u32(registers.status);
    out.u32(registers.device_features_sel);
    out.u32(registers.driver_features_sel);
    out.u64(registers.driver_features);
    out.u32(registers.queue_sel);
    out.u32(registers.interrupt_status);
    out.bool(registers.needs_reset);
    out.count(registers.queues.len());
    for queue in &registers.queues {
        put_geometry(out, &queue.geometry);
        out.bool(queue.ready);
    }
    out.count(registers.serving.len());
    for queue in &registers.serving {
        put_geometry(out, &queue.geometry);
        out.u16(queue.next_avail);
        out.u16(queue.next_used);
    }
}

fn take_transport(from: &mut Reader<'_>) -> Result<TransportState, CodecError> {
    const WHAT: &str = "a device's registers";
    Ok(TransportState {
        status: from.u32(WHAT)?,
        device_features_sel: from.u32(WHAT)?,
        driver_features_sel: from.u32(WHAT)?,
        driver_features: from.u64(WHAT)?,
        queue_sel: from.u32(WHAT)?,
        interrupt_status: from.u32(WHAT)?,
        needs_reset: from.bool(WHAT)?,
        queues: from.list("the number of queues", QUEUES_MAX, |from| {
            Ok(QueueRegisters { geometry: take_geometry(from)?, ready: from.bool("a queue's state")? })
        })?,
        serving: from.list("the number of queues in use", QUEUES_MAX, |from| {
            Ok(QueueState {
                geometry: take_geometry(from)?,
                next_avail: from.u16("a queue's index")?,
                next_used: from.u16("a queue's index")?,
            })
        })?,
    })
}

fn take_disk(from: &mut Reader<'_>) -> Result<DiskState, CodecError> {
    let transport = take_transport(from)?;
    let len_bytes = from.u64("a disk's length")?;
    let is_read_only = from.bool("whether a disk is read-only")?;
    let layer = if from.bool("whether a disk has a layer")? { Some(take_map(from, len_bytes)?) } else { None };
    Ok(DiskState { transport, len_bytes, is_read_only, layer })
}

/// A page map is allocated block by block as its bytes turn out to be there.
fn take_map(from: &mut Reader<'_>, disk_bytes: u64) -> Result<PageMap, CodecError> {
    const WHAT: &str = "a layer's page map";
    let pages = disk_bytes.div_ceil(crate::disk::page_map::PAGE_BYTES);
    if pages > LAYER_PAGES_MAX {
        return Err(CodecError::Range { what: "the pages of a layer", value: pages, max: LAYER_PAGES_MAX });
    }
    let blocks = PageMap::block_count(pages);
    let bytes = from.bytes(WHAT, blocks.saturating_mul(BLOCK_BYTES))?;
    let mut map = PageMap::new(pages);
    for (block, bytes) in bytes.as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
        if !map.load_block(block, bytes) {
            return Err(CodecError::Range { what: "a page's state in a layer", value: 3, max: 2 });
        }
    }
    Ok(map)
}

fn take_vsock(from: &mut Reader<'_>) -> Result<VsockDeviceState, CodecError> {
    Ok(VsockDeviceState {
        transport: take_transport(from)?,
        device: VsockState {
            next_host_port: from.u32("the next host port")?,
            had_connections: from.bool("whether there were connections")?,
        },
        guest_cid: from.u64("the guest's CID")?,
    })
}

#[cfg(test)]
mod tests;
