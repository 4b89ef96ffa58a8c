// SPDX-License-Identifier: Apache-2.0
//! Body of the fuzz target `policy`: any bytes as a policy file, as a host, as a question and as a path.

use crate::host::HostName;
use crate::policy::Policy;
use crate::problem::is_plain;
use crate::would::Would;

/// One input: the first line is also a question, and a host.
///
/// # Panics
/// What is wrong with the crate.
pub fn policy(data: &[u8]) {
    let first = String::from_utf8_lossy(data.split(|byte| *byte == b'\n').next().unwrap_or_default()).into_owned();
    if let Ok(host) = HostName::parse(&first) {
        assert_eq!(HostName::parse(host.as_str()), Ok(host.clone()), "a host has one spelling");
        assert_eq!(HostName::parse(&host.authority()), Ok(host));
    }
    let policy = match Policy::parse(data, &first) {
        Ok(policy) => policy,
        Err(problems) => {
            assert!(!problems.problems.is_empty());
            let text = problems.to_string();
            assert!(text.chars().all(|c| c == '\n' || is_plain(c)), "{text:?}");
            assert!(!text.contains("bug of midge"), "what has the right shape can be read: {text}");
            return;
        }
    };
    assert_eq!(Policy::parse(policy.to_toml(), "again"), Ok(policy.clone()), "what is written out is the same policy");
    assert!(Policy::narrower_or_equal(&policy, &policy).is_ok(), "a policy is as narrow as itself");
    let both = policy.narrow(&policy);
    assert!(
        both.is_ok_and(|both| Policy::narrower_or_equal(&both, &policy).is_ok()),
        "and has itself in common with itself"
    );
    if let Ok(would) = first.trim_start_matches(['#', ' ']).parse::<Would>() {
        let told = policy.explain(&would).to_string();
        assert!(told.chars().all(|c| c == '\n' || is_plain(c)), "{told:?}");
    }
}
