// SPDX-License-Identifier: Apache-2.0
//! The whole program: guests that ask for whatever they like, at every depth, through the real door; and no axis ever widens.

use proptest::prelude::*;

use super::*;

/// What one guest of the family does.
#[derive(Debug, Clone)]
enum Act {
    /// Who (of all that ever were) asks, with which policy, and which share.
    Ask(usize, Option<Wishes>, Option<u64>),
    /// Who spends how many tokens.
    Spend(usize, u64),
    /// Whose child ends.
    End(usize),
}

/// A policy that a guest writes: each field anything, valid or not.
#[derive(Debug, Clone)]
struct Wishes {
    tokens: Option<u64>,
    turns: Option<u64>,
    memory_mib: u64,
    depth: u32,
    number: u32,
    share_percent: u32,
    host: Option<&'static str>,
    template: Option<&'static str>,
    mode: &'static str,
}

impl Wishes {
    fn toml(&self) -> String {
        let mut text = format!(
            "version = 1\n[limits]\nmemory_mib = {}\n[workspace]\nmode = \"{}\"\n[budget]\n",
            self.memory_mib, self.mode
        );
        text += &self.tokens.map(|tokens| format!("tokens = {tokens}\n")).unwrap_or_default();
        text += &self.turns.map(|turns| format!("turns = {turns}\n")).unwrap_or_default();
        let templates = self.template.map(|name| format!("\"{name}\"")).unwrap_or_default();
        text += &format!(
            "[children]\nallowed = {}\ndepth = {}\nnumber = {}\nshare_percent = {}\ntemplates = [{templates}]\n",
            self.depth > 0,
            self.depth.max(1),
            self.number,
            self.share_percent
        );
        text += &self
            .host
            .map(|host| format!("[[network.rules]]\nname = \"r\"\nhosts = [\"{host}\"]\n"))
            .unwrap_or_default();
        text
    }
}

fn wishes() -> impl Strategy<Value = Wishes> {
    let host = prop::option::of(prop_oneof![Just("a.example"), Just("*.example"), Just("b.example")]);
    (
        prop::option::of(0..2000_u64),
        prop::option::of(0..200_u64),
        prop_oneof![Just(64_u64), Just(512), Just(4096)],
        0..5_u32,
        1..12_u32,
        1..100_u32,
        host,
        prop::option::of(prop_oneof![Just("py"), Just("node")]),
        prop_oneof![Just("discard"), Just("review"), Just("apply")],
    )
        .prop_map(|(tokens, turns, memory_mib, depth, number, share_percent, host, template, mode)| Wishes {
            tokens,
            turns,
            memory_mib,
            depth,
            number,
            share_percent,
            host,
            template,
            mode,
        })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (any::<usize>(), prop::option::of(wishes()), prop::option::of(0..600_u64)).prop_map(|(who, policy, share)| Act::Ask(who, policy, share)),
        2 => (any::<usize>(), 0..400_u64).prop_map(|(who, tokens)| Act::Spend(who, tokens)),
        1 => any::<usize>().prop_map(Act::End),
    ]
}

/// One sandbox of the family, as the host sees it.
struct Member {
    door: Arc<ChildDoor>,
    ledger: Ledger,
    policy: Arc<Policy>,
    depth: u32,
    _policy: watch::Sender<Arc<Policy>>,
    guest: Option<Guest>,
}

/// Makes the members' own doors as the lead's real one does.
#[derive(Default)]
struct Maker(StdMutex<Vec<Order>>);

struct Idle {
    _ledger: Ledger,
}

impl Children for Maker {
    fn start(&self, order: Order) -> Later<'_, Result<Box<dyn Child>, String>> {
        let child = Idle { _ledger: order.ledger.clone() };
        self.0.lock().unwrap().push(order);
        Box::pin(std::future::ready(Ok(Box::new(child) as Box<dyn Child>)))
    }
}

impl Child for Idle {
    fn next(&mut self) -> Later<'_, Happened> {
        Box::pin(std::future::pending())
    }

    fn changes(&mut self) -> Later<'_, io::Result<Changes>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::NotFound.into())))
    }
}

fn member(
    name: &str,
    policy: Policy,
    ledger: Ledger,
    family: Option<Family>,
    depth: u32,
    maker: &Arc<Maker>,
) -> Member {
    let policy = Arc::new(policy);
    let (sender, receiver) = watch::channel(Arc::clone(&policy));
    let (recorder, _memory) = Recorder::in_memory(name, Masker::default()).unwrap();
    let family = family.unwrap_or_else(|| Family::new(receiver.clone()));
    family.follow(receiver.clone());
    let door = ChildDoor::new(name, maker.clone(), receiver, ledger.clone(), recorder, family);
    Member { door, ledger, policy, depth, _policy: sender, guest: None }
}

const ROOT: &str = r#"
version = 1
[limits]
memory_mib = 512
[budget]
tokens = 1000
turns = 100
[[network.rules]]
name = "r"
hosts = ["a.example"]
[children]
allowed = true
depth = 3
number = 6
share_percent = 60
templates = ["py"]
"#;

async fn program(acts: Vec<Act>) {
    let maker = Arc::new(Maker::default());
    let root_policy = Policy::parse(ROOT, "root").unwrap_or_else(|problems| panic!("{problems}"));
    let root_ledger = Ledger::new(&Left { turns: Some(100), tokens: Some(1000), ..Left::default() });
    let mut members = vec![member("root", root_policy.clone(), root_ledger.clone(), None, 0, &maker)];
    let (mut made, mut spent) = (0, 0);
    for act in acts {
        let count = members.len();
        match act {
            Act::Ask(who, policy, share) => {
                let parent = &members[who % count];
                let (before, depth) = (parent.ledger.left().tokens.unwrap(), parent.depth);
                let mut request = task();
                if let Some(policy) = policy {
                    request["policy"] = policy.toml().into();
                }
                if let Some(share) = share {
                    request["share"] = serde_json::json!({"tokens": share});
                }
                let mut guest = Guest::asks(&parent.door, request).await;
                let started = matches!(guest.hears().await, ChildEvent::Started { .. });
                let order = maker.0.lock().unwrap().pop();
                assert_eq!(started, order.is_some());
                let Some(order) = order else { continue };
                made += 1;
                let parent = &members[who % count];
                let granted = order.ledger.left().tokens.unwrap();
                assert!(granted <= before && parent.ledger.left().tokens.unwrap() + granted == before, "debited");
                let child = order.policy.into_policy();
                assert!(parent.policy.child(Some(&child)).is_ok(), "no wider than its parent");
                assert!(Policy::narrower_or_equal(&child, &root_policy).is_ok(), "nor than the root");
                assert!(depth < 3, "three levels below the root");
                let mut child = member(&order.name, child, order.ledger, Some(order.family), depth + 1, &maker);
                child.guest = Some(guest);
                members.push(child);
            }
            Act::Spend(who, tokens) => {
                let charge = crate::ledger::Charge::of(&Left { tokens: Some(tokens), ..Left::default() });
                spent += members[who % count].ledger.charge(&charge).map_or(0, |()| tokens);
            }
            Act::End(who) => {
                // Its parent hangs up; its own children do not outlive its door.
                if let Some(guest) = members[who % count].guest.take() {
                    drop(guest.stream);
                    let _ = guest.served.await;
                    assert_eq!(
                        members[who % count].ledger.left().tokens,
                        Some(0),
                        "nothing can be spent of it any more"
                    );
                }
            }
        }
        assert!(made <= 6, "more children than the root's policy allows in the whole run");
        assert_eq!(root_ledger.spent().tokens, Some(spent));
        assert!(spent <= 1000, "more spent than there was");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_sequence_of_requests_widens_any_axis(acts in prop::collection::vec(act(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(program(acts));
    }
}
