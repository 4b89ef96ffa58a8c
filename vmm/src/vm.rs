// SPDX-License-Identifier: Apache-2.0
//! One VM from configuration to ending, assembled here and read from top to bottom.
//!
//! The only place that knows every other part. Nothing below it knows what is above.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::plan::{BootError, BootPlan};
use crate::boot::registers;
use crate::config::{ConsoleMode, VmmConfig};
use crate::control::{Cause, Control};
use crate::jail::{self, Thread};
use crate::machine::bus::Bus;
use crate::machine::console::{self, Output};
use crate::machine::kvm::{self, Host, KvmError, Machine};
use crate::machine::ports::Ports;
use crate::machine::threads::{ThreadError, Threads};
use crate::machine::vcpu::{Shared, Stop};
use crate::memory::{self, MemoryError};
use crate::trace::{Ending, ExitCounts, Reason, Stage, Trace};

/// Lines of console output in an exit report.
const TAIL_LINES: usize = 20;

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
        match self {
            Self::Boot(BootError::Entropy(_) | BootError::Seek { .. }) => Reason::HostError,
            Self::Boot(_) | Self::Kvm(KvmError::Vcpus { .. }) => Reason::Config,
            _ => Reason::HostError,
        }
    }
}

fn host(step: &'static str) -> impl FnOnce(io::Error) -> VmError {
    move |source| VmError::Host { step, source }
}

/// Starts the VM of `config` and runs it to its end. `on_started` is called once the guest runs.
///
/// # Errors
/// [`VmError`] when it did not come to running; after that every outcome is an [`Ending`].
pub fn run(
    config: &VmmConfig,
    lifeline: Option<OwnedFd>,
    trace: &mut Trace,
    on_started: impl FnOnce(&mut Trace),
) -> Result<Ending, VmError> {
    let mut plan = BootPlan::new(config, &[])?;
    let kvm = Host::open(config.cpus())?;
    trace.mark(Stage::KvmReady);

    let ram = memory::allocate(config.mem_bytes(), config.huge_pages())?;
    let machine = kvm.create(&ram)?;
    trace.mark(Stage::MemoryReady);

    plan.load(&ram)?;
    trace.mark(Stage::KernelMapped);

    let (ports, output, line_ended) = make_console(config.console(), &machine)?;
    let shared = Shared::new(Bus::default(), ports);
    let threads = start_vcpus(config.cpus(), &kvm, &machine, &plan, &shared)?;
    trace.mark(Stage::VcpusReady);

    let watched = line_ended.map(|fd| (fd, output.clone()));
    let ended = threads.ended().try_clone().map_err(host("copying an event"))?;
    let control = Control::new(ended, lifeline, watched).map_err(host("watching for signals"))?;
    let cause = control.cause();
    let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new().map_err(loop_failed)?;
    events.add_subscriber(Box::new(control));

    threads.wait_locked_in()?;
    jail::lock_in(Thread::Main).map_err(host("locking in the main thread"))?;
    trace.mark(Stage::Jailed);

    let first_run = threads.open_gate();
    trace.mark_at(Stage::FirstRun, first_run);
    on_started(trace);
    let cause = loop {
        if let Some(cause) = cause.get() {
            break cause;
        }
        events.run().map_err(loop_failed)?;
    };
    let stop = threads.stop();
    Ok(ending(cause, stop, &output, shared.counters.read()))
}

fn loop_failed(error: event_manager::Error) -> VmError {
    VmError::Host { step: "waiting for events", source: io::Error::other(error) }
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
    plan: &BootPlan,
    shared: &Arc<Shared>,
) -> Result<Threads, VmError> {
    let features = kvm.cpu_features()?;
    let mut vcpus = Vec::with_capacity(usize::from(count));
    for index in 0..count {
        let vcpu = machine.create_vcpu(index, count, features.as_slice())?;
        if index == 0 {
            kvm::set_start(&vcpu, plan.regs(), registers::enter_long_mode)?;
        }
        vcpus.push(vcpu);
    }
    Ok(Threads::start(vcpus, shared, || jail::lock_in(Thread::Vcpu))?)
}

/// What the end of the VM was: the guest's doing if it did anything, else the host's wish.
fn ending(cause: Cause, stop: Stop, output: &Output, exits: ExitCounts) -> Ending {
    let panic = output.panic_line();
    let (reason, detail) = match (stop, panic) {
        (Stop::Reset | Stop::Shutdown, Some(line)) => (Reason::Panic, line),
        (Stop::Reset, None) => (Reason::Reset, "the guest asked for a reset".to_owned()),
        (Stop::Shutdown, None) => (Reason::TripleFault, "the guest's CPU shut down (triple fault)".to_owned()),
        (Stop::Failed(text), _) => (Reason::HostError, text),
        (Stop::Asked, _) => (Reason::Stopped, cause.describe().to_owned()),
    };
    Ending { reason, detail, console_tail: output.tail(TAIL_LINES), exits }
}

#[cfg(test)]
mod tests;
