// SPDX-License-Identifier: Apache-2.0
//! What is kept, what is sent again, what is never lost: by cases, and against a model that keeps everything.

use super::*;

fn sent(replay: &mut Replay) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some((offset, piece)) = replay.next_piece() {
        assert_eq!(offset, replay.end() - replay.unsent() as u64);
        let len = piece.len();
        all.extend_from_slice(piece);
        replay.advance(len);
    }
    all
}

#[test]
fn bytes_come_out_as_they_went_in() {
    let mut replay = Replay::new(4);
    let mut all = Vec::new();
    for round in 0..200_u8 {
        replay.push(&[round, round, 7]);
        all.extend_from_slice(&[round, round, 7]);
        if round % 3 == 0 {
            assert_eq!(sent(&mut replay), all);
            all.clear();
        }
    }
}

#[test]
fn history_is_kept_up_to_its_bound_and_no_further() {
    let mut replay = Replay::new(4);
    replay.push(b"abcdef");
    assert_eq!(sent(&mut replay), b"abcdef");
    assert_eq!(replay.seek(1), Err(OutOfReach { wanted: 1, first: 2, end: 6 }));
    replay.seek(2).unwrap();
    assert_eq!(sent(&mut replay), b"cdef");
}

#[test]
fn the_future_cannot_be_asked_for() {
    let mut replay = Replay::new(4);
    replay.push(b"ab");
    assert_eq!(replay.seek(3), Err(OutOfReach { wanted: 3, first: 0, end: 2 }));
    replay.seek(2).unwrap();
    assert!(replay.is_drained());
}

#[test]
fn unsent_bytes_are_never_dropped_and_use_up_the_room() {
    let mut replay = Replay::new(0);
    assert_eq!(replay.room(), UNSENT_MIN_BYTES);
    replay.push(&vec![1; UNSENT_MIN_BYTES]);
    assert_eq!(replay.room(), 0);
    replay.advance(10);
    assert_eq!(replay.room(), 10);
    assert_eq!(sent(&mut replay).len(), UNSENT_MIN_BYTES - 10);
}

#[test]
fn nothing_is_kept_when_nothing_is_asked_to_be_kept() {
    let mut replay = Replay::new(0);
    replay.push(b"abc");
    assert_eq!(sent(&mut replay), b"abc");
    assert!(replay.bytes.is_empty());
    assert!(replay.seek(2).is_err());
}

#[test]
fn a_piece_is_at_most_one_message() {
    let mut replay = Replay::new(1 << 20);
    replay.push(&vec![1; MAX_DATA_BYTES + 5]);
    assert_eq!(replay.next_piece().unwrap().1.len(), MAX_DATA_BYTES);
    replay.advance(MAX_DATA_BYTES);
    assert_eq!(replay.next_piece().unwrap().1.len(), 5);
}

#[test]
fn a_client_that_goes_back_takes_room_but_loses_nothing() {
    let mut replay = Replay::new(UNSENT_MIN_BYTES);
    replay.push(&vec![1; UNSENT_MIN_BYTES]);
    sent(&mut replay);
    replay.push(&vec![2; UNSENT_MIN_BYTES]);
    replay.seek(0).unwrap();
    assert_eq!(replay.room(), 0);
    assert_eq!(sent(&mut replay).len(), 2 * UNSENT_MIN_BYTES);
}

#[test]
fn discarded_bytes_make_room() {
    let mut replay = Replay::new(0);
    replay.push(b"abc");
    replay.discard();
    assert!(replay.is_drained() && replay.next_piece().is_none());
    assert_eq!(replay.end(), 3);
}

/// A generator of small numbers, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn a_model_that_keeps_everything_agrees() {
    for seed in 0..300 {
        let mut numbers = Numbers(seed);
        let keep = usize::try_from(numbers.below(200)).unwrap();
        let (mut replay, mut all) = (Replay::new(keep), Vec::<u8>::new());
        let (mut sent, mut furthest) = (0_usize, 0_usize);
        for step in 0..200 {
            let context = format!("seed {seed}, step {step}");
            match numbers.below(4) {
                0 | 1 => {
                    let len = usize::try_from(numbers.below(150)).unwrap().min(replay.room());
                    let piece: Vec<u8> = (0..len).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
                    replay.push(&piece);
                    all.extend(piece);
                }
                2 => {
                    if let Some((offset, piece)) = replay.next_piece() {
                        assert_eq!(usize::try_from(offset).unwrap(), sent, "{context}");
                        assert_eq!(piece, &all[sent..sent + piece.len()], "{context}");
                        let len = 1 + usize::try_from(numbers.below(piece.len() as u64)).unwrap();
                        replay.advance(len);
                        sent += len;
                        furthest = furthest.max(sent);
                    } else {
                        assert_eq!(sent, all.len(), "{context}");
                    }
                }
                _ => {
                    let wanted = usize::try_from(numbers.below(all.len() as u64 + 2)).unwrap();
                    let reached = replay.seek(wanted as u64).is_ok();
                    // What was promised is there; more may be.
                    assert!(reached || wanted > all.len() || wanted + keep < furthest, "{context}");
                    sent = if reached { wanted } else { sent };
                }
            }
            assert_eq!(replay.end(), all.len() as u64, "{context}");
            assert!(replay.bytes.len() <= 2 * keep.max(UNSENT_MIN_BYTES), "{context}");
            assert_eq!(replay.is_drained(), sent == all.len(), "{context}");
        }
    }
}
