// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::units::Money;

#[test]
fn what_is_written_out_is_read_as_the_same() {
    let reference = include_str!("../../../../docs/policy.md");
    let example = reference.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let texts = profiles::PROFILES.iter().map(|profile| profile.text).chain([example]);
    for text in texts {
        let policy = Policy::parse(text, "one").unwrap();
        assert_eq!(Policy::parse(policy.to_toml(), "two").unwrap(), policy);
        assert!(policy.to_toml().contains("vcpus"), "defaults are written out");
    }
}

#[test]
fn profiles_and_files_are_loaded_by_name() {
    assert!(Policy::load("offline").is_ok());
    let error = Policy::load("ofline").unwrap_err().to_string();
    assert!(error.contains("package-install") && error.contains("./ofline"), "{error}");
    let error = Policy::load("/no/such.toml").unwrap_err();
    assert!(matches!(error, LoadError::Read { .. }), "{error}");
    let error = Policy::load("/dev/zero").unwrap_err();
    assert!(error.to_string().contains("too large"), "a file without end is not read to its end: {error}");
    assert!(matches!(Policy::load("/"), Err(LoadError::Read { .. })));
}

#[test]
fn flags_change_a_policy_only_to_one_that_is_right() {
    let policy = Policy::profile("code-review").unwrap();
    let money = Budget { money_usd: Some(Money::from_micros(1)), ..policy.budget().clone() };
    let problems = policy.clone().with_budget(money.clone()).unwrap_err();
    assert!(problems.to_string().contains("has no price"), "{problems}");
    let without = policy.clone().with_model(None).unwrap();
    assert_eq!(without.with_budget(money.clone()).unwrap().budget(), &money);
}
