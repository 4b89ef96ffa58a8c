// SPDX-License-Identifier: Apache-2.0
//! What makes one guest another: random numbers, wall clock, names. Taken from the host's `Welcome`, at the start and
//! again in every copy.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use midge_protocol::{ErrorCode, Failure, MIN_ENTROPY_BYTES, NEWEST_VERSION, OLDEST_VERSION, Welcome};

use crate::link::failure;
use crate::sys::machine;

/// Longest host name the kernel takes, in bytes.
const HOSTNAME_MAX_BYTES: usize = 64;
/// Longest `/etc/hosts` in which our line is looked for, in bytes.
const HOSTS_MAX_BYTES: u64 = 64 * 1024;

/// A part of the identity that could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
struct IdentityError {
    step: String,
    source: io::Error,
}

fn step<T>(step: impl Into<String>, result: io::Result<T>) -> Result<T, Failure> {
    result.map_err(|source| failure(&IdentityError { step: step.into(), source }))
}

fn invalid(text: String) -> Failure {
    Failure { code: ErrorCode::InvalidInput, errno: 0, text }
}

/// Whether `welcome` keeps its limits.
pub(crate) fn check(welcome: &Welcome) -> Result<(), Failure> {
    if !(OLDEST_VERSION..=NEWEST_VERSION).contains(&welcome.version) {
        return Err(invalid(format!(
            "the host speaks protocol version {}, this agent {OLDEST_VERSION} to {NEWEST_VERSION}",
            welcome.version
        )));
    }
    if welcome.entropy.len() < MIN_ENTROPY_BYTES {
        let len = welcome.entropy.len();
        return Err(invalid(format!(
            "`Welcome` brings {len} bytes of entropy, at least {MIN_ENTROPY_BYTES} are needed"
        )));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if welcome.hostname.is_empty()
        || welcome.hostname.len() > HOSTNAME_MAX_BYTES
        || !welcome.hostname.bytes().all(is_name)
    {
        return Err(invalid(format!(
            "the host name must be 1 to {HOSTNAME_MAX_BYTES} letters, digits, `-` and `.`; it has {} bytes",
            welcome.hostname.len()
        )));
    }
    Ok(())
}

fn id_line(welcome: &Welcome) -> String {
    let id: String = welcome.machine_id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{id}\n")
}

fn name_line(name: &str) -> String {
    format!("{name}\n")
}

fn own_address_line(name: &str) -> String {
    format!("127.0.1.1 {name}\n")
}

/// At the machine's start. Random numbers first: nothing that is made from them may be older than this guest. Their
/// failure is fatal, a machine without a clock or a name still works.
pub(crate) fn take_first(welcome: &Welcome) -> Result<(), Failure> {
    let random = step("opening the kernel's random numbers", machine::open_random())?;
    step("giving entropy to the kernel", machine::add_entropy(&random, &welcome.entropy))?;
    let name = &welcome.hostname;
    let _ = machine::set_clock(welcome.unix_time_ns);
    let _ = machine::set_hostname(name);
    if fs::create_dir_all("/etc").is_ok() {
        let _ = fs::write("/etc/machine-id", id_line(welcome));
        let _ = fs::write("/etc/hostname", name_line(name));
        let own = own_address_line(name);
        let _ =
            fs::write("/etc/hosts", format!("127.0.0.1 localhost\n{own}::1 localhost ip6-localhost ip6-loopback\n"));
    }
    Ok(())
}

/// A small file that is about to change in place: open, and read once so that its page is at hand.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    file: File,
    /// As it was found.
    content: Vec<u8>,
    /// As long as it may be by now, in bytes.
    len: usize,
}

impl Kept {
    fn open(path: &Path) -> Result<Self, Failure> {
        let open = || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            let mut content = Vec::new();
            (&file).take(HOSTS_MAX_BYTES).read_to_end(&mut content)?;
            Ok(Self { path: path.to_owned(), file, len: content.len(), content })
        };
        step(format!("opening {}", path.display()), open())
    }

    /// Makes `content` the file's content. Not atomic: nobody may be looking.
    fn put(&mut self, content: &[u8]) -> Result<(), Failure> {
        let is_shorter = content.len() < self.len;
        self.len = self.len.max(content.len());
        let put = || {
            self.file.write_all_at(content, 0)?;
            if is_shorter { self.file.set_len(content.len() as u64) } else { Ok(()) }
        };
        step(format!("writing {}", self.path.display()), put())
    }
}

/// All that a copy needs in order to become another, opened before it is made. Valid only while nothing else runs.
#[derive(Debug)]
pub(crate) struct Prepared {
    random: File,
    machine_id: Kept,
    hostname: Kept,
    hosts: Kept,
    /// The name that the guest had from us.
    name: String,
}

impl Prepared {
    /// For a guest whose host name was `name`, with the files of the directory `etc`.
    pub(crate) fn open(etc: &Path, name: &str) -> Result<Self, Failure> {
        Ok(Self {
            random: step("opening the kernel's random numbers", machine::open_random())?,
            machine_id: Kept::open(&etc.join("machine-id"))?,
            hostname: Kept::open(&etc.join("hostname"))?,
            hosts: Kept::open(&etc.join("hosts"))?,
            name: name.to_owned(),
        })
    }

    /// In a copy, before anything else runs: what the kernel keeps. Unlike at the start every part must succeed: whatever
    /// is left of the other guest would be shared with all its copies.
    pub(crate) fn take(&self, welcome: &Welcome) -> Result<(), Failure> {
        step("giving entropy to the kernel", machine::add_entropy(&self.random, &welcome.entropy))?;
        step("setting the clock", machine::set_clock(welcome.unix_time_ns))?;
        step("setting the host name", machine::set_hostname(&welcome.hostname))
    }

    /// The same in files, after [`Prepared::take`].
    pub(crate) fn write(&mut self, welcome: &Welcome) -> Result<(), Failure> {
        self.machine_id.put(id_line(welcome).as_bytes())?;
        self.hostname.put(name_line(&welcome.hostname).as_bytes())?;
        // Only our own line: the rest may be the user's by now.
        let old = own_address_line(&self.name);
        match std::str::from_utf8(&self.hosts.content) {
            Ok(hosts) if (hosts.len() as u64) < HOSTS_MAX_BYTES && hosts.contains(&old) => {
                let hosts = hosts.replace(&old, &own_address_line(&welcome.hostname));
                self.hosts.put(hosts.as_bytes())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome() -> Welcome {
        Welcome {
            version: NEWEST_VERSION,
            unix_time_ns: 1,
            entropy: vec![7; MIN_ENTROPY_BYTES],
            hostname: "sandbox-1".into(),
            machine_id: [0xa1; 16],
        }
    }

    #[test]
    fn a_welcome_within_its_limits_is_accepted() {
        check(&welcome()).unwrap();
        check(&Welcome { hostname: "a".repeat(HOSTNAME_MAX_BYTES), ..welcome() }).unwrap();
    }

    #[test]
    fn a_welcome_beyond_its_limits_is_refused_with_the_range() {
        let cases = [
            (Welcome { version: NEWEST_VERSION + 1, ..welcome() }, "version 2"),
            (Welcome { entropy: vec![7; MIN_ENTROPY_BYTES - 1], ..welcome() }, "at least 32"),
            (Welcome { hostname: String::new(), ..welcome() }, "1 to 64"),
            (Welcome { hostname: "a".repeat(HOSTNAME_MAX_BYTES + 1), ..welcome() }, "1 to 64"),
            (Welcome { hostname: "a\nb".into(), ..welcome() }, "letters"),
        ];
        for (case, expected) in cases {
            let failure = check(&case).unwrap_err();
            assert!(failure.text.contains(expected), "{}", failure.text);
        }
    }

    /// A directory with these files, and what `take` would make of them.
    fn rewritten(old: &str, new: &str, files: [&str; 3]) -> [String; 3] {
        const NAMES: [&str; 3] = ["machine-id", "hostname", "hosts"];
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in NAMES.into_iter().zip(files) {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let mut prepared = Prepared::open(dir.path(), old).unwrap();
        // One that is tried again leaves nothing of the first time.
        for name in ["one-that-is-longer", "x", new] {
            prepared.write(&Welcome { hostname: name.into(), ..welcome() }).unwrap();
        }
        NAMES.map(|name| fs::read_to_string(dir.path().join(name)).unwrap())
    }

    #[test]
    fn a_copy_gets_names_of_its_own_and_keeps_what_the_user_wrote() {
        let id = format!("{}\n", "a1".repeat(16));
        let old_id = format!("{}\n", "00".repeat(16));
        let hosts = "127.0.0.1 localhost\n127.0.1.1 old-1\n10.0.0.1 db\n";
        for new in ["new-1", "n", "a-longer-name"] {
            let found = rewritten("old-1", new, [&old_id, "old-1\n", hosts]);
            let expected_hosts = format!("127.0.0.1 localhost\n127.0.1.1 {new}\n10.0.0.1 db\n");
            assert_eq!(found, [id.clone(), format!("{new}\n"), expected_hosts]);
        }
        let theirs = "10.0.0.1 db\n";
        assert_eq!(rewritten("old-1", "new-1", ["", "", theirs]), [id, "new-1\n".to_owned(), theirs.to_owned()]);
    }

    #[test]
    fn files_that_are_missing_are_made() {
        let dir = tempfile::tempdir().unwrap();
        Prepared::open(dir.path(), "old").unwrap().write(&welcome()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("hostname")).unwrap(), "sandbox-1\n");
        assert!(Prepared::open(&dir.path().join("none"), "old").is_err());
    }
}
