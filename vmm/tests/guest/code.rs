// SPDX-License-Identifier: Apache-2.0
//! Guest programs put together from a few instructions of 64-bit code.
//!
//! Encodings are from the processor manuals; nothing of the monitor is used, so that a mistake
//! there cannot agree with itself.

/// Where the program is loaded; its first byte is the entry point.
const START: u64 = 0x100_0000;

/// A program that is being put together. It starts with `rsi` pointing at `boot_params`.
pub(crate) struct Code(Vec<u8>);

impl Code {
    /// Keeps the address of `boot_params` in `r15`.
    pub(crate) fn new() -> Self {
        // mov r15, rsi
        Self(vec![0x49, 0x89, 0xf7])
    }

    fn add(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Prints the bytes at `rsi` up to a zero.
    fn print_at_rsi(self) -> Self {
        // mov dx, 0x3f8; next: lodsb; test al, al; jz done; out dx, al; jmp next; done:
        self.add(&[0x66, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8])
    }

    /// Prints `text` on the serial port.
    pub(crate) fn print(self, text: &str) -> Self {
        let len = i32::try_from(text.len()).unwrap() + 1;
        // lea rsi, [rip + 5]; jmp over the text
        let text = [text.as_bytes(), &[0]].concat();
        self.add(&[0x48, 0x8d, 0x35, 5, 0, 0, 0, 0xe9]).add(&len.to_le_bytes()).add(&text).print_at_rsi()
    }

    /// Prints the kernel's command line.
    pub(crate) fn print_command_line(self) -> Self {
        // mov esi, [r15 + 0x228]
        self.add(&[0x41, 0x8b, 0xb7, 0x28, 0x02, 0, 0]).print_at_rsi()
    }

    /// Prints as fast as it can, for ever.
    pub(crate) fn flood_console(self) -> Self {
        // mov dx, 0x3f8; again: mov al, 'x'; out dx, al; mov al, '\n'; out dx, al; jmp again
        self.add(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xb0, b'\n', 0xee, 0xeb, 0xf8])
    }

    /// Stores a word of memory.
    pub(crate) fn store_word(self, at: u32, value: u16) -> Self {
        // mov word [at], value
        self.add(&[0x66, 0xc7, 0x04, 0x25]).add(&at.to_le_bytes()).add(&value.to_le_bytes())
    }

    /// Runs `then` unless one of `bits` is set in ECX of CPUID leaf `leaf`.
    pub(crate) fn unless_cpuid_ecx(self, leaf: u32, bits: u32, then: impl FnOnce(Self) -> Self) -> Self {
        let body = then(Self(Vec::new())).0;
        let len = i32::try_from(body.len()).unwrap();
        // mov eax, leaf; xor ecx, ecx; cpuid; test ecx, bits; jnz over the body
        let head = self.add(&[0xb8]).add(&leaf.to_le_bytes()).add(&[0x31, 0xc9, 0x0f, 0xa2, 0xf7, 0xc1]);
        head.add(&bits.to_le_bytes()).add(&[0x0f, 0x85]).add(&len.to_le_bytes()).add(&body)
    }

    /// Pulls the reset line.
    pub(crate) fn reset(self) -> Vec<u8> {
        // mov al, 0xfe; out 0x64, al
        self.add(&[0xb0, 0xfe, 0xe6, 0x64]).spin()
    }

    /// Faults without an interrupt table: a triple fault.
    pub(crate) fn undefined_instruction(self) -> Vec<u8> {
        // ud2
        self.add(&[0x0f, 0x0b]).spin()
    }

    /// Goes round and round, and becomes an ELF file.
    pub(crate) fn spin(self) -> Vec<u8> {
        // jmp to itself
        vmlinux(&self.add(&[0xeb, 0xfe]).0)
    }
}

/// ELF-64 for x86-64 with one loadable segment.
fn vmlinux(code: &[u8]) -> Vec<u8> {
    let mut header = vec![0_u8; 120];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    let len = u64::try_from(code.len()).unwrap().to_le_bytes();
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]);
    put(24, &START.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 1, 0]);
    put(64, &1_u32.to_le_bytes());
    put(72, &120_u64.to_le_bytes());
    put(88, &START.to_le_bytes());
    put(96, &len);
    put(104, &len);
    [&header, code].concat()
}
