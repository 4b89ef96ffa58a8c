// SPDX-License-Identifier: Apache-2.0
//! A site over HTTPS with an authority of its own, on a port of this machine. It answers one request a connection, with a file if it
//! has any, and lets a request for `/held` wait until it is told to go on.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto};

/// Longest a request is waited for.
const PATIENCE: Duration = Duration::from_secs(200);
/// Longest head of a request, in bytes.
const HEAD_MAX_BYTES: usize = 64 << 10;
/// What a site without files answers.
const WORDS: &[u8] = b"came through\n";

/// The authority of a test's sites.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "the test's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn server(&self) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        Arc::new(config.with_single_cert(vec![leaf], key).expect("they fit"))
    }
}

/// A site that runs; its threads end with the test's process.
pub(crate) struct Site {
    pub(crate) port: u16,
    heads: mpsc::Receiver<String>,
    go: mpsc::Sender<()>,
}

impl Site {
    /// One that calls itself `localhost`, with the files of a directory, or else with the same words for everybody.
    pub(crate) fn start(authority: &Authority, files: Option<PathBuf>) -> Self {
        let config = authority.server();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let ((heads_in, heads), (go, going)) = (mpsc::channel(), mpsc::channel());
        let going = Arc::new(Mutex::new(going));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, heads, going, files) = (config.clone(), heads_in.clone(), going.clone(), files.clone());
                std::thread::spawn(move || serve(stream, config, &heads, &going, files.as_deref()));
            }
        });
        Self { port, heads, go }
    }

    /// The head of the next request.
    pub(crate) fn next(&self) -> String {
        self.heads.recv_timeout(PATIENCE).expect("a request")
    }

    /// The heads of all requests that came and were not looked at.
    pub(crate) fn all(&self) -> Vec<String> {
        self.heads.try_iter().collect()
    }

    /// Answers the request that waits.
    pub(crate) fn go_on(&self) {
        self.go.send(()).expect("the site waits");
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    heads: &mpsc::Sender<String>,
    going: &Mutex<mpsc::Receiver<()>>,
    files: Option<&Path>,
) {
    let mut stream = StreamOwned::new(ServerConnection::new(config).expect("a connection"), stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_MAX_BYTES {
        let mut byte = [0];
        // Whoever only looks whether the port is open asks nothing.
        let Ok(1) = stream.read(&mut byte) else { return };
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split([' ', '?']).nth(1).unwrap_or_default().to_owned();
    drop(heads.send(head));
    if path == "/held" {
        let _ = going.lock().expect("one waits").recv_timeout(PATIENCE);
    }
    let body = files.map_or_else(|| Some(WORDS.to_vec()), |dir| std::fs::read(dir.join(&path[1..])).ok());
    let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
    let body = body.unwrap_or_default();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)));
    stream.conn.send_close_notify();
    drop(stream.flush());
}
