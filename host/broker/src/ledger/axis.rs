// SPDX-License-Identifier: Apache-2.0
//! One budget as atomic counters, and the order of them all. No clock, no other ledger.

use std::sync::atomic::{AtomicU64, Ordering};

use midge_protocol::broker::Left;

/// Budgets that are counted: all but wall time.
pub(super) const AXES: usize = 5;
/// Where the bytes of the door `egress` stand.
pub(super) const EGRESS: usize = 4;
/// No limit.
const UNLIMITED: u64 = u64::MAX;

/// The name of a budget, as in [`Left::exhausted`].
pub(super) fn axis_name(index: usize) -> &'static str {
    ["turns", "tool_calls", "tokens", "money", "egress"].get(index).copied().unwrap_or("wall")
}

/// The counted budgets in their order.
pub(super) fn by_axis(left: &Left) -> [Option<u64>; AXES] {
    [left.turns, left.tool_calls, left.tokens, left.money_micros, left.egress_bytes]
}

/// The same, to be changed.
pub(super) fn fields(left: &mut Left) -> [&mut Option<u64>; AXES] {
    [&mut left.turns, &mut left.tool_calls, &mut left.tokens, &mut left.money_micros, &mut left.egress_bytes]
}

/// The other way round.
pub(super) fn from_axes(value: impl Fn(usize) -> Option<u64>, wall_ms: Option<u64>) -> Left {
    let mut left = Left { wall_ms, ..Left::default() };
    for (index, field) in fields(&mut left).into_iter().enumerate() {
        *field = value(index);
    }
    left
}

/// One budget: what nobody has taken (what is taken is spent, reserved, or a child's), and what was spent here and below, which
/// never passes the limit whatever was lent before the limit was lowered.
pub(super) struct Axis {
    left: AtomicU64,
    limit: AtomicU64,
    spent: AtomicU64,
    overdrawn: AtomicU64,
}

impl Axis {
    /// A limit of `u64::MAX` is one less: that number stands for none.
    pub(super) fn new(limit: Option<u64>) -> Self {
        let limit = limit.map_or(UNLIMITED, |limit| limit.min(UNLIMITED - 1));
        Self {
            left: AtomicU64::new(limit),
            limit: AtomicU64::new(limit),
            spent: AtomicU64::new(0),
            overdrawn: AtomicU64::new(0),
        }
    }

    pub(super) fn is_limited(&self) -> bool {
        self.limit() != UNLIMITED
    }

    fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    /// What can still be spent here; none when there is no limit.
    pub(super) fn left(&self) -> Option<u64> {
        let cap = self.limit().saturating_sub(self.spent());
        self.is_limited().then(|| self.left.load(Ordering::Acquire).min(cap))
    }

    pub(super) fn spent(&self) -> u64 {
        self.spent.load(Ordering::Acquire)
    }

    pub(super) fn overdrawn(&self) -> u64 {
        self.overdrawn.load(Ordering::Acquire)
    }

    /// Takes all of `amount`, or says what is left.
    pub(super) fn take(&self, amount: u64) -> Result<(), u64> {
        let taken = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| match left {
            UNLIMITED => Some(UNLIMITED),
            left => left.checked_sub(amount),
        });
        taken.map(drop)
    }

    /// Takes as much of `amount` as there is. Of what has no limit, `u64::MAX` takes nothing: there is no rest to give back.
    pub(super) fn take_some(&self, amount: u64) -> u64 {
        let mut got = 0;
        let _ = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
            got = match (left, amount) {
                (UNLIMITED, u64::MAX) => 0,
                (UNLIMITED, amount) => amount,
                (left, amount) => left.min(amount),
            };
            Some(if left == UNLIMITED { UNLIMITED } else { left - got })
        });
        got
    }

    /// Gives back what was taken and not spent.
    pub(super) fn put_back(&self, amount: u64) {
        if amount > 0 {
            let _ = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| match left {
                UNLIMITED => None,
                left => Some(left.saturating_add(amount).min(UNLIMITED - 1)),
            });
        }
    }

    /// Counts all of `amount` as spent, or says what the limit still allows.
    pub(super) fn spend(&self, amount: u64) -> Result<(), u64> {
        if amount == 0 {
            return Ok(());
        }
        let limit = self.limit();
        let spent = self.spent.fetch_update(Ordering::AcqRel, Ordering::Acquire, |spent| {
            let sum = spent.saturating_add(amount);
            (sum <= limit).then_some(sum)
        });
        spent.map(drop).map_err(|spent| limit.saturating_sub(spent))
    }

    /// Counts as much of `amount` as spent as the limit allows, and says how much that is.
    pub(super) fn spend_some(&self, amount: u64) -> u64 {
        let limit = self.limit();
        let mut got = 0;
        let _ = self.spent.fetch_update(Ordering::AcqRel, Ordering::Acquire, |spent| {
            got = amount.min(limit.saturating_sub(spent));
            (got > 0).then_some(spent + got)
        });
        got
    }

    /// Takes back what [`Axis::spend`] counted.
    pub(super) fn unspend(&self, amount: u64) {
        self.spent.fetch_sub(amount, Ordering::AcqRel);
    }

    pub(super) fn overdraw(&self, amount: u64) {
        let add = |now: u64| Some(now.saturating_add(amount));
        let _ = self.overdrawn.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    /// Nothing is left of what has no limit; of what has one, `take_some` gets the rest.
    pub(super) fn close(&self) {
        let _ = self.left.compare_exchange(UNLIMITED, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Lowers the limit to `limit`, if it is higher.
    pub(super) fn narrow(&self, limit: u64) {
        let limit = limit.min(UNLIMITED - 1);
        self.limit.fetch_min(limit, Ordering::AcqRel);
        self.left.fetch_min(limit.saturating_sub(self.spent()), Ordering::AcqRel);
    }
}
