// SPDX-License-Identifier: Apache-2.0
//! How fast this machine's time-stamp counter counts, which is how fast TCG's does.
//!
//! A kernel in the emulated host would find out by counting against an emulated timer. On a busy machine that fails now
//! and then, and a KVM that does not know the frequency never enters a guest: so it is measured here and told.
#![expect(unsafe_code, reason = "the counter is read by an instruction, for which there is no safe wrapper")]

use std::time::{Duration, Instant};

/// Between the two readings: the error of one reading is under a microsecond, so that of the result under 0.01 %.
const APART: Duration = Duration::from_millis(20);
/// Readings at each end, of which the quickest counts: nobody interrupted it.
const READINGS: u32 = 8;

/// The frequency in kHz.
pub(super) fn tsc_khz() -> u64 {
    let (begin_ticks, begin) = reading();
    std::thread::sleep(APART);
    let (end_ticks, end) = reading();
    khz(end_ticks.wrapping_sub(begin_ticks), end.duration_since(begin))
}

/// The counter and the clock at the same time, as nearly as can be.
fn reading() -> (u64, Instant) {
    let mut best = (Duration::MAX, (0, Instant::now()));
    for _ in 0..READINGS {
        let before = Instant::now();
        // SAFETY: the instruction has no operands and touches no memory; every x86-64 has it, and Linux leaves it enabled
        // for user programs.
        let ticks = unsafe { core::arch::x86_64::_rdtsc() };
        let took = before.elapsed();
        if took < best.0 {
            best = (took, (ticks, before));
        }
    }
    best.1
}

fn khz(ticks: u64, elapsed: Duration) -> u64 {
    let khz = u128::from(ticks) * 1_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(khz).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_is_ticks_over_time() {
        assert_eq!(khz(52_000_000, Duration::from_millis(20)), 2_600_000);
        assert_eq!(khz(0, Duration::from_millis(20)), 0);
        assert_eq!(khz(u64::MAX, Duration::ZERO), u64::MAX);
    }

    #[test]
    fn two_measurements_agree_within_a_percent() {
        let (one, other) = (tsc_khz(), tsc_khz());
        assert!((100_000..20_000_000).contains(&one), "{one} kHz");
        assert!(one.abs_diff(other) < one / 100, "{one} and {other} kHz");
    }
}
