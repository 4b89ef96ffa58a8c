// SPDX-License-Identifier: Apache-2.0
//! The scripted model held against the providers' official clients (official/check.py). They are Python packages: where they
//! are not installed and cannot be, the test says so and is skipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A Python that has both clients: the one that `MIDGE_OFFICIAL_PYTHON` names, the system's, or one made for this.
fn python() -> Result<PathBuf, String> {
    let has_clients = |python: &Path| output(Command::new(python).args(["-c", "import anthropic, openai"]));
    if let Some(named) = std::env::var_os("MIDGE_OFFICIAL_PYTHON").map(PathBuf::from) {
        return has_clients(&named).map(|_| named);
    }
    if has_clients(Path::new("python3")).is_ok() {
        return Ok("python3".into());
    }
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("official-venv");
    let python = venv.join("bin/python");
    if has_clients(&python).is_err() {
        output(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("official/requirements.txt");
        let install = ["300", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        output(Command::new("timeout").arg(install[0]).arg(&python).args(&install[1..]).arg(requirements))?;
        has_clients(&python)?;
    }
    Ok(python)
}

/// What the command says, or why it failed.
fn output(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

#[test]
fn official_clients_take_every_answer() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            println!("skipped: the official clients cannot be had: {why}");
            return;
        }
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("official/check.py");
    let said = Command::new(python).arg(script).arg(env!("CARGO_BIN_EXE_midge-scripted-model")).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{out}{err}");
    println!("{out}");
}
