// SPDX-License-Identifier: Apache-2.0
//! The host's end of a command's conversation: frames in, frames out, never waiting.

use std::io::{self, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;

use midge_protocol::{Decoder, ErrorCode, Failure, ToAgent, ToHost, encode, encode_output};

use super::output::Output;
use crate::link::{Conversation, ReadBuffer, failure};
use crate::sys::fd::{Watch, is_gone};

/// Frames that are prepared before the stream takes them, in bytes; one frame may exceed it.
const OUT_BYTES: usize = 128 * 1024;

/// A client of a command.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    decoder: Decoder<ToAgent>,
    /// Frames under way; those before `written` are gone.
    out: Vec<u8>,
    written: usize,
    /// The host may still send.
    input_open: bool,
    /// Received before the stream became ours.
    early: Vec<u8>,
    /// The last message is among those under way.
    pub(crate) is_told_the_end: bool,
}

/// What a look at the client's stream brought.
#[derive(Debug)]
pub(crate) enum Received {
    /// Messages, perhaps none.
    Messages(Vec<ToAgent>),
    /// The host has closed its half.
    End,
    /// The stream or what came on it is broken.
    Broken(Option<Failure>),
}

impl Client {
    /// Takes a conversation over.
    pub(crate) fn new(conversation: Conversation) -> io::Result<Self> {
        let (stream, decoder, early) = conversation.into_parts();
        stream.set_nonblocking(true)?;
        let (out, written) = (Vec::new(), 0);
        Ok(Self { stream, decoder, out, written, input_open: true, early, is_told_the_end: false })
    }

    /// What to wait for: input when it can be taken, room when something is under way or waits to be, and always the end.
    pub(crate) fn watch(&self, takes_input: bool, has_more: bool) -> Watch {
        Watch::new(&self.stream, self.input_open && takes_input, has_more || !self.is_flushed())
    }

    /// Messages wait that no look at the stream will tell of.
    pub(crate) fn has_early_input(&self) -> bool {
        !self.early.is_empty()
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.written == self.out.len()
    }

    /// Puts one message under way.
    pub(crate) fn send(&mut self, message: &ToHost) {
        // Everything that is sent from here fits: texts are short, numbers fixed.
        let _ = encode(message, &mut self.out);
    }

    /// Puts output under way as far as there is room.
    pub(crate) fn send_output(&mut self, output: &mut Output) {
        if self.written >= OUT_BYTES {
            self.out.drain(..self.written);
            self.written = 0;
        }
        while self.out.len() - self.written < OUT_BYTES {
            let Some((offset, piece)) = output.replay.next_piece() else { return };
            let len = encode_output(output.stream, offset, piece, &mut self.out);
            output.replay.advance(len);
        }
    }

    /// Writes what the stream takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.is_flushed() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => self.written += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads once, and what it brought as messages.
    pub(crate) fn receive(&mut self, buffer: &mut ReadBuffer) -> Received {
        let early = std::mem::take(&mut self.early);
        if !early.is_empty() {
            return self.decode(&early);
        }
        match buffer.read(&self.stream, usize::MAX) {
            Ok([]) => {
                self.input_open = false;
                if is_gone(&self.stream) { Received::Broken(None) } else { Received::End }
            }
            Ok(bytes) => self.decode(bytes),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Received::Messages(Vec::new())
            }
            Err(_) => Received::Broken(None),
        }
    }

    fn decode(&mut self, mut bytes: &[u8]) -> Received {
        let mut messages = Vec::new();
        loop {
            match self.decoder.decode(&mut bytes) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return Received::Messages(messages),
                Err(error) => return Received::Broken(Some(failure(&error))),
            }
        }
    }
}

/// The refusal of a message that has no place in a command's conversation.
pub(crate) fn misplaced(name: &str) -> Failure {
    let text =
        format!("received `{name}` in the conversation of a command that runs; it takes stdin, signals and sizes");
    Failure { code: ErrorCode::Protocol, errno: 0, text }
}
