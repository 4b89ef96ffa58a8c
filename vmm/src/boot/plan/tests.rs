// SPDX-License-Identifier: Apache-2.0
//! Tests of the boot plan: what is in guest memory before the first instruction.

use super::*;
use crate::memory::allocate;
use std::io::Write;
use tempfile::NamedTempFile;

const START: u64 = 0x100_0000;

/// A vmlinux of one segment whose content is `code`, built by the ELF standard.
fn vmlinux(code: &[u8]) -> NamedTempFile {
    let mut header = vec![0_u8; 120];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]);
    put(24, &(START + 1).to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 1, 0]);
    put(64, &1_u32.to_le_bytes());
    put(72, &120_u64.to_le_bytes());
    put(88, &START.to_le_bytes());
    put(96, &(code.len() as u64).to_le_bytes());
    put(104, &0x1800_u64.to_le_bytes());
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&header).unwrap();
    file.write_all(code).unwrap();
    file
}

fn config(kernel: &NamedTempFile, initramfs: Option<&NamedTempFile>, mem_mib: u64) -> VmmConfig {
    let doc = serde_json::json!({
        "kernel": kernel.path(), "initramfs": initramfs.map(|f| f.path()), "mem_mib": mem_mib, "cpus": 2,
        "cmdline": "rdinit=/x",
    });
    VmmConfig::from_json(doc.to_string().as_bytes()).unwrap()
}

fn bytes_at(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn everything_the_kernel_is_told_is_where_it_is_told_to_be() {
    let kernel = vmlinux(b"code");
    let mut initramfs = NamedTempFile::new().unwrap();
    initramfs.write_all(b"070701 cpio").unwrap();
    let config = config(&kernel, Some(&initramfs), 64);
    let ram = allocate(config.mem_bytes(), false).unwrap();
    let devices = [DeviceWord { start: 0xd000_0000, gsi: 5 }];
    let mut plan = BootPlan::new(&config, images_of(&config), &devices).unwrap();
    plan.load(&ram).unwrap();

    assert_eq!(bytes_at(&ram, START, 6), b"code\0\0");
    assert_eq!(plan.regs().rip, START + 1);
    let params = bytes_at(&ram, plan.regs().rsi, 4096);
    let word = |at: usize| u32::from_le_bytes(params[at..at + 4].try_into().unwrap());
    let line = bytes_at(&ram, u64::from(word(0x228)), usize::try_from(word(0x238)).unwrap() + 1);
    let text = String::from_utf8(line).unwrap();
    assert!(text.ends_with("virtio_mmio.device=4K@0xd0000000:5 rdinit=/x\0"), "{text}");
    let (at, len) = (u64::from(word(0x218)), usize::try_from(word(0x21c)).unwrap());
    assert_eq!(at, START + 0x2000, "on the first page behind the kernel");
    assert_eq!(bytes_at(&ram, at, len), b"070701 cpio");
    let seed = bytes_at(&ram, u64::from(word(0x250)), 80);
    assert_eq!(seed[8..12], [9, 0, 0, 0]);
    assert_ne!(seed[16..], [0; 64]);
    assert_eq!(bytes_at(&ram, 0x9_fc00, 4), b"_MP_");
}

#[test]
fn two_guests_get_different_seeds() {
    let kernel = vmlinux(b"code");
    let config = config(&kernel, None, 64);
    let seed = || {
        let ram = allocate(config.mem_bytes(), false).unwrap();
        BootPlan::new(&config, images_of(&config), &[]).unwrap().load(&ram).unwrap();
        bytes_at(&ram, RNG_SEED.start + 16, SEED_BYTES)
    };
    assert_ne!(seed(), seed());
}

#[test]
fn an_initramfs_that_does_not_fit_is_refused_with_numbers_and_advice() {
    let kernel = vmlinux(b"code");
    let initramfs = NamedTempFile::new().unwrap();
    let limit = 64 << 20;
    let room = limit - (START + 0x2000);
    initramfs.as_file().set_len(room).unwrap();
    assert!(plan_of(config(&kernel, Some(&initramfs), 64)).is_ok());
    initramfs.as_file().set_len(room + 1).unwrap();
    let error = plan_of(config(&kernel, Some(&initramfs), 64)).unwrap_err();
    assert!(matches!(error, BootError::InitramfsRoom { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&(room + 1).to_string()) && text.contains("more memory"), "{text}");
}

#[test]
fn a_kernel_that_shrinks_after_it_was_checked_is_an_error_and_no_hang() {
    let kernel = vmlinux(b"code that will be cut off");
    let config = config(&kernel, None, 64);
    let ram = allocate(config.mem_bytes(), false).unwrap();
    let mut plan = BootPlan::new(&config, images_of(&config), &[]).unwrap();
    kernel.as_file().set_len(121).unwrap();
    assert!(matches!(plan.load(&ram), Err(BootError::Copy { what: "kernel", .. })));
}

#[test]
fn a_file_that_is_no_kernel_is_refused_before_any_memory_is_taken() {
    let mut junk = NamedTempFile::new().unwrap();
    junk.write_all(&[7; 5000]).unwrap();
    let error = plan_of(config(&junk, None, 64)).unwrap_err();
    assert!(matches!(error, BootError::Kernel(KernelError::UnknownFormat)), "{error}");
}

#[test]
fn a_vanished_kernel_is_named() {
    let kernel = vmlinux(b"code");
    let config = config(&kernel, None, 64);
    drop(kernel);
    let crate::config::Start::Kernel(path) = config.start() else { panic!("a boot has a kernel") };
    let error = Images::open(&config, path).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

fn images_of(config: &VmmConfig) -> Images {
    match config.start() {
        crate::config::Start::Kernel(kernel) => Images::open(config, kernel).unwrap(),
        crate::config::Start::Restore(_) => panic!("a boot has a kernel"),
    }
}

fn plan_of(config: VmmConfig) -> Result<BootPlan, BootError> {
    BootPlan::new(&config, images_of(&config), &[])
}
