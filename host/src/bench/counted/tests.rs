// SPDX-License-Identifier: Apache-2.0
//! Tests of what is packed. Real counted benches are run by `./dev test`.

use super::*;
use crate::emulated::counted::CPU;
use crate::monitor::Jail;
use crate::progress::Silent;

/// A machine of small files that say their names.
struct Rig {
    dir: tempfile::TempDir,
    cache: Cache,
    midge: PathBuf,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(&dir.path().join("cache")).unwrap();
    let midge = dir.path().join("midge-here");
    std::fs::write(&midge, "midge-here").unwrap();
    Rig { dir, cache, midge }
}

impl Rig {
    fn file(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    }

    fn counting(&self) -> Counting<'_> {
        Counting { cpu: CPU, cache: &self.cache, midge: &self.midge, watch: &Silent }
    }

    fn boots(&self) -> BootOptions {
        BootOptions {
            runs: 2,
            vmm: self.file("vmm-here"),
            against: vec![Contender::Firecracker { program: self.file("fire-here") }],
            kernel: self.file("kernel-here"),
            initramfs: self.file("agent-here"),
            mem_mib: 128,
            jail: Jail::On,
            limit: Duration::from_secs(20),
        }
    }

    fn forks(&self) -> LabOptions {
        LabOptions {
            runs: 2,
            concurrency: vec![1],
            template: None,
            firecracker: Some(self.file("fire-here")),
            kernel: Some(self.file("kernel-here")),
            image: None,
            mem_mib: 128,
            disk_mib: 256,
            is_cold: false,
            jail: Jail::On,
            touched_mib: 0,
            limit: Duration::from_secs(20),
        }
    }

    /// The archive of an order, as text.
    fn packed(&self, luggage: &mut Luggage, order: &Order) -> String {
        let into = self.dir.path().join("archive");
        luggage.pack(order, &into).unwrap();
        String::from_utf8_lossy(&std::fs::read(into).unwrap()).into_owned()
    }
}

#[test]
fn order_names_what_is_packed_beside_it() {
    let rig = rig();
    let mut luggage = Luggage::new(&rig.counting()).unwrap();
    let there = luggage.for_boots(&rig.boots()).unwrap();
    assert_eq!((there.runs, there.kernel.as_path()), (2, Path::new("/bench/vmlinux")));
    let [Contender::Firecracker { program }] = &there.against[..] else { panic!("{there:?}") };
    let archive = rig.packed(&mut luggage, &Order::Boot(there.clone()));
    for name in [&there.kernel, &there.initramfs, &there.vmm, program, &PathBuf::from(ORDER)] {
        assert!(archive.contains(name.to_str().unwrap().trim_start_matches('/')), "{name:?} is not packed");
    }
    for content in ["vmm-here", "fire-here", "kernel-here", "agent-here", "midge-here"] {
        assert!(archive.contains(content), "{content}");
    }
}

#[test]
fn forks_bring_their_root_and_what_the_library_looks_for() {
    let rig = rig();
    let mut luggage = Luggage::new(&rig.counting()).unwrap();
    // Any static program will do.
    let agent = std::env::current_exe().unwrap();
    let there = luggage.for_forks(&rig.forks(), &rig.file("vmm-here"), &agent, &rig.counting()).unwrap();
    let names: Vec<_> = luggage.files.iter().map(|(there, _)| there.to_str().unwrap()).collect();
    for name in ["/init", "/bench/vmlinux", "/bench/midge-vmm", "/bench/midge-agent", "/bench/root.erofs"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(names.iter().any(|name| name.starts_with("/bench/cache/scratch/32-")), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("/bench/cache/initramfs/")), "{names:?}");
    assert_eq!((there.image.as_deref(), there.disk_mib), (Some("/bench/root.erofs"), DISK_MIB));
    assert!([VMM, AGENT, CACHE].iter().all(|path| path.starts_with(DIR) && WORDS.contains(path)));
    assert!(luggage.dir.path().join("root/bin/true").is_file());
}

#[test]
fn reports_call_files_as_they_are_called_here() {
    let rig = rig();
    let mut luggage = Luggage::new(&rig.counting()).unwrap();
    luggage.put("vmlinux", Path::new("/here/kernel"));
    let report = Report::begin("boot", "kernel /bench/vmlinux").option("kernel", "/bench/vmlinux");
    let report = luggage.as_it_is_called_here(report);
    assert_eq!((report.title.as_str(), report.options["kernel"].as_str()), ("kernel /here/kernel", "/here/kernel"));
}

#[test]
fn runs_that_make_no_sense_are_refused_before_anything_starts() {
    let rig = rig();
    let error = boot_counted(&BootOptions { runs: 0, ..rig.boots() }, &rig.counting()).unwrap_err();
    assert!(matches!(error, CountedError::Bench(BenchError::Runs { .. })), "{error}");
    let forks = LabOptions { runs: 0, ..rig.forks() };
    let error = fork_counted(&forks, Path::new("/v"), Path::new("/a"), &rig.counting()).unwrap_err();
    assert!(matches!(error, CountedError::Bench(BenchError::Runs { .. })), "{error}");
}
