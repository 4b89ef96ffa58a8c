// SPDX-License-Identifier: Apache-2.0
//! The console port: a 16550 at 0x3f8 whose output lands in a ring of the last bytes.
//!
//! With the console off nothing in the guest drives it unless the user's command line says so.
//! With the console on it has its interrupt and every line is reported. Input does not exist.
//! The ring holds guest text: it is shown to humans, and nothing is decided by it but whether
//! the kernel says that it panicked.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

/// First port of the console.
pub const PORT_FIRST: u16 = 0x3f8;
/// Last port of the console.
pub const PORT_LAST: u16 = 0x3ff;
/// The console's interrupt line.
pub const GSI: u32 = 4;
/// Bytes of output that are kept.
pub const RING_BYTES: usize = 64 << 10;
/// Longest line in the tail of an exit report; the rest of a longer one is cut.
const TAIL_LINE_MAX_BYTES: usize = 512;

/// The last [`RING_BYTES`] of console output, shared by the port and whoever reports it.
#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// Bytes ever written; minus `bytes.len()` it is the position of the first one kept.
    written: u64,
}

impl Ring {
    fn push(&mut self, byte: u8) {
        if self.bytes.len() == RING_BYTES {
            self.bytes.pop_front();
        }
        self.bytes.push_back(byte);
        self.written = self.written.saturating_add(1);
    }
}

/// A reader's side of the console: what the guest has printed.
#[derive(Debug, Clone, Default)]
pub struct Output(Arc<Mutex<Ring>>);

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole lines written since `cursor` (a count of bytes), which is moved behind them. What
    /// the ring has dropped in between is skipped.
    pub fn lines_since(&self, cursor: &mut u64) -> Vec<String> {
        let ring = self.lock();
        let kept = u64::try_from(ring.bytes.len()).unwrap_or(u64::MAX);
        let start = (*cursor).max(ring.written.saturating_sub(kept));
        let skip = usize::try_from(start.saturating_sub(ring.written.saturating_sub(kept))).unwrap_or(usize::MAX);
        let fresh: Vec<u8> = ring.bytes.iter().skip(skip).copied().collect();
        drop(ring);
        let Some(last_end) = fresh.iter().rposition(|&b| b == b'\n') else {
            return Vec::new();
        };
        let whole = fresh.get(..last_end).unwrap_or_default();
        *cursor = start.saturating_add(u64::try_from(whole.len()).unwrap_or(0)).saturating_add(1);
        whole.split(|&b| b == b'\n').map(text).collect()
    }

    /// The last `count` non-empty lines, oldest first, each cut to a readable length.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.lock().bytes.iter().copied().collect();
        let mut lines: Vec<String> = bytes
            .rsplit(|&b| b == b'\n')
            .map(|line| text(line.get(..TAIL_LINE_MAX_BYTES).unwrap_or(line)))
            .filter(|line| !line.is_empty())
            .take(count)
            .collect();
        lines.reverse();
        lines
    }
}

/// A line of guest bytes as text: lossy, without control characters.
fn text(line: &[u8]) -> String {
    let lossy = String::from_utf8_lossy(line);
    lossy.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>().trim_end().to_owned()
}

/// Where the 16550's transmitter writes to.
#[derive(Debug)]
struct Sink {
    output: Output,
    /// Told at each end of line, when lines are reported as they come.
    line_ended: Option<EventFd>,
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut ring = self.output.lock();
        for &byte in buf {
            ring.push(byte);
        }
        drop(ring);
        if buf.contains(&b'\n') {
            self.line_ended.as_ref().map_or(Ok(()), |fd| fd.write(1))?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The interrupt of the port: connected when the console is on.
#[derive(Debug)]
struct Line(Option<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |fd| fd.write(1))
    }
}

/// The guest's side of the console: the registers at [`PORT_FIRST`] to [`PORT_LAST`].
pub struct Port(Serial<Line, NoEvents, Sink>);

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").finish_non_exhaustive()
    }
}

/// Makes the console: its port, and the reader's side.
///
/// `irq` is the interrupt's descriptor and `line_ended` is told of each line; both stay out when
/// the console is off.
pub fn new(irq: Option<EventFd>, line_ended: Option<EventFd>) -> (Port, Output) {
    let output = Output::default();
    let sink = Sink { output: output.clone(), line_ended };
    (Port(Serial::new(Line(irq), sink)), output)
}

impl Port {
    /// The guest reads the register at `offset` (0 to 7).
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// The guest writes the register at `offset` (0 to 7).
    pub fn write(&mut self, offset: u8, value: u8) {
        // The sink fails only when an eventfd's counter is full: then the reader is told already.
        let _ = self.0.write(offset, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(port: &mut Port, text: &str) {
        for byte in text.bytes() {
            port.write(0, byte);
        }
    }

    #[test]
    fn the_divisor_of_an_early_printk_setup_is_not_output() {
        let (mut port, output) = new(None, None);
        port.write(3, 0x83);
        port.write(0, b'X');
        port.write(1, 0);
        port.write(3, 0x03);
        print(&mut port, "ok\n");
        assert_eq!(output.tail(10), ["ok"]);
    }

    #[test]
    fn the_transmitter_is_always_ready() {
        let (mut port, _) = new(None, None);
        assert_eq!(port.read(5) & 0x20, 0x20);
        print(&mut port, "text");
        assert_eq!(port.read(5) & 0x20, 0x20);
    }

    #[test]
    fn the_ring_keeps_the_last_bytes_only() {
        let (mut port, output) = new(None, None);
        for index in 0..20_000 {
            print(&mut port, &format!("line {index}\n"));
        }
        assert_eq!(output.lock().bytes.len(), RING_BYTES);
        assert_eq!(output.tail(2), ["line 19998", "line 19999"]);
    }

    #[test]
    fn lines_are_reported_once_whole_and_in_order() {
        let (mut port, output) = new(None, None);
        let mut cursor = 0;
        print(&mut port, "one\r\ntw");
        assert_eq!(output.lines_since(&mut cursor), ["one"]);
        assert!(output.lines_since(&mut cursor).is_empty());
        print(&mut port, "o\n\nthree\n");
        assert_eq!(output.lines_since(&mut cursor), ["two", "", "three"]);
    }

    #[test]
    fn a_reader_that_lags_behind_the_ring_goes_on_where_the_ring_begins() {
        let (mut port, output) = new(None, None);
        let mut cursor = 0;
        for _ in 0..RING_BYTES {
            print(&mut port, "ab\n");
        }
        let lines = output.lines_since(&mut cursor);
        assert!(lines.len() >= RING_BYTES / 3 - 1);
        assert_eq!(cursor, 3 * u64::try_from(RING_BYTES).unwrap());
    }

    #[test]
    fn control_characters_and_bad_utf8_do_not_reach_a_terminal() {
        let (mut port, output) = new(None, None);
        for byte in [0x1b, b'[', b'2', b'J', 0xff, 0, b'x', b'\n'] {
            port.write(0, byte);
        }
        assert_eq!(output.tail(1), ["[2J\u{fffd}x"]);
    }

    #[test]
    fn a_line_without_end_is_cut_in_the_tail() {
        let (mut port, output) = new(None, None);
        print(&mut port, &"y".repeat(5000));
        assert_eq!(output.tail(1)[0].len(), TAIL_LINE_MAX_BYTES);
    }

    #[test]
    fn the_reader_is_told_of_each_line_and_the_interrupt_of_an_empty_transmitter() {
        let flags = vmm_sys_util::eventfd::EFD_NONBLOCK;
        let (irq, told) = (EventFd::new(flags).unwrap(), EventFd::new(flags).unwrap());
        let (mut port, _) = new(Some(irq.try_clone().unwrap()), Some(told.try_clone().unwrap()));
        print(&mut port, "abc");
        assert!(told.read().is_err());
        print(&mut port, "\n");
        assert_eq!(told.read().unwrap(), 1);
        assert!(irq.read().is_err());
        port.write(1, 2);
        print(&mut port, "x");
        assert!(irq.read().is_ok());
    }
}
