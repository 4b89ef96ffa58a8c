// SPDX-License-Identifier: Apache-2.0
//! The vCPU threads: made early, held at a gate until everything is jailed, stopped by signal.
//!
//! A thread owns its vCPU. It ends when its guest stops or when it is asked to; the first end is
//! what the VM's end is about, and `ended` fires for it.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MP_STATE_HALTED, kvm_cpuid_entry2};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::kvm::KvmError;
use super::state::VcpuState;
use super::vcpu::{self, Shared, Stop};

/// How long a stopping thread may take; it needs one signal, so a second means a lost host.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// Interrupts are enabled (SDM vol. 1 §3.4.3).
const RFLAGS_IF: u64 = 1 << 9;
/// Time between two signals to a thread that is to pause, which the guest waits for.
const PAUSE_RETRY: Duration = Duration::from_micros(100);
/// Time between two signals to a thread that was just about to enter the guest.
const STOP_RETRY: Duration = Duration::from_millis(1);

/// From here on the signal that interrupts a vCPU ends nobody. Also for a process that has none: it is the one signal that a
/// filter lets threads send, and a sibling that was taken over can send it to any process of its jail.
///
/// # Errors
/// The kernel's.
pub fn expect_interrupts() -> io::Result<()> {
    // A twin has it from the process it came from, and may not ask for it any more.
    static ARE_EXPECTED: AtomicBool = AtomicBool::new(false);
    if !ARE_EXPECTED.load(Ordering::Relaxed) {
        register_signal_handler(SIGRTMIN(), interrupt).map_err(io::Error::from)?;
        ARE_EXPECTED.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// As [`expect_interrupts`], in a process that has no thread yet and whose twins will: the C library sets a handler of its own
/// with the first, which a twin that is locked in may not do.
///
/// # Errors
/// The kernel's.
pub fn expect_threads() -> io::Result<()> {
    expect_interrupts()?;
    let first = Builder::new().spawn(|| ())?;
    // It does nothing that could fail.
    let _ = first.join();
    Ok(())
}

/// Why the threads could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The host refused a thread.
    #[error("starting the thread of vCPU {index} failed")]
    Spawn {
        /// Which vCPU.
        index: u8,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A thread could not lock itself in.
    #[error("locking in the thread of vCPU {index} failed")]
    LockIn {
        /// Which vCPU.
        index: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The signal or event that stopping needs could not be set up.
    #[error("setting up how vCPUs are stopped failed")]
    Stopping(#[source] io::Error),
}

/// A vCPU and what its thread has to know of it.
#[derive(Debug)]
pub struct Vcpu {
    /// The vCPU, ready to run.
    pub fd: VcpuFd,
    /// The features it was made with.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// The MSRs that its state has; without them it cannot be saved.
    pub msrs: Option<Arc<[u32]>>,
}

/// Why the vCPUs could not be paused. They run on, unless they have ended.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// The guest ended instead.
    #[error("pausing the vCPUs: the guest has ended")]
    Ended,
    /// A vCPU did not leave the guest.
    #[error("pausing the vCPUs: vCPU threads did not stop within {} s", STOP_DEADLINE.as_secs())]
    Late,
    /// A state could not be read.
    #[error("saving the state of a vCPU")]
    Save(#[source] KvmError),
    /// The VM was not set up for it.
    #[error("pausing the vCPUs: this VM was started without `forkable`")]
    NotForkable,
}

/// What a thread says of itself.
enum Report {
    Ready(u8, io::Result<()>),
    Running(Instant),
    /// Out of the guest, in this pause; whether it was halted and waited for an interrupt.
    Paused(u8, u64, bool),
    State(u8, u64, Box<Result<VcpuState, PauseError>>),
    Ended(Stop),
}

/// The vCPU threads of a VM.
#[derive(Debug)]
pub struct Threads {
    handles: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    gate: Arc<Barrier>,
    reports: Receiver<Report>,
    /// An end that was reported while a pause was waited for.
    early: RefCell<Option<Stop>>,
    ended: EventFd,
}

impl Threads {
    /// Starts one thread for each vCPU; each calls `lock_in` and then waits for [`Self::open_gate`].
    ///
    /// # Errors
    /// [`ThreadError`].
    pub fn start(vcpus: Vec<Vcpu>, shared: &Arc<Shared>, lock_in: fn() -> io::Result<()>) -> Result<Self, ThreadError> {
        let stopping = |source: io::Error| ThreadError::Stopping(source);
        expect_interrupts().map_err(stopping)?;
        let ended = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(stopping)?;
        let gate = Arc::new(Barrier::new(vcpus.len() + 1));
        let (sender, reports) = channel();
        let mut handles = Vec::with_capacity(vcpus.len());
        for (index, vcpu) in (0..).zip(vcpus) {
            let body = Body {
                index,
                vcpu,
                shared: Arc::clone(shared),
                gate: Arc::clone(&gate),
                reports: sender.clone(),
                ended: ended.try_clone().map_err(stopping)?,
                lock_in,
            };
            let spawned = Builder::new().name(format!("vcpu {index}")).spawn(move || body.run());
            handles.push(spawned.map_err(|source| ThreadError::Spawn { index, source })?);
        }
        Ok(Self { handles, shared: Arc::clone(shared), gate, reports, early: RefCell::new(None), ended })
    }

    /// Waits until every thread has locked itself in.
    ///
    /// # Errors
    /// [`ThreadError::LockIn`] of the first that could not.
    pub fn wait_locked_in(&self) -> Result<(), ThreadError> {
        for _ in &self.handles {
            if let Ok(Report::Ready(index, Err(source))) = self.reports.recv() {
                return Err(ThreadError::LockIn { index, source });
            }
        }
        Ok(())
    }

    /// Lets the guest run and returns when the boot CPU entered it.
    pub fn open_gate(&self) -> Instant {
        self.gate.wait();
        match self.reports.recv() {
            Ok(Report::Running(when)) => when,
            _ => Instant::now(),
        }
    }

    /// Readable once a vCPU has ended.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// Stops every vCPU and returns why the first one ended: [`Stop::Asked`] when none had.
    pub fn stop(self) -> Stop {
        self.shared.ask_to_stop();
        let deadline = Instant::now() + STOP_DEADLINE;
        let mut first = self.early.take().filter(|stop| *stop != Stop::Asked);
        let mut running = self.handles.len();
        while running > 0 && Instant::now() < deadline {
            for handle in self.handles.iter().filter(|handle| !handle.is_finished()) {
                // A thread that ended in the meantime is no longer there to be signalled.
                let _ = handle.kill(SIGRTMIN());
            }
            match self.reports.recv_timeout(STOP_RETRY) {
                Ok(Report::Ended(stop)) => {
                    running -= 1;
                    first = first.or(Some(stop).filter(|stop| *stop != Stop::Asked));
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        first.unwrap_or(Stop::Asked)
    }

    /// Takes every vCPU out of the guest; they wait until [`Self::go_on`]. True when all of them were
    /// halted. `meanwhile` is called while waiting: a vCPU may be waiting for whoever asks.
    ///
    /// # Errors
    /// [`PauseError`]; then the vCPUs go on by themselves.
    pub fn pause(&self, mut meanwhile: impl FnMut()) -> Result<bool, PauseError> {
        let number = self.shared.ask_to_pause();
        let signal = |handle: &JoinHandle<()>| {
            // A thread that ended is no longer there to be signalled, and has reported.
            let _ = handle.kill(SIGRTMIN());
        };
        let rest = self.collect(signal, &mut meanwhile, |report| match report {
            Report::Paused(index, of, is_at_rest) if of == number => Some((index, Ok(is_at_rest))),
            _ => None,
        });
        let rest = rest.inspect_err(|_| self.go_on())?;
        Ok(rest.into_iter().all(|is_at_rest| is_at_rest))
    }

    /// The states of vCPUs that are paused, in order. Nothing may interrupt them from here on that
    /// is to be in their states: devices are brought to a stand before.
    ///
    /// # Errors
    /// [`PauseError`]; the vCPUs go on waiting.
    pub fn save(&self) -> Result<Vec<VcpuState>, PauseError> {
        let number = self.shared.pause_number();
        self.shared.ask_to_save();
        self.collect(
            |_| (),
            &mut || (),
            |report| match report {
                Report::State(index, of, state) if of == number => Some((index, *state)),
                _ => None,
            },
        )
    }

    /// Waits for a report of every thread that `pick` takes.
    fn collect<T>(
        &self,
        nudge: impl Fn(&JoinHandle<()>),
        meanwhile: &mut dyn FnMut(),
        pick: impl Fn(Report) -> Option<(u8, Result<T, PauseError>)>,
    ) -> Result<Vec<T>, PauseError> {
        let deadline = Instant::now() + STOP_DEADLINE;
        let mut all: Vec<Option<T>> = self.handles.iter().map(|_| None).collect();
        while all.iter().any(Option::is_none) {
            self.handles.iter().zip(&all).filter(|(_, one)| one.is_none()).for_each(|(handle, _)| nudge(handle));
            match self.reports.recv_timeout(PAUSE_RETRY) {
                Ok(Report::Ended(stop)) => {
                    self.early.borrow_mut().get_or_insert(stop);
                    return Err(PauseError::Ended);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(PauseError::Ended),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => return Err(PauseError::Late),
                Err(RecvTimeoutError::Timeout) => meanwhile(),
                Ok(report) => {
                    if let Some((index, one)) = pick(report)
                        && let Some(place) = all.get_mut(usize::from(index))
                    {
                        *place = Some(one?);
                    }
                }
            }
        }
        Ok(all.into_iter().flatten().collect())
    }

    /// Lets paused vCPUs go on.
    pub fn go_on(&self) {
        self.shared.go_on();
    }
}

/// Exists so that the signal ends KVM_RUN instead of the process.
extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// What a thread owns.
struct Body {
    index: u8,
    vcpu: Vcpu,
    shared: Arc<Shared>,
    gate: Arc<Barrier>,
    reports: Sender<Report>,
    ended: EventFd,
    lock_in: fn() -> io::Result<()>,
}

impl Body {
    /// Halted, and waiting for an interrupt.
    fn is_at_rest(&self) -> bool {
        let is_halted = self.vcpu.fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_HALTED);
        is_halted && self.vcpu.fd.get_regs().is_ok_and(|regs| regs.rflags & RFLAGS_IF != 0)
    }

    fn save(&self) -> Result<VcpuState, PauseError> {
        let msrs = self.vcpu.msrs.as_ref().ok_or(PauseError::NotForkable)?;
        VcpuState::save(&self.vcpu.fd, &self.vcpu.cpuid, msrs).map_err(PauseError::Save)
    }

    fn run(mut self) {
        let locked_in = (self.lock_in)();
        let failed = locked_in.is_err();
        // Nobody listens any more only when the whole process is on its way out.
        let _ = self.reports.send(Report::Ready(self.index, locked_in));
        if failed {
            return;
        }
        self.gate.wait();
        if self.index == 0 {
            let _ = self.reports.send(Report::Running(Instant::now()));
        }
        let stop = loop {
            let stop = vcpu::run(&mut self.vcpu.fd, &self.shared);
            if stop != Stop::Paused {
                break stop;
            }
            let number = self.shared.pause_number();
            let _ = self.reports.send(Report::Paused(self.index, number, self.is_at_rest()));
            let mut has_saved = false;
            while self.shared.wait_paused(number, has_saved) {
                let _ = self.reports.send(Report::State(self.index, number, Box::new(self.save())));
                has_saved = true;
            }
        };
        let _ = self.reports.send(Report::Ended(stop));
        let _ = self.ended.write(1);
    }
}
