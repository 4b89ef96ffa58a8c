// SPDX-License-Identifier: Apache-2.0

use super::*;
use serde_json::json;

fn same<T>(value: &T, text: &Value)
where
    T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug,
{
    assert_eq!(&serde_json::to_value(value).unwrap(), text);
    assert_eq!(&serde_json::from_value::<T>(text.clone()).unwrap(), value);
}

#[test]
fn lines_read_as_they_are_documented() {
    same(
        &Question { id: 3, asked: Asked::Human { text: "which?".into(), choices: vec!["a".into()] } },
        &json!({"id": 3, "asked": {"kind": "human", "text": "which?", "choices": ["a"]}}),
    );
    same(
        &Answer { id: 3, verdict: Verdict::Edited { input: json!({"x": 1}) } },
        &json!({"id": 3, "verdict": {"verdict": "edited", "input": {"x": 1}}}),
    );
    same(&Noted { told: Told::Said { text: "x".into() } }, &json!({"told": {"event": "said", "text": "x"}}));
    same(&End::Budget("tokens".into()), &json!({"budget": "tokens"}));
    same(&Left { turns: Some(1), ..Left::default() }, &json!({"turns": 1}));
    same(
        &ChildRequest { base: Base::Myself, work: Work::Command(vec!["ls".into()]), policy: None, share: None },
        &json!({"base": "myself", "work": {"command": ["ls"]}, "policy": null, "share": null}),
    );
    same(&Keep::Take, &json!("take"));
    same(&PeerOpen::Mailbox {}, &json!({"open": "mailbox"}));
    same(&PeerOpen::Tunnel { to: "b".into(), port: 80 }, &json!({"open": "tunnel", "to": "b", "port": 80}));
    same(&PeerSend { id: 1, to: "b".into(), text: "x".into() }, &json!({"id": 1, "to": "b", "text": "x"}));
    same(&PeerEvent::Refused { id: None, why: "x".into() }, &json!({"event": "refused", "why": "x"}));
    same(
        &PeerEvent::Message { from: "a".into(), text: "x".into() },
        &json!({"event": "message", "from": "a", "text": "x"}),
    );
}

#[test]
fn what_is_not_known_is_refused() {
    assert!(serde_json::from_value::<Question>(json!({"id": 1, "asked": {"kind": "root"}})).is_err());
    assert!(serde_json::from_value::<Left>(json!({"turn": 1})).is_err());
    assert!(serde_json::from_value::<PeerOpen>(json!({"open": "tunnel", "to": "b", "port": 70000})).is_err());
    assert!(serde_json::from_value::<PeerOpen>(json!({"open": "mailbox", "of": "b"})).is_err());
    assert!(serde_json::from_value::<Base>(json!({"path": "/etc"})).is_err());
}

#[test]
fn what_is_used_up_has_a_name() {
    assert_eq!(Left::default().exhausted(), None);
    assert_eq!(Left { tokens: Some(0), turns: Some(1), ..Left::default() }.exhausted(), Some("tokens"));
}
