// SPDX-License-Identifier: Apache-2.0

use std::sync::atomic::AtomicU64;

use midge_record::Usage;
use proptest::prelude::*;

use super::*;

fn tokens(n: u64) -> Left {
    Left { tokens: Some(n), ..Left::default() }
}

fn charge(n: u64) -> Charge {
    Charge::of(&tokens(n))
}

fn all(n: u64) -> Left {
    Left {
        turns: Some(n),
        tool_calls: Some(n),
        tokens: Some(n),
        money_micros: Some(n),
        wall_ms: None,
        egress_bytes: Some(n),
    }
}

#[test]
fn charge_is_whole_or_nothing() {
    let ledger = Ledger::new(&Left { turns: Some(2), tokens: Some(10), ..Left::default() });
    let both = Charge::of(&Left { turns: Some(1), tokens: Some(6), ..Left::default() });
    ledger.charge(&both).unwrap();
    assert_eq!(ledger.charge(&both), Err(Exhausted { budget: "tokens", wanted: 6, left: 4 }));
    assert_eq!(ledger.left(), Left { turns: Some(1), tokens: Some(4), ..Left::default() }, "the turn came back");
    ledger.charge(&charge(4)).unwrap();
    assert_eq!(ledger.left().exhausted(), Some("tokens"));
    assert_eq!(ledger.spent().tokens, Some(10));
}

#[test]
fn what_is_not_limited_is_counted() {
    let ledger = Ledger::new(&Left::default());
    ledger.charge(&charge(u64::MAX)).unwrap();
    ledger.charge(&charge(5)).unwrap();
    assert_eq!((ledger.left().tokens, ledger.spent().tokens), (None, Some(u64::MAX)));
}

#[test]
fn reservations_hold_what_others_then_cannot_take() {
    let ledger = Ledger::new(&tokens(10));
    let first = ledger.reserve(&charge(7)).unwrap();
    assert!(ledger.reserve(&charge(4)).is_err());
    let some = ledger.reserve_some(&charge(4)).unwrap();
    assert_eq!((some.held(), ledger.left().tokens), (&charge(3), Some(0)));
    assert_eq!(ledger.reserve_some(&charge(1)).unwrap_err().budget, "tokens");
    drop(some);
    first.settle(&charge(2)).unwrap();
    assert_eq!((ledger.left().tokens, ledger.spent().tokens), (Some(8), Some(2)));
}

#[test]
fn bill_beyond_the_budget_is_told_and_never_makes_it_negative() {
    let ledger = Ledger::new(&tokens(10));
    let held = ledger.reserve(&charge(4)).unwrap();
    assert_eq!(held.settle(&charge(25)), Err(Exhausted { budget: "tokens", wanted: 25, left: 10 }));
    let figures = (ledger.left().tokens, ledger.spent().tokens, ledger.overdrawn().tokens);
    assert_eq!(figures, (Some(0), Some(10), Some(15)));
}

#[test]
fn child_spends_what_its_parent_lent_and_the_rest_comes_back() {
    let parent = Ledger::new(&tokens(100));
    let child = parent.debit(&tokens(40)).unwrap();
    assert_eq!((parent.left().tokens, child.left().tokens), (Some(60), Some(40)));
    child.charge(&charge(15)).unwrap();
    assert_eq!(parent.spent().tokens, Some(15), "seen at once");
    assert!(child.charge(&charge(26)).is_err() && parent.charge(&charge(61)).is_err());
    child.close();
    child.close();
    assert_eq!((parent.left().tokens, child.left().tokens), (Some(85), Some(0)));
    assert!(child.charge(&charge(1)).is_err(), "closed");
    drop(child);
    assert_eq!(parent.left().tokens, Some(85), "once only");
}

#[test]
fn dropped_child_closes_itself_and_late_reservations_find_home() {
    let parent = Ledger::new(&tokens(100));
    let grandchild = {
        let child = parent.debit(&tokens(50)).unwrap();
        child.debit(&tokens(30)).unwrap()
    };
    // The child lives on in its own child.
    assert_eq!(parent.left().tokens, Some(50));
    let held = grandchild.reserve(&charge(10)).unwrap();
    grandchild.close();
    assert_eq!(parent.left().tokens, Some(50));
    held.settle(&charge(4)).unwrap();
    drop(grandchild);
    assert_eq!((parent.left().tokens, parent.spent().tokens), (Some(96), Some(4)));
}

#[test]
fn unnamed_budgets_of_a_child_are_all_that_is_left() {
    let parent = Ledger::new(&Left { turns: Some(9), ..tokens(100) });
    parent.charge(&Charge::turn()).unwrap();
    let child = parent.debit(&tokens(10)).unwrap();
    assert_eq!(child.left(), Left { turns: Some(8), ..tokens(10) });
    assert_eq!(parent.left().turns, Some(0));
    let free = Ledger::new(&Left::default()).debit(&Left::default()).unwrap();
    assert_eq!(free.left(), Left::default());
}

#[test]
fn share_that_is_not_there_takes_nothing() {
    let parent = Ledger::new(&Left { turns: Some(5), ..tokens(10) });
    let error = parent.debit(&Left { turns: Some(5), ..tokens(11) }).unwrap_err();
    assert_eq!(error, Exhausted { budget: "tokens", wanted: 11, left: 10 });
    assert_eq!(parent.left(), Left { turns: Some(5), ..tokens(10) });
}

#[test]
fn unlimited_childs_rest_is_not_put_into_a_limited_parent() {
    let parent = Ledger::new(&Left::default());
    let child = parent.debit(&Left::default()).unwrap();
    parent.narrow(&tokens(10));
    child.charge(&charge(7)).unwrap();
    assert_eq!(parent.left().tokens, Some(3), "what a child spends counts above");
    assert_eq!(
        child.charge(&charge(4)).unwrap_err().left,
        3,
        "a limit put in later holds for what was lent without one"
    );
    child.close();
    assert_eq!(parent.left().tokens, Some(3));
    assert!(child.charge(&charge(1)).is_err());
}

#[test]
fn narrower_holds_at_once_and_wider_never() {
    let ledger = Ledger::new(&tokens(100));
    let held = ledger.reserve(&charge(30)).unwrap();
    ledger.charge(&charge(10)).unwrap();
    ledger.narrow(&tokens(25));
    ledger.narrow(&tokens(90));
    assert_eq!(ledger.left().tokens, Some(15));
    drop(held);
    assert_eq!(ledger.left().tokens, Some(15), "what comes back does not widen");
    assert!(ledger.charge(&charge(16)).is_err());
    ledger.charge(&charge(15)).unwrap();
    assert_eq!(ledger.left().tokens, Some(0));
}

#[test]
fn wall_time_passes_for_children_too() {
    let now = Arc::new(AtomicU64::new(1_000));
    let clock: Clock = Arc::new({
        let now = Arc::clone(&now);
        move || now.load(Ordering::Relaxed)
    });
    let wall = |ms| Left { wall_ms: Some(ms), ..Left::default() };
    let parent = Ledger::with_clock(&wall(100), clock);
    now.store(1_040, Ordering::Relaxed);
    let (short, long) = (parent.debit(&wall(10)).unwrap(), parent.debit(&wall(1_000_000)).unwrap());
    assert_eq!((parent.wall_left_ms(), short.wall_left_ms(), long.wall_left_ms()), (Some(60), Some(10), Some(60)));
    now.store(1_050, Ordering::Relaxed);
    assert_eq!(short.charge(&Charge::turn()).unwrap_err().budget, "wall");
    long.egress(1).unwrap();
    now.store(1_100, Ordering::Relaxed);
    assert!(long.egress(1).is_err() && parent.reserve(&charge(1)).is_err() && parent.debit(&wall(1)).is_err());
    assert_eq!((long.spent().wall_ms, long.spent().egress_bytes), (Some(60), Some(1)));
}

#[test]
fn money_is_rounded_up_and_never_overflows() {
    let prices = Prices { input: 3_000_000, output: 15_000_000, cache_read: 300_000, cache_write: 3_750_000 };
    let usage = Usage { input_tokens: 1_000, output_tokens: 100, cache_read_tokens: 1, ..Usage::default() };
    assert_eq!(prices.cost(&usage), 4_501, "3000 + 1500 + 0.3");
    assert_eq!(prices.cost(&Usage::default()), 0);
    let most = Usage { input_tokens: u64::MAX, output_tokens: u64::MAX, ..Usage::default() };
    assert_eq!(Prices { input: u64::MAX, output: u64::MAX, ..prices }.cost(&most), u64::MAX);
}

#[test]
fn parallel_spenders_never_overdraw() {
    let root = Ledger::new(&all(10_000));
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (root, taken) = (root.clone(), &taken);
            scope.spawn(move || {
                for round in 0..2_000_u64 {
                    let child = root.debit(&all(round % 7)).ok();
                    let spender = child.as_ref().filter(|_| round % 3 == 0).unwrap_or(&root);
                    if worker % 2 == 0 {
                        if spender.egress(3).is_ok() {
                            taken.fetch_add(3, Ordering::Relaxed);
                        }
                    } else if let Ok(held) = spender.reserve_some(&Charge::of(&all(5))) {
                        let _ = held.settle(&Charge::of(&all(round % 9)));
                    }
                }
            });
        }
    });
    let (spent, left) = (root.spent(), root.left());
    assert!(spent.egress_bytes.unwrap() >= taken.load(Ordering::Relaxed).min(10_000));
    for (spent, left) in by_axis(&spent).into_iter().zip(by_axis(&left)) {
        assert_eq!(spent.unwrap() + left.unwrap(), 10_000, "all that is not spent is there again");
    }
}

/// What may happen to one of the ledgers of a tree, chosen by a number.
#[derive(Debug, Clone)]
enum Step {
    Charge(usize, u64),
    Egress(usize, u64),
    Reserve(usize, u64),
    Settle(usize, u64),
    Debit(usize, Option<u64>),
    Close(usize),
    Drop(usize),
    Narrow(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let amount = prop_oneof![4 => 0..60_u64, 1 => Just(u64::MAX)];
    prop_oneof![
        4 => (any::<usize>(), amount.clone()).prop_map(|(at, n)| Step::Charge(at, n)),
        2 => (any::<usize>(), amount.clone()).prop_map(|(at, n)| Step::Egress(at, n)),
        3 => (any::<usize>(), amount.clone()).prop_map(|(at, n)| Step::Reserve(at, n)),
        3 => (any::<usize>(), amount.clone()).prop_map(|(at, n)| Step::Settle(at, n)),
        4 => (any::<usize>(), prop::option::of(amount.clone())).prop_map(|(at, n)| Step::Debit(at, n)),
        1 => any::<usize>().prop_map(Step::Close),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => (any::<usize>(), amount).prop_map(|(at, n)| Step::Narrow(at, n)),
    ]
}

/// Runs a program on a tree of ledgers below `root`, and gives the lowest limit that the root ever had.
fn run(root: &Ledger, steps: Vec<Step>, mut limit: u64, narrow: bool) -> u64 {
    let (mut ledgers, mut held) = (vec![root.clone()], Vec::new());
    for step in steps {
        let count = ledgers.len();
        let reserved: usize = held.len();
        match step {
            Step::Charge(at, n) => drop(ledgers[at % count].charge(&Charge::of(&all(n)))),
            Step::Egress(at, n) => drop(ledgers[at % count].egress(n)),
            Step::Reserve(at, n) if n % 2 == 0 => held.extend(ledgers[at % count].reserve(&Charge::of(&all(n)))),
            Step::Reserve(at, n) => held.extend(ledgers[at % count].reserve_some(&Charge::of(&all(n)))),
            Step::Settle(at, n) if reserved > 0 => drop(held.swap_remove(at % reserved).settle(&Charge::of(&all(n)))),
            Step::Settle(..) => {}
            Step::Debit(at, share) => {
                let share = share.map_or_else(Left::default, all);
                ledgers.extend(ledgers[at % count].debit(&share));
            }
            Step::Close(at) if at % count > 0 => ledgers[at % count].close(),
            Step::Drop(at) if at % count > 0 => drop(ledgers.swap_remove(at % count)),
            Step::Close(_) | Step::Drop(_) => {}
            Step::Narrow(at, n) if narrow => {
                let wide = n.saturating_mul(7);
                ledgers[at % count].narrow(&all(wide));
                // Narrowing below what is spent already cannot take it back.
                let floor = by_axis(&root.spent()).into_iter().flatten().max().unwrap_or(0);
                limit = if at % count == 0 { limit.min(wide.max(floor)) } else { limit };
            }
            Step::Narrow(..) => {}
        }
        for spent in by_axis(&root.spent()) {
            assert!(spent.unwrap() <= limit, "{:?} of {limit}", root.spent());
        }
    }
    limit
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn spending_below_a_root_never_exceeds_its_budget(budget in 0..400_u64, steps in prop::collection::vec(step(), 1..80)) {
        let root = Ledger::new(&all(budget));
        run(&root, steps, budget, true);
    }

    #[test]
    fn whatever_is_not_spent_is_there_at_the_end(budget in 0..400_u64, steps in prop::collection::vec(step(), 1..80)) {
        let root = Ledger::new(&all(budget));
        run(&root, steps, budget, false);
        let (spent, left) = (by_axis(&root.spent()), by_axis(&root.left()));
        for (spent, left) in spent.into_iter().zip(left) {
            prop_assert_eq!(spent.unwrap() + left.unwrap(), budget);
        }
    }
}
