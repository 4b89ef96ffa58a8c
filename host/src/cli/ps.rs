// SPDX-License-Identifier: Apache-2.0
//! `midge ps`: the library's list as a table or JSON.

use std::io::{self, Write};

use clap::Args;
use midge::cache::mebibytes;
use midge::error::Error;
use midge::ps::{self, Alive};
use midge::run_dir::Kind;

use super::fail::{exit_code, say, tell};

const NOTES: &str = "Lists the sandboxes and templates in memory of this user, whichever process started them.\n\n\
PRIVATE is the memory that only this sandbox's monitor maps, guest memory included; SHARED what others map too, such as \
memory that forks of a template have not written yet; TABLES the page tables of the process. KVM is what KVM holds for the \
guest's own page tables: the kernel accounts that to control groups, so it is told only for a monitor that is alone in one \
(version 2, with the memory controller). Nothing is told of the memory of sandboxes in an emulated host.\n\n\
With --json an array of objects, with the control group of each and its memory; sizes in KiB, ages in milliseconds, null for what is not known.";

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub(crate) struct PsArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Does it and gives the exit code.
pub(crate) fn main(args: &PsArgs) -> u8 {
    match ps::list() {
        Ok(alive) => {
            if alive.is_empty() && !args.json {
                say("no sandbox of yours is alive on this machine");
            }
            let text = if args.json { json(&alive) } else { table(&alive) };
            // A reader that closed the pipe has seen what it wanted.
            let _ = io::stdout().lock().write_all(text.as_bytes());
            0
        }
        Err(error) => {
            let error = Error::from(error);
            tell(&error);
            exit_code(&error)
        }
    }
}

fn json(alive: &[Alive]) -> String {
    // Numbers and text: this cannot fail.
    serde_json::to_string_pretty(alive).unwrap_or_default() + "\n"
}

fn table(alive: &[Alive]) -> String {
    if alive.is_empty() {
        return String::new();
    }
    let mut text =
        row(&["ID", "MONITOR", "AGE", "VCPUS", "MEMORY", "PRIVATE", "SHARED", "TABLES", "KVM", "PLACE", "WHAT"]);
    for one in alive {
        let memory = |size: fn(&ps::Account) -> Option<u64>| {
            one.memory.as_ref().and_then(size).map_or_else(|| "-".to_owned(), |kib| mebibytes(kib << 10))
        };
        text += &row(&[
            &one.id,
            &one.about.monitor_pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            &age(one.age_ms),
            &one.about.cpus.to_string(),
            &format!("{} MiB", one.about.mem_mib),
            &memory(|account| Some(account.private_kib)),
            &memory(|account| Some(account.shared_kib)),
            &memory(|account| Some(account.page_table_kib)),
            &memory(|account| account.kvm_kib),
            &one.about.place,
            &what(one),
        ]);
    }
    text
}

fn row(cells: &[&str; 11]) -> String {
    let [id, monitor, age, cpus, mem, private, shared, tables, kvm, place, what] = cells;
    format!(
        "{id:<12}  {monitor:>7}  {age:>6}  {cpus:>5}  {mem:>9}  {private:>9}  {shared:>9}  {tables:>8}  {kvm:>8}  {place:<8}  {what}\n"
    )
}

fn what(one: &Alive) -> String {
    let of = |text: &Option<String>| text.as_ref().map(|name| format!(" of {name}"));
    match one.about.kind {
        Kind::Run => "run".to_owned(),
        Kind::Fork => format!("fork{}", of(&one.about.parent).or_else(|| of(&one.about.template)).unwrap_or_default()),
        Kind::Resident => format!("template{}", of(&one.about.template).unwrap_or_default().replacen(" of", "", 1)),
    }
}

/// Two figures of it at most.
fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        3600..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use midge::ps::Account;
    use midge::run_dir::About;

    fn alive(kind: Kind, memory: Option<Account>) -> Alive {
        let about = About {
            kind,
            template: Some("py".to_owned()),
            parent: None,
            place: "native".to_owned(),
            owner_pid: 1,
            monitor_pid: memory.map(|_| 77),
            group: Some("/sys/fs/cgroup/g".into()),
            cpus: 2,
            mem_mib: 128,
        };
        Alive { id: "0123456789ab".to_owned(), about, age_ms: 61_000, memory, group_memory_kib: Some(7) }
    }

    #[test]
    fn a_line_each_with_what_is_known() {
        let memory = Account { private_kib: 2048, shared_kib: 4096, page_table_kib: 512, ..Account::default() };
        let text = table(&[alive(Kind::Fork, Some(memory)), alive(Kind::Resident, None)]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].join(" ").starts_with("0123456789ab 77 1m 2 128 MiB"), "{text}");
        assert!(lines[1].join(" ").ends_with("- native fork of py"), "{text}");
        assert!(lines[2].join(" ").ends_with("- - - - native template py"), "{text}");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn json_names_units_and_says_null_for_what_is_not_known() {
        let value: serde_json::Value = serde_json::from_str(&json(&[alive(Kind::Run, None)])).unwrap();
        assert_eq!((&value[0]["kind"], &value[0]["age_ms"]), (&"run".into(), &61_000.into()));
        assert!(value[0]["memory"].is_null() && value[0]["monitor_pid"].is_null());
        let mut keys: Vec<&String> = value[0].as_object().unwrap().keys().collect();
        keys.sort();
        let expected =
            "age_ms cpus group group_memory_kib id kind mem_mib memory monitor_pid owner_pid parent place template";
        assert!(keys.iter().copied().eq(expected.split(' ')), "one flat object: {keys:?}");
    }

    #[test]
    fn ages_are_short() {
        assert_eq!([0, 59_999, 60_000, 7_200_000, 200_000_000].map(age), ["0s", "59s", "1m", "2h", "2d"]);
    }
}
