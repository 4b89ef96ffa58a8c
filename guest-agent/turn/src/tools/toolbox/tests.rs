// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use serde_json::json;

/// Meets `together` others before it answers, or is the one that writes.
struct Fake {
    name: &'static str,
    reads: Option<Arc<Barrier>>,
    running: Arc<AtomicUsize>,
}

impl Tool for Fake {
    fn spec(&self) -> Spec {
        Spec { name: self.name.into(), description: String::new(), input_schema: json!({}) }
    }

    fn reads_only(&self) -> bool {
        self.reads.is_some()
    }

    fn call(&self, input: Value, _context: &Context<'_>) -> Outcome {
        let others = self.running.fetch_add(1, Ordering::SeqCst);
        if let Some(barrier) = &self.reads {
            barrier.wait();
        } else {
            assert_eq!(others, 0, "a call that writes is alone");
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        Outcome::done(input.to_string())
    }
}

/// Answers in order.
struct Script(Mutex<Vec<Result<Verdict, String>>>, Mutex<Vec<Asked>>);

impl Script {
    fn new(answers: Vec<Result<Verdict, String>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(answers), Mutex::default()))
    }
}

impl Asker for Script {
    fn ask(&self, asked: &Asked, _cancel: &Cancel) -> Result<Verdict, String> {
        self.1.lock().unwrap().push(asked.clone());
        self.0.lock().unwrap().remove(0)
    }
}

fn toolbox(rules: Tools, asker: Arc<dyn Asker>, together: usize) -> Toolbox {
    let running = Arc::new(AtomicUsize::new(0));
    let fake = |name, reads: bool| {
        let reads = reads.then(|| Arc::new(Barrier::new(together)));
        Arc::new(Fake { name, reads, running: running.clone() }) as Arc<dyn Tool>
    };
    Toolbox::of(vec![fake("look", true), fake("shell", false), fake("write", false)], vec![], rules, asker).unwrap()
}

fn calls(names: &[&str]) -> Vec<Call> {
    let call = |(index, name): (usize, &&str)| Call {
        id: format!("c{index}"),
        name: (*name).into(),
        input: json!({"command": format!("n{index}")}),
    };
    names.iter().enumerate().map(call).collect()
}

fn run(toolbox: &Toolbox, calls: &[Call]) -> Vec<Outcome> {
    toolbox.call_all(calls, &Cancel::new().unwrap(), &|_, _| {})
}

#[test]
fn calls_that_read_are_done_at_once_and_all_answers_keep_their_order() {
    let toolbox = toolbox(Tools::default(), Script::new(vec![]), 3);
    let calls = calls(&["write", "look", "look", "look", "shell", "nothing", "write"]);
    let outcomes = run(&toolbox, &calls);
    assert_eq!(outcomes.len(), calls.len());
    for (call, outcome) in calls.iter().zip(&outcomes).filter(|(call, _)| call.name != "nothing") {
        assert_eq!(*outcome, Outcome::done(call.input.to_string()));
    }
    assert_eq!(outcomes[5].ending, super::super::Ending::Failed);
    assert!(outcomes[5].text.contains("look, shell, write"), "{}", outcomes[5].text);
}

#[test]
fn a_denied_tool_is_neither_offered_nor_done() {
    let rules = Tools { rules: BTreeMap::from([("write".into(), Rule::Deny)]), ..Tools::default() };
    let toolbox = toolbox(rules, Script::new(vec![]), 1);
    assert!(toolbox.specs().iter().all(|spec| spec.name != "write"));
    assert_eq!(run(&toolbox, &calls(&["write"]))[0].ending, super::super::Ending::Denied);
}

#[test]
fn a_question_is_asked_once_when_the_answer_is_for_the_run() {
    let rules = Tools { ask_commands: vec!["git push*".into()], ..Tools::default() };
    let script = Script::new(vec![
        Ok(Verdict::Deny { why: "no".into() }),
        Ok(Verdict::Edited { input: json!({"command": "true"}) }),
        Err("gone".into()),
        Ok(Verdict::AllowForRun),
    ]);
    let toolbox = toolbox(rules, script.clone(), 1);
    let push = |n: usize| {
        let input = json!({"command": format!("cd x && git push origin {n}")});
        vec![Call { id: "p".into(), name: "shell".into(), input }]
    };
    let texts: Vec<String> = (0..6).map(|n| run(&toolbox, &push(n)).remove(0).text).collect();
    assert!(texts[0].contains("denied: no"), "{texts:?}");
    assert_eq!(texts[1], r#"{"command":"true"}"#);
    assert!(texts[2].contains("gone"), "{texts:?}");
    assert!(texts[3..].iter().all(|text| text.contains("git push")), "{texts:?}");
    assert_eq!(script.1.lock().unwrap().len(), 4);
    assert_eq!(toolbox.ruling("shell", &json!({"command": "git pull"})), Ruling::Allow);
}

#[test]
fn a_cancelled_run_begins_no_call() {
    let toolbox = toolbox(Tools::default(), Script::new(vec![]), 1);
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    let outcomes = toolbox.call_all(&calls(&["shell", "write"]), &cancel, &|_, step| {
        assert!(matches!(step, Step::Ended(_)));
    });
    assert!(outcomes.iter().all(|outcome| outcome.ending == super::super::Ending::Cancelled));
}

#[test]
fn a_glob_that_is_none_is_refused_by_its_text() {
    let rules = Tools { ask_commands: vec!["a[".into()], ..Tools::default() };
    let error = Toolbox::of(vec![], vec![], rules, Script::new(vec![])).unwrap_err();
    assert!(error.to_string().contains("a["), "{error}");
}

fn place(dir: &std::path::Path) -> Place {
    Place {
        cwd: dir.into(),
        spool: dir.join("spool"),
        doors: dir.into(),
        tools: Tools::default(),
        mcp: Vec::new(),
        peers: vec!["b".into()],
        asker: Script::new(vec![]),
    }
}

#[test]
fn the_guests_tools_have_names_and_schemas_that_providers_take() {
    let dir = tempfile::tempdir().unwrap();
    let toolbox = Toolbox::new(place(dir.path())).unwrap();
    let specs = toolbox.specs();
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names, ["shell", "output", "read", "write", "edit", "list", "search", "todo", "ask", "fork", "peer"]);
    for spec in &specs {
        assert_eq!(spec.input_schema["type"], "object", "{}", spec.name);
        assert!((40..700).contains(&spec.description.len()), "{}: {}", spec.name, spec.description.len());
        let outcome = run(&toolbox, &[Call { id: "x".into(), name: spec.name.clone(), input: json!({"nonesuch": 1}) }]);
        assert!(outcome[0].text.contains("unknown field `nonesuch`"), "{}: {}", spec.name, outcome[0].text);
    }
}

#[test]
fn peers_are_a_tool_only_where_there_are_some_and_the_policy_lets_it_be_called() {
    let dir = tempfile::tempdir().unwrap();
    let denied = Tools { rules: BTreeMap::from([("peer".into(), Rule::Deny)]), ..Tools::default() };
    for place in [Place { peers: Vec::new(), ..place(dir.path()) }, Place { tools: denied, ..place(dir.path()) }] {
        let toolbox = Toolbox::new(place).unwrap();
        assert!(toolbox.specs().iter().all(|spec| spec.name != "peer"));
        let input = json!({"action": "receive", "wait_s": 1});
        let outcome = run(&toolbox, &[Call { id: "x".into(), name: "peer".into(), input }]).remove(0);
        assert!(outcome.is_error() && !outcome.text.contains("door"), "{}", outcome.text);
    }
}

#[test]
fn two_servers_of_one_name_are_refused_and_one_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = Mcp { name: "s".into(), argv: vec!["/no/such".into()], env: BTreeMap::new() };
    let error = Toolbox::new(Place { mcp: vec![server.clone(), server.clone()], ..place(dir.path()) }).unwrap_err();
    assert!(error.to_string().contains("\"s\""), "{error}");
    let toolbox = Toolbox::new(Place { mcp: vec![server], ..place(dir.path()) }).unwrap();
    let told = toolbox.start(&Cancel::new().unwrap());
    assert!(told.len() == 1 && told[0].contains("/no/such"), "{told:?}");
    assert_eq!(toolbox.specs().len(), 11);
}

#[test]
fn tools_work_together_on_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let toolbox = Toolbox::new(place(dir.path())).unwrap();
    let call = |name: &str, input: Value| Call { id: name.into(), name: name.into(), input };
    let calls = [
        call("write", json!({"path": "a.txt", "content": "one\ntwo\n"})),
        call("edit", json!({"path": "a.txt", "edits": [{"old": "two", "new": "three"}]})),
        call("read", json!({"path": "a.txt"})),
        call("search", json!({"pattern": "thr.e"})),
        call("list", json!({"glob": "*.txt"})),
        call("shell", json!({"command": "cat a.txt"})),
    ];
    let outcomes = run(&toolbox, &calls);
    let texts: Vec<&str> = outcomes[2..].iter().map(|outcome| outcome.text.as_str()).collect();
    assert_eq!(texts, ["     1\tone\n     2\tthree\n", "a.txt:2:three\n", "a.txt\n", "one\nthree\n[exit code 0]"]);
}
