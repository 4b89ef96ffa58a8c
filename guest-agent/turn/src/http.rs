// SPDX-License-Identifier: Apache-2.0
//! One request to the model over plain HTTP/1.1 on loopback, and its answer piece by piece. It waits, reads and writes; it decides nothing.
//!
//! There is no TLS and no key here: behind the address is the door `model`, where the host adds both. Proxies of the environment are
//! for tools and are not used.

use std::io::Read;
use std::time::Duration;

use midge_protocol::broker::Wire;
use serde_json::Value;
use ureq::Agent;

use crate::sse::{SseDecoder, SseEvent};
use crate::talk::{Answer, Failure, Piece, Trouble};
use crate::turn::SILENCE_MAX_MS;
use crate::wire::{Again, Parser, failure_of_status};

/// Most bytes of one answer, as they come over the wire.
pub const ANSWER_MAX_BYTES: usize = 64 << 20;
/// Most bytes that are read of a refusal.
const REFUSAL_MAX_BYTES: u64 = 64 << 10;
/// Most bytes of the head of an answer.
const HEAD_MAX_BYTES: usize = 64 << 10;
/// Longest wait for a connection, and for the request to be taken.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// Bytes that are read at once.
const READ_BYTES: usize = 16 << 10;
/// The version of Anthropic's API that is spoken.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// A request that can be made once.
#[derive(Debug)]
pub struct Exchange {
    agent: Agent,
    url: String,
    wire: Wire,
}

/// Ends an exchange from another thread.
#[derive(Debug)]
pub struct Stopper(Agent);

impl Stopper {
    /// The exchange fails at once, wherever it is.
    pub fn stop(self) {
        self.0.shutdown();
    }
}

impl Exchange {
    /// With the server at `base_url`, which may end with the version of the API or leave it out.
    #[must_use]
    pub fn new(base_url: &str, wire: Wire) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("midge-turn/", env!("CARGO_PKG_VERSION")))
            .accept("text/event-stream, application/json")
            .max_response_header_size(HEAD_MAX_BYTES)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_per_write(Some(CONNECT_MAX))
            .timeout_per_read(Some(Duration::from_millis(SILENCE_MAX_MS)))
            .build();
        let base = base_url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Self { agent: config.new_agent(), url: format!("{base}{}", wire.path()), wire }
    }

    /// What ends it from another thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.agent.clone())
    }

    /// Makes the request and reads the answer; `number` is that of the request.
    ///
    /// # Errors
    /// Whatever kept an answer from coming, as a [`Failure`].
    pub fn call(&self, number: u64, body: &Value, piece: &mut dyn FnMut(Piece)) -> Result<Answer, Failure> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if self.wire == Wire::Anthropic {
            request = request.header("anthropic-version", ANTHROPIC_VERSION);
        }
        let mut response = request.send(body.to_string()).map_err(|error| failed(&error))?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let status = response.status().as_u16();
        let kind = header("content-type").unwrap_or_default();
        let (after, should) = (header("retry-after"), header("x-should-retry"));
        if !(200..300).contains(&status) {
            let mut said = Vec::new();
            // What cannot be read of a refusal is not missed: its status says enough.
            let _ = response.body_mut().as_reader().take(REFUSAL_MAX_BYTES).read_to_end(&mut said);
            let said = String::from_utf8_lossy(&said);
            let again = Again { after: after.as_deref(), should: should.as_deref() };
            return Err(failure_of_status(status, &said, again));
        }
        let reading = Reading::new(Parser::new(self.wire, number), kind);
        reading.read(&mut response.body_mut().as_reader(), piece)
    }
}

/// An answer that is being read: a stream of events, or one JSON object from a server that does not stream.
#[derive(Debug)]
struct Reading {
    parser: Parser,
    kind: String,
    decoder: SseDecoder,
    events: Vec<SseEvent>,
    pieces: Vec<Piece>,
    is_stream: bool,
    is_over: bool,
}

impl Reading {
    fn new(parser: Parser, kind: String) -> Self {
        let (decoder, events, pieces) = (SseDecoder::default(), Vec::new(), Vec::new());
        Self { parser, kind, decoder, events, pieces, is_stream: false, is_over: false }
    }

    fn read(mut self, from: &mut dyn Read, piece: &mut dyn FnMut(Piece)) -> Result<Answer, Failure> {
        let mut chunk = vec![0; READ_BYTES];
        let (mut read_bytes, mut head) = (0usize, Vec::new());
        while !self.is_over {
            let count = match from.read(&mut chunk) {
                Ok(count) => count,
                // What ended the answer has come already, if it has.
                Err(error) => return self.parser.finish().map_err(|_| broken(&error)),
            };
            let bytes = chunk.get(..count).unwrap_or_default();
            read_bytes = read_bytes.saturating_add(count);
            if read_bytes > ANSWER_MAX_BYTES {
                let text = format!("the model's answer is longer than {ANSWER_MAX_BYTES} bytes");
                return Err(Failure::new(Trouble::TooLong, text));
            }
            head.extend_from_slice(bytes);
            if !self.is_stream {
                self.is_stream = self.kind.starts_with("text/event-stream") || looks_like_events(&head);
            }
            if self.is_stream {
                self.events(&std::mem::take(&mut head), count == 0)?;
            } else if count == 0 {
                return self.object(&head, piece);
            }
            self.pieces.drain(..).for_each(&mut *piece);
            self.is_over |= count == 0;
        }
        self.parser.finish()
    }

    fn events(&mut self, bytes: &[u8], is_end: bool) -> Result<(), Failure> {
        let too_long = |error: crate::sse::SseError| Failure::new(Trouble::TooLong, error.to_string());
        self.decoder.feed(bytes, &mut self.events).map_err(too_long)?;
        if is_end {
            self.decoder.finish(&mut self.events).map_err(too_long)?;
        }
        for event in std::mem::take(&mut self.events) {
            if self.is_over {
                break;
            }
            self.is_over = self.parser.event(&event, &mut self.pieces)?;
        }
        Ok(())
    }

    fn object(self, bytes: &[u8], piece: &mut dyn FnMut(Piece)) -> Result<Answer, Failure> {
        let read = serde_json::from_slice::<Value>(bytes).map_err(|error| {
            let kind = if self.kind.is_empty() { "no type" } else { &self.kind };
            let text = format!("the model's endpoint sent neither events nor JSON ({kind}: {error})");
            Failure::new(Trouble::Malformed, text)
        })?;
        let mut pieces = Vec::new();
        let answer = self.parser.whole(&read, &mut pieces);
        pieces.into_iter().for_each(piece);
        answer
    }
}

/// Whether a body begins as an event stream does, whatever its head says of it.
fn looks_like_events(bytes: &[u8]) -> bool {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    matches!(first, Some(b'd' | b'e' | b':'))
}

fn failed(error: &ureq::Error) -> Failure {
    match error {
        ureq::Error::Timeout(_) => Failure::new(Trouble::TimedOut, format!("the model's endpoint: {error}")),
        ureq::Error::Protocol(_) => {
            Failure::new(Trouble::Malformed, format!("the model's endpoint speaks no HTTP: {error}"))
        }
        _ => Failure::new(Trouble::Unreachable, format!("the model's endpoint cannot be reached: {error}")),
    }
}

fn broken(error: &std::io::Error) -> Failure {
    let text = format!("the model's answer broke off: {error}");
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    match inner {
        Some(ureq::Error::Timeout(_)) => Failure::new(Trouble::TimedOut, text),
        _ if error.kind() == std::io::ErrorKind::TimedOut => Failure::new(Trouble::TimedOut, text),
        _ => Failure::new(Trouble::Unreachable, text),
    }
}

#[cfg(test)]
mod tests;
