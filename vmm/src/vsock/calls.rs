// SPDX-License-Identifier: Apache-2.0
//! Connections that the guest asks for: each waits for the doorman, whose answers come in order.

use std::io;
use std::os::unix::net::UnixStream;

use super::event::Event;
use super::host_socket::HostStream;
use super::packet::{Credit, Ports};
use super::poller::Token;
use super::worker::VsockWorker;

/// Most connections of the guest that wait at a time; more are refused.
pub(super) const CALLS_MAX: usize = 64;

impl VsockWorker {
    /// The guest asks for a connection. One that asks again has to wait as before.
    pub(super) fn connect_host(&mut self, ports: Ports, credit: Credit) {
        if self.calls.iter().flatten().any(|(waiting, _)| *waiting == ports) {
            return;
        }
        if self.calls.len() >= CALLS_MAX || self.doorman.ask(ports.host).is_err() {
            self.mux.refuse(ports);
            return;
        }
        self.calls.push_back(Some((ports, credit)));
    }

    /// The guest does not want what it has asked for.
    pub(super) fn take_back(&mut self, ports: Ports) {
        for call in self.calls.iter_mut().filter(|call| call.is_some_and(|(waiting, _)| waiting == ports)) {
            *call = None;
        }
    }

    /// Connections of the guest that wait for the doorman.
    pub(super) fn has_calls(&self) -> bool {
        self.calls.iter().any(Option::is_some)
    }

    pub(super) fn on_doorman(&mut self) {
        loop {
            match self.doorman.answer() {
                Ok(None) => return,
                Ok(Some(answer)) => {
                    if let Some(Some((ports, credit))) = self.calls.pop_front() {
                        self.let_out(ports, credit, answer);
                    }
                }
                Err(_) => {
                    self.mux.counts.add(Event::HostFault);
                    self.poller.remove(&self.doorman);
                    // Whoever asks from now on is refused at once, and does not wait in vain.
                    self.doorman.hang_up();
                    for (ports, _) in std::mem::take(&mut self.calls).into_iter().flatten() {
                        self.mux.refuse(ports);
                    }
                    return;
                }
            }
        }
    }

    fn let_out(&mut self, ports: Ports, credit: Credit, answer: io::Result<UnixStream>) {
        let let_in = |socket| Some((socket, self.mux.accept(ports, credit, self.now_ms)?));
        let Some((socket, id)) = answer.ok().and_then(let_in) else {
            self.mux.refuse(ports);
            return;
        };
        let stream = HostStream::new(socket);
        if self.poller.add(&stream, Token::Connection(id)).is_err() {
            self.mux.counts.add(Event::HostFault);
            if let Some(connection) = self.mux.get_mut(id) {
                connection.reset();
            }
        }
        self.put_stream(id, stream);
        self.settle(id);
    }
}
