// SPDX-License-Identifier: Apache-2.0
//! What the doors cost beside a direct call, over loopback: time of one request (the doors `model` and `egress`, kept connections),
//! and 1 GiB through the proxy. Every way is measured in turns, so that all see the same machine. Prints p50, p90, p99, max and n;
//! no figure is a pass criterion.
//!
//! `cargo bench -p midge-broker` · `-- REQUESTS GIBIBYTES-IN-MEBIBYTES`
#![expect(clippy::unwrap_used, clippy::panic, reason = "shared with tests, which say what went wrong by panicking")]

#[path = "../tests/doors/kit.rs"]
#[expect(dead_code, reason = "what the tests need and the bench does not")]
mod kit;

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::time::{Duration, Instant};

use midge_protocol::Door;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};

use kit::{Site, World, answer, head, listen};

const BODY: &str = r#"{"model":"m","max_tokens":100,"messages":[{"role":"user","content":"hi"}]}"#;
const PIECE: usize = 256 << 10;
/// Downloads each way.
const DOWNLOADS: u32 = 9;

#[tokio::main]
async fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let (requests, mebibytes) = (numbers.first().copied().unwrap_or(2000), numbers.get(1).copied().unwrap_or(1024));
    latency(requests).await;
    throughput(mebibytes).await;
}

async fn open(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn policy(port: u16) -> String {
    format!(
        "[model]\nprovider = \"anthropic\"\nendpoint = \"http://127.0.0.1:{port}\"\nmodels = [\"m\"]\n\
         [[network.rules]]\nname = \"files\"\nhosts = [\"files.test\"]\nschemes = [\"http\", \"tcp\"]\nports = [{port}]\nranges = [\"127.0.0.0/8\"]\n"
    )
}

async fn latency(requests: usize) {
    let reply = kit::ok(r#"{"content":[],"usage":{"input_tokens":1,"output_tokens":1}}"#)
        .replace("text/plain", "application/json");
    let site = Site::new(None, move |_| reply.clone()).await;
    let world = World::new(&policy(site.port));
    let (model, egress) = (listen(&world, Door::Model).await, listen(&world, Door::Egress).await);
    let host = format!("files.test:{}", site.port);
    let post = |target: &str, host: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        )
    };
    let mut tunnel = open(egress).await;
    tunnel.write_all(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    assert!(head(&mut tunnel).await.starts_with("HTTP/1.1 200"));
    let mut ways = [
        ("direct", open(site.port).await, post("/v1/messages", "files.test"), Vec::new()),
        ("model door", open(model).await, post("/v1/messages", "files.test"), Vec::new()),
        (
            "proxy, http://",
            open(egress).await,
            post(&format!("http://{host}/x"), &host).replace("POST", "PUT"),
            Vec::new(),
        ),
        ("proxy, tunnel", tunnel, post("/v1/messages", "files.test"), Vec::new()),
    ];
    for round in 0..requests + 50 {
        for (name, stream, request, times) in &mut ways {
            let began = Instant::now();
            stream.write_all(request.as_bytes()).await.unwrap();
            let said = answer(stream).await;
            assert!(said.starts_with("HTTP/1.1 200"), "{name}: {said}");
            if round >= 50 {
                times.push(began.elapsed());
            }
        }
    }
    println!("one request, microseconds (n = {requests} each, in turns)");
    let direct = percentile(&mut ways[0].3, 0.5);
    for (name, _, _, times) in &mut ways {
        let at = |share, times: &mut Vec<Duration>| percentile(times, share).as_micros();
        let (p50, p90, p99, max) = (at(0.5, times), at(0.9, times), at(0.99, times), at(1.0, times));
        let over = percentile(times, 0.5).saturating_sub(direct).as_micros();
        println!("  {name:16} p50 {p50:6}  p90 {p90:6}  p99 {p99:6}  max {max:6}   p50 over direct {over:5}");
    }
}

fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a short list"
    )]
    let index = ((times.len() - 1) as f64 * share) as usize;
    times[index]
}

/// What this process has used so far, in steps of 10 ms (proc_pid_stat(5): utime, stime).
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    Duration::from_millis(ticks.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
}

/// A connection of a client: to the server, or to a door as a monitor has one.
trait Duplex: std::io::Read + std::io::Write {}
impl<S: std::io::Read + std::io::Write> Duplex for S {}

/// A server and a client are threads of their own that block, as other programs do: only the broker is in the runtime.
fn serve(mebibytes: usize) -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream.unwrap());
                let (length, piece) = (mebibytes << 20, vec![0; PIECE]);
                while read_head(&mut stream) {
                    let out = stream.get_mut();
                    out.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).unwrap();
                    for _ in 0..length / PIECE {
                        out.write_all(&piece).unwrap();
                    }
                }
            });
        }
    });
    port
}

/// Reads up to the empty line; `false` at the end of the connection.
fn read_head(stream: &mut impl BufRead) -> bool {
    let mut line = String::new();
    while stream.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    !line.is_empty()
}

/// One download, all of it.
fn download(stream: &mut BufReader<Box<dyn Duplex>>, request: &str, length: usize) {
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    assert!(read_head(stream));
    let (mut left, mut buffer) = (length, vec![0; PIECE]);
    while left > 0 {
        let most = left.min(PIECE);
        let got = stream.read(&mut buffer[..most]).unwrap();
        assert!(got > 0);
        left -= got;
    }
}

async fn throughput(mebibytes: usize) {
    let port = serve(mebibytes);
    let world = World::new(&policy(port));
    let host = format!("files.test:{port}");
    let direct = || -> Box<dyn Duplex> { Box::new(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()) };
    let door = || -> Box<dyn Duplex> {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let (broker, far) = (world.broker.clone(), UnixStream::from_std(far).unwrap());
        tokio::spawn(async move { broker.serve(Door::Egress, far).await });
        Box::new(near)
    };
    let mut tunnel = BufReader::new(door());
    tunnel.get_mut().write_all(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
    assert!(tokio::task::block_in_place(|| read_head(&mut tunnel)));
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut ways = [
        ("direct", BufReader::new(direct()), get("/"), Vec::new(), Duration::ZERO),
        ("proxy, tunnel", tunnel, get("/"), Vec::new(), Duration::ZERO),
        ("proxy, http://", BufReader::new(door()), get(&format!("http://{host}/")), Vec::new(), Duration::ZERO),
    ];
    for _ in 0..DOWNLOADS {
        for (_, stream, request, times, used) in &mut ways {
            let (began, before) = (Instant::now(), processor_time());
            tokio::task::block_in_place(|| download(stream, request, mebibytes << 20));
            times.push(began.elapsed());
            *used += processor_time() - before;
        }
    }
    println!(
        "{mebibytes} MiB down, MiB/s (n = {DOWNLOADS} each, in turns), and processor time of server, broker and client together"
    );
    let direct = percentile(&mut ways[0].3, 0.5).as_secs_f64();
    for (name, _, _, times, used) in &mut ways {
        let (best, middle) = (percentile(times, 0.0).as_secs_f64(), percentile(times, 0.5).as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a figure to print")]
        let rate = |seconds: f64| mebibytes as f64 / seconds;
        println!(
            "  {name:16} p50 {:6.0}  best {:6.0}   of direct {:5.1}%   {:5} ms each",
            rate(middle),
            rate(best),
            100.0 * direct / middle,
            used.as_millis() / u128::from(DOWNLOADS)
        );
    }
}
