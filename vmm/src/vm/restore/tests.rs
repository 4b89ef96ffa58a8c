// SPDX-License-Identifier: Apache-2.0
//! A configuration against a snapshot: every difference is refused with both sides of it.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::config::Start;
use crate::disk::PageMap;
use crate::machine::state::{MachineState, VcpuState};
use crate::snapshot::{DiskState, VsockDeviceState, format};
use crate::virtio::TransportState;
use crate::vsock::VsockState;

const BASE_BYTES: u64 = 40_960;

/// A snapshot's files, a document that fits them and the state in them.
struct Fixture {
    dir: TempDir,
    doc: Value,
    state: VmState,
}

fn disk(is_read_only: bool) -> DiskState {
    let layer = (!is_read_only).then(|| PageMap::new(BASE_BYTES / 4096));
    DiskState { transport: TransportState::default(), len_bytes: BASE_BYTES, is_read_only, layer }
}

/// 64 MiB, two vCPUs, a read-only disk, one with an overlay, vsock.
fn fixture() -> Fixture {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, len: u64| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    };
    let (base, layer, memory) = (file("base", BASE_BYTES), file("layer", BASE_BYTES), file("memory", 64 << 20));
    let doc = json!({
        "restore": { "state": file("state", 1), "memory": memory, "layers": [null, layer] },
        "mem_mib": 64, "cpus": 2,
        "disks": [
            { "path": base, "mode": "read_only" },
            { "path": base, "mode": { "overlay_memory": { "cap_mib": 1 } } },
        ],
        "vsock": { "guest_cid": 3, "uds": dir.path().join("v.sock") },
    });
    let state = VmState {
        mem_bytes: 64 << 20,
        kernel_range: (0, 0),
        has_console: false,
        machine: MachineState::default(),
        vcpus: vec![VcpuState::default(), VcpuState::default()],
        disks: vec![disk(true), disk(false)],
        vsock: Some(VsockDeviceState {
            transport: TransportState::default(),
            device: VsockState::default(),
            guest_cid: 3,
        }),
    };
    Fixture { dir, doc, state }
}

impl Fixture {
    fn config(&self) -> VmmConfig {
        VmmConfig::from_json(self.doc.to_string().as_bytes()).unwrap()
    }

    /// The field that differs, as configured and in the snapshot.
    fn difference(&self) -> [String; 3] {
        match check(&self.config(), &self.state) {
            Err(RestoreError::Differs { field, configured, snapshot }) => [field, configured, snapshot],
            other => panic!("{other:?}"),
        }
    }

    fn open_disks(&mut self) -> Result<Vec<Box<dyn Disk>>, DeviceError> {
        let layer = File::open(self.dir.path().join("layer")).unwrap();
        let map = self.state.disks[1].layer.take();
        let mut layer = map.map(|map| (layer, map));
        let files = DiskFiles::open_all(&self.config()).unwrap();
        devices::make_disks(&self.config(), files, |index| if index == 1 { layer.take() } else { None })
    }

    /// The state into its file; its CPU is this one.
    fn write_state(&mut self, kvm: &Host) {
        self.state.vcpus[0].cpuid = kvm.cpu_features().unwrap().for_vcpu(0, 2);
        std::fs::write(self.dir.path().join("state"), format::encode(&self.state, &[]).unwrap()).unwrap();
    }

    fn open(&self, kvm: &Host) -> Result<AtRest, RestoreError> {
        let config = self.config();
        let Start::Restore(restore) = config.start() else { panic!("it has no kernel") };
        open(&config, restore, kvm)
    }
}

/// `None` where there is none, with a word.
fn kvm_or_skip() -> Option<Host> {
    let kvm = Host::open(1);
    kvm.inspect_err(|error| println!("skipped: {error}")).ok()
}

/// An error and its causes, in one line.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn what_fits_is_accepted() {
    let mut fixture = fixture();
    check(&fixture.config(), &fixture.state).unwrap();
    let disks = fixture.open_disks().unwrap();
    check_disks(&disks, &fixture.state).unwrap();
    assert_eq!(disks.len(), 2);
}

#[test]
fn another_size_of_memory_or_number_of_cpus_is_refused() {
    let mut other = fixture();
    other.doc["mem_mib"] = json!(65);
    assert_eq!(other.difference(), ["mem_mib", "65", "64"]);
    let mut other = fixture();
    other.state.vcpus.pop();
    assert_eq!(other.difference(), ["cpus", "2", "1"]);
}

#[test]
fn a_console_there_and_not_here_is_refused_and_the_other_way_round() {
    let mut other = fixture();
    other.doc["console"] = json!("on");
    assert_eq!(other.difference(), ["console", "true", "false"]);
    let mut other = fixture();
    other.state.has_console = true;
    assert_eq!(other.difference(), ["console", "false", "true"]);
}

#[test]
fn a_vsock_that_is_missing_or_has_another_address_is_refused() {
    let mut other = fixture();
    other.doc["vsock"]["guest_cid"] = json!(4);
    assert_eq!(other.difference(), ["vsock", "CID 4", "CID 3"]);
    other.doc["vsock"] = Value::Null;
    assert_eq!(other.difference(), ["vsock", "none", "CID 3"]);
    let mut other = fixture();
    other.state.vsock = None;
    assert_eq!(other.difference(), ["vsock", "CID 3", "none"]);
}

#[test]
fn another_number_of_disks_is_refused() {
    let mut other = fixture();
    other.state.disks.pop();
    assert_eq!(other.difference(), ["disks", "2", "1"]);
}

#[test]
fn a_layer_without_a_file_and_a_file_without_a_layer_are_refused_by_place() {
    let mut other = fixture();
    other.doc["restore"]["layers"][1] = Value::Null;
    assert_eq!(other.difference(), ["restore.layers[1]", "none", "a file"]);
    let mut other = fixture();
    other.doc["restore"]["layers"][0] = other.doc["restore"]["layers"][1].clone();
    assert_eq!(other.difference(), ["restore.layers[0]", "a file", "none"]);
}

#[test]
fn a_layer_under_anything_but_an_overlay_in_memory_is_refused() {
    for mode in [json!("read_only"), json!({ "overlay_file": { "path": "/o", "cap_mib": 1 } })] {
        let mut other = fixture();
        other.doc["disks"][1]["mode"] = mode;
        assert_eq!(other.difference(), ["disks[1].mode", "not overlay_memory", "an overlay in memory"]);
    }
}

#[test]
fn a_base_that_has_changed_its_length_is_refused() {
    let mut other = fixture();
    let base = File::options().write(true).open(other.dir.path().join("base")).unwrap();
    base.set_len(BASE_BYTES + 512).unwrap();
    // Found by the layer first, which is as long as its disk was.
    let error = told(&other.open_disks().err().unwrap());
    assert!(error.contains("base") && error.contains("not as long"), "{error}");
    let mut other = fixture();
    other.state.disks[0].len_bytes = BASE_BYTES - 512;
    let disks = other.open_disks().unwrap();
    let error = check_disks(&disks, &other.state).unwrap_err().to_string();
    assert!(error.contains("disks[0]'s length is 40960") && error.contains("with 40448"), "{error}");
}

#[test]
fn a_disk_that_may_be_written_here_and_not_there_is_refused() {
    let mut other = fixture();
    other.state.disks[0].is_read_only = false;
    let disks = other.open_disks().unwrap();
    let error = check_disks(&disks, &other.state).unwrap_err().to_string();
    assert!(error.contains("disks[0].mode"), "{error}");
}

#[test]
fn every_difference_is_the_users_to_mend() {
    let mut other = fixture();
    other.doc["mem_mib"] = json!(65);
    let error = super::super::VmError::from(check(&other.config(), &other.state).unwrap_err());
    assert_eq!(error.reason(), crate::trace::Reason::Config);
    let text = error.to_string();
    assert_eq!(text, "restoring a snapshot: mem_mib is 65, the snapshot was taken of a VM with 64");
}

fn open(config: &VmmConfig, restore: &RestoreConfig, kvm: &Host) -> Result<AtRest, RestoreError> {
    let disks = DiskFiles::open_all(config)?;
    AtRest::new(config, restore, (SnapshotFiles::open(restore)?, disks), kvm)
}

#[test]
fn a_snapshot_is_opened_with_its_memory_and_its_layers() {
    let Some(kvm) = kvm_or_skip() else { return };
    let mut fixture = fixture();
    fixture.write_state(&kvm);
    let at_rest = fixture.open(&kvm).unwrap();
    assert_eq!((at_rest.disks.len(), at_rest.state.vcpus.len()), (2, 2));
    assert!(at_rest.state.disks[1].layer.is_none(), "the disk has it now");
    assert!(at_rest.disks[1].layer().unwrap().changed.is_some());
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_its_path_and_what_to_do() {
    type Damage = fn(&Path);
    let cut: Damage = |dir| File::options().write(true).open(dir.join("state")).unwrap().set_len(100).unwrap();
    let empty: Damage = |dir| drop(File::create(dir.join("state")).unwrap());
    let bit: Damage = |dir| {
        let mut bytes = std::fs::read(dir.join("state")).unwrap();
        bytes[1000] ^= 4;
        std::fs::write(dir.join("state"), bytes).unwrap();
    };
    let version: Damage = |dir| {
        let mut bytes = std::fs::read(dir.join("state")).unwrap();
        bytes[8] = 99;
        std::fs::write(dir.join("state"), bytes).unwrap();
    };
    let memory: Damage = |dir| File::options().write(true).open(dir.join("memory")).unwrap().set_len(4096).unwrap();
    let removed: Damage = |dir| std::fs::remove_file(dir.join("layer")).unwrap();
    let cases = [
        (cut, "state", "cut short"),
        (empty, "state", "no state of a midge VM"),
        (bit, "state", "damaged"),
        (version, "state", "version 99"),
        (memory, "memory", "cut short"),
        (removed, "layer", "No such file"),
    ];
    let Some(kvm) = kvm_or_skip() else { return };
    for (damage, name, word) in cases {
        let mut fixture = fixture();
        fixture.write_state(&kvm);
        let config = fixture.config();
        let Start::Restore(restore) = config.start() else { panic!("it has no kernel") };
        damage(fixture.dir.path());
        let error = super::super::VmError::from(open(&config, restore, &kvm).err().expect(word));
        assert_eq!(error.reason(), crate::trace::Reason::Config);
        let text = told(&error);
        assert!(text.contains(&*fixture.dir.path().join(name).to_string_lossy()) && text.contains(word), "{text}");
    }
}

#[test]
fn features_that_this_cpu_has_not_are_named_with_the_state() {
    let Some(kvm) = kvm_or_skip() else { return };
    let mut other = fixture();
    other.write_state(&kvm);
    let shown = &mut other.state.vcpus[0].cpuid;
    shown.iter_mut().find(|entry| (entry.function, entry.index) == (7, 0)).unwrap().ebx = u32::MAX;
    std::fs::write(other.dir.path().join("state"), format::encode(&other.state, &[]).unwrap()).unwrap();
    let error = told(&other.open(&kvm).err().unwrap());
    assert!(error.contains("CPUID 0x7.0 ebx") && error.contains("state"), "{error}");
}
