// SPDX-License-Identifier: Apache-2.0
//! The vCPU loop: enter the guest, decide on the exit, enter again.
//!
//! One thread a vCPU. [`decide`] is all the policy and is pure but for the devices it is given;
//! the loop around it only enters the guest, counts and reports. It does no I/O of its own.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::bus::Bus;
use super::ports::Ports;
use crate::sys;
use crate::trace::ExitCounts;

/// Why a vCPU no longer runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The guest asked for a reset.
    Reset,
    /// The CPU shut down: a triple fault.
    Shutdown,
    /// KVM could not go on; the text says where the guest was.
    Failed(String),
    /// The VM is being stopped from outside.
    Asked,
    /// The VM is being paused: the vCPU may go on later.
    Paused,
}

/// What the vCPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Wish {
    Run = 0,
    Pause = 1,
    /// Paused, and asked for the state.
    Save = 2,
    Stop = 3,
}

/// What to do after an exit.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest again.
    Resume,
    /// Leave the loop.
    Stop(Stop),
    /// KVM failed: leave the loop once the registers have been added to this text.
    Fail(String),
}

/// What every vCPU thread of a VM shares.
#[derive(Debug)]
pub struct Shared {
    /// The devices in guest-physical space.
    pub bus: Bus,
    /// The devices in port space.
    pub ports: Ports,
    /// Exits so far.
    pub counters: Counters,
    /// A [`Wish`]; changed under `paused`, read without.
    wish: AtomicU8,
    /// How often a pause was asked for: tells an answer from one that came too late.
    pauses: AtomicU64,
    paused: Mutex<()>,
    goes_on: Condvar,
}

impl Shared {
    /// Devices, with all counters at zero.
    pub fn new(bus: Bus, ports: Ports) -> Arc<Self> {
        Arc::new(Self {
            bus,
            ports,
            counters: Counters::default(),
            wish: AtomicU8::new(Wish::Run as u8),
            pauses: AtomicU64::new(0),
            paused: Mutex::new(()),
            goes_on: Condvar::new(),
        })
    }

    /// Asks every vCPU to stop. A thread inside the guest notices at its next exit, so the asker
    /// must go on interrupting it with a signal until it has ended.
    pub fn ask_to_stop(&self) {
        self.wish(Wish::Stop);
    }

    /// Asks every vCPU to leave the guest and wait, as for [`Self::ask_to_stop`]; returns the
    /// number of this pause.
    pub fn ask_to_pause(&self) -> u64 {
        let number = self.pauses.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        self.wish(Wish::Pause);
        number
    }

    /// The number of the latest pause.
    pub(super) fn pause_number(&self) -> u64 {
        self.pauses.load(Ordering::Acquire)
    }

    /// Asks every vCPU that waits for its state.
    pub fn ask_to_save(&self) {
        self.wish(Wish::Save);
    }

    /// Lets vCPUs that wait go on.
    pub fn go_on(&self) {
        self.wish(Wish::Run);
    }

    /// Waits, on a vCPU thread, until pause `number` is over, or its state is wanted and it has not
    /// saved it yet: then true. The next pause may have begun by then: it wants a report of its own.
    pub(super) fn wait_paused(&self, number: u64, has_saved: bool) -> bool {
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        let is_wanted = || self.wanted() == Wish::Save as u8 && self.pause_number() == number;
        let is_on = |(): &mut ()| {
            let waits = self.wanted() == Wish::Pause as u8 || (has_saved && self.wanted() == Wish::Save as u8);
            waits && self.pause_number() == number
        };
        drop(self.goes_on.wait_while(paused, is_on));
        is_wanted()
    }

    fn wish(&self, wish: Wish) {
        let _paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        self.wish.store(wish as u8, Ordering::Release);
        self.goes_on.notify_all();
    }

    fn wanted(&self) -> u8 {
        self.wish.load(Ordering::Acquire)
    }
}

/// Exits to this process by kind, counted by all vCPUs.
#[derive(Debug, Default)]
pub struct Counters {
    io: AtomicU64,
    mmio: AtomicU64,
    interrupted: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    /// The counts so far.
    pub fn read(&self) -> ExitCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitCounts {
            io: load(&self.io),
            mmio: load(&self.mmio),
            interrupted: load(&self.interrupted),
            other: load(&self.other),
        }
    }

    fn count(&self, exit: &VcpuExit<'_>) {
        let counter = match exit {
            VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => &self.io,
            VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..) => &self.mmio,
            VcpuExit::Intr => &self.interrupted,
            _ => &self.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Carries out what the guest asked for with this exit and says what comes next.
pub fn decide(exit: VcpuExit<'_>, bus: &Bus, ports: &Ports) -> Next {
    match exit {
        VcpuExit::IoIn(port, data) => ports.read(port, data),
        VcpuExit::IoOut(port, data) => {
            if ports.write(port, data).is_some() {
                return Next::Stop(Stop::Reset);
            }
        }
        VcpuExit::MmioRead(addr, data) => bus.read(addr, data),
        VcpuExit::MmioWrite(addr, data) => bus.write(addr, data),
        VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => {}
        VcpuExit::Shutdown => return Next::Stop(Stop::Shutdown),
        VcpuExit::FailEntry(reason, cpu) => {
            return Next::Fail(format!("the CPU refused to enter the guest (reason {reason:#x} on host CPU {cpu})"));
        }
        VcpuExit::MemoryFault { flags, gpa, size } => {
            let text = format!("guest memory at {gpa:#x} ({size} bytes, flags {flags:#x}) cannot be reached");
            return Next::Fail(text);
        }
        VcpuExit::InternalError => return Next::Fail("KVM could not emulate the guest".to_owned()),
        other => return Next::Fail(format!("unexpected exit {other:?}")),
    }
    Next::Resume
}

/// Runs a vCPU until it stops; the whole life of its thread after the gate.
pub fn run(vcpu: &mut VcpuFd, shared: &Shared) -> Stop {
    loop {
        match shared.wanted() {
            wish if wish == Wish::Run as u8 => {}
            wish if wish == Wish::Stop as u8 => return Stop::Asked,
            _ => {
                complete_exit(vcpu);
                return Stop::Paused;
            }
        }
        let next = match vcpu.run() {
            Ok(exit) => {
                shared.counters.count(&exit);
                decide(exit, &shared.bus, &shared.ports)
            }
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                shared.counters.count(&VcpuExit::Intr);
                Next::Resume
            }
            Err(error) => Next::Fail(format!("KVM_RUN failed: {error}")),
        };
        match next {
            Next::Resume => {}
            Next::Stop(stop) => return stop,
            Next::Fail(what) => return Stop::Failed(format!("{what}; {}", describe(vcpu))),
        }
    }
}

/// Lets KVM finish the access of the last exit (KVM API §5, `immediate_exit`), so that the state is
/// that between two instructions. The guest does not run.
fn complete_exit(vcpu: &mut VcpuFd) {
    vcpu.set_kvm_immediate_exit(1);
    // Answers EINTR by design; whatever else it says, the next entry will say again.
    let _ = vcpu.run();
    vcpu.set_kvm_immediate_exit(0);
}

/// Where the guest was when KVM failed, for a human.
fn describe(vcpu: &mut VcpuFd) -> String {
    let (code, data) = sys::internal_error(vcpu.get_kvm_run());
    let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) else {
        return "the registers cannot be read".to_owned();
    };
    format!(
        "internal code {code} {data:x?}, rip {:#x} rsp {:#x} rflags {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
        regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::bus::{MmioDevice, WINDOWS_START};
    use crate::machine::console;

    struct Echo(u8);

    impl MmioDevice for Echo {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&mut self, _: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn devices() -> (Bus, Ports) {
        let mut bus = Bus::default();
        bus.attach(Arc::new(Mutex::new(Echo(7))));
        (bus, Ports::new(console::new(None, None).0))
    }

    #[test]
    fn port_and_memory_accesses_reach_their_devices_and_the_guest_goes_on() {
        let (bus, ports) = devices();
        let mut four = [0; 4];
        assert_eq!(decide(VcpuExit::MmioWrite(WINDOWS_START, &[9, 0, 0, 0]), &bus, &ports), Next::Resume);
        assert_eq!(decide(VcpuExit::MmioRead(WINDOWS_START, &mut four), &bus, &ports), Next::Resume);
        assert_eq!(four, [9; 4]);
        let mut one = [0];
        assert_eq!(decide(VcpuExit::IoIn(0x3fd, &mut one), &bus, &ports), Next::Resume);
        assert_eq!(one[0] & 0x20, 0x20);
    }

    #[test]
    fn absent_devices_neither_stop_nor_answer() {
        let (bus, ports) = devices();
        let mut data = [0; 8];
        assert_eq!(decide(VcpuExit::MmioRead(0xdead_0000, &mut data), &bus, &ports), Next::Resume);
        assert_eq!(data, [0xff; 8]);
        assert_eq!(decide(VcpuExit::MmioWrite(u64::MAX, &data), &bus, &ports), Next::Resume);
        assert_eq!(decide(VcpuExit::IoOut(0x80, &[0]), &bus, &ports), Next::Resume);
    }

    #[test]
    fn reset_shutdown_and_failure_are_told_apart() {
        let (bus, ports) = devices();
        assert_eq!(decide(VcpuExit::IoOut(0x64, &[0xfe]), &bus, &ports), Next::Stop(Stop::Reset));
        assert_eq!(decide(VcpuExit::Shutdown, &bus, &ports), Next::Stop(Stop::Shutdown));
        let Next::Fail(text) = decide(VcpuExit::FailEntry(0x21, 3), &bus, &ports) else { panic!() };
        assert!(text.contains("0x21") && text.contains('3'), "{text}");
        assert!(matches!(decide(VcpuExit::InternalError, &bus, &ports), Next::Fail(_)));
        assert!(matches!(decide(VcpuExit::Unsupported(99), &bus, &ports), Next::Fail(_)));
        assert!(matches!(decide(VcpuExit::SystemEvent(1, &[]), &bus, &ports), Next::Fail(_)));
    }

    #[test]
    fn a_signal_or_a_halt_goes_back_into_the_guest() {
        let (bus, ports) = devices();
        for exit in [VcpuExit::Intr, VcpuExit::Hlt, VcpuExit::IrqWindowOpen] {
            assert_eq!(decide(exit, &bus, &ports), Next::Resume);
        }
    }

    fn shared() -> Arc<Shared> {
        let (bus, ports) = devices();
        Shared::new(bus, ports)
    }

    /// A thread that waits as a vCPU does which has reported for pause `number`; what it finds then.
    fn waiter(shared: &Arc<Shared>, number: u64) -> std::thread::JoinHandle<(u8, u64)> {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            assert!(!shared.wait_paused(number, false), "nobody asks for a state");
            (shared.wanted(), shared.pause_number())
        })
    }

    #[test]
    fn who_is_paused_waits_until_it_may_go_on_or_must_stop() {
        for (release, wish) in [(Shared::go_on as fn(&Shared), Wish::Run), (Shared::ask_to_stop, Wish::Stop)] {
            let shared = shared();
            let number = shared.ask_to_pause();
            let waiters = [waiter(&shared, number), waiter(&shared, number)];
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
            release(&shared);
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), (wish as u8, number));
            }
        }
    }

    #[test]
    fn nobody_waits_for_a_pause_that_is_over() {
        let shared = shared();
        assert_eq!(waiter(&shared, 0).join().unwrap(), (Wish::Run as u8, 0));
        let number = shared.ask_to_pause();
        shared.go_on();
        assert_eq!(waiter(&shared, number).join().unwrap(), (Wish::Run as u8, number));
    }

    /// A thread that has not run between two pauses must report for the second: whoever asked
    /// waits for it.
    #[test]
    fn the_next_pause_is_not_taken_for_the_one_before() {
        let shared = shared();
        let first = shared.ask_to_pause();
        let slow = waiter(&shared, first);
        std::thread::sleep(std::time::Duration::from_millis(20));
        shared.go_on();
        let second = shared.ask_to_pause();
        assert_eq!(slow.join().unwrap(), (Wish::Pause as u8, second));
    }

    #[test]
    fn pauses_and_their_ends_in_quick_succession_leave_nobody_behind() {
        let shared = shared();
        for round in 1..500 {
            let number = shared.ask_to_pause();
            assert_eq!(number, round, "they are counted");
            let waiters = [waiter(&shared, number), waiter(&shared, number)];
            shared.go_on();
            assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap().1 == number));
        }
    }

    #[test]
    fn a_state_is_asked_for_once_in_a_pause() {
        let shared = shared();
        let number = shared.ask_to_pause();
        shared.ask_to_save();
        assert!(shared.wait_paused(number, false));
        let saved = Arc::clone(&shared);
        let waits = std::thread::spawn(move || saved.wait_paused(number, true));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waits.is_finished());
        shared.go_on();
        assert!(!waits.join().unwrap());
        assert!(!shared.wait_paused(number, false), "the pause is over");
    }

    #[test]
    fn exits_are_counted_by_kind() {
        let counters = Counters::default();
        counters.count(&VcpuExit::IoOut(1, &[]));
        counters.count(&VcpuExit::IoIn(1, &mut []));
        counters.count(&VcpuExit::MmioWrite(1, &[]));
        counters.count(&VcpuExit::Intr);
        counters.count(&VcpuExit::Shutdown);
        assert_eq!(counters.read(), ExitCounts { io: 2, mmio: 1, interrupted: 1, other: 1 });
    }
}
