// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::prelude::*;

/// The whole body, the bytes after it, and whether it ended; `cuts` says how the bytes arrive.
fn run(framing: Framing, raw: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, Vec<u8>, bool), BadBody> {
    let (mut decoder, mut buffer, mut body) = (Decoder::new(framing), BytesMut::new(), Vec::new());
    let mut rest = raw;
    let mut cuts = cuts.iter().cycle();
    loop {
        match decoder.step(&mut buffer)? {
            Step::Data(data) => {
                assert!(!data.is_empty());
                body.extend_from_slice(&data);
            }
            Step::End => return Ok((body, [&buffer[..], rest].concat(), true)),
            Step::Need if rest.is_empty() => {
                decoder.end()?;
                return Ok((body, buffer.to_vec(), false));
            }
            Step::Need => {
                let length = (*cuts.next().unwrap_or(&1)).clamp(1, rest.len());
                buffer.extend_from_slice(&rest[..length]);
                rest = &rest[length..];
            }
        }
    }
}

#[test]
fn chunks_are_taken_apart_and_what_follows_stays() {
    for cut in 1..12 {
        let raw = b"3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nGET /";
        let (body, rest, ended) = run(Framing::Chunked, raw, &[cut]).unwrap();
        assert_eq!((body.as_slice(), rest.as_slice(), ended), (&b"abc0123456789"[..], &b"GET /"[..], true));
    }
}

#[test]
fn malformed_chunks_are_refused() {
    for (raw, error) in [
        ("3\nabc\r\n", BadBody::ChunkSize),
        ("0x3\r\nabc\r\n", BadBody::ChunkSize),
        ("+3\r\nabc\r\n", BadBody::ChunkSize),
        (" 3\r\nabc\r\n", BadBody::ChunkSize),
        ("3 \r\nabc\r\n", BadBody::ChunkSize),
        ("\r\nabc\r\n", BadBody::ChunkSize),
        ("-1\r\nabc\r\n", BadBody::ChunkSize),
        ("FFFFFFFFFFFFFFFF\r\nabc\r\n", BadBody::ChunkSize),
        ("3;\0\r\nabc\r\n", BadBody::ChunkSize),
        ("3\r\nabcd\r\n", BadBody::ChunkEnd),
        ("3\r\nabc\n0\r\n\r\n", BadBody::ChunkEnd),
        ("3\r\nabc\r\n0\r\nA: b\n\r\n", BadBody::Trailers),
        ("3\r\nab", BadBody::Truncated),
        ("3\r\nabc\r\n", BadBody::Truncated),
    ] {
        for cut in [1, 100] {
            assert_eq!(run(Framing::Chunked, raw.as_bytes(), &[cut]), Err(error), "{raw:?}");
        }
    }
    let long = format!("1;{}\r\na\r\n", "x".repeat(CHUNK_LINE_MAX_BYTES));
    assert_eq!(run(Framing::Chunked, long.as_bytes(), &[7]), Err(BadBody::ChunkSize));
    let trailers = format!("0\r\n{}\r\n", "X: y\r\n".repeat(TRAILERS_MAX_BYTES / 6 + 1));
    assert_eq!(run(Framing::Chunked, trailers.as_bytes(), &[999]), Err(BadBody::Trailers));
}

#[test]
fn a_length_is_kept_to_the_byte() {
    assert_eq!(run(Framing::Length(3), b"abcd", &[4]).unwrap(), (b"abc".to_vec(), b"d".to_vec(), true));
    assert_eq!(run(Framing::Length(0), b"abcd", &[4]).unwrap(), (vec![], b"abcd".to_vec(), true));
    assert_eq!(run(Framing::Length(5), b"abcd", &[4]), Err(BadBody::Truncated));
    assert_eq!(run(Framing::UntilClose, b"abcd", &[3]).unwrap(), (b"abcd".to_vec(), vec![], false));
}

proptest! {
    #[test]
    fn written_chunks_are_read_again(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..70), 0..9), cuts in proptest::collection::vec(1usize..40, 1..5)) {
        let mut raw = Vec::new();
        for piece in &pieces {
            put_chunk(&mut raw, piece.len());
            raw.extend_from_slice(piece);
            raw.extend_from_slice(end_chunk(false));
        }
        raw.extend_from_slice(end_chunk(true));
        raw.extend_from_slice(b"next");
        let (body, rest, ended) = run(Framing::Chunked, &raw, &cuts).unwrap();
        prop_assert_eq!((body, rest, ended), (pieces.concat(), b"next".to_vec(), true));
    }

    /// However the bytes are cut, the outcome is the same.
    #[test]
    fn cuts_do_not_matter(raw in "([0-9a-f]{0,2}\r?\n|[a-z]{0,9}|\r\n|0\r\n\r\n){0,9}", cuts in proptest::collection::vec(1usize..9, 1..5)) {
        let whole = run(Framing::Chunked, raw.as_bytes(), &[usize::MAX]);
        prop_assert_eq!(run(Framing::Chunked, raw.as_bytes(), &cuts), whole);
    }
}

#[test]
fn what_takes_another_way_is_left_out() {
    let mut decoder = Decoder::new(Framing::Length(10));
    let mut buffer = BytesMut::from(&b"abc"[..]);
    assert_eq!(decoder.step(&mut buffer), Ok(Step::Data(Bytes::from_static(b"abc"))));
    assert_eq!(decoder.as_is_bytes(), 7);
    decoder.skip(5);
    assert_eq!((decoder.as_is_bytes(), decoder.end()), (2, Err(BadBody::Truncated)));
    decoder.skip(2);
    let mut next = BytesMut::from(&b"next"[..]);
    assert_eq!((decoder.as_is_bytes(), decoder.step(&mut next)), (0, Ok(Step::End)));
    for framing in [Framing::Chunked, Framing::UntilClose, Framing::Length(0)] {
        assert_eq!(Decoder::new(framing).as_is_bytes(), 0);
    }
}
