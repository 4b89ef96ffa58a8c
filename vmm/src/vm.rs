// SPDX-License-Identifier: Apache-2.0
//! One VM from configuration to ending, assembled here and read from top to bottom.
//!
//! The only place that knows every other part. Nothing below it knows what is above.

pub mod devices;

mod ending;

mod freeze;

pub mod opened;

pub mod resident;

pub mod restore;

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use kvm_bindings::kvm_regs;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::plan::{BootError, BootPlan, Images};
use crate::boot::registers;
use crate::config::{ConsoleMode, VmmConfig};
use crate::control::{Control, Inbox};
use crate::jail::{self, JailError, Thread};
use crate::machine::bus::Bus;
use crate::machine::console::{self, Output};
use crate::machine::kvm::{self, Host, KvmError, Machine};
use crate::machine::ports::Ports;
use crate::machine::state::VcpuState;
use crate::machine::threads::{PauseError, ThreadError, Threads, Vcpu};
use crate::machine::vcpu::Shared;
use crate::memory::{self, GuestRam, MemoryError};
use crate::orders::Lifeline;
use crate::snapshot::VmState;
use crate::trace::{Ending, Reason, Stage, Trace};

use devices::{Backends, DeviceError, Devices, DiskFiles, Doors};
use ending::Evidence;
use restore::RestoreError;

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The vCPU threads.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// A snapshot cannot be restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The jail could not be entered.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The vCPUs could not be paused.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// The event loop or one of its descriptors.
    #[error("{step} failed")]
    Host {
        /// What was attempted.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl VmError {
    /// Whose fault it is: the user's ([`Reason::Config`]) or the host's.
    pub fn reason(&self) -> Reason {
        let is_users = match self {
            Self::Boot(BootError::Entropy(_) | BootError::Seek { .. } | BootError::Thread(_)) => false,
            Self::Boot(_) | Self::Kvm(KvmError::Vcpus { .. }) => true,
            Self::Device(error) | Self::Restore(RestoreError::Device(error)) => error.is_users(),
            Self::Restore(RestoreError::Kvm(_)) => false,
            Self::Restore(_) => true,
            _ => false,
        };
        if is_users { Reason::Config } else { Reason::HostError }
    }
}

fn host(step: &'static str) -> impl FnOnce(io::Error) -> VmError {
    move |source| VmError::Host { step, source }
}

type Events = EventManager<Box<dyn MutEventSubscriber>>;

/// A VM that is ready to run.
///
/// Dropping it gives everything back, which takes KVM up to 20 ms: report the ending first.
pub struct Vm {
    machine: Machine,
    ram: GuestRam,
    kernel_range: (u64, u64),
    shared: Arc<Shared>,
    threads: Threads,
    output: Output,
    events: Events,
    inbox: Rc<Inbox>,
    devices: Devices,
    /// What forks need of it, where it may have any.
    forkable: Option<(Arc<Host>, VmmConfig)>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("machine", &self.machine)
            .field("kernel_range", &self.kernel_range)
            .finish_non_exhaustive()
    }
}

/// What is put together in either way of starting, before there are threads.
struct Parts {
    machine: Machine,
    ram: GuestRam,
    kernel_range: (u64, u64),
    bus: Bus,
    devices: Devices,
}

impl Vm {
    /// Makes the VM of `config`, which boots `images`, with every thread but the calling one locked
    /// in and waiting.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn boot(
        config: &VmmConfig,
        kvm: &Arc<Host>,
        images: Images,
        (disks, doors): (Vec<DiskFiles>, Option<Doors>),
        lifeline: Option<Lifeline>,
        trace: &mut Trace,
    ) -> Result<Self, VmError> {
        let plan = BootPlan::new(config, images, &devices::words(config))?;
        let (regs, kernel_range) = (*plan.regs(), plan.kernel_range());

        let ram = memory::allocate(config.mem_bytes(), config.huge_pages())?;
        let loading = plan.start_loading(ram.clone())?;
        let pages = devices::pages(config).map_err(host("mapping the device windows"))?;
        let machine = kvm.create(&ram, pages.clone(), config.tracks_writes())?;
        trace.mark(Stage::MemoryReady);

        let backends = Backends { disks: devices::make_disks(config, disks, |_| None)?, doors };
        let (bus, devices) = devices::attach(config, backends, &machine, &ram, pages.as_ref())?;
        let vcpus = boot_vcpus(config, kvm, &machine, &regs)?;
        let parts = Parts { machine, ram, kernel_range, bus, devices };
        let vm = Self::start_threads(config, parts, vcpus, Arc::clone(kvm), lifeline)?;
        trace.mark_at(Stage::KernelMapped, loading.finish()?);
        trace.mark(Stage::VcpusReady);
        vm.threads.wait_locked_in()?;
        Ok(vm)
    }

    /// Makes a VM of `config` that goes on where `state` was taken, over the memory and disks given.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn restore(
        config: &VmmConfig,
        kvm: &Arc<Host>,
        state: &VmState,
        (ram, backends): (GuestRam, Backends),
        lifeline: Option<Lifeline>,
        trace: &mut Trace,
    ) -> Result<Self, VmError> {
        memory::populate(&ram, config.working_set());
        let pages = devices::pages(config).map_err(host("mapping the device windows"))?;
        let machine = kvm.create(&ram, pages.clone(), config.tracks_writes())?;
        machine.restore_irqchips(&state.machine)?;
        trace.mark(Stage::MemoryReady);

        let (bus, devices) = devices::attach(config, backends, &machine, &ram, pages.as_ref())?;
        let vcpus = restore_vcpus(config, kvm, &machine, state)?;
        // Only now: what devices have to tell finds the interrupt controllers as they were.
        devices.restore(state)?;
        machine.restore_clock(&state.machine)?;
        let parts = Parts { machine, ram, kernel_range: state.kernel_range, bus, devices };
        let vm = Self::start_threads(config, parts, vcpus, Arc::clone(kvm), lifeline)?;
        trace.mark(Stage::VcpusReady);
        vm.threads.wait_locked_in()?;
        Ok(vm)
    }

    fn start_threads(
        config: &VmmConfig,
        parts: Parts,
        vcpus: Vec<Vcpu>,
        kvm: Arc<Host>,
        lifeline: Option<Lifeline>,
    ) -> Result<Self, VmError> {
        let Parts { machine, ram, kernel_range, bus, devices } = parts;
        let (ports, output, line_ended) = make_console(config.console(), &machine)?;
        let shared = Shared::new(bus, ports);
        let threads = Threads::start(vcpus, &shared, || jail::lock_in(Thread::Vcpu))?;
        let watched = line_ended.map(|fd| (fd, output.clone()));
        let ended = threads.ended().try_clone().map_err(host("copying an event"))?;
        let control = Control::new(ended, lifeline, watched).map_err(host("watching for signals"))?;
        let inbox = control.inbox();
        let events = make_events(control, &devices)?;
        let forkable = config.is_forkable().then(|| (kvm, config.clone()));
        Ok(Self { machine, ram, kernel_range, shared, threads, output, events, inbox, devices, forkable })
    }

    /// Locks in the calling thread, runs the guest to its end and says what that was.
    /// `on_started` is called once the guest runs. In a twin that a freeze makes, what becomes of
    /// that is returned.
    ///
    /// # Errors
    /// [`VmError`] when it did not come to running, or the event loop failed.
    pub fn run(
        mut self,
        trace: &mut Trace,
        on_started: impl FnOnce(&mut Trace),
    ) -> Result<(Ending, Option<Stopped>), VmError> {
        let kind = if self.forkable.is_some() { Thread::Resident } else { Thread::Main };
        jail::lock_in(kind).map_err(host("locking in the main thread"))?;
        trace.mark(Stage::Jailed);
        trace.mark_at(Stage::FirstRun, self.threads.open_gate());
        on_started(trace);
        let cause = loop {
            if let Some(cause) = self.inbox.cause() {
                break cause;
            }
            if let Some(received) = self.inbox.take_order() {
                if let Some(resident) = self.obey(received) {
                    // In the twin: what it has of the VM belongs to the one that runs on.
                    std::mem::forget(self);
                    return resident?.serve(trace);
                }
                continue;
            }
            turn(&mut self.events, &self.devices, None).map_err(loop_failed)?;
        };
        // Whoever talks to the guest until it is stopped does not ask for its last words.
        let is_silent = self.devices.vsock.as_ref().is_none_or(|vsock| vsock.worker.borrow().connections() == 0);
        // A vCPU may be waiting for vsock to answer a reset: nobody will from here on.
        drop(self.events);
        self.devices.vsock = None;
        let stop = self.threads.stop();
        let evidence = Evidence::collect(cause, stop, is_silent, &self.output, &self.ram, self.kernel_range);
        let ending = Ending { written: self.machine.written(), ..evidence.ending(self.shared.counters.read()) };
        Ok((ending, Some(Stopped { _shared: self.shared, _machine: self.machine, _devices: self.devices })))
    }
}

/// What is left of a VM when it has ended: its devices and KVM's part, given back on drop.
pub struct Stopped {
    _shared: Arc<Shared>,
    _devices: Devices,
    _machine: Machine,
}

impl std::fmt::Debug for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopped").finish_non_exhaustive()
    }
}

fn loop_failed(error: event_manager::Error) -> VmError {
    VmError::Host { step: "waiting for events", source: io::Error::other(error) }
}

fn make_events(control: Control, devices: &Devices) -> Result<Events, VmError> {
    let mut events = Events::new().map_err(loop_failed)?;
    events.add_subscriber(Box::new(control));
    if let Some(vsock) = &devices.vsock {
        events.add_subscriber(Box::new(Rc::clone(&vsock.worker)));
    }
    Ok(events)
}

/// Does what vsock has to do by now though nothing happens, then waits for events and has them attended to; until the next
/// such time at the latest, and no longer than `at_most_ms`.
fn turn(events: &mut Events, devices: &Devices, at_most_ms: Option<i32>) -> Result<(), event_manager::Error> {
    let left_ms = devices.vsock.as_ref().and_then(|vsock| vsock.worker.borrow().time_left_ms());
    if let (Some(vsock), Some(0)) = (&devices.vsock, left_ms) {
        vsock.worker.borrow_mut().turn();
    }
    let left_ms = left_ms.map(|left_ms| i32::try_from(left_ms).unwrap_or(i32::MAX));
    events.run_with_timeout([left_ms, at_most_ms].into_iter().flatten().min().unwrap_or(-1))?;
    Ok(())
}

fn event() -> Result<EventFd, VmError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("making an event"))
}

/// The console's ports; with the console on also its interrupt and the event of each line.
fn make_console(mode: ConsoleMode, machine: &Machine) -> Result<(Ports, Output, Option<EventFd>), VmError> {
    let (irq, line_ended) = match mode {
        ConsoleMode::Off => (None, None),
        ConsoleMode::On => (Some(event()?), Some(event()?)),
    };
    if let Some(irq) = &irq {
        machine.connect_interrupt(irq, console::GSI)?;
    }
    let told = line_ended.as_ref().map(EventFd::try_clone).transpose().map_err(host("copying an event"))?;
    let (port, output) = console::new(irq, told);
    Ok((Ports::new(port), output, line_ended))
}

/// The MSRs that a snapshot of a VM of `config` has, where there may be one.
fn snapshot_msrs(config: &VmmConfig, kvm: &Host) -> Result<Option<Arc<[u32]>>, VmError> {
    let list = config.is_forkable().then(|| kvm.snapshot_msrs(config.extra_msrs())).transpose()?;
    Ok(list.map(Arc::from))
}

fn boot_vcpus(config: &VmmConfig, kvm: &Host, machine: &Machine, regs: &kvm_regs) -> Result<Vec<Vcpu>, VmError> {
    let features = kvm.cpu_features()?;
    let msrs = snapshot_msrs(config, kvm)?;
    let mut vcpus = Vec::with_capacity(usize::from(config.cpus()));
    for index in 0..config.cpus() {
        let cpuid = features.for_vcpu(index, config.cpus());
        let fd = machine.create_vcpu(index, &cpuid, &features)?;
        if index == 0 {
            kvm::set_start(&fd, regs, registers::enter_long_mode)?;
        }
        vcpus.push(Vcpu { fd, cpuid, msrs: msrs.clone() });
    }
    Ok(vcpus)
}

fn restore_vcpus(config: &VmmConfig, kvm: &Host, machine: &Machine, state: &VmState) -> Result<Vec<Vcpu>, VmError> {
    let msrs = snapshot_msrs(config, kvm)?;
    let restore = |(index, state): (u8, &VcpuState)| {
        let fd = machine.restore_vcpu(index, state)?;
        Ok(Vcpu { fd, cpuid: state.cpuid.clone(), msrs: msrs.clone() })
    };
    (0..).zip(&state.vcpus).map(restore).collect()
}

#[cfg(test)]
mod tests;
