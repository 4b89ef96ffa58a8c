// SPDX-License-Identifier: Apache-2.0
//! From a guest's request to an order that widens nothing: policy, base, number, budgets. No I/O.

use midge_policy::{Budget, Policy};
use midge_protocol::broker::{Base, ChildRequest, Left, Work};

use super::{ChildDoor, Order};

/// Longest task or command, in bytes.
const WORK_MAX_BYTES: usize = 256 << 10;

impl ChildDoor {
    /// The order for a request, with its budgets taken from this ledger; or every reason against it.
    pub(super) fn order(&self, number: u64, request: ChildRequest) -> Result<Order, Vec<String>> {
        let parent = self.policy.borrow().clone();
        let one = |why: String| vec![why];
        let asked = request.policy.as_deref().map(|text| Policy::parse(text, "the child's policy")).transpose();
        let asked = asked.map_err(|problems| one(problems.to_string()))?;
        let policy = parent
            .child(asked.as_ref())
            .map_err(|widenings| widenings.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        base_is_named(&request.base, &parent).map_err(one)?;
        work_is_some(&request.work).map_err(one)?;
        let share =
            share(request.share.as_ref(), &self.ledger.left(), &parent, policy.policy().budget()).map_err(one)?;
        self.family.admit().map_err(one)?;
        let ledger = self.ledger.debit(&share).map_err(|exhausted| {
            self.family.give_back();
            one(exhausted.to_string())
        })?;
        let family = self.family.below(policy.policy());
        let name = format!("{}.{number}", self.name);
        Ok(Order { name, policy, base: request.base, work: request.work, ledger, family })
    }
}

fn base_is_named(base: &Base, parent: &Policy) -> Result<(), String> {
    match base {
        Base::Myself => Ok(()),
        Base::Template(name) if parent.children().templates.iter().any(|one| one.as_str() == name) => Ok(()),
        Base::Template(name) => Err(format!("the policy does not name the template {name:.64} for children")),
    }
}

fn work_is_some(work: &Work) -> Result<(), String> {
    let (len, empty) = match work {
        Work::Task(task) => (task.len(), task.trim().is_empty()),
        Work::Command(argv) => {
            (argv.iter().map(|word| word.len() + 1).sum(), argv.first().is_none_or(String::is_empty))
        }
    };
    if empty {
        return Err("a child needs a task or a command".to_owned());
    }
    if len > WORK_MAX_BYTES {
        return Err(format!("a task or command has at most {WORK_MAX_BYTES} bytes, and this one has {len}"));
    }
    Ok(())
}

/// What a child gets: what is asked for, else the policy's share, and never more than its own policy's budget. More than the
/// policy's share of what is left is refused; of what is not limited there is no share.
fn share(asked: Option<&Left>, left: &Left, parent: &Policy, own: &Budget) -> Result<Left, String> {
    let percent = u64::from(parent.children().share_percent);
    let asked = asked.copied().unwrap_or_default();
    let one = |name: &str, left: Option<u64>, asked: Option<u64>, own: Option<u64>| {
        let most = left.map(|left| u64::try_from(u128::from(left) * u128::from(percent) / 100).unwrap_or(u64::MAX));
        match (asked, most) {
            (Some(0), _) => Err(format!("a share of 0 of the budget `{name}` is none")),
            (Some(asked), Some(most)) if asked > most => Err(format!(
                "{asked} of the budget `{name}` are more than {most}: {percent} percent of what is left may go to one child"
            )),
            (_, Some(0)) => Err(format!("nothing that could be shared is left of the budget `{name}`")),
            (asked, most) => Ok([asked.or(most), most, own].into_iter().flatten().min()),
        }
    };
    Ok(Left {
        turns: one("turns", left.turns, asked.turns, own.turns)?,
        tool_calls: one("tool_calls", left.tool_calls, asked.tool_calls, own.tool_calls)?,
        tokens: one("tokens", left.tokens, asked.tokens, own.tokens)?,
        money_micros: one(
            "money",
            left.money_micros,
            asked.money_micros,
            own.money_usd.map(midge_policy::Money::micros),
        )?,
        // Time passes for both at once: all of what is left is the child's too.
        wall_ms: [asked.wall_ms, left.wall_ms, own.wall.map(midge_policy::Period::as_ms)].into_iter().flatten().min(),
        egress_bytes: one("egress", left.egress_bytes, asked.egress_bytes, own.egress.map(midge_policy::Bytes::get))?,
    })
}
