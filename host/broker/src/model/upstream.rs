// SPDX-License-Identifier: Apache-2.0
//! Connections to the provider: HTTP/1.1, kept for the next call while the provider keeps them. The endpoint is the user's own
//! word, so its address is not held against the rules of the network.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use midge_policy::Endpoint;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::names::{Dial, Resolve, dial_first};
use crate::stream::AnyStream;

/// Most connections that are kept while nobody uses them.
const IDLE_MAX: usize = 8;
/// Most bytes read at once, an answer's head among them.
const READ_MAX_BYTES: usize = 256 << 10;

type Sender = SendRequest<Full<Bytes>>;

/// One provider's endpoint.
pub(crate) struct Upstream {
    endpoint: Endpoint,
    tls: Arc<ClientConfig>,
    resolve: Arc<dyn Resolve>,
    dial: Arc<dyn Dial>,
    idle: Arc<Mutex<Vec<Sender>>>,
}

impl Upstream {
    /// For this endpoint; connects when the first call comes.
    pub(crate) fn new(
        endpoint: Endpoint,
        tls: Arc<ClientConfig>,
        resolve: Arc<dyn Resolve>,
        dial: Arc<dyn Dial>,
    ) -> Self {
        Self { endpoint, tls, resolve, dial, idle: Arc::default() }
    }

    /// The value of `Host`.
    pub(super) fn authority(&self) -> String {
        let host = self.endpoint.host().authority();
        let usual = if self.endpoint.is_https() { 443 } else { 80 };
        if self.endpoint.port() == usual { host } else { format!("{host}:{}", self.endpoint.port()) }
    }

    /// The path of the API at this endpoint.
    pub(super) fn path(&self, path: &str) -> String {
        let before = self.endpoint.path();
        format!("{}{path}", before.strip_suffix("/v1").unwrap_or(before))
    }

    /// Sends a request and waits for the head of its answer. Dropped, it closes the connection; so does dropping the answer's body
    /// before its end.
    ///
    /// # Errors
    /// The endpoint cannot be reached, or closed the connection.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> io::Result<Response<Incoming>> {
        let mut request = request;
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut sender) = kept else { break };
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok(self.kept(sender, answer)),
                // The provider closed it before it read anything: the request comes back, and may go again.
                Err(mut error) => match error.take_message() {
                    Some(back) => request = back,
                    None => return Err(io::Error::other(error.into_error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        Ok(self.kept(sender, answer))
    }

    /// Keeps the connection for when the answer has been read to its end.
    fn kept(&self, mut sender: Sender, answer: Response<Incoming>) -> Response<Incoming> {
        let idle = Arc::clone(&self.idle);
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.retain(|sender| !sender.is_closed());
                if idle.len() < IDLE_MAX {
                    idle.push(sender);
                }
            }
        });
        answer
    }

    async fn connect(&self) -> io::Result<Sender> {
        let host = self.endpoint.host();
        let addresses = match host.address() {
            Some(address) => vec![address],
            None => self.resolve.resolve(host.as_str()).await?,
        };
        let (_, stream) = dial_first(&*self.dial, &addresses, self.endpoint.port()).await?;
        let stream: AnyStream = if self.endpoint.is_https() {
            let name = ServerName::try_from(host.as_str().to_owned()).map_err(io::Error::other)?;
            Box::new(TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?)
        } else {
            stream
        };
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(READ_MAX_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
