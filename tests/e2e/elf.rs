// SPDX-License-Identifier: Apache-2.0
//! Kernels of a few bytes, made by hand: an ELF header, one segment at 1 MiB, and code that does one thing.
//! They reach in microseconds what a real kernel does only when it breaks.

/// `EM_X86_64`.
pub(crate) const X86_64: u16 = 62;
/// `EM_AARCH64`.
pub(crate) const AARCH64: u16 = 183;

const LOAD_ADDRESS: u64 = 0x10_0000;
const HEADERS_BYTES: u64 = 64 + 56;
const FILE_MIN_BYTES: usize = 8192;

/// An ELF64 executable whose only segment holds `code` and claims `file_bytes` in the file.
pub(crate) fn executable(machine: u16, code: &[u8], file_bytes: u64) -> Vec<u8> {
    let mut elf = Vec::new();
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend(2_u16.to_le_bytes()); // ET_EXEC
    elf.extend(machine.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    elf.extend(LOAD_ADDRESS.to_le_bytes()); // entry
    elf.extend(64_u64.to_le_bytes()); // program headers
    elf.extend(0_u64.to_le_bytes()); // no section headers
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes()); // PT_LOAD
    elf.extend(7_u32.to_le_bytes()); // rwx
    for word in [HEADERS_BYTES, LOAD_ADDRESS, LOAD_ADDRESS, file_bytes, file_bytes, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    // No kernel is smaller than a page or two.
    elf.resize(elf.len().max(FILE_MIN_BYTES), 0);
    elf
}

/// A kernel of this code.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    executable(X86_64, code, code.len() as u64)
}

/// Says on the first serial port what a panicking kernel says, then resets through port 0x64.
pub(crate) fn panicking() -> Vec<u8> {
    let mut code = vec![
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0x48, 0x8d, 0x35, 0x0f, 0, 0, 0,    // lea rsi, [rip + 15]
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz done
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
        0xb0, 0xfe, // done: mov al, 0xfe
        0xe6, 0x64, // out 0x64, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp to hlt
    ];
    code.extend(b"Booting\nKernel panic - not syncing: made by a test\n\0");
    kernel(&code)
}

/// Loads an empty interrupt table and faults: the processor shuts down.
pub(crate) fn triple_fault() -> Vec<u8> {
    let mut code = vec![0x0f, 0x01, 0x1d, 0x02, 0, 0, 0, 0x0f, 0x0b]; // lidt [rip + 2]; ud2
    code.extend([0; 16]);
    kernel(&code)
}

/// Says a word on the serial port and then nothing for ever.
pub(crate) fn silent() -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for letter in b"stuck here\n" {
        code.extend([0xb0, *letter, 0xee]); // mov al, letter; out dx, al
    }
    code.extend([0xfa, 0xf4, 0xeb, 0xfd]); // cli; hlt; jmp to hlt
    kernel(&code)
}
