// SPDX-License-Identifier: Apache-2.0
//! CONNECT: what comes first in a tunnel says what it is. TLS must name the host that was asked for; then it is passed on unseen,
//! or ended here when the policy looks into it. Anything else passes only where a rule says `tcp`.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use midge_policy::{HostName, Request, Scheme, Verdict as Rules};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::admit::{self, Pass};
use super::refuse::Refused;
use super::relay::relay;
use super::{EgressDoor, Guest, Inside};
use crate::http::{Head, Target};
use crate::stream::{AnyStream, Later, Rewound, unsplit};
use crate::tls::{Hello, Sniff, sniff};

/// How long a hello may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the first byte is waited for where it need not come from the guest: it may be a protocol whose server speaks first.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long TLS may take to be agreed on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
/// A fatal alert of TLS: unrecognized_name (RFC 8446 §6.2).
const ALERT_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
/// A fatal alert of TLS: access_denied.
const ALERT_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// What a tunnel turns out to be.
enum First {
    Tls(Hello),
    Other,
}

impl EgressDoor {
    /// Serves a CONNECT request to the end of its tunnel.
    pub(super) async fn tunnel(&self, mut guest: Guest, head: &Head, raw: &[u8]) -> io::Result<()> {
        let Target::Tunnel { host, port } = &head.target else { return Err(io::ErrorKind::InvalidInput.into()) };
        let host = match HostName::parse(host) {
            Ok(host) => host,
            Err(why) => {
                let refused = Refused { status: 400, rule: None, why: format!("the host {host:?} {why}") };
                return self.no_head(guest, &refused, raw).await;
            }
        };
        let https = Request::connect(Scheme::Https, host.clone(), *port);
        let tcp = Request::connect(Scheme::Tcp, host.clone(), *port);
        let policy = self.shared.policy();
        let verdict = policy.network().decide(&https).verdict;
        let any_bytes = policy.network().decide(&tcp).verdict != Rules::Deny;
        // Where it is known already what will be asked for, the server is reached first: its absence can still be told.
        let known = match (verdict, any_bytes) {
            (Rules::Deny, true) => Some(&tcp),
            (Rules::Allow | Rules::Ask, _) | (Rules::Deny, false) => Some(&https),
            (Rules::IfInspected, _) => None,
        };
        let mut server = None;
        if let Some(request) = known {
            match self.reach(request).await {
                Ok(reached) => server = Some(reached),
                Err(refused) => {
                    guest.refuse(&refused, "CONNECT", true).await?;
                    return guest.out.shutdown().await;
                }
            }
        }
        guest.out.write_all(ESTABLISHED).await?;
        guest.out.flush().await?;
        let (mut stream, mut ahead) = guest.into_stream()?;
        if verdict == Rules::Deny
            && let Some((pass, server)) = server
        {
            return self.blind(stream, ahead, pass, server, &tcp).await;
        }
        match first(&mut stream, &mut ahead, any_bytes).await {
            Ok(First::Tls(hello)) => self.secured(stream, ahead, &https, &hello, server).await,
            Ok(First::Other) if any_bytes => {
                drop(server);
                let (pass, server) = self.reach(&tcp).await.map_err(io::Error::other)?;
                self.blind(stream, ahead, pass, server, &tcp).await
            }
            Ok(First::Other) => {
                let why =
                    "what came through the tunnel was not TLS, and no rule for this host and port has the scheme tcp";
                self.denied(&tcp, why);
                Err(io::Error::other(why))
            }
            Err(error) => {
                self.denied(&https, &error.to_string());
                Err(error)
            }
        }
    }

    /// TLS, of which the name in clear is known.
    async fn secured(
        &self,
        mut stream: AnyStream,
        ahead: BytesMut,
        request: &Request,
        hello: &Hello,
        server: Option<(Pass, AnyStream)>,
    ) -> io::Result<()> {
        if let Err(why) = check_name(hello, &request.host, server.is_some()) {
            if let Some((mut pass, _)) = server {
                pass.broken = Some(why.clone());
            }
            self.denied(request, &why);
            let _ = stream.write_all(&ALERT_NAME).await;
            let _ = stream.shutdown().await;
            return Err(io::Error::other(why));
        }
        if let Some((pass, server)) = server {
            return self.blind(stream, ahead, pass, server, request).await;
        }
        // The rules may have changed since CONNECT; they are asked again for each request inside.
        if self.shared.policy().network().decide(request).verdict != Rules::IfInspected {
            self.denied(request, "the policy was narrowed meanwhile");
            let _ = stream.write_all(&ALERT_DENIED).await;
            return stream.shutdown().await;
        }
        let config = self.authority.server(request.host.as_str()).map_err(io::Error::other)?;
        let accepted = TlsAcceptor::from(config).accept(Rewound::new(ahead, stream));
        let inner = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepted).await {
            Ok(Ok(inner)) => inner,
            Ok(Err(error)) => {
                let why = format!("the guest did not agree on TLS (does it trust the sandbox's authority?): {error}");
                self.denied(request, &why);
                return Err(io::Error::other(why));
            }
            Err(late) => return Err(late.into()),
        };
        let inside = Inside::Tunnel(request.host.clone(), request.port);
        self.requests_inside(Guest::new(Box::new(inner), BytesMut::new()), inside).await
    }

    /// The requests of a tunnel. There is one level of them: inside, CONNECT is refused.
    fn requests_inside(&self, guest: Guest, inside: Inside) -> Later<'_, io::Result<()>> {
        Box::pin(async move { self.requests(guest, &inside).await })
    }

    /// Passes bytes on unseen, what was read ahead first.
    async fn blind(
        &self,
        guest: AnyStream,
        ahead: BytesMut,
        mut pass: Pass,
        server: AnyStream,
        request: &Request,
    ) -> io::Result<()> {
        let done = tokio::select! {
            done = relay(guest, ahead, server, &mut pass) => done,
            () = self.shared.revoked(|policy| admit::is_allowed(policy, request)) => {
                Err(io::Error::other("the policy was narrowed"))
            }
        };
        pass.broken = done.as_ref().err().map(ToString::to_string);
        done
    }

    /// Holds a tunnel against everything, and connects.
    async fn reach(&self, request: &Request) -> Result<(Pass, AnyStream), Refused> {
        let mut pass = self.admit(request, &[]).await?;
        let server = self.dial(&mut pass, request).await?;
        Ok((pass, server))
    }
}

impl Guest {
    /// The connection in one piece, with what was read ahead of it.
    fn into_stream(self) -> io::Result<(AnyStream, BytesMut)> {
        let (read, ahead) = self.conn.into_parts();
        Ok((unsplit(read, self.out)?, ahead))
    }
}

/// The name in clear must be the host that the rules were asked about.
fn check_name(hello: &Hello, host: &HostName, blind: bool) -> Result<(), String> {
    if hello.encrypted && blind {
        return Err(format!(
            "the hello to {host} has an encrypted part (ECH), so that nobody can tell which host is meant"
        ));
    }
    match &hello.sni {
        None if host.address().is_some() => Ok(()),
        None => Err(format!("TLS to {host} names no host (SNI)")),
        Some(name) if HostName::parse(name).is_ok_and(|name| name == *host) => Ok(()),
        Some(name) => Err(format!("TLS names {name:?} (SNI), and the tunnel is to {host}")),
    }
}

/// Reads ahead until it is known what a tunnel is. With `other` nothing need come.
async fn first(stream: &mut AnyStream, ahead: &mut BytesMut, other: bool) -> io::Result<First> {
    let deadline = tokio::time::Instant::now() + HELLO_TIMEOUT;
    loop {
        match sniff(ahead) {
            Sniff::Tls(hello) => return Ok(First::Tls(hello)),
            Sniff::NotTls => return Ok(First::Other),
            Sniff::Bad(why) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("TLS begins with {why}")));
            }
            Sniff::Need => {}
        }
        let silent = ahead.is_empty() && other;
        let until = if silent { tokio::time::Instant::now() + FIRST_BYTE_TIMEOUT } else { deadline };
        ahead.reserve(4096);
        match tokio::time::timeout_at(until, stream.read_buf(ahead)).await {
            Ok(Ok(0)) if !other || !ahead.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(0)) => return Ok(First::Other),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) if silent => return Ok(First::Other),
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the beginning of TLS did not come in time")),
        }
    }
}
