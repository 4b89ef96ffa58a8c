// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;

async fn all(bytes: &[u8]) -> (Vec<Bytes>, Option<LineError>) {
    let mut lines = Lines::new(bytes);
    let mut found = Vec::new();
    loop {
        match lines.next().await {
            Ok(Some(line)) => found.push(line),
            Ok(None) => return (found, None),
            Err(error) => return (found, Some(error)),
        }
    }
}

#[tokio::test]
async fn lines_at_the_limit_are_read_and_longer_ones_are_not() {
    let fits = [vec![b'a'; LINE_MAX_BYTES - 1], b"\nb\n".to_vec()].concat();
    let (lines, error) = all(&fits).await;
    assert_eq!((lines.len(), lines[0].len(), error.is_none()), (2, LINE_MAX_BYTES - 1, true));
    let (lines, error) = all(&[vec![b'a'; LINE_MAX_BYTES], b"\n".to_vec()].concat()).await;
    assert!(lines.is_empty() && matches!(error, Some(LineError::Long)));
    let mut endless = Lines::new(tokio::io::repeat(b'a'));
    assert!(matches!(endless.next().await, Err(LineError::Long)));
    assert!(endless.buffer.capacity() <= 4 * LINE_MAX_BYTES);
}

#[tokio::test]
async fn torn_lines_are_told_from_ends() {
    assert!(matches!(all(b"a\nb").await, (lines, Some(LineError::Torn)) if lines == [&b"a"[..]]));
    assert!(matches!(all(b"").await, (lines, None) if lines.is_empty()));
    assert!(matches!(all(b"\n\n").await, (lines, None) if lines.len() == 2));
}

#[tokio::test]
async fn waiting_for_a_line_can_be_given_up() {
    let (mut guest, host) = tokio::io::duplex(64);
    let mut lines = Lines::new(host);
    guest.write_all(b"hal").await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), lines.next()).await.is_err());
    guest.write_all(b"f\nrest").await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap(), &b"half"[..]);
    drop(guest);
    let (ahead, mut rest) = lines.into_parts();
    let mut more = Vec::new();
    rest.read_to_end(&mut more).await.unwrap();
    assert_eq!([ahead.to_vec(), more].concat(), b"rest");
}

#[tokio::test(start_paused = true)]
async fn pace_is_kept() {
    let mut pace = Pace::new(10, Duration::from_secs(1), 3);
    let start = Instant::now();
    for _ in 0..13 {
        pace.wait(1).await;
    }
    let took = start.elapsed();
    assert!((Duration::from_millis(1000)..Duration::from_millis(1100)).contains(&took), "{took:?}");
    assert!(pace.take(1).is_err());
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!((0..9).filter(|_| pace.take(1).is_ok()).count(), 3, "what is not used is not saved up");
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(pace.take(50).is_ok(), "one that is larger than the bucket is not refused for ever");
}

proptest! {
    #[test]
    fn any_chunks_give_the_same_lines(text in prop::collection::vec(prop::collection::vec(0_u8..=20, 0..20), 0..10)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = text.concat().into_iter().map(|byte| if byte == 20 { b'\n' } else { byte }).collect::<Vec<_>>();
        let (lines, error) = runtime.block_on(all(&bytes));
        let mut expected: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let rest = expected.pop().unwrap_or_default();
        prop_assert_eq!(error.is_some(), !rest.is_empty());
        prop_assert!(lines.iter().map(|line| &line[..]).eq(expected));
    }
}
