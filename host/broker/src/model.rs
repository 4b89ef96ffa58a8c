// SPDX-License-Identifier: Apache-2.0
//! The door `model`: calls of a language model in the provider's own format. A call goes through these hands, in this order:
//! `routes` (is it known), `body` (which model; nothing that the provider would do in the guest's place), the policy's models, the
//! ledger (something is set aside, or 402), the transcript, `upstream` or `replay`, and `answer`, which passes the answer on as it
//! comes, reads its use from a copy, and charges.
//!
//! A budget that runs out while an answer streams does not cut it: it goes on to its end, is charged, and the next call is refused.
//! The guest's own credentials never reach the provider, the host's key never reaches the guest.

mod answer;
mod body;
mod refusal;
mod replay;
mod routes;
mod upstream;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use midge_policy::{Model, Provider};
use midge_protocol::broker::Wire;
use midge_record::{BODY_MAX_BYTES, Entry};
use tokio::sync::Semaphore;

use crate::http::is_hop_by_hop;
use crate::ledger::{Charge, Prices};
use crate::shared::Shared;
use crate::stream::Stream;
use crate::usage::estimate;
use crate::veil::Veil;

use answer::{Answer, Call, Plan};
use body::Asked;
use refusal::Refusal;
use routes::{Route, route};

pub use replay::Playback;
pub(crate) use upstream::Upstream;

/// Longest request, in bytes.
const REQUEST_MAX_BYTES: usize = BODY_MAX_BYTES;
/// Most header lines of a request.
const HEADERS_MAX: usize = 100;
/// Most bytes read ahead of a request, its head among them.
const READ_MAX_BYTES: usize = 256 << 10;
/// How long a head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a request's body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a provider may take until it answers at all; as long as official clients wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Most calls at once; more wait.
const CALLS_MAX: usize = 16;

/// What an answer's body is made of.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// Who answers.
pub(crate) enum Source {
    /// A provider.
    Live(Upstream),
    /// A transcript.
    Replay(Playback),
    /// Nobody: the policy names no model.
    Nobody,
}

/// The door of one sandbox.
pub(crate) struct ModelDoor {
    shared: Arc<Shared>,
    source: Source,
    veil: Veil,
    calls: Arc<Semaphore>,
}

impl ModelDoor {
    pub(crate) fn new(shared: Arc<Shared>, source: Source) -> Self {
        let veil = Veil::new(shared.secrets.values());
        Self { shared, source, veil, calls: Arc::new(Semaphore::new(CALLS_MAX)) }
    }

    /// Serves one connection to its end.
    ///
    /// # Errors
    /// It failed, or what came was no HTTP/1.1.
    pub(crate) async fn serve(self: &Arc<Self>, stream: impl Stream) -> io::Result<()> {
        let service = service_fn(|request| {
            let door = Arc::clone(self);
            async move { Ok::<_, Infallible>(door.answer(request).await) }
        });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_buf_size(READ_MAX_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(io::Error::other)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let exchange = self.shared.number();
        let route = route(&head.method, &path);
        let wire = match route {
            Route::Call(wire) | Route::Count(wire) => wire,
            _ if head.headers.contains_key("anthropic-version") => Wire::Anthropic,
            _ => Wire::Chat,
        };
        let answered = match route {
            Route::Call(wire) => self.call(exchange, &head, body, wire).await,
            Route::Count(wire) => self.count(&head, body, wire).await,
            Route::Models => self.pass(&head, Bytes::new()).await,
            Route::Ping => return Response::new(full("midge: the door of the model\n")),
            Route::Unknown => Err(Refusal::Unknown(format!("{} {path}", head.method))),
        };
        answered.unwrap_or_else(|refusal| {
            if let Refusal::Exhausted(exhausted) = &refusal {
                self.shared.used_up(exhausted);
            }
            let path = path.chars().take(200).collect();
            let refused = Entry::ModelRefused { exchange, path, why: refusal.to_string() };
            match self.shared.note(&refused) {
                Ok(()) => refusal.answer(wire),
                Err(_) => Refusal::Unrecorded.answer(wire),
            }
        })
    }

    /// A call: charged and recorded.
    async fn call(&self, exchange: u64, head: &Parts, body: Incoming, wire: Wire) -> Result<Response<Body>, Refusal> {
        let raw = read_body(body).await?;
        let Asked { model, body, output_tokens } = self.asked(&raw, wire)?;
        let permit = Arc::clone(&self.calls).acquire_owned().await.map_err(|_| Refusal::Unrecorded)?;
        let prices = self.prices(&model)?;
        let mut least = estimate(raw.len() as u64, output_tokens);
        least.tool_calls = 1;
        let reserved = self.shared.ledger.reserve_some(&Charge::exchange(&least, prices.cost(&least)));
        let reserved = reserved.map_err(Refusal::Exhausted)?;
        let path = head.uri.path().to_owned();
        let answer = match &self.source {
            Source::Replay(playback) => Some(playback.next(&path, &body)?),
            Source::Live(_) | Source::Nobody => None,
        };
        self.shared.note(&Entry::ModelRequest { exchange, path, model, body }).map_err(|_| Refusal::Unrecorded)?;
        let plan = Plan { exchange, wire, prices, request_bytes: raw.len() as u64, started: Instant::now() };
        // From here on, whatever happens, the call is charged and recorded: when it is dropped at the latest.
        let mut call = Call::new(Arc::clone(&self.shared), plan, reserved, permit);
        let answer = match answer {
            Some(answer) => answer,
            None => match self.send(head, raw).await {
                Ok(answer) => answer.map(|body| body.map_err(io::Error::other).boxed()),
                Err(refusal) => {
                    call.unanswered();
                    return Err(refusal);
                }
            },
        };
        let (mut parts, body) = answer.into_parts();
        self.clean(&mut parts.headers);
        call.answered(parts.status.as_u16(), &parts.headers);
        Ok(Response::from_parts(parts, Answer::new(body, call, self.veil.clone()).boxed()))
    }

    /// A count of tokens: the same checks, no charge.
    async fn count(&self, head: &Parts, body: Incoming, wire: Wire) -> Result<Response<Body>, Refusal> {
        let raw = read_body(body).await?;
        self.asked(&raw, wire)?;
        self.pass(head, raw).await
    }

    /// What costs nothing.
    async fn pass(&self, head: &Parts, raw: Bytes) -> Result<Response<Body>, Refusal> {
        let permit = Arc::clone(&self.calls).acquire_owned().await.map_err(|_| Refusal::Unrecorded)?;
        if self.shared.recorder.error().is_some() {
            return Err(Refusal::Unrecorded);
        }
        let (mut parts, body) = self.send(head, raw).await?.into_parts();
        self.clean(&mut parts.headers);
        let body = body.map_err(io::Error::other).boxed();
        Ok(Response::from_parts(parts, answer::Passing::new(body, permit, self.veil.clone()).boxed()))
    }

    /// Reads a request and holds its model against the policy.
    fn asked(&self, raw: &[u8], wire: Wire) -> Result<Asked, Refusal> {
        let asked = body::read(raw, wire)?;
        let policy = self.shared.policy();
        let models = policy.model().map(|model| model.models.as_slice()).unwrap_or_default();
        if !models.iter().any(|pattern| pattern.matches(&asked.model)) {
            let allowed: Vec<String> = models.iter().map(ToString::to_string).collect();
            let model = asked.model.chars().take(200).collect::<String>();
            return Err(Refusal::Forbidden(format!(
                "the policy of this sandbox does not allow the model {model:?}; allowed: {}",
                if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") }
            )));
        }
        Ok(asked)
    }

    /// What a model's tokens cost. A budget of money needs a price.
    fn prices(&self, name: &str) -> Result<Prices, Refusal> {
        let policy = self.shared.policy();
        match policy.model().and_then(|model| price(model, name)) {
            Some(prices) => Ok(prices),
            None if self.shared.ledger.left().money_micros.is_none() => Ok(Prices::default()),
            None => Err(Refusal::Forbidden(format!(
                "there is a budget of money and no price for the model {name:?}; name one in [model.prices] of the policy"
            ))),
        }
    }

    async fn send(&self, head: &Parts, raw: Bytes) -> Result<Response<Incoming>, Refusal> {
        let Source::Live(upstream) = &self.source else {
            return Err(Refusal::Unknown(format!(
                "{} {} in a replay, or without a model in the policy",
                head.method,
                head.uri.path()
            )));
        };
        let path = upstream.path(head.uri.path_and_query().map_or("/", |path| path.as_str()));
        let mut request = Request::builder().method(&head.method).uri(path);
        if let Some(headers) = request.headers_mut() {
            self.fill(headers, &head.headers, &upstream.authority())?;
        }
        let request = request.body(Full::new(raw)).map_err(|error| Refusal::Malformed(error.to_string()))?;
        match tokio::time::timeout(ANSWER_TIMEOUT, upstream.send(request)).await {
            Ok(answer) => answer.map_err(|error| Refusal::Unreachable(error.to_string())),
            Err(_) => Err(Refusal::TimedOut(ANSWER_TIMEOUT.as_secs())),
        }
    }

    /// Headers of the provider's request: the guest's, without what is for one hop, without credentials, with the host's key.
    fn fill(&self, headers: &mut HeaderMap, guest: &HeaderMap, authority: &str) -> Result<(), Refusal> {
        let value = |text: &str| HeaderValue::from_str(text).map_err(|error| Refusal::Malformed(error.to_string()));
        let named = named_by_connection(guest);
        for (name, content) in guest {
            if !is_not_passed(name) && !is_for_one_hop(name, &named) {
                headers.append(name, content.clone());
            }
        }
        headers.insert(header::HOST, value(authority)?);
        // What is compressed can neither be counted nor searched for an echoed key.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(key) = self.shared.secrets.key() {
            let provider = self.shared.policy().model().map(|model| model.provider);
            let (name, mut content) = match provider {
                Some(Provider::Anthropic) => (HeaderName::from_static("x-api-key"), value(key.expose())?),
                _ => (header::AUTHORIZATION, value(&format!("Bearer {}", key.expose()))?),
            };
            content.set_sensitive(true);
            headers.insert(name, content);
        }
        Ok(())
    }

    /// Headers of the guest's answer: the provider's, without what is for one hop, without an echo of the key.
    fn clean(&self, headers: &mut HeaderMap) {
        let named = named_by_connection(headers);
        let names: Vec<HeaderName> = headers.keys().filter(|name| is_for_one_hop(name, &named)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
        for value in headers.values_mut() {
            let mut covered = value.as_bytes().to_vec();
            self.veil.cover(&mut covered);
            if covered != value.as_bytes() {
                *value = HeaderValue::from_bytes(&covered).unwrap_or(HeaderValue::from_static(""));
            }
        }
    }
}

/// Headers of the guest that say who it is, or whose money it spends, and those that the broker writes itself.
fn is_not_passed(name: &HeaderName) -> bool {
    let name = name.as_str();
    let written = ["host", "content-length", "accept-encoding"];
    let identity = [
        "authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "cookie",
        "openai-organization",
        "openai-project",
        "anthropic-organization-id",
        "anthropic-workspace-id",
        "forwarded",
        "via",
    ];
    written.contains(&name)
        || identity.contains(&name)
        || name.starts_with("x-forwarded-")
        || name.starts_with("proxy-")
}

/// Whether a header ends here: it is of that kind, or among those that `Connection` has `named`.
fn is_for_one_hop(name: &HeaderName, named: &[String]) -> bool {
    is_hop_by_hop(name.as_str()) || named.iter().any(|one| one == name.as_str())
}

fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::CONNECTION);
    let names = values.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let kept = ["content-length", "content-type", "host"];
    names.map(|name| name.trim().to_ascii_lowercase()).filter(|name| !kept.contains(&name.as_str())).collect()
}

/// The price of the model called `name`: its own, else that of the longest pattern that it matches.
fn price(model: &Model, name: &str) -> Option<Prices> {
    let exact = model.prices.iter().find(|(pattern, _)| pattern.as_str() == name);
    let matching = model.prices.iter().filter(|(pattern, _)| pattern.matches(name));
    let (_, price) = exact.or_else(|| matching.max_by_key(|(pattern, _)| pattern.as_str().len()))?;
    let input = price.input.micros();
    Some(Prices {
        input,
        output: price.output.micros(),
        cache_read: price.cache_read.map_or(input, |price| price.micros()),
        cache_write: price.cache_write.map_or(input.saturating_mul(2), |price| price.micros()),
    })
}

fn full(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed()
}

async fn read_body(body: Incoming) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > REQUEST_MAX_BYTES as u64 {
        return Err(Refusal::TooLarge(REQUEST_MAX_BYTES));
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, REQUEST_MAX_BYTES).collect()).await;
    match collected.map_err(|_| Refusal::Slow)? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge(REQUEST_MAX_BYTES)),
        Err(error) => Err(Refusal::Malformed(format!("the request's body broke off: {error}"))),
    }
}
