// SPDX-License-Identifier: Apache-2.0
//! A resident: a process that holds a VM at rest, runs none, and makes forks of it on demand.
//!
//! It has one thread and no VM of its own, so a twin of it costs a quarter of a millisecond: no
//! page tables of KVM's follow its memory. The twin becomes the fork: it makes a VM over what it
//! has inherited, and every page of memory or overlay is shared until somebody writes it. A
//! resident comes from files ([`super::restore`]) or from a running VM that twins itself while it
//! stands still ([`super::Vm`]).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::signal;

use super::devices::{Backends, Doors};
use super::restore::AtRest;
use super::{Stopped, Vm, VmError, host};
use crate::config::VmmConfig;
use crate::disk::Layer;
use crate::jail;
use crate::machine::kvm::Host;
use crate::orders::{Answer, ControlSocket, Lifeline, Order, Received};
use crate::snapshot::files;
use crate::sys;
use crate::trace::{Ending, ExitCounts, Reason, Stage, Trace};

/// A VM at rest and what it takes to make another of it.
pub struct Resident {
    pub(super) kvm: Arc<Host>,
    pub(super) config: VmmConfig,
    pub(super) at_rest: AtRest,
    pub(super) control: ControlSocket,
}

/// What becomes of a process after an order.
enum Role {
    Resident,
    /// The twin, as the VM that it was made for.
    Fork(Box<Vm>),
}

impl Resident {
    /// Takes over a VM at rest; orders come on `control`.
    pub fn new(kvm: Arc<Host>, config: VmmConfig, at_rest: AtRest, control: ControlSocket) -> Self {
        Self { kvm, config, at_rest, control }
    }

    /// Obeys orders until the control socket ends. Returns in the twins too: what the VM of a
    /// fork came to.
    ///
    /// # Errors
    /// [`VmError`] of a fork that did not come to running; a resident survives every order.
    pub fn serve(mut self, trace: &mut Trace) -> Result<(Ending, Option<Stopped>), VmError> {
        await_signals(false).map_err(host("letting signals end the resident"))?;
        loop {
            let received = self.control.receive();
            let asked = Instant::now();
            match received {
                Ok(Some(received)) => match self.obey(received, asked, trace)? {
                    Role::Resident => {}
                    Role::Fork(vm) => {
                        // Nothing of the resident's may be in a fork's hands when its guest runs.
                        drop(self);
                        let (ending, stopped) = vm.run(trace, |trace| trace.flush(&mut io::stdout().lock()))?;
                        return Ok((ending, stopped));
                    }
                },
                Ok(None) => return Ok((released(), None)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.control.answer(&Answer::Failed { what: format!("receiving an order: {error}") }, None);
                    if error.kind() != io::ErrorKind::InvalidData {
                        return Err(host("receiving an order")(error));
                    }
                }
            }
        }
    }

    fn obey(&mut self, received: Received, asked: Instant, trace: &mut Trace) -> Result<Role, VmError> {
        let Received { order, descriptors } = received;
        let mut process = None;
        let answer = match order {
            Ok(Order::Fork { uds }) => match self.prepare(&uds, descriptors) {
                Ok((config, streams)) => match sys::fork() {
                    Ok(None) => {
                        return self.become_fork(&config, streams, asked, trace).map(|vm| Role::Fork(Box::new(vm)));
                    }
                    Ok(Some(pid)) => {
                        process = sys::process(pid);
                        Answer::Forked {}
                    }
                    Err(error) => failed(&no_process(&error)),
                },
                Err(what) => failed(&what),
            },
            Ok(Order::Save {}) => self.save(descriptors).unwrap_or_else(|error| failed(&error.to_string())),
            Ok(Order::Discard { .. }) => {
                failed("a resident's memory is what its forks begin with; give the order to one of them")
            }
            Ok(Order::Freeze {}) => failed("a resident runs no VM that could be frozen; order a fork"),
            Err(what) => failed(&what),
        };
        self.control.answer(&answer, process.as_ref());
        Ok(Role::Resident)
    }

    /// Everything about an order to fork that can be refused.
    fn prepare(&self, uds: &Path, descriptors: Vec<OwnedFd>) -> Result<(VmmConfig, Streams), String> {
        let config = self.config.for_fork(uds).map_err(|error| error.to_string())?;
        let wanted = if config.vsock().is_some() { 5 } else { 3 };
        let count = descriptors.len();
        if count != wanted {
            return Err(format!("a fork takes {wanted} descriptors, {count} came with the order"));
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| "too few descriptors".to_owned());
        let control = Lifeline::new(next()?);
        let mut streams = Streams { control, events: next()?, stderr: next()?, doors: None };
        if config.vsock().is_some() {
            streams.doors = Some(Doors { listener: next()?.into(), doorman: next()? });
        }
        Ok((config, streams))
    }

    /// In the twin: a VM of its own over what it has inherited. The resident's parts are moved out
    /// of `self`, which is of no more use.
    fn become_fork(
        &mut self,
        config: &VmmConfig,
        streams: Streams,
        asked: Instant,
        trace: &mut Trace,
    ) -> Result<Vm, VmError> {
        *trace = Trace::begin(Stage::ForkAsked, asked);
        trace.mark(Stage::Forked);
        jail::enter_as_fork().map_err(host("entering a domain of its own"))?;
        let lifeline = streams.take_places().map_err(host("taking over the fork's streams"))?;
        await_signals(true).map_err(host("blocking signals"))?;
        let disks = std::mem::take(&mut self.at_rest.disks);
        let backends = Backends { disks, doors: lifeline.1 };
        Vm::restore(
            config,
            &self.kvm,
            &self.at_rest.state,
            (self.at_rest.ram.clone(), backends),
            Some(lifeline.0),
            trace,
        )
    }

    fn save(&self, descriptors: Vec<OwnedFd>) -> io::Result<Answer> {
        let no_layer = || io::Error::other("a disk of this VM exists once only");
        let layers: Option<Vec<Layer<'_>>> = self.at_rest.disks.iter().map(|disk| disk.layer()).collect();
        let files: Vec<File> = descriptors.into_iter().map(File::from).collect();
        let AtRest { state, ram, .. } = &self.at_rest;
        let memory_bytes = files::write(state, ram, &layers.ok_or_else(no_layer)?, &files)?;
        Ok(Answer::Saved { memory_bytes })
    }
}

/// What a twin talks and listens on.
pub(super) struct Streams {
    pub(super) control: Lifeline,
    pub(super) events: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) doors: Option<Doors>,
}

impl Streams {
    /// Makes them this process' standard streams, in place of those of the process it came from.
    pub(super) fn take_places(self) -> io::Result<(Lifeline, Option<Doors>)> {
        sys::put_in_place(self.control.descriptor(), 0)?;
        sys::put_in_place(&self.events, 1)?;
        sys::put_in_place(&self.stderr, 2)?;
        Ok((self.control, self.doors))
    }
}

/// A VM is told of the signals that stop it; a resident simply ends by them.
fn await_signals(is_blocked: bool) -> io::Result<()> {
    let change = if is_blocked { signal::block_signal } else { signal::unblock_signal };
    sys::STOP_SIGNALS
        .iter()
        .try_for_each(|number| change(*number).map_err(|error| io::Error::other(format!("{error:?}"))))
}

fn failed(what: &str) -> Answer {
    Answer::Failed { what: what.to_owned() }
}

fn released() -> Ending {
    Ending {
        reason: Reason::Stopped,
        detail: "released by its host".to_owned(),
        console_tail: Vec::new(),
        exits: ExitCounts::default(),
        written: Vec::new(),
    }
}

/// Says why there is no process, and what helps.
fn no_process(error: &io::Error) -> String {
    let most = jail::PROCESSES_MAX;
    format!(
        "making a process: {error}; free memory or end other forks of this template (they have at most {most} processes and threads)"
    )
}
