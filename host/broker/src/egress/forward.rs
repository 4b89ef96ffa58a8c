// SPDX-License-Identifier: Apache-2.0
//! One request that can be read, on its way to its server and back. The server's connection is kept for the next request of the
//! same guest connection to the same host, and for no other guest's. Credentials of the policy are put in here, over TLS only;
//! what the server says goes to the guest under a veil, so that an echo of them is no way out.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use midge_policy::{HostName, Request, Scheme};
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::admit::Pass;
use super::refuse::Refused;
use super::say::{IDLE_TIMEOUT, say, say_piece};
use super::{EgressDoor, Guest};
use crate::http::{BadHead, Conn, Decoder, Framing, Head, ReadError, ResponseHead, end_chunk};
use crate::stream::{AnyStream, ReadHalf, Socket, Splice, WriteHalf, split};
use crate::veil::{Veil, Veiled};

/// How long a server may take until it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// A body with less left than this, in bytes, is not worth a pipe.
const SPLICED_MIN_BYTES: u64 = 256 << 10;
/// How long TLS may take to be agreed on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Most interim answers (1xx) to one request; they are dropped.
const INTERIM_MAX: usize = 8;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The server of a guest's connection, while it is kept.
#[derive(Default)]
pub(super) struct Way(Option<Server>);

struct Server {
    scheme: Scheme,
    host: HostName,
    port: u16,
    address: IpAddr,
    conn: Conn<ReadHalf>,
    out: WriteHalf,
    used: bool,
}

impl Server {
    fn is_for(&self, request: &Request) -> bool {
        (self.scheme, &self.host, self.port) == (request.scheme, &request.host, request.port)
    }

    /// Whether it has neither closed nor said what nobody asked for.
    async fn is_quiet(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.conn.ready() => false,
            () = std::future::ready(()) => true,
        }
    }
}

/// How an exchange ended.
enum Ended {
    /// Both connections can be used again.
    Keep,
    /// The guest's connection ends.
    Close,
    /// Nothing came from a connection that had been kept: the server had closed it.
    Stale,
}

/// Why there is no answer, as far as the guest has not been given the beginning of one.
enum Trouble {
    /// It can be told.
    Tell(Refused),
    /// It is too late for that.
    Cut(io::Error),
}

impl EgressDoor {
    /// Serves one request; `false`: the connection ends.
    pub(super) async fn forward(
        &self,
        guest: &mut Guest,
        mut head: Head,
        request: &Request,
        way: &mut Way,
    ) -> io::Result<bool> {
        let close = head.close || head.framing != Framing::Length(0);
        let kept = way.0.take().filter(|server| server.is_for(request));
        let pinned: Vec<IpAddr> = kept.as_ref().map(|server| server.address).into_iter().collect();
        let mut pass = match self.admit(request, &pinned).await {
            Ok(pass) => pass,
            Err(refused) => {
                guest.refuse(&refused, &head.method, close).await?;
                way.0 = kept;
                return Ok(!close);
            }
        };
        let veil = self.add_credentials(&mut head, request);
        if head.expects {
            guest.out.write_all(CONTINUE).await?;
            guest.out.flush().await?;
        }
        let mut next = kept;
        let ended = loop {
            let mut server = match self.server(next.take(), &mut pass, request).await {
                Ok(server) => server,
                Err(refused) => break Err(Trouble::Tell(refused)),
            };
            match exchange(guest, &mut server, &head, request, &mut pass, &veil).await {
                // Nothing of a body was sent: the request can go once more.
                Ok(Ended::Stale) => {}
                Ok(Ended::Keep) => {
                    server.used = true;
                    way.0 = Some(server);
                    break Ok(true);
                }
                Ok(Ended::Close) => break Ok(false),
                Err(trouble) => break Err(trouble),
            }
        };
        match ended {
            Ok(keep) => Ok(keep && !head.close),
            Err(Trouble::Tell(refused)) => {
                pass.status = Some(refused.status);
                pass.broken = Some(refused.why.clone());
                guest.refuse(&refused, &head.method, true).await?;
                Ok(false)
            }
            Err(Trouble::Cut(error)) => {
                pass.broken = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Puts the policy's credentials for the host in, and gives what hides them on the way back.
    fn add_credentials(&self, head: &mut Head, request: &Request) -> Veil {
        if request.scheme != Scheme::Https {
            return Veil::default();
        }
        let policy = self.shared.policy();
        let mut hidden = Vec::new();
        for credential in policy.network().credentials_for(&request.host) {
            let Some(secret) = self.shared.secrets.credential(credential.name.as_str()) else { continue };
            let value = credential.header_value(secret);
            head.headers.set(credential.header.as_str(), value.expose());
            hidden.extend([secret.clone(), value]);
        }
        if !hidden.is_empty() {
            // What is compressed, or given in parts of the guest's choice, cannot be searched for an echo.
            head.headers.set("Accept-Encoding", "identity");
            head.headers.remove("Range");
        }
        Veil::new(hidden.iter().map(|secret| secret.expose()))
    }

    /// The kept connection, if it still is one, or a new one.
    async fn server(&self, kept: Option<Server>, pass: &mut Pass, request: &Request) -> Result<Server, Refused> {
        if let Some(mut server) = kept
            && pass.addresses.contains(&server.address)
            && server.is_quiet().await
        {
            return Ok(server);
        }
        let mut stream = self.dial(pass, request).await?;
        if request.scheme == Scheme::Https {
            stream = self.secure(stream, &request.host).await?;
        }
        let (read, out) = split(stream);
        let address = pass.addresses.first().copied();
        let address = address.ok_or_else(|| Refused::limit(502, None, "the server has no address"))?;
        let (host, conn) = (request.host.clone(), Conn::new(read, BytesMut::new()));
        Ok(Server { scheme: request.scheme, host, port: request.port, address, conn, out, used: false })
    }

    /// TLS towards a server, held against the host's roots.
    async fn secure(&self, stream: AnyStream, host: &HostName) -> Result<AnyStream, Refused> {
        let failed = |error: io::Error| Refused::server(&error, &format!("agreeing on TLS with {host}"));
        let name = ServerName::try_from(host.as_str().to_owned()).map_err(|error| failed(io::Error::other(error)))?;
        let connected = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, connected).await;
        let stream = connected.map_err(|late| failed(late.into()))?.map_err(failed)?;
        Ok(Box::new(stream))
    }
}

/// Sends a request, its body while the answer may already come, and passes the answer on.
async fn exchange(
    guest: &mut Guest,
    server: &mut Server,
    head: &Head,
    request: &Request,
    pass: &mut Pass,
    veil: &Veil,
) -> Result<Ended, Trouble> {
    let path = request.call.as_ref().map_or("/", |call| call.path.as_str());
    let authority = match request.scheme.port() {
        Some(port) if port == request.port => request.host.authority(),
        _ => format!("{}:{}", request.host.authority(), request.port),
    };
    let raw = head.to_origin(path, &authority);
    let retriable = server.used && head.framing == Framing::Length(0);
    pass.sent += raw.len() as u64;
    pass.charge(raw.len() as u64)
        .map_err(|error| Trouble::Tell(Refused::limit(403, pass.rule.as_deref(), error.to_string())))?;
    if let Err(error) = say(&mut server.out, &[&raw]).await {
        return if retriable { Ok(Ended::Stale) } else { Err(told(&error)) };
    }
    // Two halves of one exchange: each counts for itself, and the sum is put together at the end.
    let pass_now = &*pass;
    let (mut sent, mut received) = (0, 0);
    let mut status = None;
    let (done, body_is_sent) = {
        let sending = send_body(&mut guest.conn, &mut server.out, head.framing, pass_now, &mut sent);
        let mut back = Back {
            pass: pass_now,
            veil,
            method: &head.method,
            close: head.close,
            received: &mut received,
            status: &mut status,
        };
        let receiving = back.answer(&mut server.conn, &mut guest.out);
        tokio::pin!(sending, receiving);
        let (mut is_over, mut is_sent) = (false, false);
        loop {
            tokio::select! {
                biased;
                result = &mut sending, if !is_over => match result {
                    Ok(()) => (is_over, is_sent) = (true, true),
                    // The server does not read on: perhaps it has answered already.
                    Err(Trouble::Tell(_)) => is_over = true,
                    Err(cut) => break (Err(cut), false),
                },
                done = &mut receiving => break (done, is_sent),
            }
        }
    };
    pass.sent += sent;
    pass.received += received;
    pass.status = status.or(pass.status);
    match done {
        Ok(true) if body_is_sent => Ok(Ended::Keep),
        Ok(_) => Ok(Ended::Close),
        Err(Trouble::Tell(refused)) if retriable && refused.why == GONE => Ok(Ended::Stale),
        Err(trouble) => Err(trouble),
    }
}

/// A server that closes instead of answering.
const GONE: &str = "the server closed the connection without an answer";

/// The guest's body, piece by piece. [`Trouble::Tell`]: the server takes no more; [`Trouble::Cut`]: the guest gives no more.
async fn send_body(
    from: &mut Conn<ReadHalf>,
    to: &mut WriteHalf,
    framing: Framing,
    pass: &Pass,
    sent: &mut u64,
) -> Result<(), Trouble> {
    let mut decoder = Decoder::new(framing);
    let chunked = framing == Framing::Chunked;
    loop {
        let piece = tokio::time::timeout(IDLE_TIMEOUT, from.piece(&mut decoder)).await;
        let piece =
            piece.map_err(|late| Trouble::Cut(late.into()))?.map_err(|error| Trouble::Cut(io::Error::other(error)))?;
        let Some(piece) = piece else { break };
        pass.charge(piece.len() as u64).map_err(Trouble::Cut)?;
        *sent += piece.len() as u64;
        say_piece(to, &piece, chunked).await.map_err(|error| told(&error))?;
    }
    if chunked {
        say(to, &[end_chunk(true)]).await.map_err(|error| told(&error))?;
    }
    Ok(())
}

/// The way back.
struct Back<'a> {
    pass: &'a Pass,
    veil: &'a Veil,
    method: &'a str,
    close: bool,
    received: &'a mut u64,
    status: &'a mut Option<u16>,
}

impl Back<'_> {
    /// Passes the answer on; whether both connections can be used again.
    async fn answer(&mut self, from: &mut Conn<ReadHalf>, to: &mut WriteHalf) -> Result<bool, Trouble> {
        let mut head = self.head(from).await?;
        for value in head.headers.values_mut() {
            self.veil.cover(value);
        }
        *self.status = Some(head.status);
        let close = self.close || head.framing == Framing::UntilClose;
        let raw = head.to_guest(close);
        self.count(raw.len() as u64).map_err(Trouble::Cut)?;
        say(to, &[&raw]).await.map_err(Trouble::Cut)?;
        let chunked = head.framing == Framing::Chunked;
        let (mut decoder, mut veiled) = (Decoder::new(head.framing), Veiled::new(self.veil.clone()));
        loop {
            if from.is_drained()
                && self.veil.is_empty()
                && let (Some(from), Some(to)) = (from.io().socket(), to.socket())
            {
                self.spliced((from, to), &mut decoder).await.map_err(Trouble::Cut)?;
            }
            let piece = tokio::time::timeout(IDLE_TIMEOUT, from.piece(&mut decoder)).await;
            let piece = piece.map_err(|late| Trouble::Cut(late.into()))?;
            let Some(piece) = piece.map_err(|error| Trouble::Cut(io::Error::other(error)))? else { break };
            self.count(piece.len() as u64).map_err(Trouble::Cut)?;
            say_piece(to, &veiled.push(piece), chunked).await.map_err(Trouble::Cut)?;
        }
        say_piece(to, &veiled.end(), chunked).await.map_err(Trouble::Cut)?;
        if chunked {
            say(to, &[end_chunk(true)]).await.map_err(Trouble::Cut)?;
        }
        // Bytes after an answer belong to none.
        Ok(!head.close && !close && from.is_drained())
    }

    /// What is left of a long body passes from socket to socket in the kernel.
    async fn spliced(&mut self, way: (Socket<'_>, Socket<'_>), decoder: &mut Decoder) -> io::Result<()> {
        if decoder.as_is_bytes() < SPLICED_MIN_BYTES {
            return Ok(());
        }
        let mut splice = Splice::new()?;
        while decoder.as_is_bytes() > 0 {
            let pass = splice.pass(way, decoder.as_is_bytes(), |bytes| self.count(bytes));
            let bytes = tokio::time::timeout(IDLE_TIMEOUT, pass).await??;
            if bytes == 0 {
                return decoder.end().map_err(io::Error::other);
            }
            decoder.skip(bytes);
        }
        Ok(())
    }

    /// The head of the final answer.
    async fn head(&self, from: &mut Conn<ReadHalf>) -> Result<ResponseHead, Trouble> {
        let bad =
            |why: BadHead| Trouble::Tell(Refused::limit(502, None, format!("the server's answer is refused: {why}")));
        for _ in 0..=INTERIM_MAX {
            let raw = match tokio::time::timeout(ANSWER_TIMEOUT, from.head()).await {
                Ok(Ok(Some(raw))) => raw,
                Ok(Ok(None) | Err(ReadError::Io(_))) => return Err(Trouble::Tell(Refused::limit(502, None, GONE))),
                Ok(Err(ReadError::Head(why))) => return Err(bad(why)),
                Ok(Err(error)) => {
                    return Err(Trouble::Tell(Refused::limit(
                        502,
                        None,
                        format!("reading the server's answer: {error}"),
                    )));
                }
                Err(_) => {
                    let why = format!("the server did not answer in {} s", ANSWER_TIMEOUT.as_secs());
                    return Err(Trouble::Tell(Refused::limit(504, None, why)));
                }
            };
            let head = ResponseHead::parse(&raw, self.method).map_err(bad)?;
            if head.status >= 200 {
                return Ok(head);
            }
        }
        Err(Trouble::Tell(Refused::limit(502, None, "the server sends interim answers without end")))
    }

    fn count(&mut self, bytes: u64) -> io::Result<()> {
        *self.received += bytes;
        self.pass.charge(bytes)
    }
}

fn told(error: &io::Error) -> Trouble {
    Trouble::Tell(Refused::server(error, "sending to the server"))
}
