// SPDX-License-Identifier: Apache-2.0
//! The door `egress`: an HTTP/1.1 proxy that lets out what the policy's rules allow, and nothing else.
//!
//! ```text
//! guest ── head (strict, `http`) ── CONNECT ──── tunnel: rules → 200 → first bytes → SNI = host ──┬─ blind: relay
//!                        │                                                                       └─ inspected: TLS ended, then as below
//!                        └─ http://… ── forward: one request at a time: rules, credentials, answer under a veil
//! ```
//! `admit` stands before each connection: rules, questions, limits, addresses, transcript. Nothing here decides by itself.

mod admit;
mod forward;
mod limits;
mod refuse;
mod relay;
mod say;
mod tunnel;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use midge_policy::{HostName, Request, Scheme};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;
use tokio_rustls::rustls::ClientConfig;

use crate::http::{Conn, Head, ReadError, Target};
use crate::names::{Dial, Resolve};
use crate::shared::Shared;
use crate::stream::{AnyStream, ReadHalf, WriteHalf, split};
use crate::tls::Authority;

use forward::Way;
use limits::Limits;
use refuse::Refused;

/// How long a head may take from its first byte to its last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection may wait for its next request.
const KEEP_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a refusal may take to be read.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections at once.
const CONNECTIONS_MAX: usize = 256;

/// The door of one sandbox.
pub(crate) struct EgressDoor {
    shared: Arc<Shared>,
    resolve: Arc<dyn Resolve>,
    dial: Arc<dyn Dial>,
    authority: Arc<Authority>,
    tls: Arc<ClientConfig>,
    limits: Limits,
    places: Semaphore,
}

/// A guest's connection, in the clear, or inside TLS that was ended here.
struct Guest {
    conn: Conn<ReadHalf>,
    out: WriteHalf,
}

/// Whom the requests of a connection are for.
enum Inside {
    /// Each request says it: `http://host/…`.
    Proxy,
    /// One host: TLS to it was ended here.
    Tunnel(HostName, u16),
}

impl Guest {
    fn new(stream: AnyStream, ahead: BytesMut) -> Self {
        let (read, out) = split(stream);
        Self { conn: Conn::new(read, ahead), out }
    }

    /// The next head; `None` when the guest is done.
    async fn head(&mut self) -> Result<Option<Bytes>, ReadError> {
        match tokio::time::timeout(KEEP_TIMEOUT, self.conn.ready()).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return Ok(None),
            Ok(Err(error)) => return Err(error.into()),
        }
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the request's head did not come in time");
        tokio::time::timeout(HEAD_TIMEOUT, self.conn.head()).await.map_err(late)?
    }

    async fn refuse(&mut self, refused: &Refused, method: &str, close: bool) -> io::Result<()> {
        let said = async {
            self.out.write_all(&refused.answer(method, close)).await?;
            self.out.flush().await
        };
        tokio::time::timeout(REFUSE_TIMEOUT, said).await?
    }
}

impl EgressDoor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        resolve: Arc<dyn Resolve>,
        dial: Arc<dyn Dial>,
        authority: Arc<Authority>,
        tls: Arc<ClientConfig>,
    ) -> Self {
        let (limits, places) = (Limits::default(), Semaphore::new(CONNECTIONS_MAX));
        Self { shared, resolve, dial, authority, tls, limits, places }
    }

    /// Serves one connection to its end.
    ///
    /// # Errors
    /// It failed, or what came was refused.
    pub(crate) async fn serve(&self, stream: AnyStream) -> io::Result<()> {
        let mut guest = Guest::new(stream, BytesMut::new());
        let Ok(_place) = self.places.try_acquire() else {
            let why = format!("{CONNECTIONS_MAX} connections of this sandbox are open");
            return guest.refuse(&Refused::limit(503, None, why), "GET", true).await;
        };
        self.requests(guest, &Inside::Proxy).await
    }

    /// Answers the requests of a connection, one after the other: what is sent ahead waits.
    async fn requests(&self, mut guest: Guest, inside: &Inside) -> io::Result<()> {
        let mut way = Way::default();
        loop {
            let raw = match guest.head().await {
                Ok(Some(raw)) => raw,
                Ok(None) => break,
                Err(ReadError::Head(bad)) => return self.no_head(guest, &Refused::head(bad), &[]).await,
                Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    let refused = Refused::limit(408, None, error.to_string());
                    return self.no_head(guest, &refused, &[]).await;
                }
                Err(ReadError::Io(error)) => return Err(error),
                Err(ReadError::Body(error)) => return Err(io::Error::other(error)),
            };
            let head = match Head::parse(&raw) {
                Ok(head) => head,
                Err(bad) => return self.no_head(guest, &Refused::head(bad), &raw).await,
            };
            let request = match request(&head, inside) {
                Ok(Some(request)) => request,
                Ok(None) => return self.tunnel(guest, &head, &raw).await,
                Err(refused) => return self.no_head(guest, &refused, &raw).await,
            };
            // What is denied from the start is answered as such; what was not is cut off when the policy changes.
            let is_denied = !admit::is_allowed(&self.shared.policy(), &request);
            let keep = tokio::select! {
                biased;
                () = self.shared.revoked(|policy| is_denied || admit::is_allowed(policy, &request)) => {
                    return Err(io::Error::other("the policy was narrowed"));
                }
                keep = self.forward(&mut guest, head, &request, &mut way) => keep?,
            };
            if !keep {
                break;
            }
        }
        // The other side reads to the end of what was said.
        tokio::time::timeout(REFUSE_TIMEOUT, guest.out.shutdown()).await?
    }

    /// Refuses what is no request, and ends the connection.
    async fn no_head(&self, mut guest: Guest, refused: &Refused, raw: &[u8]) -> io::Result<()> {
        self.malformed(&refused.why, raw);
        guest.refuse(refused, "GET", true).await?;
        let _ = guest.out.shutdown().await;
        Err(io::Error::new(io::ErrorKind::InvalidData, refused.why.clone()))
    }
}

/// What a head asks for, as the policy sees it; `None`: a tunnel.
fn request(head: &Head, inside: &Inside) -> Result<Option<Request>, Refused> {
    let bad = |why: String| Refused { status: 400, rule: None, why };
    let host = |text: &str| HostName::parse(text).map_err(|why| bad(format!("the host {text:?} {why}")));
    match (&head.target, inside) {
        (Target::Tunnel { .. }, Inside::Proxy) => Ok(None),
        (Target::Absolute { host: name, port, path }, Inside::Proxy) => {
            Ok(Some(Request::call(Scheme::Http, host(name)?, *port, &head.method, path)))
        }
        (Target::Origin { path }, Inside::Tunnel(name, port)) => {
            let text = head.headers.one("host").and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
            let (given, given_port) =
                crate::http::split_authority(text).ok_or_else(|| bad("the Host header is malformed".into()))?;
            if host(given)? != *name || given_port.unwrap_or(443) != *port {
                let why = format!("the Host header says {text:?}, and the tunnel is to {name} port {port}");
                return Err(Refused { status: 421, rule: None, why });
            }
            Ok(Some(Request::call(Scheme::Https, name.clone(), *port, &head.method, path)))
        }
        (Target::Origin { .. }, Inside::Proxy) => Err(bad(
            "this is a proxy: ask for http://host/path, or for CONNECT host:443; a path alone names no host".into(),
        )),
        (Target::Tunnel { .. } | Target::Absolute { .. }, Inside::Tunnel(..)) => {
            Err(bad("inside a tunnel a request names a path alone".into()))
        }
    }
}
