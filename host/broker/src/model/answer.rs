// SPDX-License-Identifier: Apache-2.0
//! An answer on its way to the guest: passed on piece by piece as it comes, while a copy is counted and kept for the transcript.
//! However it ends (whole, broken off, the guest gone), the call is charged and recorded exactly once.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::header::HeaderMap;
use midge_protocol::broker::Wire;
use midge_record::{BODY_MAX_BYTES, Body as Recorded, Entry, LINE_MAX_BYTES};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use super::Body;
use crate::ledger::{Charge, Prices, Reservation};
use crate::shared::Shared;
use crate::usage::{Measured, Meter, estimate};
use crate::veil::{Veil, Veiled};

/// Longest answer, in bytes.
const ANSWER_MAX_BYTES: u64 = 256 << 20;
/// How long a provider may be silent inside an answer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Most bytes of an answer as it is written in the transcript; there is room beside it for the rest of its line.
const TEXT_MAX_BYTES: usize = LINE_MAX_BYTES - (1 << 20);
/// The status in the transcript of a call whose guest went away before its answer came.
const STATUS_GONE: u16 = 499;
/// Headers that a replay needs, or that tell a provider's support which call it was.
const RECORDED_HEADERS: [&str; 5] = ["content-type", "retry-after", "x-should-retry", "request-id", "x-request-id"];

/// What is known of a call when it is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Its number.
    pub(super) exchange: u64,
    /// Its format.
    pub(super) wire: Wire,
    /// What tokens cost.
    pub(super) prices: Prices,
    /// Bytes of the request's body.
    pub(super) request_bytes: u64,
    /// When it was sent.
    pub(super) started: Instant,
}

struct Head {
    status: u16,
    headers: BTreeMap<String, String>,
    meter: Meter,
}

/// A call that has been let out and not yet been charged.
pub(super) struct Call {
    shared: Arc<Shared>,
    plan: Plan,
    reserved: Option<Reservation>,
    _permit: OwnedSemaphorePermit,
    head: Option<Head>,
    copy: Vec<u8>,
    bytes: u64,
}

impl Call {
    pub(super) fn new(shared: Arc<Shared>, plan: Plan, reserved: Reservation, permit: OwnedSemaphorePermit) -> Self {
        Self { shared, plan, reserved: Some(reserved), _permit: permit, head: None, copy: Vec::new(), bytes: 0 }
    }

    /// The head of the answer is there.
    pub(super) fn answered(&mut self, status: u16, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let kind = text("content-type").unwrap_or_default();
        self.head = Some(Head {
            status,
            headers: RECORDED_HEADERS.iter().filter_map(|name| Some(((*name).to_owned(), text(name)?))).collect(),
            meter: Meter::new(self.plan.wire, status, &kind, self.plan.request_bytes),
        });
    }

    /// There was none: nothing is charged, and whoever refuses says so in the transcript.
    pub(super) fn unanswered(&mut self) {
        self.reserved = None;
    }

    fn push(&mut self, data: &[u8]) {
        self.bytes = self.bytes.saturating_add(data.len() as u64);
        if let Some(head) = &mut self.head {
            head.meter.push(data);
        }
        let room = (BODY_MAX_BYTES + 1).saturating_sub(self.copy.len());
        self.copy.extend_from_slice(&data[..data.len().min(room)]);
    }

    /// Charges and records; the second time nothing.
    fn finish(&mut self, broken: Option<String>) {
        let Some(reserved) = self.reserved.take() else { return };
        let (status, headers, measured) = match self.head.take() {
            Some(head) => (head.status, head.headers, head.meter.finish()),
            None => {
                let usage = estimate(self.plan.request_bytes, 0);
                (STATUS_GONE, BTreeMap::new(), Measured { usage, estimated: true })
            }
        };
        let Measured { mut usage, estimated } = measured;
        usage.estimated = estimated;
        let money_micros = self.plan.prices.cost(&usage);
        let failed = !(200..300).contains(&status) && status != STATUS_GONE;
        let charge = if failed { Charge::default() } else { Charge::exchange(&usage, money_micros) };
        if let Err(exhausted) = reserved.settle(&charge) {
            self.shared.used_up(&exhausted);
        }
        let kept = &self.copy[..writable(&self.copy)];
        let mut body = Recorded::new(kept);
        body.cut_bytes += self.bytes.saturating_sub(kept.len() as u64);
        let elapsed_ms = u64::try_from(self.plan.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let exchange = self.plan.exchange;
        // A failure latches, and ends the run.
        let _ = self.shared.note(&Entry::ModelAnswer {
            exchange,
            status,
            headers,
            body,
            usage,
            money_micros,
            elapsed_ms,
            broken,
        });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.finish(Some("the guest hung up".to_owned()));
    }
}

/// How much of `bytes` fits into a line of the transcript, however it has to be written there.
fn writable(bytes: &[u8]) -> usize {
    let mut left = TEXT_MAX_BYTES;
    let fits = bytes.iter().position(|byte| {
        let cost = match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
            0..0x20 => 6,
            0x20..0x80 => 1,
            // What is no UTF-8 is replaced by a character of three bytes.
            0x80.. => 3,
        };
        let over = cost > left;
        left = left.saturating_sub(cost);
        over
    });
    fits.unwrap_or(bytes.len())
}

/// The body of an answer that is charged.
pub(super) struct Answer {
    inner: Passing,
    call: Option<Call>,
}

impl Answer {
    pub(super) fn new(body: Body, call: Call, veil: Veil) -> Self {
        Self { inner: Passing::unlimited(body, veil), call: Some(call) }
    }

    fn finish(&mut self, broken: Option<String>) {
        if let Some(mut call) = self.call.take() {
            call.finish(broken);
        }
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        let call = &mut this.call;
        let polled = this.inner.poll(cx, |data| {
            if let Some(call) = call {
                call.push(data);
            }
        });
        match &polled {
            Poll::Ready(None) => this.finish(None),
            Poll::Ready(Some(Err(error))) => this.finish(Some(error.to_string())),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let whole = self.inner.is_end_stream();
        self.finish(if whole { None } else { Some("the guest hung up".to_owned()) });
    }
}

/// A body that is passed on under a veil, within limits of size and silence.
pub(super) struct Passing {
    body: Body,
    veiled: Veiled,
    idle: Pin<Box<Sleep>>,
    bytes: u64,
    ended: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Passing {
    /// One that holds a place among the calls.
    pub(super) fn new(body: Body, permit: OwnedSemaphorePermit, veil: Veil) -> Self {
        Self { _permit: Some(permit), ..Self::unlimited(body, veil) }
    }

    fn unlimited(body: Body, veil: Veil) -> Self {
        let idle = Box::pin(tokio::time::sleep(IDLE_TIMEOUT));
        Self { body, veiled: Veiled::new(veil), idle, bytes: 0, ended: false, _permit: None }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut seen: impl FnMut(&[u8]),
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    let silent = self.idle.as_mut().poll(cx).is_ready();
                    let error = io::Error::new(io::ErrorKind::TimedOut, "the provider was silent for too long");
                    return if silent { Poll::Ready(Some(Err(error))) } else { Poll::Pending };
                }
            };
            self.idle.as_mut().reset(tokio::time::Instant::now() + IDLE_TIMEOUT);
            let data = match frame {
                None => {
                    self.ended = true;
                    self.veiled.end()
                }
                Some(Err(error)) => {
                    let error = io::Error::other(format!("the provider broke off: {error}"));
                    return Poll::Ready(Some(Err(error)));
                }
                // Trailers are dropped.
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    seen(&data);
                    self.bytes = self.bytes.saturating_add(data.len() as u64);
                    if self.bytes > ANSWER_MAX_BYTES {
                        let why = format!("the answer is longer than {ANSWER_MAX_BYTES} bytes");
                        return Poll::Ready(Some(Err(io::Error::other(why))));
                    }
                    self.veiled.push(data)
                }
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }
}

impl hyper::body::Body for Passing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.poll(cx, |_| {})
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.body.is_end_stream() && self.veiled.is_drained())
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, held) = (self.body.size_hint(), self.veiled.held());
        hint.exact().map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_fits_into_a_line_however_it_is_written() {
        for byte in [b'a', b'"', 0, 0xff] {
            let kept = writable(&vec![byte; BODY_MAX_BYTES]);
            let written = serde_json::to_string(&Recorded::new(&vec![byte; kept])).unwrap();
            assert!(written.len() < LINE_MAX_BYTES, "{byte}");
            assert!(
                kept == BODY_MAX_BYTES || written.len() > LINE_MAX_BYTES - (2 << 20),
                "{byte}: no more than that is cut"
            );
        }
    }
}
