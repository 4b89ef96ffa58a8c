// SPDX-License-Identifier: Apache-2.0
//! Copies of guests at work: disk, memory and vsock are busy, both ways, and nothing is lost or mixed up, neither in the
//! copy nor in the guest that it was made of.

use midge::exec::{Exec, OutputReader, Running, StdinWriter};
use midge::sandbox::{Sandbox, Where};
use midge::template::{Plan, Template};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::task::JoinHandle;

use crate::context::Context;
use crate::forks::{name, small, text_of};
use crate::library::inside;
use crate::templates::{moments, rounds};

crate::tests!("load":
    Guest copies_under_load_are_whole,
    Guest template_under_load_is_whole,
);

fn copies_under_load_are_whole(context: &Context) {
    inside(context, "loaded");
}

fn template_under_load_is_whole(context: &Context) {
    inside(context, "restored");
}

/// Writes files with their sums for ever. A sum is there only while its file is complete.
const WRITER: &str = "cd /opt; i=0; while :; do i=$((i+1)); f=f$((i%8)); rm -f $f.sum; \
    head -c 200000 /dev/urandom > $f; sha256sum $f > next; sync $f; mv next $f.sum; done";
const WRITTEN: &str = "while ! test -e /opt/f7.sum; do sleep 0.05; done";
/// Counts the files that are complete; one that is not what its sum says is a failure. What writes stands still meanwhile,
/// and goes on. Everything is read from the disk.
const CHECK_FILES: &str = "pkill -STOP -f '[d]ev/urandom'; cd /opt; sync; echo 3 > /proc/sys/vm/drop_caches; \
    cat *.sum | sha256sum -c --quiet -; ls *.sum | wc -l; pkill -CONT -f '[d]ev/urandom'";
const WRITES_ON: &str = "rm -f /opt/f3.sum; while ! test -e /opt/f3.sum; do sleep 0.05; done";
/// Writes all over 16 MiB of its memory for ever, each page with its sum. A signal makes it look at all of them.
const KEEPER: &str = r#"exec python3 -c '
import os, random, signal, zlib
def page():
    data = os.urandom(4096)
    return data, zlib.crc32(data)
pages = [page() for _ in range(4096)]
def look(*_):
    broken = sum(zlib.crc32(data) != crc for data, crc in pages)
    with open("/tmp/next", "w") as out:
        print(len(pages), broken, file=out)
    os.rename("/tmp/next", "/tmp/verdict")
signal.signal(signal.SIGUSR1, look)
print("ready", flush=True)
while True:
    pages[random.randrange(4096)] = page()
'"#;
const CHECK_MEMORY: &str = "rm -f /tmp/verdict; pkill -USR1 -f '[z]lib'; \
    while ! test -e /tmp/verdict; do sleep 0.02; done; cat /tmp/verdict";

/// Files and memory of a guest under load.
async fn check(sandbox: &Sandbox) {
    let sums: u32 = text_of(sandbox, CHECK_FILES).await.trim().parse().expect("a number");
    assert!((7..=8).contains(&sums), "{sums} files of 8 are complete");
    assert_eq!(text_of(sandbox, CHECK_MEMORY).await, "4096 0\n", "pages, and broken ones");
}

/// Numbers that never end, as bytes.
fn numbers() -> impl Iterator<Item = u8> {
    (0_u64..).flat_map(u64::to_le_bytes)
}

/// A command that says what it is told.
async fn echo(sandbox: &Sandbox) -> (Running, StdinWriter, OutputReader) {
    let mut cat = sandbox.exec(Exec::new(["cat"]).stdin(true)).await.expect("starts");
    let (stdin, stdout) = (cat.stdin.take().expect("piped"), cat.stdout.take().expect("piped"));
    (cat, stdin, stdout)
}

/// Both ways of a vsock that nobody has used before.
async fn check_vsock(sandbox: &Sandbox) {
    const BYTES: usize = 300_000;
    let (cat, mut stdin, mut stdout) = echo(sandbox).await;
    let told: Vec<u8> = numbers().take(BYTES).collect();
    let (mut heard, there) = (Vec::new(), told.clone());
    let say = async move {
        stdin.write_all(&there).await.expect("is taken");
        stdin.shutdown().await.expect("is taken");
    };
    let ((), listened) = tokio::join!(say, stdout.read_to_end(&mut heard));
    listened.expect("answers");
    assert!(heard == told, "{} bytes came back of {BYTES}", heard.len());
    assert!(cat.wait().await.expect("ends").is_success());
}

/// A stream through the guest and back, for as long as it is not told to stop.
struct Stream {
    stop: tokio::sync::watch::Sender<bool>,
    talker: JoinHandle<u64>,
    listener: JoinHandle<u64>,
    cat: Running,
}

impl Stream {
    async fn start(sandbox: &Sandbox) -> Self {
        let (cat, mut stdin, stdout) = echo(sandbox).await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let talker = tokio::spawn(async move {
            let (mut sent, mut numbers) = (0, numbers());
            while !*stopped.borrow() {
                let piece: Vec<u8> = numbers.by_ref().take(10_000).collect();
                stdin.write_all(&piece).await.expect("is taken");
                sent += piece.len() as u64;
            }
            stdin.shutdown().await.expect("is taken");
            sent
        });
        let listener = tokio::spawn(async move {
            let (mut stdout, mut numbers, mut heard) = (BufReader::new(stdout), numbers(), 0);
            loop {
                let bytes = stdout.fill_buf().await.expect("answers");
                let len = bytes.len();
                if len == 0 {
                    return heard;
                }
                assert!(bytes.iter().copied().eq(numbers.by_ref().take(len)), "another byte within {len} from {heard}");
                stdout.consume(len);
                heard += len as u64;
            }
        });
        Self { stop, talker, listener, cat }
    }

    /// Bytes that went there and came back.
    async fn end(self) -> u64 {
        self.stop.send_replace(true);
        let (sent, heard) = (self.talker.await.expect("says all"), self.listener.await.expect("hears all"));
        assert_eq!(sent, heard);
        assert!(self.cat.wait().await.expect("ends").is_success());
        sent
    }
}

/// Forks of a busy sandbox, at moments nobody chose. What is under way in the first one goes on there without a gap.
pub(crate) async fn loaded() {
    let sandbox = small().forkable().start().await.expect("starts");
    let writer = sandbox.exec(Exec::new(["sh", "-c", WRITER]).user("root").replay(4096)).await.expect("starts");
    let keeper = sandbox.exec(Exec::new(["sh", "-c", KEEPER]).replay(4096)).await.expect("starts");
    let stream = Stream::start(&sandbox).await;
    text_of(&sandbox, WRITTEN).await;
    let mut rounds_done = 0;
    for moment in moments(rounds(10, 1), 30) {
        tokio::time::sleep(moment).await;
        let fork = sandbox.fork(1).await.expect("forks").sandboxes.pop().expect("one");
        tokio::join!(check(&fork), check_vsock(&fork));
        fork.kill().await;
        check(&sandbox).await;
        rounds_done += 1;
    }
    let bytes = stream.end().await;
    println!("{bytes} bytes through the guest and back, beside {rounds_done} forks");
    assert!(bytes > 1_000_000, "{bytes}");
    check(&sandbox).await;
    check_vsock(&sandbox).await;
    drop((writer, keeper));
    sandbox.kill().await;
}

/// Templates that are made of a busy sandbox, and what comes of them by way of files and of a resident.
pub(crate) async fn restored() {
    let name = name("restored");
    let warm = format!("sh -c '{WRITER}' & {WRITTEN}; {KEEPER}");
    for _ in 0..rounds(1, 1) {
        let plan = Plan { setup: Some("chmod 777 /opt".to_owned()), warm: Some(warm.clone()), ..Plan::default() };
        Template::create(&name, small(), plan).await.expect("is made");
        let template = Template::open(&name).expect("is there");
        let held = template.hold().await.expect("comes up");
        // What takes a second natively takes a minute in an emulated host.
        let ways = if template.record().place == "emulated" { 2 } else { 3 };
        for way in 0..ways {
            let sandbox = if way == 0 { template.start(Where::Auto, false).await } else { held.fork().await };
            let sandbox = sandbox.expect("starts");
            check(&sandbox).await;
            check_vsock(&sandbox).await;
            // It is at work as before.
            text_of(&sandbox, WRITES_ON).await;
            check(&sandbox).await;
            sandbox.kill().await;
        }
        Template::remove(&name).expect("goes");
    }
}
