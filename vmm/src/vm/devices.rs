// SPDX-License-Identifier: Apache-2.0
//! Puts the configured devices into the machine: a window, an interrupt line and queue
//! notifications each; disks first, in their order, then vsock.
//!
//! Notifications are ioeventfds: 8,000 direct reads of 4 KiB took 2.9 s with them and 3.7 s when
//! each left the guest to this process (p50 of 5 alternating runs, rig kernel, busy machine).

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::block::Block;
use crate::boot::cmdline::DeviceWord;
use crate::config::{DISKS_MAX, DiskConfig, DiskMode, VmmConfig, VsockConfig};
use crate::disk::overlay::Overlay;
use crate::disk::{Base, Disk, OpenError, PageMap};
use crate::jail::{self, Thread};
use crate::machine::bus::{Bus, window_start};
use crate::machine::kvm::{KvmError, Machine};
use crate::machine::pages::{ReadPage, ReadPages};
use crate::memory::GuestRam;
use crate::snapshot::{DiskState, VmState, VsockDeviceState};
use crate::virtio::spec::interrupt::USED_BUFFER;
use crate::virtio::spec::register::{INTERRUPT_ACK, QUEUE_NOTIFY};
use crate::virtio::{ActivateError, Device, Transport};
use crate::vsock::{self, Vsock, VsockError, VsockWorker};

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
    /// A device could not go on where it stopped.
    #[error("restoring device {index} failed")]
    Resume {
        /// Which device, from 0: disks in order, then vsock.
        index: usize,
        /// Why.
        #[source]
        source: ActivateError,
    },
    /// A disk that exists once only.
    #[error("forking disk {index}: its overlay is a file, which one VM can write; use an overlay in memory")]
    NotForkable {
        /// Which disk, from 0.
        index: usize,
    },
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
            Self::OpenFile { .. } | Self::Socket { .. } | Self::NotForkable { .. } | Self::Resume { .. } => true,
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

/// A device and the registers in front of it.
type Registers<D> = Arc<Mutex<Transport<D>>>;

/// The devices of a VM, for whoever starts, stops and restores them.
#[derive(Default)]
pub struct Devices {
    /// In the order in which the guest sees them.
    pub disks: Vec<Registers<Block>>,
    /// The last window's.
    pub vsock: Option<VsockDevice>,
}

/// Both halves of vsock.
pub struct VsockDevice {
    registers: Registers<Vsock>,
    /// The data half; the event loop has it too.
    pub worker: Rc<RefCell<VsockWorker>>,
    guest_cid: u64,
}

/// What devices are made of.
pub struct Backends {
    /// The disks in order.
    pub disks: Vec<Box<dyn Disk>>,
    /// vsock's ways in and out.
    pub doors: Option<Doors>,
}

/// Where vsock's connections come in and go out.
#[derive(Debug)]
pub struct Doors {
    /// Where clients knock.
    pub listener: UnixListener,
    /// The line to whoever lets the guest out.
    pub doorman: OwnedFd,
}

/// The files of a disk: opened, and not looked into yet.
#[derive(Debug)]
pub struct DiskFiles {
    base: File,
    /// Where an overlay that is a file is kept.
    overlay: Option<File>,
}

impl DiskFiles {
    /// Opens those of every disk of `config`.
    ///
    /// # Errors
    /// [`DeviceError::OpenFile`] names the disk and what failed.
    pub fn open_all(config: &VmmConfig) -> Result<Vec<Self>, DeviceError> {
        config.disks().iter().enumerate().map(|(index, disk)| Self::open(index, disk)).collect()
    }

    /// Length of the longest file of a disk, in bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn longest(files: &[Self]) -> io::Result<u64> {
        let mut longest = 0;
        for mut file in files.iter().flat_map(|files| [Some(&files.base), files.overlay.as_ref()]).flatten() {
            // Also of a block device, which has no length that metadata would tell.
            longest = file.seek(SeekFrom::End(0))?.max(longest);
        }
        Ok(longest)
    }

    fn open(index: usize, disk: &DiskConfig) -> Result<Self, DeviceError> {
        let cannot_open = |path: &Path| {
            let path = path.to_owned();
            move |source| DeviceError::OpenFile { index, path, source }
        };
        let base = File::open(disk.path()).map_err(cannot_open(disk.path()))?;
        let overlay = match disk.mode() {
            DiskMode::OverlayFile { path, .. } => {
                let mut how = OpenOptions::new();
                how.read(true).write(true).create(true).truncate(false);
                Some(how.open(path).map_err(cannot_open(path))?)
            }
            DiskMode::ReadOnly | DiskMode::OverlayMemory { .. } => None,
        };
        Ok(Self { base, overlay })
    }
}

/// Makes the disks of `config` out of their files, each over the layer that `layer` has for it.
///
/// # Errors
/// [`DeviceError`] names the disk and what is wrong with it.
pub fn make_disks(
    config: &VmmConfig,
    files: Vec<DiskFiles>,
    mut layer: impl FnMut(usize) -> Option<(File, PageMap)>,
) -> Result<Vec<Box<dyn Disk>>, DeviceError> {
    let disks = config.disks().iter().zip(files).enumerate();
    disks.map(|(index, (disk, files))| make_disk((index, disk), files, layer(index))).collect()
}

/// Makes the socket on which vsock's clients knock.
///
/// # Errors
/// [`DeviceError::Socket`].
pub fn listen(config: &VmmConfig) -> Result<Option<UnixListener>, DeviceError> {
    let bind = |vsock: &VsockConfig| {
        UnixListener::bind(vsock.uds()).map_err(|source| DeviceError::Socket { path: vsock.uds().to_owned(), source })
    };
    config.vsock().map(bind).transpose()
}

/// Makes every device of `config` out of `backends`, in its window.
///
/// # Errors
/// [`DeviceError`] names the device and what failed.
pub fn attach(
    config: &VmmConfig,
    backends: Backends,
    machine: &Machine,
    ram: &GuestRam,
    pages: Option<&ReadPages>,
) -> Result<(Bus, Devices), DeviceError> {
    let mut bus = Bus::default();
    let mut devices = Devices::default();
    let mut words = words(config).into_iter();
    let mut pages = (0..).map_while(|index| pages.map(|pages| pages.page(index)));
    for (index, disk) in backends.disks.into_iter().enumerate() {
        let block = Block::new(disk, index, || jail::lock_in(Thread::Block));
        let block = block.map_err(host("starting a disk's thread"))?;
        devices.disks.push(connect(block, (words.next(), pages.next()), machine, ram, &mut bus)?);
    }
    let (Some(vsock), Some(doors)) = (config.vsock(), backends.doors) else { return Ok((bus, devices)) };
    let (device, worker) = vsock::pair(vsock.guest_cid(), doors.listener, doors.doorman, vsock.uds())?;
    let registers = connect(device, (words.next(), pages.next()), machine, ram, &mut bus)?;
    let guest_cid = vsock.guest_cid();
    devices.vsock = Some(VsockDevice { registers, worker: Rc::new(RefCell::new(worker)), guest_cid });
    Ok((bus, devices))
}

impl Devices {
    /// Stops the disks, with nothing in flight, and says how everything stands. The vCPUs have
    /// stopped. [`Self::resume`] undoes it.
    pub fn pause(&self) -> (Vec<DiskState>, Option<VsockDeviceState>) {
        let pause_disk = |disk: &Registers<Block>| {
            let mut disk = lock(disk);
            // A queue with requests in flight is one that a fault has latched: nobody serves it.
            let queue = disk.device_mut().pause().and_then(|queue| queue.state());
            let transport = disk.state(queue.into_iter().collect());
            let disk = disk.device_mut().disk();
            let (len_bytes, is_read_only) = disk.map_or((0, true), |disk| (disk.len_bytes(), disk.is_read_only()));
            DiskState { transport, len_bytes, is_read_only, layer: None }
        };
        let pause_vsock = |vsock: &VsockDevice| {
            let (device, queues) = vsock.worker.borrow_mut().state();
            let transport = lock(&vsock.registers).state(queues);
            VsockDeviceState { transport, device, guest_cid: vsock.guest_cid }
        };
        (self.disks.iter().map(pause_disk).collect(), self.vsock.as_ref().map(pause_vsock))
    }

    /// Lets the disks go on where [`Self::pause`] stopped them; vsock never stopped.
    ///
    /// # Errors
    /// [`DeviceError::Resume`]; such a disk serves no more.
    pub fn resume(&self, disks: &[DiskState]) -> Result<(), DeviceError> {
        for (index, (disk, state)) in self.disks.iter().zip(disks).enumerate() {
            lock(disk).resume(&state.transport.serving).map_err(|source| DeviceError::Resume { index, source })?;
        }
        Ok(())
    }

    /// Puts devices that were just made where `state` says.
    ///
    /// # Errors
    /// [`DeviceError::Resume`] names what does not fit.
    pub fn restore(&self, state: &VmState) -> Result<(), DeviceError> {
        for (index, (disk, state)) in self.disks.iter().zip(&state.disks).enumerate() {
            lock(disk).restore(&state.transport).map_err(|source| DeviceError::Resume { index, source })?;
        }
        if let (Some(vsock), Some(state)) = (&self.vsock, &state.vsock) {
            let index = self.disks.len();
            lock(&vsock.registers).restore(&state.transport).map_err(|source| DeviceError::Resume { index, source })?;
            vsock.worker.borrow_mut().restore(state.device);
        }
        Ok(())
    }

    /// The disks of devices that were paused and never go on; `None` when one is missing.
    pub fn take_disks(&self) -> Option<Vec<Box<dyn Disk>>> {
        self.disks.iter().map(|disk| lock(disk).device_mut().take_disk()).collect()
    }

    /// Whether every disk can be had twice.
    ///
    /// # Errors
    /// [`DeviceError::NotForkable`] names the one that cannot.
    pub fn check_forkable(&self) -> Result<(), DeviceError> {
        for (index, disk) in self.disks.iter().enumerate() {
            if lock(disk).device_mut().disk().is_none_or(|disk| disk.layer().is_none()) {
                return Err(DeviceError::NotForkable { index });
            }
        }
        Ok(())
    }
}

/// Nobody panics with the registers in hand; if somebody did, they are still the device's.
fn lock<D>(registers: &Registers<D>) -> MutexGuard<'_, Transport<D>> {
    registers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make_disk(
    (index, disk): (usize, &DiskConfig),
    files: DiskFiles,
    layer: Option<(File, PageMap)>,
) -> Result<Box<dyn Disk>, DeviceError> {
    let refuse = |path: &Path| {
        let path = path.to_owned();
        move |source| DeviceError::Disk { index, path, source }
    };
    let base = Base::new(files.base).map_err(refuse(disk.path()))?;
    let overlay = match (disk.mode(), files.overlay) {
        (DiskMode::OverlayMemory { cap_mib }, _) => match layer {
            None => Overlay::in_memory(Box::new(base), cap_mib << 20),
            Some((file, map)) => Overlay::over_layer(Box::new(base), cap_mib << 20, file, map),
        },
        (DiskMode::OverlayFile { path, cap_mib }, Some(file)) => {
            let overlay = Overlay::in_file(Box::new(base), file, cap_mib << 20);
            return Ok(Box::new(overlay.map_err(refuse(path))?));
        }
        (DiskMode::ReadOnly | DiskMode::OverlayFile { .. }, _) => return Ok(Box::new(base)),
    };
    Ok(Box::new(overlay.map_err(refuse(disk.path()))?))
}

/// Gives a device its window, its interrupt line and its notifications.
fn connect<D: Device + 'static>(
    device: D,
    place: (Option<DeviceWord>, Option<ReadPage>),
    machine: &Machine,
    ram: &GuestRam,
    bus: &mut Bus,
) -> Result<Registers<D>, DeviceError> {
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
    let registers = Arc::new(Mutex::new(transport));
    let start = bus.attach(registers.clone());
    assert_eq!(start, word.start, "the command line must name the window a device is in");
    Ok(registers)
}
