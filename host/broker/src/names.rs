// SPDX-License-Identifier: Apache-2.0
//! How the host finds and reaches what a guest names. A guest never resolves a name and never chooses an address: both are
//! done here, once for a connection, and what was checked is what is connected to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::stream::{AnyStream, Later};

/// How long an address may take to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a name may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who turns names into addresses.
pub trait Resolve: Send + Sync + 'static {
    /// Addresses of `host`, a DNS name in ASCII, in the order to try them.
    ///
    /// # Errors
    /// There are none, or nobody could be asked.
    fn resolve<'a>(&'a self, host: &'a str) -> Later<'a, io::Result<Vec<IpAddr>>>;
}

/// Who opens connections.
pub trait Dial: Send + Sync + 'static {
    /// Connects to `address`, and to no other.
    ///
    /// # Errors
    /// It cannot be reached.
    fn dial(&self, address: SocketAddr) -> Later<'_, io::Result<AnyStream>>;
}

/// The host's own resolver and its own network.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Resolve for System {
    fn resolve<'a>(&'a self, host: &'a str) -> Later<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let looked_up = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, 0)));
            Ok(looked_up.await??.map(|address| address.ip()).collect())
        })
    }
}

impl Dial for System {
    fn dial(&self, address: SocketAddr) -> Later<'_, io::Result<AnyStream>> {
        Box::pin(async move {
            let stream = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(address)).await??;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as AnyStream)
        })
    }
}

/// Connects to the first of `addresses` that answers.
///
/// # Errors
/// None does; the last one's error.
pub(crate) async fn dial_first(dial: &dyn Dial, addresses: &[IpAddr], port: u16) -> io::Result<(IpAddr, AnyStream)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses.iter().take(4) {
        match dial.dial(SocketAddr::new(*address, port)).await {
            Ok(stream) => return Ok((*address, stream)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_host_knows_its_own_name() {
        let found = System.resolve("localhost").await.unwrap();
        assert!(found.iter().any(IpAddr::is_loopback), "{found:?}");
    }

    #[tokio::test]
    async fn the_next_address_is_tried() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = ["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let (address, _) = dial_first(&System, &addresses, port).await.unwrap();
        assert_eq!(address, addresses[1]);
        assert!(dial_first(&System, &addresses[..1], port).await.is_err());
        assert!(dial_first(&System, &[], port).await.is_err());
    }
}
