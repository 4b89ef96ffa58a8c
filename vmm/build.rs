// SPDX-License-Identifier: Apache-2.0
//! Compiles the system-call policies of `seccomp/` into the monitor.
//!
//! A policy that does not compile fails the build: there is no monitor without policies, in debug
//! as in release.

use std::error::Error;
use std::fs;
use std::path::Path;

use seccompiler::{BpfProgram, TargetArch, compile_from_json};

/// Thread kinds; each has `seccomp/<kind>.json` with one filter of the same name.
const KINDS: [&str; 5] = ["main", "vcpu", "block", "resident", "no-clone3"];

fn main() -> Result<(), Box<dyn Error>> {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seccomp");
    let out = std::env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?;
    for kind in KINDS {
        let path = policies.join(kind).with_extension("json");
        println!("cargo::rerun-if-changed={}", path.display());
        let text = fs::read(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
        let program = compile(kind, &text).map_err(|e| format!("{}: {e}", path.display()))?;
        fs::write(Path::new(&out).join(kind).with_extension("bpf"), bytes(&program))?;
    }
    Ok(())
}

fn compile(kind: &str, text: &[u8]) -> Result<BpfProgram, Box<dyn Error>> {
    let mut filters = compile_from_json(text, TargetArch::x86_64)?;
    let program = filters.remove(kind).ok_or("the filter of that name is missing")?;
    if !filters.is_empty() {
        return Err("more than one filter in the file".into());
    }
    Ok(program)
}

/// Instructions as `struct sock_filter` lays them out: u16 code, u8 jt, u8 jf, u32 k.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 * program.len());
    for instruction in program {
        bytes.extend(instruction.code.to_le_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_le_bytes());
    }
    bytes
}
