// SPDX-License-Identifier: Apache-2.0

use std::sync::Mutex as StdMutex;
use std::time::Instant;

use super::super::Cancel;
use super::super::testing::{call, call_with};
use super::*;

/// What every fake begins with; requests are numbered from 1.
const BEGIN: &str = r#"
say() { printf '%s\n' "$1"; }
hear() { IFS= read -r line || exit 0; }
hear; say '{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"f","version":"1"}}}'
hear
hear; say '{"jsonrpc":"2.0","id":2,"result":{"tools":[{"name":"t","description":"d","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}}]}}'
"#;

struct Bench {
    dir: tempfile::TempDir,
    server: Arc<Server>,
}

/// A server that is this script of a shell.
fn bench(script: &str) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let config = Mcp {
        name: "fake".into(),
        argv: vec!["sh".into(), "-c".into(), script.into()],
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
    };
    let spool = Spool::new(dir.path().join("spool"));
    let patience =
        Patience { start: Duration::from_secs(20), list: Duration::from_secs(20), call: Duration::from_secs(20) };
    let state = StdMutex::default();
    let server = Arc::new(Server { config, cwd: dir.path().into(), spool, patience, state });
    Bench { dir, server }
}

fn started(rest: &str) -> Bench {
    let bench = bench(&format!("{BEGIN}{rest}"));
    assert_eq!(bench.server.start(&Cancel::new().unwrap()), Ok(vec![]));
    bench
}

impl Bench {
    fn tool(&self) -> Arc<dyn Tool> {
        self.server.tools(&Cancel::new().unwrap()).remove(0)
    }

    fn call(&self) -> Outcome {
        call(&*self.tool(), json!({"x": 1}))
    }
}

/// An answer with this text to the request of this number.
fn answer(id: u32, text: &str) -> String {
    format!(
        "say '{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"content\":[{{\"type\":\"text\",\"text\":\"{text}\"}}]}}}}'\n"
    )
}

#[test]
fn a_tool_is_listed_and_called() {
    let bench =
        started(&format!("hear; printf '%s' \"$line\" >request; echo $GREETING >greeting; {} hear", answer(3, "hi")));
    let tool = bench.tool();
    let spec = tool.spec();
    assert_eq!((spec.name.as_str(), spec.description.as_str(), tool.reads_only()), ("mcp__fake__t", "d", true));
    assert_eq!(bench.call(), Outcome::done("hi"));
    assert_eq!(std::fs::read(bench.dir.path().join("greeting")).unwrap(), b"hello\n");
    let request: Value = serde_json::from_slice(&std::fs::read(bench.dir.path().join("request")).unwrap()).unwrap();
    assert_eq!(request["params"]["name"], json!("t"));
    assert_eq!(request["params"]["arguments"], json!({"x": 1}));
    assert_eq!(request["params"]["_meta"]["progressToken"], json!(3));
}

#[test]
fn noise_between_the_lines_is_borne_and_requests_are_answered() {
    let noise = r#"
hear
echo 'this is a log line'; echo; printf '\377\376\000\n'; echo '[1,2,{}]'; echo '{"id":99,"result":1}'
say '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}'
say '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3,"progress":1,"message":"half way"}}'
say '{"jsonrpc":"2.0","id":"p","method":"ping"}'
hear; printf '%s' "$line" >pong
say '{"jsonrpc":"2.0","id":"s","method":"sampling/createMessage","params":{}}'
hear; printf '%s' "$line" >refusal
"#;
    let bench = started(&format!("{noise}{} hear", answer(3, "done")));
    let words = StdMutex::new(String::new());
    let progress = |_: &str, step: Step<'_>| {
        if let Step::Words(text) = step {
            *words.lock().unwrap() += text;
        }
    };
    let cancel = Cancel::new().unwrap();
    let outcome = bench.tool().call(Value::Null, &Context { call_id: "c", cancel: &cancel, progress: &progress });
    assert_eq!(outcome, Outcome::done("done"));
    assert_eq!(*words.lock().unwrap(), "half way\n");
    let said =
        |name: &str| serde_json::from_slice::<Value>(&std::fs::read(bench.dir.path().join(name)).unwrap()).unwrap();
    assert_eq!(said("pong"), json!({"jsonrpc": "2.0", "id": "p", "result": {}}));
    assert_eq!((said("refusal")["id"].clone(), said("refusal")["error"]["code"].clone()), (json!("s"), json!(-32601)));
}

#[test]
fn errors_of_both_kinds_are_the_models_to_read() {
    let errors = r#"
hear; say '{"jsonrpc":"2.0","id":3,"error":{"code":-32602,"message":"x must be a string"}}'
hear; say '{"jsonrpc":"2.0","id":4,"result":{"content":[{"type":"text","text":"it rains"}],"isError":true}}'
hear"#;
    let bench = started(errors);
    let first = bench.call();
    assert!(first.is_error() && first.text.contains("x must be a string (error -32602)"), "{}", first.text);
    assert_eq!(bench.call(), Outcome::failed("it rains"));
    assert!(call(&*bench.tool(), json!([1])).text.contains("must be a JSON object"));
}

#[test]
fn a_server_that_dies_is_restarted_once_and_told() {
    let bench = started("hear; echo 'out of cheese' >&2; exit 3");
    let died = bench.call();
    assert!(
        died.is_error() && died.text.contains("exit status: 3") && died.text.contains("out of cheese"),
        "{}",
        died.text
    );
    let again = bench.call();
    assert!(
        again.text.contains("had died and was restarted") && again.text.contains("out of cheese"),
        "{}",
        again.text
    );
    let gone = bench.call();
    assert!(gone.text.contains("was restarted already"), "{}", gone.text);
}

#[test]
fn a_line_without_end_and_a_flood_of_words_are_bounded() {
    let flood = format!(
        "hear; head -c 40000000 /dev/zero | tr '\\0' e >&2; head -c {} /dev/zero | tr '\\0' x; echo; hear; {} hear",
        connection::LINE_MAX_BYTES + 1,
        answer(4, "still here")
    );
    let bench = started(&flood);
    let long = bench.call();
    assert!(long.is_error() && long.text.contains("longer than 16 MiB"), "{}", long.text);
    assert_eq!(bench.call(), Outcome::done("still here"));
}

#[test]
fn a_long_result_is_kept_and_cut() {
    let bench = started(
        "hear; printf '{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"'; head -c 1000000 /dev/zero | tr '\\0' y; printf '\"}]}}\\n'; hear",
    );
    let outcome = bench.call();
    assert!(outcome.elided_bytes > 900_000 && outcome.text.contains("\"id\":\"o0\""));
}

#[test]
fn a_call_that_takes_too_long_is_cancelled_at_the_server() {
    let mut bench =
        bench(&format!("{BEGIN} hear; hear; printf '%s' \"$line\" >told; hear; {} hear", answer(4, "next")));
    Arc::get_mut(&mut bench.server).unwrap().patience.call = Duration::from_millis(300);
    bench.server.start(&Cancel::new().unwrap()).unwrap();
    let late = bench.call();
    assert!(late.text.contains("no answer in time"), "{}", late.text);
    let told = bench.dir.path().join("told");
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read(&told).unwrap_or_default().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let told: Value = serde_json::from_slice(&std::fs::read(told).unwrap()).unwrap();
    assert_eq!(
        (told["method"].clone(), told["params"]["requestId"].clone()),
        (json!("notifications/cancelled"), json!(3))
    );
    assert_eq!(bench.call(), Outcome::done("next"));
}

#[test]
fn a_cancelled_call_returns_soon() {
    let bench = started("while :; do hear; done");
    let cancel = Cancel::new().unwrap();
    cancel.cancel();
    assert_eq!(call_with(&*bench.tool(), json!({}), &cancel).ending, Ending::Cancelled);
}

#[test]
fn a_server_that_does_not_begin_is_told() {
    let start = |script: &str, word: &str| {
        let mut bench = bench(script);
        if word == "no answer in time" {
            Arc::get_mut(&mut bench.server).unwrap().patience.start = Duration::from_millis(300);
        }
        bench.server.start(&Cancel::new().unwrap()).unwrap_err()
    };
    let version = r#"read l; echo '{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"1999-01-01","capabilities":{}}}'; read l"#;
    for (script, word) in [
        (version, "1999-01-01"),
        ("echo no such module >&2; exit 1", "no such module"),
        ("sleep 1000", "no answer in time"),
        ("exec >&-; sleep 1000", "closed its output"),
        ("trap '' TERM; yes garbage", "no answer in time"),
        ("read l; echo '{\"id\":1,\"error\":{\"message\":\"licence\"}}'; read l", "licence"),
    ] {
        let why = start(script, word);
        assert!(why.contains(word) && why.contains("`fake`"), "{script}: {why}");
    }
    let config = |argv: &[&str]| Mcp {
        name: "n".into(),
        argv: argv.iter().map(|word| (*word).into()).collect(),
        env: Default::default(),
    };
    for argv in [&["/no/such/program"][..], &[]] {
        let server = Server::new(config(argv), "/".into(), Spool::new("/nonexistent".into()));
        assert!(server.start(&Cancel::new().unwrap()).is_err());
    }
}

#[test]
fn lists_have_pages_and_may_change() {
    let pages = r#"
say() { printf '%s\n' "$1"; }
hear() { IFS= read -r line || exit 0; }
hear; say '{"id":1,"result":{"protocolVersion":"2024-11-05","capabilities":{"tools":{"listChanged":true}}}}'
hear; hear; say '{"id":2,"result":{"tools":[{"name":"a"}],"nextCursor":"two"}}'
hear; case $line in *'"cursor":"two"'*) ;; *) exit 1;; esac
say '{"id":3,"result":{"tools":[{"name":"b"}]}}'
hear; say '{"method":"notifications/tools/list_changed"}'
say '{"id":4,"result":{"content":[]}}'
hear; say '{"id":5,"result":{"tools":[{"name":"c"}]}}'
hear"#;
    let bench = bench(pages);
    let cancel = Cancel::new().unwrap();
    assert_eq!(bench.server.start(&cancel), Ok(vec![]));
    let names = || bench.server.tools(&cancel).iter().map(|tool| tool.spec().name).collect::<Vec<_>>();
    assert_eq!(names(), ["mcp__fake__a", "mcp__fake__b"]);
    assert_eq!(bench.call(), Outcome::done("[no content]"));
    assert_eq!(names(), ["mcp__fake__c"]);
    assert_eq!(names(), ["mcp__fake__c"]);
}

#[test]
fn a_list_without_end_is_given_up() {
    let endless = r#"
IFS= read -r l; echo '{"id":1,"result":{"protocolVersion":"2024-11-05","capabilities":{"tools":{}}}}'
IFS= read -r l; n=2
while IFS= read -r l; do echo "{\"id\":$n,\"result\":{\"tools\":[{\"name\":\"t$n\"}],\"nextCursor\":\"more\"}}"; n=$((n+1)); done"#;
    let bench = bench(endless);
    let troubles = bench.server.start(&Cancel::new().unwrap()).unwrap();
    assert!(troubles[0].contains("more than 50 pages"), "{troubles:?}");
    assert_eq!(bench.server.tools(&Cancel::new().unwrap()).len(), PAGES_MAX);
}

#[test]
fn a_server_that_does_not_read_does_not_hold_us() {
    let deaf = "hear; while :; do echo '{\"id\":\"p\",\"method\":\"ping\"}'; done";
    let bench = started(deaf);
    let began = Instant::now();
    let outcome = bench.call();
    assert!(outcome.is_error(), "{}", outcome.text);
    drop(bench);
    assert!(began.elapsed() < Duration::from_secs(60));
}
