// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::prelude::*;

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut out = kind.to_be_bytes().to_vec();
    out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    out.extend(data);
    out
}

fn name(name: &str) -> Vec<u8> {
    let length = u16::try_from(name.len()).unwrap();
    let mut data = (length + 3).to_be_bytes().to_vec();
    data.push(NAME_IS_HOST);
    data.extend(length.to_be_bytes());
    data.extend(name.as_bytes());
    extension(EXTENSION_SERVER_NAME, &data)
}

/// A hello with these extensions, in records of at most `piece` bytes.
fn hello(extensions: &[u8], piece: usize) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 2, 0x13, 1]);
    body.extend([1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[CLIENT_HELLO, length[1], length[2], length[3]], &body[..]].concat();
    message
        .chunks(piece)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[RECORD_HANDSHAKE, 3, 1, length[0], length[1]], part].concat()
        })
        .collect()
}

fn named(sni: &str) -> Sniff {
    Sniff::Tls(Hello { sni: Some(sni.into()), encrypted: false })
}

#[test]
fn the_name_is_found_however_the_hello_is_split() {
    let extensions = [extension(0xa0a, &[]), name("a.test"), extension(43, &[2, 3, 4])].concat();
    for piece in [1, 2, 3, 7, 50, 1000] {
        let bytes = hello(&extensions, piece);
        for cut in 0..bytes.len() {
            assert_eq!(sniff(&bytes[..cut]), Sniff::Need, "piece {piece} cut {cut}");
        }
        assert_eq!(sniff(&bytes), named("a.test"));
        assert_eq!(sniff(&[&bytes[..], b"more"].concat()), named("a.test"));
    }
}

#[test]
fn what_rustls_sends_is_read() {
    use tokio_rustls::rustls::{ClientConnection, RootCertStore};
    let config = crate::tls::client(RootCertStore::empty()).unwrap();
    let mut connection = ClientConnection::new(config, "files.example.test".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    assert_eq!(sniff(&bytes), named("files.example.test"));
}

#[test]
fn an_encrypted_hello_is_seen() {
    let bytes = hello(&[name("public.test"), extension(EXTENSION_ECH, &[0, 1])].concat(), 100);
    assert_eq!(sniff(&bytes), Sniff::Tls(Hello { sni: Some("public.test".into()), encrypted: true }));
}

#[test]
fn no_name_is_no_name() {
    assert_eq!(sniff(&hello(&[], 100)), Sniff::Tls(Hello { sni: None, encrypted: false }));
}

#[test]
fn two_names_and_odd_names_are_refused() {
    let two = [name("a.test"), name("b.test")].concat();
    let mut list = name("a.test");
    list.extend([NAME_IS_HOST, 0, 1, b'b']);
    let fix = u16::try_from(list.len() - 4).unwrap().to_be_bytes();
    list[2..4].copy_from_slice(&fix);
    let fix = u16::try_from(list.len() - 6).unwrap().to_be_bytes();
    list[4..6].copy_from_slice(&fix);
    for extensions in [two, list, name(""), name("a b"), name("a\0b"), name("ä.test")] {
        assert!(matches!(sniff(&hello(&extensions, 999)), Sniff::Bad(_)), "{extensions:?}");
    }
}

#[test]
fn what_is_no_tls_is_known_at_its_first_bytes() {
    for bytes in [&b"GET / HTTP/1.1"[..], b"SSH-2.0-x", b"\0", b"\x16\x02"] {
        assert_eq!(sniff(bytes), Sniff::NotTls);
    }
    assert_eq!(sniff(b""), Sniff::Need);
    assert_eq!(sniff(b"\x16"), Sniff::Need);
    assert!(matches!(sniff(b"\x16\x03\x01\x00\x01\x02"), Sniff::Bad(_)));
    assert!(matches!(sniff(b"\x16\x03\x01\x00\x00"), Sniff::Bad(_)));
    assert!(matches!(sniff(b"\x16\x03\x01\xff\xff"), Sniff::Bad(_)));
    assert!(matches!(sniff(b"\x16\x03\x01\x00\x01\x01\x17\x03\x01"), Sniff::Bad(_)));
    assert!(matches!(sniff(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"), Sniff::Bad(_)));
}

proptest! {
    #[test]
    fn no_bytes_make_it_fail(tail in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..50) {
        let _ = sniff(&tail);
        let _ = sniff(&hello(&tail, piece));
    }

    /// Once something is said of a beginning, more bytes do not unsay it.
    #[test]
    fn more_bytes_change_nothing(mut bytes in proptest::collection::vec(0u8..=30, 0..40), at in 0usize..100, value: u8) {
        let mut whole = hello(&name("a.test"), 20);
        let at = at % whole.len();
        whole[at] = value;
        whole.append(&mut bytes);
        let mut said = Sniff::Need;
        for cut in 0..whole.len() {
            let now = sniff(&whole[..cut]);
            if said != Sniff::Need {
                prop_assert_eq!(&now, &said);
            }
            said = now;
        }
    }
}
