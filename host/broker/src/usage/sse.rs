// SPDX-License-Identifier: Apache-2.0
//! Server-sent events (WHATWG HTML §9.2), only as far as their data: bytes in, the data of whole events out.

/// Longest event that is read, in bytes; a longer one is passed over.
const EVENT_MAX_BYTES: usize = 8 << 20;

/// Reads events that may be cut anywhere.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    data: Vec<u8>,
    skipping: bool,
    overlong: bool,
    after_cr: bool,
}

impl Lines {
    /// Gives the data of every event that is whole now.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut event: impl FnMut(&[u8])) {
        while let Some(at) = memchr::memchr2(b'\n', b'\r', bytes) {
            let (part, end) = (&bytes[..at], bytes[at]);
            bytes = &bytes[at + 1..];
            if end == b'\n' && part.is_empty() && std::mem::take(&mut self.after_cr) {
                continue;
            }
            self.after_cr = end == b'\r';
            self.extend(part);
            let line = std::mem::take(&mut self.line);
            self.line(&line, &mut event);
            self.line = line;
            self.line.clear();
        }
        if !bytes.is_empty() {
            self.after_cr = false;
            self.extend(bytes);
        }
    }

    /// Whether an event was passed over.
    pub(super) fn overlong(&self) -> bool {
        self.overlong
    }

    fn extend(&mut self, part: &[u8]) {
        if self.line.len() + self.data.len() + part.len() > EVENT_MAX_BYTES {
            (self.skipping, self.overlong) = (true, true);
            self.line.clear();
            self.data.clear();
        }
        match self.skipping {
            false => self.line.extend_from_slice(part),
            // Only whether the line is empty matters.
            true if self.line.is_empty() => self.line.extend_from_slice(&part[..part.len().min(1)]),
            true => {}
        }
    }

    fn line(&mut self, line: &[u8], event: &mut impl FnMut(&[u8])) {
        if self.skipping {
            self.skipping = !line.is_empty();
            return;
        }
        if line.is_empty() {
            if !self.data.is_empty() {
                event(&self.data);
                self.data.clear();
            }
        } else if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(bytes: &[u8], cut: usize) -> Vec<String> {
        let (mut lines, mut events) = (Lines::default(), Vec::new());
        for part in bytes.chunks(cut) {
            lines.push(part, |event| events.push(String::from_utf8_lossy(event).into_owned()));
        }
        events
    }

    #[test]
    fn events_are_found_whatever_ends_their_lines() {
        let text = b"event: a\r\ndata: 1\r\n\r\n: comment\ndata:2\ndata: 3\n\ndata: 4\r\rdata: cut";
        for cut in 1..text.len() {
            assert_eq!(run(text, cut), ["1", "2\n3", "4"], "{cut}");
        }
    }

    #[test]
    fn an_endless_event_costs_no_memory_and_the_next_is_read() {
        let (mut lines, mut events) = (Lines::default(), 0);
        let piece = vec![b'x'; 1 << 20];
        lines.push(b"data: ", |_| {});
        for _ in 0..20 {
            lines.push(&piece, |_| panic!("not an event"));
            assert!(lines.line.len() + lines.data.len() <= EVENT_MAX_BYTES);
        }
        lines.push(b"\n\n\ndata: 1\n\n", |_| events += 1);
        assert!(lines.overlong());
        assert_eq!(events, 1);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(text in "(data: ?[a-z]{0,3}|\r|\n|\r\n|x){0,20}", cut in 1usize..9) {
            prop_assert_eq!(run(text.as_bytes(), cut), run(text.as_bytes(), usize::MAX));
        }
    }
}
