// SPDX-License-Identifier: Apache-2.0
//! `midge bench vsock` and `block`: what the two devices move, beside those of others, each guest alive all the time and
//! asked in turn. The guest's side is [`guest`](super::guest), the same for all; the clock is the host's.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::greeting::{accept, listen, since_us};
use super::guest::{self, BYTES_PORT, CHUNK_BYTES, MARK, ORDERS_PORT, Order};
use super::launch::{Payload, Started, prepare};
use super::{Aim, BenchError, BootOptions, Contender, Report, Series, Unit, check_runs};
use crate::initramfs::{self, InitramfsError};

/// What one round moves each way.
const STREAM_BYTES: u64 = 64 << 20;
/// Round trips of one round.
const ECHO_COUNT: u32 = 200;
/// The byte of round trips; none of those that streams are made of.
const ECHOED: u8 = 1;
/// How long a guest may say nothing about what it sent.
const SILENCE_MAX: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// Random reads of one round, and their size.
const RANDOM_COUNT: u64 = 2000;
const RANDOM_BYTES: usize = 4 << 10;
/// Reads one after the other of one round, and their size.
const ROW_COUNT: u64 = 128;
const ROW_BYTES: usize = 1 << 20;
/// Size of the disk that is read.
const DISK_BYTES: u64 = 256 << 20;

/// Writes the initramfs of the guests of these benches into `dir`, with the program `midge`.
///
/// # Errors
/// As for [`initramfs::pack`].
pub fn device_initramfs(midge: &Path, dir: &Path) -> Result<PathBuf, InitramfsError> {
    let into = dir.join("devices.cpio");
    let mark = dir.join("mark");
    let io = |source| InitramfsError::Io { doing: "writing", path: mark.clone(), source };
    std::fs::write(&mark, "the guest of a bench\n").map_err(io)?;
    initramfs::pack(&[("/init".into(), midge.to_owned()), (MARK.into(), mark)], &into)?;
    Ok(into)
}

/// A guest that takes orders.
struct Peer {
    started: Started,
    orders: BufReader<UnixStream>,
    /// Where bytes are moved; none in a guest without vsock.
    stream: Option<UnixStream>,
    told: Option<Order>,
    /// Bytes of the guest's that it never sent.
    surplus: u64,
    _dir: tempfile::TempDir,
}

impl Peer {
    fn boot(contender: &Contender, payload: &Payload) -> Result<Self, BenchError> {
        let who = contender.name();
        let dir = tempfile::Builder::new().prefix("midge-bench-").tempdir().map_err(prepare(who))?;
        let uds = dir.path().join("v.sock");
        let (orders, bytes) = (listen(&uds, ORDERS_PORT), listen(&uds, BYTES_PORT));
        let (orders, bytes) = (orders.map_err(prepare(who))?, bytes.map_err(prepare(who))?);
        let mut started = Started::contender(contender, dir.path(), payload)?;
        let listeners = if contender.has_vsock() { vec![orders, bytes] } else { vec![orders] };
        let mut streams = Vec::new();
        for listener in listeners {
            let Some(stream) = accept(&listener, || started.is_late()).map_err(prepare(who))? else {
                return Err(started.late());
            };
            stream.set_read_timeout(Some(payload.limit)).map_err(prepare(who))?;
            streams.push(stream);
        }
        let mut streams = streams.into_iter();
        let Some(orders) = streams.next() else { return Err(started.late()) };
        let (orders, stream) = (BufReader::new(orders), streams.next());
        let mut peer = Self { started, orders, stream, told: None, surplus: 0, _dir: dir };
        peer.done()?;
        Ok(peer)
    }

    fn stream(&mut self) -> Result<&mut UnixStream, BenchError> {
        let failed = self.failed("moving bytes without vsock");
        self.stream.as_mut().ok_or_else(|| failed(std::io::ErrorKind::NotConnected.into()))
    }

    fn failed(&self, what: &str) -> impl Fn(std::io::Error) -> BenchError + use<> {
        let (contender, what) = (self.started.who, what.to_owned());
        move |error| BenchError::Guest { contender, text: format!("{what}: {error}") }
    }

    fn order(&mut self, order: Order) -> Result<(), BenchError> {
        let failed = self.failed("giving an order");
        self.told = Some(order);
        let line = serde_json::to_string(&order).map_err(|error| failed(error.into()))?;
        self.orders.get_mut().write_all(format!("{line}\n").as_bytes()).map_err(failed)
    }

    /// Waits until the guest has done what it was told.
    fn done(&mut self) -> Result<(), BenchError> {
        let mut line = String::new();
        let failed = self.failed(&format!("waiting until the guest has done {:?}", self.told));
        let got = self.orders.read_line(&mut line).map_err(&failed)?;
        if got > 0 { Ok(()) } else { Err(failed(std::io::ErrorKind::UnexpectedEof.into())) }
    }

    /// KiB per second from the guest.
    fn sent_by_guest(&mut self) -> Result<u64, BenchError> {
        let start = Instant::now();
        self.order(Order::Send { bytes: STREAM_BYTES })?;
        guest::receive(self.stream()?, STREAM_BYTES).map_err(self.failed("reading from the guest"))?;
        let took = since_us(start);
        let failed = self.failed("reading what else comes from the guest");
        if let Some(stream) = &mut self.stream {
            self.surplus += drain(stream, self.orders.get_ref()).map_err(failed)?;
        }
        self.done()?;
        Ok(kib_per_s(STREAM_BYTES, took))
    }

    /// KiB per second to the guest.
    fn taken_by_guest(&mut self) -> Result<u64, BenchError> {
        self.order(Order::Receive { bytes: STREAM_BYTES })?;
        let start = Instant::now();
        guest::send(self.stream()?, STREAM_BYTES).map_err(self.failed("writing to the guest"))?;
        self.done()?;
        Ok(kib_per_s(STREAM_BYTES, since_us(start)))
    }

    /// Microseconds of round trips of a byte.
    fn round_trips(&mut self) -> Result<Vec<u64>, BenchError> {
        self.order(Order::Echo { count: ECHO_COUNT })?;
        let (mut byte, mut all) = ([0], Vec::new());
        for _ in 0..ECHO_COUNT {
            let stream = self.stream()?;
            let start = Instant::now();
            let echoed = stream.write_all(&[ECHOED]).and_then(|()| stream.read_exact(&mut byte));
            echoed.map_err(self.failed("sending a byte there and back"))?;
            if byte != [ECHOED] {
                return Err(self.failed("sending a byte there and back")(std::io::ErrorKind::InvalidData.into()));
            }
            all.push(since_us(start));
        }
        self.done()?;
        Ok(all)
    }

    /// Microseconds of so many reads of the disk.
    fn reads(&mut self, count: u64, bytes: usize, is_random: bool) -> Result<u64, BenchError> {
        let start = Instant::now();
        self.order(Order::Read { count, bytes, is_random })?;
        self.done()?;
        Ok(since_us(start).max(1))
    }
}

/// Bytes that arrive though the guest never sent them, until it says that it has sent all. A monitor that repeats some would
/// have its guest wait for ever otherwise, and spoil what comes next.
fn drain(stream: &mut UnixStream, orders: &UnixStream) -> std::io::Result<u64> {
    let (mut surplus, mut chunk) = (0, [0; 4096]);
    loop {
        let mut fds = [&*stream, orders].map(|stream| PollFd::new(stream, PollFlags::IN));
        poll(&mut fds, Some(&SILENCE_MAX))?;
        let [speaks, is_done] = fds.map(|fd| !fd.revents().is_empty());
        if !speaks {
            return if is_done { Ok(surplus) } else { Err(std::io::ErrorKind::TimedOut.into()) };
        }
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            got => surplus += got as u64,
        }
    }
}

fn kib_per_s(bytes: u64, us: u64) -> u64 {
    (bytes >> 10).saturating_mul(1_000_000) / us.max(1)
}

/// Ours and the others, booted, with the name of each.
fn boot_all(options: &BootOptions, disk: Option<PathBuf>) -> Result<Vec<Peer>, BenchError> {
    check_runs(options.runs)?;
    let payload = Payload { disk, ..options.payload() };
    options.contenders().iter().map(|contender| Peer::boot(contender, &payload)).collect()
}

/// Asks every peer in turn, `options.runs` rounds and one that is not counted; gives what `ask` found, by peer.
fn rounds<T>(
    options: &BootOptions,
    peers: &mut [Peer],
    progress: &mut dyn FnMut(u32, u32),
    mut ask: impl FnMut(&mut Peer) -> Result<T, BenchError>,
) -> Result<Vec<Vec<T>>, BenchError> {
    let mut all: Vec<Vec<T>> = peers.iter().map(|_| Vec::new()).collect();
    for round in 0..=options.runs {
        for turn in 0..peers.len() {
            let index = (turn + round as usize) % peers.len();
            let found = ask(&mut peers[index])?;
            if round > 0 {
                all[index].push(found);
            }
        }
        progress(round + 1, options.runs + 1);
    }
    Ok(all)
}

fn begin(bench: &str, what: &str, options: &BootOptions) -> Report {
    let title = format!("{bench}: {what}, {} rounds in turn, {} MiB, one vCPU", options.runs, options.mem_mib);
    Report::begin(bench, &title)
        .option("runs", options.runs)
        .option("mem_mib", options.mem_mib)
        .option("kernel", options.kernel.display())
        .event("guest", "the same program in every guest; the clock is the host's")
}

/// Every quantity of ours over that of each other: at least the same where more is better.
fn compare(report: &mut Report, peers: &[Peer], whats: &[(&str, Aim)]) {
    for other in peers.iter().skip(1) {
        for (what, aim) in whats {
            report.ratio(("midge", what), (other.started.who, what), Some(*aim));
        }
    }
}

/// Runs the bench of vsock; `progress` is told (rounds done, rounds in all).
///
/// # Errors
/// The first thing that fails ends it.
pub fn vsock(options: &BootOptions, progress: &mut dyn FnMut(u32, u32)) -> Result<Report, BenchError> {
    let what = format!(
        "{} MiB each way in writes of {} KiB, then a byte there and back",
        STREAM_BYTES >> 20,
        CHUNK_BYTES >> 10
    );
    let mut report = begin("vsock", &what, options)
        .event("from_guest", "from the order until the host has read all of it")
        .event("to_guest", "from the host's first write until the guest says that it has read all of it")
        .event("surplus", "bytes that reached the host from the guest though it had not sent them, in all rounds")
        .event("round_trip", "from the host's write of a byte until it has read it back");
    let mut peers = boot_all(options, None)?;
    let all = rounds(options, &mut peers, progress, |peer| {
        Ok((peer.sent_by_guest()?, peer.taken_by_guest()?, peer.round_trips()?))
    })?;
    for (peer, found) in peers.iter().zip(all) {
        let who = peer.started.who;
        report.add(Series::new(who, "from_guest", Unit::KibPerS, found.iter().map(|found| found.0)));
        report.add(Series::new(who, "to_guest", Unit::KibPerS, found.iter().map(|found| found.1)));
        report.add(Series::new(who, "surplus", Unit::Count, [peer.surplus]));
        report.add(Series::new(who, "round_trip", Unit::Us, found.into_iter().flat_map(|found| found.2)));
    }
    let (more, less) = (Aim::AtLeast(1.0), Aim::AtMost(1.0));
    compare(&mut report, &peers, &[("from_guest", more), ("to_guest", more), ("round_trip", less)]);
    Ok(report)
}

/// Runs the bench of block devices; `progress` is told (rounds done, rounds in all).
///
/// # Errors
/// The first thing that fails ends it.
pub fn block(options: &BootOptions, progress: &mut dyn FnMut(u32, u32)) -> Result<Report, BenchError> {
    let mut report = begin("block", "direct reads of a disk whose file is in the host's page cache", options)
        .event(
            "random",
            "reads of 4 KiB at random places, one at a time, from the order to the guest's word that it is done",
        )
        .event("sequential", "reads of 1 MiB one after the other, measured likewise")
        .event("qemu-microvm", "has no vsock: its guest takes orders, some 60 bytes each, on a serial port");
    let failed = prepare("every contender");
    let dir = tempfile::Builder::new().prefix("midge-bench-").tempdir().map_err(&failed)?;
    let disk = dir.path().join("disk");
    std::fs::File::create(&disk).and_then(|mut file| guest::send(&mut file, DISK_BYTES)).map_err(failed)?;
    let mut peers = boot_all(options, Some(disk))?;
    let all = rounds(options, &mut peers, progress, |peer| {
        let random_us = peer.reads(RANDOM_COUNT, RANDOM_BYTES, true)?;
        let row_us = peer.reads(ROW_COUNT, ROW_BYTES, false)?;
        Ok((RANDOM_COUNT * 1_000_000 / random_us, kib_per_s(ROW_COUNT * ROW_BYTES as u64, row_us)))
    })?;
    for (peer, found) in peers.iter().zip(all) {
        report.add(Series::new(peer.started.who, "random", Unit::PerS, found.iter().map(|found| found.0)));
        report.add(Series::new(peer.started.who, "sequential", Unit::KibPerS, found.iter().map(|found| found.1)));
    }
    compare(&mut report, &peers, &[("random", Aim::AtLeast(1.0)), ("sequential", Aim::AtLeast(1.0))]);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initramfs_has_the_program_and_the_mark() {
        let dir = tempfile::tempdir().unwrap();
        let midge = dir.path().join("midge");
        std::fs::write(&midge, "the program").unwrap();
        let bytes = std::fs::read(device_initramfs(&midge, dir.path()).unwrap()).unwrap();
        for part in ["init\0", "bench/guest\0", "the program"] {
            assert!(bytes.windows(part.len()).any(|window| window == part.as_bytes()), "{part}");
        }
    }

    #[test]
    fn bytes_that_nobody_sent_are_counted_until_the_guest_is_done() {
        let ((mut near, mut far), (orders, mut guest)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        far.write_all(&[0; 5000]).unwrap();
        guest.write_all(b"\n").unwrap();
        assert_eq!(drain(&mut near, &orders).unwrap(), 5000);
        assert_eq!(drain(&mut near, &orders).unwrap(), 0);
        drop(far);
        assert!(drain(&mut near, &orders).is_err());
    }

    #[test]
    fn rates_are_of_kib_and_seconds() {
        assert_eq!(kib_per_s(64 << 20, 500_000), 128 << 10);
        assert_eq!(kib_per_s(1 << 10, 0), 1_000_000);
    }
}
