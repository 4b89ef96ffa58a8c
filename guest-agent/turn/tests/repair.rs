// SPDX-License-Identifier: Apache-2.0
//! A whole run without a VM: the loop, its real tools and doors, and a scripted model that repairs a failing test, in each format.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use midge_protocol::broker::{Asked, End, Rule, Run, Told, Tools, Verdict, Wire};
use midge_scripted_model::Server;
use midge_scripted_model::script::{Part, Script, Step};
use midge_turn::drive::{Setting, drive};
use serde_json::json;
use support::{BROKEN, doors, run, workspace};

mod support;

fn driven(run: &Run, doors: &Path) -> End {
    let setting = Setting { doors: doors.into(), spool: doors.join("spool"), seed: 7 };
    drive(run, &setting, &AtomicBool::new(false)).unwrap()
}

fn repair() -> Script {
    Script::new([
        Step::parts([
            Part::Thinking("First see what there is.".into()),
            Part::Text("I run the test and read the code.".into()),
            Part::call("shell", json!({"command": "./test.sh"})),
            Part::call("read", json!({"path": "add.sh"})),
        ]),
        // The model quotes what it saw: the run fails unless the tools really answered.
        Step::parts([
            Part::Text("The test says: {{capture:FAIL: .*}}".into()),
            Part::call(
                "edit",
                json!({"path": "add.sh", "edits": [{"old": "{{capture:\\$1 . \\$2}}", "new": "$1 + $2"}]}),
            ),
        ])
        .expecting("FAIL: add 2 3 gave -1, want 5"),
        Step::call("shell", json!({"command": "./test.sh"})),
        Step::text("Done: {{capture:PASS}}"),
    ])
}

#[test]
fn failing_test_is_repaired_in_each_wire_format() {
    for wire in [Wire::Anthropic, Wire::Responses, Wire::Chat] {
        let (work, house) = (workspace(), tempfile::tempdir().unwrap());
        let told = doors(house.path(), |_| Verdict::Allow);
        let server = Server::start(repair()).unwrap();
        let end = driven(&run(&server, wire, work.path(), Tools::default()), house.path());
        assert_eq!((end, server.problems()), (End::Done, Vec::new()), "{wire:?}: {:?}", server.asked().last());
        assert_eq!(std::fs::read_to_string(work.path().join("add.sh")).unwrap(), BROKEN.replace('-', "+"));
        let told: Vec<Told> = told.iter().collect();
        assert_eq!(told.last(), Some(&Told::Finished { end: End::Done, text: "Done: PASS".into() }));
        let results = told.iter().filter(|told| matches!(told, Told::ToolResult { .. })).count();
        assert_eq!(results, 4);
    }
}

#[test]
fn human_edits_one_call_and_denies_another() {
    let (work, house) = (workspace(), tempfile::tempdir().unwrap());
    let _told = doors(house.path(), |asked| match asked {
        Asked::Tool { name, .. } if name == "write" => {
            Verdict::Edited { input: json!({"path": "b", "content": "theirs"}) }
        }
        _ => Verdict::Deny { why: "not today".into() },
    });
    let script = Script::new([
        Step::parts([
            Part::call("write", json!({"path": "a", "content": "mine"})),
            Part::call("shell", json!({"command": "rm -rf x; git push origin"})),
        ]),
        Step::text("I could not.").expecting("not today"),
    ]);
    let server = Server::start(script).unwrap();
    let tools = Tools {
        default: Rule::Allow,
        rules: [("write".to_owned(), Rule::Ask)].into(),
        ask_commands: vec!["git push*".into()],
    };
    let end = driven(&run(&server, Wire::Anthropic, work.path(), tools), house.path());
    assert_eq!((end, server.problems()), (End::Denied, Vec::new()));
    assert!(!work.path().join("a").exists());
    assert_eq!(std::fs::read_to_string(work.path().join("b")).unwrap().trim(), "theirs");
}

#[test]
fn denied_tool_is_neither_offered_nor_called() {
    let (work, house) = (workspace(), tempfile::tempdir().unwrap());
    let _told = doors(house.path(), |_| Verdict::Allow);
    let script = Script::new([Step::call("shell", json!({"command": "touch made"})), Step::text("So be it.")]);
    let server = Server::start(script).unwrap();
    let tools =
        Tools { default: Rule::Allow, rules: [("shell".to_owned(), Rule::Deny)].into(), ask_commands: Vec::new() };
    let end = driven(&run(&server, Wire::Responses, work.path(), tools), house.path());
    assert_eq!((end, server.problems()), (End::Denied, Vec::new()));
    assert!(!work.path().join("made").exists());
    let offered = server.asked()[0].body["tools"].to_string();
    assert!(offered.contains("\"read\"") && !offered.contains("\"shell\""), "{offered}");
}
