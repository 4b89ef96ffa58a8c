// SPDX-License-Identifier: Apache-2.0
use std::io::{Read, Write};

use super::super::rig::{is_at_end, pattern, read_now};
use super::*;
use crate::virtio::Chain;
use crate::virtio::fake::{BORDER, FakeDriver, Part, ram_with_hole};

fn stream() -> (HostStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (HostStream::new(ours), theirs)
}

/// A chain whose bytes cross a border of memory regions.
fn chain(bytes: &[u8]) -> (FakeDriver, Chain) {
    let ram = ram_with_hole();
    let mut driver = FakeDriver::new(&ram, BORDER - 0x2000, 16);
    driver.alloc(0xf00);
    driver.offer(&[Part::Give(bytes)]);
    let chain = driver.queue(1 << 32).pop().unwrap().unwrap();
    (driver, chain)
}

#[test]
fn bytes_go_straight_through_while_there_is_room() {
    let (mut ours, mut theirs) = stream();
    let (_driver, chain) = chain(&pattern(9000));
    assert_eq!(ours.send_or_keep(chain.reader(), 9000), Ok(9000));
    assert_eq!(ours.kept_bytes(), 0);
    assert!(read_now(&mut theirs) == pattern(9000));
}

#[test]
fn only_so_many_bytes_as_the_header_said_are_sent() {
    let (mut ours, mut theirs) = stream();
    let (_driver, chain) = chain(&pattern(9000));
    assert_eq!(ours.send_or_keep(chain.reader(), 10), Ok(10));
    assert_eq!(read_now(&mut theirs), pattern(10));
}

#[test]
fn what_a_full_socket_refuses_is_kept_in_order_and_flushed() {
    let (mut ours, mut theirs) = stream();
    let (_driver, chain) = chain(&pattern(50_000));
    let mut expected = Vec::new();
    let mut sent = 0;
    while ours.kept_bytes() < 100_000 {
        sent += ours.send_or_keep(chain.reader(), 50_000).unwrap() as usize;
        expected.extend(pattern(50_000));
    }
    assert_eq!(sent + ours.kept_bytes(), expected.len(), "every byte is sent or kept");
    let mut got = Vec::new();
    while got.len() < expected.len() {
        got.extend(read_now(&mut theirs));
        sent += ours.flush().unwrap() as usize;
    }
    assert!(got == expected);
    assert_eq!(sent, expected.len());
}

#[test]
fn later_bytes_do_not_overtake_kept_ones() {
    let (mut ours, mut theirs) = stream();
    let (_driver, first) = chain(&[1; 50_000]);
    while ours.kept_bytes() == 0 {
        ours.send_or_keep(first.reader(), 50_000).unwrap();
    }
    let mut got = read_now(&mut theirs);
    let (_driver, second) = chain(&[2; 10]);
    assert_eq!(ours.send_or_keep(second.reader(), 10), Ok(0), "there is room, but others were first");
    while ours.kept_bytes() > 0 {
        ours.flush().unwrap();
        got.extend(read_now(&mut theirs));
    }
    got.extend(read_now(&mut theirs));
    assert!(got.is_sorted() && got.ends_with(&[1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]));
}

#[test]
fn peer_that_is_gone_is_told_apart_from_a_full_socket() {
    let (mut ours, theirs) = stream();
    let (_driver, chain) = chain(&pattern(50_000));
    while ours.kept_bytes() == 0 {
        ours.send_or_keep(chain.reader(), 50_000).unwrap();
    }
    drop(theirs);
    assert_eq!(ours.flush(), Err(Gone));
    assert_eq!(ours.kept_bytes(), 0);
    assert_eq!(ours.send_or_keep(chain.reader(), 10), Err(Gone));
    assert_eq!(ours.send_text("OK 1\n"), Err(Gone));
}

#[test]
fn reading_tells_bytes_silence_and_the_end_apart() {
    let (ours, mut theirs) = stream();
    let mut bytes = [0; 8];
    let mut read = |ours: &HostStream| ours.read(&[VolatileSlice::from(&mut bytes[..])]);
    assert_eq!(read(&ours), Incoming::Empty);
    theirs.write_all(b"0123456789").unwrap();
    assert_eq!(read(&ours), Incoming::Bytes(8));
    assert_eq!(read(&ours), Incoming::Bytes(2));
    theirs.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read(&ours), Incoming::End);
    drop(theirs);
    assert_eq!(read(&ours), Incoming::End);
}

#[test]
fn each_direction_ends_by_itself() {
    let (ours, mut theirs) = stream();
    ours.shutdown(Shutdown::Write);
    assert!(is_at_end(&mut theirs));
    theirs.write_all(b"x").unwrap();
    ours.shutdown(Shutdown::Read);
    assert!(theirs.write_all(b"x").is_err());
    drop(theirs);
    ours.shutdown(Shutdown::Both);
}

#[test]
fn door_lets_clients_in_and_finds_listeners() {
    let dir = tempfile::tempdir().unwrap();
    let uds = dir.path().join("v.sock");
    let door = Door::new(UnixListener::bind(&uds).unwrap()).unwrap();
    assert!(door.accept().unwrap().is_none());
    let mut client = UnixStream::connect(&uds).unwrap();
    let mut accepted = door.accept().unwrap().unwrap();
    accepted.send_text("OK 1\n").unwrap();
    let mut text = [0; 5];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"OK 1\n");
    let mut byte = [0];
    assert_eq!(accepted.read(&[VolatileSlice::from(&mut byte[..])]), Incoming::Empty, "it does not block");

    assert_eq!(connect(&uds, 7).unwrap_err().kind(), io::ErrorKind::NotFound);
    let listener = UnixListener::bind(dir.path().join("v.sock_7")).unwrap();
    let out = HostStream::new(connect(&uds, 7).unwrap());
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(b"y").unwrap();
    assert_eq!(out.read(&[VolatileSlice::from(&mut byte[..])]), Incoming::Bytes(1));
    drop(listener);
    assert_eq!(connect(&uds, 7).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let long = dir.path().join("x".repeat(107 - dir.path().as_os_str().len() - 1));
    assert_eq!(connect(&long, 1).unwrap_err().kind(), io::ErrorKind::InvalidInput, "no room for the port");
}
