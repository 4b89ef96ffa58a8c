// SPDX-License-Identifier: Apache-2.0
//! Our standard input on its way to the command: a thread that reads ahead by one piece at most.
//!
//! It can be stopped while it waits, so that what a person types after the command's end is left for whoever
//! asks next.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::stdio;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use midge::exec::StdinWriter;

const PIECE_BYTES: usize = 64 << 10;
/// How often a background job looks whether it has been put into the foreground.
const FOREGROUND_CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// How long the thread may take to notice that it is to stop.
const STOP: Duration = Duration::from_secs(1);

/// Reads standard input until dropped.
#[derive(Debug)]
pub(super) struct Input {
    stop: OwnedFd,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    pieces: mpsc::Receiver<Vec<u8>>,
}

impl Input {
    /// Starts reading.
    pub(super) fn start() -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let (sender, pieces) = mpsc::channel(1);
        let (running, ended) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let _until_the_end = running;
            read(&stopped, &sender);
        })?;
        Ok(Self { stop, ended, pieces })
    }

    /// Copies everything to the command, to the end of either.
    pub(super) async fn copy_to(&mut self, mut writer: StdinWriter) {
        while let Some(piece) = self.pieces.recv().await {
            if writer.write_all(&piece).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.pieces.close();
        if rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).is_ok() {
            // It waits for nothing now, unless another reader of the same input has just taken what was there.
            let _ = self.ended.recv_timeout(STOP);
        }
    }
}

fn read(stop: &OwnedFd, sender: &mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; PIECE_BYTES];
    while is_ready(stop) {
        let got = match rustix::io::read(stdio::stdin(), &mut buffer[..]) {
            Ok(0) | Err(rustix::io::Errno::BADF) => return,
            Ok(got) => got,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
            Err(error) => {
                tracing::debug!(%error, "reading standard input");
                return;
            }
        };
        if sender.blocking_send(buffer[..got].to_vec()).is_err() {
            return;
        }
    }
}

/// Waits for input; false when it is time to stop.
fn is_ready(stop: &OwnedFd) -> bool {
    loop {
        // A background job that reads its terminal would be halted; a command that is never typed at must not be.
        let foreground = is_foreground();
        let timeout = if foreground { None } else { Some(&FOREGROUND_CHECK) };
        let stdin = stdio::stdin();
        let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        let watched = if foreground { &mut fds[..] } else { &mut fds[..1] };
        match poll(watched, timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
        if !fds[0].revents().is_empty() {
            return false;
        }
        if foreground && !fds[1].revents().is_empty() {
            return true;
        }
    }
}

/// Whether reading standard input is ours to do: it is no terminal, or we are its foreground job.
fn is_foreground() -> bool {
    match rustix::termios::tcgetpgrp(stdio::stdin().as_fd()) {
        Ok(foreground) => foreground == rustix::process::getpgrp(),
        Err(_) => true,
    }
}
