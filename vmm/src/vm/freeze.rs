// SPDX-License-Identifier: Apache-2.0
//! A running VM stands still, twins itself, and goes on.
//!
//! What stands still: vCPUs between two instructions, disks with nothing in flight. vsock needs no
//! stop, as it runs on the thread that asks. The twin has no VM, drops every descriptor but those
//! of the disks and of KVM, and becomes a [`Resident`].

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::resident::{Resident, Streams};
use super::restore::AtRest;
use super::{Vm, VmError, host, turn};
use crate::config::ConsoleMode;
use crate::memory;
use crate::orders::{Answer, Lifeline, Order, Received};
use crate::snapshot::{DiskState, VmState};
use crate::sys;
use crate::trace::chain;

/// How often a guest is let go on that does not rest when it is to be frozen.
const REST_TRIES: u32 = 100;
/// How long it may go on each time, in milliseconds; less when something happens.
const REST_PAUSE_MS: i32 = 1;

/// How long the guest stood still, and what for.
struct Pause {
    pid: u32,
    whole: Duration,
    save: Duration,
    fork: Duration,
}

/// Which of the two a process is after a freeze.
enum Twin {
    First(Pause),
    /// What failed there is of no concern to the first.
    Second(Result<Box<Resident>, VmError>),
}

impl Vm {
    /// Carries out an order; in the twin that a freeze makes, the resident it is to be.
    pub(super) fn obey(&mut self, received: Received) -> Option<Result<Box<Resident>, VmError>> {
        let failed = |what: String| Answer::Failed { what };
        let mut process = None;
        let answer = match received.order {
            Ok(Order::Freeze {}) => match self.freeze(received.descriptors) {
                Ok(Twin::First(pause)) => {
                    process = sys::process(pause.pid);
                    Answer::Frozen {
                        pause_us: micros(pause.whole),
                        save_us: micros(pause.save),
                        fork_us: micros(pause.fork),
                    }
                }
                Ok(Twin::Second(resident)) => return Some(resident),
                Err(error) => failed(chain(&error)),
            },
            Ok(Order::Discard { ranges }) => match memory::discard(&self.ram, &ranges) {
                Ok(bytes) => Answer::Discarded { bytes },
                Err(error) => failed(chain(&error)),
            },
            Ok(Order::Fork { .. } | Order::Save {}) => {
                failed("this process runs a VM: freeze it, and give the order to the resident".to_owned())
            }
            Err(what) => failed(what),
        };
        self.inbox.answer(&answer, process.as_ref());
        None
    }

    fn freeze(&mut self, descriptors: Vec<std::os::fd::OwnedFd>) -> Result<Twin, VmError> {
        let refuse = |what: &str| host("freezing the VM")(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
        let Ok([control, events, stderr]) = <[_; 3]>::try_from(descriptors) else {
            return Err(refuse("it takes 3 descriptors"));
        };
        let Some((_, config)) = &self.forkable else {
            return Err(refuse("it was started without `forkable`"));
        };
        let has_console = config.console() == ConsoleMode::On;
        if has_console {
            return Err(refuse("a VM with a console has no twin: start it without"));
        }
        let control = Lifeline::new(control);
        if !matches!(control, Lifeline::Control(_)) {
            return Err(refuse("a resident takes its orders on a SOCK_SEQPACKET socket, the first descriptor"));
        }
        let streams = Streams { control, events, stderr, doors: None };
        let begun = self.pause_at_rest()?;
        let (disks, vsock) = self.devices.pause();
        // Only now is there nobody left who could interrupt a vCPU behind its saved state.
        let twin = self.threads.save().map_err(VmError::from).and_then(|vcpus| {
            let machine = self.machine.state()?;
            self.devices.check_forkable()?;
            let state = VmState {
                mem_bytes: self.ram.iter().map(|region| region.len()).sum(),
                kernel_range: self.kernel_range,
                has_console,
                machine,
                vcpus,
                disks: Vec::new(),
                vsock,
            };
            self.twin(state, &disks, streams, begun)
        });
        if !matches!(twin, Ok(Twin::Second(_))) {
            let resumed = self.devices.resume(&disks);
            self.threads.go_on();
            resumed?;
        }
        match twin {
            Ok(Twin::First(pause)) => Ok(Twin::First(Pause { whole: begun.elapsed(), ..pause })),
            other => other,
        }
    }

    /// Stops the vCPUs, if it can when all of them are halted: a guest whose agent has frozen its
    /// commands is about to be, and nothing of it is then in the middle of anything. A guest that
    /// does not come to rest is stopped where it is.
    fn pause_at_rest(&mut self) -> Result<Instant, VmError> {
        let mut tries = 0;
        loop {
            let begun = Instant::now();
            let (loops, devices) = (&mut self.events, &self.devices);
            // A failure of the loop shows again at its next turn.
            let is_at_rest = self.threads.pause(|| drop(turn(loops, devices, Some(0))))?;
            if is_at_rest || tries == REST_TRIES {
                return Ok(begun);
            }
            tries += 1;
            self.threads.go_on();
            drop(turn(&mut self.events, &self.devices, Some(REST_PAUSE_MS)));
        }
    }

    fn twin(&mut self, state: VmState, disks: &[DiskState], streams: Streams, begun: Instant) -> Result<Twin, VmError> {
        let save = begun.elapsed();
        let forking = Instant::now();
        if let Some(pid) = sys::fork().map_err(host("making a process"))? {
            return Ok(Twin::First(Pause { pid, whole: Duration::ZERO, save, fork: forking.elapsed() }));
        }
        let disks =
            disks.iter().map(|disk| DiskState { transport: disk.transport.clone(), layer: None, ..*disk }).collect();
        Ok(Twin::Second(self.second(VmState { disks, ..state }, streams).map(Box::new)))
    }

    /// In the twin: takes out what a resident keeps.
    fn second(&mut self, state: VmState, streams: Streams) -> Result<Resident, VmError> {
        let lost = || host("taking over the VM")(std::io::ErrorKind::NotFound.into());
        let (kvm, config) = self.forkable.take().ok_or_else(lost)?;
        let disks = self.devices.take_disks().ok_or_else(lost)?;
        let (lifeline, _) = streams.take_places().map_err(host("taking over the streams"))?;
        let Lifeline::Control(control) = lifeline else {
            return Err(host("taking over the control socket")(std::io::ErrorKind::InvalidInput.into()));
        };
        let mut keep: Vec<_> =
            disks.iter().filter_map(|disk| disk.layer()).flat_map(|layer| layer.descriptors).collect();
        keep.extend([kvm.as_raw_fd(), control.descriptor().as_raw_fd()]);
        sys::keep_only(3, &keep).map_err(host("closing what belongs to the other"))?;
        let at_rest = AtRest { state, ram: self.ram.clone(), disks };
        Ok(Resident { kvm, config, at_rest, control })
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
