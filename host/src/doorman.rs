// SPDX-License-Identifier: Apache-2.0
//! Lets the guest of a fork out: connects sockets for a monitor that can name none.
//!
//! A monitor that is started has a keeper of its own for this; a fork is made by a process in a jail, so its host does it.
//! What is asked for is four bytes, a port, and what it is answered with is a connection to one path with that port behind
//! it: nothing else can be had here. The monitor's side, with the table of bytes: `vmm/src/vsock/doorman.rs`.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
    sendmsg, socketpair, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::orders::watched;

/// Bytes of a question, and of an answer.
const WORD_BYTES: usize = 4;
/// Room for answers that the monitor has not read, as the kernel is asked for it: some 80 answers, and a monitor has at most 64
/// questions under way. Sockets in answers that nobody reads count against all that this user may have under way.
const ANSWERS_MAX_BYTES: usize = 32 << 10;

/// Serves a monitor, whose end of the line is returned, until that is closed: its guest's connections go to `uds` with
/// `_<port>` behind it.
///
/// # Errors
/// When there is no descriptor left.
pub(crate) fn attend(uds: PathBuf) -> io::Result<OwnedFd> {
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&near, true)?;
    sockopt::set_socket_send_buffer_size(&near, ANSWERS_MAX_BYTES)?;
    let line = watched(near, Interest::READABLE | Interest::WRITABLE)?;
    tokio::spawn(async move {
        // The end, or a monitor that makes no sense: it gets no more sockets.
        while let Ok(true) = answer(&line, &uds).await {}
    });
    Ok(far)
}

/// Hears and answers one question; `false` when there will be no other.
async fn answer(line: &AsyncFd<OwnedFd>, uds: &Path) -> io::Result<bool> {
    let mut word = [0; WORD_BYTES];
    let hear = |socket: &OwnedFd| Ok(recv(socket, &mut word[..], RecvFlags::TRUNC)?.1);
    if line.async_io(Interest::READABLE, hear).await? != WORD_BYTES {
        return Ok(false);
    }
    let connected = connect(uds, u32::from_le_bytes(word)).await;
    let errno = match &connected {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs(),
    };
    let say = |socket: &OwnedFd| {
        let sockets: Vec<_> = connected.iter().map(AsFd::as_fd).collect();
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        // There is room for one.
        let _ = sockets.is_empty() || control.push(SendAncillaryMessage::ScmRights(&sockets));
        Ok(sendmsg(socket, &[IoSlice::new(&errno.to_le_bytes())], &mut control, SendFlags::NOSIGNAL).map(drop)?)
    };
    line.async_io(Interest::WRITABLE, say).await?;
    Ok(true)
}

/// A socket that does not block, as the monitor expects it.
async fn connect(uds: &Path, port: u32) -> io::Result<std::os::unix::net::UnixStream> {
    let mut path = OsString::from(uds);
    path.push(format!("_{port}"));
    UnixStream::connect(PathBuf::from(path)).await?.into_std()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, recvmsg, send};
    use std::io::{IoSliceMut, Read, Write};

    /// Asks as a monitor does; blocks.
    fn ask(line: &OwnedFd, question: &[u8]) -> Option<(u32, Option<std::os::unix::net::UnixStream>)> {
        send(line, question, SendFlags::NOSIGNAL).ok()?;
        let mut word = [0; 4];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let got = recvmsg(line, &mut [IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
        let socket = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        (got.bytes == 4).then(|| (u32::from_le_bytes(word), socket.map(Into::into)))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_port_is_a_path_and_nothing_else_can_be_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let uds = dir.path().join("v.sock");
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("v.sock_7")).unwrap();
        let line = attend(uds.clone()).unwrap();
        let (errno, socket) = ask(&line, &7_u32.to_le_bytes()).unwrap();
        assert_eq!(errno, 0);
        let mut socket = socket.unwrap();
        assert_eq!(socket.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "it does not block");
        socket.write_all(b"x").unwrap();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(ask(&line, &8_u32.to_le_bytes()).unwrap().0, libc::ENOENT.unsigned_abs());
        drop(listener);
        assert_eq!(ask(&line, &7_u32.to_le_bytes()).unwrap().0, libc::ECONNREFUSED.unsigned_abs());
        assert!(ask(&line, b"/etc/passwd").is_none(), "who makes no sense is not served on");
        assert!(ask(&line, &7_u32.to_le_bytes()).is_none());
    }

    /// Asks until nothing more fits; gives how many questions did.
    fn flood(line: &OwnedFd, port: u32) -> usize {
        let mut count = 0;
        let mut refused = 0;
        // What fits grows while questions are answered.
        while refused < 20 && count < 100_000 {
            match send(line, &port.to_le_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(_) => count += 1,
                Err(_) => {
                    refused += 1;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
        count
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_asks_without_end_and_hears_nothing_holds_a_few_sockets_and_is_served_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let uds = dir.path().join("v.sock");
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("v.sock_7")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let line = attend(uds).unwrap();
        let asked = flood(&line, 7);
        let connected = std::iter::from_fn(|| listener.accept().ok()).count();
        assert!((1..=100).contains(&connected), "{connected} connections for {asked} questions");
        assert!(asked < 10_000, "{asked} questions wait");
        // Another is served meanwhile, and the first one as soon as it listens.
        let other = attend(dir.path().join("v.sock")).unwrap();
        assert_eq!(ask(&other, &7_u32.to_le_bytes()).unwrap().0, 0);
        let mut word = [0; 4];
        for answer in 0..asked {
            assert_eq!(recv(&line, &mut word[..], RecvFlags::empty()).unwrap().0, 4, "{answer} of {asked}");
        }
        assert_eq!(ask(&line, &7_u32.to_le_bytes()).unwrap().0, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn descriptors_that_come_with_a_question_are_not_let_in() {
        let dir = tempfile::tempdir().unwrap();
        let line = attend(dir.path().join("v.sock")).unwrap();
        let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = count();
        for _ in 0..50 {
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = SendAncillaryBuffer::new(&mut room);
            let many = [line.as_fd(); 16];
            assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
            let question = 7_u32.to_le_bytes();
            sendmsg(&line, &[IoSlice::new(&question)], &mut control, SendFlags::NOSIGNAL).unwrap();
            let mut word = [0; 4];
            assert_eq!(recv(&line, &mut word[..], RecvFlags::empty()).unwrap().0, 4);
            assert_eq!(u32::from_le_bytes(word), libc::ENOENT.unsigned_abs());
        }
        let after = count();
        // Other tests open and close some meanwhile.
        assert!(after < before + 50, "{before} descriptors before, {after} after 800 that were sent");
    }
}
