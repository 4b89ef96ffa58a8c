// SPDX-License-Identifier: Apache-2.0
//! The direction of imports: the tree is listed in the order of dependence, and a file imports
//! only from files above it. One table a crate; a test compares the tables with the tree.

use crate::rules::Finding;
use crate::source::{Source, has_word, is_word};

/// One crate's place in the order.
#[derive(Debug)]
pub struct CrateOrder {
    /// Directory of its sources.
    pub dir: &'static str,
    /// Its name in `use` lines.
    pub name: &'static str,
    /// Crates of ours that it may import.
    pub may_import: &'static [&'static str],
    /// Its top-level modules, from the bottom up.
    pub modules: &'static [&'static str],
}

/// All crates that are linked into a product binary, bottom-up.
pub const CRATES: [CrateOrder; 8] = [
    CrateOrder { dir: "guest-agent/protocol/src", name: "midge_protocol", may_import: &[], modules: &[] },
    CrateOrder {
        dir: "vmm/src",
        name: "midge_vmm",
        may_import: &[],
        modules: &[
            "dice",
            "sys",
            "config",
            "trace",
            "memory",
            "machine",
            "boot",
            "virtio",
            "disk",
            "block",
            "vsock",
            "snapshot",
            "jail",
            "postmortem",
            "orders",
            "control",
            "vm",
            "main",
        ],
    },
    CrateOrder { dir: "guest-agent/src", name: "midge_agent", may_import: &["midge_protocol"], modules: &[] },
    CrateOrder {
        dir: "guest-agent/turn/src",
        name: "midge_turn",
        may_import: &["midge_protocol"],
        modules: &["tools", "sse", "talk", "prompt", "wire", "context", "turn", "http", "doors", "drive", "main"],
    },
    CrateOrder { dir: "host/policy/src", name: "midge_policy", may_import: &[], modules: &[] },
    CrateOrder {
        dir: "host/record/src",
        name: "midge_record",
        may_import: &["midge_protocol"],
        modules: &["chain", "entry", "mask", "recorder", "read", "verify", "show", "replay", "export", "fuzz"],
    },
    CrateOrder {
        dir: "host/broker/src",
        name: "midge_broker",
        may_import: &["midge_protocol", "midge_policy", "midge_record"],
        modules: &[
            "lines", "stream", "http", "tls", "veil", "names", "usage", "ledger", "ask", "told", "child", "peer",
            "shared", "egress", "model",
        ],
    },
    CrateOrder {
        dir: "host/src",
        name: "midge",
        may_import: &["midge_protocol", "midge_policy", "midge_record", "midge_broker"],
        modules: &[
            "progress",
            "cache",
            "erofs",
            "kernel",
            "image",
            "initramfs",
            "scratch",
            "machine",
            "probe",
            "orders",
            "doorman",
            "run_dir",
            "groups",
            "emulated",
            "doctor",
            "workspace",
            "runs",
            "ps",
            "timeline",
            "monitor",
            "error",
            "link",
            "exec",
            "files",
            "sandbox",
            "template",
            "pool",
            "agent",
            "bench",
            "cli",
            "main",
        ],
    },
];

/// Imports of `source` that point downwards in its crate's order, or to a crate it may not know.
#[must_use]
pub fn check(source: &Source, orders: &[CrateOrder]) -> Vec<Finding> {
    let Some(order) = orders.iter().find(|order| source.path.starts_with(&format!("{}/", order.dir))) else {
        return Vec::new();
    };
    let own = source.path[order.dir.len() + 1..].split(['/', '.']).next().unwrap_or_default();
    let own_rank = order.modules.iter().position(|module| *module == own);
    let mut found = Vec::new();
    for (line, code) in source.product_code() {
        for other in orders.iter().filter(|other| other.name != order.name && !order.may_import.contains(&other.name)) {
            if has_word(code, other.name) && code.contains(&format!("{}::", other.name)) {
                found.push(Finding::new(&source.path, line, format!("{} must not import {}", order.name, other.name)));
            }
        }
        let Some(own_rank) = own_rank else { continue };
        for target in crate_paths(code) {
            let rank = order.modules.iter().position(|module| *module == target);
            if rank.is_some_and(|rank| rank > own_rank) {
                let text = format!("`{own}` stands above `{target}` in the order of dependence and must not import it");
                found.push(Finding::new(&source.path, line, text));
            }
        }
    }
    found
}

/// The first path segment after each `crate::` in `code`, those in braces included.
fn crate_paths(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, matched) in code.match_indices("crate::") {
        let rest = &code[at + matched.len()..];
        let group = rest.strip_prefix('{').map_or(rest, |inner| inner);
        let first = |part: &str| part.trim().chars().take_while(|c| is_word(*c)).collect::<String>();
        if rest.starts_with('{') {
            names.extend(group.split([',', '}']).map(first));
        } else {
            names.push(first(rest));
        }
    }
    names
}

/// Top-level modules of a crate that its table does not list (an unlisted module would escape the check).
#[must_use]
pub fn unlisted(sources: &[Source], orders: &[CrateOrder]) -> Vec<Finding> {
    let mut found = Vec::new();
    for order in orders.iter().filter(|order| !order.modules.is_empty()) {
        for source in sources.iter().filter(|source| source.path.starts_with(&format!("{}/", order.dir))) {
            let module = source.path[order.dir.len() + 1..].split(['/', '.']).next().unwrap_or_default();
            if !matches!(module, "lib" | "tests" | "bin")
                && !order.modules.contains(&module)
                && source.non_test_lines() > 0
            {
                let text = format!("module `{module}` has no place in the order of dependence (tests/src/order.rs)");
                found.push(Finding::new(&source.path, 1, text));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: [CrateOrder; 2] = [
        CrateOrder { dir: "low/src", name: "low", may_import: &[], modules: &["spec", "queue"] },
        CrateOrder { dir: "high/src", name: "high", may_import: &["low"], modules: &[] },
    ];

    fn texts(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text), &ORDERS).into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn import_from_below_is_found() {
        assert_eq!(texts("low/src/spec.rs", "use crate::queue::Queue;\n").len(), 1);
        assert_eq!(texts("low/src/spec/deep.rs", "use crate::{spec, queue::Queue};\n").len(), 1);
        assert!(texts("low/src/queue.rs", "use crate::spec::A;\n").is_empty());
        assert!(texts("low/src/lib.rs", "pub use crate::queue::Queue;\n").is_empty());
    }

    #[test]
    fn crate_may_not_know_its_users() {
        assert_eq!(texts("low/src/spec.rs", "fn a() { high::b() }\n").len(), 1);
        assert!(texts("high/src/a.rs", "use low::spec;\n").is_empty());
        assert!(texts("low/src/spec.rs", "let high = 1;\n").is_empty());
    }

    #[test]
    fn tests_may_import_anything() {
        assert!(texts("low/src/spec.rs", "#[cfg(test)]\nmod tests {\n  use crate::queue::Q;\n}\n").is_empty());
    }

    #[test]
    fn module_without_a_place_is_found() {
        let sources = [Source::new("low/src/new.rs", "fn a() {}\n"), Source::new("low/src/spec.rs", "fn a() {}\n")];
        let found = unlisted(&sources, &ORDERS);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "low/src/new.rs");
    }
}
