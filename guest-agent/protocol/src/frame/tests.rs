// SPDX-License-Identifier: Apache-2.0
//! Streams cut anywhere, bytes that are no messages, limits from both sides.

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use super::{DecodeError, Decoder, EncodeError, OutputStream, encode, encode_output};
use crate::field::FieldError;
use crate::message::Message;
use crate::sample::{Sample, Source};
use crate::{HEADER_BYTES, MAX_DATA_BYTES, MAX_PAYLOAD_TO_HOST_BYTES, Output, ToAgent, ToHost};

fn encoded<M: Message>(messages: &[M]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        encode(message, &mut out).unwrap();
    }
    out
}

/// Everything that `bytes`, arriving in pieces of the given sizes, decodes to.
fn received<M: Message>(bytes: &[u8], mut pieces: impl Iterator<Item = usize>) -> (Vec<M>, Option<DecodeError>) {
    let (mut decoder, mut messages, mut rest) = (Decoder::new(), Vec::new(), bytes);
    while !rest.is_empty() {
        let (mut piece, after) = rest.split_at(pieces.next().unwrap_or(rest.len()).clamp(1, rest.len()));
        rest = after;
        loop {
            let result = decoder.decode(&mut piece);
            assert!(decoder.capacity() <= HEADER_BYTES + M::MAX_PAYLOAD_BYTES);
            match result {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break assert!(piece.is_empty()),
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

fn samples<M: Sample>(seeds: Vec<Vec<u8>>) -> Vec<M> {
    seeds.into_iter().map(|seed| M::sample(&mut Source::new(seed))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_split_of_a_stream_decodes_to_what_was_sent(
        seeds in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..12),
        pieces in proptest::collection::vec(1_usize..60, 0..400),
    ) {
        let inward = samples::<ToAgent>(seeds.clone());
        prop_assert_eq!(received(&encoded(&inward), pieces.iter().copied()), (inward, None));
        let outward = samples::<ToHost>(seeds);
        prop_assert_eq!(received(&encoded(&outward), pieces.into_iter()), (outward, None));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), piece in 1_usize..50) {
        let _ = received::<ToAgent>(&bytes, std::iter::repeat(piece));
        let _ = received::<ToHost>(&bytes, std::iter::repeat(piece));
    }

    #[test]
    fn a_known_header_with_any_payload_is_refused_or_means_exactly_its_bytes(
        choice in any::<proptest::sample::Index>(),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let (kind, ..) = ToHost::KINDS[choice.index(ToHost::KINDS.len())];
        let bytes = frame(kind, &payload);
        let (messages, error) = received::<ToHost>(&bytes, std::iter::empty());
        // One message has one encoding: what was understood is sent back as it came.
        prop_assert!(error.is_some() || encoded(&messages) == bytes);
    }

    #[test]
    fn a_changed_byte_is_refused_or_another_message(
        seed in proptest::collection::vec(any::<u8>(), 0..300),
        position in any::<proptest::sample::Index>(),
        change in 1_u8..,
    ) {
        let sent = samples::<ToAgent>(vec![seed]);
        let mut bytes = encoded(&sent);
        let position = position.index(bytes.len());
        bytes[position] ^= change;
        let (messages, error) = received::<ToAgent>(&bytes, std::iter::empty());
        prop_assert!(error.is_some() || messages != sent);
    }
}

fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(payload);
    bytes
}

fn refusal<M: Message + std::fmt::Debug>(bytes: &[u8]) -> DecodeError {
    Decoder::<M>::new().decode(&mut &bytes[..]).unwrap_err()
}

#[test]
fn a_frame_lies_as_the_byte_table_says() {
    let mut out = vec![0xaa];
    encode(&ToAgent::Ping(0x0102), &mut out).unwrap();
    assert_eq!(out, [0xaa, 8, 0, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn unknown_kinds_are_refused_by_number() {
    let error = refusal::<ToAgent>(&frame(0x7ffe, b""));
    assert_eq!(error, DecodeError::UnknownKind { kind: 0x7ffe, direction: "to the agent" });
    assert!(error.to_string().contains("0x7ffe"), "{error}");
}

#[test]
fn kinds_of_the_other_direction_are_refused_by_name() {
    let error = refusal::<ToHost>(&frame(0x0010, b""));
    assert_eq!(error, DecodeError::WrongDirection { name: "Exec", kind: 0x10, direction: "to the host" });
    assert!(error.to_string().contains("`Exec`"), "{error}");
}

#[test]
fn a_payload_over_the_limit_is_refused_on_its_header() {
    let header = |len: usize| {
        let mut bytes = u32::try_from(len).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0x20, 0x80, 0, 0]);
        bytes
    };
    let mut decoder = Decoder::<ToHost>::new();
    assert_eq!(decoder.decode(&mut &header(MAX_PAYLOAD_TO_HOST_BYTES)[..]), Ok(None));
    let (len, limit) = (MAX_PAYLOAD_TO_HOST_BYTES + 1, MAX_PAYLOAD_TO_HOST_BYTES);
    assert_eq!(refusal::<ToHost>(&header(len)), DecodeError::TooLong { name: "Data", len, limit });
    assert!(matches!(refusal::<ToHost>(&[0xff, 0xff, 0xff, 0xff, 0x20, 0x80, 0, 0]), DecodeError::TooLong { .. }));
}

#[test]
fn a_message_over_the_limit_is_not_sent_and_leaves_the_buffer_alone() {
    let mut out = vec![1, 2, 3];
    let fits = MAX_PAYLOAD_TO_HOST_BYTES - 4;
    encode(&ToHost::Data(vec![0; fits]), &mut Vec::new()).unwrap();
    let error = encode(&ToHost::Data(vec![0; fits + 1]), &mut out).unwrap_err();
    let limit = MAX_PAYLOAD_TO_HOST_BYTES;
    assert_eq!((error, out), (EncodeError::TooLong { name: "Data", len: limit + 1, limit }, vec![1, 2, 3]));
}

#[test]
fn a_reserved_field_in_use_is_refused() {
    let mut bytes = frame(0x0003, b"");
    bytes[6] = 1;
    assert_eq!(refusal::<ToAgent>(&bytes), DecodeError::Reserved { name: "GetStats", value: 1 });
}

#[test]
fn an_empty_kind_with_a_payload_is_refused() {
    let source = FieldError::Trailing { left: 1 };
    assert_eq!(refusal::<ToAgent>(&frame(0x0003, b"x")), DecodeError::Payload { name: "GetStats", source });
}

#[test]
fn nothing_is_decoded_after_an_error() {
    let mut bytes = frame(0x7ffe, b"");
    bytes.extend_from_slice(&encoded(&[ToAgent::GetStats]));
    let (mut decoder, mut received) = (Decoder::<ToAgent>::new(), &bytes[..]);
    assert!(decoder.decode(&mut received).is_err());
    assert_eq!(decoder.decode(&mut received), Err(DecodeError::Ended));
    assert!(!decoder.is_at_boundary());
}

#[test]
fn the_end_of_a_stream_inside_a_message_is_seen() {
    let bytes = encoded(&[ToAgent::Ping(1)]);
    for end in 1..bytes.len() {
        let mut decoder = Decoder::<ToAgent>::new();
        assert_eq!(decoder.decode(&mut &bytes[..end]), Ok(None));
        assert!(!decoder.is_at_boundary(), "after {end} bytes");
    }
    let mut decoder = Decoder::<ToAgent>::new();
    assert!(decoder.decode(&mut &bytes[..]).is_ok_and(|message| message.is_some()));
    assert!(decoder.is_at_boundary());
}

#[test]
fn output_encoded_in_place_is_the_same_message() {
    for (stream, wrap) in
        [(OutputStream::Stdout, ToHost::Stdout as fn(Output) -> ToHost), (OutputStream::Stderr, ToHost::Stderr)]
    {
        let mut out = Vec::new();
        assert_eq!(encode_output(stream, 77, b"abc", &mut out), 3);
        assert_eq!(out, encoded(&[wrap(Output { offset: 77, data: b"abc".to_vec() })]));
    }
}

#[test]
fn output_beyond_one_piece_waits_for_the_next() {
    let mut out = Vec::new();
    assert_eq!(encode_output(OutputStream::Stdout, 0, &vec![7; MAX_DATA_BYTES + 1], &mut out), MAX_DATA_BYTES);
    let (messages, error) = received::<ToHost>(&out, std::iter::repeat(1000));
    assert_eq!((messages, error), (vec![ToHost::Stdout(Output { offset: 0, data: vec![7; MAX_DATA_BYTES] })], None));
}
