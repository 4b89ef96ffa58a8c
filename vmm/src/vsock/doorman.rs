// SPDX-License-Identifier: Apache-2.0
//! How the guest's connections get out of a monitor that can name nothing: it asks a doorman.
//!
//! The monitor has neither paths nor sockets of its own making. For each connection that the guest
//! asks for it sends the port over a SOCK_SEQPACKET socket; whoever holds the other end connects to
//! `<uds>_<port>`, a path that the monitor has no say in, and passes the connected socket back.
//! Answers come in the order of the questions.
//!
//! | datagram | bytes | what |
//! | --- | --- | --- |
//! | question | 4 | port, u32, little-endian |
//! | answer | 4 | 0 with one descriptor: a connected socket that does not block; else an errno, u32, little-endian |

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recv, recvmsg, sendmsg, shutdown, socketpair,
    sockopt,
};

/// Bytes of a question, and of an answer.
const WORD_BYTES: usize = 4;
/// Room for answers that the monitor has not read, as the kernel is asked for it: some 80 answers, and a monitor has at most 64
/// questions under way. Sockets in answers that nobody reads count against all that this user may have under way.
const ANSWERS_MAX_BYTES: usize = 32 << 10;

/// A doorman's line: the monitor's end and the doorman's.
///
/// # Errors
/// When there is no descriptor left.
pub fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (monitors, doormans) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_send_buffer_size(&doormans, ANSWERS_MAX_BYTES)?;
    Ok((monitors, doormans))
}

/// The monitor's end. Nothing here waits.
#[derive(Debug)]
pub struct Doorman {
    socket: OwnedFd,
}

impl Doorman {
    /// Takes over the monitor's end of a line.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Asks for a connection to `port`.
    ///
    /// # Errors
    /// The kernel's: the doorman is gone, or far behind.
    pub fn ask(&self, port: u32) -> io::Result<()> {
        let mut nothing = SendAncillaryBuffer::default();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.socket, &[IoSlice::new(&port.to_le_bytes())], &mut nothing, flags)?;
        Ok(())
    }

    /// Asks nothing more: every later question is an error.
    pub fn hang_up(&self) {
        // Of a line that is gone there is nothing left to close.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// The next answer, if it is there: a socket, or why there is none.
    ///
    /// # Errors
    /// The kernel's, or what the doorman says makes no sense: nothing can be had of it any more.
    pub fn answer(&self) -> io::Result<Option<io::Result<UnixStream>>> {
        let mut word = [0; WORD_BYTES];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut word)], &mut control, flags) {
            Err(error) if error == rustix::io::Errno::AGAIN => return Ok(None),
            got => got?,
        };
        let mut sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let socket = sockets.next().and_then(|mut rights| rights.next());
        if got.bytes != WORD_BYTES || got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match (u32::from_le_bytes(word), socket) {
            (0, Some(socket)) => Ok(Some(Ok(socket.into()))),
            (0, None) => Err(io::ErrorKind::InvalidData.into()),
            (errno, _) => Ok(Some(Err(io::Error::from_raw_os_error(errno.cast_signed())))),
        }
    }
}

impl AsRawFd for Doorman {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The doorman's part: hears one question at its end of the line and answers it with what `connect`
/// makes of the port. `false` when nobody will ask any more, or what was asked is no question.
///
/// # Errors
/// The kernel's; `WouldBlock` where that end does not block and nothing was asked.
pub fn attend(line: &OwnedFd, connect: impl FnOnce(u32) -> io::Result<UnixStream>) -> io::Result<bool> {
    let mut word = [0; WORD_BYTES];
    let (_, len) = recv(line, &mut word[..], RecvFlags::TRUNC)?;
    if len != WORD_BYTES {
        return Ok(false);
    }
    let connected = connect(u32::from_le_bytes(word));
    let errno = match &connected {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs(),
    };
    let sockets: Vec<_> = connected.iter().map(AsFd::as_fd).collect();
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    // There is room for one.
    let _ = sockets.is_empty() || control.push(SendAncillaryMessage::ScmRights(&sockets));
    sendmsg(line, &[IoSlice::new(&errno.to_le_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (Doorman, OwnedFd) {
        let (ours, theirs) = line().unwrap();
        (Doorman::new(ours), theirs)
    }

    #[test]
    fn answers_come_in_the_order_of_the_questions() {
        let (doorman, line) = pair();
        assert!(doorman.answer().unwrap().is_none(), "nothing was asked");
        for port in [1, u32::MAX, 7] {
            doorman.ask(port).unwrap();
        }
        let (mut far, near) = UnixStream::pair().unwrap();
        assert!(attend(&line, |port| Err(io::Error::from_raw_os_error(i32::try_from(port).unwrap()))).unwrap());
        assert!(attend(&line, |port| (port == u32::MAX).then_some(near).ok_or(io::ErrorKind::Other.into())).unwrap());
        assert!(attend(&line, |_| Err(io::ErrorKind::TimedOut.into())).unwrap());
        assert_eq!(doorman.answer().unwrap().unwrap().unwrap_err().raw_os_error(), Some(1));
        let mut socket = doorman.answer().unwrap().unwrap().unwrap();
        socket.write_all(b"x").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(doorman.answer().unwrap().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(doorman.answer().unwrap().is_none());
    }

    #[test]
    fn a_doorman_that_is_gone_or_makes_no_sense_is_an_error() {
        let (doorman, line) = pair();
        rustix::net::send(&line, &[0, 0, 0, 0], SendFlags::NOSIGNAL).unwrap();
        rustix::net::send(&line, &[1, 0, 0], SendFlags::NOSIGNAL).unwrap();
        rustix::net::send(&line, &[1, 0, 0, 0, 0], SendFlags::NOSIGNAL).unwrap();
        for what in ["success without a socket", "too short", "too long"] {
            assert_eq!(doorman.answer().unwrap_err().kind(), io::ErrorKind::InvalidData, "{what}");
        }
        drop(line);
        assert!(doorman.answer().is_err());
        assert!(doorman.ask(1).is_err());
    }

    #[test]
    fn what_is_no_question_ends_the_service() {
        for bytes in [&[1, 2, 3][..], &[1, 2, 3, 4, 5], &[0; 4096]] {
            let (doorman, line) = pair();
            rustix::net::send(&doorman.socket, bytes, SendFlags::NOSIGNAL).unwrap();
            assert!(!attend(&line, |_| panic!("it names no port")).unwrap(), "{} bytes", bytes.len());
        }
        let (doorman, line) = pair();
        drop(doorman);
        assert!(!attend(&line, |_| panic!("nobody asks")).unwrap());
    }
}
