// SPDX-License-Identifier: Apache-2.0
//! What this side and the outpost inside the emulated host say to each other. Data and text only; no I/O.
//!
//! Every conversation is a TCP connection. The outpost begins with a line `HELLO`, and whoever came with one line of JSON, a
//! [`Request`], without waiting for it; the outpost answers with a line `OK`, or `ERR` and a reason, and closes. After `OK`
//! the connection carries:
//!
//! | request | from here | from the outpost |
//! | --- | --- | --- |
//! | `hold` | nothing; when it closes, the emulated host powers off | nothing |
//! | `spawn` | nothing; when it closes, the monitor ends | lines: `E` and an event, `S` and a line of stderr, last `X` and the wait status |
//! | `freeze`, `fork` | nothing; when it closes, the process that was made ends | the answer as JSON, then as `spawn` without the `X` |
//! | `save` | nothing | the answer as JSON, then the files, each as extents: `u64` offset, `u32` bytes, these; last the length and 0 |
//! | `discard`, `usage` | nothing | the answer as JSON |
//! | `connect` | the stream's bytes | the stream's bytes |
//! | `listen` | the stream's bytes, after `OK` | `BOUND` at once, `OK` when the guest has connected, then the stream's bytes |
//! | `signal` | nothing | nothing |

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::groups::Allowance;

/// Where the real host's file tree is mounted.
pub(super) const HOST_MOUNT: &str = "/host";
/// Where the outpost keeps the directories of its guests.
pub(super) const RUN_DIR: &str = "/run/midge";
/// The port it listens on, inside.
pub(super) const PORT: u16 = 7000;
/// What it prints on the console when it listens.
pub(super) const READY: &str = "midge-outpost: ready";
/// The first line of the outpost: the connection has arrived.
pub(super) const GREETING: &str = "HELLO";
/// Names the token's file on the kernel command line, as a path of the real host.
pub(super) const TOKEN_WORD: &str = "midge.token=";
/// Longest request line. A monitor's configuration is a few hundred bytes.
pub(super) const MAX_REQUEST_BYTES: usize = 256 << 10;
/// Longest piece of a snapshot's file that is passed on at once.
pub(super) const EXTENT_MAX_BYTES: usize = 256 << 10;
/// Longest line of output passed on whole; longer ones are cut into several.
pub(super) const MAX_LINE_BYTES: usize = 64 << 10;

/// The first line of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Request {
    /// Proves that whoever asks may read the file with it.
    pub(super) token: String,
    /// What is asked.
    #[serde(flatten)]
    pub(super) op: Op,
}

/// What can be asked of an outpost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Op {
    /// Live as long as this connection.
    Hold,
    /// Start a monitor.
    Spawn {
        /// The sandbox.
        id: String,
        /// Its configuration, with paths as the emulated host sees them.
        config: Value,
        /// What it may have of the emulated host.
        allowance: Allowance,
    },
    /// Say what a monitor has of the emulated host.
    Usage {
        /// The sandbox.
        id: String,
    },
    /// Have a monitor twin itself into a resident.
    Freeze {
        /// The sandbox.
        id: String,
        /// What the resident is called.
        resident: String,
    },
    /// Have a resident make a VM.
    Fork {
        /// The resident.
        resident: String,
        /// The sandbox.
        id: String,
    },
    /// Have a resident write what it holds, and pass it on.
    Save {
        /// The resident.
        resident: String,
        /// How many layers its disks have.
        layers: usize,
    },
    /// Have a monitor drop guest memory.
    Discard {
        /// The sandbox.
        id: String,
        /// Guest-physical address and length of each part, in bytes, whole pages.
        ranges: Vec<(u64, u64)>,
    },
    /// Open a stream to a port of a guest.
    Connect {
        /// The sandbox.
        id: String,
        /// The guest's port.
        port: u32,
    },
    /// Take the guest's next connection to a port of its host.
    Listen {
        /// The sandbox; it need not exist yet.
        id: String,
        /// The host's port.
        port: u32,
    },
    /// Signal a monitor.
    Signal {
        /// The sandbox.
        id: String,
        /// The signal's number.
        signal: i32,
    },
}

/// A line from a monitor that was spawned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output<'a> {
    /// One line of its stdout.
    Event(&'a [u8]),
    /// One line of its stderr.
    Stderr(&'a [u8]),
    /// Its wait status: nothing follows.
    Exit(i32),
}

/// Reads a line of a `spawn` conversation, without its line feed.
pub(super) fn output(line: &[u8]) -> Option<Output<'_>> {
    match line {
        [b'E', b' ', rest @ ..] => Some(Output::Event(rest)),
        [b'S', b' ', rest @ ..] => Some(Output::Stderr(rest)),
        [b'X', b' ', rest @ ..] => Some(Output::Exit(std::str::from_utf8(rest).ok()?.parse().ok()?)),
        _ => None,
    }
}

/// Whether a sandbox's name can be a directory's: no path in it, short enough for a socket below.
pub(super) fn is_id(id: &str) -> bool {
    (1..=48).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// The vsock's Unix socket of a sandbox, inside.
pub(super) fn socket(id: &str) -> String {
    format!("{RUN_DIR}/{id}/v.sock")
}

/// Rewrites a monitor's configuration from the real host's paths to the emulated host's: what is read is found below the
/// 9p mount, what is written goes to the emulated host's own memory.
///
/// # Errors
/// The field that is not what it should be.
pub(super) fn relocate(config: &mut Value, id: &str) -> Result<(), String> {
    for field in ["/kernel", "/initramfs", "/restore/state", "/restore/memory"] {
        if let Some(path) = config.pointer_mut(field).filter(|path| !path.is_null()) {
            below_mount(path).map_err(|problem| format!("{field}: {problem}"))?;
        }
    }
    let layers = config.pointer_mut("/restore/layers").and_then(Value::as_array_mut);
    for (index, path) in layers.into_iter().flatten().enumerate().filter(|(_, path)| !path.is_null()) {
        below_mount(path).map_err(|problem| format!("restore.layers[{index}]: {problem}"))?;
    }
    for (index, disk) in config.get_mut("disks").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        if let Some(path) = disk.get_mut("path") {
            below_mount(path).map_err(|problem| format!("disks[{index}].path: {problem}"))?;
        }
        if let Some(path) = disk.pointer_mut("/mode/overlay_file/path") {
            *path = Value::String(format!("{RUN_DIR}/{id}/disk{index}"));
        }
    }
    if let Some(path) = config.pointer_mut("/vsock/uds") {
        *path = Value::String(socket(id));
    }
    Ok(())
}

fn below_mount(path: &mut Value) -> Result<(), String> {
    match path.as_str() {
        Some(text) if text.starts_with('/') => {
            *path = Value::String(format!("{HOST_MOUNT}{text}"));
            Ok(())
        }
        _ => Err(format!("{path} is not an absolute path")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn requests_have_one_flat_object_a_line() {
        let request = Request { token: "t".into(), op: Op::Connect { id: "a".into(), port: 1024 } };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({"token":"t","op":"connect","id":"a","port":1024})
        );
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        let hold = Request { token: "t".into(), op: Op::Hold };
        assert_eq!(serde_json::from_str::<Request>(&serde_json::to_string(&hold).unwrap()).unwrap(), hold);
    }

    #[test]
    fn unknown_and_incomplete_requests_are_refused() {
        for line in
            [r#"{"op":"hold"}"#, r#"{"token":"t","op":"format"}"#, r#"{"token":"t","op":"connect","id":"a"}"#, "", "[]"]
        {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
        let port = r#"{"token":"t","op":"connect","id":"a","port":4294967296}"#;
        assert!(serde_json::from_str::<Request>(port).is_err());
    }

    #[test]
    fn output_lines_are_told_apart_by_their_first_letter() {
        assert_eq!(output(b"E {\"event\":1}"), Some(Output::Event(b"{\"event\":1}")));
        assert_eq!(output(b"S oops"), Some(Output::Stderr(b"oops")));
        assert_eq!(output(b"X 256"), Some(Output::Exit(256)));
        for line in [&b""[..], b"E", b"X ", b"X nine", b"X \xff", b"Z 1", b"OK"] {
            assert_eq!(output(line), None, "{line:?}");
        }
    }

    #[test]
    fn ids_cannot_leave_their_directory() {
        for good in ["a", "0f3c-9", "A_b", &"x".repeat(48)] {
            assert!(is_id(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\0", "ä", &"x".repeat(49)] {
            assert!(!is_id(bad), "{bad}");
        }
    }

    #[test]
    fn paths_are_found_below_the_mount_and_sockets_inside() {
        let mut config = json!({
            "kernel": "/k", "initramfs": "/i", "mem_mib": 64,
            "disks": [{"path": "/base", "mode": "read_only"},
                      {"path": "/s", "mode": {"overlay_file": {"path": "/home/x/o", "cap_mib": 9}}}],
            "vsock": {"guest_cid": 3, "uds": "/run/user/1/midge/a/v.sock"}
        });
        relocate(&mut config, "a").unwrap();
        assert_eq!(
            config,
            json!({
                "kernel": "/host/k", "initramfs": "/host/i", "mem_mib": 64,
                "disks": [{"path": "/host/base", "mode": "read_only"},
                          {"path": "/host/s", "mode": {"overlay_file": {"path": "/run/midge/a/disk1", "cap_mib": 9}}}],
                "vsock": {"guest_cid": 3, "uds": "/run/midge/a/v.sock"}
            })
        );
    }

    #[test]
    fn relative_paths_are_refused_by_field() {
        let mut config = json!({"kernel": "k"});
        assert!(relocate(&mut config, "a").unwrap_err().contains("kernel"));
        let mut config = json!({"disks": [{"path": 7}]});
        assert!(relocate(&mut config, "a").unwrap_err().contains("disks[0].path"));
        let mut config = json!({"kernel": "/k", "initramfs": null});
        relocate(&mut config, "a").unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_as_output_without_panic(line: Vec<u8>) {
            let _ = output(&line);
        }

        #[test]
        fn any_text_is_read_as_a_request_without_panic(line: String) {
            let _ = serde_json::from_str::<Request>(&line);
        }
    }
}
