// SPDX-License-Identifier: Apache-2.0
//! The store over a real directory: what appears, what is refused.

use super::*;
use crate::monitor::config::Console;
use crate::monitor::{Disk, DiskMode, Jail};
use crate::workspace::{PackLimits, pack};

struct Rig {
    dir: tempfile::TempDir,
    store: Store,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Cache::at(&dir.path().join("cache")).unwrap()).unwrap();
    Rig { dir, store }
}

impl Rig {
    fn record(&self, name: &str) -> Record {
        let disk = |file: &str, mode| {
            let path = self.dir.path().join(file);
            if !path.exists() {
                fs::write(&path, file).unwrap();
            }
            Disk { path, mode }
        };
        let config = VmmConfig {
            kernel: Some("/k".into()),
            restore: None,
            initramfs: Some("/i".into()),
            cmdline: String::new(),
            mem_mib: 128,
            cpus: 1,
            huge_pages: true,
            disks: vec![disk("base", DiskMode::ReadOnly), disk("scratch", DiskMode::OverlayMemory { cap_mib: 9 })],
            vsock: None,
            console: Console::Off,
            extra_msrs: vec![1],
            forkable: true,
            track_writes: false,
            jail: Jail::On,
            allow_missing: Vec::new(),
        };
        Record {
            version: VERSION,
            name: name.to_owned(),
            id: String::new(),
            made_s: 5,
            place: "native".into(),
            agent_version: "0".into(),
            config,
            image: None,
            setup: Some("true".into()),
            warm: None,
            user: None,
            env: vec![("A".into(), "b".into())],
            workspace: None,
            memory_bytes: 7,
            pause: Pause { pause_us: 3, save_us: 2, fork_us: 1 },
            working_set: vec![(4096, 8192)],
            foundations: Vec::new(),
        }
    }

    fn publish(&self, name: &str) -> Result<Record, StoreError> {
        self.store.begin(name)?.publish(self.record(name))
    }
}

#[test]
fn a_template_appears_whole_is_listed_and_goes() {
    let rig = rig();
    let draft = rig.store.begin("one").unwrap();
    fs::write(draft.files(&rig.record("one").config).memory, "m").unwrap();
    assert!(rig.store.list().unwrap().is_empty());
    let record = draft.publish(rig.record("one")).unwrap();
    assert_eq!(record.foundations.len(), 2);
    assert_eq!(rig.store.read("one").unwrap(), record);
    rig.publish("another").unwrap();
    let names: Vec<_> = rig.store.list().unwrap().into_iter().map(|record| record.name).collect();
    assert_eq!(names, ["another", "one"]);
    rig.store.remove("one").unwrap();
    assert!(matches!(rig.store.read("one"), Err(StoreError::Absent { .. })));
    assert!(matches!(rig.store.remove("one"), Err(StoreError::Absent { .. })));
    rig.publish("one").unwrap();
}

#[test]
fn the_machine_is_named_with_its_files() {
    let rig = rig();
    let record = rig.publish("one").unwrap();
    let config = rig.store.config(&record, true).unwrap();
    let restore = config.restore.unwrap();
    assert!(config.kernel.is_none() && config.initramfs.is_none() && restore.resident);
    let file = |name: &str| rig.store.path("one").unwrap().join(format!("{name}-{}", record.id));
    assert_eq!((restore.state, restore.memory), (file("state"), file("memory")));
    assert_eq!(restore.layers, [None, Some(file("layer0"))]);
    assert_eq!(restore.working_set, [(4096, 8192)]);
}

#[test]
fn a_template_made_anew_has_no_file_name_of_the_old_one() {
    let rig = rig();
    let names = |record: &Record| {
        let restore = rig.store.config(record, false).unwrap().restore.unwrap();
        let disks = rig.store.config(record, false).unwrap().disks.into_iter().skip(2).map(|disk| Some(disk.path));
        let all = [Some(restore.state), Some(restore.memory)].into_iter().chain(restore.layers).chain(disks);
        all.flatten().collect::<Vec<_>>()
    };
    let old = names(&publish_with_workspace(&rig, "one"));
    rig.store.remove("one").unwrap();
    let new = names(&publish_with_workspace(&rig, "one"));
    assert_eq!(old.len(), 4, "state, memory, a layer, the workspace: {old:?}");
    assert!(old.iter().all(|path| !new.contains(path)), "{old:?} {new:?}");
}

#[test]
fn of_two_creations_of_one_name_one_wins() {
    let rig = rig();
    let (first, second) = (rig.store.begin("one").unwrap(), rig.store.begin("one").unwrap());
    first.publish(rig.record("one")).unwrap();
    let error = second.publish(Record { made_s: 6, ..rig.record("one") }).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    assert_eq!(rig.store.read("one").unwrap().made_s, 5);
    assert!(matches!(rig.store.begin("one"), Err(StoreError::Exists { .. })));
}

#[test]
fn a_draft_that_is_dropped_leaves_nothing() {
    let rig = rig();
    let draft = rig.store.begin("one").unwrap();
    let files = draft.files(&rig.record("one").config);
    fs::write(&files.memory, "m").unwrap();
    drop(draft);
    assert!(!files.memory.exists());
    rig.publish("one").unwrap();
}

#[test]
fn names_that_could_be_paths_are_refused() {
    let rig = rig();
    for name in ["", ".", "..", "a/b", "-x", ".hidden", "a b", "ü", &"x".repeat(NAME_MAX + 1)] {
        assert!(matches!(rig.store.path(name), Err(StoreError::Name { .. })), "{name:?}");
    }
    for name in ["a", "py-3.11_x", &"x".repeat(NAME_MAX)] {
        assert!(rig.store.path(name).is_ok(), "{name:?}");
    }
}

#[test]
fn a_file_below_that_changed_or_went_is_refused_by_name() {
    let rig = rig();
    let record = rig.publish("one").unwrap();
    fs::write(rig.dir.path().join("base"), "longer than before").unwrap();
    let error = rig.store.config(&record, false).unwrap_err().to_string();
    assert!(error.contains("base") && error.contains("changed") && error.contains("anew"), "{error}");
    fs::remove_file(rig.dir.path().join("base")).unwrap();
    let error = rig.store.config(&record, false).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn damaged_and_foreign_records_are_refused_and_left_out_of_lists() {
    let rig = rig();
    rig.publish("one").unwrap();
    let path = rig.store.path("one").unwrap().join(RECORD);
    let text = fs::read_to_string(&path).unwrap();
    for bad in [
        "",
        "{}",
        &text[..text.len() / 2],
        &text.replace("\"version\": 2", "\"version\": 9"),
        &text.replace("\"id\": \"", "\"id\": \"/"),
    ] {
        fs::write(&path, bad).unwrap();
        assert!(matches!(rig.store.read("one"), Err(StoreError::Damaged { .. })), "{bad}");
        assert!(rig.store.list().unwrap().is_empty());
    }
}

/// A template with a workspace of one file.
fn publish_with_workspace(rig: &Rig, name: &str) -> Record {
    let project = rig.dir.path().join("project");
    fs::create_dir_all(&project).unwrap();
    fs::write(project.join("f"), "packed").unwrap();
    let draft = rig.store.begin(name).unwrap();
    let manifest = pack(&project, &draft.workspace_image(), &PackLimits::default(), &mut |_, _| ()).unwrap();
    draft.keep_workspace(&manifest).unwrap();
    let mut record = rig.record(name);
    record.config.disks.push(Disk { path: draft.workspace_image(), mode: DiskMode::ReadOnly });
    record.workspace = Some(manifest.dir.display().to_string());
    draft.publish(record).unwrap()
}

#[test]
fn a_workspace_is_the_templates_own_and_goes_with_it() {
    let rig = rig();
    let record = publish_with_workspace(&rig, "one");
    assert_eq!(record.config.disks[2].path, workspace_image(Path::new(""), &record.id));
    let config = rig.store.config(&record, false).unwrap();
    let image = &config.disks[2].path;
    assert_eq!(*image, workspace_image(&rig.store.path("one").unwrap(), &record.id));
    assert!(config.disks[0].path.ends_with("base") && config.disks[0].path.is_absolute());
    fs::remove_dir_all(rig.dir.path().join("project")).unwrap();
    let manifest = rig.store.workspace(&record).unwrap().unwrap();
    assert_eq!(manifest.dir.display().to_string(), record.workspace.clone().unwrap());
    rig.store.remove("one").unwrap();
    assert!(!image.exists());
    let entry = manifest.entries.values().next().unwrap();
    assert_eq!(manifest.read_base(entry, 9).unwrap(), b"packed", "whoever has it keeps it");
    assert!(rig.store.workspace(&rig.publish("two").unwrap()).unwrap().is_none());
}

#[test]
fn a_workspace_that_is_not_what_was_packed_is_refused_by_name() {
    let rig = rig();
    let record = publish_with_workspace(&rig, "one");
    let dir = rig.store.path("one").unwrap();
    let refused = || rig.store.workspace(&record).map(drop).unwrap_err().to_string();
    fs::write(dir.join(WORKSPACE_MANIFEST), "{}\n").unwrap();
    let text = refused();
    assert!(text.contains("\"one\"") && text.contains("line 1") && text.contains("make it anew"), "{text}");
    fs::remove_file(dir.join(WORKSPACE_MANIFEST)).unwrap();
    assert!(refused().contains(WORKSPACE_MANIFEST));
    fs::write(workspace_image(&dir, &record.id), "short").unwrap();
    let text = rig.store.config(&record, false).unwrap_err().to_string();
    assert!(text.contains(&format!("workspace-{}.erofs", record.id)) && text.contains("changed"), "{text}");
}
