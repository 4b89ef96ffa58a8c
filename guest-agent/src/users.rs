// SPDX-License-Identifier: Apache-2.0
//! Who a command runs as: names and numbers by the guest's own `/etc/passwd` and `/etc/group`. Only reads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Gid;

use crate::sys::spawn::Ids;

/// The user that commands run as where the guest has it.
pub(crate) const DEFAULT_USER: &str = "agent";
/// Most that is read of a user data base, in bytes.
const DATABASE_MAX_BYTES: u64 = 1024 * 1024;

/// A user of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) ids: Ids,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("finding user `{user}`: /etc/passwd of the guest has no such name; give `uid` or `uid:gid` in numbers")]
    Unknown { user: String },
    #[error("finding group `{group}`: /etc/group of the guest has no such name; give its number")]
    UnknownGroup { group: String },
    #[error("finding a user: reading {path}")]
    Database { path: PathBuf, source: io::Error },
}

/// One line of `/etc/passwd`.
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

fn parse_entry(line: &str) -> Option<Entry<'_>> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
    Some(Entry { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home, shell })
}

/// Number and names of one line of `/etc/group`.
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, gid, members] = fields[..] else { return None };
    Some((name, gid.parse().ok()?, members))
}

fn read(path: &Path) -> Result<String, UserError> {
    let broken = |source| UserError::Database { path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > DATABASE_MAX_BYTES => Err(broken(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => Ok(String::from_utf8_lossy(&fs::read(path).map_err(broken)?).into_owned()),
        // A minimal image has no data base and still has root.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(broken(error)),
    }
}

/// The account that `wanted` means (`name`, `uid`, `name:group`, `uid:gid`) in the tree at `root`; without one the
/// default user where it exists, else root.
pub(crate) fn resolve(wanted: Option<&str>, root: &Path) -> Result<Account, UserError> {
    let passwd = read(&root.join("etc/passwd"))?;
    let group = read(&root.join("etc/group"))?;
    match wanted {
        Some(wanted) => find(wanted, &passwd, &group),
        None => find(DEFAULT_USER, &passwd, &group).or_else(|_| find("0", &passwd, &group)),
    }
}

fn find(wanted: &str, passwd: &str, group: &str) -> Result<Account, UserError> {
    let (user, wanted_group) = wanted.split_once(':').map_or((wanted, None), |(user, group)| (user, Some(group)));
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().filter_map(parse_entry).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user,
    });
    let mut account = match (entry, number) {
        (Some(entry), _) => account(&entry, group),
        (None, Some(uid)) => nameless(uid),
        (None, None) if user == "root" => nameless(0),
        (None, None) => return Err(UserError::Unknown { user: user.to_owned() }),
    };
    if let Some(wanted) = wanted_group {
        let by_name =
            || group.lines().filter_map(parse_group).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
        let gid = wanted.parse().ok().or_else(by_name);
        account.ids.gid = gid.ok_or_else(|| UserError::UnknownGroup { group: wanted.to_owned() })?;
    }
    Ok(account)
}

fn account(entry: &Entry<'_>, group: &str) -> Account {
    let or = |value: &str, fallback: &str| PathBuf::from(if value.is_empty() { fallback } else { value });
    let mut groups = vec![Gid::from_raw(entry.gid)];
    for (_, gid, members) in group.lines().filter_map(parse_group) {
        if members.split(',').any(|member| member == entry.name) && !groups.contains(&Gid::from_raw(gid)) {
            groups.push(Gid::from_raw(gid));
        }
    }
    Account {
        name: entry.name.to_owned(),
        ids: Ids { uid: entry.uid, gid: entry.gid, groups },
        home: or(entry.home, "/"),
        shell: or(entry.shell, "/bin/sh"),
    }
}

/// A number without a name; as in every container, its group is its own number only for root.
fn nameless(uid: u32) -> Account {
    let (name, home) = if uid == 0 { ("root".to_owned(), "/root") } else { (uid.to_string(), "/") };
    Account {
        name,
        ids: Ids { uid, gid: uid, groups: vec![Gid::from_raw(uid)] },
        home: home.into(),
        shell: "/bin/sh".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1000::/home/agent:\nbroken:x:many:0::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nagent:x:1000:\nvideo:x:44:agent,other\nnot:x:45:agentx\nshort\n";

    #[test]
    fn a_name_brings_its_groups_home_and_shell() {
        let account = find("agent", PASSWD, GROUP).unwrap();
        assert_eq!(account.ids, Ids { uid: 1000, gid: 1000, groups: vec![Gid::from_raw(1000), Gid::from_raw(44)] });
        assert_eq!((account.home, account.shell), ("/home/agent".into(), "/bin/sh".into()));
    }

    #[test]
    fn a_number_finds_its_name() {
        assert_eq!(find("1000", PASSWD, GROUP).unwrap().name, "agent");
    }

    #[test]
    fn a_number_without_a_name_is_allowed() {
        let account = find("4242:17", PASSWD, GROUP).unwrap();
        assert_eq!((account.name.as_str(), account.ids.uid, account.ids.gid), ("4242", 4242, 17));
    }

    #[test]
    fn a_group_goes_by_name_or_number() {
        assert_eq!(find("agent:video", PASSWD, GROUP).unwrap().ids.gid, 44);
        assert_eq!(find("agent:7", PASSWD, GROUP).unwrap().ids.gid, 7);
        assert!(matches!(find("agent:nope", PASSWD, GROUP), Err(UserError::UnknownGroup { group }) if group == "nope"));
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_name() {
        for wanted in ["nobody", "", "-1", "4294967296", "broken"] {
            let error = find(wanted, PASSWD, GROUP).unwrap_err();
            assert!(error.to_string().contains(&format!("`{wanted}`")), "{error}");
        }
    }

    #[test]
    fn root_exists_in_an_image_without_users() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(resolve(None, empty.path()).unwrap().ids.uid, 0);
        assert_eq!(resolve(Some("root"), empty.path()).unwrap().ids.uid, 0);
    }

    #[test]
    fn the_default_user_is_preferred_where_it_exists() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("etc")).unwrap();
        fs::write(tree.path().join("etc/passwd"), PASSWD).unwrap();
        assert_eq!(resolve(None, tree.path()).unwrap().name, "agent");
    }

    #[test]
    fn a_huge_data_base_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("etc")).unwrap();
        fs::File::create(tree.path().join("etc/passwd")).unwrap().set_len(DATABASE_MAX_BYTES + 1).unwrap();
        assert!(matches!(resolve(None, tree.path()), Err(UserError::Database { .. })));
    }
}
