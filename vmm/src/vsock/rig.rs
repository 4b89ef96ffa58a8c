// SPDX-License-Identifier: Apache-2.0
//! A whole device for tests: fake queues on one side, real Unix sockets on the other, and the
//! worker turned by hand in between. One of the rx buffers always crosses a border of memory regions.
#![expect(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Vsock, pair};
use super::doorman;
use super::host_socket::connect;
use super::model::{Endpoint, GUEST_CID, HOST_PORT, REQUEST, Wire};
use super::worker::VsockWorker;
use crate::memory::GuestRam;
use crate::virtio::fake::{FakeDriver, Offered, Part, copy_of, ram_with_hole};
use crate::virtio::{Activation, Device, Interrupt, Queue};

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;

/// How the guest lays out a tx chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Header and payload in one descriptor: Linux from 6.3.
    Together,
    /// A descriptor each.
    Apart,
    /// The header itself in pieces.
    Torn,
}

pub(crate) struct Rig {
    pub(crate) device: Vsock,
    pub(crate) worker: VsockWorker,
    pub(crate) ram: GuestRam,
    pub(crate) rx: FakeDriver,
    pub(crate) tx: FakeDriver,
    pub(crate) event: FakeDriver,
    pub(crate) irq: EventFd,
    pub(crate) kicks: Vec<EventFd>,
    pub(crate) uds: PathBuf,
    /// The doorman's end of the line.
    pub(crate) doorman: OwnedFd,
    pub(crate) dir: TempDir,
    offered: Vec<Offered>,
    pub(crate) features: u64,
    turns: u32,
}

impl Rig {
    /// Active, with 12 rx buffers of 4 KiB.
    pub(crate) fn new() -> Self {
        let mut rig = Self::inactive(VERSION_1 | EVENT_IDX);
        rig.activate();
        rig.give_rx(12, 4096 + 44);
        rig
    }

    pub(crate) fn inactive(features: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uds = dir.path().join("v.sock");
        let listener = UnixListener::bind(&uds).unwrap();
        let (line, doorman) = doorman::line().unwrap();
        rustix::io::ioctl_fionbio(&doorman, true).unwrap();
        let (device, worker) = pair(GUEST_CID, listener, line, &uds).unwrap();
        let ram = ram_with_hole();
        Self {
            device,
            worker,
            tx: FakeDriver::new(&ram, 0, 256),
            event: FakeDriver::new(&ram, 0x1_8000, 16),
            // Its buffers begin at 0x3a000, in front of the border at 0x40000.
            rx: FakeDriver::new(&ram, 0x3_8000, 256),
            ram,
            irq: EventFd::new(EFD_NONBLOCK).unwrap(),
            kicks: (0..3).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect(),
            uds,
            doorman,
            dir,
            offered: Vec::new(),
            features,
            turns: 0,
        }
    }

    /// Another machine with a copy of the memory, which goes on where this one is. This one goes on
    /// as well: nothing of the two is shared.
    pub(crate) fn twin(&mut self) -> Self {
        let (state, queues) = self.worker.state();
        let mut twin = Self::inactive(self.features);
        twin.ram = copy_of(&self.ram);
        [twin.rx, twin.tx, twin.event] = [&self.rx, &self.tx, &self.event].map(|driver| driver.moved_to(&twin.ram));
        twin.offered.clone_from(&self.offered);
        if !queues.is_empty() {
            let maxima = twin.device.queue_max_sizes().iter();
            let restore = |(queue, max): (_, &u16)| Queue::restore(twin.ram.clone().into(), queue, *max, self.features);
            let queues = queues.into_iter().zip(maxima).map(|pair| restore(pair).unwrap()).collect();
            let activation = twin.activation_of(queues);
            twin.device.activate(activation).unwrap();
            twin.kicks.iter().for_each(|kick| kick.write(1).unwrap());
        }
        twin.worker.restore(state);
        twin
    }

    pub(crate) fn activation(&mut self) -> Activation {
        let queues = [&mut self.rx, &mut self.tx, &mut self.event].map(|driver| {
            driver.clear();
            driver.queue(self.features)
        });
        self.offered.clear();
        self.activation_of(queues.into())
    }

    fn activation_of(&self, queues: Vec<Queue>) -> Activation {
        Activation {
            ram: self.ram.clone(),
            features: self.features,
            queues,
            kicks: self.kicks.iter().map(|kick| kick.try_clone().unwrap()).collect(),
            interrupt: Interrupt::new(
                self.irq.try_clone().unwrap(),
                crate::machine::pages::ReadPage::unseen().unwrap(),
            ),
        }
    }

    pub(crate) fn activate(&mut self) {
        let activation = self.activation();
        self.device.activate(activation).unwrap();
        self.worker.turn();
    }

    /// Lets the worker do what it can, until it has nothing to do twice in a row.
    pub(crate) fn turn(&mut self) {
        self.turns += 1;
        assert!(self.turns < 100_000, "the test goes on for ever");
        for _ in 0..4 {
            self.worker.turn();
            self.attend();
        }
    }

    /// Answers what the doorman was asked.
    pub(crate) fn attend(&self) {
        while doorman::attend(&self.doorman, |port| connect(&self.uds, port)).unwrap_or(false) {}
    }

    // ---- Guest ------------------------------------------------------------------------------

    pub(crate) fn give_rx(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            let offered = self.rx.offer(&[Part::Take(len)]);
            self.offered.push(offered);
        }
        self.kicks[0].write(1).unwrap();
    }

    /// Sends a packet in a layout, without letting the worker see it yet.
    pub(crate) fn put(&mut self, wire: Wire, payload: &[u8], layout: Layout) {
        let header = wire.bytes();
        match layout {
            Layout::Together => self.tx.offer(&[Part::Give(&[&header, payload].concat())]),
            Layout::Apart if payload.is_empty() => self.tx.offer(&[Part::Give(&header)]),
            Layout::Apart => self.tx.offer(&[Part::Give(&header), Part::Give(payload)]),
            Layout::Torn => {
                let (a, b) = header.split_at(13);
                let (c, d) = payload.split_at(payload.len() / 2);
                self.tx.offer(&[Part::Give(a), Part::Give(&[b, c].concat()), Part::Give(d)])
            }
        };
        self.kicks[1].write(1).unwrap();
    }

    pub(crate) fn send(&mut self, wire: Wire) {
        self.put(wire, &[], Layout::Together);
        self.turn();
    }

    /// What the guest got, its buffers given back.
    pub(crate) fn received(&mut self) -> Vec<(Wire, Vec<u8>)> {
        self.turn();
        let mut list = Vec::new();
        for (head, len) in self.rx.used() {
            let at = self.offered.iter().position(|offered| u32::from(offered.head) == head).expect("used twice");
            let offered = self.offered.remove(at);
            let bytes = self.rx.taken(&offered, 0);
            if len >= 44 {
                let wire = Wire::read(&bytes[..44]);
                assert_eq!(len, 44 + wire.len, "the used length is header and payload");
                list.push((wire, bytes[44..len as usize].to_vec()));
            }
            let len = offered.takes[0].1;
            self.give_rx(1, len);
        }
        list
    }

    /// The operations the guest got, nothing else.
    pub(crate) fn ops(&mut self) -> Vec<u16> {
        self.received().iter().map(|(wire, _)| wire.op).collect()
    }

    /// Hands what came to `endpoint`, sends its answers, and gives what it had to read.
    pub(crate) fn deliver(&mut self, endpoint: &mut Endpoint) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let list = self.received();
            if list.is_empty() {
                return bytes;
            }
            for (wire, payload) in list {
                let answer = endpoint.receive(&wire, &payload);
                let (read, update) = endpoint.read(usize::MAX);
                bytes.extend(read);
                for wire in answer.into_iter().chain(update) {
                    self.put(wire, &[], Layout::Together);
                }
            }
        }
    }

    /// Sends all of `bytes` while the host's end is read by `host`.
    pub(crate) fn stream(
        &mut self,
        endpoint: &mut Endpoint,
        bytes: &[u8],
        layout: Layout,
        host: &mut UnixStream,
    ) -> Vec<u8> {
        let mut left = bytes;
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            if let Some((wire, payload)) = endpoint.send(&left[..left.len().min(20_000)]) {
                self.put(wire, &payload, layout);
                left = &left[payload.len()..];
            }
            self.deliver(endpoint);
            got.extend(read_now(host));
        }
        got
    }

    // ---- Host -------------------------------------------------------------------------------

    /// Listens for the guest on a port.
    pub(crate) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v.sock_{port}"))).unwrap()
    }

    /// A client that has said what it wants.
    pub(crate) fn client(&self, line: &str) -> UnixStream {
        let mut client = UnixStream::connect(&self.uds).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// A connection the guest made, both ends.
    pub(crate) fn guest_opens(&mut self, guest_port: u32) -> (Endpoint, UnixStream) {
        let listener = self.listen(HOST_PORT);
        let connection = self.guest_opens_to(guest_port, &listener);
        std::fs::remove_file(self.dir.path().join(format!("v.sock_{HOST_PORT}"))).unwrap();
        connection
    }

    pub(crate) fn guest_opens_to(&mut self, guest_port: u32, listener: &UnixListener) -> (Endpoint, UnixStream) {
        let mut endpoint = Endpoint::new(guest_port, HOST_PORT, 65_536);
        let wire = endpoint.packet(REQUEST);
        self.send(wire);
        self.deliver(&mut endpoint);
        assert!(endpoint.is_open);
        let (host, _) = listener.accept().unwrap();
        host.set_nonblocking(true).unwrap();
        (endpoint, host)
    }

    /// A connection a client made, both ends.
    pub(crate) fn host_opens(&mut self, guest_port: u32) -> (Endpoint, UnixStream) {
        let mut client = self.client(&format!("CONNECT {guest_port}\n"));
        let list = self.received();
        let [(wire, _)] = &list[..] else { panic!("{list:?}") };
        assert_eq!((wire.op, wire.dst_port), (REQUEST, guest_port));
        let mut endpoint = Endpoint::new(guest_port, wire.src_port, 65_536);
        let answer = endpoint.receive(wire, &[]).unwrap();
        self.send(answer);
        assert_eq!(read_now(&mut client), format!("OK {}\n", wire.src_port).as_bytes());
        (endpoint, client)
    }
}

/// All that is there now.
pub(crate) fn read_now(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let mut count = 0;
    loop {
        match stream.read(&mut bytes[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}"),
        }
    }
    bytes.truncate(count);
    bytes
}

/// Whether the other side sends no more.
pub(crate) fn is_at_end(stream: &mut UnixStream) -> bool {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(0) => true,
        Ok(_) => panic!("a byte instead of the end"),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Waits for something that another thread does.
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(10), "it never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i / 4096) as u8).collect()
}
