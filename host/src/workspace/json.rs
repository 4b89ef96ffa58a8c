// SPDX-License-Identifier: Apache-2.0
//! The list of changes for programs.

use serde_json::{Value, json};

use super::changes::{AfterContent, Change, ChangeKind, ChangeSet};
use super::manifest::{Content, Notes};
use super::path::RelPath;

impl ChangeSet {
    /// The list of changes as JSON: an object with `changes`, `notes` and `totals`. A path that is not UTF-8 has its bytes in
    /// hexadecimal in `path_hex`, and `path` shows it with escapes.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let changes: Vec<Value> = self.changes().iter().map(change_json).collect();
        let count = |kind| self.changes().iter().filter(|change| change.kind == kind).count();
        json!({
            "changes": changes,
            "notes": self.notes().to_json(),
            "totals": {
                "added": count(ChangeKind::Added),
                "modified": count(ChangeKind::Modified),
                "mode_changed": count(ChangeKind::ModeChanged),
                "type_changed": count(ChangeKind::TypeChanged),
                "deleted": count(ChangeKind::Deleted),
            },
        })
    }
}

impl Notes {
    /// The notes that were kept in full, as a JSON array of objects with `note` and `path`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        self.items().iter().map(|note| named(&note.path, &json!({"note": note.kind}))).collect()
    }
}

fn change_json(change: &Change) -> Value {
    let side = |kind: &str, mode: u32, size: Option<u64>, target: Option<&[u8]>| {
        let mut value = json!({"type": kind, "mode": format!("{mode:04o}")});
        if let Some(size) = size {
            value["size"] = size.into();
        }
        if let Some(target) = target {
            value["target"] = String::from_utf8_lossy(target).into();
        }
        value
    };
    let before = change.before.as_ref().map(|entry| match &entry.content {
        Content::Dir => side("directory", entry.mode, None, None),
        Content::File { size, .. } => side("file", entry.mode, Some(*size), None),
        Content::Symlink { target } => side("symlink", entry.mode, None, Some(target)),
    });
    let after = change.after.as_ref().map(|after| match &after.content {
        AfterContent::Dir => side("directory", after.mode, None, None),
        AfterContent::File { size, .. } => side("file", after.mode, Some(*size), None),
        AfterContent::Symlink { target } => side("symlink", after.mode, None, Some(target)),
    });
    let more = json!({
        "kind": change.kind,
        "before": before,
        "after": after,
        "guard": change.guard,
        "starts_by_itself": change.starts_by_itself,
    });
    named(&change.path, &more)
}

fn named(path: &RelPath, more: &Value) -> Value {
    let mut value = more.clone();
    match std::str::from_utf8(path.as_bytes()) {
        Ok(text) => value["path"] = text.into(),
        Err(_) => {
            value["path"] = path.to_string().into();
            value["path_hex"] = path.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, entry, file, guest_file, tree};
    use super::super::spool::GuestKind;
    use super::*;

    #[test]
    fn json_has_both_sides_and_names_that_are_not_utf8() {
        let fixture = Fixture::new(&tree(&[("a/g", file("two")), ("run", file("#!"))]));
        let (mut odd, data) = guest_file("x", b"new");
        odd.path = b"\xff".to_vec();
        let whiteout = (entry(b"run", GuestKind::Whiteout), Vec::new());
        let json = fixture.changes(&[(odd, data), guest_file("a/g", b"three"), whiteout]).to_json();
        assert_eq!(
            json["totals"],
            json!({"added": 1, "modified": 1, "mode_changed": 0, "type_changed": 0, "deleted": 1})
        );
        let changes = json["changes"].as_array().unwrap();
        assert_eq!(changes[0]["path"], "a/g");
        assert_eq!(changes[0]["before"], json!({"type": "file", "mode": "0644", "size": 3}));
        assert_eq!(changes[0]["after"], json!({"type": "file", "mode": "0644", "size": 5}));
        assert_eq!((&changes[1]["kind"], &changes[1]["after"]), (&json!("deleted"), &Value::Null));
        assert_eq!((&changes[2]["path"], &changes[2]["path_hex"]), (&json!("\\xff"), &json!("ff")));
    }
}
