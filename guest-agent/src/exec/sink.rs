// SPDX-License-Identifier: Apache-2.0
//! Pipes that background processes still hold after their command has ended: read and thrown away, so that a server
//! which a command left running is not killed by its next line of output.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use crate::sys::fd::{Bell, Watch, wait};

/// Pipes that are held at most; one more is closed instead.
const PIPES_MAX: usize = 256;
/// Stack of the thread, in bytes.
const STACK_BYTES: usize = 64 * 1024;
/// Bytes thrown away at once.
const READ_BYTES: usize = 4096;

struct Sink {
    bell: Bell,
    arrived: Mutex<Vec<File>>,
}

/// Takes over a pipe, whose reads do not wait.
pub(crate) fn take(pipe: File) {
    static SINK: OnceLock<Option<Sink>> = OnceLock::new();
    static THREAD: OnceLock<bool> = OnceLock::new();
    let sink = SINK.get_or_init(|| Some(Sink { bell: Bell::new().ok()?, arrived: Mutex::default() }));
    let Some(sink) = sink else { return };
    let builder = thread::Builder::new().name("sink".into()).stack_size(STACK_BYTES);
    if *THREAD.get_or_init(|| builder.spawn(|| sink.run()).is_ok()) {
        sink.arrived.lock().unwrap_or_else(PoisonError::into_inner).push(pipe);
        sink.bell.ring();
    }
}

impl Sink {
    fn run(&self) {
        let mut pipes: Vec<File> = Vec::new();
        loop {
            let mut watches = vec![Watch::new(&self.bell, true, false)];
            watches.extend(pipes.iter().map(|pipe| Watch::new(pipe, true, false)));
            if wait(&mut watches, None).is_err() {
                pipes.clear();
                continue;
            }
            let mut ready = watches.iter().skip(1);
            pipes.retain_mut(|pipe| !ready.next().is_some_and(|watch| watch.readable()) || still_open(pipe));
            self.bell.silence();
            pipes.append(&mut self.arrived.lock().unwrap_or_else(PoisonError::into_inner));
            pipes.truncate(PIPES_MAX);
        }
    }
}

fn still_open(pipe: &mut File) -> bool {
    match pipe.read(&mut [0; READ_BYTES]) {
        Ok(len) => len > 0,
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}
