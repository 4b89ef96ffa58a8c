// SPDX-License-Identifier: Apache-2.0
//! The group that is divided: the nearest one above this process that this user may divide.
//!
//! Below a group that gives its controllers on there may be no process in the group itself, the very first group of the
//! machine aside. So the group of this process serves if it is that first one, or if nobody else is in it, as with
//! `systemd-run --scope -p Delegate=yes`: then this process moves into a group below it. Else those above are tried.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Access, access};

use super::{GroupError, failed};

/// Names the group in which those of sandboxes are made, or `off`: none are.
pub const VARIABLE: &str = "MIDGE_CGROUP";
/// What gives controllers on that are missing.
pub const DELEGATE: &str = "Delegate=yes where the group comes from systemd";
/// Where this process goes when it was alone in the group that it divides.
const HOST_GROUP: &str = "midge-host";

/// A resource that groups have limits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// Disks.
    Io,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Pids, Self::Io];

    /// The kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }

    /// Those that a list of the kernel's names.
    fn listed(text: &str) -> Vec<Self> {
        Self::ALL.into_iter().filter(|one| text.split_whitespace().any(|name| name == one.name())).collect()
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why this machine gives no groups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// They are switched off by [`VARIABLE`].
    #[error("control groups are switched off ({VARIABLE}=off)")]
    Off,
    /// There is no file system of them.
    #[error("control groups of version 2 are not mounted here")]
    NotMounted,
    /// They have no controller: those belong to version 1, mostly.
    #[error("the control group {} has no controller to give: they are with version 1, or were not given on", dir.display())]
    NoControllers {
        /// The group.
        dir: PathBuf,
    },
    /// No group may be divided.
    #[error("the control group {} is not this user's to divide", dir.display())]
    NotDelegated {
        /// The group of this process.
        dir: PathBuf,
    },
}

impl Missing {
    /// What mends it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Off => "unset MIDGE_CGROUP",
            Self::NotMounted | Self::NoControllers { .. } => {
                "systemd.unified_cgroup_hierarchy=1 on the kernel's command line"
            }
            Self::NotDelegated { .. } => {
                "systemd-run --user --scope -p Delegate=yes midge …, or Delegate=yes in the service"
            }
        }
    }
}

/// What was found, before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    dir: PathBuf,
    controllers: Vec<Controller>,
    /// This process is alone in it, and has to leave it first.
    is_ours_alone: bool,
}

impl Base {
    /// The directory of the group that is divided.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What groups in it have limits for.
    #[must_use]
    pub fn controllers(&self) -> &[Controller] {
        &self.controllers
    }

    /// Looks for it below another root directory than `/`; changes nothing.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn look(root: &Path) -> Result<Self, Missing> {
        match std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            Some(value) if value == "off" => Err(Missing::Off),
            Some(dir) => {
                let dir = PathBuf::from(dir);
                usable(&dir, "").ok_or(Missing::NotDelegated { dir })?.with_controllers()
            }
            None => Self::above(root),
        }
    }

    fn above(root: &Path) -> Result<Self, Missing> {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let (mounted, divided) = mount(&read("proc/self/mountinfo")).ok_or(Missing::NotMounted)?;
        let groups = read("proc/self/cgroup");
        let own = groups.lines().find_map(|line| line.strip_prefix("0::")).ok_or(Missing::NotMounted)?;
        // Outside of what is mounted there is nothing to be had.
        let own = Path::new(own).strip_prefix(&divided).map_err(|_| Missing::NotMounted)?;
        let top = root.join(mounted.strip_prefix("/").unwrap_or(&mounted));
        let own_dir = top.join(own);
        let pid = std::process::id().to_string();
        let candidates = own_dir.ancestors().take_while(|dir| dir.starts_with(&top));
        let found = candidates.into_iter().find_map(|dir| usable(dir, if dir == own_dir { &pid } else { "" }));
        found.ok_or(Missing::NotDelegated { dir: own_dir })?.with_controllers()
    }

    fn with_controllers(self) -> Result<Self, Missing> {
        if self.controllers.is_empty() { Err(Missing::NoControllers { dir: self.dir }) } else { Ok(self) }
    }

    /// Has it give its controllers on. One that it does not is gone from the list.
    fn open(mut self) -> Result<Self, GroupError> {
        if self.is_ours_alone {
            let host = self.dir.join(HOST_GROUP);
            match fs::create_dir(&host) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("making", &host)(error));
                }
                _ => {}
            }
            fs::write(host.join("cgroup.procs"), "0").map_err(failed("moving into", &host))?;
        }
        let given = self.dir.join("cgroup.subtree_control");
        for controller in &self.controllers {
            if let Err(error) = fs::write(&given, format!("+{controller}")) {
                tracing::debug!(%error, %controller, dir = %self.dir.display(), "a controller is not given on");
            }
        }
        self.controllers = Controller::listed(&fs::read_to_string(&given).unwrap_or_default());
        Ok(self.with_controllers()?)
    }
}

/// The group that this process divides, which it finds and opens once.
pub fn base() -> Result<&'static Base, GroupError> {
    static BASE: OnceLock<Result<Base, Missing>> = OnceLock::new();
    let open = || {
        let found = Base::look(Path::new("/"))?;
        let dir = found.dir.clone();
        found.open().map_err(|error| match error {
            GroupError::Missing(missing) => missing,
            _ => Missing::NotDelegated { dir },
        })
    };
    BASE.get_or_init(open).as_ref().map_err(|missing| missing.clone().into())
}

/// Where control groups of version 2 are mounted, and which of them is the topmost there.
fn mount(mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    mountinfo.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (kind.split(' ').next() == Some("cgroup2")).then(|| (point.into(), root.into()))
    })
}

/// Whether a group can be divided by this user. `own` is the number of this process, if it is in there.
fn usable(dir: &Path, own: &str) -> Option<Base> {
    let may = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    if !may(dir) || !["cgroup.procs", "cgroup.subtree_control"].iter().all(|name| may(&dir.join(name))) {
        return None;
    }
    let mut is_ours_alone = false;
    // The first group of all has no type, and may have processes.
    if let Some(kind) = read("cgroup.type") {
        let processes = read("cgroup.procs")?;
        is_ours_alone = !processes.is_empty();
        let has_others = processes.lines().any(|pid| pid != own);
        let is_retreat = dir.file_name().is_some_and(|name| name == HOST_GROUP);
        if kind.trim() != "domain" || has_others || is_retreat {
            return None;
        }
    }
    let controllers = Controller::listed(&read("cgroup.controllers")?);
    Some(Base { dir: dir.to_owned(), controllers, is_ours_alone })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose groups are these: path below the mount, processes, type, controllers.
    fn machine(own: &str, groups: &[(&str, &str, Option<&str>, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            "proc/self/mountinfo",
            "21 1 0:19 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             22 1 0:20 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        put("proc/self/cgroup", &format!("4:memory:/x\n0::{own}\n"));
        for (path, processes, kind, controllers) in groups {
            let dir = format!("sys/fs/cgroup/{path}");
            put(&format!("{dir}/cgroup.procs"), processes);
            put(&format!("{dir}/cgroup.subtree_control"), "");
            put(&format!("{dir}/cgroup.controllers"), controllers);
            if let Some(kind) = kind {
                put(&format!("{dir}/cgroup.type"), kind);
            }
        }
        root
    }

    fn found(machine: &tempfile::TempDir) -> Result<(String, Vec<Controller>, bool), Missing> {
        let top = machine.path().join("sys/fs/cgroup");
        let path = |dir: &Path| dir.strip_prefix(&top).unwrap().display().to_string();
        Base::above(machine.path()).map(|base| (path(&base.dir), base.controllers, base.is_ours_alone))
    }

    #[test]
    fn the_first_group_of_all_is_divided_whoever_is_in_it() {
        let machine = machine("/", &[("", "1\n2\n", None, "cpuset cpu io memory hugetlb pids\n")]);
        assert_eq!(found(&machine), Ok((String::new(), Controller::ALL.to_vec(), false)));
    }

    #[test]
    fn the_nearest_group_that_nobody_is_in_is_divided() {
        let pid = format!("{}\n", std::process::id());
        let alone = machine("/a/b", &[("a", "", Some("domain\n"), "cpu"), ("a/b", &pid, Some("domain\n"), "pids cpu")]);
        assert_eq!(found(&alone), Ok(("a/b".to_owned(), vec![Controller::Cpu, Controller::Pids], true)));
        let others = format!("77\n{pid}");
        let shared =
            machine("/a/b", &[("a", "", Some("domain\n"), "memory"), ("a/b", &others, Some("domain\n"), "cpu")]);
        assert_eq!(found(&shared), Ok(("a".to_owned(), vec![Controller::Memory], false)));
        let retreat = machine(
            "/a/midge-host",
            &[("a", "", Some("domain\n"), "memory"), ("a/midge-host", &pid, Some("domain\n"), "memory")],
        );
        assert_eq!(found(&retreat), Ok(("a".to_owned(), vec![Controller::Memory], false)));
    }

    #[test]
    fn what_is_not_to_be_had_is_told_apart() {
        let crowded = machine("/a", &[("", "1\n", Some("domain\n"), "cpu"), ("a", "7\n", Some("domain\n"), "cpu")]);
        let dir = crowded.path().join("sys/fs/cgroup/a");
        assert_eq!(found(&crowded), Err(Missing::NotDelegated { dir }));
        let threaded = machine("/", &[("", "", Some("threaded\n"), "cpu")]);
        assert!(matches!(found(&threaded), Err(Missing::NotDelegated { .. })));
        let empty = machine("/", &[("", "1\n", None, "hugetlb\n")]);
        let dir = empty.path().join("sys/fs/cgroup/");
        assert_eq!(found(&empty), Err(Missing::NoControllers { dir }));
        let nowhere = tempfile::tempdir().unwrap();
        assert_eq!(found(&nowhere), Err(Missing::NotMounted));
        assert_eq!(found(&machine("/../elsewhere", &[])).map_err(|_| ()), Err(()));
    }
}
