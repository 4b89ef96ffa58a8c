// SPDX-License-Identifier: Apache-2.0
//! Tests of what is packed. Real counted benches are run by `./dev test`.

use super::*;
use crate::emulated::counted::CPU;
use crate::progress::Silent;

fn options(dir: &Path) -> BootOptions {
    let file = |name: &str| {
        let path = dir.join(name);
        std::fs::write(&path, name).unwrap();
        path
    };
    BootOptions {
        runs: 2,
        vmm: file("vmm-here"),
        against: vec![Contender::Firecracker { program: file("fire-here") }],
        kernel: file("kernel-here"),
        initramfs: file("agent-here"),
        mem_mib: 128,
        limit: Duration::from_secs(20),
    }
}

#[test]
fn order_names_what_is_packed_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let midge = dir.path().join("midge-here");
    std::fs::write(&midge, "midge-here").unwrap();
    let into = dir.path().join("archive");
    pack(&options(dir.path()), &midge, dir.path(), &into).unwrap();
    let order: BootOptions = serde_json::from_slice(&std::fs::read(dir.path().join("order.json")).unwrap()).unwrap();
    assert_eq!((order.runs, order.kernel.as_path()), (2, Path::new("/bench/vmlinux")));
    let [Contender::Firecracker { program }] = &order.against[..] else { panic!("{order:?}") };
    let bytes = std::fs::read(&into).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    for name in [&order.kernel, &order.initramfs, &order.vmm, program] {
        assert!(has(name.to_str().unwrap().trim_start_matches('/')), "{name:?} is not packed");
    }
    for content in ["vmm-here", "fire-here", "kernel-here", "agent-here", "midge-here"] {
        assert!(has(content), "{content}");
    }
}

#[test]
fn program_that_is_missing_is_named_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(&dir.path().join("cache")).unwrap();
    let mut options = options(dir.path());
    options.runs = 0;
    let error = boot_counted(&options, CPU, &cache, Path::new("/m"), &Silent).unwrap_err();
    assert!(matches!(error, CountedError::Bench(BenchError::Runs { .. })), "{error}");
    let text = find(Path::new("/nonexistent/fire")).unwrap_err().to_string();
    assert!(text.contains("/nonexistent/fire") && text.contains("No such file"), "{text}");
    assert!(find(Path::new("no-such-program-anywhere")).is_err());
}

#[test]
fn libraries_are_read_from_what_ldd_prints() {
    assert_eq!(
        library("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)"),
        Some("/lib/x86_64-linux-gnu/libc.so.6")
    );
    assert_eq!(library("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"), Some("/lib64/ld-linux-x86-64.so.2"));
    for line in ["\tlinux-vdso.so.1 (0x00007ffc)", "\tstatically linked", "", "\tnot a dynamic executable"] {
        assert_eq!(library(line), None, "{line}");
    }
}

#[test]
fn shell_is_found_with_its_libraries() {
    let shell = find(Path::new("sh")).unwrap();
    assert!(shell.is_absolute());
    let needs = needs(&Contender::Firecracker { program: shell.clone() }, &shell).unwrap();
    assert!(needs.iter().any(|(_, from)| *from == shell));
    assert!(needs.iter().all(|(_, from)| from.exists()), "{needs:?}");
}
