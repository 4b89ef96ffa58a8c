// SPDX-License-Identifier: Apache-2.0
//! Credit arithmetic of one connection (VIRTIO 1.2 §5.10.6.3), both directions.
//!
//! Used by `connection` only. All counters are 32 bits wide and wrap; every difference here is
//! taken modulo 2^32 and then compared against a window, never one counter against another.
//! Nothing here knows packets, sockets or time.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::packet::Credit;

/// What the guest lets us send. The guest's claims are taken in by [`SendCredit::learn`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendCredit {
    /// Payload bytes sent to the guest (`tx_cnt`), wrapping.
    sent: u32,
    /// The guest's last word.
    peer: Credit,
}

/// The guest claims to have taken out bytes that were never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("taking in the guest's credit: fwd_cnt {fwd_cnt} is ahead of the {sent} bytes sent")]
pub struct CreditFault {
    /// The `fwd_cnt` it wrote.
    pub fwd_cnt: u32,
    /// Bytes sent so far, wrapping.
    pub sent: u32,
}

impl SendCredit {
    /// Credit at the beginning of a connection, from the guest's first packet.
    /// A `fwd_cnt` other than 0 is a lie at that point, and ignored: nothing was sent.
    pub fn new(first: Credit) -> Self {
        let peer = Credit { buf_alloc: first.buf_alloc, fwd_cnt: 0 };
        Self { sent: 0, peer }
    }

    /// Bytes the guest can take now: `buf_alloc - (tx_cnt - fwd_cnt)`, zero while the guest's
    /// buffer is smaller than what is already on the way (`buf_alloc` may shrink).
    pub fn free_bytes(&self) -> u32 {
        self.peer.buf_alloc.saturating_sub(self.in_flight_bytes())
    }

    /// Takes in the credit of a guest's packet.
    ///
    /// Packets are built and queued by several guest threads, so that an older `fwd_cnt` may
    /// follow a newer one: it is ignored.
    ///
    /// # Errors
    /// [`CreditFault`] when `fwd_cnt` is neither old nor explained by what was sent.
    pub fn learn(&mut self, credit: Credit) -> Result<(), CreditFault> {
        let advance = credit.fwd_cnt.wrapping_sub(self.peer.fwd_cnt);
        if advance <= self.in_flight_bytes() {
            self.peer = credit;
            return Ok(());
        }
        let behind = advance.wrapping_neg();
        if behind < 1 << 31 {
            return Ok(());
        }
        Err(CreditFault { fwd_cnt: credit.fwd_cnt, sent: self.sent })
    }

    /// Counts payload as sent.
    ///
    /// # Panics
    /// When `len_bytes` is more than [`SendCredit::free_bytes`]: the caller asks first.
    pub fn spend(&mut self, len_bytes: u32) {
        assert!(len_bytes <= self.free_bytes(), "sent beyond the credit");
        self.sent = self.sent.wrapping_add(len_bytes);
    }

    fn in_flight_bytes(&self) -> u32 {
        self.sent.wrapping_sub(self.peer.fwd_cnt)
    }
}

/// What we let the guest send: a window of fixed size over the bytes it sends us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveWindow {
    /// The advertised `buf_alloc`; constant, since a promise cannot be taken back.
    size_bytes: u32,
    /// Payload bytes the guest sent, wrapping.
    received: u32,
    /// Of those, bytes the host's socket took (`fwd_cnt`), wrapping.
    forwarded: u32,
    /// The `fwd_cnt` the guest was last told.
    told: u32,
}

/// The guest sent more than the window allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("receiving from the guest: {len_bytes} bytes do not fit in the {free_bytes} left of its window")]
pub struct WindowOverrun {
    /// Payload of the packet.
    pub len_bytes: u32,
    /// What the window had left.
    pub free_bytes: u32,
}

impl ReceiveWindow {
    /// A window of `size_bytes`.
    pub fn new(size_bytes: u32) -> Self {
        Self { size_bytes, received: 0, forwarded: 0, told: 0 }
    }

    /// The advertised size.
    pub fn size_bytes(&self) -> u32 {
        self.size_bytes
    }

    /// Bytes received that the host's socket has not taken yet.
    pub fn owed_bytes(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Counts a packet's payload in.
    ///
    /// # Errors
    /// [`WindowOverrun`], and then nothing is counted.
    pub fn receive(&mut self, len_bytes: u32) -> Result<(), WindowOverrun> {
        let free_bytes = self.size_bytes.saturating_sub(self.owed_bytes());
        if len_bytes > free_bytes {
            return Err(WindowOverrun { len_bytes, free_bytes });
        }
        self.received = self.received.wrapping_add(len_bytes);
        Ok(())
    }

    /// Counts bytes as taken by the host's socket, or thrown away.
    ///
    /// # Panics
    /// When that is more than [`ReceiveWindow::owed_bytes`]: the caller's mistake.
    pub fn forward(&mut self, len_bytes: u32) {
        assert!(len_bytes <= self.owed_bytes(), "forwarded bytes that never came");
        self.forwarded = self.forwarded.wrapping_add(len_bytes);
    }

    /// Whether the guest should be told: half the window was taken since it last was.
    pub fn is_update_due(&self) -> bool {
        let untold = self.forwarded.wrapping_sub(self.told);
        untold >= self.size_bytes.div_ceil(2).max(1)
    }

    /// The credit to put on a packet that is being sent now.
    pub fn tell(&mut self) -> Credit {
        self.told = self.forwarded;
        Credit { buf_alloc: self.size_bytes, fwd_cnt: self.forwarded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credit(buf_alloc: u32, fwd_cnt: u32) -> Credit {
        Credit { buf_alloc, fwd_cnt }
    }

    #[test]
    fn shrinking_buf_alloc_gives_no_credit_and_no_underflow() {
        let mut send = SendCredit::new(credit(1000, 0));
        send.spend(800);
        assert_eq!(send.learn(credit(100, 0)), Ok(()));
        assert_eq!(send.free_bytes(), 0);
        assert_eq!(send.learn(credit(100, 701)), Ok(()));
        assert_eq!(send.free_bytes(), 1);
    }

    #[test]
    fn buf_alloc_of_four_gib_is_usable_to_the_last_byte() {
        let mut send = SendCredit::new(credit(u32::MAX, 0));
        send.spend(u32::MAX);
        assert_eq!(send.free_bytes(), 0);
        assert_eq!(send.learn(credit(u32::MAX, u32::MAX)), Ok(()));
        assert_eq!(send.free_bytes(), u32::MAX);
    }

    #[test]
    fn older_fwd_cnt_is_ignored_and_newer_than_sent_is_a_fault() {
        let mut send = SendCredit::new(credit(1000, 0));
        send.spend(600);
        assert_eq!(send.learn(credit(1000, 500)), Ok(()));
        assert_eq!(send.learn(credit(1000, 400)), Ok(()));
        assert_eq!(send.free_bytes(), 900, "the older count must not win");
        assert_eq!(send.learn(credit(1000, 600)), Ok(()));
        let fault = send.learn(credit(1000, 601)).unwrap_err();
        assert_eq!((fault.fwd_cnt, fault.sent), (601, 600));
        assert_eq!(send.free_bytes(), 1000);
    }

    #[test]
    fn first_credit_cannot_claim_bytes_taken() {
        let send = SendCredit::new(credit(10, 5));
        assert_eq!(send.free_bytes(), 10);
    }

    #[test]
    fn window_takes_its_last_byte_and_not_one_more() {
        let mut window = ReceiveWindow::new(100);
        assert_eq!(window.receive(100), Ok(()));
        let overrun = window.receive(1).unwrap_err();
        assert_eq!((overrun.len_bytes, overrun.free_bytes), (1, 0));
        window.forward(1);
        assert_eq!(window.receive(1), Ok(()));
        assert_eq!(window.receive(0), Ok(()));
    }

    #[test]
    fn update_is_due_at_half_the_window_and_not_before() {
        let mut window = ReceiveWindow::new(100);
        window.receive(100).unwrap();
        window.forward(49);
        assert!(!window.is_update_due());
        window.forward(1);
        assert!(window.is_update_due());
        assert_eq!(window.tell(), credit(100, 50));
        assert!(!window.is_update_due());
    }

    #[test]
    #[should_panic(expected = "sent beyond the credit")]
    fn spending_more_than_the_credit_is_our_mistake() {
        SendCredit::new(credit(10, 0)).spend(11);
    }

    /// Counts worth standing at, as they were if they did not wrap.
    fn corners() -> Vec<u64> {
        let around = |middle: u64| (0..5).map(move |step| middle + step - 2);
        [2, 1000, 1 << 31, (1 << 32) - 2, 1 << 32, 3 << 31, 1 << 33].into_iter().flat_map(around).collect()
    }

    fn low(count: u64) -> u32 {
        u32::try_from(count & 0xffff_ffff).unwrap()
    }

    /// Counters of 64 bits that never wrap, beside those of 32 that do, at every corner of every one: the guest's word is
    /// taken, ignored or refused as the counters that do not wrap have it, and the credit is the same.
    #[test]
    fn wrapping_counters_judge_every_corner_as_endless_ones_do() {
        let counts = corners();
        for taken in &counts {
            for on_the_way in counts.iter().filter(|bytes| **bytes <= u64::from(u32::MAX)) {
                let sent = taken + on_the_way;
                for claim in counts.iter().chain([taken, &sent, &(sent + 1), &(sent + (1 << 30))]) {
                    for buf_alloc in [0, 1, 1000, low(*on_the_way), low(on_the_way + 1), u32::MAX] {
                        let before = SendCredit { sent: low(sent), peer: credit(u32::MAX, low(*taken)) };
                        let mut send = before;
                        // What 32 bits cannot tell apart is taken for the nearest.
                        let is_told_apart = claim.abs_diff(*taken) < 1 << 31 || (taken..=&sent).contains(&claim);
                        if !is_told_apart {
                            continue;
                        }
                        let result = send.learn(credit(buf_alloc, low(*claim)));
                        if (taken..=&sent).contains(&claim) {
                            assert_eq!(result, Ok(()), "{claim} of {taken} and {sent}");
                            let free = u64::from(buf_alloc).saturating_sub(sent - claim);
                            assert_eq!(u64::from(send.free_bytes()), free);
                        } else if claim < taken && sent - claim < 1 << 32 {
                            assert_eq!((result, send), (Ok(()), before), "an old word, {claim} of {taken}");
                        } else if claim > &sent {
                            assert!(result.is_err() && send == before, "{claim} of {taken} and {sent}");
                        }
                    }
                }
            }
        }
    }

    /// The same of the window, at every corner of where its counters stand.
    #[test]
    fn wrapping_window_judges_every_corner_as_an_endless_one_does() {
        for forwarded in corners() {
            for size in [1_u32, 2, 1000, 1 << 18, u32::MAX] {
                for owed in [0, 1, size / 2, size - 1, size] {
                    for len in [0, 1, size - owed, (size - owed).saturating_add(1), size, u32::MAX] {
                        let received = forwarded + u64::from(owed);
                        let (received, forwarded) = (low(received), low(forwarded));
                        let before = ReceiveWindow { size_bytes: size, received, forwarded, told: forwarded };
                        let mut window = before;
                        let fits = u64::from(owed) + u64::from(len) <= u64::from(size);
                        assert_eq!(window.receive(len).is_ok(), fits);
                        assert_eq!(window.owed_bytes(), if fits { owed + len } else { owed });
                        window.forward(window.owed_bytes());
                        assert_eq!((window.owed_bytes(), window.receive(size).is_ok()), (0, true));
                    }
                }
            }
        }
    }

    proptest! {
        /// A sender and a receiver over a link that delays credit: the window is never overrun,
        /// and whatever was sent can be taken, however far the counters have wrapped.
        #[test]
        fn sender_and_receiver_agree_across_the_wrap(
            size in 1u32..=300_000,
            start in any::<u32>(),
            steps in prop::collection::vec((0u8..3, any::<u32>()), 1..200),
        ) {
            let mut window = ReceiveWindow { size_bytes: size, received: start, forwarded: start, told: start };
            let mut send = SendCredit { sent: start, peer: credit(size, start) };
            let mut on_the_way = None;
            for (kind, amount) in steps {
                match kind {
                    0 => {
                        let len = amount.checked_rem(send.free_bytes().saturating_add(1)).unwrap_or(0);
                        let len = len.min(send.free_bytes());
                        send.spend(len);
                        prop_assert_eq!(window.receive(len), Ok(()));
                    }
                    1 => {
                        let len = amount % (window.owed_bytes() + 1);
                        window.forward(len);
                        if window.is_update_due() { on_the_way = Some(window.tell()); }
                    }
                    _ => if let Some(credit) = on_the_way.take() { prop_assert_eq!(send.learn(credit), Ok(())); },
                }
                prop_assert!(window.owed_bytes() <= size);
                prop_assert!(send.free_bytes() <= size);
            }
        }

        /// No claim of the guest makes the free credit larger than the buffer it claims, or panics.
        #[test]
        fn lies_never_give_more_than_buf_alloc(claims in prop::collection::vec((any::<u32>(), any::<u32>()), 1..50)) {
            let mut send = SendCredit::new(credit(4096, 0));
            for (buf_alloc, fwd_cnt) in claims {
                let before = send;
                match send.learn(credit(buf_alloc, fwd_cnt)) {
                    Ok(()) => prop_assert!(send.free_bytes() <= send.peer.buf_alloc),
                    Err(_) => prop_assert_eq!(send, before),
                }
                send.spend(send.free_bytes().min(65_536));
            }
        }
    }
}
