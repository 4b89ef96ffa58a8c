// SPDX-License-Identifier: Apache-2.0

use super::super::Framing;
use super::*;
use std::io::Cursor;

fn conn(raw: &[u8]) -> Conn<Cursor<Vec<u8>>> {
    Conn::new(Cursor::new(raw.to_vec()), BytesMut::new())
}

#[tokio::test]
async fn heads_and_bodies_follow_each_other() {
    let mut conn = conn(b"A\r\nb: c\r\n\r\nxyzD\r\n\r\n");
    assert_eq!(conn.head().await.unwrap().unwrap(), "A\r\nb: c\r\n\r\n");
    let mut decoder = Decoder::new(Framing::Length(3));
    assert_eq!(conn.piece(&mut decoder).await.unwrap().unwrap(), "xyz");
    assert!(conn.piece(&mut decoder).await.unwrap().is_none());
    assert_eq!(conn.head().await.unwrap().unwrap(), "D\r\n\r\n");
    assert!(conn.head().await.unwrap().is_none());
}

#[tokio::test]
async fn bare_lf_is_refused_without_waiting_for_more() {
    let (mut near, far) = tokio::io::duplex(64);
    let mut conn = Conn::new(far, BytesMut::new());
    tokio::io::AsyncWriteExt::write_all(&mut near, b"GET / HTTP/1.1\nHost: a\n\n").await.unwrap();
    assert!(matches!(conn.head().await, Err(ReadError::Head(BadHead::BareLineEnd))));
}

#[tokio::test]
async fn an_endless_head_is_refused() {
    let mut conn = conn(&vec![b'a'; HEAD_MAX_BYTES * 3]);
    assert!(matches!(conn.head().await, Err(ReadError::Head(BadHead::TooLong))));
    assert!(conn.into_parts().1.len() < HEAD_MAX_BYTES * 2);
}

#[tokio::test]
async fn half_a_head_is_no_head() {
    let mut conn = conn(b"GET / HTTP/1.1\r\nHo");
    assert!(matches!(conn.head().await, Err(ReadError::Io(_))));
}
