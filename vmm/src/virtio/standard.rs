// SPDX-License-Identifier: Apache-2.0
//! Keeps `standard.md` true: every test that it names is there.

use std::path::Path;

const TABLE: &str = include_str!("standard.md");

/// Rows of the table, each as its five cells.
fn rows() -> Vec<[&'static str; 5]> {
    let rows = TABLE.lines().filter(|line| {
        line.starts_with("| ") && !line.starts_with("| §") && !line.starts_with("| where") && !line.contains("---")
    });
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        cells.try_into().unwrap_or_else(|cells| panic!("five cells: {cells:?}"))
    })
    .collect()
}

/// Whether a cell like `file: function` names a test that there is.
fn exists(test: &str) -> bool {
    let Some((file, name)) = test.trim_matches('`').split_once(": ") else { return false };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file).with_extension("rs");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split("#[test]")
        .skip(1)
        .any(|behind| behind.split("fn ").nth(1).is_some_and(|f| f.starts_with(&format!("{name}("))))
}

#[test]
fn every_rule_of_the_table_has_a_test_that_is_there() {
    let rows = rows();
    assert!(rows.len() > 80, "{} rows", rows.len());
    for [section, who, rule, answer, test] in rows {
        assert!(matches!(who, "device" | "driver"), "{section}: {who}");
        assert!(!section.is_empty() && !rule.is_empty() && !answer.is_empty(), "{section}: {rule}");
        assert!(exists(test), "{section} {rule}: there is no test {test}");
    }
}

#[test]
fn a_test_that_is_not_there_is_missed() {
    assert!(exists("`virtio/standard: a_test_that_is_not_there_is_missed`"));
    for missing in ["`virtio/standard: a_test_that`", "`virtio/absent: rows`", "`virtio/standard: rows`", "rows", ""] {
        assert!(!exists(missing), "{missing}");
    }
}
