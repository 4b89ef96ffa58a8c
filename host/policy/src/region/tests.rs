// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::sample::{self, Dice};

/// Whether a request is in a region, from the rule's own words.
fn holds(region: &Region, host: &str, door: (Scheme, u16), method: &str, path: &str) -> bool {
    let host = crate::HostName::parse(host).unwrap();
    region.hosts.iter().any(|pattern| pattern.matches(&host))
        && region.doors.contains(&door)
        && region.methods.as_ref().is_none_or(|methods| methods.iter().any(|one| one.as_str() == method))
        && region.paths.as_ref().is_none_or(|paths| paths.iter().any(|pattern| pattern.matches(path)))
}

#[test]
fn holding_and_meeting_agree_with_single_requests() {
    let mut covered = 0;
    for seed in 0..3000 {
        let mut dice = Dice(seed);
        let (one, two) = (Region::of(&sample::rule(&mut dice, 1)), Region::of(&sample::rule(&mut dice, 2)));
        let both = one.meet(&two);
        covered += u32::from(one.covers(&two));
        for _ in 0..40 {
            let host = dice.pick(&sample::HOSTS);
            let door = (dice.pick(&[Scheme::Http, Scheme::Https, Scheme::Tcp]), dice.pick(&sample::PORTS));
            let (method, path) = (dice.pick(&sample::METHODS), dice.pick(&["/", "/s/", "/s/a", "/s/ab", "/t/b"]));
            let (in_one, in_two) = (holds(&one, host, door, method, path), holds(&two, host, door, method, path));
            let in_both = both.as_ref().is_some_and(|both| holds(both, host, door, method, path));
            assert_eq!(in_both, in_one && in_two, "seed {seed}: {one} / {two}");
            assert!(!one.covers(&two) || !in_two || in_one, "seed {seed}: {one} / {two}");
        }
    }
    assert!(covered > 30, "the test saw regions that hold others: {covered}");
}

#[test]
fn all_methods_and_all_paths_are_more_than_any_list() {
    let rule = |rest: &str| {
        let rule: Rule = toml::from_str(&format!("name = \"r\"\nhosts = [\"a.org\"]\n{rest}")).unwrap();
        Region::of(&rule)
    };
    assert!(rule("").covers(&rule("paths = [\"/*\"]")) && !rule("paths = [\"/*\"]").covers(&rule("")));
    assert!(rule("").covers(&rule("methods = [\"GET\"]")) && !rule("methods = [\"GET\"]").covers(&rule("")));
    assert!(!rule("").covers(&rule("ports = [444]")) && rule("").covers(&rule("ports = [443]")));
    assert_eq!(rule("").to_string(), "everything to a.org (https at port 443)");
}
