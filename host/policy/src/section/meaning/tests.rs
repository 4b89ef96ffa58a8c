// SPDX-License-Identifier: Apache-2.0

use super::*;

fn model(text: &str) -> Model {
    toml::from_str(text).unwrap()
}

#[test]
fn a_price_is_that_of_the_name_then_of_the_longest_pattern() {
    let prices = "[prices]\n\"*\" = { input = \"9\", output = \"9\" }\n\"small-*\" = { input = \"2\", output = \"2\" }\n\
        \"small-1\" = { input = \"1\", output = \"1\" }\n";
    let model = model(&format!("provider = \"openai\"\nmodels = [\"*\"]\n{prices}"));
    let input = |name: &str| model.price(name).map(|price| price.input.to_string());
    assert_eq!(input("small-1").as_deref(), Some("1.00"));
    assert_eq!(input("small-2").as_deref(), Some("2.00"));
    assert_eq!(input("large").as_deref(), Some("9.00"));
}

#[test]
fn costs_are_rounded_up_and_do_not_overflow() {
    let price: Price = toml::from_str("input = \"3\"\noutput = \"15.00\"\ncache_read = \"0.30\"").unwrap();
    let cost = |input, output, cache_read, cache_write| price.micros(Tokens { input, output, cache_read, cache_write });
    assert_eq!(cost(1_000_000, 0, 0, 0), 3_000_000);
    assert_eq!(cost(0, 1, 0, 0), 15);
    assert_eq!(cost(0, 0, 1, 0), 1, "0.3 of a millionth is one");
    assert_eq!(cost(0, 0, 0, 10), 60, "twice the input when nothing is said");
    assert_eq!(cost(0, 0, 0, 0), 0);
    assert_eq!(
        price.micros(Tokens { input: u64::MAX, output: u64::MAX, cache_read: u64::MAX, cache_write: u64::MAX }),
        u64::MAX
    );
}

#[test]
fn places_of_providers() {
    let endpoint = |text: &str| model(text).endpoint().map(|endpoint| endpoint.to_string());
    assert_eq!(endpoint("provider = \"anthropic\"\nmodels = [\"*\"]").as_deref(), Some("https://api.anthropic.com"));
    assert_eq!(endpoint("provider = \"openai\"\nmodels = [\"*\"]").as_deref(), Some("https://api.openai.com"));
    assert_eq!(endpoint("provider = \"compatible\"\nmodels = [\"*\"]"), None);
    let own = "provider = \"compatible\"\nmodels = [\"*\"]\nendpoint = \"http://localhost:11434\"";
    assert_eq!(endpoint(own).as_deref(), Some("http://localhost:11434"));
}

#[test]
fn tools_by_name_else_by_default() {
    let tools: Tools =
        toml::from_str("default = \"ask\"\nrules = { shell = \"allow\" }\nask_commands = [\"git push*\"]").unwrap();
    assert_eq!((tools.action("shell"), tools.action("write")), (Action::Allow, Action::Ask));
    assert_eq!((tools.asks_about("git push -f"), tools.asks_about("git pull")), (Some("git push*"), None));
    assert!(
        Action::Deny < Action::Ask
            && Action::Ask < Action::Allow
            && Mode::Discard < Mode::Review
            && Mode::Review < Mode::Apply
    );
}
