// SPDX-License-Identifier: Apache-2.0
//! Body of the fuzz target `monitor`: what a monitor says that a guest has taken over.

use std::time::Duration;

use rustix::net::{SendFlags, send};
use tokio::runtime::{Builder, Runtime};

use super::events::{Event, LINE_MAX_BYTES, Lines, parse, printable};
use crate::orders::{Order, OrderError, Orders};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

fn is_tame(text: &str) -> bool {
    text.chars().all(|c| !c.is_control() || c == '\t')
}

/// However the bytes are cut, the lines are those between the line ends, but for those too long.
fn events(cut: usize, bytes: &[u8]) {
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    for piece in bytes.chunks(cut) {
        lines.push(piece, |line| found.push(line.to_vec()));
    }
    let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
    let expected: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'\n').take(ends).filter(|line| line.len() <= LINE_MAX_BYTES).collect();
    assert_eq!(found, expected);
    for line in found {
        match parse(&line) {
            Ok(Event::Stage { name, .. }) => assert!(is_tame(&printable(&name))),
            Ok(Event::Console { text }) => assert!(is_tame(&printable(&text))),
            Ok(Event::Exit(exit)) => {
                assert!(exit.console_tail.iter().chain([&exit.detail]).all(|line| is_tame(&printable(line))));
            }
            Ok(Event::Unknown) => {}
            Err(error) => assert!(is_tame(&error.to_string())),
        }
    }
}

/// An answer is one of those that can be, or an error of one bounded line.
fn answers(bytes: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (orders, far) = Orders::pair().expect("two descriptors");
            for datagram in bytes.split(|byte| *byte == 0).take(3) {
                send(&far, datagram, SendFlags::NOSIGNAL).expect("there is room");
            }
            match orders.order(&Order::Save {}, &[], Duration::from_secs(60)).await {
                Ok(answer) => assert!(format!("{answer:?}").len() < 300),
                Err(OrderError::Late { .. }) => panic!("the answer was there"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(is_tame(&text) && text.chars().count() < 1100, "{text:?}");
                }
            }
        });
    });
}

/// Input: 0 for answers, apart by NULs; else the size of the pieces of an event stream (1 byte).
pub fn monitor(data: &[u8]) {
    match data.split_first() {
        Some((0, bytes)) => answers(bytes),
        Some((cut, bytes)) => events(usize::from(*cut), bytes),
        None => {}
    }
}
