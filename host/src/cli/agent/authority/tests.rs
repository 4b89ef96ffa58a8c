// SPDX-License-Identifier: Apache-2.0

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    agent: AgentArgs,
}

fn args(words: &[&str]) -> AgentArgs {
    Line::try_parse_from(["midge", "--task", "x"].iter().chain(words)).unwrap().agent
}

fn of(words: &[&str]) -> Result<Authority, String> {
    Authority::new(&args(words), None).map_err(|error| midge::error::chain(&error))
}

#[test]
fn server_of_ones_own_needs_a_place_and_a_name_and_no_key() {
    let local = ["--provider", "compatible", "--base-url", "http://127.0.0.1:8080", "--model", "m"];
    let authority = of(&local).unwrap();
    assert_eq!((authority.wire, authority.model.as_str()), (Wire::Chat, "m"));
    let model = authority.policy.model().unwrap();
    assert!(model.key.is_none() && model.endpoint.is_some());
    assert!(of(&local[..2]).unwrap_err().contains("--base-url"));
    assert!(of(&local[..4]).unwrap_err().contains("--model"));
}

#[test]
fn nothing_but_the_model_is_given_by_itself() {
    let authority = of(&["--provider", "anthropic", "--base-url", "http://127.0.0.1:1"]).unwrap();
    assert_eq!(authority.wire, Wire::Anthropic);
    assert!(authority.policy.credentials().is_empty() && authority.policy.peers().is_empty());
    assert!(!authority.policy.children().allowed);
}

#[test]
fn budgets_of_flags_take_the_place_of_the_policys() {
    let words = [
        "--provider",
        "compatible",
        "--base-url",
        "http://127.0.0.1:8080",
        "--model",
        "m",
        "--max-turns",
        "7",
        "--budget",
    ];
    let authority = of(&[&words[..], &["tokens=5,wall=2m,egress=1KiB"]].concat()).unwrap();
    let left = midge_broker::budgets(&authority.policy);
    assert_eq!(
        (left.turns, left.tokens, left.wall_ms, left.egress_bytes),
        (Some(7), Some(5), Some(120_000), Some(1024))
    );
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("p.toml");
    std::fs::write(&policy, "version = 1\n[limits]\nwall = \"1m\"\n").unwrap();
    let with_policy = [&words[..], &["wall=2m", "--policy", policy.to_str().unwrap()]].concat();
    let left = midge_broker::budgets(&of(&with_policy).unwrap().policy);
    assert_eq!(left.wall_ms, Some(60_000), "no longer than its sandbox may live");
    for wrong in ["tokens", "tokens=x", "coffee=1", "wall=soon"] {
        let error = of(&[&words[..], &[wrong]].concat()).unwrap_err();
        assert!(error.contains("--budget") && error.contains(wrong), "{error}");
    }
}

#[test]
fn key_that_is_there_says_whose_model_is_asked() {
    assert_eq!(by_key(true, true).unwrap(), Provider::Anthropic);
    assert_eq!(by_key(false, true).unwrap(), Provider::Openai);
    let error = midge::error::chain(&by_key(false, false).unwrap_err());
    assert!(error.contains("--replay") && error.contains("ANTHROPIC_API_KEY"), "{error}");
}

#[test]
fn policy_that_names_peers_needs_a_name_for_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    std::fs::write(&file, "version = 1\n[[peers]]\nname = \"build\"\nmessages = true\n").unwrap();
    let words = ["--provider", "compatible", "--base-url", "http://127.0.0.1:8080", "--model", "m", "--policy"];
    let named = |more: &[&str]| of(&[&words[..], &[file.to_str().unwrap()], more].concat());
    let refused = named(&[]).unwrap_err();
    assert!(refused.contains("--name") && refused.contains("(build)"), "{refused}");
    named(&["--name", "test-1"]).unwrap();
    assert!(Line::try_parse_from(["midge", "--task", "x", "--name", "../x"]).is_err(), "as in a policy");
}
