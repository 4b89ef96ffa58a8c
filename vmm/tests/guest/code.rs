// SPDX-License-Identifier: Apache-2.0
//! Guest programs put together from a few instructions of 64-bit code.
//!
//! Encodings are from the processor manuals; nothing of the monitor is used, so that a mistake
//! there cannot agree with itself.

/// Where the program is loaded; its first byte is the entry point.
const START: u64 = 0x100_0000;

/// Where guests that count do so.
pub(crate) const COUNTER: u32 = 0x180_0000;
/// The rings of a guest with a disk: table, available ring at 0x100, used ring at 0x200.
const RINGS: u32 = 0x190_0000;
/// avail.idx there.
pub(crate) const AVAIL_INDEX: u32 = RINGS + 0x102;
/// used.idx there.
pub(crate) const USED_INDEX: u32 = RINGS + 0x202;
const HEADER: u32 = 0x190_1000;
const STATUS: u32 = 0x190_2000;
/// A page of page table entries.
const DIRECTORY: u32 = 0x190_3000;

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

    /// Counts in the eight bytes at [`COUNTER`], for ever.
    pub(crate) fn count(self) -> Vec<u8> {
        // again: inc qword [COUNTER]; jmp again
        vmlinux(&self.add(&[0x48, 0xff, 0x04, 0x25]).add(&COUNTER.to_le_bytes()).add(&[0xeb, 0xf6]).0)
    }

    /// Counts to `end` in the eight bytes at [`COUNTER`].
    pub(crate) fn count_to(self, end: u32) -> Self {
        let again = self.add(&[0x48, 0xff, 0x04, 0x25]).add(&COUNTER.to_le_bytes());
        // cmp qword [COUNTER], end; jne again
        again.add(&[0x48, 0x81, 0x3c, 0x25]).add(&COUNTER.to_le_bytes()).add(&end.to_le_bytes()).add(&[0x75, 0xea])
    }

    /// Waits for an interrupt that never comes.
    pub(crate) fn halt(self) -> Vec<u8> {
        // again: hlt; jmp again
        vmlinux(&self.add(&[0xf4, 0xeb, 0xfd]).0)
    }

    fn store_dword(self, at: u32, value: u32) -> Self {
        // mov dword [at], value
        self.add(&[0xc7, 0x04, 0x25]).add(&at.to_le_bytes()).add(&value.to_le_bytes())
    }

    /// Writes a register of the first device, whose window `rbx` points at.
    fn store_register(self, offset: u32, value: u32) -> Self {
        // mov dword [rbx + offset], value
        self.add(&[0xc7, 0x83]).add(&offset.to_le_bytes()).add(&value.to_le_bytes())
    }

    /// Writes a counter, which is at [`COUNTER`], into sector 0 of the first disk, again and again:
    /// one request at a time, the next when the one before is used. Needs no interrupt.
    pub(crate) fn write_disk(self) -> Vec<u8> {
        // The windows lie beyond the first GiB, which is all that is mapped: one more large page.
        let mapped = self.store_dword(0x2018, DIRECTORY | 3).store_dword(DIRECTORY + 128 * 8, 0xd000_0000 | 0x83);
        // mov ebx, 0xd0000000
        let mut code = mapped.add(&[0xbb, 0, 0, 0, 0xd0]);
        // A write of 512 bytes: type 1, sector 0; header, data, status.
        code = code.store_dword(HEADER, 1);
        for (index, (at, len, flags)) in (0..).zip([(HEADER, 16, 1), (COUNTER, 512, 1), (STATUS, 1, 2)]) {
            let place = RINGS + 16 * index;
            code = code.store_dword(place, at).store_dword(place + 8, len);
            code = code.store_dword(place + 12, flags | (index + 1) << 16);
        }
        // Reset, ACKNOWLEDGE, DRIVER, VERSION_1, FEATURES_OK; queue 0 of 4; DRIVER_OK.
        let place = [(0x30, 0), (0x38, 4), (0x80, RINGS), (0x90, RINGS + 0x100), (0xa0, RINGS + 0x200), (0x44, 1)];
        let before = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 0xb)];
        for (offset, value) in before.into_iter().chain(place).chain([(0x70, 0xf)]) {
            code = code.store_register(offset, value);
        }
        let (avail, used) = (AVAIL_INDEX.to_le_bytes(), USED_INDEX.to_le_bytes());
        // again: inc qword [COUNTER]; inc word [avail.idx]; mov dword [rbx + QueueNotify], 0
        code = code.add(&[0x48, 0xff, 0x04, 0x25]).add(&COUNTER.to_le_bytes());
        code = code.add(&[0x66, 0xff, 0x04, 0x25]).add(&avail).store_register(0x50, 0);
        // wait: mov ax, [used.idx]; cmp ax, [avail.idx]; jne wait; jmp again
        code = code.add(&[0x66, 0x8b, 0x04, 0x25]).add(&used).add(&[0x66, 0x3b, 0x04, 0x25]).add(&avail);
        vmlinux(&code.add(&[0x75, 0xee, 0xeb, 0xd2]).0)
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
pub(crate) fn vmlinux(code: &[u8]) -> Vec<u8> {
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
