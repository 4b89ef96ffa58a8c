// SPDX-License-Identifier: Apache-2.0
//! The data path: chains of the guest's queues to the machines and sockets, and back.
//!
//! Guest to host: a tx chain's header is copied once and parsed; its payload goes from guest
//! memory into the connection's socket in one `sendmsg`, and what the socket refuses is kept.
//! Host to guest: rx chains are reserved first, then one `readv` fills the payloads of many of
//! them, then the headers are written. So nothing is ever read that cannot be delivered, and no
//! packet for the guest is dropped. What was reserved and not needed is given back to the queue.

use super::device::VSOCK_EVENT_TRANSPORT_RESET;
use super::event::Event;
use super::host_socket::Incoming;
use super::link::BATCH_MAX;
use super::mux::{Action, Turn};
use super::packet::HEADER_LEN_BYTES;
use super::poller::{Interest, Token};
use super::table::ConnectionId;
use super::worker::VsockWorker;
use crate::virtio::vectored::Slices;
use crate::virtio::{Chain, GuestFault, Reader};

/// Longest wait for the guest to deal with a transport reset before it is spoken to again.
const RESET_MAX_MS: u64 = 2_000;
/// Most packets of the guest served before the other direction.
const TX_PACKETS_MAX: u32 = 16;
/// Most turns of connections given before the other direction.
const RX_TURNS_MAX: u32 = 16;
/// Most rounds of both before others have their turn on the thread.
const ROUNDS_MAX: u32 = 8;
impl VsockWorker {
    /// Moves what can be moved; true when there is more to do at once.
    pub(super) fn pump(&mut self) -> bool {
        match self.try_pump() {
            Ok(has_more) => has_more,
            Err(fault) => {
                self.on_queue_fault(fault);
                false
            }
        }
    }

    fn try_pump(&mut self) -> Result<bool, GuestFault> {
        if !self.is_served() {
            return Ok(false);
        }
        self.tell_transport_reset()?;
        for _ in 0..ROUNDS_MAX {
            let packets = self.drain_tx()?;
            let turns = self.fill_rx()?;
            let Some(link) = self.link.as_mut() else {
                return Ok(false);
            };
            link.notify(self.now_ms)?;
            if packets == 0 && turns == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_served(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.is_broken)
    }

    // ---- Guest to host ----------------------------------------------------------------------

    /// Serves the guest's packets until there are none, others have waited long enough, or the
    /// answers to more of them would have no place. Gives how many.
    fn drain_tx(&mut self) -> Result<u32, GuestFault> {
        let mut packets = 0;
        while packets < TX_PACKETS_MAX && self.mux.can_take_packet() {
            let Some(link) = self.link.as_mut() else {
                break;
            };
            let Some(chain) = link.tx.pop()? else {
                // Kicks are off from the first pop of a batch to here.
                if link.tx.enable_kicks()? {
                    continue;
                }
                break;
            };
            link.tx.disable_kicks()?;
            packets += 1;
            self.serve(chain.reader());
            if let Some(link) = self.link.as_mut() {
                link.tx.push_used(chain)?;
                link.tx_untold = link.tx_untold.saturating_add(1);
            }
        }
        Ok(packets)
    }

    /// One packet of the guest: header and payload in one descriptor (Linux from 6.3) or in
    /// several, which a reader does not tell apart.
    fn serve(&mut self, mut reader: Reader<'_>) {
        let Ok(header) = reader.read_array::<HEADER_LEN_BYTES>() else {
            self.mux.counts.add(Event::ChainFault);
            return;
        };
        let available_bytes = u64::try_from(reader.left_bytes()).unwrap_or(u64::MAX);
        match self.mux.on_packet(&header, available_bytes, self.now_ms) {
            Action::Nothing => {}
            Action::Open { ports, credit } => self.connect_host(ports, credit),
            Action::Forward { id, len_bytes } => self.forward(id, reader, len_bytes),
            Action::Changed(id) => self.settle(id),
            Action::Unknown(ports) => self.take_back(ports),
        }
    }

    fn forward(&mut self, id: ConnectionId, payload: Reader<'_>, len_bytes: u32) {
        let Some(stream) = self.streams.get_mut(id.index()).and_then(Option::as_mut) else {
            return;
        };
        let was_full = stream.kept_bytes() != 0;
        match stream.send_or_keep(payload, len_bytes) {
            Ok(sent) => {
                if !was_full && stream.kept_bytes() != 0 {
                    // Fails only for a descriptor that is not there.
                    let _ = self.poller.modify(stream, Token::Connection(id), Interest::ReadWrite);
                }
                if let Some(connection) = self.mux.get_mut(id) {
                    connection.on_forwarded(sent, self.now_ms);
                }
            }
            Err(_) => self.on_gone(id),
        }
        self.settle(id);
    }

    // ---- Host to guest ----------------------------------------------------------------------

    /// Gives turns until nobody has anything for the guest, the guest has no room, or others have
    /// waited long enough. Gives how many.
    fn fill_rx(&mut self) -> Result<u32, GuestFault> {
        let mut turns = 0;
        while turns < RX_TURNS_MAX && self.mux.has_turn() {
            let mut shorts = 0;
            let Some(link) = self.link.as_mut() else {
                break;
            };
            let reserved = link.reserve(&mut shorts);
            self.mux.counts.add_many(Event::ChainFault, shorts);
            let Some(chain) = reserved? else {
                break;
            };
            turns += 1;
            match self.mux.next_turn(self.now_ms) {
                None => self.give_back(chain),
                Some(Turn::Packet(header)) => self.send_packet(chain, &header)?,
                Some(Turn::Read { id, limit_bytes, expected_bytes }) => {
                    self.send_data(chain, id, limit_bytes, expected_bytes.min(limit_bytes))?;
                }
            }
        }
        Ok(turns)
    }

    fn give_back(&mut self, chain: Chain) {
        if let Some(link) = self.link.as_mut() {
            link.rx.give_back(chain);
        }
    }

    fn send_packet(&mut self, chain: Chain, header: &[u8; HEADER_LEN_BYTES]) -> Result<(), GuestFault> {
        let is_written = chain.writer().write_all(header).is_ok();
        assert!(is_written, "a reserved chain has room for a header");
        match self.link.as_mut() {
            Some(link) => link.rx.push_used(chain),
            None => Ok(()),
        }
    }

    /// One turn of a connection: reads up to `limit_bytes` of its socket into as many chains as
    /// `expected_bytes` take, or one.
    fn send_data(
        &mut self,
        first: Chain,
        id: ConnectionId,
        limit_bytes: u32,
        expected_bytes: u32,
    ) -> Result<(), GuestFault> {
        let Some(link) = self.link.as_mut() else {
            return Ok(());
        };
        let mut batch = std::mem::take(&mut link.batch);
        let mut room_bytes = payload_room(&first);
        batch.push(first);
        while room_bytes < expected_bytes as usize && batch.len() < BATCH_MAX {
            let Some(chain) = link.reserve_another()? else {
                break;
            };
            room_bytes = room_bytes.saturating_add(payload_room(&chain));
            batch.push(chain);
        }
        let slices = payload_slices(&batch, limit_bytes);
        let room = u32::try_from(slices.len_bytes()).unwrap_or(u32::MAX);
        let incoming = match self.streams.get(id.index()) {
            Some(Some(stream)) => stream.read(&slices),
            _ => Incoming::Empty,
        };
        match incoming {
            Incoming::Bytes(count) => {
                self.deliver(&mut batch, id, count)?;
                self.mux.on_read(id, u32::try_from(count).unwrap_or(u32::MAX), room);
            }
            Incoming::Empty => self.mux.on_read(id, 0, room),
            Incoming::End => {
                self.mux.on_read(id, 0, room);
                if let Some(connection) = self.mux.get_mut(id) {
                    connection.on_host_end(self.now_ms);
                }
            }
        }
        if let Some(link) = self.link.as_mut() {
            // In the order opposite to the one they were taken in.
            while let Some(chain) = batch.pop() {
                link.rx.give_back(chain);
            }
            link.batch = batch;
        }
        self.settle(id);
        Ok(())
    }

    /// Puts headers in front of `count` bytes that were read into `batch`, and gives those chains
    /// to the guest; the others stay in `batch`.
    fn deliver(&mut self, batch: &mut Vec<Chain>, id: ConnectionId, count: usize) -> Result<(), GuestFault> {
        let mut left = count;
        let used = batch.iter().take_while(|chain| {
            let before = left;
            left = left.saturating_sub(payload_room(chain));
            before != 0
        });
        let used_chains = used.count();
        let mut left = count;
        for chain in batch.drain(..used_chains) {
            let len_bytes = payload_room(&chain).min(left);
            left -= len_bytes;
            let len = u32::try_from(len_bytes).unwrap_or(u32::MAX);
            let (Some(header), Some(link)) = (self.mux.data_header(id, len), self.link.as_mut()) else {
                break;
            };
            let mut writer = chain.writer();
            let is_written = writer.write_all(&header).is_ok();
            assert!(is_written, "a reserved chain has room for a header");
            writer.advance_written(len_bytes);
            link.rx.push_used(chain)?;
        }
        // While bytes stream, the guest should not wait for the end of this turn of the loop.
        match self.link.as_mut() {
            Some(link) => link.notify(self.now_ms),
            None => Ok(()),
        }
    }

    // ---- Events -----------------------------------------------------------------------------

    /// §5.10.6.7: le32 id, 0 for a transport reset, once the guest gives a buffer for it.
    fn tell_transport_reset(&mut self) -> Result<(), GuestFault> {
        let Some(link) = self.link.as_mut().filter(|link| link.is_reset_event_due) else {
            return Ok(());
        };
        while link.is_reset_event_due {
            let Some(chain) = link.event.pop()? else {
                if link.event.enable_kicks()? {
                    continue;
                }
                return Ok(());
            };
            // A buffer too small for it is given back empty, and the next one tried.
            let written = chain.writer().write_all(&VSOCK_EVENT_TRANSPORT_RESET.to_le_bytes());
            link.is_reset_event_due = written.is_err();
            link.event.push_used(chain)?;
        }
        // None is on offer in its place yet: it is not told before `notify`.
        link.awaited = Some((link.event.watch_offers()?, self.now_ms.saturating_add(RESET_MAX_MS)));
        link.notify(self.now_ms)
    }
}

/// Payload bytes that a chain of the guest can take after the header.
fn payload_room(chain: &Chain) -> usize {
    chain.writable_bytes().saturating_sub(HEADER_LEN_BYTES)
}

/// The memory for `limit_bytes` of payload in these chains, without a gap between them.
fn payload_slices(batch: &[Chain], limit_bytes: u32) -> Slices<'_> {
    let mut list = Slices::new();
    let mut left = limit_bytes as usize;
    for chain in batch {
        let Ok((_, payload)) = chain.writer().split_at(HEADER_LEN_BYTES) else {
            return list;
        };
        let wanted = payload_room(chain).min(left);
        let slices = payload.slices(wanted);
        for slice in slices.iter() {
            if !list.push(*slice) {
                return list;
            }
        }
        left -= slices.len_bytes();
        if left == 0 || slices.len_bytes() < wanted {
            return list;
        }
    }
    list
}

#[cfg(test)]
mod tests;
