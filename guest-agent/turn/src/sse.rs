// SPDX-License-Identifier: Apache-2.0
//! Server-sent events out of a stream of bytes, as the HTML standard's § 9.2.6 reads them: incremental, bounded, no I/O.
//!
//! Bytes that are no UTF-8 become U+FFFD, as the standard says; a stream of anything at all gives events, nothing, or [`SseError`].

/// Longest line in bytes, without its end.
pub const LINE_MAX_BYTES: usize = 8 << 20;
/// Most bytes of data in one event.
pub const EVENT_MAX_BYTES: usize = 16 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SseEvent {
    /// The field `event`; empty when there was none.
    pub name: String,
    /// The fields `data`, joined by line feeds.
    pub data: String,
}

/// What no event stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A line does not end.
    #[error("a line of the model's stream is longer than {LINE_MAX_BYTES} bytes")]
    LineTooLong,
    /// An event does not end.
    #[error("an event of the model's stream is longer than {EVENT_MAX_BYTES} bytes")]
    EventTooLong,
}

/// The decoder: bytes in, in pieces of any size; whole events out.
#[derive(Debug, Default)]
pub struct SseDecoder {
    line: Vec<u8>,
    event: SseEvent,
    has_data: bool,
    after_return: bool,
    begun: bool,
}

impl SseDecoder {
    /// Takes `bytes` and appends the events that they complete to `out`.
    ///
    /// # Errors
    /// [`SseError`]; the decoder is of no more use then.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<SseEvent>) -> Result<(), SseError> {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (head, tail) = rest.split_at(at);
            let end = tail.first().copied().unwrap_or(b'\n');
            // A line feed after a carriage return belongs to the line that has ended already, even in a later piece.
            let second_half = end == b'\n' && self.after_return && head.is_empty();
            self.after_return = end == b'\r';
            rest = tail.get(1..).unwrap_or_default();
            if !second_half {
                self.extend(head)?;
                self.line_ends(out)?;
            }
        }
        if !rest.is_empty() {
            self.after_return = false;
        }
        self.extend(rest)
    }

    /// The stream has ended: an event that no blank line ended counts, because servers forget the blank line.
    ///
    /// # Errors
    /// As [`SseDecoder::feed`].
    pub fn finish(&mut self, out: &mut Vec<SseEvent>) -> Result<(), SseError> {
        if !self.line.is_empty() {
            self.line_ends(out)?;
        }
        self.dispatch(out);
        Ok(())
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        if self.line.len().saturating_add(bytes.len()) > LINE_MAX_BYTES {
            return Err(SseError::LineTooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn line_ends(&mut self, out: &mut Vec<SseEvent>) -> Result<(), SseError> {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        let text = if self.begun { &*text } else { text.strip_prefix('\u{feff}').unwrap_or(&text) };
        self.begun = true;
        if text.is_empty() {
            self.dispatch(out);
            return Ok(());
        }
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.event.data.len().saturating_add(value.len()) >= EVENT_MAX_BYTES {
                    return Err(SseError::EventTooLong);
                }
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            // A comment (empty field), `id`, `retry`, or something of the future.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, out: &mut Vec<SseEvent>) {
        let event = std::mem::take(&mut self.event);
        if std::mem::take(&mut self.has_data) {
            out.push(event);
        }
    }
}

#[cfg(test)]
mod tests;
