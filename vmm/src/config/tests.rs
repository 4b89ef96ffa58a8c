// SPDX-License-Identifier: Apache-2.0
//! Tests of the configuration: both sides of each range, and every named bad input.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::Write;
use tempfile::{NamedTempFile, TempDir};

const HOST_MIB: u64 = 16 * 1024;

/// A document that is accepted, and the files it names.
struct Fixture {
    doc: Value,
    kernel: NamedTempFile,
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let mut kernel = NamedTempFile::new().unwrap();
        kernel.write_all(b"bytes").unwrap();
        let doc = json!({ "kernel": kernel.path(), "mem_mib": 128, "cpus": 1 });
        Self { doc, kernel, dir: TempDir::new().unwrap() }
    }

    fn with(mut self, field: &str, value: Value) -> Self {
        self.doc[field] = value;
        self
    }

    fn check(&self) -> Result<VmmConfig, ConfigError> {
        let doc = serde_json::from_slice(self.doc.to_string().as_bytes()).map_err(ConfigError::Json)?;
        VmmConfig::check(doc, HOST_MIB)
    }

    /// The error's text, which must name the field.
    fn refused(&self, field: &str) -> String {
        let text = self.check().expect_err(field).to_string();
        assert!(text.contains(field), "{text:?} does not name {field}");
        text
    }
}

#[test]
fn the_least_document_gets_the_documented_defaults() {
    let config = Fixture::new().check().unwrap();
    assert_eq!(config.mem_bytes(), 128 << 20);
    assert_eq!(config.cpus(), 1);
    assert!(config.huge_pages());
    assert!(config.disks().is_empty());
    assert!(config.vsock().is_none() && config.initramfs().is_none());
    assert_eq!(config.console(), ConsoleMode::Off);
    assert!(config.extra_msrs().is_empty());
    assert_eq!(config.cmdline(), "");
}

#[test]
fn every_field_of_the_contract_is_read() {
    let fixture = Fixture::new();
    let path = fixture.kernel.path().to_owned();
    let fixture = fixture
        .with("initramfs", json!(path))
        .with("cmdline", json!("rdinit=/init quiet"))
        .with("huge_pages", json!(false))
        .with("console", json!("on"))
        .with("extra_msrs", json!([0x4b56_4d10_u32]))
        .with("vsock", json!({ "guest_cid": 3, "uds": "/run/v.sock" }))
        .with(
            "disks",
            json!([
                { "path": path, "mode": "read_only" },
                { "path": path, "mode": { "overlay_memory": { "cap_mib": 1024 } } },
                { "path": path, "mode": { "overlay_file": { "path": "/o", "cap_mib": 7 } } },
            ]),
        );
    let config = fixture.check().unwrap();
    assert_eq!(config.initramfs(), Some(path.as_path()));
    assert_eq!(config.cmdline(), "rdinit=/init quiet");
    assert!(!config.huge_pages());
    assert_eq!(config.console(), ConsoleMode::On);
    assert_eq!(config.extra_msrs(), [0x4b56_4d10]);
    let vsock = config.vsock().unwrap();
    assert_eq!((vsock.guest_cid(), vsock.uds()), (3, Path::new("/run/v.sock")));
    let modes: Vec<_> = config.disks().iter().map(|d| d.mode().clone()).collect();
    assert_eq!(modes[0], DiskMode::ReadOnly);
    assert_eq!(modes[1], DiskMode::OverlayMemory { cap_mib: 1024 });
    assert_eq!(modes[2], DiskMode::OverlayFile { path: "/o".into(), cap_mib: 7 });
}

#[test]
fn memory_outside_its_range_is_refused_with_value_and_range() {
    for bad in [0, 1, MEM_MIN_MIB - 1, HOST_MIB + 1, u64::MAX] {
        let text = Fixture::new().with("mem_mib", json!(bad)).refused("mem_mib");
        assert!(text.contains(&bad.to_string()), "{text}");
        assert!(text.contains("32 to 16384 MiB"), "{text}");
    }
    for good in [MEM_MIN_MIB, HOST_MIB] {
        assert!(Fixture::new().with("mem_mib", json!(good)).check().is_ok(), "{good}");
    }
}

#[test]
fn vcpus_outside_their_range_are_refused_with_value_and_range() {
    for bad in [0, CPUS_MAX + 1, 1000, u64::MAX] {
        let text = Fixture::new().with("cpus", json!(bad)).refused("cpus");
        assert!(text.contains(&bad.to_string()) && text.contains("1 to 32"), "{text}");
    }
    for good in [1, CPUS_MAX] {
        let config = Fixture::new().with("cpus", json!(good)).check().unwrap();
        assert_eq!(u64::from(config.cpus()), good);
    }
}

#[test]
fn negative_fractional_and_textual_numbers_are_refused() {
    for bad in [json!(-1), json!(1.5), json!("128"), Value::Null] {
        let error = Fixture::new().with("mem_mib", bad).check().unwrap_err();
        assert!(matches!(error, ConfigError::Json(_)));
        assert!(std::error::Error::source(&error).is_none(), "its text has told the cause already: {error}");
    }
}

#[test]
fn a_kernel_that_is_missing_a_directory_empty_or_huge_is_refused_by_name() {
    let text = Fixture::new().with("kernel", json!("/no/such/vmlinux")).refused("kernel");
    assert!(text.contains("/no/such/vmlinux") && text.contains("No such file"), "{text}");

    let text = Fixture::new().with("kernel", json!("/")).refused("kernel");
    assert!(text.contains("is a directory"), "{text}");

    let text = Fixture::new().with("kernel", json!("/dev/null")).refused("kernel");
    assert!(text.contains("not a regular file"), "{text}");

    let fixture = Fixture::new();
    fixture.kernel.as_file().set_len(0).unwrap();
    assert!(fixture.refused("kernel").contains("0 bytes"));

    let fixture = Fixture::new();
    fixture.kernel.as_file().set_len(3 << 30).unwrap();
    let text = fixture.refused("kernel");
    assert!(text.contains(&(3_u64 << 30).to_string()) && text.contains("1 GiB"), "{text}");
    fixture.kernel.as_file().set_len(IMAGE_FILE_MAX_MIB << 20).unwrap();
    assert!(fixture.check().is_ok());
}

#[test]
fn a_missing_initramfs_is_refused_by_name() {
    let text = Fixture::new().with("initramfs", json!("/no/such/cpio")).refused("initramfs");
    assert!(text.contains("/no/such/cpio"), "{text}");
}

#[test]
fn a_missing_or_empty_disk_is_refused_with_its_index() {
    let fixture = Fixture::new();
    let empty = fixture.dir.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    let kernel = fixture.kernel.path().to_owned();
    let disks = json!([{ "path": kernel, "mode": "read_only" }, { "path": empty, "mode": "read_only" }]);
    let text = fixture.with("disks", disks).refused("disks[1].path");
    assert!(text.contains("is empty"), "{text}");

    let disks = json!([{ "path": "/no/such/disk", "mode": "read_only" }]);
    Fixture::new().with("disks", disks).refused("disks[0].path");
}

#[test]
fn too_many_disks_and_a_cap_of_zero_are_refused() {
    let fixture = Fixture::new();
    let disk = json!({ "path": fixture.kernel.path(), "mode": "read_only" });
    let fixture = fixture.with("disks", json!(vec![disk.clone(); DISKS_MAX]));
    assert!(fixture.check().is_ok());
    let text = fixture.with("disks", json!(vec![disk; DISKS_MAX + 1])).refused("disks");
    assert!(text.contains("at most 8"), "{text}");

    let fixture = Fixture::new();
    let mode = json!({ "overlay_memory": { "cap_mib": 0 } });
    let disks = json!([{ "path": fixture.kernel.path(), "mode": mode }]);
    fixture.with("disks", disks).refused("disks[0].mode.cap_mib");
}

#[test]
fn a_host_context_id_or_a_socket_path_too_long_is_refused() {
    for bad in [0, 1, 2, u64::from(u32::MAX)] {
        Fixture::new().with("vsock", json!({ "guest_cid": bad, "uds": "/s" })).refused("vsock.guest_cid");
    }
    let at = |len: usize| json!({ "guest_cid": 3, "uds": "x".repeat(len) });
    assert!(Fixture::new().with("vsock", at(UDS_PATH_MAX_BYTES)).check().is_ok());
    for bad in [0, UDS_PATH_MAX_BYTES + 1] {
        Fixture::new().with("vsock", at(bad)).refused("vsock.uds");
    }
}

#[test]
fn the_command_line_is_bounded_printable_ascii() {
    let longest = "x".repeat(CMDLINE_MAX_BYTES);
    assert!(Fixture::new().with("cmdline", json!(longest)).check().is_ok());
    Fixture::new().with("cmdline", json!(format!("{longest}x"))).refused("cmdline");
    for bad in ["a\nb", "a\0b", "caf\u{e9}", "a\x7f"] {
        let text = Fixture::new().with("cmdline", json!(bad)).refused("cmdline");
        assert!(text.contains("printable ASCII"), "{text}");
    }
}

#[test]
fn unknown_fields_are_refused_by_name_at_every_level() {
    Fixture::new().with("kernal", json!("x")).refused("kernal");
    let fixture = Fixture::new();
    let disks = json!([{ "path": fixture.kernel.path(), "mode": "read_only", "cache": true }]);
    fixture.with("disks", disks).refused("cache");
    Fixture::new().with("vsock", json!({ "guest_cid": 3, "uds": "/s", "port": 1 })).refused("port");
    Fixture::new().with("console", json!("loud")).refused("loud");
}

#[test]
fn missing_fields_are_named() {
    for field in ["kernel", "mem_mib", "cpus"] {
        let mut fixture = Fixture::new();
        fixture.doc.as_object_mut().unwrap().remove(field);
        fixture.refused(field);
    }
}

#[test]
fn too_many_extra_msrs_are_refused() {
    let list = |count: usize| json!(vec![1; count]);
    assert!(Fixture::new().with("extra_msrs", list(EXTRA_MSRS_MAX)).check().is_ok());
    Fixture::new().with("extra_msrs", list(EXTRA_MSRS_MAX + 1)).refused("extra_msrs");
    let text = Fixture::new().with("extra_msrs", json!([1_u64 << 32])).check().unwrap_err().to_string();
    assert!(text.contains("4294967296"), "{text}");
}

/// A document that goes on where a snapshot was taken, with one disk.
fn restored() -> Fixture {
    let mut fixture = Fixture::new();
    let [state, memory, layer, base] = ["state", "memory", "layer", "base"].map(|name| {
        let path = fixture.dir.path().join(name);
        std::fs::write(&path, [1; 512]).unwrap();
        path
    });
    fixture.doc.as_object_mut().unwrap().remove("kernel");
    fixture
        .with("disks", json!([{ "path": base, "mode": { "overlay_memory": { "cap_mib": 1 } } }]))
        .with("restore", json!({ "state": state, "memory": memory, "layers": [layer] }))
}

#[test]
fn a_snapshot_in_place_of_a_kernel_is_accepted() {
    let fixture = restored();
    let config = fixture.check().unwrap();
    let Start::Restore(restore) = config.start() else { panic!("no kernel was given") };
    assert_eq!(restore.state(), fixture.dir.path().join("state"));
    assert_eq!(restore.memory(), fixture.dir.path().join("memory"));
    assert_eq!(restore.layers(), [Some(fixture.dir.path().join("layer"))]);
    assert!(!restore.is_resident() && !config.is_forkable());
    let mut fixture = fixture.with("forkable", json!(true));
    fixture.doc["restore"]["resident"] = json!(true);
    fixture.doc["restore"]["layers"] = json!([null]);
    let config = fixture.check().unwrap();
    let Start::Restore(restore) = config.start() else { panic!("no kernel was given") };
    assert_eq!(restore.layers(), [None]);
    assert!(restore.is_resident() && config.is_forkable());
}

#[test]
fn a_working_set_is_whole_pages_and_few_enough() {
    let with = |parts: Value| {
        let mut fixture = restored();
        fixture.doc["restore"]["working_set"] = parts;
        fixture
    };
    let config = with(json!([[4096, 8192], [0, 4096]])).check().unwrap();
    assert_eq!(config.working_set(), [(4096, 8192), (0, 4096)]);
    assert!(restored().check().unwrap().working_set().is_empty());
    assert!(Fixture::new().check().unwrap().working_set().is_empty());
    for bad in [[1, 4096], [4096, 1], [4096, 0]] {
        let text = with(json!([[0, 4096], bad])).refused("restore.working_set[1]");
        assert!(text.contains("whole pages"), "{text}");
    }
    let parts = |count| json!(vec![[4096, 4096]; count]);
    assert!(with(parts(WORKING_SET_PARTS_MAX)).check().is_ok());
    assert!(with(parts(WORKING_SET_PARTS_MAX + 1)).refused("restore.working_set").contains("2049 parts"));
    assert!(with(json!([[0, WORKING_SET_MAX_BYTES]])).check().is_ok());
    with(json!([[0, WORKING_SET_MAX_BYTES], [0, 4096]])).refused("restore.working_set");
    with(json!([[0, u64::MAX - 4095], [0, u64::MAX - 4095]])).refused("restore.working_set");
}

#[test]
fn jail_is_on_unless_it_is_turned_off_by_name() {
    assert_eq!(restored().check().unwrap().jail(), Jail::On);
    let config = restored().with("jail", json!("off")).check().unwrap();
    assert_eq!((config.jail(), config.for_fork(Path::new("/u")).unwrap().jail()), (Jail::Off, Jail::Off));
    assert!(restored().with("jail", json!(false)).check().is_err());
}

#[test]
fn a_kernel_and_a_snapshot_or_neither_are_refused_by_both_names() {
    let fixture = restored();
    let kernel = fixture.kernel.path().to_owned();
    let text = fixture.with("kernel", json!(kernel)).refused("kernel, restore");
    assert!(text.contains("both given"), "{text}");
    let text = restored().with("restore", Value::Null).refused("kernel, restore");
    assert!(text.contains("neither given"), "{text}");
}

#[test]
fn every_file_of_a_snapshot_that_is_not_there_is_named() {
    for (field, what) in [("state", "restore.state"), ("memory", "restore.memory")] {
        let mut fixture = restored();
        fixture.doc["restore"][field] = json!("/no/such/file");
        let text = fixture.refused(what);
        assert!(text.contains("/no/such/file") && text.contains("No such file"), "{text}");
        fixture.doc["restore"][field] = json!(fixture.dir.path());
        assert!(fixture.refused(what).contains("is a directory"));
        fixture.doc["restore"][field] = json!("/dev/null");
        assert!(fixture.refused(what).contains("not a regular file"));
    }
    let mut fixture = restored();
    fixture.doc["restore"]["layers"] = json!(["/no/such/layer"]);
    assert!(fixture.refused("restore.layers[0]").contains("/no/such/layer"));
}

#[test]
fn there_is_one_layer_or_none_for_each_disk() {
    for layers in [json!([]), json!([null, null])] {
        let mut fixture = restored();
        fixture.doc["restore"]["layers"] = layers;
        let text = fixture.refused("restore.layers");
        assert!(text.contains("one for each of 1 disks"), "{text}");
    }
}

#[test]
fn a_snapshot_is_described_completely_and_by_nothing_else() {
    for field in ["state", "memory", "layers"] {
        let mut fixture = restored();
        fixture.doc["restore"].as_object_mut().unwrap().remove(field);
        fixture.refused(field);
    }
    let mut fixture = restored();
    fixture.doc["restore"]["version"] = json!(1);
    fixture.refused("version");
}

#[test]
fn a_fork_differs_from_its_template_in_the_path_of_its_socket_only() {
    let with_vsock = restored().with("vsock", json!({ "guest_cid": 5, "uds": "/template" })).check().unwrap();
    let fork = with_vsock.for_fork(Path::new("/fork/v.sock")).unwrap();
    assert_eq!(fork.vsock().unwrap().uds(), Path::new("/fork/v.sock"));
    assert_eq!(fork.vsock().unwrap().guest_cid(), 5);
    assert_eq!((fork.mem_bytes(), fork.cpus(), fork.disks()), (128 << 20, 1, with_vsock.disks()));
    assert_eq!(with_vsock.vsock().unwrap().uds(), Path::new("/template"));
    for bad in ["", &"x".repeat(UDS_PATH_MAX_BYTES + 1)] {
        assert!(with_vsock.for_fork(Path::new(bad)).unwrap_err().to_string().contains("vsock.uds"));
    }
    let without = restored().check().unwrap();
    assert!(without.for_fork(Path::new("")).unwrap().vsock().is_none(), "nobody looks at the path");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = VmmConfig::from_json(&bytes);
    }

    #[test]
    fn accepted_numbers_are_exactly_those_in_range(mem in any::<u64>(), cpus in any::<u64>()) {
        let fixture = Fixture::new().with("mem_mib", json!(mem)).with("cpus", json!(cpus));
        let accepted = (MEM_MIN_MIB..=HOST_MIB).contains(&mem) && (1..=CPUS_MAX).contains(&cpus);
        prop_assert_eq!(fixture.check().is_ok(), accepted);
    }

    #[test]
    fn small_numbers_too(mem in 0..2 * HOST_MIB, cpus in 0..64_u64) {
        let fixture = Fixture::new().with("mem_mib", json!(mem)).with("cpus", json!(cpus));
        let accepted = (MEM_MIN_MIB..=HOST_MIB).contains(&mem) && (1..=CPUS_MAX).contains(&cpus);
        prop_assert_eq!(fixture.check().is_ok(), accepted);
    }
}
