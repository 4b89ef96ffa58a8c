// SPDX-License-Identifier: Apache-2.0
//! Connections of the host to a TCP port of this guest's loopback: what another sandbox's tunnel ends in. Who may have one is decided
//! on the host; here it is connected, or said why not.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use midge_protocol::{ErrorCode, Failure, MAX_DIALED, ToHost};

use crate::link::{Conversation, LinkError, failure};
use crate::relay::relay;

/// How long a program may take to let a connection in.
const CONNECT_MAX: Duration = Duration::from_secs(5);

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("connecting to port {port} of the guest")]
struct DialError {
    port: u16,
    source: io::Error,
}

/// One connection among those that are counted.
struct Counted;

impl Counted {
    fn count() -> Option<Self> {
        let counted = Self;
        (OPEN.fetch_add(1, Ordering::Relaxed) < MAX_DIALED).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers `Dial`, and passes bytes from then on.
pub(crate) fn answer(mut conversation: Conversation, port: u16) -> Result<(), LinkError> {
    let Some(_counted) = Counted::count() else {
        let text = format!("connecting to port {port}: {MAX_DIALED} connections are open, which is the most");
        return conversation.send(&ToHost::Error(Failure { code: ErrorCode::Busy, errno: libc::EAGAIN, text }));
    };
    let inside = match connect(port) {
        Ok(inside) => inside,
        Err(source) => return conversation.send(&ToHost::Error(failure(&DialError { port, source }))),
    };
    conversation.send(&ToHost::Done)?;
    let (outside, _, ahead) = conversation.into_parts();
    // Either side may leave whenever it likes.
    relay(&inside, &outside, ahead).or(Ok(()))
}

/// A connection, as a stream of any family.
fn connect(port: u16) -> io::Result<UnixStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), CONNECT_MAX)?;
    stream.set_nodelay(true)?;
    Ok(UnixStream::from(OwnedFd::from(stream)))
}

#[cfg(test)]
mod tests;
