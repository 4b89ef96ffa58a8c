// SPDX-License-Identifier: Apache-2.0
//! Budgets: what one sandbox may still spend, as counters that are never negative and never lent twice.
//!
//! Every budget is an atomic counter of what is left; spending takes from it or fails, whoever else spends at the same time. What
//! cannot be known before it is spent is reserved and settled afterwards. A child's ledger is filled from its parent's: what it
//! may spend is gone from the parent until the child is closed, when the rest comes back. So the sum of all that is spent below a
//! ledger cannot be more than that ledger was given. Wall time is not lent: a child's deadline is never later than its parent's.
//!
//! Counts only. Who asks, what is refused and what is recorded are the doors' business.

mod axis;
mod charge;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use midge_protocol::broker::Left;

use axis::{AXES, Axis, EGRESS, axis_name, by_axis, from_axes};
pub use charge::{Charge, Prices};

/// A budget that does not hold what is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("spending {wanted} of the budget `{budget}`: {left} are left of it")]
pub struct Exhausted {
    /// Its name, as in [`Left::exhausted`].
    pub budget: &'static str,
    /// What was asked for, in the budget's unit: calls, tokens, millionths of a US dollar, milliseconds, bytes.
    pub wanted: u64,
    /// What there was.
    pub left: u64,
}

/// A clock that is never set: milliseconds since any fixed moment.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The budgets of one sandbox. Clones are the same ledger. It closes itself when the last clone is dropped.
#[derive(Clone)]
pub struct Ledger(Arc<Book>);

struct Book {
    axes: [Axis; AXES],
    clock: Clock,
    opened_ms: u64,
    /// By the clock; `u64::MAX` for none.
    deadline_ms: AtomicU64,
    parent: Option<Ledger>,
    closed: AtomicBool,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("left", &self.left()).field("spent", &self.spent()).finish()
    }
}

impl Ledger {
    /// A ledger with these budgets, whose wall time begins now. Absent: not limited.
    #[must_use]
    pub fn new(budgets: &Left) -> Self {
        let start = Instant::now();
        Self::with_clock(budgets, Arc::new(move || u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }

    /// The same by another clock.
    #[must_use]
    pub fn with_clock(budgets: &Left, clock: Clock) -> Self {
        Self::open(budgets, clock, None, u64::MAX)
    }

    fn open(budgets: &Left, clock: Clock, parent: Option<Self>, latest_ms: u64) -> Self {
        let opened_ms = clock();
        let own = budgets.wall_ms.map_or(u64::MAX, |wall| opened_ms.saturating_add(wall));
        Self(Arc::new(Book {
            axes: by_axis(budgets).map(Axis::new),
            clock,
            opened_ms,
            deadline_ms: AtomicU64::new(own.min(latest_ms)),
            parent,
            closed: AtomicBool::new(false),
        }))
    }

    /// Takes a whole charge, or nothing of it.
    ///
    /// # Errors
    /// [`Exhausted`] names the first budget that does not hold it; also when the wall time is over.
    pub fn charge(&self, charge: &Charge) -> Result<(), Exhausted> {
        self.in_time()?;
        self.0.take(charge)?;
        self.0.spend(charge).inspect_err(|_| self.0.put_back(charge))
    }

    /// Sets a charge aside, or nothing of it, until it is settled with what it really was.
    ///
    /// # Errors
    /// As [`Ledger::charge`].
    pub fn reserve(&self, charge: &Charge) -> Result<Reservation, Exhausted> {
        self.in_time()?;
        self.0.take(charge)?;
        Ok(Reservation { ledger: self.clone(), held: *charge })
    }

    /// Sets as much of a charge aside as there is: for an estimate that need not be reached, such as the longest answer of a model.
    ///
    /// # Errors
    /// [`Exhausted`] for a budget of which nothing is left at all though some is wanted.
    pub fn reserve_some(&self, charge: &Charge) -> Result<Reservation, Exhausted> {
        self.in_time()?;
        let mut held = Charge::default();
        for index in 0..AXES {
            let wanted = charge.0[index];
            held.0[index] = self.0.axes[index].take_some(wanted);
            if wanted > 0 && held.0[index] == 0 {
                self.0.put_back(&held);
                return Err(Exhausted { budget: axis_name(index), wanted, left: 0 });
            }
        }
        Ok(Reservation { ledger: self.clone(), held })
    }

    /// Bytes through the door `egress`: for each piece of a stream. No lock, and nothing but this one counter of each ledger up to
    /// the root is touched.
    ///
    /// # Errors
    /// [`Exhausted`] when they are not left, or the wall time is over; none of them is counted then.
    pub fn egress(&self, bytes: u64) -> Result<(), Exhausted> {
        self.in_time()?;
        let exhausted = |left| Exhausted { budget: axis_name(EGRESS), wanted: bytes, left };
        self.0.axes[EGRESS].take(bytes).map_err(exhausted)?;
        self.0.spend_axis(EGRESS, bytes).map_err(|left| {
            self.0.put_back_axis(EGRESS, bytes);
            exhausted(left)
        })
    }

    /// What is left.
    #[must_use]
    pub fn left(&self) -> Left {
        let wall_ms = self.deadline().map(|deadline| deadline.saturating_sub((self.0.clock)()));
        from_axes(|index| self.0.axes[index].left(), wall_ms)
    }

    /// What was spent, children included; every field is there.
    #[must_use]
    pub fn spent(&self) -> Left {
        let wall_ms = (self.0.clock)().saturating_sub(self.0.opened_ms);
        from_axes(|index| Some(self.0.axes[index].spent()), Some(wall_ms))
    }

    /// What was charged by settling beyond what there was: a provider's bill can be longer than any estimate. It is not in
    /// [`Ledger::spent`]; every field is there.
    #[must_use]
    pub fn overdrawn(&self) -> Left {
        from_axes(|index| Some(self.0.axes[index].overdrawn()), None)
    }

    /// Milliseconds until the wall time is over; none when it is not limited.
    #[must_use]
    pub fn wall_left_ms(&self) -> Option<u64> {
        self.left().wall_ms
    }

    /// A ledger for a child, filled with `share` from this one. A budget that `share` does not name is limited as what is left
    /// here, whole; one that is not limited here is limited by `share` alone.
    ///
    /// # Errors
    /// [`Exhausted`] when a budget does not hold its share; nothing is taken then.
    pub fn debit(&self, share: &Left) -> Result<Self, Exhausted> {
        self.in_time()?;
        let mut budgets = *share;
        let wanted = by_axis(share);
        let mut taken = Charge::default();
        for (index, wanted) in wanted.into_iter().enumerate() {
            let axis = &self.0.axes[index];
            let got = match wanted {
                Some(amount) => axis.take(amount).map(|()| amount),
                None => Ok(axis.take_some(u64::MAX)),
            };
            match got {
                Ok(amount) => taken.0[index] = amount,
                Err(left) => {
                    self.0.put_back(&taken);
                    return Err(Exhausted { budget: axis_name(index), wanted: wanted.unwrap_or(0), left });
                }
            }
        }
        for (index, budget) in axis::fields(&mut budgets).into_iter().enumerate() {
            if budget.is_none() && self.0.axes[index].is_limited() {
                *budget = Some(taken.0[index]);
            }
        }
        let latest = self.0.deadline_ms.load(Ordering::Acquire);
        Ok(Self::open(&budgets, Arc::clone(&self.0.clock), Some(self.clone()), latest))
    }

    /// Ends a ledger: nothing can be spent of it any more, and what is left goes back to where it came from. The second time
    /// does nothing. What is reserved goes back when it is settled.
    pub fn close(&self) {
        self.0.close();
    }

    /// Lowers the budgets to `budgets` where these are lower, counted from the beginning: at once, also for what a reservation
    /// has not taken yet. Never raises one. Children keep what they were given.
    pub fn narrow(&self, budgets: &Left) {
        for (axis, budget) in self.0.axes.iter().zip(by_axis(budgets)) {
            if let Some(budget) = budget {
                axis.narrow(budget);
            }
        }
        if let Some(wall) = budgets.wall_ms {
            self.0.deadline_ms.fetch_min(self.0.opened_ms.saturating_add(wall), Ordering::AcqRel);
        }
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.0.deadline_ms.load(Ordering::Acquire)).filter(|deadline| *deadline != u64::MAX)
    }

    fn in_time(&self) -> Result<(), Exhausted> {
        match self.deadline() {
            Some(deadline) if (self.0.clock)() >= deadline => Err(Exhausted { budget: "wall", wanted: 1, left: 0 }),
            _ => Ok(()),
        }
    }
}

impl Book {
    fn take(&self, charge: &Charge) -> Result<(), Exhausted> {
        let mut taken = Charge::default();
        for index in 0..AXES {
            let wanted = charge.0[index];
            if let Err(left) = self.axes[index].take(wanted) {
                self.put_back(&taken);
                return Err(Exhausted { budget: axis_name(index), wanted, left });
            }
            taken.0[index] = wanted;
        }
        Ok(())
    }

    /// Counts what was taken as spent, here and in every ledger above, or nothing of it. That fails only where a limit was lowered
    /// after more had been lent.
    fn spend(&self, charge: &Charge) -> Result<(), Exhausted> {
        for index in 0..AXES {
            let wanted = charge.0[index];
            if let Err(left) = self.spend_axis(index, wanted) {
                (0..index).for_each(|index| self.unspend_axis(index, charge.0[index]));
                return Err(Exhausted { budget: axis_name(index), wanted, left });
            }
        }
        Ok(())
    }

    fn spend_axis(&self, index: usize, amount: u64) -> Result<(), u64> {
        self.axes[index].spend(amount)?;
        let Some(parent) = &self.parent else { return Ok(()) };
        parent.0.spend_axis(index, amount).inspect_err(|_| self.axes[index].unspend(amount))
    }

    fn unspend_axis(&self, index: usize, amount: u64) {
        self.axes[index].unspend(amount);
        if let Some(parent) = &self.parent {
            parent.0.unspend_axis(index, amount);
        }
    }

    /// Counts as much as every limit up to the root allows, and says how much that is here.
    fn spend_some(&self, index: usize, amount: u64) -> u64 {
        let above = self.parent.as_ref().map_or(amount, |parent| parent.0.spend_some(index, amount));
        self.axes[index].spend_some(above)
    }

    fn put_back(&self, charge: &Charge) {
        for (index, amount) in charge.0.into_iter().enumerate() {
            self.axes[index].put_back(amount);
        }
        self.return_if_closed();
    }

    fn put_back_axis(&self, index: usize, amount: u64) {
        self.axes[index].put_back(amount);
        self.return_if_closed();
    }

    fn return_if_closed(&self) {
        // Whoever closes either sees what was put back just now, or set the flag before this looks.
        if self.closed.load(Ordering::SeqCst) {
            self.return_rest();
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.axes.iter().for_each(Axis::close);
        self.return_rest();
    }

    fn return_rest(&self) {
        let mut rest = Charge::default();
        for (amount, axis) in rest.0.iter_mut().zip(&self.axes) {
            *amount = axis.take_some(u64::MAX);
        }
        if let Some(parent) = &self.parent {
            parent.0.put_back(&rest);
        }
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        self.close();
    }
}

/// Something set aside. Dropped without being settled, it goes back whole.
#[derive(Debug)]
#[must_use]
pub struct Reservation {
    ledger: Ledger,
    held: Charge,
}

impl Reservation {
    /// What is set aside.
    #[must_use]
    pub fn held(&self) -> &Charge {
        &self.held
    }

    /// Spends what it really was: the rest goes back, and what is missing is taken as far as it is there.
    ///
    /// # Errors
    /// [`Exhausted`] for the first budget that did not hold what was missing. All that was there is spent; the rest is counted in
    /// [`Ledger::overdrawn`].
    pub fn settle(mut self, real: &Charge) -> Result<(), Exhausted> {
        let held = std::mem::take(&mut self.held);
        let book = &self.ledger.0;
        let mut rest = Charge::default();
        let mut short = None;
        for index in 0..AXES {
            let (real, held) = (real.0[index], held.0[index]);
            rest.0[index] = held.saturating_sub(real);
            let more = book.axes[index].take_some(real.saturating_sub(held));
            let spent = book.spend_some(index, real.min(held).saturating_add(more));
            if spent < real {
                book.axes[index].overdraw(real - spent);
                short = short.or(Some(Exhausted { budget: axis_name(index), wanted: real, left: spent }));
            }
        }
        book.put_back(&rest);
        short.map_or(Ok(()), Err)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ledger.0.put_back(&self.held);
    }
}

#[cfg(test)]
mod tests;
