// SPDX-License-Identifier: Apache-2.0
//! Everything that a guest has is stolen while its agent works: the memory and the disks of its monitor, in the emulated host all of
//! that host. Secrets that were used meanwhile are not in it; what the guest kept is, or the thief has not looked well.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::unistd::{Whence, lseek64};

use crate::context::Context;
use crate::directed::{Directed, KEY};
use crate::https::{Authority, Site};
use crate::place::Place;

crate::tests!("stolen": Guest nothing_that_a_guest_has_holds_a_secret);

const TOKEN: &str = "token-stolen-90be4417c3d2f6a8";
/// What the guest makes of parts, so that nobody else has them whole.
const IN_MEMORY: &str = "kept-in-memory-7c1e09";
const ON_DISK: &str = "kept-on-disk-7c1e09";
const PAGE_BYTES: usize = 4096;
/// Looked through at a time, in bytes.
const PIECE_BYTES: usize = 4 << 20;
/// The longest thing sought is shorter, in bytes: pieces overlap by it.
const OVERLAP_BYTES: usize = 64;

fn nothing_that_a_guest_has_holds_a_secret(context: &Context) {
    let authority = Authority::new();
    let site = Site::start(&authority, None);
    let agent = Directed::under(policy_for(site.port))
        .trusting(&authority)
        .env("STOLEN_TOKEN", TOKEN)
        .command(&curl(site.port, ""), &["came through"])
        .command(&keep(site.port), &["came through"])
        .start(context);

    let (first, held) = (site.next(), site.next());
    let mut loot = Loot::default();
    holders(context).into_iter().for_each(|pid| loot.take(pid));
    site.go_on();
    let said = agent.done();
    println!("{} MiB looked through: {:?}", loot.bytes >> 20, loot.found);

    for head in [&first, &held] {
        assert!(head.contains(&format!("Bearer {TOKEN}")), "the site was shown the token: {head}");
    }
    assert!(first.starts_with("GET / ") && held.starts_with("GET /held "), "{first}{held}");
    let [memory, disk, key, token] = loot.found;
    assert!(memory > 0 && disk > 0, "what the guest kept is in the loot: {said}");
    assert_eq!((key, token), (0, 0), "secrets are in what the guest has");
    context.assert_nothing_left();
}

fn policy_for(port: u16) -> String {
    format!(
        r#"version = 1
[limits]
memory_mib = 256
[[network.rules]]
name = "site"
hosts = ["localhost"]
ports = [{port}]
ranges = ["127.0.0.0/8", "::1/128"]
[[credentials]]
name = "token"
hosts = ["localhost"]
secret = {{ env = "STOLEN_TOKEN" }}
"#
    )
}

fn curl(port: u16, path: &str) -> String {
    format!("curl -sS -m 250 --noproxy \"\" https://localhost:{port}/{path}")
}

/// Has the words, one in memory and one on the disk, while the site waits.
fn keep(port: u16) -> String {
    let program = format!(
        r#"import os, subprocess
word = "-".join(["kept", "in", "memory", "7c1e09"])
with open("/var/tmp/word", "w") as file:
    file.write("-".join(["kept", "on", "disk", "7c1e09 "]) * 100)
os.sync()
print(subprocess.run({:?}, shell=True, capture_output=True, text=True), len(word))
"#,
        curl(port, "held")
    );
    format!("cat >/tmp/keep.py <<'END'\n{program}END\npython3 /tmp/keep.py")
}

/// Who holds what guests have: their monitors; the whole emulated host, whose memory theirs is in.
fn holders(context: &Context) -> Vec<i32> {
    let holders = match context.place {
        Place::Emulated(_) => emulators(),
        Place::Native { .. } | Place::Unset => context.monitors(),
    };
    assert!(!holders.is_empty(), "a guest runs, and somebody holds it");
    holders
}

/// QEMUs that this process started.
fn emulators() -> Vec<i32> {
    let me = std::process::id().to_string();
    let pids = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_ours = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == me))
            && status.starts_with("Name:\tqemu")
    };
    pids.filter(is_ours).collect()
}

/// What a thief found.
#[derive(Debug, Default)]
struct Loot {
    bytes: usize,
    /// Places of each of the four, in the order of [`Loot::look`].
    found: [usize; 4],
}

impl Loot {
    fn take(&mut self, pid: i32) {
        self.memory(pid);
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("open files can be listed (run as root)");
        for file in files.flatten().map(|entry| entry.path()) {
            if std::fs::metadata(&file).is_ok_and(|data| data.is_file()) {
                self.file(&File::open(&file).expect("an open file can be read"));
            }
        }
    }

    /// All pages of a process that are there.
    fn memory(&mut self, pid: i32) {
        let open = |what: &str| File::open(format!("/proc/{pid}/{what}")).expect("memory can be read (run as root)");
        let (memory, pages) = (open("mem"), open("pagemap"));
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps can be read");
        for line in maps.lines().filter(|line| !line.contains(" ---p ")) {
            let (start, end) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
            let number = |text| usize::from_str_radix(text, 16).expect("an address");
            for (from, to) in present(&pages, number(start), number(end)) {
                self.range(&memory, from, to);
            }
        }
    }

    /// Everything of a file but its holes.
    fn file(&mut self, file: &File) {
        let mut at = 0;
        while let Ok(from) = lseek64(file, at, Whence::SeekData) {
            at = lseek64(file, from, Whence::SeekHole).expect("a file has an end");
            let offset = |at| usize::try_from(at).expect("an offset");
            self.range(file, offset(from), offset(at));
        }
    }

    /// From one offset to another, piece by piece.
    fn range(&mut self, from: &File, mut at: usize, end: usize) {
        let mut bytes = vec![0; (PIECE_BYTES + OVERLAP_BYTES).min(end - at)];
        while at < end {
            let len = bytes.len().min(end - at);
            // What of a map cannot be read, such as a device's page, no guest keeps anything in.
            if let Ok(len) = from.read_at(&mut bytes[..len], at as u64) {
                self.look(&bytes[..len]);
            }
            at += PIECE_BYTES;
        }
    }

    fn look(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        for (count, sought) in self.found.iter_mut().zip([IN_MEMORY, ON_DISK, KEY, TOKEN]) {
            *count += memchr::memmem::find_iter(bytes, sought).count();
        }
    }
}

/// Runs of pages that are there, from one address to another. The rest was never touched, and a look would make it.
fn present(pages: &File, start: usize, end: usize) -> Vec<(usize, usize)> {
    const ENTRY_BYTES: usize = 8;
    const IS_PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
    let mut entries = vec![0; (end - start) / PAGE_BYTES * ENTRY_BYTES];
    let read = pages.read_at(&mut entries, (start / PAGE_BYTES * ENTRY_BYTES) as u64).unwrap_or(0);
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (page, entry) in entries[..read].as_chunks::<ENTRY_BYTES>().0.iter().enumerate() {
        if u64::from_ne_bytes(*entry) & IS_PRESENT_OR_SWAPPED == 0 {
            continue;
        }
        let (from, to) = (start + page * PAGE_BYTES, start + (page + 1) * PAGE_BYTES);
        match runs.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => runs.push((from, to)),
        }
    }
    runs
}
