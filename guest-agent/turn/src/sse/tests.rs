// SPDX-License-Identifier: Apache-2.0

use super::*;
use proptest::prelude::*;

fn all(pieces: &[&[u8]]) -> Vec<SseEvent> {
    let (mut decoder, mut out) = (SseDecoder::default(), Vec::new());
    for piece in pieces {
        decoder.feed(piece, &mut out).unwrap();
    }
    decoder.finish(&mut out).unwrap();
    out
}

fn event(name: &str, data: &str) -> SseEvent {
    SseEvent { name: name.into(), data: data.into() }
}

#[test]
fn every_end_of_line_ends_a_line() {
    for end in ["\n", "\r\n", "\r"] {
        let text = format!("event: a{end}data: 1{end}data: 2{end}{end}data:3{end}{end}");
        assert_eq!(all(&[text.as_bytes()]), [event("a", "1\n2"), event("", "3")], "{end:?}");
    }
}

#[test]
fn comments_unknown_fields_and_marks_of_order_are_passed_over() {
    let text = "\u{feff}: ping\n\nid: 7\nretry: 9\nfuture: x\ndata\ndata: y\n\n";
    assert_eq!(all(&[text.as_bytes()]), [event("", "\ny")]);
    assert!(all(&[b"event: lonely\n\n"]).is_empty());
}

#[test]
fn half_a_character_in_a_piece_is_whole_in_the_event() {
    let text = "data: ä€𝄞\n\n".as_bytes();
    let pieces: Vec<&[u8]> = text.chunks(1).collect();
    assert_eq!(all(&pieces), [event("", "ä€𝄞")]);
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    assert_eq!(all(&[b"data: a\xff\xfeb\n\n"]), [event("", "a\u{fffd}\u{fffd}b")]);
}

#[test]
fn last_event_needs_no_blank_line() {
    assert_eq!(all(&[b"data: [DONE]"]), [event("", "[DONE]")]);
}

#[test]
fn line_without_an_end_is_refused_at_its_limit() {
    let (mut decoder, mut out) = (SseDecoder::default(), Vec::new());
    let chunk = vec![b'a'; 1 << 20];
    for _ in 0..LINE_MAX_BYTES >> 20 {
        decoder.feed(&chunk, &mut out).unwrap();
    }
    assert_eq!(decoder.feed(b"a", &mut out), Err(SseError::LineTooLong));
}

#[test]
fn event_without_an_end_is_refused_at_its_limit() {
    let (mut decoder, mut out) = (SseDecoder::default(), Vec::new());
    let line = [b"data: ".as_slice(), &vec![b'a'; 1 << 20], b"\n"].concat();
    let taken = (0..64).take_while(|_| decoder.feed(&line, &mut out).is_ok()).count();
    assert_eq!(taken, (EVENT_MAX_BYTES >> 20) - 1);
}

proptest! {
    #[test]
    fn cuts_make_no_difference(lines in proptest::collection::vec("(data|event|x)?:? ?[a-cä]{0,4}(\r|\n|\r\n){0,2}", 0..20), cuts in proptest::collection::vec(1usize..9, 1..9)) {
        let text = lines.concat();
        let whole = all(&[text.as_bytes()]);
        let (mut pieces, mut rest, mut cuts) = (Vec::new(), text.as_bytes(), cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            pieces.push(head);
            rest = tail;
        }
        prop_assert_eq!(all(&pieces), whole);
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        all(&[&bytes]);
    }
}
