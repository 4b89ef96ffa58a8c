// SPDX-License-Identifier: Apache-2.0
//! The server: a thread a connection, one script for all of them, everything remembered.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{self, Request};
use crate::say::{self, Answer, Plan};
use crate::script::{Fault, Quirks, Script, Step};
use crate::{Wire, check};

/// How long a silent stream sleeps between looks at whether it may end, in milliseconds.
const HANG_STEP_MS: u64 = 20;

/// A connection.
pub trait Stream: Read + Write + Send + 'static {}

impl<T: Read + Write + Send + 'static> Stream for T {}

/// Where connections come from.
pub trait Listener: Send + 'static {
    /// Waits for the next.
    ///
    /// # Errors
    /// When there will be none; the server ends then.
    fn next(&self) -> io::Result<Box<dyn Stream>>;
}

impl Listener for TcpListener {
    fn next(&self) -> io::Result<Box<dyn Stream>> {
        let (stream, _) = self.accept()?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

impl Listener for UnixListener {
    fn next(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(self.accept()?.0))
    }
}

/// A request that came.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Its path.
    pub path: String,
    /// Its fields by their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body; `null` when it was no JSON.
    pub body: Value,
    /// What was wrong with it; the client was told.
    pub problem: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    script: Script,
    next: usize,
    answers: u64,
    sent: Vec<Value>,
    asked: Vec<Asked>,
}

/// A running server. It ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
    address: Option<SocketAddr>,
}

impl Server {
    /// Starts one on a free port of the loopback.
    ///
    /// # Errors
    /// When there is none.
    pub fn start(script: Script) -> io::Result<Self> {
        Self::listen(TcpListener::bind(("127.0.0.1", 0))?, script)
    }

    /// Starts one on `listener`.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn listen(listener: TcpListener, script: Script) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let mut server = Self::idle(script);
        server.address = Some(address);
        server.take(listener)?;
        Ok(server)
    }

    /// One without a listener, for [`Server::take`] and [`Server::serve`].
    #[must_use]
    pub fn idle(script: Script) -> Self {
        let state = Arc::new(Mutex::new(State { script, ..State::default() }));
        Self { state, over: Arc::new(AtomicBool::new(false)), address: None }
    }

    /// Serves what comes from `listener` as well.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn take(&self, listener: impl Listener) -> io::Result<()> {
        let (state, over) = (Arc::clone(&self.state), Arc::clone(&self.over));
        let accept = move || {
            while let Ok(stream) = listener.next() {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let connection = Connection { state: Arc::clone(&state), over: Arc::clone(&over) };
                // A connection that fails is its client's business; one without a thread is dropped.
                let _ = std::thread::Builder::new().name("model".into()).spawn(move || drop(connection.serve(stream)));
            }
        };
        std::thread::Builder::new().name("models".into()).spawn(accept).map(|_| ())
    }

    /// Serves one connection to its end, in this thread.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn serve(&self, stream: impl Stream) -> io::Result<()> {
        let connection = Connection { state: Arc::clone(&self.state), over: Arc::clone(&self.over) };
        connection.serve(Box::new(stream))
    }

    /// Where it is asked, without the path of the API; empty for one that listens elsewhere.
    #[must_use]
    pub fn base_url(&self) -> String {
        self.address.map(|address| format!("http://{address}")).unwrap_or_default()
    }

    /// All requests so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.state).asked.clone()
    }

    /// What was wrong with requests so far.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        lock(&self.state).asked.iter().filter_map(|asked| asked.problem.clone()).collect()
    }

    /// Steps of the script that nobody has asked for yet.
    #[must_use]
    pub fn steps_left(&self) -> usize {
        let state = lock(&self.state);
        state.script.steps.len().saturating_sub(state.next)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(address) = self.address {
            // Wakes the thread that accepts.
            drop(TcpStream::connect(address));
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Connection {
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
}

/// What becomes of a request.
enum Reply {
    Say(Wire, Box<Answer>, Step, bool),
    Refuse(u16, BTreeMap<String, String>, Value),
}

impl Connection {
    fn serve(&self, mut stream: Box<dyn Stream>) -> io::Result<()> {
        let mut rest = Vec::new();
        while let Some(request) = http::read(&mut stream, &mut rest)? {
            let goes_on = match self.decide(&request) {
                Reply::Refuse(status, headers, body) => {
                    http::json(&mut stream, status, &headers, &body)?;
                    true
                }
                Reply::Say(wire, answer, step, is_stream) => {
                    std::thread::sleep(Duration::from_millis(step.wait_ms));
                    self.say(&mut stream, wire, &answer, &step, is_stream)?
                }
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    fn decide(&self, request: &Request) -> Reply {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
        let refuse =
            |status, wire: Wire, kind: &str, text: &str| Reply::Refuse(status, BTreeMap::new(), wire.error(kind, text));
        if request.method == "GET" && request.path.starts_with("/v1/models") {
            let models = json!({"object": "list", "data": [{"id": "scripted", "object": "model", "type": "model"}]});
            return Reply::Refuse(200, BTreeMap::new(), models);
        }
        let mut state = lock(&self.state);
        let wire = Wire::of_path(&request.path).filter(|_| request.method == "POST");
        let (path, headers) = (request.path.clone(), request.headers.clone());
        let note = |problem: Option<String>, state: &mut State| {
            state.asked.push(Asked { path: path.clone(), headers: headers.clone(), body: body.clone(), problem });
        };
        let Some(wire) = wire else {
            note(Some(format!("{} {} is not served", request.method, request.path)), &mut state);
            return refuse(404, Wire::Chat, "not_found_error", "no such path");
        };
        if let Some(problem) = unauthorised(&request.headers, state.script.key.as_deref()) {
            note(Some(problem.clone()), &mut state);
            return refuse(401, wire, "authentication_error", &problem);
        }
        let checked = head(wire, &request.headers).and_then(|()| check::request(wire, &body, &state.sent));
        if let Err(problem) = checked {
            note(Some(problem.clone()), &mut state);
            return refuse(400, wire, "invalid_request_error", &problem);
        }
        let step = state
            .script
            .steps
            .get(state.next)
            .or_else(|| state.script.steps.last().filter(|_| state.script.repeat_last));
        let Some(step) = step.cloned() else {
            note(Some("the script is over".into()), &mut state);
            return refuse(400, wire, "script_is_over", "the script has no further step");
        };
        if let Some(problem) = unexpected(&step, &body).or_else(|| odd(step.quirks, &body)) {
            let is_quirk = problem.contains("max_completion_tokens");
            note(Some(problem.clone()).filter(|_| !is_quirk), &mut state);
            return refuse(400, wire, "unexpected_request", &problem);
        }
        state.next += 1;
        state.answers += 1;
        let answers = state.answers;
        let results = check::last_results(wire, &body);
        match Plan::new(answers, &body, &step, &results) {
            Err(problem) => {
                note(Some(problem.clone()), &mut state);
                refuse(400, wire, "bad_script", &problem)
            }
            Ok(plan) => {
                let answer = say::answer(wire, &plan);
                note(None, &mut state);
                state.sent.push(answer.whole.clone());
                let is_stream = body.get("stream").and_then(Value::as_bool) == Some(true) && !step.quirks.whole;
                Reply::Say(wire, Box::new(answer), step, is_stream)
            }
        }
    }

    /// Says the answer, or what goes wrong with it; whether the connection goes on.
    fn say(&self, to: &mut dyn Write, wire: Wire, answer: &Answer, step: &Step, is_stream: bool) -> io::Result<bool> {
        let gap = Duration::from_millis(step.gap_ms);
        let limit = match &step.fault {
            Some(Fault::Status { status, headers, body }) => {
                let usual = wire.error("scripted_error", &format!("scripted status {status}")).to_string();
                let body = body.as_deref().unwrap_or(&usual);
                http::whole(to, *status, headers, "application/json", body.as_bytes())?;
                return Ok(true);
            }
            Some(Fault::Body { content_type, body, times }) => {
                http::begin(to, content_type)?;
                for _ in 0..*times {
                    http::chunk(to, body.as_bytes(), 0, gap)?;
                }
                http::end(to)?;
                return Ok(true);
            }
            Some(Fault::Cut { after_events } | Fault::Short { after_events } | Fault::Hang { after_events }) => {
                *after_events
            }
            Some(Fault::Endless { after_events } | Fault::ErrorEvent { after_events, .. }) => *after_events,
            None if !is_stream => {
                http::json(to, 200, &BTreeMap::new(), &answer.whole)?;
                return Ok(true);
            }
            None => usize::MAX,
        };
        http::begin(to, "text/event-stream; charset=utf-8")?;
        let mut last = String::new();
        for event in answer.events.iter().take(limit) {
            last = framed(event);
            http::chunk(to, last.as_bytes(), step.write_bytes, gap)?;
        }
        match &step.fault {
            Some(Fault::Cut { .. }) => return Ok(false),
            Some(Fault::Hang { .. }) => {
                while !self.over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(HANG_STEP_MS));
                }
                return Ok(false);
            }
            Some(Fault::Endless { .. }) => {
                while !self.over.load(Ordering::SeqCst) {
                    http::chunk(to, last.as_bytes(), 0, gap)?;
                }
                return Ok(false);
            }
            Some(Fault::ErrorEvent { kind, message, .. }) => {
                let error = framed(&say::error_event(wire, kind, message));
                http::chunk(to, error.as_bytes(), 0, gap)?;
            }
            _ => {}
        }
        http::end(to)?;
        Ok(true)
    }
}

fn framed((name, data): &(String, String)) -> String {
    if name.is_empty() { format!("data: {data}\n\n") } else { format!("event: {name}\ndata: {data}\n\n") }
}

fn unauthorised(headers: &BTreeMap<String, String>, key: Option<&str>) -> Option<String> {
    let key = key?;
    let bearer = headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let brings = headers.get("x-api-key").map(String::as_str) == Some(key) || bearer == Some(key);
    (!brings).then(|| "invalid x-api-key".to_owned())
}

fn head(wire: Wire, headers: &BTreeMap<String, String>) -> Result<(), String> {
    let content_type = headers.get("content-type").map(String::as_str).unwrap_or_default();
    if !content_type.starts_with("application/json") {
        return Err(format!("content-type: {content_type:?} is not application/json"));
    }
    if wire == Wire::Anthropic && !headers.contains_key("anthropic-version") {
        return Err("anthropic-version: header is required".into());
    }
    Ok(())
}

fn unexpected(step: &Step, body: &Value) -> Option<String> {
    let text = body.to_string();
    let missing = step.expect.iter().find(|expected| !text.contains(expected.as_str()))?;
    Some(format!("the script expects a request that contains {missing:?}"))
}

fn odd(quirks: Quirks, body: &Value) -> Option<String> {
    (quirks.wants_max_completion_tokens && body.get("max_tokens").is_some()).then(|| {
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            .to_owned()
    })
}

#[cfg(test)]
mod tests;
