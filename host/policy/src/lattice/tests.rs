// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::LazyLock;

use super::*;
use crate::decide::{Request, Verdict};
use crate::host::HostName;
use crate::network::{Credential, Rule, Scheme};
use crate::sample::{self, Dice};
use crate::section::{Action, Mode, SHELL_TOOL};
use crate::units::Rate;

/// Programs of the property test.
const PROGRAMS: u64 = 100_000;
/// Requests that each descendant and each of its ancestors are asked about.
const SAMPLES: usize = 8;

/// Why `low` may do something that `high` may not, if it may.
pub(crate) fn wider(dice: &mut Dice, low: &Policy, high: &Policy) -> Option<String> {
    numbers(low, high)
        .or_else(|| requests(dice, low, high))
        .or_else(|| models(low, high))
        .or_else(|| tools(low, high))
        .or_else(|| files(low, high))
        .or_else(|| peers(low, high))
}

fn more<T: Ord>(what: &str, low: T, high: T) -> Option<String> {
    (low > high).then(|| what.to_owned())
}

fn unlimited<T: Ord>(what: &str, low: Option<T>, high: Option<T>) -> Option<String> {
    match (low, high) {
        (_, None) => None,
        (None, Some(_)) => Some(format!("{what}: no limit")),
        (Some(low), Some(high)) => more(what, low, high),
    }
}

fn numbers(low: &Policy, high: &Policy) -> Option<String> {
    let (l, h) = (low.limits(), high.limits());
    let (lb, hb) = (low.budget(), high.budget());
    let (lc, hc) = (low.children(), high.children());
    more("vcpus", l.vcpus, h.vcpus)
        .or(more("memory", l.memory_mib, h.memory_mib))
        .or(more("disk", l.disk_mib, h.disk_mib))
        .or(more("processes", l.processes, h.processes))
        .or(unlimited("wall", l.wall, h.wall))
        .or(unlimited("turns", lb.turns, hb.turns))
        .or(unlimited("tool_calls", lb.tool_calls, hb.tool_calls))
        .or(unlimited("tokens", lb.tokens, hb.tokens))
        .or(unlimited("money", lb.money_usd, hb.money_usd))
        .or(unlimited("budget.wall", lb.wall, hb.wall))
        .or(unlimited("egress", lb.egress, hb.egress))
        .or(more("timeout", low.approvals().timeout, high.approvals().timeout))
        .or_else(|| {
            if !lc.allowed {
                return None;
            }
            more("children", lc.allowed, hc.allowed)
                .or(more("depth", lc.depth, hc.depth))
                .or(more("number", lc.number, hc.number))
                .or(more("share", lc.share_percent, hc.share_percent))
                .or(lc.templates.iter().any(|name| !hc.templates.contains(name)).then(|| "templates".to_owned()))
        })
}

static HOSTS: LazyLock<Vec<HostName>> =
    LazyLock::new(|| sample::HOSTS.iter().map(|host| host.parse().unwrap()).collect());
static ADDRESSES: LazyLock<Vec<IpAddr>> =
    LazyLock::new(|| sample::ADDRESSES.iter().map(|address| address.parse().unwrap()).collect());

fn any_request(dice: &mut Dice) -> Request {
    let host = HOSTS[dice.below(HOSTS.len())].clone();
    let port = dice.pick(&sample::PORTS);
    let scheme = dice.pick(&[Scheme::Https, Scheme::Https, Scheme::Http, Scheme::Tcp]);
    if scheme == Scheme::Tcp || dice.one_in(4) {
        return Request::connect(if scheme == Scheme::Http { Scheme::Https } else { scheme }, host, port);
    }
    Request::call(scheme, host, port, dice.pick(&sample::METHODS), dice.pick(&sample::PATHS))
}

/// The most that any request in a tunnel comes to.
fn every_call_in(tunnel: &Request, policy: &Policy) -> Verdict {
    let calls = sample::METHODS.iter().flat_map(|method| sample::PATHS.iter().map(move |path| (*method, *path)));
    let verdicts = calls.map(|(method, path)| {
        let call = Request::call(tunnel.scheme, tunnel.host.clone(), tunnel.port, method, path);
        policy.network().decide(&call).verdict
    });
    verdicts.into_iter().find(|verdict| *verdict != Verdict::Deny).unwrap_or(Verdict::Deny)
}

/// What a rule of the higher policy gives to rules of the lower one.
type Given<'a> = BTreeMap<String, (&'a Rule, BTreeMap<String, &'a Rule>)>;

fn requests(dice: &mut Dice, low: &Policy, high: &Policy) -> Option<String> {
    let mut given: Given<'_> = BTreeMap::new();
    for _ in 0..SAMPLES {
        let request = any_request(dice);
        let (l, h) = (low.network().decide(&request), high.network().decide(&request));
        let fits = match (l.verdict, h.verdict) {
            (Verdict::Deny, _) | (_, Verdict::Allow) => true,
            (Verdict::Allow | Verdict::Ask, Verdict::IfInspected) => false,
            (Verdict::Ask | Verdict::IfInspected, Verdict::Ask) | (Verdict::IfInspected, Verdict::IfInspected) => true,
            (Verdict::Allow, Verdict::Ask) | (Verdict::Allow | Verdict::Ask, Verdict::Deny) => false,
            // It gives nothing by itself: what counts is what is let through in it.
            (Verdict::IfInspected, Verdict::Deny) => every_call_in(&request, low) == Verdict::Deny,
        };
        if !fits {
            return Some(format!("{request:?}: {l:?} below {h:?}"));
        }
        let rules = l.rule.zip(h.rule).filter(|_| l.verdict != Verdict::Deny);
        let Some((l_name, h_name)) = rules else { continue };
        for address in ADDRESSES.iter().copied() {
            let fits = low.network().address(address, Some(&l_name)).is_err()
                || high.network().address(address, Some(&h_name)).is_ok();
            if !fits {
                return Some(format!("{request:?}: the address {address}"));
            }
        }
        let (l_rule, h_rule) = (low.network().rule(&l_name).unwrap(), high.network().rule(&h_name).unwrap());
        given.entry(h_name).or_insert_with(|| (h_rule, BTreeMap::new())).1.insert(l_name, l_rule);
        let of = |one: &Credential| (one.header.clone(), one.value.clone(), one.secret.clone());
        let theirs: Vec<_> = high.network().credentials_for(&request.host).map(of).collect();
        let fits = low.network().credentials_for(&request.host).map(of).all(|one| theirs.contains(&one));
        if request.scheme == Scheme::Https && !fits {
            return Some(format!("{request:?}: credentials"));
        }
    }
    given.into_values().find_map(|(high, lows)| {
        let lows: Vec<&Rule> = lows.into_values().collect();
        let sum = |of: &dyn Fn(&Rule) -> Option<u64>| lows.iter().map(|rule| of(rule)).sum::<Option<u64>>();
        let connections = |rule: &Rule| rule.connections.map(u64::from);
        let bytes = |rule: &Rule| rule.bytes.map(crate::Bytes::get);
        let burst = |rule: &Rule| rule.rate.map(|rate| u64::from(rate.count()));
        let hourly = |rule: &Rule| rule.rate.map(Rate::per_hour);
        unlimited("connections", sum(&connections), connections(high))
            .or(unlimited("bytes", sum(&bytes), bytes(high)))
            .or(unlimited("burst", sum(&burst), burst(high)))
            .or(unlimited("rate", sum(&hourly), hourly(high)))
    })
}

fn models(low: &Policy, high: &Policy) -> Option<String> {
    let l = low.model()?;
    let Some(h) = high.model() else { return Some("a model".to_owned()) };
    sample::MODELS.into_iter().find_map(|name| {
        let fits = !l.allows(name)
            || (h.allows(name)
                && (l.provider, l.endpoint()) == (h.provider, h.endpoint())
                && (l.key.is_none() || l.key == h.key)
                && l.price(name) == h.price(name));
        (!fits).then(|| format!("model {name}"))
    })
}

fn tools(low: &Policy, high: &Policy) -> Option<String> {
    let becomes = |policy: &Policy, tool: &str, command: &str| {
        let asks = tool == SHELL_TOOL && policy.tools().asks_about(command).is_some();
        policy.tools().action(tool).min(if asks { Action::Ask } else { Action::Allow })
    };
    let calls =
        sample::TOOLS.into_iter().chain(["unnamed"]).flat_map(|tool| sample::COMMANDS.map(|command| (tool, command)));
    calls.into_iter().find_map(|(tool, command)| {
        more(&format!("{tool} {command}"), becomes(low, tool, command), becomes(high, tool, command))
    })
}

fn files(low: &Policy, high: &Policy) -> Option<String> {
    sample::FILES.into_iter().find_map(|file| {
        let becomes = |policy: &Policy| match policy.workspace().keeps(file.as_bytes()) {
            Some(_) => Mode::Discard,
            None => policy.workspace().mode,
        };
        more(file, becomes(low), becomes(high))
    })
}

fn peers(low: &Policy, high: &Policy) -> Option<String> {
    low.peers().iter().find_map(|peer| {
        let Some(own) = high.peer(peer.name.as_str()) else { return Some(format!("peer {}", peer.name)) };
        more("messages", peer.messages, own.messages)
            .or(peer.ports.iter().any(|port| !own.ports.contains(port)).then(|| "peer's port".to_owned()))
            .or(unlimited("peer's rate", peer.rate.map(Rate::per_hour), own.rate.map(Rate::per_hour)))
            .or(unlimited("peer's burst", peer.rate.map(Rate::count), own.rate.map(Rate::count)))
    })
}

/// One sandbox of a program.
struct Sandbox {
    policy: Policy,
    parent: Option<usize>,
}

#[derive(Debug, Default)]
struct Tally {
    asked: u64,
    started: u64,
    deepest: u32,
}

/// A random program: sandboxes ask for children with their own policy changed a little, and the host does as it does.
fn program(seed: u64, tally: &mut Tally) {
    let mut dice = Dice(seed);
    let mut sandboxes = vec![Sandbox { policy: Policy { doc: sample::doc(&mut dice) }, parent: None }];
    for _ in 0..8 {
        // The youngest most often, so that it goes deep.
        let asker = if dice.one_in(3) { dice.below(sandboxes.len()) } else { sandboxes.len() - 1 };
        let own = &sandboxes[asker].policy;
        let mut asked = own.for_children().unwrap_or_else(|| own.clone());
        for _ in 0..dice.below(3) {
            sample::change(&mut dice, &mut asked.doc);
        }
        tally.asked += 1;
        let Ok(child) = own.child(Some(&asked)) else { continue };
        tally.started += 1;
        sandboxes.push(Sandbox { policy: child.into_policy(), parent: Some(asker) });
    }
    for (at, sandbox) in sandboxes.iter().enumerate() {
        let (mut up, mut depth) = (sandbox.parent, 0);
        while let Some(above) = up {
            depth += 1;
            let high = &sandboxes[above].policy;
            let deeper =
                sandbox.policy.children().allowed && sandbox.policy.children().depth + depth > high.children().depth;
            let wide = wider(&mut dice, &sandbox.policy, high).or(deeper.then(|| "its depth".to_owned()));
            if let Some(what) = wide {
                panic!(
                    "seed {seed}: sandbox {at} is wider than its ancestor {above}: {what}\n--- it\n{}\n--- its ancestor\n{}",
                    sandbox.policy.to_toml(),
                    high.to_toml()
                );
            }
            up = sandboxes[above].parent;
        }
        tally.deepest = tally.deepest.max(depth);
    }
}

#[test]
fn no_program_of_child_requests_widens_any_axis() {
    const THREADS: usize = 4;
    let run = |first: u64| {
        let mut tally = Tally::default();
        (first..PROGRAMS).step_by(THREADS).for_each(|seed| program(seed, &mut tally));
        tally
    };
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS as u64).map(|first| scope.spawn(move || run(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    println!("{tallies:?}");
    for tally in tallies {
        // Neither is everything refused, nor is everything let through; as deep as the policy says, and no deeper.
        assert!(tally.started * 10 > tally.asked * 3 && tally.started * 10 < tally.asked * 8, "{tally:?}");
        assert_eq!(tally.deepest, 5, "{tally:?}");
    }
}

#[test]
fn the_model_sees_what_is_wider() {
    // Of policies that have nothing to do with each other, the model finds most to be wider, in one direction or the other.
    let mut found = 0;
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let (one, two) = (Policy { doc: sample::doc(&mut dice) }, Policy { doc: sample::doc(&mut dice) });
        found += u32::from(wider(&mut dice, &one, &two).is_some());
    }
    assert!(found > 490, "{found}");
}

#[test]
fn every_policy_is_as_narrow_as_itself() {
    for seed in 0..2000 {
        let policy = Policy { doc: sample::doc(&mut Dice(seed)) };
        let proof = Policy::narrower_or_equal(&policy, &policy);
        assert!(proof.is_ok(), "seed {seed}: {:?}\n{}", proof.unwrap_err(), policy.to_toml());
    }
}

/// The widenings of `child` below `parent`, each as a file's text without its version.
fn widenings(child: &str, parent: &str) -> Vec<Widening> {
    let parse = |text: &str| {
        Policy::parse(format!("version = 1\n{text}"), "test").unwrap_or_else(|problems| panic!("{problems}"))
    };
    Policy::narrower_or_equal(&parse(child), &parse(parent)).err().unwrap_or_default()
}

fn rules(rules: &[&str]) -> String {
    let numbered = rules.iter().enumerate().map(|(at, rule)| format!("[[network.rules]]\nname = \"r{at}\"\n{rule}\n"));
    numbered.collect()
}

#[test]
fn each_widening_names_its_axis_and_both_values() {
    let found = widenings(
        "[budget]\ntokens = 11\nmoney_usd = \"2\"\n[limits]\nvcpus = 2\n",
        "[budget]\ntokens = 10\nmoney_usd = \"1\"\nwall = \"1m\"\n",
    );
    let told: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "limits.vcpus is wider: 2 is asked for, the parent has 1",
            "budget.tokens is wider: 11 is asked for, the parent has 10",
            "budget.money_usd is wider: 2.00 is asked for, the parent has 1.00",
            "budget.wall is wider: no limit is asked for, the parent has 1m",
        ]
    );
}

#[test]
fn what_is_narrower_in_the_network_is_proved() {
    let wide = rules(&["hosts = [\"*.a.org\"]\nschemes = [\"http\", \"https\"]\nbytes = \"10B\""]);
    for child in [
        String::new(),
        rules(&["hosts = [\"x.a.org\"]\nbytes = \"10B\""]),
        rules(&["hosts = [\"*.x.a.org\"]\nmethods = [\"GET\"]\nbytes = \"1B\""]),
        rules(&["hosts = [\"x.a.org\"]\nbytes = \"4B\"", "hosts = [\"y.a.org\"]\nbytes = \"6B\"\naction = \"ask\""]),
        rules(&["hosts = [\"*\"]\nany = true\naction = \"deny\""]),
    ] {
        assert_eq!(widenings(&child, &wide), [], "{child}");
    }
    // A denial that stands before, taken over or widened.
    let but = rules(&["hosts = [\"b.a.org\"]\naction = \"deny\"", "hosts = [\"*.a.org\"]"]);
    for child in [
        but.clone(),
        rules(&["hosts = [\"*.b.a.org\", \"b.a.org\"]\naction = \"deny\"", "hosts = [\"*.a.org\"]"]),
        rules(&["hosts = [\"c.a.org\"]"]),
    ] {
        assert_eq!(widenings(&child, &but), [], "{child}");
    }
}

#[test]
fn near_misses_in_the_network_are_wider() {
    let one = rules(&[
        "hosts = [\"*.a.org\"]\nmethods = [\"GET\"]\npaths = [\"/s/*\"]\naction = \"ask\"\nranges = [\"10.0.0.0/8\"]\nbytes = \"10B\"",
    ]);
    let child = |from: &str, to: &str| {
        assert!(one.contains(from));
        one.replace(from, to)
    };
    for child in [
        child("*.a.org", "a.org"),
        child("*.a.org", "*.org\"]\nany = true #"),
        child("[\"GET\"]", "[\"GET\", \"HEAD\"]"),
        child("methods = [\"GET\"]\n", ""),
        child("/s/*", "/s*"),
        child("/s/*", "/s"),
        child("paths = [\"/s/*\"]\n", ""),
        child("action = \"ask\"\n", ""),
        child("10.0.0.0/8", "192.168.0.0/16"),
        child("10.0.0.0/8\"", "10.0.0.0/8\", \"169.254.169.254/32\""),
        child("10B", "11B"),
        child("bytes = \"10B\"", ""),
        child("methods", "ports = [8443]\nmethods"),
        child("methods", "schemes = [\"http\"]\nmethods"),
        // Two halves that are more than the whole.
        rules(&[
            "hosts = [\"x.a.org\"]\nmethods = [\"GET\"]\npaths = [\"/s/*\"]\naction = \"ask\"\nbytes = \"6B\"",
            "hosts = [\"y.a.org\"]\nmethods = [\"GET\"]\npaths = [\"/s/*\"]\naction = \"ask\"\nbytes = \"6B\"",
        ]),
    ] {
        let found = widenings(&child, &one);
        assert!(!found.is_empty() && found.iter().all(|one| one.axis.contains("rules")), "{child}\n{found:?}");
    }
    // Left out, moved behind, or made narrower: the denial that stood before.
    let but = rules(&["hosts = [\"b.a.org\"]\naction = \"deny\"", "hosts = [\"*.a.org\"]"]);
    for child in [
        rules(&["hosts = [\"*.a.org\"]"]),
        rules(&["hosts = [\"b.a.org\"]\naction = \"deny\"\npaths = [\"/x\"]", "hosts = [\"*.a.org\"]"]),
        rules(&["hosts = [\"b.a.org\"]\naction = \"deny\"\nports = [80]", "hosts = [\"*.a.org\"]"]),
    ] {
        assert!(!widenings(&child, &but).is_empty(), "{child}");
    }
    // A tunnel that the parent would see into.
    let seen = rules(&["hosts = [\"a.org\"]\ninspect = true"]);
    assert!(!widenings(&rules(&["hosts = [\"a.org\"]"]), &seen).is_empty());
}

#[test]
fn a_child_names_no_secret_of_its_own() {
    let with = |secret: &str| {
        format!(
            "{}[[credentials]]\nname = \"c\"\nhosts = [\"a.org\"]\nsecret = {secret}\n",
            rules(&["hosts = [\"a.org\"]"])
        )
    };
    let model = |key: &str| format!("[model]\nprovider = \"anthropic\"\nmodels = [\"*\"]\n{key}\n");
    let parent = with("{ env = \"ONE\" }");
    assert_eq!(widenings(&parent, &parent), []);
    for other in ["{ env = \"TWO\" }", "{ file = \"/etc/shadow\" }", "{ command = [\"sh\", \"-c\", \"id\"] }"] {
        let found = widenings(&with(other), &parent);
        assert_eq!(found.iter().map(|one| one.axis.as_str()).collect::<Vec<_>>(), ["credentials[0]"], "{other}");
        let found = widenings(&model(&format!("key = {other}")), &model("key = { env = \"ONE\" }"));
        assert_eq!(found[0].axis, "model.key", "{other}");
    }
    assert_eq!(widenings(&model(""), &model("key = { env = \"ONE\" }")), []);
}

#[test]
fn children_go_down_a_level_each_time_and_no_further() {
    let policy = |depth: u32| {
        Policy::parse(format!("version = 1\n[children]\nallowed = true\ndepth = {depth}\n"), "test").unwrap()
    };
    let first = policy(2).child(None).unwrap().into_policy();
    assert_eq!((first.children().allowed, first.children().depth), (true, 1));
    let second = first.child(None).unwrap().into_policy();
    assert!(!second.children().allowed);
    let refused = second.child(None).unwrap_err();
    assert_eq!(refused[0].axis, "children.allowed");
    let asked = policy(2).child(Some(&policy(2))).unwrap_err();
    assert_eq!(asked[0].to_string(), "children.depth is wider: 2 is asked for, the parent has 1");
    assert!(policy(2).child(Some(&policy(1))).is_ok());
    let offline = Policy::profile("offline").unwrap();
    assert!(offline.child(None).is_err() && offline.for_children().is_none());
}

#[test]
fn what_a_hostile_child_asks_for_takes_a_bounded_time() {
    // As large as a file may be: 1024 pairs, 1024 paths, many rules that overlap.
    let many: Vec<String> = (0..127)
        .map(|at| {
            let hosts: Vec<String> = (0..8).map(|n| format!("\"*.h{n}.org\"")).collect();
            let paths: Vec<String> = (0..8).map(|n| format!("\"/{at}/{n}/*\"")).collect();
            format!("hosts = [{}]\npaths = [{}]", hosts.join(", "), paths.join(", "))
        })
        .collect();
    let many = rules(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let started = std::time::Instant::now();
    assert_eq!(widenings(&many, &many), []);
    println!("{:?}", started.elapsed());
}
