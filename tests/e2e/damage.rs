// SPDX-License-Identifier: Apache-2.0
//! Templates that are not what they were: of another version, of another CPU, damaged, cut short, removed while their forks
//! run. Whoever wants something of them hears what is wrong and what to do. Files are changed here natively only: an emulated
//! host keeps what it has read of a file, since no file of a template ever changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use midge::cache::Cache;
use midge::error::{Error, chain};
use midge::sandbox::Where;
use midge::template::{Plan, Template};

use crate::context::Context;
use crate::forks::{name, small, text_of};
use crate::library::inside;

crate::tests!("damage":
    NativeGuest template_of_another_version_is_refused_by_the_command_line,
    NativeGuest damaged_template_is_refused_by_name,
    Guest template_made_anew_is_the_new_one,
    Guest template_is_removed_while_its_forks_run,
);

fn template_of_another_version_is_refused_by_the_command_line(context: &Context) {
    let name = format!("{}-{}", name("version"), context.scaled("native", "emulated"));
    let limit = Duration::from_secs(300);
    context.midge(["template", "create", &name, "--mem", "128", "--disk", "64"]).limit(limit).run().code(0);
    let run = || context.midge(["run", "--template", &name, "--", "echo", "whole"]).limit(limit).run();
    let place = Place::of(&name);
    for (file, damage) in [("state", Damage::Bytes(next_version)), ("template.json", Damage::Bytes(record_of_tomorrow))]
    {
        let kept = place.damage(file, damage);
        run().code(125).out("").says(&["version", "make", "anew"]);
        drop(kept);
    }
    run().code(0).out("whole\n");
    context.midge(["template", "remove", &name]).run().code(0);
    context.assert_nothing_left();
}

/// Also where an emulated host has read of the old one: these tests share theirs.
fn template_made_anew_is_the_new_one(context: &Context) {
    let name = format!("{}-{}", name("anew"), context.scaled("native", "emulated"));
    let limit = Duration::from_secs(300);
    for generation in ["old", "new"] {
        let fill =
            format!("head -c 4M /dev/zero | tr '\\0' {} > /opt/fill; echo {generation} > /opt/which", &generation[..1]);
        let create = ["template", "create", &name, "--mem", "128", "--disk", "64", "--setup", &fill];
        context.midge(create).limit(limit).run().code(0);
        let look = "cat /opt/which; head -c 3 /opt/fill; echo";
        let run = context.midge(["run", "--template", &name, "--", "sh", "-c", look]).limit(limit).run();
        run.code(0).out(&format!("{generation}\n{}\n", generation[..1].repeat(3)));
        context.midge(["template", "remove", &name]).run().code(0);
    }
    context.assert_nothing_left();
}

fn damaged_template_is_refused_by_name(context: &Context) {
    inside(context, "damaged");
}

fn template_is_removed_while_its_forks_run(context: &Context) {
    inside(context, "orphaned");
}

/// The directory of a template.
struct Place(PathBuf);

/// What happens to a file.
#[derive(Clone, Copy)]
enum Damage {
    /// Other bytes.
    Bytes(fn(Vec<u8>) -> Vec<u8>),
    /// Zeros of this part of its length: so many halves.
    Zeros(u64),
    /// It is not there.
    Missing,
}

/// A file as it was; there again when this is dropped.
struct Kept {
    path: PathBuf,
    kept: PathBuf,
}

impl Drop for Kept {
    fn drop(&mut self) {
        std::fs::rename(&self.kept, &self.path).expect("it is put back");
    }
}

impl Place {
    fn of(name: &str) -> Self {
        Self(Cache::open().expect("the cache of these tests").root().join("templates").join(name))
    }

    /// The file whose name begins with `name`; what follows after a `-` is the template's own.
    fn file(&self, name: &str) -> PathBuf {
        let files = std::fs::read_dir(&self.0).expect("it is there").map(|entry| entry.expect("readable").path());
        let is_it = |path: &PathBuf| {
            let file = path.file_name().and_then(|file| file.to_str()).expect("text");
            file == name || file.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
        };
        files.into_iter().find(is_it).expect("it has such a file")
    }

    fn damage(&self, name: &str, damage: Damage) -> Kept {
        let (path, kept) = (self.file(name), self.0.join("kept"));
        std::fs::rename(&path, &kept).expect("it is there");
        match damage {
            Damage::Bytes(change) => {
                let bytes = std::fs::read(&kept).expect("can be read");
                std::fs::write(&path, change(bytes)).expect("can be written");
            }
            Damage::Zeros(halves) => {
                let len = Path::metadata(&kept).expect("it is there").len();
                std::fs::File::create(&path).and_then(|file| file.set_len(len / 2 * halves)).expect("can be written");
            }
            Damage::Missing => {}
        }
        Kept { path, kept }
    }
}

fn next_version(mut state: Vec<u8>) -> Vec<u8> {
    state[8] += 1;
    state
}

fn record_of_tomorrow(record: Vec<u8>) -> Vec<u8> {
    let mut value: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    value["version"] = 99.into();
    value.to_string().into_bytes()
}

fn another_size(record: Vec<u8>) -> Vec<u8> {
    let mut value: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    value["config"]["mem_mib"] = 200.into();
    value.to_string().into_bytes()
}

fn cut(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() / 2);
    bytes
}

fn flip(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes
}

/// Where in a state the first CPU's leaf 0 begins: function, index, flags, eax, then the maker's name in ebx, ecx, edx.
fn leaf_0(state: &[u8]) -> usize {
    let makers = [b"AuthcAMDenti", b"GenuntelineI"];
    let name = state.windows(12).position(|bytes| makers.iter().any(|maker| bytes == *maker));
    name.expect("AMD or Intel") - 16
}

/// The checksum is right: CRC-32 of everything from offset 16 on, at offset 12.
fn seal(state: &mut [u8]) {
    let crc = state[16..].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    state[12..16].copy_from_slice(&(!crc).to_le_bytes());
}

fn another_maker(mut state: Vec<u8>) -> Vec<u8> {
    let at = leaf_0(&state) + 16;
    state[at..at + 12].copy_from_slice(b"TestCpu_Made");
    seal(&mut state);
    state
}

/// Leaf 7 with every feature that ebx can name.
fn more_features(mut state: Vec<u8>) -> Vec<u8> {
    const ENTRY_BYTES: usize = 40;
    let first = leaf_0(&state);
    let leaf = |at: usize| u32::from_le_bytes(state[at..at + 4].try_into().expect("four"));
    let at = (0..256).map(|index| first + index * ENTRY_BYTES).find(|at| leaf(*at) == 7).expect("it has leaf 7");
    state[at + 16..at + 20].fill(0xff);
    seal(&mut state);
    state
}

/// Each damage, by way of the files and of a resident. The template is as good as new when it is undone.
pub(crate) async fn damaged() {
    let name = name("damaged");
    Template::create(&name, small(), Plan::default()).await.expect("is made");
    let place = Place::of(&name);
    let cases: [(&str, Damage, &[&str]); 15] = [
        ("state", Damage::Bytes(next_version), &["version"]),
        ("state", Damage::Bytes(flip), &["damaged", "checksum"]),
        ("state", Damage::Bytes(cut), &["cut short"]),
        ("state", Damage::Bytes(|_| Vec::new()), &["no state"]),
        ("state", Damage::Missing, &["state"]),
        ("state", Damage::Bytes(another_maker), &["made on a CPU of Test"]),
        ("state", Damage::Bytes(more_features), &["features that this one lacks", "0x7.0 ebx"]),
        ("memory", Damage::Zeros(1), &["memory"]),
        ("memory", Damage::Missing, &["memory"]),
        ("memory", Damage::Zeros(2), &[]),
        ("layer0", Damage::Zeros(1), &["layer"]),
        ("layer0", Damage::Missing, &["layer"]),
        ("template.json", Damage::Bytes(cut), &["reading the template", &name]),
        ("template.json", Damage::Bytes(record_of_tomorrow), &["version 99"]),
        ("template.json", Damage::Bytes(another_size), &["mem_mib is 200"]),
    ];
    for (number, (file, damage, words)) in cases.into_iter().enumerate() {
        let kept = place.damage(file, damage);
        for by_resident in [false, true] {
            let refused = tokio::time::timeout(Duration::from_secs(300), start(&name, by_resident)).await;
            let refused = refused.unwrap_or_else(|_| panic!("{number}: {file} hangs"));
            let text = refused.expect_err("it cannot be used");
            println!("{number} {file}, {by_resident}: {text}");
            assert!(words.iter().all(|word| text.contains(word)), "{number} {file}, {by_resident}: {text}");
            let has_step = words.is_empty() || text.contains("make it anew");
            assert!(has_step, "{number} {file}, {by_resident}, and now? {text}");
        }
        drop(kept);
        assert_eq!(start(&name, number % 2 == 0).await.expect("it is as it was"), "whole\n", "{number} {file}");
    }
    Template::remove(&name).expect("goes");
}

/// What a sandbox of the template says, or why there is none.
async fn start(name: &str, by_resident: bool) -> Result<String, String> {
    let told = |error: Error| format!("{}; next: {}", chain(&error), error.next_step().unwrap_or_default());
    let template = Template::open(name).map_err(told)?;
    let sandbox = if by_resident {
        template.hold().await.map_err(told)?.fork().await.map_err(told)?
    } else {
        template.start(Where::Auto, false).await.map_err(told)?
    };
    let text = text_of(&sandbox, "echo whole").await;
    sandbox.kill().await;
    Ok(text)
}

/// What of its memory and disk nobody has touched since is there for everybody who was made of it, and for their forks.
pub(crate) async fn orphaned() {
    const FILL: &str = "mkdir /opt/memory; mount -t tmpfs none /opt/memory; head -c 16M /dev/urandom > /opt/memory/data; \
        head -c 8M /dev/urandom > /opt/data; cd /opt; sha256sum memory/data data > sums; sync; echo 3 > /proc/sys/vm/drop_caches";
    const LOOK: &str = "cd /opt; sha256sum -c --quiet sums; echo whole";
    let name = name("orphaned");
    let plan = Plan { setup: Some(FILL.to_owned()), ..Plan::default() };
    Template::create(&name, small(), plan).await.expect("is made");
    let template = Template::open(&name).expect("is there");
    let started = template.start(Where::Auto, true).await.expect("starts");
    let held = template.hold().await.expect("comes up");
    let fork = held.fork().await.expect("forks");
    Template::remove(&name).expect("goes");
    for gone in [Template::open(&name).map(drop), template.start(Where::Auto, false).await.map(drop)] {
        let text = chain(&gone.expect_err("it is gone"));
        println!("{text}");
        assert!(text.contains(&name), "{text}");
    }
    let late = held.fork().await.expect("what is held is there");
    let child = started.fork(1).await.expect("forks").sandboxes.pop().expect("one");
    for sandbox in [&started, &fork, &late, &child] {
        assert_eq!(text_of(sandbox, LOOK).await, "whole\n");
    }
    for sandbox in [started, fork, late, child] {
        sandbox.kill().await;
    }
}
