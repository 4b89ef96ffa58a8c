// SPDX-License-Identifier: Apache-2.0
//! For tests: random policies of a small universe, and changes of them that are, or nearly are, narrower.

use crate::network::{Credential, Network, Rule, Scheme};
use crate::policy::Doc;
use crate::secret::SecretSource;
use crate::section::{Action, Children, Model, Peer, Price, Provider};
use crate::units::{Bytes, Money, Period};

pub(crate) const HOSTS: [&str; 8] =
    ["a.org", "x.a.org", "y.x.a.org", "b.org", "z.b.org", "10.0.0.5", "169.254.169.254", "fd00::1"];
pub(crate) const PATTERNS: [&str; 11] = [
    "*",
    "*.a.org",
    "*.x.a.org",
    "a.org",
    "x.a.org",
    "y.x.a.org",
    "b.org",
    "*.b.org",
    "*.org",
    "10.0.0.5",
    "169.254.169.254",
];
pub(crate) const PORTS: [u16; 4] = [443, 80, 8080, 22];
pub(crate) const METHODS: [&str; 3] = ["GET", "HEAD", "POST"];
pub(crate) const PATH_PATTERNS: [&str; 6] = ["/*", "/s/*", "/s/a", "/s/a*", "/t/*", "/t/b"];
pub(crate) const PATHS: [&str; 8] = ["/", "/s/", "/s/a", "/s/ab?q", "/t/b", "/%73/a", "/s//a", "/t/%2e%2e/s/a"];
pub(crate) const RANGES: [&str; 7] =
    ["10.0.0.0/8", "10.0.0.0/24", "10.0.0.5/32", "169.254.0.0/16", "169.254.169.254/32", "fd00::/8", "64:ff9b::/96"];
pub(crate) const ADDRESSES: [&str; 9] = [
    "10.0.0.5",
    "10.1.0.1",
    "169.254.169.254",
    "169.254.1.1",
    "127.0.0.1",
    "93.184.215.14",
    "64:ff9b::a00:5",
    "64:ff9b::a9fe:a9fe",
    "fd00::1",
];
pub(crate) const TOOLS: [&str; 3] = ["shell", "write", "mcp__x__y"];
pub(crate) const COMMANDS: [&str; 4] = ["ls", "git push", "git push --force", "rm -rf /"];
pub(crate) const COMMAND_GLOBS: [&str; 5] = ["git *", "git push*", "rm *", "*", "*--force*"];
pub(crate) const FILES: [&str; 5] = ["a", "docs/a.md", "docs/b/c.md", ".git/config", "src/x.rs"];
pub(crate) const FILE_GLOBS: [&str; 8] =
    ["*/c.md", "**/c.md", "docs/*.md", "docs/**", "docs", "**", ".git/**", "src/*.rs"];
pub(crate) const MODELS: [&str; 4] = ["small", "small-2", "large-1", "other"];
pub(crate) const MODEL_GLOBS: [&str; 5] = ["small", "small*", "large-*", "*", "*-1"];
pub(crate) const NAMES: [&str; 3] = ["p", "q", "r"];

/// A small generator of numbers; its seed is told when a test fails.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap()
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// One to `most` different ones, in any order.
    pub(crate) fn some<T: Copy + PartialEq>(&mut self, items: &[T], most: usize) -> Vec<T> {
        let mut some = vec![self.pick(items)];
        for _ in 1..=self.below(most) {
            let one = self.pick(items);
            if !some.contains(&one) {
                some.push(one);
            }
        }
        some
    }

    fn parsed<T: std::str::FromStr>(&mut self, items: &[&str], most: usize) -> Vec<T> {
        self.some(items, most).iter().filter_map(|text| text.parse().ok()).collect()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.one_in(2) { None } else { Some(make(self)) }
    }
}

fn p<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text:?}"))
}

pub(crate) fn rule(dice: &mut Dice, number: usize) -> Rule {
    let action = dice.pick(&[Action::Allow, Action::Allow, Action::Allow, Action::Ask, Action::Deny]);
    let mut schemes = dice.some(&[Scheme::Https, Scheme::Https, Scheme::Http, Scheme::Tcp], 2);
    schemes.sort();
    let mut ports = if dice.one_in(2) { Vec::new() } else { dice.some(&PORTS, 3) };
    let tcp = schemes.contains(&Scheme::Tcp);
    if tcp && ports.is_empty() {
        ports = dice.some(&PORTS, 2);
    }
    let gives = action != Action::Deny;
    Rule {
        name: p(&format!("r{number}")),
        action,
        hosts: dice.parsed(&PATTERNS, 3),
        any: true,
        schemes,
        ports,
        methods: if tcp || dice.one_in(2) { None } else { Some(dice.parsed(&METHODS, 2)) },
        paths: if tcp || dice.one_in(2) { None } else { Some(dice.parsed(&PATH_PATTERNS, 2)) },
        inspect: if tcp || dice.one_in(2) { None } else { Some(true) },
        ranges: if !gives || dice.one_in(2) { Vec::new() } else { dice.parsed(&RANGES, 3) },
        rate: if gives && dice.one_in(4) { Some(p(dice.pick(&["4/s", "10/s", "100/m", "2/h"]))) } else { None },
        connections: if gives && dice.one_in(4) { Some(2 + u32::try_from(dice.below(6)).unwrap()) } else { None },
        bytes: if gives && dice.one_in(4) { Some(Bytes::new(2 + dice.below(6) as u64)) } else { None },
    }
}

fn credential(dice: &mut Dice, number: usize) -> Credential {
    Credential {
        name: p(&format!("c{number}")),
        hosts: dice.parsed(&["a.org", "x.a.org", "*.a.org", "*.x.a.org", "b.org"], 2),
        header: p(dice.pick(&["authorization", "x-key"])),
        value: dice.maybe(|dice| dice.pick(&["Bearer {secret}", "token {secret}"]).to_owned()),
        basic_user: None,
        secret: SecretSource::Env(dice.pick(&["ONE", "TWO"]).to_owned()),
    }
}

fn peer(dice: &mut Dice, name: &str) -> Peer {
    Peer {
        name: p(name),
        ports: dice.some(&PORTS, 3),
        messages: dice.one_in(2),
        rate: dice.maybe(|dice| p(dice.pick(&["4/s", "10/s", "100/m"]))),
    }
}

fn model(dice: &mut Dice) -> Model {
    let price = |micros| Price {
        input: Money::from_micros(micros),
        output: Money::from_micros(5),
        cache_read: None,
        cache_write: None,
    };
    Model {
        provider: dice.pick(&[Provider::Anthropic, Provider::Openai]),
        endpoint: dice.maybe(|dice| p(dice.pick(&["https://api.anthropic.com/", "http://127.0.0.1:1"]))),
        models: dice.parsed(&MODEL_GLOBS, 3),
        key: dice.maybe(|dice| SecretSource::Env(dice.pick(&["KEY", "KEY2"]).to_owned())),
        prices: [(p("*"), price(7)), (p("small"), price(3))].into_iter().take(1 + dice.below(2)).collect(),
    }
}

/// Any policy of the universe, wide enough to be narrowed.
pub(crate) fn doc(dice: &mut Dice) -> Doc {
    let mut doc = Doc { version: 1, ..Doc::default() };
    doc.limits.vcpus = 4;
    doc.limits.wall = dice.maybe(|_| Period::from_ms(1000));
    doc.budget.turns = dice.maybe(|_| 10);
    doc.budget.tool_calls = dice.maybe(|_| 10);
    doc.budget.tokens = dice.maybe(|_| 1000);
    doc.budget.money_usd = dice.maybe(|_| Money::from_micros(1000));
    doc.budget.wall = dice.maybe(|_| Period::from_ms(1000));
    doc.budget.egress = dice.maybe(|_| Bytes::new(1000));
    doc.model = dice.maybe(model);
    doc.network = Network { rules: (0..1 + dice.below(5)).map(|number| rule(dice, number)).collect() };
    doc.credentials = (0..dice.below(3)).map(|number| credential(dice, number)).collect();
    doc.tools.default = dice.pick(&[Action::Allow, Action::Ask, Action::Deny]);
    doc.tools.rules = dice
        .some(&TOOLS, 2)
        .iter()
        .map(|name| (p(name), dice.pick(&[Action::Allow, Action::Ask, Action::Deny])))
        .collect();
    doc.tools.ask_commands = dice.parsed(&COMMAND_GLOBS, 2);
    doc.workspace.mode = dice.pick(&[crate::section::Mode::Apply, crate::section::Mode::Review]);
    doc.workspace.read_only = dice.parsed(&FILE_GLOBS, 2);
    doc.children =
        Children { allowed: true, depth: 5, number: 8, share_percent: 50, templates: dice.parsed(&NAMES, 2) };
    doc.peers = NAMES.iter().take(dice.below(3)).map(|name| peer(dice, name)).collect();
    doc
}

/// Changes `doc` a little: half of the changes narrow, half widen or may.
pub(crate) fn change(dice: &mut Dice, doc: &mut Doc) {
    match dice.below(12) {
        0 => numbers(dice, doc),
        1..=6 => rules(dice, doc),
        7 => credentials(dice, doc),
        8 => tools(dice, doc),
        9 => {
            let workspace = &mut doc.workspace;
            match dice.below(4) {
                0 => workspace.mode = dice.pick(&[crate::section::Mode::Apply, crate::section::Mode::Discard]),
                1 => drop(workspace.read_only.pop()),
                _ => workspace.read_only.extend(dice.parsed(&FILE_GLOBS, 1)),
            }
        }
        10 => peers(dice, doc),
        _ => models(dice, doc),
    }
}

/// One more or one less; seldom no limit.
fn nudge(dice: &mut Dice, number: u64) -> u64 {
    if dice.one_in(3) { number + 1 } else { number.saturating_sub(1).max(1) }
}

fn nudge32(dice: &mut Dice, number: u32) -> u32 {
    u32::try_from(nudge(dice, number.into())).unwrap()
}

fn nudge_limit(dice: &mut Dice, limit: Option<u64>) -> Option<u64> {
    match limit {
        Some(_) if dice.one_in(5) => None,
        Some(limit) => Some(nudge(dice, limit)),
        None => Some(500),
    }
}

fn numbers(dice: &mut Dice, doc: &mut Doc) {
    let period = |dice: &mut Dice, old: Option<Period>| nudge_limit(dice, old.map(Period::as_ms)).map(Period::from_ms);
    match dice.below(17) {
        0 => doc.limits.vcpus = nudge32(dice, doc.limits.vcpus),
        1 => doc.limits.memory_mib = nudge(dice, doc.limits.memory_mib),
        2 => doc.limits.disk_mib = nudge(dice, doc.limits.disk_mib),
        3 => doc.limits.processes = nudge(dice, doc.limits.processes),
        4 => doc.limits.wall = period(dice, doc.limits.wall),
        5 => doc.budget.turns = nudge_limit(dice, doc.budget.turns),
        6 => doc.budget.tool_calls = nudge_limit(dice, doc.budget.tool_calls),
        7 => doc.budget.tokens = nudge_limit(dice, doc.budget.tokens),
        8 => doc.budget.money_usd = nudge_limit(dice, doc.budget.money_usd.map(Money::micros)).map(Money::from_micros),
        9 => doc.budget.wall = period(dice, doc.budget.wall),
        10 => doc.budget.egress = nudge_limit(dice, doc.budget.egress.map(Bytes::get)).map(Bytes::new),
        11 => doc.children.depth = nudge32(dice, doc.children.depth),
        12 => doc.children.number = nudge32(dice, doc.children.number),
        13 => doc.children.share_percent = nudge32(dice, doc.children.share_percent),
        14 => doc.children.templates = dice.parsed(&NAMES, 2),
        15 => doc.children.allowed = !dice.one_in(4),
        _ => doc.approvals.timeout = Period::from_ms(nudge(dice, doc.approvals.timeout.as_ms())),
    }
}

fn rules(dice: &mut Dice, doc: &mut Doc) {
    let rules = &mut doc.network.rules;
    let (count, number) = (rules.len(), rules.len() + 10 + dice.below(1000));
    match dice.below(8) {
        // Of which some only take away.
        0 => rules.insert(dice.below(count + 1), rule(dice, number)),
        1 => {
            let mut more = rule(dice, number);
            (more.action, more.ranges, more.rate, more.connections, more.bytes) =
                (Action::Deny, Vec::new(), None, None, None);
            rules.insert(dice.below(count + 1), more);
        }
        2 if count > 0 => drop(rules.remove(dice.below(count))),
        3 if count > 1 => rules.swap(dice.below(count), dice.below(count)),
        4 if count > 0 => {
            // In two, with the hosts shared out, and at times each with all that there was.
            let at = dice.below(count);
            let mut twin = rules[at].clone();
            twin.name = p(&format!("r{number}"));
            if twin.hosts.len() > 1 {
                rules[at].hosts.truncate(1);
                twin.hosts.remove(0);
            }
            if dice.one_in(2) {
                for half in [&mut twin, &mut rules[at]] {
                    half.bytes = half.bytes.map(|bytes| Bytes::new(bytes.get() / 2));
                    half.connections = half.connections.map(|number| number / 2);
                    half.rate = half.rate.map(|_| p("1/h"));
                }
            }
            rules.insert(at + 1, twin);
        }
        _ if count > 0 => {
            let at = dice.below(count);
            one_rule(dice, &mut rules[at]);
        }
        _ => {}
    }
}

fn one_rule(dice: &mut Dice, rule: &mut Rule) {
    let gives = rule.action != Action::Deny;
    let tcp = rule.schemes.contains(&Scheme::Tcp);
    match dice.below(14) {
        0 => rule.action = dice.pick(&[Action::Allow, Action::Ask, Action::Deny]),
        1 => rule.hosts = dice.parsed(&PATTERNS, 2),
        2 => rule.hosts.extend(dice.parsed(&PATTERNS, 1)),
        3 if rule.hosts.len() > 1 => drop(rule.hosts.pop()),
        4 => rule.ports = dice.some(&PORTS, 2),
        5 if rule.ports.len() > 1 => drop(rule.ports.pop()),
        6 if !tcp => rule.methods = dice.maybe(|dice| dice.parsed(&METHODS, 2)),
        7 if !tcp => rule.paths = dice.maybe(|dice| dice.parsed(&PATH_PATTERNS, 2)),
        8 if !tcp => rule.inspect = dice.pick(&[None, Some(true)]),
        9 if gives => rule.ranges = dice.parsed(&RANGES, 2),
        10 if gives => drop(rule.ranges.pop()),
        11 if gives => rule.bytes = nudge_limit(dice, rule.bytes.map(Bytes::get)).map(Bytes::new),
        12 if gives => {
            rule.connections =
                nudge_limit(dice, rule.connections.map(u64::from)).map(|number| u32::try_from(number).unwrap())
        }
        13 if gives => rule.rate = dice.maybe(|dice| p(dice.pick(&["4/s", "10/s", "100/m", "2/h", "3/h"]))),
        _ => {}
    }
}

fn credentials(dice: &mut Dice, doc: &mut Doc) {
    let count = doc.credentials.len();
    match dice.below(4) {
        0 => doc.credentials.push(credential(dice, count + 10)),
        _ if count == 0 => {}
        1 => drop(doc.credentials.remove(dice.below(count))),
        2 => doc.credentials[dice.below(count)].hosts = dice.parsed(&["a.org", "x.a.org", "*.x.a.org"], 1),
        _ => {
            let at = dice.below(count);
            let changed = credential(dice, at);
            let old = &mut doc.credentials[at];
            match dice.below(3) {
                0 => old.header = changed.header,
                1 => old.value = changed.value,
                _ => old.secret = changed.secret,
            }
        }
    }
}

fn tools(dice: &mut Dice, doc: &mut Doc) {
    let tools = &mut doc.tools;
    match dice.below(5) {
        0 => tools.default = dice.pick(&[Action::Allow, Action::Ask, Action::Deny]),
        1 => drop(tools.rules.pop_first()),
        2 => drop(tools.rules.insert(p(dice.pick(&TOOLS)), dice.pick(&[Action::Allow, Action::Ask, Action::Deny]))),
        3 => drop(tools.ask_commands.pop()),
        _ => tools.ask_commands.extend(dice.parsed(&COMMAND_GLOBS, 1)),
    }
}

fn peers(dice: &mut Dice, doc: &mut Doc) {
    let count = doc.peers.len();
    match dice.below(3) {
        0 => doc.peers.push(peer(dice, NAMES[count % NAMES.len()])),
        _ if count == 0 => {}
        1 => drop(doc.peers.pop()),
        _ => {
            let at = dice.below(count);
            let name = doc.peers[at].name.to_string();
            let changed = peer(dice, &name);
            let old = &mut doc.peers[at];
            match dice.below(3) {
                0 => old.ports = changed.ports,
                1 => old.messages = changed.messages,
                _ => old.rate = changed.rate,
            }
        }
    }
}

fn models(dice: &mut Dice, doc: &mut Doc) {
    let changed = model(dice);
    match (&mut doc.model, dice.below(7)) {
        (model, 0) => *model = None,
        (model @ None, _) => *model = Some(changed),
        (Some(old), 1 | 2) => old.models = changed.models,
        (Some(old), 3) => old.endpoint = changed.endpoint,
        (Some(old), 4) => old.key = changed.key,
        (Some(old), 5) => old.provider = changed.provider,
        (Some(old), _) => old.prices = changed.prices,
    }
}
