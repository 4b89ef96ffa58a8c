// SPDX-License-Identifier: Apache-2.0
//! What goes into an image of ours: package lists, and where this machine gets its packages from.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::ImageError;
use crate::cache::Key;

const BASE: &str = include_str!("../../../rootfs/base.list");
const BUILD: &str = include_str!("../../../rootfs/build.list");
const CONTAINERS: &str = include_str!("../../../rootfs/containers.list");

/// The script that builds; part of every key.
pub(super) const SCRIPT: &str = include_str!("../../../rootfs/build.sh");

/// The images that there are recipes for.
pub(super) const NAMES: [&str; 3] = ["base", "build", "containers"];

/// Everything that decides what an image holds, but for the versions that the distribution has that day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recipe {
    pub(super) name: String,
    pub(super) packages: Vec<String>,
    /// `debian bookworm`.
    pub(super) distribution: String,
    /// `bookworm`.
    pub(super) suite: String,
    /// Lines of a `sources.list`.
    pub(super) sources: Vec<String>,
    /// Lines that the build prints, roughly, for the bar.
    pub(super) expected_lines: u64,
}

impl Recipe {
    pub(super) fn key(&self) -> String {
        Key::new()
            .part("packages", self.packages.join("\n").as_bytes())
            .part("suite", self.suite.as_bytes())
            .part("sources", self.sources.join("\n").as_bytes())
            .part("script", SCRIPT.as_bytes())
            .finish()
    }
}

/// The recipe of that name for this machine.
pub(super) fn named(name: &str) -> Result<Recipe, ImageError> {
    let (lists, expected_lines): (&[&str], u64) = match name {
        "base" => (&[BASE], 1500),
        "build" => (&[BASE, BUILD], 4000),
        "containers" => (&[BASE, CONTAINERS], 2000),
        _ => return Err(ImageError::NoRecipe { name: name.to_owned() }),
    };
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = field(&os_release, "VERSION_CODENAME").unwrap_or_default();
    let targets = index_targets()?;
    let sources = sources(&targets, &suite);
    if suite.is_empty() || sources.is_empty() {
        return Err(ImageError::NoSources { release: suite });
    }
    Ok(Recipe {
        name: name.to_owned(),
        packages: lists.iter().flat_map(|list| packages(list)).collect(),
        distribution: format!("{} {suite}", field(&os_release, "ID").unwrap_or_default()),
        suite,
        sources,
        expected_lines,
    })
}

/// The names in a list: one a line, `#` begins a comment.
fn packages(list: &str) -> Vec<String> {
    let names = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// A field of `/etc/os-release`.
fn field(os_release: &str, name: &str) -> Option<String> {
    let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(line.trim_matches('"').to_owned())
}

/// What apt would fetch package lists from: `URI|release|component|key file`, one a line.
fn index_targets() -> Result<String, ImageError> {
    let out = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)", "Created-By: Packages"])
        .output()
        .map_err(ImageError::io("running", Path::new("apt-get")))?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Lines of a `sources.list` for the release itself, its updates and its security fixes: other repositories that the
/// machine happens to have are nobody's business in a sandbox.
fn sources(targets: &str, suite: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for target in targets.lines() {
        let mut fields = target.split('|');
        let (Some(uri), Some(release), Some(component)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        // Where sources do not say which key signs them, apt leaves the placeholder as it is.
        let signed_by = fields.next().filter(|key| key.starts_with('/'));
        if release != suite && !release.strip_prefix(suite).is_some_and(|rest| rest.starts_with('-')) {
            continue;
        }
        let options = signed_by.map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        let line = format!("deb {options}{uri} {release} {component}");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "\
http://deb.example.org/debian/|bookworm|main|$(SIGNED_BY)
http://deb.example.org/debian/|bookworm|main|$(SIGNED_BY)
http://deb.example.org/debian/|bookworm-updates|main|/usr/share/keyrings/archive.gpg
http://deb.example.org/security/|bookworm-security|main|$(SIGNED_BY)
https://vendor.example.com/apt/|nodistro|main|$(SIGNED_BY)
https://vendor.example.com/apt/|bookwormish|main|$(SIGNED_BY)
malformed
";

    #[test]
    fn sources_are_those_of_the_release_once_each() {
        assert_eq!(
            sources(TARGETS, "bookworm"),
            [
                "deb http://deb.example.org/debian/ bookworm main",
                "deb [signed-by=/usr/share/keyrings/archive.gpg] http://deb.example.org/debian/ bookworm-updates main",
                "deb http://deb.example.org/security/ bookworm-security main",
            ]
        );
        assert!(sources(TARGETS, "trixie").is_empty());
    }

    #[test]
    fn lists_hold_names_and_comments() {
        assert_eq!(packages("# all\nbash\n\n git # why\n"), ["bash", "git"]);
        for list in [BASE, BUILD, CONTAINERS] {
            for name in packages(list) {
                assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)), "{name}");
            }
        }
    }

    #[test]
    fn base_has_what_the_documentation_promises() {
        let base = packages(BASE);
        for name in
            "bash coreutils findutils grep sed tar gzip git curl ca-certificates python3 python3-pip python3-venv \
                     ripgrep less procps"
                .split(' ')
        {
            assert!(base.iter().any(|package| package == name), "{name}");
        }
    }

    #[test]
    fn os_release_fields_come_with_and_without_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(field(text, "VERSION_CODENAME").as_deref(), Some("bookworm"));
        assert_eq!(field(text, "PRETTY_NAME").as_deref(), Some("Debian GNU/Linux 12"));
        assert_eq!(field(text, "VERSION"), None);
    }

    #[test]
    fn unknown_name_is_refused_with_the_known_ones() {
        let text = named("fedora").unwrap_err().to_string();
        assert!(text.contains("fedora") && text.contains("base, build, containers"), "{text}");
    }

    #[test]
    fn key_changes_with_packages_and_sources() {
        let recipe = |packages: &str, sources: &str| Recipe {
            name: "base".into(),
            packages: vec![packages.into()],
            distribution: "debian bookworm".into(),
            suite: "bookworm".into(),
            sources: vec![sources.into()],
            expected_lines: 1,
        };
        let key = recipe("git", "deb a").key();
        assert_eq!(key, recipe("git", "deb a").key());
        assert_ne!(key, recipe("hg", "deb a").key());
        assert_ne!(key, recipe("git", "deb b").key());
    }
}
