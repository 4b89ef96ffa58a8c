// SPDX-License-Identifier: Apache-2.0
//! A guest that does what a list tells it: loads and stores of every width at any address, port accesses of every width,
//! checks, and waits. The list is made here and lies behind the program; the program is a loop around a jump table, so that
//! everything worth reading about a test stands in the test.

use crate::code::vmlinux;

/// Bytes of a handler: a step's kind is its number in the table.
const HANDLER_BYTES: usize = 32;
/// A page of page table entries for the fourth GiB, where the devices are; and one for addresses above 4 GiB.
const DEVICE_DIRECTORY: u64 = 0x190_3000;
const HIGH_DIRECTORY: u64 = 0x190_4000;
/// The second GiB of the guest's addresses shows this: 2 MiB that no memory and no device has.
pub(crate) const FAR: u64 = 1 << 36;
const FAR_SEEN_AT: u64 = 1 << 30;

/// What the guest does with a word of `width` bytes (1, 2, 4, 8; ports: not 8).
#[derive(Debug, Clone, Default)]
pub(crate) struct Script(Vec<[u64; 3]>);

fn width_index(width: u32) -> u64 {
    u64::from(width.trailing_zeros())
}

impl Script {
    /// Maps the fourth GiB, and [`FAR`].
    pub(crate) fn new() -> Self {
        let mut script = Self::default();
        // Entries of the page directory pointer table at 0x2000: present and writable.
        script.store(4, 0x2000 + 8 * 3, DEVICE_DIRECTORY | 3).store(4, 0x2000 + 8, HIGH_DIRECTORY | 3);
        for (entry, start) in (0_u64..512).zip((3_u64 << 30..).step_by(2 << 20)) {
            script.store(8, DEVICE_DIRECTORY + 8 * entry, start | 0x83);
        }
        script.store(8, HIGH_DIRECTORY, FAR | 0x83);
        script
    }

    fn step(&mut self, kind: u64, at: u64, value: u64) -> &mut Self {
        self.0.push([kind, at, value]);
        self
    }

    pub(crate) fn store(&mut self, width: u32, at: u64, value: u64) -> &mut Self {
        self.step(width_index(width), Self::seen_at(at), value)
    }

    pub(crate) fn load(&mut self, width: u32, at: u64) -> &mut Self {
        self.step(4 + width_index(width), Self::seen_at(at), 0)
    }

    pub(crate) fn output(&mut self, width: u32, port: u16, value: u32) -> &mut Self {
        self.step(8 + width_index(width), port.into(), value.into())
    }

    pub(crate) fn input(&mut self, width: u32, port: u16) -> &mut Self {
        self.step(11 + width_index(width), port.into(), 0)
    }

    /// Says "wrong" and resets unless the word at `at` is `value`.
    pub(crate) fn check(&mut self, at: u64, value: u32) -> &mut Self {
        self.step(14, at, value.into())
    }

    /// Waits until the half word at `at` is `value`.
    pub(crate) fn wait(&mut self, at: u64, value: u16) -> &mut Self {
        self.step(15, at, value.into())
    }

    /// Stores a word again and again.
    pub(crate) fn store_many(&mut self, times: u32, at: u64, value: u32) -> &mut Self {
        self.step(16, Self::seen_at(at), u64::from(times) << 32 | u64::from(value))
    }

    /// Writes as many bytes as are asked for to one port, by one instruction.
    pub(crate) fn output_many(&mut self, port: u16, bytes: u64) -> &mut Self {
        self.step(17, port.into(), bytes)
    }

    /// Reads as many bytes as are asked for from one port, by one instruction.
    pub(crate) fn input_many(&mut self, port: u16, bytes: u64) -> &mut Self {
        self.step(18, port.into(), bytes)
    }

    pub(crate) fn print(&mut self, text: &str) -> &mut Self {
        for byte in text.bytes() {
            self.output(1, 0x3f8, byte.into());
        }
        self
    }

    fn seen_at(at: u64) -> u64 {
        if at >= FAR { at - FAR + FAR_SEEN_AT } else { at }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Then goes round and round, and becomes an ELF file.
    pub(crate) fn spin(&mut self) -> Vec<u8> {
        self.step(19, 0, 0);
        let mut code = vec![0x48, 0x8d, 0x1d]; // lea rbx, [rip + to the list]
        let handlers = handlers();
        let head = 7 + 3 + 4 + 4 + 4 + 7 + 4 + 3 + 2;
        let list_at = head + HANDLER_BYTES * handlers.len();
        code.extend(i32::try_from(list_at - 7).unwrap().to_le_bytes());
        // next: mov rax, [rbx]; mov rdx, [rbx + 8]; mov rcx, [rbx + 16]; add rbx, 24
        code.extend([0x48, 0x8b, 0x03, 0x48, 0x8b, 0x53, 8, 0x48, 0x8b, 0x4b, 16, 0x48, 0x83, 0xc3, 24]);
        // lea rdi, [rip + to the handlers]; shl rax, 5; add rdi, rax; jmp rdi
        code.extend([0x48, 0x8d, 0x3d]);
        code.extend((4_i32 + 3 + 2).to_le_bytes());
        code.extend([0x48, 0xc1, 0xe0, 5, 0x48, 0x01, 0xc7, 0xff, 0xe7]);
        assert_eq!(code.len(), head);
        for handler in handlers {
            let start = code.len();
            code.extend(handler);
            // jmp next
            let back = 7 - i32::try_from(code.len() + 5).unwrap();
            code.push(0xe9);
            code.extend(back.to_le_bytes());
            assert!(code.len() - start <= HANDLER_BYTES, "a handler fits its place");
            code.resize(start + HANDLER_BYTES, 0xcc);
        }
        code.extend(self.0.iter().flatten().flat_map(|word| word.to_le_bytes()));
        vmlinux(&code)
    }
}

/// What stands behind `at`: rdx is the address or port, rcx the value.
fn handlers() -> Vec<Vec<u8>> {
    vec![
        vec![0x88, 0x0a],             // mov [rdx], cl
        vec![0x66, 0x89, 0x0a],       // mov [rdx], cx
        vec![0x89, 0x0a],             // mov [rdx], ecx
        vec![0x48, 0x89, 0x0a],       // mov [rdx], rcx
        vec![0x8a, 0x02],             // mov al, [rdx]
        vec![0x66, 0x8b, 0x02],       // mov ax, [rdx]
        vec![0x8b, 0x02],             // mov eax, [rdx]
        vec![0x48, 0x8b, 0x02],       // mov rax, [rdx]
        vec![0x89, 0xc8, 0xee],       // mov eax, ecx; out dx, al
        vec![0x89, 0xc8, 0x66, 0xef], // mov eax, ecx; out dx, ax
        vec![0x89, 0xc8, 0xef],       // mov eax, ecx; out dx, eax
        vec![0xec],                   // in al, dx
        vec![0x66, 0xed],             // in ax, dx
        vec![0xed],                   // in eax, dx
        [
            &[0x39, 0x0a, 0x74, 22][..],                              // cmp [rdx], ecx; je to the end
            &[0x66, 0xba, 0xf8, 0x03],                                // mov dx, 0x3f8
            &[0xb0, b'w', 0xee, 0xb0, b'r', 0xee, 0xb0, b'\n', 0xee], // three times mov al, ..; out dx, al
            &[0xb0, 0xfe, 0xe6, 0x64],                                // mov al, 0xfe; out 0x64, al
            &[0xeb, 0xfe, 0x90, 0x90, 0x90],                          // jmp to itself
        ]
        .concat(),
        vec![0x66, 0x39, 0x0a, 0x75, 0xfb], // again: cmp [rdx], cx; jne again
        // mov rax, rcx; shr rax, 32; again: mov [rdx], ecx; dec rax; jnz again
        vec![0x48, 0x89, 0xc8, 0x48, 0xc1, 0xe8, 32, 0x89, 0x0a, 0x48, 0xff, 0xc8, 0x75, 0xf9],
        // mov esi, 0x2000000; rep outsb
        vec![0xbe, 0, 0, 0, 2, 0xf3, 0x6e],
        // mov edi, 0x2000000; rep insb
        vec![0xbf, 0, 0, 0, 2, 0xf3, 0x6c],
        vec![0xeb, 0xfe], // jmp to itself
    ]
}
