// SPDX-License-Identifier: Apache-2.0
//! Clients of the host that have connected and not yet said which guest port they want.
//!
//! A client says `CONNECT <port>\n` in at most [`LINE_MAX_BYTES`]; it is answered later with
//! `OK <host port>\n`, or its socket is closed. How many may hesitate, and how long, is bounded.
//! Not a byte behind the line is taken: it may be the connection's first.

use super::host_socket::{HostStream, Incoming};

use vm_memory::VolatileSlice;

/// Most bytes of a client's line, its end included.
pub const LINE_MAX_BYTES: usize = 32;
/// Most clients that may hesitate at a time; more wait in the socket's backlog.
pub const CLIENTS_MAX: usize = 64;
/// How long a client may hesitate.
pub const LINE_TIMEOUT_MS: u64 = 5_000;

/// What a client's bytes mean so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Not at its end yet.
    Unfinished,
    /// It wants this guest port.
    Connect(u32),
    /// It is none of ours, or the client hung up.
    Wrong,
}

/// Reads `CONNECT <port>\n`, with nothing before, between or behind.
pub fn parse_line(line: &[u8]) -> Line {
    let Some(line) = line.strip_suffix(b"\n") else {
        return if line.len() < LINE_MAX_BYTES { Line::Unfinished } else { Line::Wrong };
    };
    let digits = line.strip_prefix(b"CONNECT ").unwrap_or_default();
    // `parse` would take a sign.
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number = str::from_utf8(digits).ok().filter(|_| is_number);
    number.and_then(|number| number.parse().ok()).map_or(Line::Wrong, Line::Connect)
}

/// One client that hesitates.
#[derive(Debug)]
struct Client {
    stream: HostStream,
    line: [u8; LINE_MAX_BYTES],
    len_bytes: usize,
    deadline_ms: u64,
}

impl Client {
    /// Takes bytes up to the end of the line, one by one: the next is not ours.
    fn read_line(&mut self) -> Line {
        while let Some(place) = self.line.get_mut(self.len_bytes..=self.len_bytes) {
            match self.stream.read(&[VolatileSlice::from(place)]) {
                Incoming::Bytes(count) => self.len_bytes = self.len_bytes.saturating_add(count),
                Incoming::Empty => return Line::Unfinished,
                Incoming::End => return Line::Wrong,
            }
            match parse_line(self.line.get(..self.len_bytes).unwrap_or_default()) {
                Line::Unfinished => {}
                line => return line,
            }
        }
        Line::Wrong
    }
}

/// All clients that hesitate, each in its place.
#[derive(Debug)]
pub struct Clients {
    places: Vec<Option<Client>>,
}

impl Default for Clients {
    fn default() -> Self {
        Self { places: (0..CLIENTS_MAX).map(|_| None).collect() }
    }
}

impl Clients {
    /// The first free place, if there is one.
    pub fn free_place(&self) -> Option<u32> {
        let place = self.places.iter().position(Option::is_none)?;
        u32::try_from(place).ok()
    }

    /// Puts a new client in a place that [`Clients::free_place`] gave.
    pub fn put(&mut self, place: u32, stream: HostStream, now_ms: u64) {
        if let Some(slot) = self.places.get_mut(place as usize) {
            let deadline_ms = now_ms.saturating_add(LINE_TIMEOUT_MS);
            *slot = Some(Client { stream, line: [0; LINE_MAX_BYTES], len_bytes: 0, deadline_ms });
        }
    }

    /// Reads what the client in `place` says; its socket comes out once that is decided.
    pub fn hear(&mut self, place: u32) -> (Line, Option<HostStream>) {
        let Some(slot) = self.places.get_mut(place as usize) else {
            return (Line::Unfinished, None);
        };
        let line = slot.as_mut().map_or(Line::Unfinished, Client::read_line);
        let stream = if line == Line::Unfinished { None } else { slot.take().map(|client| client.stream) };
        (line, stream)
    }

    /// When the first of them has hesitated too long.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.places.iter().flatten().map(|client| client.deadline_ms).min()
    }

    /// Takes out one that has hesitated too long.
    pub fn take_late(&mut self, now_ms: u64) -> Option<HostStream> {
        let is_late = |slot: &&mut Option<Client>| slot.as_ref().is_some_and(|client| client.deadline_ms <= now_ms);
        let slot = self.places.iter_mut().find(is_late)?;
        slot.take().map(|client| client.stream)
    }

    /// Takes out any one.
    pub fn take_any(&mut self) -> Option<HostStream> {
        self.places.iter_mut().find_map(Option::take).map(|client| client.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_only_as_it_is_written_down() {
        assert_eq!(parse_line(b"CONNECT 1024\n"), Line::Connect(1024));
        assert_eq!(parse_line(b"CONNECT 0\n"), Line::Connect(0));
        assert_eq!(parse_line(b"CONNECT 4294967295\n"), Line::Connect(u32::MAX));
        assert_eq!(parse_line(b"CONNECT 4294967296\n"), Line::Wrong);
        assert_eq!(parse_line(b"CONNECT \n"), Line::Wrong);
        assert_eq!(parse_line(b"CONNECT +1\n"), Line::Wrong);
        assert_eq!(parse_line(b"CONNECT -1\n"), Line::Wrong);
        assert_eq!(parse_line(b"CONNECT 1 \n"), Line::Wrong);
        assert_eq!(parse_line(b"CONNECT 1\r\n"), Line::Wrong);
        assert_eq!(parse_line(b"connect 1\n"), Line::Wrong);
        assert_eq!(parse_line(b"CONNECT  1\n"), Line::Wrong);
        assert_eq!(parse_line(b"CONNECT \xff\n"), Line::Wrong);
        assert_eq!(parse_line(b"\n"), Line::Wrong);
    }

    #[test]
    fn a_line_may_grow_to_its_limit_and_no_further() {
        assert_eq!(parse_line(b""), Line::Unfinished);
        assert_eq!(parse_line(b"CONNECT 1"), Line::Unfinished);
        assert_eq!(parse_line(&[b'x'; LINE_MAX_BYTES - 1]), Line::Unfinished);
        assert_eq!(parse_line(&[b'x'; LINE_MAX_BYTES]), Line::Wrong);
        let mut zeros = [b'0'; LINE_MAX_BYTES];
        zeros[..8].copy_from_slice(b"CONNECT ");
        zeros[LINE_MAX_BYTES - 1] = b'\n';
        assert_eq!(parse_line(&zeros), Line::Connect(0), "the last byte may be the line's end");
    }
}
