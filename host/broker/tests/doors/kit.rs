// SPDX-License-Identifier: Apache-2.0
//! What the tests of the doors share: real servers with a certificate authority of their own, a resolver that answers as it is told,
//! and a broker on streams in memory.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use midge_broker::ask::{Approver, AskDoor, Asking};
use midge_broker::ledger::Ledger;
use midge_broker::tls::{Authority, roots};
use midge_broker::told::ToldDoor;
use midge_broker::{AnyStream, Broker, Given, Later, Playback, Resolve, Secrets, System};
use midge_policy::Policy;
use midge_protocol::Door;
use midge_protocol::broker::{Left, Verdict};
use midge_record::{Masker, Memory, Recorder};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The secret of every test that has one.
pub(crate) const SECRET: &str = "sk-test/0123456789+abcdef";

/// Nothing takes longer, or the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The authority of the test's own servers.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: CertificateDer<'static>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "the test's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    pub(crate) fn server(&self, host: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, host);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap())
    }
}

/// A server on a port of this machine. What it received, connection by connection, can be looked at.
pub(crate) struct Site {
    pub(crate) port: u16,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Site {
    /// One whose connections are handled by `handle`.
    pub(crate) async fn with<F, Fut>(tls: Option<Arc<ServerConfig>>, handle: F) -> Self
    where
        F: Fn(AnyStream, Arc<Mutex<Vec<String>>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (handle, all) = (Arc::new(handle), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, handle, seen) = (tls.clone(), Arc::clone(&handle), Arc::clone(&all));
                tokio::spawn(async move {
                    let stream: AnyStream = match tls {
                        Some(tls) => Box::new(TlsAcceptor::from(tls).accept(stream).await?),
                        None => Box::new(stream),
                    };
                    handle(stream, seen).await
                });
            }
        });
        Self { port, seen, task }
    }

    /// One that answers each request with what `answer` makes of it (head and body of the request, as text).
    pub(crate) async fn new(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&str) -> String + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::with(tls, move |mut stream, seen| {
            let answer = answer.clone();
            async move {
                while let Some(request) = read_request(&mut stream).await? {
                    let said = answer(&request);
                    seen.lock().unwrap().push(request);
                    stream.write_all(said.as_bytes()).await?;
                    stream.flush().await?;
                    if said.contains("Connection: close") {
                        break;
                    }
                }
                stream.shutdown().await
            }
        })
        .await
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// An answer with a length.
pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A request with its body, as text; chunked bodies are left as they are.
pub(crate) async fn read_request(stream: &mut AnyStream) -> io::Result<Option<String>> {
    let mut raw = Vec::new();
    while !raw.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return Ok(None) };
        raw.push(byte);
    }
    let head = String::from_utf8_lossy(&raw).to_lowercase();
    if let Some(rest) = head.split("content-length: ").nth(1) {
        let length: usize = rest.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        raw.extend(body);
    } else if head.contains("transfer-encoding: chunked") {
        while !raw.ends_with(b"0\r\n\r\n") {
            raw.push(stream.read_u8().await?);
        }
    }
    Ok(Some(String::from_utf8_lossy(&raw).into_owned()))
}

/// Answers as it is told: for each name a list of answers, the last one for ever.
#[derive(Default)]
pub(crate) struct Names {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    pub(crate) asked: Mutex<Vec<String>>,
}

impl Names {
    pub(crate) fn put(&self, host: &str, answers: &[&[&str]]) {
        let parse = |answer: &&[&str]| answer.iter().map(|address| address.parse().unwrap()).collect();
        self.answers.lock().unwrap().insert(host.into(), answers.iter().map(parse).collect());
    }
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, host: &'a str) -> Later<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            self.asked.lock().unwrap().push(host.to_owned());
            let mut answers = self.answers.lock().unwrap();
            let Some(list) = answers.get_mut(host) else { return Ok(vec!["127.0.0.1".parse().unwrap()]) };
            let answer = if list.len() > 1 { list.remove(0) } else { list[0].clone() };
            if answer.is_empty() { Err(io::Error::other("no such name")) } else { Ok(answer) }
        })
    }
}

/// Says the same to every question.
pub(crate) struct Says(pub(crate) Verdict, pub(crate) Mutex<Vec<Value>>);

impl Approver for Says {
    fn ask(&self, asking: Asking) -> Later<'_, Option<Verdict>> {
        self.1.lock().unwrap().push(asking.asked);
        let verdict = self.0.clone();
        Box::pin(async move { Some(verdict) })
    }
}

/// A broker and what is around it.
pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) ledger: Ledger,
    pub(crate) names: Arc<Names>,
    pub(crate) says: Arc<Says>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) memory: Memory,
}

/// How a world differs from the usual one.
pub(crate) struct Setting<'a> {
    pub(crate) policy: &'a str,
    pub(crate) ca: Option<&'a Ca>,
    pub(crate) budget: Left,
    pub(crate) verdict: Verdict,
    pub(crate) replay: Option<Playback>,
}

impl<'a> Setting<'a> {
    pub(crate) fn new(policy: &'a str) -> Self {
        let verdict = Verdict::Deny { why: "nobody is here".into() };
        Self { policy, ca: None, budget: Left::default(), verdict, replay: None }
    }

    pub(crate) fn world(self) -> World {
        let policy = Policy::parse(format!("version = 1\n{}", self.policy), "test")
            .unwrap_or_else(|problems| panic!("{problems}"));
        let secrets = Secrets::read(&policy, self.replay.is_none()).unwrap();
        let (recorder, memory) = Recorder::in_memory("test", Masker::new(secrets.values()).unwrap()).unwrap();
        let ca = self.ca.map(|ca| ca.root.clone());
        let fallback = Ca::new();
        let roots = roots(&[ca.unwrap_or(fallback.root)]).unwrap();
        let (ledger, names) = (Ledger::new(&self.budget), Arc::new(Names::default()));
        let says = Arc::new(Says(self.verdict, Mutex::default()));
        let authority = Arc::new(Authority::new("test").unwrap());
        let policy = watch::Sender::new(Arc::new(policy));
        let ask = AskDoor::new(says.clone(), recorder.clone(), policy.subscribe());
        let broker = Broker::new(Given {
            policy,
            ask,
            told: ToldDoor::new(recorder.clone(), ledger.clone()),
            child: None,
            peer: None,
            ledger: ledger.clone(),
            recorder,
            secrets,
            authority: Arc::clone(&authority),
            roots,
            resolve: names.clone(),
            dial: Arc::new(System),
            replay: self.replay,
        });
        World { broker: broker.unwrap(), ledger, names, says, authority, memory }
    }
}

impl World {
    pub(crate) fn new(policy: &str) -> Self {
        Setting::new(policy).world()
    }

    /// A connection of the guest.
    pub(crate) fn open(&self, door: Door) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 << 10);
        let broker = self.broker.clone();
        tokio::spawn(async move { broker.serve(door, far).await });
        near
    }

    /// Sends `raw` and gives all that comes until the end.
    pub(crate) async fn say(&self, door: Door, raw: impl AsRef<[u8]>) -> String {
        let mut stream = self.open(door);
        let _ = stream.write_all(raw.as_ref()).await;
        all(&mut stream).await
    }

    /// A request through the proxy, on a connection of its own.
    pub(crate) async fn get(&self, url: &str) -> String {
        let rest = url.strip_prefix("http://").unwrap();
        let host = rest.split('/').next().unwrap();
        self.say(Door::Egress, format!("GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    }

    /// A tunnel: the stream and the proxy's answer.
    pub(crate) async fn connect(&self, authority: &str) -> (DuplexStream, String) {
        let mut stream = self.open(Door::Egress);
        let raw = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(raw.as_bytes()).await.unwrap();
        let head = head(&mut stream).await;
        (stream, head)
    }

    /// TLS in a tunnel to `authority` that names `sni`, trusting `root`.
    pub(crate) async fn secure(
        &self,
        authority: &str,
        sni: &str,
        root: CertificateDer<'static>,
    ) -> io::Result<tokio_rustls::client::TlsStream<DuplexStream>> {
        let (stream, head) = self.connect(authority).await;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(head));
        }
        let mut store = RootCertStore::empty();
        store.add(root).unwrap();
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_root_certificates(store).with_no_client_auth());
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        tokio::time::timeout(PATIENCE, TlsConnector::from(config).connect(name, stream)).await?
    }

    /// The certificate that the guest trusts.
    pub(crate) fn root(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap()
    }

    /// The transcript's entries of one kind, once there are `count` of them.
    pub(crate) async fn entries(&self, kind: &str, count: usize) -> Vec<Value> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let text = String::from_utf8(self.memory.bytes()).unwrap();
            let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["entry"].clone());
            let found: Vec<Value> = lines.filter(|entry| entry["kind"] == kind).collect();
            if found.len() >= count {
                return found;
            }
            assert!(tokio::time::Instant::now() < deadline, "{count} of {kind} in:\n{text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// All that comes until the end, as text.
pub(crate) async fn all(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    // A connection that is cut off ends too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an end");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One head, empty line included.
pub(crate) async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut raw = Vec::new();
    while !raw.ends_with(b"\r\n\r\n") {
        match tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("a head") {
            Ok(byte) => raw.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&raw).into_owned()
}

/// One answer with a length: head and body.
pub(crate) async fn answer(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let head = head(stream).await;
    let lower = head.to_lowercase();
    let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut body)).await.expect("a body").unwrap();
    head + &String::from_utf8_lossy(&body)
}

/// Lets programs of this machine come in through the door, as the guest's agent does. Gives the port.
pub(crate) async fn listen(world: &World, door: Door) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let broker = world.broker.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let broker = broker.clone();
            tokio::spawn(async move { broker.serve(door, stream).await });
        }
    });
    port
}
