// SPDX-License-Identifier: Apache-2.0
//! Orders over a real pair of sockets.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, sendmsg, socketpair};

use super::*;

fn pair() -> (OwnedFd, ControlSocket) {
    let (host, monitor) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    (host, ControlSocket::new(monitor).unwrap())
}

fn order(host: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(host, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

#[test]
fn orders_arrive_one_by_one_with_their_descriptors() {
    let (host, monitor) = pair();
    let (reader, writer) = io::pipe().unwrap();
    order(&host, br#"{"fork":{"uds":"/x/v.sock"}}"#, &[writer.as_fd()]);
    order(&host, br#"{"freeze":{}}"#, &[]);
    drop(writer);
    let first = monitor.receive().unwrap().unwrap();
    assert_eq!(first.order, Ok(Order::Fork { uds: "/x/v.sock".into() }));
    assert_eq!(first.descriptors.len(), 1);
    io::Write::write_all(&mut std::fs::File::from(first.descriptors.into_iter().next().unwrap()), b"hi").unwrap();
    let mut text = String::new();
    io::Read::read_to_string(&mut { reader }, &mut text).unwrap();
    assert_eq!(text, "hi");
    let second = monitor.receive().unwrap().unwrap();
    assert_eq!(second.order, Ok(Order::Freeze {}));
    assert!(second.descriptors.is_empty());
    drop(host);
    assert!(monitor.receive().unwrap().is_none());
}

#[test]
fn what_is_no_order_is_told_and_its_descriptors_are_not_lost() {
    let (host, monitor) = pair();
    let null = std::fs::File::open("/dev/null").unwrap();
    for text in [&b"{}"[..], b"freeze", b"{\"freeze\":{\"x\":1}}", b"{\"fork\":{}}", b"\xff", b"{\"save\":{}} {}"] {
        order(&host, text, &[null.as_fd()]);
        let received = monitor.receive().unwrap().unwrap();
        assert!(received.order.unwrap_err().contains("order"), "{text:?}");
        assert_eq!(received.descriptors.len(), 1);
    }
}

#[test]
fn a_datagram_beyond_the_limit_is_an_error_that_names_it() {
    let (host, monitor) = pair();
    let long = vec![b' '; ORDER_MAX_BYTES + 1];
    order(&host, &long, &[]);
    let error = monitor.receive().unwrap_err().to_string();
    assert!(error.contains(&ORDER_MAX_BYTES.to_string()), "{error}");
}

#[test]
fn more_descriptors_than_allowed_are_refused_and_none_stays_open() {
    let (host, monitor) = pair();
    let (reader, writer) = io::pipe().unwrap();
    let many = vec![writer.as_fd(); DESCRIPTORS_MAX + 4];
    order(&host, br#"{"save":{}}"#, &many);
    assert!(monitor.receive().is_err());
    drop(writer);
    let mut rest = Vec::new();
    io::Read::read_to_end(&mut { reader }, &mut rest).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn answers_are_one_json_object_each() {
    let (host, monitor) = pair();
    for (answer, text) in [
        (Answer::Forked { pid: 7 }, r#"{"forked":{"pid":7}}"#),
        (Answer::Saved { memory_bytes: 9 }, r#"{"saved":{"memory_bytes":9}}"#),
        (Answer::Failed { what: "x".into() }, r#"{"failed":{"what":"x"}}"#),
    ] {
        monitor.answer(&answer);
        let mut heard = [0; 100];
        let len = rustix::io::read(&host, &mut heard).unwrap();
        assert_eq!(heard[..len], *text.as_bytes());
    }
}

#[test]
fn a_pipe_or_a_stream_is_no_control_socket() {
    let (reader, _writer) = io::pipe().unwrap();
    assert!(ControlSocket::new(reader.into()).is_err());
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(ControlSocket::new(stream.into()).is_err());
}
