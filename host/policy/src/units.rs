// SPDX-License-Identifier: Apache-2.0
//! Amounts with their units. Whole numbers only: nothing that is counted or paid here is a float.

use std::fmt;
use std::str::FromStr;

use crate::text::{Malformed, text_type};

/// Largest amount of bytes: 1 PiB.
pub const BYTES_MAX: u64 = 1 << 50;
/// Longest period: 365 days, in milliseconds.
pub const PERIOD_MAX_MS: u64 = 365 * 86_400_000;
/// Largest amount of money: a million dollars, in millionths.
pub const MONEY_MAX_MICROS: u64 = 1_000_000 * 1_000_000;
/// Largest count of a rate.
pub const RATE_MAX: u32 = 1_000_000;

/// An amount of bytes, 1 to [`BYTES_MAX`]: `"512MiB"`, `"1GiB"`, `"10MB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

/// A length of time, 1 ms to [`PERIOD_MAX_MS`]: `"90s"`, `"1h30m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(u64);

/// US dollars in millionths, 0 to [`MONEY_MAX_MICROS`]: `"5.00"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(u64);

/// So many in a second, a minute or an hour: `"10/s"`. As many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    count: u32,
    per: Per,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Per {
    Second,
    Minute,
    Hour,
}

text_type!(
    Bytes,
    "midge-bytes",
    "a whole number with a unit: B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, from 1B to 1024TiB"
);
text_type!(Period, "midge-period", "whole numbers with units, the longest first: d, h, m, s or ms, from 1ms to 365d");
text_type!(Money, "midge-money", "US dollars with at most six decimals, from 0 to 1000000, in quotes");
text_type!(Rate, "midge-rate", "a whole number from 1 to 1000000, then /s, /m or /h");

/// Units of bytes; those that can be told exactly are told in the first that fits.
const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// Units of time in milliseconds, the longest first.
const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Bytes {
    /// So many bytes, none above [`BYTES_MAX`].
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(bytes.clamp(1, BYTES_MAX))
    }

    /// How many.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl Period {
    /// So many milliseconds, none above [`PERIOD_MAX_MS`].
    #[must_use]
    pub fn from_ms(ms: u64) -> Self {
        Self(ms.clamp(1, PERIOD_MAX_MS))
    }

    /// In milliseconds.
    #[must_use]
    pub fn as_ms(self) -> u64 {
        self.0
    }

    /// As the standard library has it.
    #[must_use]
    pub fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl Money {
    /// So many millionths of a dollar, none above [`MONEY_MAX_MICROS`].
    #[must_use]
    pub fn from_micros(micros: u64) -> Self {
        Self(micros.min(MONEY_MAX_MICROS))
    }

    /// In millionths of a dollar.
    #[must_use]
    pub fn micros(self) -> u64 {
        self.0
    }
}

impl Rate {
    /// How many in one [`Rate::per`]; as many may come at once.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// The time in which they may come.
    #[must_use]
    pub fn per(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.per.seconds())
    }

    /// As few at once as the fewer, over as long as the longer: no more than either.
    pub(crate) fn meet(self, other: Self) -> Self {
        let per = if self.per.seconds() < other.per.seconds() { other.per } else { self.per };
        Self { count: self.count.min(other.count), per }
    }

    /// One of so many shares, if that is any.
    pub(crate) fn share(self, shares: usize) -> Option<Self> {
        let count = self.count / u32::try_from(shares.max(1)).unwrap_or(u32::MAX);
        (count > 0).then_some(Self { count, ..self })
    }

    /// How many in an hour.
    #[must_use]
    pub fn per_hour(self) -> u64 {
        u64::from(self.count) * 3600 / self.per.seconds()
    }
}

impl Per {
    fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        }
    }
}

/// Digits at the start of `text` as a number, and what follows them.
fn leading_number(text: &str) -> Result<(u64, &str), Malformed> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Err(Malformed::new("does not begin with a whole number"));
    }
    if rest.starts_with('.') {
        return Err(Malformed::new("is not a whole number; take a smaller unit"));
    }
    digits.parse().map(|number| (number, rest)).map_err(|_| Malformed::new("is too large"))
}

impl FromStr for Bytes {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (number, unit) = leading_number(text)?;
        let (_, scale) = BYTE_UNITS
            .into_iter()
            .find(|(name, _)| *name == unit.trim_start())
            .ok_or_else(|| Malformed::new(if unit.is_empty() { "has no unit" } else { "has an unknown unit" }))?;
        match number.checked_mul(scale) {
            Some(bytes @ 1..=BYTES_MAX) => Ok(Self(bytes)),
            _ => Err(Malformed::new("is out of range")),
        }
    }
}

impl FromStr for Period {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (mut rest, mut total, mut units) = (text, 0_u64, TIME_UNITS.as_slice());
        while !rest.is_empty() || total == 0 {
            let (number, after) = leading_number(rest)?;
            let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, next) = after.split_at(end);
            if unit.is_empty() {
                return Err(Malformed::new("has a number without a unit"));
            }
            let at = units
                .iter()
                .position(|(name, _)| *name == unit)
                .ok_or_else(|| Malformed::new("has an unknown unit, or units that are not in order"))?;
            let (_, scale) = units[at];
            let sum = number.checked_mul(scale).and_then(|ms| total.checked_add(ms));
            total =
                sum.filter(|ms| (1..=PERIOD_MAX_MS).contains(ms)).ok_or_else(|| Malformed::new("is out of range"))?;
            (rest, units) = (next, &units[at + 1..]);
        }
        Ok(Self(total))
    }
}

impl FromStr for Money {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(part) {
            return Err(Malformed::new("is not an amount such as 5 or 0.25"));
        }
        if part.len() > 6 {
            return Err(Malformed::new("has more than six decimals"));
        }
        let parsed = whole.parse::<u64>().ok().zip(format!("{part:0<6}").parse::<u64>().ok());
        let micros = parsed.and_then(|(whole, part)| whole.checked_mul(1_000_000)?.checked_add(part));
        match micros {
            Some(micros @ 0..=MONEY_MAX_MICROS) => Ok(Self(micros)),
            _ => Err(Malformed::new("is out of range")),
        }
    }
}

impl FromStr for Rate {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (number, unit) = leading_number(text)?;
        let per = match unit {
            "/s" => Per::Second,
            "/m" => Per::Minute,
            "/h" => Per::Hour,
            _ => return Err(Malformed::new("does not end in /s, /m or /h")),
        };
        match u32::try_from(number) {
            Ok(count @ 1..=RATE_MAX) => Ok(Self { count, per }),
            _ => Err(Malformed::new("is out of range")),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = BYTE_UNITS.into_iter().find(|(_, scale)| self.0.is_multiple_of(*scale));
        let (name, scale) = fits.unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / scale)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0;
        for (name, scale) in TIME_UNITS {
            if left >= scale {
                write!(f, "{}{name}", left / scale)?;
                left %= scale;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = format!("{:06}", self.0 % 1_000_000);
        let (cents, rest) = part.split_at(2);
        write!(f, "{}.{cents}{}", self.0 / 1_000_000, rest.trim_end_matches('0'))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per {
            Per::Second => 's',
            Per::Minute => 'm',
            Per::Hour => 'h',
        };
        write!(f, "{}/{unit}", self.count)
    }
}

#[cfg(test)]
mod tests;
