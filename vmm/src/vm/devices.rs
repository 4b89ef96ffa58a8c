// SPDX-License-Identifier: Apache-2.0
//! Puts the configured devices into the machine: a window, an interrupt line and queue
//! notifications each; disks first, in their order, then vsock.
//!
//! Notifications are ioeventfds: 8,000 direct reads of 4 KiB took 2.9 s with them and 3.7 s when
//! each left the guest to this process (p50 of 5 alternating runs, rig kernel, busy machine).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::block::Block;
use crate::boot::cmdline::DeviceWord;
use crate::config::{DISKS_MAX, DiskConfig, DiskMode, VmmConfig, VsockConfig};
use crate::disk::overlay::Overlay;
use crate::disk::{Base, Disk, OpenError};
use crate::jail::{self, Thread};
use crate::machine::bus::{Bus, window_start};
use crate::machine::kvm::{KvmError, Machine};
use crate::machine::pages::{ReadPage, ReadPages};
use crate::memory::GuestRam;
use crate::virtio::spec::interrupt::USED_BUFFER;
use crate::virtio::spec::register::{INTERRUPT_ACK, QUEUE_NOTIFY};
use crate::virtio::{Device, Transport};
use crate::vsock::{self, VsockError, VsockWorker};

/// Interrupt lines that nothing of a PC claims, in the order in which devices get them.
const LINES: [u32; 9] = [5, 6, 7, 9, 10, 11, 12, 14, 15];
const _: () = assert!(LINES.len() > DISKS_MAX, "every disk and vsock must have a line");

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A disk's file could not be opened.
    #[error("opening {path:?} of disk {index} failed")]
    OpenFile {
        /// Which disk, from 0.
        index: usize,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A disk's file cannot serve as a disk.
    #[error("using {path:?} for disk {index} failed")]
    Disk {
        /// Which disk, from 0.
        index: usize,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: OpenError,
    },
    /// The Unix socket of vsock could not be made.
    #[error("making the socket {path:?} failed; its directory must exist and it must not")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The vsock device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// KVM would not connect a device.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A thread or an event.
    #[error("{step} failed")]
    Host {
        /// What was attempted.
        step: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl DeviceError {
    /// Whether the configuration has to change for this to go away.
    pub fn is_users(&self) -> bool {
        match self {
            Self::OpenFile { .. } | Self::Socket { .. } => true,
            Self::Disk { source, .. } => !matches!(source, OpenError::Io { .. }),
            Self::Vsock(_) | Self::Kvm(_) | Self::Host { .. } => false,
        }
    }
}

fn host(step: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
    move |source| DeviceError::Host { step, source }
}

/// The words that name the devices of `config` on the kernel's command line.
pub fn words(config: &VmmConfig) -> Vec<DeviceWord> {
    let count = config.disks().len() + usize::from(config.vsock().is_some());
    (0..).zip(LINES).take(count).map(|(index, gsi)| DeviceWord { start: window_start(index), gsi }).collect()
}

/// The pages in which the guest reads the registers of the devices of `config`.
///
/// # Errors
/// When the host has no memory for them.
pub fn pages(config: &VmmConfig) -> io::Result<Option<ReadPages>> {
    ReadPages::new(words(config).len())
}

/// Makes every device of `config`; the data half of vsock is for the event loop.
///
/// # Errors
/// [`DeviceError`] names the device and what failed.
pub fn attach(
    config: &VmmConfig,
    machine: &Machine,
    ram: &GuestRam,
    pages: Option<&ReadPages>,
) -> Result<(Bus, Option<VsockWorker>), DeviceError> {
    let mut bus = Bus::default();
    let mut words = words(config).into_iter();
    let mut pages = (0..).map_while(|index| pages.map(|pages| pages.page(index)));
    for (index, disk) in config.disks().iter().enumerate() {
        let backend = open_disk(index, disk)?;
        let block = Block::new(backend, index, || jail::lock_in(Thread::Block));
        let block = block.map_err(host("starting a disk's thread"))?;
        connect(Box::new(block), (words.next(), pages.next()), machine, ram, &mut bus)?;
    }
    let Some(vsock) = config.vsock() else { return Ok((bus, None)) };
    let (device, worker) = open_vsock(vsock)?;
    connect(Box::new(device), (words.next(), pages.next()), machine, ram, &mut bus)?;
    Ok((bus, Some(worker)))
}

fn open_disk(index: usize, disk: &DiskConfig) -> Result<Box<dyn Disk>, DeviceError> {
    let refuse = |path: &Path| {
        let path = path.to_owned();
        move |source| DeviceError::Disk { index, path, source }
    };
    let cannot_open = |path: &Path| {
        let path = path.to_owned();
        move |source| DeviceError::OpenFile { index, path, source }
    };
    let base = File::open(disk.path()).map_err(cannot_open(disk.path()))?;
    let base = Base::new(base).map_err(refuse(disk.path()))?;
    match disk.mode() {
        DiskMode::ReadOnly => Ok(Box::new(base)),
        DiskMode::OverlayMemory { cap_mib } => {
            Ok(Box::new(Overlay::in_memory(Box::new(base), cap_mib << 20).map_err(refuse(disk.path()))?))
        }
        DiskMode::OverlayFile { path, cap_mib } => {
            let mut how = OpenOptions::new();
            let file = how.read(true).write(true).create(true).truncate(false).open(path).map_err(cannot_open(path))?;
            Ok(Box::new(Overlay::in_file(Box::new(base), file, cap_mib << 20).map_err(refuse(path))?))
        }
    }
}

fn open_vsock(config: &VsockConfig) -> Result<(vsock::Vsock, VsockWorker), DeviceError> {
    let listener = UnixListener::bind(config.uds())
        .map_err(|source| DeviceError::Socket { path: config.uds().to_owned(), source })?;
    Ok(vsock::pair(config.guest_cid(), listener, config.uds())?)
}

/// Gives a device its window, its interrupt line and its notifications.
fn connect(
    device: Box<dyn Device>,
    place: (Option<DeviceWord>, Option<ReadPage>),
    machine: &Machine,
    ram: &GuestRam,
    bus: &mut Bus,
) -> Result<(), DeviceError> {
    let (Some(word), Some(page)) = place else {
        return Err(host("finding an interrupt line")(io::ErrorKind::QuotaExceeded.into()));
    };
    let irq = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("making an event"))?;
    machine.connect_interrupt(&irq, word.gsi)?;
    let transport = Transport::new(device, ram.clone(), irq, page).map_err(host("making a device's events"))?;
    for (queue, kick) in (0..).zip(transport.kicks()) {
        machine.on_write(word.start + QUEUE_NOTIFY, queue, kick)?;
    }
    machine.on_write(word.start + INTERRUPT_ACK, USED_BUFFER, transport.taken_note())?;
    let start = bus.attach(Box::new(transport));
    assert_eq!(start, word.start, "the command line must name the window a device is in");
    Ok(())
}
