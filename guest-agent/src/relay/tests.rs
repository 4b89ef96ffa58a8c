// SPDX-License-Identifier: Apache-2.0

use std::thread;
use std::time::Duration;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A relay between two programs: one in the guest, one behind the door.
fn related() -> (UnixStream, UnixStream, thread::JoinHandle<io::Result<()>>) {
    let ((program, inside), (outside, host)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let relay = thread::spawn(move || relay(&inside, &outside, Vec::new()));
    (patient(program), patient(host), relay)
}

#[test]
fn bytes_pass_both_ways_and_each_end_by_itself() {
    let (mut program, mut host, relay) = related();
    let question: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (asked, expected) = (question.clone(), question.len());
    let asking = thread::spawn(move || {
        program.write_all(&asked).unwrap();
        program.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        program.read_to_end(&mut answer).unwrap();
        answer
    });
    let mut heard = Vec::new();
    host.read_to_end(&mut heard).unwrap();
    assert_eq!((heard.len(), heard == question), (expected, true));
    // The other direction goes on after the first has ended.
    host.write_all(b"answer").unwrap();
    drop(host);
    assert_eq!(asking.join().unwrap(), b"answer");
    relay.join().unwrap().unwrap();
}

#[test]
fn who_does_not_read_holds_up_one_buffer_and_no_more() {
    let (program, mut host, relay) = related();
    host.set_nonblocking(true).unwrap();
    let mut sent = 0;
    for _ in 0..100 {
        match host.write(&[7; 64 * 1024]) {
            Ok(len) => sent += len,
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    // Two socket buffers and ours.
    assert!(sent < 2 * 1024 * 1024, "{sent}");
    drop((program, host));
    relay.join().unwrap().unwrap_or_default();
}

#[test]
fn relay_ends_when_either_side_is_gone() {
    for program_leaves in [true, false] {
        let (mut program, mut host, relay) = related();
        program.write_all(b"x").unwrap();
        host.read_exact(&mut [0]).unwrap();
        let stays = if program_leaves {
            drop(program);
            host
        } else {
            drop(host);
            program
        };
        let mut rest = Vec::new();
        let mut reader = stays.try_clone().unwrap();
        assert_eq!(reader.read_to_end(&mut rest).unwrap_or(0), 0);
        drop((reader, stays));
        // An error of a direction that broke is as good.
        let _ = relay.join().unwrap();
    }
}

#[test]
fn what_was_read_ahead_goes_first() {
    let ((mut program, inside), (outside, mut host)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let relay = thread::spawn(move || relay(&inside, &outside, vec![7; BUFFER_BYTES + 1]));
    host.write_all(b"later").unwrap();
    drop(host);
    let mut all = Vec::new();
    patient(program.try_clone().unwrap()).read_to_end(&mut all).unwrap();
    assert!(all.len() == BUFFER_BYTES + 1 + 5 && all.ends_with(b"\x07later"), "{}", all.len());
    program.write_all(b"x").unwrap_or_default();
    drop(program);
    let _ = relay.join().unwrap();
}
