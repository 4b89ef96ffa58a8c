// SPDX-License-Identifier: Apache-2.0
//! Percentiles by nearest rank: always a value that was measured, never one in between.

use serde::Serialize;

/// A count as a number to divide.
#[must_use]
pub(super) fn float(value: u64) -> f64 {
    // Exact below 2^53: microseconds of two centuries.
    value as f64
}

/// A percentile in hundredths of a percent would be vanity: whole percents.
#[must_use]
fn rank(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

/// The figures of one quantity, in its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Values.
    pub n: usize,
    /// The smallest.
    pub min: u64,
    /// The median.
    pub p50: u64,
    /// Nine of ten are not above.
    pub p90: u64,
    /// 99 of 100 are not above.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

/// Something that has figures.
pub trait Spread {
    /// Its percentiles; all zero when there are no values.
    fn percentiles(self) -> Percentiles;
}

impl<I: IntoIterator<Item = u64>> Spread for I {
    fn percentiles(self) -> Percentiles {
        let mut sorted: Vec<u64> = self.into_iter().collect();
        sorted.sort_unstable();
        let at = |percent| rank(&sorted, percent);
        Percentiles {
            n: sorted.len(),
            min: sorted.first().copied().unwrap_or(0),
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max: sorted.last().copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let figures = (1..=200_u64).rev().percentiles();
        assert_eq!(
            (figures.n, figures.min, figures.p50, figures.p90, figures.p99, figures.max),
            (200, 1, 100, 180, 198, 200)
        );
    }

    #[test]
    fn few_values_have_percentiles_too() {
        let one = [7].percentiles();
        assert_eq!((one.p50, one.p99, one.max), (7, 7, 7));
        let two = [9, 3].percentiles();
        assert_eq!((two.p50, two.p90), (3, 9));
        assert_eq!([].percentiles().p50, 0);
    }
}
