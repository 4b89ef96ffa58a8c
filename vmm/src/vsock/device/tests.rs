// SPDX-License-Identifier: Apache-2.0
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventManager, SubscriberOps};

use super::super::doorman::attend;
use super::super::host_socket::connect;
use super::super::model::{REQUEST, RST, RW, Wire};
use super::super::rig::{EVENT_IDX, Rig, VERSION_1, eventually, is_at_end, pattern, read_now};
use super::*;
use crate::virtio::fake::{bring_up, read32};
use crate::virtio::{Transport, fake::FakeDriver};

#[test]
fn driver_finds_a_socket_device_with_its_cid() {
    let rig = Rig::inactive(VERSION_1);
    let irq = rig.irq.try_clone().unwrap();
    let mut transport =
        Transport::new(rig.device, rig.ram.clone(), irq, crate::machine::pages::ReadPage::unseen().unwrap()).unwrap();
    assert_eq!(read32(&mut transport, 0x08), 19);
    assert_eq!(read32(&mut transport, 0x100), 3, "guest_cid, low");
    assert_eq!(read32(&mut transport, 0x104), 0, "guest_cid, high");
    assert_eq!(read32(&mut transport, 0x108), 0, "nothing behind it");
    let ram = rig.ram.clone();
    let drivers = [0, 0x1_8000, 0x10_0000].map(|base| FakeDriver::new(&ram, base, 16));
    let drivers: Vec<_> = drivers.iter().collect();
    assert_eq!(bring_up(&mut transport, VERSION_1 | EVENT_IDX, &drivers), 0xf);
}

#[test]
fn config_is_read_in_any_piece() {
    let rig = Rig::inactive(VERSION_1);
    let read = |offset, len| {
        let mut data = vec![0xaa; len];
        rig.device.read_config(offset, &mut data);
        data
    };
    assert_eq!(read(0, 8), [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(read(0, 1), [3]);
    assert_eq!(read(7, 4), [0, 0, 0, 0]);
    assert_eq!(read(u64::MAX, 4), [0, 0, 0, 0]);
}

#[test]
fn guest_cid_must_be_a_guests() {
    let dir = tempfile::tempdir().unwrap();
    let made = |cid| {
        let uds = dir.path().join(format!("{cid}.sock"));
        pair(cid, UnixListener::bind(&uds).unwrap(), super::super::doorman::line().unwrap().0, &uds).map(|_| ())
    };
    for cid in [3, 4, 0xffff_fffe] {
        made(cid).unwrap();
    }
    for cid in [0, 1, 2, 0xffff_ffff, 1 << 32, u64::MAX] {
        let error = made(cid).unwrap_err().to_string();
        assert!(error.contains(&cid.to_string()) && error.contains("3..=4294967294"), "{error}");
    }
}

#[test]
fn nothing_is_served_before_the_driver_is_ready() {
    let mut rig = Rig::inactive(VERSION_1);
    let mut client = rig.client("CONNECT 80\n");
    rig.turn();
    assert!(rig.kicks[0].write(1).is_ok());
    rig.turn();
    assert_eq!(rig.worker.connections(), 0);
    rig.device.reset();
    rig.activate();
    rig.give_rx(2, 100);
    assert_eq!(rig.ops(), [REQUEST], "the client waited in the backlog");
    rig.send(Wire::guest(RST).between(80, 1 << 30));
    assert!(is_at_end(&mut client));
}

/// Runs a rig's worker in an event loop of its own thread while `test` has the device.
fn with_event_loop(rig: Rig, test: impl FnOnce(&mut Vsock, &mut RigRest)) {
    let Rig { mut device, worker, ram, rx, tx, event, irq, kicks, uds, doorman, dir, .. } = rig;
    let mut rest = RigRest { ram, rx, tx, event, irq, kicks, uds, doorman };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut manager = EventManager::<VsockWorker>::new().unwrap();
            manager.add_subscriber(worker);
            while !is_over.load(Ordering::SeqCst) {
                manager.run_with_timeout(10).unwrap();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&mut device, &mut rest)));
        is_over.store(true, Ordering::SeqCst);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    drop(dir);
}

/// A rig without its worker.
struct RigRest {
    ram: crate::memory::GuestRam,
    rx: FakeDriver,
    tx: FakeDriver,
    event: FakeDriver,
    irq: EventFd,
    kicks: Vec<EventFd>,
    uds: PathBuf,
    doorman: OwnedFd,
}

impl RigRest {
    fn activation(&mut self) -> Activation {
        let queues = [&mut self.rx, &mut self.tx, &mut self.event].map(|driver| {
            driver.clear();
            driver.queue(VERSION_1)
        });
        Activation {
            ram: self.ram.clone(),
            features: VERSION_1,
            queues: queues.into(),
            kicks: self.kicks.iter().map(|kick| kick.try_clone().unwrap()).collect(),
            interrupt: crate::virtio::Interrupt::new(
                self.irq.try_clone().unwrap(),
                crate::machine::pages::ReadPage::unseen().unwrap(),
            ),
        }
    }
}

#[test]
fn reset_in_the_middle_of_traffic_returns_with_everything_let_go() {
    with_event_loop(Rig::inactive(VERSION_1), |device, rest| {
        let listener = UnixListener::bind(format!("{}_1025", rest.uds.display())).unwrap();
        for _ in 0..20 {
            device.activate(rest.activation()).unwrap();
            rest.tx.offer(&[crate::virtio::fake::Part::Give(&Wire::guest(REQUEST).bytes())]);
            rest.kicks[1].write(1).unwrap();
            for _ in 0..12 {
                rest.rx.offer(&[crate::virtio::fake::Part::Take(4140)]);
            }
            rest.kicks[0].write(1).unwrap();
            eventually(|| attend(&rest.doorman, |port| connect(&rest.uds, port)).is_ok());
            let (mut host, _) = listener.accept().unwrap();
            host.set_nonblocking(true).unwrap();
            eventually(|| !rest.rx.used().is_empty());
            // Both directions are at work.
            host.write_all(&pattern(100_000)).unwrap();
            let payload = [&Wire { len: 5000, ..Wire::guest(RW) }.bytes()[..], &pattern(5000)].concat();
            rest.tx.offer(&[crate::virtio::fake::Part::Give(&payload)]);
            rest.kicks[1].write(1).unwrap();
            device.reset();
            let used = rest.rx.used().len();
            let got = read_now(&mut host);
            assert!(got.is_empty() || got == pattern(5000), "a part of a packet");
            assert!(is_at_end(&mut host), "the connection is closed when reset returns");
            std::thread::yield_now();
            assert_eq!(rest.rx.used().len(), 0, "written to after the reset, {used} before");
            assert!(host.write_all(b"x").is_err());
        }
    });
}

#[test]
fn kick_from_another_thread_wakes_the_worker() {
    with_event_loop(Rig::inactive(VERSION_1 | EVENT_IDX), |device, rest| {
        device.activate(rest.activation()).unwrap();
        rest.rx.offer(&[crate::virtio::fake::Part::Take(100)]);
        rest.tx.offer(&[crate::virtio::fake::Part::Give(&Wire::guest(RW).bytes())]);
        rest.kicks[1].write(1).unwrap();
        eventually(|| !rest.rx.used().is_empty());
        eventually(|| rest.irq.read().is_ok());
        device.reset();
        device.reset();
    });
}

#[test]
fn reset_does_not_wait_for_a_worker_that_is_gone() {
    let mut rig = Rig::new();
    let (_, mut host) = rig.guest_opens(1);
    drop(rig.worker);
    assert!(is_at_end(&mut host));
    rig.device.reset();
    rig.device.control().transport_reset();
}
