// SPDX-License-Identifier: Apache-2.0
//! The boot plan: every byte that goes to guest memory before the first instruction, as data.
//!
//! Files are copied, not mapped: with 2 MiB pages behind guest memory a boot of an 8.7 MiB kernel
//! took 26.8 ms of CPU time copied and 34.2 ms mapped copy-on-write (n=21, p50), because a mapped
//! kernel is paged in 4 KiB at a time, each a fault and an exit.
//!
//! Made from checked parts; [`BootPlan::load`] is the only function of this crate that writes
//! guest memory outside the devices.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::config::{ConsoleMode, VmmConfig};
use crate::memory::{self, GuestRam};

use super::cmdline::{self, DeviceWord, TooLong};
use super::kernel::{self, KernelError, KernelFile, KernelImage, Segment};
use super::layout::{BOOT_PARAMS, COMMAND_LINE, GDT, HIGH_RAM, IDENTITY_MAPPED_END, MP_TABLE, PAGE_TABLES, RNG_SEED};
use super::params::{self, Facts, SEED_BYTES};
use super::{mptable, registers};

const PAGE_BYTES: u64 = 4096;

/// Why a guest cannot be started from these files.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be opened.
    #[error("opening the {what} {path:?} failed")]
    Open {
        /// Kernel or initramfs.
        what: &'static str,
        /// Its path.
        path: std::path::PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The kernel file is no kernel for this guest.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line does not fit.
    #[error(transparent)]
    Cmdline(#[from] TooLong),
    /// The initramfs does not fit between the kernel and the end of memory.
    #[error(
        "the initramfs has {len} bytes; behind the kernel, which ends at {kernel_end:#x}, there is room up to \
         {limit:#x}; give the VM more memory"
    )]
    InitramfsRoom {
        /// Its length in bytes.
        len: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// First address that cannot be had.
        limit: u64,
    },
    /// Copying a file into guest memory failed.
    #[error("copying {len} bytes of the {what} to guest address {start:#x} failed")]
    Copy {
        /// Kernel or initramfs.
        what: &'static str,
        /// Guest address.
        start: u64,
        /// Bytes.
        len: u64,
        /// Why; a file that became shorter is one reason.
        #[source]
        source: GuestMemoryError,
    },
    /// The host gave no random bytes.
    #[error("reading {SEED_BYTES} random bytes for the guest failed")]
    Entropy(#[source] io::Error),
    /// The thread that loads could not be started, or ended without a word.
    #[error("loading the kernel in a thread of its own failed")]
    Thread(#[source] io::Error),
    /// Positioning in a file failed.
    #[error("seeking in the {what} failed")]
    Seek {
        /// Kernel or initramfs.
        what: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// An opened file with the length it had then.
#[derive(Debug)]
struct Opened {
    file: File,
    len: u64,
}

/// What a guest is booted from: opened, and not looked into yet.
#[derive(Debug)]
pub struct Images {
    kernel: Opened,
    initramfs: Option<Opened>,
}

impl Images {
    /// Opens `kernel` and the initramfs of `config`.
    ///
    /// # Errors
    /// [`BootError::Open`].
    pub fn open(config: &VmmConfig, kernel: &Path) -> Result<Self, BootError> {
        let initramfs = config.initramfs().map(|path| open("initramfs", path)).transpose()?;
        Ok(Self { kernel: open("kernel", kernel)?, initramfs })
    }
}

fn open(what: &'static str, path: &std::path::Path) -> Result<Opened, BootError> {
    let fail = |source| BootError::Open { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(fail)?;
    let len = file.metadata().map_err(fail)?.len();
    Ok(Opened { file, len })
}

/// What to write where, and how the boot CPU starts.
#[derive(Debug)]
pub struct BootPlan {
    kernel: Opened,
    initramfs: Option<(Opened, Segment)>,
    segments: Vec<Segment>,
    tables: Vec<(u64, Vec<u8>)>,
    regs: kvm_regs,
    ram_end: u64,
    relocates: bool,
}

impl BootPlan {
    /// Checks the files of a guest and computes everything else.
    ///
    /// # Errors
    /// [`BootError`]; all of them but [`BootError::Entropy`] are the user's to mend.
    pub fn new(config: &VmmConfig, images: Images, devices: &[DeviceWord]) -> Result<Self, BootError> {
        let mem_bytes = config.mem_bytes();
        let ram_end = memory::ranges(mem_bytes).first().map_or(0, |&(start, len)| start + len);
        let Images { kernel, initramfs } = images;
        let image = kernel::parse(&KernelFile { file: &kernel.file, len: kernel.len }, ram_end)?;
        let place = |opened: Opened| place_initramfs(opened.len, &image, ram_end).map(|place| (opened, place));
        let initramfs = initramfs.map(place).transpose()?;
        let line = compose_line(config.console(), devices, config.cmdline(), &image)?;
        let place = initramfs.as_ref().map(|(_, segment)| *segment);
        let tables = tables(mem_bytes, config.cpus(), &line, &image, place, &entropy()?);
        Ok(Self {
            kernel,
            initramfs,
            tables,
            regs: registers::general(image.entry),
            ram_end: ram_end.min(IDENTITY_MAPPED_END),
            relocates: image.setup_header.is_some(),
            segments: image.segments,
        })
    }

    /// Starts a thread that does [`Self::load`] while the caller makes the machine: both take
    /// about as long.
    ///
    /// # Errors
    /// [`BootError::Thread`].
    pub fn start_loading(mut self, ram: GuestRam) -> Result<Loading, BootError> {
        let load = move || self.load(&ram).map(|()| Instant::now());
        let thread = Builder::new().name("loader".to_owned()).spawn(load).map_err(BootError::Thread)?;
        Ok(Loading(thread))
    }

    /// Writes everything into fresh (zeroed) guest memory.
    ///
    /// # Errors
    /// [`BootError::Copy`] and [`BootError::Seek`].
    pub fn load(&mut self, ram: &GuestRam) -> Result<(), BootError> {
        for segment in &self.segments {
            copy("kernel", &mut self.kernel.file, segment, ram)?;
        }
        if let Some((opened, segment)) = &mut self.initramfs {
            copy("initramfs", &mut opened.file, segment, ram)?;
        }
        for (start, bytes) in &self.tables {
            ram.write_slice(bytes, GuestAddress(*start)).map_err(|source| BootError::Copy {
                what: "boot tables",
                start: *start,
                len: bytes.len() as u64,
                source,
            })?;
        }
        Ok(())
    }

    /// Where the kernel, and with it its log, lies: first address and the one behind. A kernel
    /// that unpacks itself may go anywhere in low memory.
    pub fn kernel_range(&self) -> (u64, u64) {
        match (self.segments.first(), self.segments.last()) {
            (Some(first), Some(last)) if !self.relocates => (first.start, last.start.saturating_add(last.mem_len)),
            _ => (HIGH_RAM.start, self.ram_end),
        }
    }

    /// The boot CPU's general registers.
    pub fn regs(&self) -> &kvm_regs {
        &self.regs
    }
}

/// A [`BootPlan`] on its way into guest memory.
#[derive(Debug)]
pub struct Loading(JoinHandle<Result<Instant, BootError>>);

impl Loading {
    /// Waits until everything is in guest memory and returns when that was.
    ///
    /// # Errors
    /// Those of [`BootPlan::load`].
    pub fn finish(self) -> Result<Instant, BootError> {
        self.0.join().unwrap_or_else(|_| Err(BootError::Thread(io::Error::other("the thread panicked"))))
    }
}

fn compose_line(
    console: ConsoleMode,
    devices: &[DeviceWord],
    user: &str,
    image: &KernelImage,
) -> Result<String, TooLong> {
    cmdline::compose(console, devices, user, image.cmdline_max)
}

/// Behind the kernel, so that both share huge pages; a page apart from its end.
fn place_initramfs(len: u64, image: &KernelImage, ram_end: u64) -> Result<Segment, BootError> {
    let limit = ram_end.min(IDENTITY_MAPPED_END).min(image.initramfs_last.saturating_add(1));
    let start = image.end.max(HIGH_RAM.start).next_multiple_of(PAGE_BYTES);
    if start.checked_add(len).is_none_or(|end| end > limit) {
        return Err(BootError::InitramfsRoom { len, kernel_end: image.end, limit });
    }
    Ok(Segment { start, file_offset: 0, file_len: len, mem_len: len })
}

/// The tables in low memory.
fn tables(
    mem_bytes: u64,
    cpus: u8,
    line: &str,
    image: &KernelImage,
    initramfs: Option<Segment>,
    seed: &[u8; SEED_BYTES],
) -> Vec<(u64, Vec<u8>)> {
    let mut zero_ended = line.as_bytes().to_vec();
    zero_ended.push(0);
    let facts = Facts {
        mem_bytes,
        cmdline_len: u32::try_from(line.len()).unwrap_or(0),
        initramfs: initramfs.and_then(|s| Some((u32::try_from(s.start).ok()?, u32::try_from(s.file_len).ok()?))),
        setup_header: image.setup_header.as_deref(),
    };
    vec![
        (PAGE_TABLES.start, registers::page_tables()),
        (GDT.start, registers::gdt()),
        (BOOT_PARAMS.start, params::boot_params(&facts)),
        (COMMAND_LINE.start, zero_ended),
        (RNG_SEED.start, params::rng_seed(seed)),
        (MP_TABLE.start, mptable::bytes(cpus)),
    ]
}

fn copy(what: &'static str, file: &mut File, segment: &Segment, ram: &GuestRam) -> Result<(), BootError> {
    file.seek(SeekFrom::Start(segment.file_offset)).map_err(|source| BootError::Seek { what, source })?;
    let len = usize::try_from(segment.file_len).unwrap_or(usize::MAX);
    ram.read_exact_volatile_from(GuestAddress(segment.start), file, len).map_err(|source| BootError::Copy {
        what,
        start: segment.start,
        len: segment.file_len,
        source,
    })
}

/// Random bytes of the host, different for every VM.
fn entropy() -> Result<[u8; SEED_BYTES], BootError> {
    let mut seed = [0; SEED_BYTES];
    crate::sys::fill_random(&mut seed).map_err(BootError::Entropy)?;
    Ok(seed)
}

#[cfg(test)]
mod tests;
