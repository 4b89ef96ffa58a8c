// SPDX-License-Identifier: Apache-2.0
//! The vCPU threads: made early, held at a gate until everything is jailed, stopped by signal.
//!
//! A thread owns its vCPU. It ends when its guest stops or when it is asked to; the first end is
//! what the VM's end is about, and `ended` fires for it.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::vcpu::{self, Shared, Stop};

/// How long a stopping thread may take; it needs one signal, so a second means a lost host.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// Time between two signals to a thread that was just about to enter the guest.
const STOP_RETRY: Duration = Duration::from_millis(1);

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

/// What a thread says of itself.
enum Report {
    Ready(u8, io::Result<()>),
    Running(Instant),
    Ended(Stop),
}

/// The vCPU threads of a VM.
#[derive(Debug)]
pub struct Threads {
    handles: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    gate: Arc<Barrier>,
    reports: Receiver<Report>,
    ended: EventFd,
}

impl Threads {
    /// Starts one thread for each vCPU; each calls `lock_in` and then waits for [`Self::open_gate`].
    ///
    /// # Errors
    /// [`ThreadError`].
    pub fn start(
        vcpus: Vec<VcpuFd>,
        shared: &Arc<Shared>,
        lock_in: fn() -> io::Result<()>,
    ) -> Result<Self, ThreadError> {
        let stopping = |source: io::Error| ThreadError::Stopping(source);
        register_signal_handler(SIGRTMIN(), interrupt).map_err(|e| stopping(e.into()))?;
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
        Ok(Self { handles, shared: Arc::clone(shared), gate, reports, ended })
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
        let mut first = None;
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
                Ok(Report::Ready(..) | Report::Running(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        first.unwrap_or(Stop::Asked)
    }
}

/// Exists so that the signal ends KVM_RUN instead of the process.
extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// What a thread owns.
struct Body {
    index: u8,
    vcpu: VcpuFd,
    shared: Arc<Shared>,
    gate: Arc<Barrier>,
    reports: Sender<Report>,
    ended: EventFd,
    lock_in: fn() -> io::Result<()>,
}

impl Body {
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
        let stop = vcpu::run(&mut self.vcpu, &self.shared);
        let _ = self.reports.send(Report::Ended(stop));
        let _ = self.ended.write(1);
    }
}
