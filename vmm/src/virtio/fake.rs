// SPDX-License-Identifier: Apache-2.0
//! A driver for tests: the guest's side of a queue and of the registers.
//!
//! Written from the standard with its own numbers, never from [`super::spec`], [`super::ring`] or
//! [`super::mmio`], so that a layout mistake there cannot agree with itself here.

use vm_memory::{Bytes, GuestAddress};

use super::{Geometry, Queue};
use crate::machine::bus::MmioDevice;
use crate::memory::GuestRam;

/// First byte behind the first region; the second one starts here, so a buffer may cross it.
pub(crate) const BORDER: u64 = 0x4_0000;
/// First byte of the hole behind the second region.
pub(crate) const HOLE: u64 = 0x8_0000;
/// First byte of the third region.
pub(crate) const HIGH: u64 = 0x10_0000;
/// First byte behind all memory.
pub(crate) const END: u64 = 0x18_0000;

/// Guest memory of two adjacent regions, a hole, and a third region.
pub(crate) fn ram_with_hole() -> GuestRam {
    GuestRam::from_ranges(&[
        (GuestAddress(0), 0x4_0000),
        (GuestAddress(BORDER), 0x4_0000),
        (GuestAddress(HIGH), 0x8_0000),
    ])
    .unwrap()
}

/// Memory of its own with the same content: what a twin of a machine has.
pub(crate) fn copy_of(ram: &GuestRam) -> GuestRam {
    let copy = ram_with_hole();
    for (start, end) in [(0, HOLE), (HIGH, END)] {
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        ram.read_slice(&mut bytes, GuestAddress(start)).unwrap();
        copy.write_slice(&bytes, GuestAddress(start)).unwrap();
    }
    copy
}

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part<'a> {
    /// The device reads these bytes.
    Give(&'a [u8]),
    /// The device may write this many.
    Take(u32),
}

/// Address, length, flags.
type Buffer = (u64, u32, u16);

/// A chain that was offered: its head and where its writable buffers are.
#[derive(Debug, Clone)]
pub(crate) struct Offered {
    pub(crate) head: u16,
    pub(crate) takes: Vec<(u64, u32)>,
}

/// The guest's side of one split queue.
#[derive(Debug, Clone)]
pub(crate) struct FakeDriver {
    pub(crate) ram: GuestRam,
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    /// Where buffers are put, one after another, from `data` to `data_end`, then again.
    data: u64,
    data_end: u64,
    next_data: u64,
    next_desc: u16,
    avail_idx: u16,
    seen_used: u16,
}

impl FakeDriver {
    /// Lays a queue of `size` descriptors out at `base` and takes 64 KiB behind it for buffers.
    pub(crate) fn new(ram: &GuestRam, base: u64, size: u16) -> Self {
        let entries = u64::from(size);
        let avail = base + 16 * entries;
        let used = (avail + 6 + 2 * entries + 3) & !3;
        let data = (used + 6 + 8 * entries + 0xfff) & !0xfff;
        let mut driver = Self {
            ram: ram.clone(),
            size,
            desc: base,
            avail,
            used,
            data,
            data_end: data + 0x1_0000,
            next_data: data,
            next_desc: 0,
            avail_idx: 0,
            seen_used: 0,
        };
        driver.clear();
        driver
    }

    /// Zeroes the rings, as before a device is set up.
    pub(crate) fn clear(&mut self) {
        let zeros = vec![0; usize::try_from(self.data - self.desc).unwrap()];
        self.ram.write_slice(&zeros, GuestAddress(self.desc)).unwrap();
        (self.next_desc, self.avail_idx, self.seen_used) = (0, 0, 0);
    }

    /// As if `index` chains had been offered, served and seen already.
    pub(crate) fn start_at(&mut self, index: u16) {
        self.set_avail_idx(index);
        self.write(self.used + 2, &index.to_le_bytes());
        self.seen_used = index;
    }

    /// The same driver in a twin of its machine, whose memory is `ram`.
    pub(crate) fn moved_to(&self, ram: &GuestRam) -> Self {
        Self { ram: ram.clone(), ..self.clone() }
    }

    /// The place of the queue, as the registers would carry it.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { size: u32::from(self.size), descriptors: self.desc, avail: self.avail, used: self.used }
    }

    /// The device's side of this queue.
    pub(crate) fn queue(&self, features: u64) -> Queue {
        Queue::new(self.ram.clone().into(), self.geometry(), self.size, features).unwrap()
    }

    /// A fresh piece of memory for a buffer.
    pub(crate) fn alloc(&mut self, len: u32) -> u64 {
        if self.next_data + u64::from(len) > self.data_end {
            self.next_data = self.data;
        }
        let addr = self.next_data;
        assert!(addr + u64::from(len) <= self.data_end, "buffer too large for the fake driver");
        self.next_data += u64::from(len.next_multiple_of(16));
        addr
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub(crate) fn read(&self, addr: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    fn read_u16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.read(addr, 2).try_into().unwrap())
    }

    fn read_u32(&self, addr: u64) -> u32 {
        u32::from_le_bytes(self.read(addr, 4).try_into().unwrap())
    }

    /// Writes a descriptor into any table: le64 addr, le32 len, le16 flags, le16 next.
    pub(crate) fn put_descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.write(at, &addr.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// Writes descriptor `index` of the queue's own table.
    pub(crate) fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.put_descriptor(self.desc, index, addr, len, flags, next);
    }

    /// Puts `head` into the available ring and moves its index on.
    pub(crate) fn offer_head(&mut self, head: u16) {
        self.put_head(head);
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Puts `head` into the next slot of the available ring, unseen until its index moves on.
    pub(crate) fn put_head(&self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.write(self.avail + 4 + 2 * slot, &head.to_le_bytes());
    }

    /// avail.idx, as it was last set.
    pub(crate) fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// Sets avail.idx, whatever was offered.
    pub(crate) fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        self.write(self.avail + 2, &index.to_le_bytes());
    }

    fn place(&mut self, parts: &[Part<'_>]) -> (Vec<Buffer>, Vec<(u64, u32)>) {
        let mut buffers = Vec::new();
        let mut takes = Vec::new();
        for part in parts {
            match part {
                Part::Give(bytes) => {
                    let len = u32::try_from(bytes.len()).unwrap();
                    let addr = self.alloc(len);
                    self.write(addr, bytes);
                    buffers.push((addr, len, 0));
                }
                Part::Take(len) => {
                    let addr = self.alloc(*len);
                    self.write(addr, &vec![0xee; *len as usize]);
                    buffers.push((addr, *len, 2));
                    takes.push((addr, *len));
                }
            }
        }
        (buffers, takes)
    }

    /// Offers a chain of one descriptor a part.
    pub(crate) fn offer(&mut self, parts: &[Part<'_>]) -> Offered {
        let (buffers, takes) = self.place(parts);
        let head = self.next_desc;
        for (i, (addr, len, flags)) in buffers.iter().enumerate() {
            let next = (self.next_desc + 1) % self.size;
            let more = u16::from(i + 1 < buffers.len());
            self.descriptor(self.next_desc, *addr, *len, flags | more, next);
            self.next_desc = next;
        }
        self.offer_head(head);
        Offered { head, takes }
    }

    /// Offers the same chain through an indirect table.
    pub(crate) fn offer_indirect(&mut self, parts: &[Part<'_>]) -> Offered {
        let (buffers, takes) = self.place(parts);
        let bytes = 16 * u32::try_from(buffers.len()).unwrap();
        let table = self.alloc(bytes);
        for (i, (addr, len, flags)) in buffers.iter().enumerate() {
            let more = u16::from(i + 1 < buffers.len());
            let i = u16::try_from(i).unwrap();
            self.put_descriptor(table, i, *addr, *len, flags | more, i + 1);
        }
        let head = self.next_desc;
        self.descriptor(head, table, bytes, 4, 0);
        self.next_desc = (head + 1) % self.size;
        self.offer_head(head);
        Offered { head, takes }
    }

    /// The bytes of a writable buffer.
    pub(crate) fn taken(&self, offered: &Offered, index: usize) -> Vec<u8> {
        let (addr, len) = offered.takes[index];
        self.read(addr, len)
    }

    /// Used entries (id, length) that appeared since the last call.
    pub(crate) fn used(&mut self) -> Vec<(u32, u32)> {
        let index = self.read_u16(self.used + 2);
        let mut entries = Vec::new();
        while self.seen_used != index {
            let at = self.used + 4 + 8 * u64::from(self.seen_used % self.size);
            entries.push((self.read_u32(at), self.read_u32(at + 4)));
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        entries
    }

    /// used.flags.
    pub(crate) fn used_flags(&self) -> u16 {
        self.read_u16(self.used)
    }

    /// avail_event, behind the used entries.
    pub(crate) fn avail_event(&self) -> u16 {
        self.read_u16(self.used + 4 + 8 * u64::from(self.size))
    }

    /// used_event, behind the available entries.
    pub(crate) fn set_used_event(&self, index: u16) {
        self.write(self.avail + 4 + 2 * u64::from(self.size), &index.to_le_bytes());
    }

    /// avail.flags.
    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.write(self.avail, &flags.to_le_bytes());
    }
}

/// Reads a 32-bit register.
pub(crate) fn read32(device: &mut dyn MmioDevice, offset: u64) -> u32 {
    let mut word = [0xaa; 4];
    device.read(offset, &mut word);
    u32::from_le_bytes(word)
}

/// Writes a 32-bit register.
pub(crate) fn write32(device: &mut dyn MmioDevice, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}

/// The 64 offered feature bits.
pub(crate) fn offered_features(device: &mut dyn MmioDevice) -> u64 {
    write32(device, 0x14, 0);
    let low = u64::from(read32(device, 0x10));
    write32(device, 0x14, 1);
    low | u64::from(read32(device, 0x10)) << 32
}

/// §3.1.1 up to FEATURES_OK: accepts `features` and returns the status read back.
pub(crate) fn negotiate(device: &mut dyn MmioDevice, features: u64) -> u32 {
    write32(device, 0x70, 0);
    write32(device, 0x70, 1);
    write32(device, 0x70, 3);
    for (half, bits) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
        write32(device, 0x24, half);
        write32(device, 0x20, u32::try_from(bits).unwrap());
    }
    write32(device, 0x70, 0xb);
    read32(device, 0x70)
}

/// Tells the device where queue `index` is, without making it ready.
pub(crate) fn place_queue(device: &mut dyn MmioDevice, index: u32, driver: &FakeDriver) {
    write32(device, 0x30, index);
    write32(device, 0x38, u32::from(driver.size));
    for (offset, address) in [(0x80, driver.desc), (0x90, driver.avail), (0xa0, driver.used)] {
        write32(device, offset, u32::try_from(address & 0xffff_ffff).unwrap());
        write32(device, offset + 4, u32::try_from(address >> 32).unwrap());
    }
}

/// The whole of §3.1.1: returns the status after DRIVER_OK.
pub(crate) fn bring_up(device: &mut dyn MmioDevice, features: u64, queues: &[&FakeDriver]) -> u32 {
    negotiate(device, features);
    for (index, driver) in (0..).zip(queues) {
        place_queue(device, index, driver);
        write32(device, 0x44, 1);
    }
    write32(device, 0x70, 0xf);
    read32(device, 0x70)
}
