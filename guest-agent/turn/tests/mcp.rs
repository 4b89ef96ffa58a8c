// SPDX-License-Identifier: Apache-2.0
//! A real server of the Model Context Protocol, made with the official Python package: checks our reading of the protocol against
//! somebody else's. Skipped, with the reason, where the package cannot be had.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use midge_protocol::broker::{Asked, Mcp, Tools, Verdict};
use midge_turn::tools::{Asker, Call, Cancel, Ending, Outcome, Place, Step, Toolbox};
use serde_json::{Value, json};

struct Nobody;

impl Asker for Nobody {
    fn ask(&self, _asked: &Asked, _cancel: &Cancel) -> Result<Verdict, String> {
        Err("nobody is there".into())
    }
}

/// A Python that has the package, made once for this target directory.
fn python() -> Result<PathBuf, String> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mcp-venv");
    let python = venv.join("bin/python");
    let has = |python: &Path| {
        Command::new(python).args(["-c", "import mcp.server"]).output().is_ok_and(|output| output.status.success())
    };
    if has(&python) {
        return Ok(python);
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    run(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--timeout",
        "20",
        "--retries",
        "1",
        "mcp>=1.9,<3",
    ]))?;
    Ok(python)
}

fn call(toolbox: &Toolbox, name: &str, input: Value, words: &Mutex<String>) -> Outcome {
    let call = Call { id: "c".into(), name: format!("mcp__sums__{name}"), input };
    let progress = |_: &str, step: Step<'_>| {
        if let Step::Words(text) = step {
            words.lock().expect("no test panicked").push_str(text);
        }
    };
    toolbox.call_all(&[call], &Cancel::new().expect("a descriptor"), &progress).remove(0)
}

#[test]
fn the_official_package_and_we_understand_each_other() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            println!("skipped: the Python package `mcp` cannot be had: {why}");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mcp_server.py");
    let server = Mcp {
        name: "sums".into(),
        argv: vec![python.display().to_string(), script.display().to_string()],
        env: BTreeMap::from([("GREETING".into(), "grüße".into())]),
    };
    let toolbox = Toolbox::new(Place {
        cwd: dir.path().into(),
        spool: dir.path().join("spool"),
        doors: dir.path().into(),
        tools: Tools::default(),
        mcp: vec![server],
        peers: Vec::new(),
        asker: Arc::new(Nobody),
    })
    .unwrap();
    assert_eq!(toolbox.start(&Cancel::new().unwrap()), Vec::<String>::new());
    let specs = toolbox.specs();
    let add = specs.iter().find(|spec| spec.name == "mcp__sums__add").expect("it is listed");
    assert_eq!((add.description.as_str(), &add.input_schema["required"]), ("Adds two numbers.", &json!(["a", "b"])));
    let words = Mutex::default();
    let call = |name: &str, input: Value| call(&toolbox, name, input, &words);
    assert_eq!(call("add", json!({"a": 2, "b": 40})), Outcome::done("42"));
    let refused = call("add", json!({"a": "x"}));
    assert!(refused.is_error() && refused.text.contains("validation error"), "{}", refused.text);
    let failed = call("fail", json!({"why": "no reason"}));
    assert!(failed.ending == Ending::Failed && failed.text.contains("fail"), "{}", failed.text);
    assert!(call("picture", json!({})).text.starts_with("[image, image/png, about 100 bytes"));
    let environment = call("environment", Value::Null);
    assert!(environment.text.starts_with("grüße\n") && environment.text.contains(dir.path().to_str().unwrap()));
    assert_eq!(call("slow", json!({})), Outcome::done("done"));
    assert_eq!(*words.lock().unwrap(), "half way\n");
    let died = call("die", json!({}));
    assert!(died.is_error() && died.text.contains("exit status: 7") && died.text.contains("goodbye"), "{}", died.text);
    assert!(call("add", json!({"a": 1, "b": 1})).text.ends_with("what it knew is lost]\n2"));
    assert!(call("die", json!({})).is_error());
    assert!(call("add", json!({"a": 1, "b": 1})).text.contains("restarted already"));
}
