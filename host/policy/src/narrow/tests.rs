// SPDX-License-Identifier: Apache-2.0

use crate::lattice::tests::wider;
use crate::policy::Policy;
use crate::sample::{self, Dice};

/// A policy of the universe that is right as a file, too.
fn policy(dice: &mut Dice) -> Policy {
    loop {
        if let Ok(policy) = (Policy { doc: sample::doc(dice) }).checked("sample") {
            return policy;
        }
    }
}

#[test]
fn what_two_policies_have_in_common_is_no_wider_than_either() {
    let (mut proved, mut left) = (0, 0);
    for seed in 0..3000 {
        let mut dice = Dice(seed);
        let one = policy(&mut dice);
        let two = if dice.one_in(2) {
            policy(&mut dice)
        } else {
            let mut doc = one.doc.clone();
            (0..3).for_each(|_| sample::change(&mut dice, &mut doc));
            (Policy { doc }).checked("changed").unwrap_or_else(|_| one.clone())
        };
        let both = one
            .narrow(&two)
            .unwrap_or_else(|problems| panic!("seed {seed}: {problems}\n{}\n{}", one.to_toml(), two.to_toml()));
        for side in [&one, &two] {
            if let Some(what) = wider(&mut dice, &both, side) {
                panic!(
                    "seed {seed}: {what}\n--- both\n{}\n--- one\n{}\n--- two\n{}",
                    both.to_toml(),
                    one.to_toml(),
                    two.to_toml()
                );
            }
        }
        proved += u32::from(Policy::narrower_or_equal(&both, &one).is_ok());
        left += u32::from(!both.network().rules().is_empty());
    }
    println!("proved {proved}, with rules {left}");
    // The proof is careful, but what is in common of two policies is what it is made for.
    assert!(proved > 2500 && left > 1500, "{proved} {left}");
}

#[test]
fn what_a_policy_has_in_common_with_itself_is_itself() {
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let one = policy(&mut dice);
        let both = one.narrow(&one).unwrap();
        // But for limits of a rule that had to be taken in two: each part has half of them.
        let shared = |what: &String| ["connections", "bytes", "rate", "burst"].contains(&what.as_str());
        let back = wider(&mut dice, &one, &both).filter(|what| !shared(what));
        assert_eq!(back, None, "seed {seed}\n{}\n{}", one.to_toml(), both.to_toml());
    }
    for profile in crate::PROFILES {
        let policy = Policy::profile(profile.name).unwrap();
        assert_eq!(policy.narrow(&policy).unwrap(), policy, "{}", profile.name);
    }
}

#[test]
fn nothing_given_takes_nothing_back() {
    let wide = Policy::profile("full-internet-no-private").unwrap();
    let narrow = Policy::profile("package-install").unwrap();
    let both = wide.narrow(&narrow).unwrap();
    let verdict = |would: &str| both.explain(&would.parse().unwrap()).verdict;
    assert_eq!(verdict("GET https://pypi.org/simple/"), crate::Verdict::Allow);
    assert_eq!(verdict("POST https://pypi.org/legacy/"), crate::Verdict::Deny);
    assert_eq!(verdict("GET https://example.org/"), crate::Verdict::Deny);
}
