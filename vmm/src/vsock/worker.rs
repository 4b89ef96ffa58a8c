// SPDX-License-Identifier: Apache-2.0
//! The data half of the vsock device: who is ready, and what that means for whom.
//!
//! Runs on the monitor's main thread as a subscriber of its event loop. It owns the queues while
//! the device is active, every connection and every socket; nothing of it is shared or locked.
//! It tells the machines of [`super::mux`] what happened and does what they ask; bytes are moved
//! by `transfer`. It decides nothing about the protocol.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::client::{Clients, Line};
use super::connection::HostEffect;
use super::device::{Command, EVENT_QUEUE, RX_QUEUE, TX_QUEUE};
use super::doorman::Doorman;
use super::event::{Counts, Event};
use super::host_socket::{Door, HostStream};
use super::link::Link;
use super::mux::Mux;
use super::packet::{Credit, Ports};
use super::poller::{Interest, Poller, Readiness, Token};
use super::table::{CONNECTIONS_MAX, ConnectionId};
use crate::virtio::{Activation, GuestFault};

/// How long to leave clients alone after the host had no descriptor for one.
const DOOR_PAUSE_MS: u64 = 100;

/// The data half.
#[derive(Debug)]
pub struct VsockWorker {
    pub(super) mux: Mux,
    /// The socket of each connection, by the connection's place.
    pub(super) streams: Vec<Option<HostStream>>,
    pub(super) poller: Poller,
    /// Present from DRIVER_OK to reset.
    pub(super) link: Option<Link>,
    door: Door,
    /// A client may be waiting: the edge was told, and the backlog not yet seen empty.
    is_door_ready: bool,
    /// No client is let in before this.
    door_pause_ms: Option<u64>,
    clients: Clients,
    pub(super) doorman: Doorman,
    /// What was asked of the doorman and not answered yet, in order; `None` where nobody wants it any more.
    pub(super) calls: VecDeque<Option<(Ports, Credit)>>,
    commands: Receiver<Command>,
    /// Registered in the poller, where an edge says enough: it is never read.
    _wake: EventFd,
    again: EventFd,
    start: Instant,
    /// The time of this turn of the event loop, in milliseconds since `start`.
    pub(super) now_ms: u64,
    /// When there is something to do though nothing happens, in the same clock.
    wake_ms: Option<u64>,
}

impl VsockWorker {
    pub(super) fn new(
        guest_cid: u64,
        (door, doorman): (Door, Doorman),
        commands: Receiver<Command>,
        wake: EventFd,
    ) -> io::Result<Self> {
        let again = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let poller = Poller::new()?;
        poller.add(&wake, Token::Command)?;
        poller.add(&again, Token::Again)?;
        poller.add(&doorman, Token::Doorman)?;
        Ok(Self {
            mux: Mux::new(guest_cid),
            streams: (0..CONNECTIONS_MAX).map(|_| None).collect(),
            poller,
            link: None,
            door,
            is_door_ready: false,
            door_pause_ms: None,
            clients: Clients::default(),
            doorman,
            calls: VecDeque::new(),
            commands,
            _wake: wake,
            again,
            start: Instant::now(),
            now_ms: 0,
            wake_ms: None,
        })
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.mux.counts
    }

    /// Connections there are now.
    pub fn connections(&self) -> usize {
        self.mux.len()
    }

    /// Bytes kept for sockets that are full, over all connections.
    pub fn kept_bytes(&self) -> usize {
        self.streams.iter().flatten().map(HostStream::kept_bytes).sum()
    }

    /// Serves everything that is ready, and returns; never waits.
    pub fn turn(&mut self) {
        self.now_ms = self.clock_ms();
        if self.wake_ms.is_some_and(|wake_ms| wake_ms <= self.now_ms) {
            self.on_time();
        }
        loop {
            let events = self.poller.poll();
            for (token, readiness) in events.iter() {
                self.on_event(token, readiness);
            }
            if !events.is_full() {
                break;
            }
        }
        self.open_door();
        if self.pump() {
            // There is more, but others want the thread too.
            let _ = self.again.write(1);
        }
        let tx_ms = self.link.as_ref().and_then(Link::deadline_ms);
        let deadlines = [self.mux.next_deadline_ms(), self.clients.next_deadline_ms(), self.door_pause_ms, tx_ms];
        // Whatever is late already is so for want of something else: not before the next millisecond.
        let next_ms = self.now_ms.saturating_add(1);
        self.wake_ms = deadlines.into_iter().flatten().min().map(|deadline_ms| deadline_ms.max(next_ms));
    }

    /// Milliseconds until [`Self::turn`] is to be called though nothing is ready; 0 when that time has come.
    pub fn time_left_ms(&self) -> Option<u64> {
        self.wake_ms.map(|wake_ms| wake_ms.saturating_sub(self.clock_ms()))
    }

    fn clock_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn on_event(&mut self, token: Token, readiness: Readiness) {
        match token {
            Token::Command => self.on_commands(),
            // `turn` looks after all of them anyway.
            Token::Again | Token::Kick(_) => {}
            Token::Door => self.is_door_ready = true,
            Token::Doorman => self.on_doorman(),
            Token::Client(place) => self.on_client(place),
            Token::Connection(id) => self.on_socket(id, readiness),
        }
    }

    // ---- The control half -------------------------------------------------------------------

    pub(super) fn on_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Activate(activation) => self.activate(*activation),
                Command::Reset(done) => {
                    self.deactivate();
                    // The one who asked may have stopped waiting: then nobody needs to know.
                    let _ = done.send(());
                }
                Command::TransportReset => self.transport_reset(),
            }
        }
    }

    fn activate(&mut self, activation: Activation) {
        let interrupt = activation.interrupt.clone();
        let Some(link) = Link::new(activation) else {
            self.mux.counts.add(Event::QueueFault);
            let what = "the transport gave another number of queues than three";
            interrupt.report_fault(GuestFault::Device { device: "vsock", what });
            return;
        };
        let tokens = [RX_QUEUE, TX_QUEUE, EVENT_QUEUE].map(Token::Kick);
        let mut added = link.kicks.iter().zip(tokens).map(|(kick, token)| self.poller.add(kick, token));
        let is_heard = added.all(|added| added.is_ok()) && self.poller.add(&self.door, Token::Door).is_ok();
        self.link = Some(link);
        if !is_heard {
            // A kick that is never heard would be a guest that hangs without a reason.
            self.mux.counts.add(Event::HostFault);
            let what = "the host has no memory to watch its kicks";
            self.on_queue_fault(GuestFault::Device { device: "vsock", what });
        }
    }

    /// Lets go of the queues and closes everything towards the host.
    fn deactivate(&mut self) {
        if let Some(link) = self.link.take() {
            for kick in &link.kicks {
                self.poller.remove(kick);
            }
            self.poller.remove(&self.door);
            self.is_door_ready = false;
        }
        self.hang_up();
    }

    /// Closes every connection and every client.
    fn hang_up(&mut self) {
        for stream in self.streams.iter_mut().filter_map(Option::take) {
            self.poller.remove(&stream);
        }
        while let Some(stream) = self.clients.take_any() {
            self.poller.remove(&stream);
        }
        self.calls.iter_mut().for_each(|call| *call = None);
        self.mux.clear();
    }

    /// Closes every connection and tells the guest that it has no connections any more
    /// (§5.10.6.7). For a fork: the twin must not speak on its sibling's connections.
    pub fn transport_reset(&mut self) {
        self.hang_up();
        if let Some(link) = self.link.as_mut() {
            link.is_reset_event_due = true;
        }
    }

    /// The guest broke a queue: nothing can be said to it any more until it resets the device.
    pub(super) fn on_queue_fault(&mut self, fault: GuestFault) {
        self.mux.counts.add(Event::QueueFault);
        if let Some(link) = self.link.as_mut() {
            link.is_broken = true;
            link.interrupt.report_fault(fault);
        }
        self.hang_up();
    }

    // ---- Clients ----------------------------------------------------------------------------

    /// Lets clients in while there is room for them. They are left in the backlog otherwise.
    fn open_door(&mut self) {
        self.door_pause_ms = self.door_pause_ms.filter(|pause_ms| self.now_ms < *pause_ms);
        if self.door_pause_ms.is_some() || !self.may_enter() {
            return;
        }
        while self.is_door_ready {
            let Some(place) = self.clients.free_place() else {
                return;
            };
            match self.door.accept() {
                Ok(None) => self.is_door_ready = false,
                Ok(Some(stream)) => {
                    if self.poller.add(&stream, Token::Client(place)).is_ok() {
                        self.clients.put(place, stream, self.now_ms);
                        self.on_client(place);
                    }
                }
                Err(_) => {
                    self.mux.counts.add(Event::HostFault);
                    self.door_pause_ms = Some(self.now_ms.saturating_add(DOOR_PAUSE_MS));
                    return;
                }
            }
        }
    }

    fn on_client(&mut self, place: u32) {
        let (line, stream) = self.clients.hear(place);
        let Some(stream) = stream else {
            return;
        };
        let id = match line {
            Line::Connect(port) => self.mux.connect(port, self.now_ms),
            Line::Unfinished | Line::Wrong => None,
        };
        match id {
            // Modifying tells again what is there: bytes behind the line, or that it hung up.
            Some(id) if self.poller.modify(&stream, Token::Connection(id), Interest::Read).is_ok() => {
                self.put_stream(id, stream);
            }
            _ => {
                self.mux.counts.add(Event::ClientFault);
                self.poller.remove(&stream);
            }
        }
    }

    // ---- Connections ------------------------------------------------------------------------

    pub(super) fn put_stream(&mut self, id: ConnectionId, stream: HostStream) {
        if let Some(place) = self.streams.get_mut(id.index()) {
            *place = Some(stream);
        }
    }

    fn on_socket(&mut self, id: ConnectionId, readiness: Readiness) {
        if self.mux.get(id).is_none() {
            return;
        }
        if readiness.read {
            self.mux.set_readable(id, readiness.end);
        }
        if readiness.write {
            self.flush(id);
        }
        if readiness.gone {
            self.on_gone(id);
        }
        self.settle(id);
    }

    /// Sends what was kept; asks for room to write no longer once nothing is.
    fn flush(&mut self, id: ConnectionId) {
        let Some(stream) = self.streams.get_mut(id.index()).and_then(Option::as_mut) else {
            return;
        };
        let sent = stream.flush();
        if stream.kept_bytes() == 0 {
            // Fails only for a descriptor that is not there.
            let _ = self.poller.modify(stream, Token::Connection(id), Interest::Read);
        }
        match sent {
            Ok(count) => {
                if let Some(connection) = self.mux.get_mut(id) {
                    connection.on_forwarded(count, self.now_ms);
                }
            }
            Err(_) => self.on_gone(id),
        }
    }

    pub(super) fn on_gone(&mut self, id: ConnectionId) {
        if let Some(connection) = self.mux.get_mut(id) {
            connection.on_host_gone(self.now_ms);
        }
    }

    /// Does to a connection's socket what its machine asks for, and books the rest. To be called
    /// after every event of a connection.
    pub(super) fn settle(&mut self, id: ConnectionId) {
        while let Some(effect) = self.mux.host_effect(id) {
            let Some(place) = self.streams.get_mut(id.index()) else {
                break;
            };
            let Some(stream) = place.as_mut() else {
                break;
            };
            match effect {
                HostEffect::Answer => {
                    let port = self.mux.get(id).map_or(0, |connection| connection.ports().host);
                    if stream.send_text(&format!("OK {port}\n")).is_err() {
                        self.on_gone(id);
                    }
                }
                HostEffect::ShutdownWrite => stream.shutdown(Shutdown::Write),
                HostEffect::ShutdownRead => stream.shutdown(Shutdown::Read),
                HostEffect::Close => {
                    self.poller.remove(stream);
                    *place = None;
                }
            }
        }
        self.mux.settle(id, self.now_ms);
    }

    fn on_time(&mut self) {
        for id in self.mux.on_time(self.now_ms) {
            self.settle(id);
        }
        while let Some(stream) = self.clients.take_late(self.now_ms) {
            self.mux.counts.add(Event::ClientFault);
            self.poller.remove(&stream);
        }
    }
}

impl MutEventSubscriber for VsockWorker {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.turn();
    }

    fn init(&mut self, ops: &mut EventOps) {
        let added = ops.add(Events::new(&self.poller, EventSet::IN));
        assert!(added.is_ok(), "registering the vsock worker once in one event loop: {added:?}");
    }
}

impl Drop for VsockWorker {
    /// Whoever waits for a reset must not wait for ever.
    fn drop(&mut self) {
        self.deactivate();
    }
}

#[cfg(test)]
mod tests;
