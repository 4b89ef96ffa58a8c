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
use crate::memory::{self, GuestRam, MemoryError};
use crate::postmortem;
use crate::trace::{Ending, ExitCounts, Reason, Stage, Trace};

/// Lines of console output in an exit report.
const TAIL_LINES: usize = 20;
/// What Linux prints first when it gives up.
const PANIC_MARK: &str = "Kernel panic - not syncing";

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
    let evidence = Evidence::collect(cause, stop, &output, &ram, plan.kernel_range());
    Ok(Evidence { exits: shared.counters.read(), ..evidence }.ending())
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

/// What is known once every vCPU has stopped.
struct Evidence {
    /// Why the event loop was left.
    cause: Cause,
    /// Why the first vCPU ended.
    stop: Stop,
    /// Whether the kernel marked its reset as that of a panic.
    panicked: bool,
    /// Console lines or, without a console, the kernel's log.
    lines: Vec<String>,
    exits: ExitCounts,
}

impl Evidence {
    fn collect(cause: Cause, stop: Stop, output: &Output, ram: &GuestRam, kernel: (u64, u64)) -> Self {
        let panicked = postmortem::panicked(ram);
        let mut lines = output.tail(TAIL_LINES);
        // An orderly end needs no inquest.
        if lines.is_empty() && (panicked || stop != Stop::Reset) {
            lines = postmortem::kernel_log(ram, kernel.0, kernel.1);
        }
        Self { cause, stop, panicked, lines, exits: ExitCounts::default() }
    }

    /// What the end of the VM was: the guest's doing if it did anything, else the host's wish.
    fn ending(self) -> Ending {
        let panic = self.lines.iter().find_map(|line| line.get(line.find(PANIC_MARK)?..)).map(str::to_owned);
        let panicked = self.panicked || panic.is_some();
        let (reason, detail) = match self.stop {
            Stop::Reset | Stop::Shutdown if panicked => {
                (Reason::Panic, panic.unwrap_or_else(|| "the guest's kernel panicked".to_owned()))
            }
            Stop::Reset => (Reason::Reset, "the guest asked for a reset".to_owned()),
            Stop::Shutdown => (Reason::TripleFault, "the guest's CPU shut down (triple fault)".to_owned()),
            Stop::Failed(text) => (Reason::HostError, text),
            Stop::Asked => (Reason::Stopped, self.cause.describe().to_owned()),
        };
        let skip = self.lines.len().saturating_sub(TAIL_LINES);
        let console_tail = self.lines.into_iter().skip(skip).collect();
        Ending { reason, detail, console_tail, exits: self.exits }
    }
}

#[cfg(test)]
mod tests;
