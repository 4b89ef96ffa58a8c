// SPDX-License-Identifier: Apache-2.0
//! The byte table in the documentation is the one in the code, and the limits fit each other.

use std::fmt::Write as _;

use crate::records::{CHOICES, RECORDS};
use crate::{
    EnvVar, Item, MAX_DATA_BYTES, MAX_PAYLOAD_TO_AGENT_BYTES, MAX_PAYLOAD_TO_HOST_BYTES, Message, STDIN_WINDOW_BYTES,
    Stage, ToAgent, ToHost, kind_name,
};

const HEAD: &str = "\
# Byte table

All numbers are little-endian. A frame is a header and a payload:

| offset | bytes | what |
| --- | --- | --- |
| 0 | 4 | length of the payload |
| 4 | 2 | kind |
| 6 | 2 | 0 |
| 8 | | payload: the body of that kind, nothing after it |

`u8` to `u64`, `i32`, `i64`: 1 to 8 bytes. `bool`: one byte, 0 or 1. `[u8; 16]`: 16 bytes. `Vec<u8>`, `OsString`, `PathBuf`: `u32`
length and that many bytes; `String`: the same, UTF-8. `Option<T>`: `bool`, then `T` if it is 1. Other `Vec<T>`: `u32` count and that
many `T`. A body: its fields in order, no padding.
";

fn kinds<M: Message>(out: &mut String) {
    let limit = M::MAX_PAYLOAD_BYTES;
    writeln!(
        out,
        "\nKinds that go {}, payload at most {limit} bytes:\n\n| kind | name | body |\n| --- | --- | --- |",
        M::DIRECTION
    )
    .unwrap();
    for (kind, name, body) in M::KINDS {
        let body = if body.is_empty() { "empty".to_owned() } else { format!("`{body}`") };
        writeln!(out, "| {kind:#06x} | {name} | {body} |").unwrap();
    }
}

fn byte_table() -> String {
    let mut out = HEAD.to_owned();
    kinds::<ToAgent>(&mut out);
    kinds::<ToHost>(&mut out);
    out.push_str("\n| body | fields |\n| --- | --- |\n");
    for (name, fields) in RECORDS.iter().copied().flatten() {
        let fields = fields.split_whitespace().collect::<Vec<_>>().join(" ").replace(" :", ":");
        writeln!(out, "| {name} | `{fields}` |").unwrap();
    }
    out.push_str("\n| choice, one byte | values |\n| --- | --- |\n");
    for (name, values) in CHOICES.iter().copied().flatten() {
        writeln!(out, "| {name} | {} |", values.trim_end_matches("; ")).unwrap();
    }
    out
}

#[test]
fn the_documented_byte_table_is_the_one_in_the_code() {
    let (documented, real) = (include_str!("byte_table.md"), byte_table());
    assert!(documented == real, "src/byte_table.md must read:\n{real}");
}

#[test]
fn every_kind_has_a_number_of_its_own_that_tells_its_direction() {
    let mut seen = std::collections::BTreeSet::new();
    for (kind, name, _) in ToAgent::KINDS {
        assert!(*kind < 0x8000 && seen.insert(*kind), "{name}");
        assert_eq!(kind_name(*kind), Some((*name, "to the agent")));
    }
    for (kind, name, _) in ToHost::KINDS {
        assert!(*kind >= 0x8000 && seen.insert(*kind), "{name}");
        assert_eq!(kind_name(*kind), Some((*name, "to the host")));
    }
    assert_eq!(kind_name(0), None);
    assert_eq!(kind_name(0xffff), None);
}

#[test]
fn no_list_outgrows_its_direction() {
    fn memory<T: Item>() -> usize {
        // The limits are powers of two, so that a vector which doubles ends with exactly this.
        assert!(T::MAX_ITEMS.is_power_of_two());
        T::MAX_ITEMS * size_of::<T>()
    }
    assert!(memory::<std::ffi::OsString>() <= MAX_PAYLOAD_TO_AGENT_BYTES);
    assert!(memory::<EnvVar>() <= MAX_PAYLOAD_TO_AGENT_BYTES);
    assert!(memory::<Stage>() <= MAX_PAYLOAD_TO_HOST_BYTES);
    assert!(memory::<String>() <= MAX_PAYLOAD_TO_HOST_BYTES);
    assert!(memory::<crate::PageRange>() <= MAX_PAYLOAD_TO_HOST_BYTES);
}

#[test]
fn a_full_piece_of_data_fits_both_ways_and_the_window() {
    let mut out = Vec::new();
    let data = vec![0; MAX_DATA_BYTES];
    crate::encode(&ToAgent::Data(data.clone()), &mut out).unwrap();
    crate::encode(&ToHost::Stdout(crate::Output { offset: u64::MAX, data }), &mut out).unwrap();
    assert!(MAX_DATA_BYTES as u64 * 2 <= STDIN_WINDOW_BYTES);
}
