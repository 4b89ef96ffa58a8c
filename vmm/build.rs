// SPDX-License-Identifier: Apache-2.0
//! Compiles the system-call policies of `seccomp/` into the monitor.
//!
//! A policy that does not compile fails the build: there is no monitor without policies, in debug
//! as in release. Each program gets an index in front: the kernel walks it for every call there is
//! when a thread is locked in, and for every call of the thread that has arguments to check.

use std::error::Error;
use std::fs;
use std::path::Path;

use seccompiler::{BpfProgram, TargetArch, compile_from_json, sock_filter};
use serde_json::Value;

/// Thread kinds; each has `seccomp/<kind>.json` with one filter of the same name.
const KINDS: [&str; 7] = ["keeper", "first", "main", "vcpu", "block", "resident", "no-clone3"];

fn main() -> Result<(), Box<dyn Error>> {
    let policies = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../seccomp");
    let out = std::env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?;
    for kind in KINDS {
        let path = policies.join(kind).with_extension("json");
        println!("cargo::rerun-if-changed={}", path.display());
        let text = fs::read(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
        let failed = |e: Box<dyn Error>| format!("{}: {e}", path.display());
        let plain = without_reasons(kind, &text).and_then(|text| compile(kind, text.as_bytes())).map_err(failed)?;
        let program = indexed(&plain).map_err(failed)?;
        let to = Path::new(&out).join(kind);
        fs::write(to.with_extension("bpf"), bytes(&program))?;
        // A test compares the two.
        fs::write(to.with_extension("plain"), bytes(&plain))?;
    }
    Ok(())
}

/// The policy as seccompiler knows it: without the `reason` of a rule that a whole run of a monitor does without, which is
/// for the test that holds the rules against such a run (`tests/e2e/calls.rs`).
fn without_reasons(kind: &str, text: &[u8]) -> Result<String, Box<dyn Error>> {
    let mut document: Value = serde_json::from_slice(text)?;
    for rule in document[kind]["filter"].as_array_mut().into_iter().flatten() {
        rule.as_object_mut().ok_or("a rule is no object")?.remove("reason");
    }
    Ok(document.to_string())
}

fn compile(kind: &str, text: &[u8]) -> Result<BpfProgram, Box<dyn Error>> {
    let mut filters = compile_from_json(text, TargetArch::x86_64)?;
    let program = filters.remove(kind).ok_or("the filter of that name is missing")?;
    if !filters.is_empty() {
        return Err("more than one filter in the file".into());
    }
    Ok(program)
}

/// Instructions before the first system call's: the architecture is checked, the number loaded.
const HEAD: usize = 4;
/// System calls that an entry of the index stands for.
const PER_ENTRY: usize = 5;

/// The program with an index behind its head. seccompiler lays out, for each system call by
/// rising number: `if nr != N { skip 1 }`, then its rules, whose second instruction each skips to the same one of
/// the next rule, or to the next system call; and last a return.
fn indexed(program: &[sock_filter]) -> Result<BpfProgram, Box<dyn Error>> {
    const JUMP: u16 = 0x05;
    const IF_EQUAL: u16 = 0x15;
    const IF_NOT_BELOW: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let (head, body) = program.split_at_checked(HEAD).ok_or("the program is too short")?;
    let mut calls: Vec<(u32, usize)> = Vec::new();
    let mut at = 0;
    while let Some(call) = body.get(at).filter(|test| (test.code, test.jt, test.jf) == (IF_EQUAL, 0, 1)) {
        if calls.last().is_some_and(|(before, _)| *before >= call.k) {
            return Err("the system calls are not in the order of their numbers".into());
        }
        calls.push((call.k, at));
        at += 2;
        while let Some(skip) = body.get(at).filter(|skip| skip.code == JUMP) {
            at += 1 + usize::try_from(skip.k)?;
        }
    }
    if at + 1 != body.len() || body.last().is_none_or(|last| last.code != RETURN) {
        return Err("the program is not laid out as seccompiler used to".into());
    }
    let entries: Vec<(u32, usize)> = calls.chunks(PER_ENTRY).skip(1).map(|chunk| chunk[0]).collect();
    let mut indexed = head.to_vec();
    for (place, (number, start)) in entries.iter().rev().enumerate() {
        // Two instructions an entry: this one's jump is followed by the entries that are left.
        let distance = 2 * (entries.len() - place - 1) + start;
        indexed.push(sock_filter { code: IF_NOT_BELOW, jt: 0, jf: 1, k: *number });
        indexed.push(sock_filter { code: JUMP, jt: 0, jf: 0, k: u32::try_from(distance)? });
    }
    indexed.extend_from_slice(body);
    Ok(indexed)
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
