// SPDX-License-Identifier: Apache-2.0
//! One VM from configuration to ending, assembled here and read from top to bottom.
//!
//! The only place that knows every other part. Nothing below it knows what is above.

pub mod devices;

mod ending;

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use kvm_bindings::kvm_regs;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::plan::{BootError, BootPlan};
use crate::boot::registers;
use crate::config::{ConsoleMode, VmmConfig};
use crate::control::{Cause, Control};
use crate::jail::{self, Thread};
use crate::machine::console::{self, Output};
use crate::machine::kvm::{self, Host, KvmError, Machine};
use crate::machine::ports::Ports;
use crate::machine::threads::{ThreadError, Threads};
use crate::machine::vcpu::Shared;
use crate::memory::{self, GuestRam, MemoryError};
use crate::trace::{Ending, Reason, Stage, Trace};
use crate::vsock::VsockWorker;

use devices::DeviceError;
use ending::Evidence;

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
            Self::Device(error) => error.is_users(),
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
    cause: Rc<Cell<Option<Cause>>>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("machine", &self.machine)
            .field("kernel_range", &self.kernel_range)
            .finish_non_exhaustive()
    }
}

impl Vm {
    /// Makes the VM of `config`, with every thread but the calling one locked in and waiting.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn assemble(config: &VmmConfig, lifeline: Option<OwnedFd>, trace: &mut Trace) -> Result<Self, VmError> {
        let plan = BootPlan::new(config, &devices::words(config))?;
        let (regs, kernel_range) = (*plan.regs(), plan.kernel_range());
        let kvm = Host::open(config.cpus())?;
        trace.mark(Stage::KvmReady);

        let ram = memory::allocate(config.mem_bytes(), config.huge_pages())?;
        let loading = plan.start_loading(ram.clone())?;
        let pages = devices::pages(config).map_err(host("mapping the device windows"))?;
        let machine = kvm.create(&ram, pages.clone())?;
        trace.mark(Stage::MemoryReady);

        let (bus, vsock) = devices::attach(config, &machine, &ram, pages.as_ref())?;
        let (ports, output, line_ended) = make_console(config.console(), &machine)?;
        let shared = Shared::new(bus, ports);
        let threads = start_vcpus(config.cpus(), &kvm, &machine, &regs, &shared)?;
        trace.mark_at(Stage::KernelMapped, loading.finish()?);
        trace.mark(Stage::VcpusReady);

        let watched = line_ended.map(|fd| (fd, output.clone()));
        let ended = threads.ended().try_clone().map_err(host("copying an event"))?;
        let control = Control::new(ended, lifeline, watched).map_err(host("watching for signals"))?;
        let cause = control.cause();
        let events = make_events(control, vsock)?;
        threads.wait_locked_in()?;
        Ok(Self { machine, ram, kernel_range, shared, threads, output, events, cause })
    }

    /// Locks in the calling thread, runs the guest to its end and says what that was.
    /// `on_started` is called once the guest runs.
    ///
    /// # Errors
    /// [`VmError`] when it did not come to running, or the event loop failed.
    pub fn run(mut self, trace: &mut Trace, on_started: impl FnOnce(&mut Trace)) -> Result<(Ending, Stopped), VmError> {
        jail::lock_in(Thread::Main).map_err(host("locking in the main thread"))?;
        trace.mark(Stage::Jailed);
        trace.mark_at(Stage::FirstRun, self.threads.open_gate());
        on_started(trace);
        let cause = loop {
            if let Some(cause) = self.cause.get() {
                break cause;
            }
            self.events.run().map_err(loop_failed)?;
        };
        // A vCPU may be waiting for vsock to answer a reset: nobody will from here on.
        drop(self.events);
        let stop = self.threads.stop();
        let evidence = Evidence::collect(cause, stop, &self.output, &self.ram, self.kernel_range);
        let ending = evidence.ending(self.shared.counters.read());
        Ok((ending, Stopped { _shared: self.shared, _machine: self.machine }))
    }
}

/// What is left of a VM when it has ended: its devices and KVM's part, given back on drop.
#[derive(Debug)]
pub struct Stopped {
    _shared: Arc<Shared>,
    _machine: Machine,
}

fn loop_failed(error: event_manager::Error) -> VmError {
    VmError::Host { step: "waiting for events", source: io::Error::other(error) }
}

fn make_events(control: Control, vsock: Option<VsockWorker>) -> Result<Events, VmError> {
    let mut events = Events::new().map_err(loop_failed)?;
    events.add_subscriber(Box::new(control));
    if let Some(worker) = vsock {
        events.add_subscriber(Box::new(worker));
    }
    Ok(events)
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

fn start_vcpus(
    count: u8,
    kvm: &Host,
    machine: &Machine,
    regs: &kvm_regs,
    shared: &Arc<Shared>,
) -> Result<Threads, VmError> {
    let features = kvm.cpu_features()?;
    let mut vcpus = Vec::with_capacity(usize::from(count));
    for index in 0..count {
        let vcpu = machine.create_vcpu(index, count, &features)?;
        if index == 0 {
            kvm::set_start(&vcpu, regs, registers::enter_long_mode)?;
        }
        vcpus.push(vcpu);
    }
    Ok(Threads::start(vcpus, shared, || jail::lock_in(Thread::Vcpu))?)
}

#[cfg(test)]
mod tests;
