// SPDX-License-Identifier: Apache-2.0
//! The guest's side of the benches of devices: the first process of a guest whose initramfs was made for them, `midge`
//! once more. It moves bytes over vsock and reads its disk, as it is told: over vsock, or a serial port where there is none.
//! No agent has any of this.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::emulated::outpost::system;

/// Says that this initramfs was made for these benches.
pub(super) const MARK: &str = "/bench/guest";
/// Where the host gives orders.
pub(super) const ORDERS_PORT: u32 = 1100;
/// Where it opens the stream on which bytes are moved.
pub(super) const BYTES_PORT: u32 = 1101;
/// The variable that names the serial port where orders come if there is no vsock.
pub(super) const ORDERS_VARIABLE: &str = "MIDGE_BENCH_ORDERS";
/// What is written to a stream, and read from it, in one call.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// The host, for every guest.
const HOST_CID: u32 = 2;
const DISK: &str = "/dev/vda";
/// What direct reads of a disk are aligned to.
const ALIGN_BYTES: usize = 4096;

/// What the guest is to do, a line of JSON; it answers with an empty line when it is done, and with one when it is ready for
/// its first order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Write so many bytes to the stream.
    Send { bytes: u64 },
    /// Read so many bytes from the stream.
    Receive { bytes: u64 },
    /// Send back each of so many bytes on the stream.
    Echo { count: u32 },
    /// Read so many pieces of the disk, one after the other, past the page cache.
    Read { count: u64, bytes: usize, is_random: bool },
}

/// Whether this process was started as the first of such a guest: then nothing but [`main`] makes sense.
#[must_use]
pub fn is_called() -> bool {
    std::process::id() == 1 && Path::new(MARK).exists()
}

/// Does what it is told; returns never.
pub fn main() -> ! {
    if let Err(error) = serve() {
        // Where the guest has no console, the host sees that the stream ends.
        system::say(&format!("the bench's guest: {error}"));
    }
    system::power_off()
}

fn connect(port: u32) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.connect(&SockAddr::vsock(HOST_CID, port))?;
    // Its methods work on any stream socket.
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

fn serve() -> io::Result<()> {
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None)?;
    if let Some(path) = std::env::var_os(ORDERS_VARIABLE) {
        let port = serial(Path::new(&path))?;
        return obey_all(BufReader::new(port.try_clone()?), port, None);
    }
    let answers = connect(ORDERS_PORT)?;
    let stream = connect(BYTES_PORT)?;
    obey_all(BufReader::new(answers.try_clone()?), answers, Some(stream))
}

/// A serial port that changes no byte and sends none back.
fn serial(path: &Path) -> io::Result<File> {
    let port = OpenOptions::new().read(true).write(true).open(path)?;
    let mut settings = tcgetattr(&port)?;
    settings.make_raw();
    tcsetattr(&port, OptionalActions::Now, &settings)?;
    Ok(port)
}

fn obey_all(orders: impl BufRead, mut answers: impl Write, mut stream: Option<UnixStream>) -> io::Result<()> {
    answers.write_all(b"\n")?;
    for line in orders.lines() {
        obey(serde_json::from_str(&line?)?, stream.as_mut())?;
        answers.write_all(b"\n")?;
    }
    Ok(())
}

fn obey(order: Order, stream: Option<&mut UnixStream>) -> io::Result<()> {
    let moved = || stream.ok_or_else(|| io::Error::other("there is no stream to move bytes on"));
    match order {
        Order::Send { bytes } => send(moved()?, bytes),
        Order::Receive { bytes } => receive(moved()?, bytes),
        Order::Echo { count } => echo(moved()?, count),
        Order::Read { count, bytes, is_random } => {
            let direct = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
            let disk = OpenOptions::new().read(true).custom_flags(direct).open(DISK)?;
            read_disk(disk, count, bytes, is_random)
        }
    }
}

fn echo(stream: &mut UnixStream, count: u32) -> io::Result<()> {
    let mut byte = [0];
    for _ in 0..count {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Writes so many bytes in pieces of [`CHUNK_BYTES`].
pub(super) fn send(to: &mut impl Write, mut bytes: u64) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK_BYTES];
    while bytes > 0 {
        let len = usize::try_from(bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        to.write_all(&chunk[..len])?;
        bytes -= len as u64;
    }
    Ok(())
}

/// Reads so many bytes.
pub(super) fn receive(from: &mut impl Read, mut bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    while bytes > 0 {
        let len = usize::try_from(bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        match from.read(&mut chunk[..len])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => bytes -= got as u64,
        }
    }
    Ok(())
}

fn read_disk(mut disk: File, count: u64, bytes: usize, is_random: bool) -> io::Result<()> {
    let pieces = disk.seek(SeekFrom::End(0))? / bytes as u64;
    if pieces == 0 {
        return Err(io::Error::other("the disk is smaller than one piece"));
    }
    let mut room = vec![0; bytes + ALIGN_BYTES];
    let start = room.as_ptr().align_offset(ALIGN_BYTES);
    let buffer = &mut room[start..start + bytes];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for index in 0..count {
        let piece = if is_random { random.next() } else { index } % pieces;
        disk.read_exact_at(buffer, piece * bytes as u64)?;
    }
    Ok(())
}

/// The same places in every guest (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_bytes_as_were_asked_for_are_moved() {
        for bytes in [0, 1, CHUNK_BYTES as u64, CHUNK_BYTES as u64 * 3 + 1] {
            let mut moved = Vec::new();
            send(&mut moved, bytes).unwrap();
            assert_eq!(moved.len() as u64, bytes);
            receive(&mut moved.as_slice(), bytes).unwrap();
            assert!(receive(&mut moved.as_slice(), bytes + 1).is_err());
        }
    }

    #[test]
    fn reads_stay_within_the_disk() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 * 4096 + 5).unwrap();
        for is_random in [true, false] {
            read_disk(file.try_clone().unwrap(), 50, 4096, is_random).unwrap();
        }
        assert!(read_disk(file, 1, 1 << 20, false).unwrap_err().to_string().contains("smaller"));
    }

    #[test]
    fn guest_says_that_it_is_ready_and_when_it_is_done_and_ends_with_its_orders() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"ab").unwrap();
        let mut said = Vec::new();
        obey_all(&b"{\"echo\":{\"count\":2}}\n"[..], &mut said, Some(near)).unwrap();
        let mut echoed = String::new();
        far.read_to_string(&mut echoed).unwrap();
        assert_eq!((said.as_slice(), echoed.as_str()), (&b"\n\n"[..], "ab"));
        let without = obey_all(&b"{\"send\":{\"bytes\":2}}\n"[..], &mut said, None).unwrap_err();
        assert!(without.to_string().contains("no stream"));
    }

    #[test]
    fn orders_are_lines_of_json() {
        let order = Order::Read { count: 3, bytes: 4096, is_random: true };
        let line = serde_json::to_string(&order).unwrap();
        assert_eq!(line, r#"{"read":{"count":3,"bytes":4096,"is_random":true}}"#);
        assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
    }
}
