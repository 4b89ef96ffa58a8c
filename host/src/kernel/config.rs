// SPDX-License-Identifier: Apache-2.0
//! What is asked of Kconfig, and whether it took it. Pure text: knows no files and runs nothing.

use std::collections::HashMap;

use super::Flavour;

const BASE: &str = include_str!("../../../guest-kernel-config/base.config");
const GUEST: &str = include_str!("../../../guest-kernel-config/guest.config");
const SMP: &str = include_str!("../../../guest-kernel-config/smp.config");
const HOST: &str = include_str!("../../../guest-kernel-config/host.config");

/// The fragments of a flavour, one after the other.
pub(super) fn merged(flavour: Flavour) -> String {
    match flavour {
        Flavour::Guest => [BASE, GUEST].concat(),
        Flavour::GuestSmp => [BASE, GUEST, SMP].concat(),
        Flavour::Host => [BASE, SMP, HOST].concat(),
    }
}

/// A requested option that Kconfig left otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unset {
    /// Such as `CONFIG_EROFS_FS`.
    pub symbol: String,
    /// The value asked for; `n` for off.
    pub wanted: String,
    /// What the final configuration has; `n` when it is off or unknown to this source.
    pub found: String,
}

impl std::fmt::Display for Unset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (wanted {}, is {})", self.symbol, self.wanted, self.found)
    }
}

/// Which options of `requested` came out otherwise in `dot_config`. A later line of a fragment overrides an earlier one.
pub(super) fn unset(requested: &str, dot_config: &str) -> Vec<Unset> {
    let found: HashMap<&str, &str> = dot_config.lines().filter_map(option).collect();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (symbol, value) in requested.lines().filter_map(option) {
        wanted.retain(|(earlier, _)| *earlier != symbol);
        wanted.push((symbol, value));
    }
    wanted
        .into_iter()
        .map(|(symbol, wanted)| (symbol, wanted, found.get(symbol).copied().unwrap_or("n")))
        .filter(|(_, wanted, found)| wanted != found)
        .map(|(symbol, wanted, found)| Unset {
            symbol: symbol.to_owned(),
            wanted: wanted.to_owned(),
            found: found.to_owned(),
        })
        .collect()
}

/// One line of a configuration: `CONFIG_X=value`, or `# CONFIG_X is not set`, which is `n`.
fn option(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix("# ") {
        let symbol = rest.strip_suffix(" is not set")?;
        return is_symbol(symbol).then_some((symbol, "n"));
    }
    let (symbol, value) = line.split_once('=')?;
    is_symbol(symbol).then_some((symbol, value))
}

fn is_symbol(text: &str) -> bool {
    text.strip_prefix("CONFIG_")
        .is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unset_symbols(requested: &str, dot_config: &str) -> Vec<String> {
        unset(requested, dot_config).into_iter().map(|unset| unset.symbol).collect()
    }

    #[test]
    fn option_that_did_not_take_is_named_with_both_values() {
        let found = unset("CONFIG_A=y\nCONFIG_NR=64\n", "CONFIG_A=y\nCONFIG_NR=8\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "CONFIG_NR (wanted 64, is 8)");
    }

    #[test]
    fn option_unknown_to_the_source_is_unset_unless_off_was_wanted() {
        assert_eq!(unset_symbols("CONFIG_NEW=y\n", ""), ["CONFIG_NEW"]);
        assert!(unset_symbols("# CONFIG_OLD is not set\n", "").is_empty());
    }

    #[test]
    fn option_that_something_selected_against_the_request_is_named() {
        assert_eq!(unset_symbols("# CONFIG_PCI is not set\n", "CONFIG_PCI=y\n"), ["CONFIG_PCI"]);
    }

    #[test]
    fn later_fragment_overrides_earlier() {
        assert!(unset_symbols("CONFIG_A=y\n# CONFIG_A is not set\n", "# CONFIG_A is not set\n").is_empty());
    }

    #[test]
    fn prose_in_comments_is_no_option() {
        let text = "# CONFIG_A=y would be wrong here\n# --- Off: CONFIG_B\n# this is not set\nCONFIG_=y\n";
        assert!(text.lines().filter_map(option).next().is_none());
    }

    #[test]
    fn string_values_compare_whole() {
        assert!(unset_symbols("CONFIG_LSM=\"landlock\"\n", "CONFIG_LSM=\"landlock\"\n").is_empty());
        assert_eq!(unset_symbols("CONFIG_LSM=\"landlock\"\n", "CONFIG_LSM=\"yama\"\n"), ["CONFIG_LSM"]);
    }

    #[test]
    fn every_line_of_our_fragments_is_an_option_or_a_comment() {
        for flavour in Flavour::ALL {
            for line in merged(flavour).lines() {
                let fine = line.is_empty() || option(line).is_some() || line.starts_with("# ");
                assert!(fine, "{flavour:?}: {line}");
            }
        }
    }

    #[test]
    fn no_fragment_says_a_thing_twice() {
        for fragment in [BASE, GUEST, SMP, HOST] {
            let mut seen = std::collections::HashSet::new();
            for (symbol, _) in fragment.lines().filter_map(option) {
                assert!(seen.insert(symbol), "{symbol}");
            }
        }
    }

    #[test]
    fn every_group_of_options_has_a_reason_above_it() {
        for fragment in [BASE, GUEST, SMP, HOST] {
            for group in fragment.split("\n\n").skip(1) {
                assert!(group.trim_start().starts_with("# --- "), "group without a reason:\n{group}");
            }
        }
    }

    #[test]
    fn guests_have_what_the_agent_and_the_monitor_rely_on() {
        for flavour in [Flavour::Guest, Flavour::GuestSmp] {
            let text = merged(flavour);
            for symbol in ["VIRTIO_BLK", "VIRTIO_VSOCKETS", "EROFS_FS", "EXT4_FS", "OVERLAY_FS", "SECURITY_LANDLOCK"] {
                assert!(text.contains(&format!("\nCONFIG_{symbol}=y\n")), "{flavour:?} lacks {symbol}");
            }
        }
    }
}
