// SPDX-License-Identifier: Apache-2.0
//! What must not reach the host unasked: changes that would make the host run code by itself (the parts of a git repository
//! that do more than hold history), and symbolic links that lead out of the workspace. Pure rules on paths.

use std::collections::BTreeSet;

use super::path::RelPath;

/// Why a change is not applied unless allowed by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// Part of a git repository that can make git run commands or read elsewhere: configuration, hooks, attributes,
    /// `commondir`, alternates, submodules' repositories, a `.git` that is no directory, or the loss of a repository.
    GitInternals,
    /// A symbolic link whose target lies, or may lie, outside the workspace.
    LinkLeavesTree,
    /// The policy says that it stays as it is; nothing allows it.
    ReadOnly,
}

impl Guard {
    /// One clause for the user.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::GitInternals => "could make git on this machine run commands",
            Self::LinkLeavesTree => "links out of the workspace",
            Self::ReadOnly => "is to stay as it is, by the policy",
        }
    }
}

/// Names in a git directory that hold only data. What is not listed is guarded: git gains new files over time.
const GIT_DATA_FILES: [&[u8]; 22] = [
    b"AUTO_MERGE",
    b"BISECT_LOG",
    b"BISECT_START",
    b"BISECT_TERMS",
    b"CHERRY_PICK_HEAD",
    b"COMMIT_EDITMSG",
    b"FETCH_HEAD",
    b"HEAD",
    b"MERGE_HEAD",
    b"MERGE_MODE",
    b"MERGE_MSG",
    b"MERGE_RR",
    b"ORIG_HEAD",
    b"REBASE_HEAD",
    b"REVERT_HEAD",
    b"SQUASH_MSG",
    b"TAG_EDITMSG",
    b"description",
    b"index",
    b"packed-refs",
    b"shallow",
    b"info",
];

/// Names at any place in a workspace that tools on the host act upon without being asked for that very file.
const SELF_STARTING: [&[u8]; 16] = [
    b".claude",
    b".cursor",
    b".devcontainer",
    b".envrc",
    b".gitattributes",
    b".githooks",
    b".gitmodules",
    b".husky",
    b".idea",
    b".mcp.json",
    b".mise.toml",
    b".pre-commit-config.yaml",
    b".tool-versions",
    b".vscode",
    b".workflows",
    b"lefthook.yml",
];

/// Whether a symbolic link at `path` with this target names something in the workspace, whatever other links there are:
/// the target is relative, climbs only at its start, and not above the top.
#[must_use]
pub fn link_stays_inside(path: &RelPath, target: &[u8]) -> bool {
    if target.is_empty() || target[0] == b'/' {
        return false;
    }
    let depth = path.components().count() - 1;
    let mut parts = target.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").peekable();
    let mut climbed = 0;
    while parts.next_if(|part| *part == b"..").is_some() {
        climbed += 1;
    }
    climbed <= depth && !parts.any(|part| part == b"..")
}

/// Whether tools on the host may act upon `path` by themselves; such changes are applied, but pointed out.
#[must_use]
pub fn starts_by_itself(path: &RelPath) -> bool {
    path.components().any(|component| SELF_STARTING.contains(&component))
        || path.as_bytes().starts_with(b".github/workflows/")
}

/// Git directories other than those called `.git`: bare repositories and the like, which git recognises by their content
/// (`HEAD` beside `objects` and `refs`, or beside `commondir`). `paths` are all paths that exist before or after the run.
#[derive(Clone, Debug, Default)]
pub struct GitDirs {
    below: BTreeSet<RelPath>,
    /// The workspace itself is one.
    top: bool,
}

impl GitDirs {
    /// Looks at every path whose name is `HEAD`; `exists` tells whether another path does.
    pub fn find<'a>(paths: impl Iterator<Item = &'a RelPath>, exists: impl Fn(&[u8]) -> bool) -> Self {
        let mut found = Self::default();
        for path in paths.filter(|path| path.name().eq_ignore_ascii_case(b"HEAD")) {
            let dir = path.parent();
            let has = |name| RelPath::join(dir.as_ref(), name).is_ok_and(|path| exists(path.as_bytes()));
            if (has(b"objects") && has(b"refs")) || has(b"commondir") {
                match dir {
                    Some(dir) => drop(found.below.insert(dir)),
                    None => found.top = true,
                }
            }
        }
        found
    }

    /// Whether changing `path` is guarded. `is_dir`: it is, and was, a directory or nothing. `removed`: it is gone afterwards.
    #[must_use]
    pub fn guards(&self, path: &RelPath, is_dir: bool, removed: bool) -> bool {
        let components: Vec<&[u8]> = path.components().collect();
        let named = (1..=components.len()).filter(|end| components[end - 1].eq_ignore_ascii_case(b".git"));
        let recognised = path.ancestors().filter(|dir| self.below.contains(dir)).map(|dir| dir.components().count());
        let mut inside = named.chain(recognised).chain(self.top.then_some(0)).map(|start| &components[start..]);
        inside.any(|inside| match inside {
            [] => removed || !is_dir,
            inside => !is_git_data(inside, is_dir),
        })
    }
}

/// Whether a path inside a git directory holds history and nothing that git acts upon.
fn is_git_data(inside: &[&[u8]], is_dir: bool) -> bool {
    match inside {
        [b"objects", b"info", b"alternates" | b"http-alternates", ..] => false,
        [b"objects" | b"refs" | b"logs"] => is_dir,
        [b"objects" | b"refs" | b"logs", ..] => true,
        [b"info"] => is_dir,
        [b"info", b"exclude" | b"refs" | b"sparse-checkout"] => true,
        [name] => !is_dir && GIT_DATA_FILES.contains(name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn links_climb_at_most_to_the_top_and_only_at_their_start() {
        for (at, target) in
            [("a", "b"), ("a", "./b/c"), ("d/a", "../b"), ("d/e/a", "../../b"), ("d/a", ".././x"), ("a", ".")]
        {
            assert!(link_stays_inside(&path(at), target.as_bytes()), "{at} -> {target}");
        }
        for (at, target) in [
            ("a", "/etc/passwd"),
            ("a", ".."),
            ("a", "../x"),
            ("d/a", "../../x"),
            ("d/a", "b/../../x"),
            ("d/a", "b/../x"),
            ("a", "x/.."),
            ("a", ""),
        ] {
            assert!(!link_stays_inside(&path(at), target.as_bytes()), "{at} -> {target}");
        }
    }

    proptest::proptest! {
        /// The judge is the kernel: links that pass the rule, all in one tree, never resolve to a place outside.
        #[test]
        fn no_set_of_links_that_pass_leads_out(
            links in proptest::collection::vec(("[ab]/[abc]|[abc]", "[abc./]{1,8}"), 1..6)
        ) {
            let outer = tempfile::tempdir().unwrap();
            let top = outer.path().canonicalize().unwrap().join("top");
            for dir in ["top/a", "top/b", "a", "b", "c"] {
                std::fs::create_dir_all(outer.path().join(dir)).unwrap();
            }
            let mut made = Vec::new();
            for (at, target) in &links {
                if link_stays_inside(&path(at), target.as_bytes())
                    && std::os::unix::fs::symlink(target, top.join(at)).is_ok()
                {
                    made.push(top.join(at));
                }
            }
            for link in made {
                if let Ok(real) = link.canonicalize() {
                    proptest::prop_assert!(real.starts_with(&top), "{} is {}", link.display(), real.display());
                }
            }
        }
    }

    #[test]
    fn what_git_acts_upon_is_guarded_and_history_is_not() {
        let git = GitDirs::default();
        for guarded in [
            ".git/config",
            ".git/config.worktree",
            ".git/hooks/pre-commit",
            ".git/hooks",
            ".git/info/attributes",
            ".git/info/grafts",
            ".git/objects/info/alternates",
            ".git/commondir",
            ".git/gitdir",
            ".git/modules/sub/config",
            ".git/modules/sub/hooks/post-checkout",
            ".git/modules/refs/config",
            ".git/worktrees/w/config.worktree",
            ".git/rebase-merge/git-rebase-todo",
            ".git/index.lock",
            ".GIT/config",
            ".git",
            "sub/dir/.git/config",
            "sub/.git",
            ".git/refs/heads/.git/config",
            ".git/HEAD/config",
        ] {
            assert!(git.guards(&path(guarded), false, false), "{guarded}");
        }
        for data in [
            ".git/HEAD",
            ".git/index",
            ".git/packed-refs",
            ".git/objects/ab/cdef",
            ".git/objects/pack/p.pack",
            ".git/refs/heads/main",
            ".git/logs/HEAD",
            ".git/info/exclude",
            ".gitignore",
            "config",
            "hooks/pre-commit",
            "git/config",
        ] {
            assert!(!git.guards(&path(data), false, false), "{data}");
        }
        assert!(!git.guards(&path("new/.git"), true, false), "an empty repository directory does nothing");
        assert!(git.guards(&path(".git"), true, true), "losing the repository");
        assert!(git.guards(&path(".git/objects"), false, false), "objects as a file or link");
        assert!(git.guards(&path(".git/config"), true, false), "config as a directory");
    }

    #[test]
    fn bare_repositories_are_recognised_by_content() {
        let find = |paths: &[&str]| {
            let parsed: Vec<RelPath> = paths.iter().map(|text| path(text)).collect();
            GitDirs::find(parsed.iter(), |wanted| parsed.iter().any(|path| path.as_bytes() == wanted))
        };
        let git = find(&["b/HEAD", "b/objects", "b/refs", "c/HEAD", "w/HEAD", "w/commondir"]);
        assert!(git.guards(&path("b/config"), false, false));
        assert!(git.guards(&path("b/hooks/update"), false, false));
        assert!(!git.guards(&path("b/refs/heads/main"), false, false));
        assert!(git.guards(&path("w/config"), false, false));
        assert!(!git.guards(&path("c/config"), false, false), "no objects, no refs");
        let whole = find(&["HEAD", "objects", "refs"]);
        assert!(whole.guards(&path("hooks/update"), false, false), "the workspace itself");
        assert!(!whole.guards(&path("objects/ab/cd"), false, false));
    }

    #[test]
    fn files_that_start_by_themselves_are_pointed_out() {
        assert!(starts_by_itself(&path(".envrc")));
        assert!(starts_by_itself(&path("sub/.vscode/tasks.json")));
        assert!(starts_by_itself(&path(".github/workflows/ci.yml")));
        assert!(!starts_by_itself(&path("src/vscode/main.rs")));
    }
}
