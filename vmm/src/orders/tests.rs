// SPDX-License-Identifier: Apache-2.0
//! Orders over a real pair of sockets.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, sendmsg, socketpair};

use super::*;

/// The host's end and the monitor's.
pub(crate) fn pair() -> (OwnedFd, ControlSocket) {
    let (host, monitor) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    (host, ControlSocket::new(monitor).unwrap())
}

pub(crate) fn order(host: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(host, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// What the host hears next.
pub(crate) fn heard(host: &OwnedFd) -> String {
    let mut bytes = vec![0; 4096];
    let len = rustix::io::read(host, &mut bytes).unwrap();
    String::from_utf8(bytes[..len].to_vec()).unwrap()
}

#[test]
fn orders_arrive_one_by_one_with_their_descriptors() {
    let (host, monitor) = pair();
    let (reader, writer) = io::pipe().unwrap();
    order(&host, br#"{"fork":{"uds":"/x/v.sock"}}"#, &[writer.as_fd()]);
    order(&host, br#"{"freeze":{}}"#, &[]);
    order(&host, br#"{"discard":{"ranges":[[4096,8192],[0,1]]}}"#, &[]);
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
    let third = monitor.receive().unwrap().unwrap();
    assert_eq!(third.order, Ok(Order::Discard { ranges: vec![(4096, 8192), (0, 1)] }));
    drop(host);
    assert!(monitor.receive().unwrap().is_none());
}

#[test]
fn what_is_no_order_is_told_and_its_descriptors_are_not_lost() {
    let (host, monitor) = pair();
    let null = std::fs::File::open("/dev/null").unwrap();
    for text in [
        &b"{}"[..],
        b"freeze",
        b"{\"freeze\":{\"x\":1}}",
        b"{\"fork\":{}}",
        b"\xff",
        b"{\"save\":{}} {}",
        b"{\"discard\":{\"ranges\":[[1]]}}",
        b"{\"discard\":{\"ranges\":[[-1,4096]]}}",
    ] {
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
        (
            Answer::Frozen { pause_us: 3, save_us: 2, fork_us: 1 },
            r#"{"frozen":{"pause_us":3,"save_us":2,"fork_us":1}}"#,
        ),
        (Answer::Forked {}, r#"{"forked":{}}"#),
        (Answer::Discarded { bytes: 4096 }, r#"{"discarded":{"bytes":4096}}"#),
        (Answer::Saved { memory_bytes: 9 }, r#"{"saved":{"memory_bytes":9}}"#),
        (Answer::Failed { what: "x".into() }, r#"{"failed":{"what":"x"}}"#),
    ] {
        monitor.answer(&answer, None);
        assert_eq!(heard(&host), text);
    }
}

#[test]
fn a_pipe_or_a_stream_is_no_control_socket() {
    let (reader, _writer) = io::pipe().unwrap();
    assert!(ControlSocket::new(reader.into()).is_err());
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(ControlSocket::new(stream.into()).is_err());
}

#[test]
fn a_host_that_does_not_listen_blocks_and_kills_nobody() {
    let (host, monitor) = pair();
    let answer = Answer::Failed { what: "x".repeat(1000) };
    for _ in 0..10_000 {
        monitor.answer(&answer, None);
    }
    drop(host);
    monitor.answer(&answer, None);
    assert!(monitor.receive().unwrap().is_none());
}

#[test]
fn the_configuration_comes_as_the_first_datagram_whole() {
    let (host, monitor) = pair();
    let text = vec![b'x'; ORDER_MAX_BYTES];
    order(&host, &text, &[]);
    order(&host, br#"{"save":{}}"#, &[]);
    assert_eq!(monitor.receive_text().unwrap(), text);
    assert_eq!(monitor.receive().unwrap().unwrap().order, Ok(Order::Save {}));
}

#[test]
fn a_lifeline_is_told_by_what_it_is() {
    let (host, _monitor) = pair();
    assert!(matches!(Lifeline::new(host), Lifeline::Control(_)));
    let (reader, _writer) = io::pipe().unwrap();
    assert!(matches!(Lifeline::new(reader.into()), Lifeline::Plain(_)));
    assert!(matches!(Lifeline::new(std::fs::File::open("/dev/null").unwrap().into()), Lifeline::Plain(_)));
}
