// SPDX-License-Identifier: Apache-2.0
//! When output ends: at its end, after a silence, after enough, and not while the client makes it wait.

use std::io::{PipeWriter, Write as _};
use std::os::fd::OwnedFd;

use super::*;
use crate::exec::replay::UNSENT_MIN_BYTES;
use crate::sys::fd::set_nonblocking;

fn output() -> (Output, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    set_nonblocking(&reader).unwrap();
    (Output::new(OutputStream::Stdout, Some(File::from(OwnedFd::from(reader))), 0), writer)
}

fn read(output: &mut Output, is_late: bool) {
    output.read(&mut ReadBuffer::default(), is_late);
}

#[test]
fn a_closed_pipe_is_the_end() {
    let (mut output, mut writer) = output();
    writer.write_all(b"last").unwrap();
    drop(writer);
    read(&mut output, false);
    assert!(!output.is_closed());
    read(&mut output, false);
    assert!(output.is_closed());
    assert_eq!(output.patience(Instant::now(), Instant::now()), None);
}

#[test]
fn nothing_to_read_is_not_the_end() {
    let (mut output, _writer) = output();
    read(&mut output, false);
    assert!(!output.is_closed());
}

#[test]
fn silence_is_counted_from_the_last_byte_but_not_for_ever() {
    let (mut output, mut writer) = output();
    let ended = Instant::now();
    assert_eq!(output.patience(ended, ended), Some(ended + QUIET));
    std::thread::sleep(Duration::from_millis(5));
    writer.write_all(b"x").unwrap();
    read(&mut output, true);
    let until = output.patience(ended, Instant::now()).unwrap();
    assert!(until > ended + QUIET && until <= ended + DRAIN_MAX);
    let long_ago = ended.checked_sub(DRAIN_MAX * 2).unwrap();
    assert!(output.patience(long_ago, ended).unwrap() < ended, "it waits for ever");
}

#[test]
fn output_that_the_client_does_not_take_is_waited_for() {
    let (mut output, mut writer) = output();
    let long_ago = Instant::now().checked_sub(DRAIN_MAX * 2).unwrap();
    while output.replay.room() > 0 {
        writer.write_all(&[0; 4096]).unwrap();
        read(&mut output, true);
    }
    assert_eq!(output.patience(long_ago, Instant::now()), None);
    // Once it takes some, what is still in the pipe has its time again.
    output.replay.advance(10_000);
    let now = Instant::now();
    assert!(output.patience(long_ago, now).unwrap() > now);
}

#[test]
fn a_writer_that_never_stops_is_not_heard_for_ever() {
    let (mut output, mut writer) = output();
    let mut rounds = 0;
    let now = Instant::now();
    while output.patience(now, now).is_none_or(|until| until > now) {
        writer.write_all(&[0; 4096]).unwrap();
        read(&mut output, true);
        output.replay.discard();
        rounds += 1;
    }
    assert_eq!(rounds, DRAIN_MAX_BYTES / 4096 + 1);
}

#[test]
fn a_full_buffer_is_not_polled() {
    let (mut output, mut writer) = output();
    writer.write_all(&[0; 4096]).unwrap();
    let mut watches = [output.watch()];
    crate::sys::fd::wait(&mut watches, Some(Duration::ZERO)).unwrap();
    assert!(watches[0].readable());
    output.replay.push(&[0; UNSENT_MIN_BYTES]);
    let mut watches = [output.watch()];
    crate::sys::fd::wait(&mut watches, Some(Duration::ZERO)).unwrap();
    assert!(!watches[0].readable());
}

#[test]
fn an_abandoned_pipe_can_still_be_written() {
    let (mut output, mut writer) = output();
    output.abandon(false);
    assert!(output.is_closed());
    // More than a pipe holds: somebody takes it.
    writer.write_all(&[0; 300_000]).unwrap();
}

#[test]
fn an_abandoned_terminal_is_hung_up() {
    crate::sys::process::ignore_broken_pipes();
    let (mut output, mut writer) = output();
    output.abandon(true);
    assert_eq!(writer.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}
