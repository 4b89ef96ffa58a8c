// SPDX-License-Identifier: Apache-2.0
//! A transcript in the provider's place: its answers in their order ([`midge_record::Replay`]). Where a tool's result in a request
//! is not what it was when the run was recorded, somebody is told.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::header::{HeaderName, HeaderValue};
use midge_record::{Difference, Recorded, Replay};
use serde_json::Value;

use super::Body;
use super::refusal::Refusal;

/// A recording that answers instead of a model.
#[derive(Clone)]
pub struct Playback {
    replay: Arc<Mutex<Replay>>,
    differs: Arc<dyn Fn(Difference) + Send + Sync>,
}

impl std::fmt::Debug for Playback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Playback").finish_non_exhaustive()
    }
}

impl Playback {
    /// From its beginning; `differs` is called for each difference, before the answer is given.
    pub fn new(replay: Replay, differs: impl Fn(Difference) + Send + Sync + 'static) -> Self {
        Self { replay: Arc::new(Mutex::new(replay)), differs: Arc::new(differs) }
    }

    /// The next answer, to a request for `path`.
    pub(super) fn next(&self, path: &str, request: &Value) -> Result<Response<Body>, Refusal> {
        let mut replay = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        let (recorded, differences) =
            replay.answer(path, request).map_err(|error| Refusal::Replay(error.to_string()))?;
        let answer = answer(recorded);
        drop(replay);
        differences.into_iter().for_each(|difference| (self.differs)(difference));
        Ok(answer)
    }
}

fn answer(recorded: &Recorded) -> Response<Body> {
    let body = Full::new(Bytes::from(recorded.body.text.clone()));
    let mut answer = Response::new(body.map_err(|never| -> io::Error { match never {} }).boxed());
    *answer.status_mut() = hyper::StatusCode::from_u16(recorded.status).unwrap_or_default();
    for (name, value) in &recorded.headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value))
            && !matches!(name.as_str(), "content-length" | "content-encoding" | "transfer-encoding")
        {
            answer.headers_mut().append(name, value);
        }
    }
    answer
}
