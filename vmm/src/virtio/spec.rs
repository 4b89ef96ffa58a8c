// SPDX-License-Identifier: Apache-2.0
//! Numbers of the VIRTIO 1.2 standard that the transport and the rings need, each once.
//!
//! Numbers of one device type stand with that device. Nothing here is computed.

/// Device types (§5).
pub mod device_id {
    /// Block device (§5.2.1).
    pub const BLOCK: u32 = 2;
    /// Socket device (§5.10.1).
    pub const VSOCK: u32 = 19;
}

/// Device status bits (§2.1).
pub mod status {
    /// The guest has found the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest knows how to drive the device.
    pub const DRIVER: u32 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u32 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u32 = 8;
    /// The device cannot go on until it is reset.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The guest has given up on the device.
    pub const FAILED: u32 = 128;
}

/// Feature bits that belong to no device type (§6).
pub mod feature {
    /// Descriptors may refer to a table of descriptors (§2.7.5.3).
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say at which index they want to be woken (§2.7.7, §2.7.10).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device; without it there is no negotiation (§6.1).
    pub const VERSION_1: u64 = 1 << 32;
}

/// The split virtqueue (§2.7).
pub mod ring {
    /// Largest queue size the standard allows (§2.7).
    pub const SIZE_MAX: u16 = 32768;
    /// Bytes of one descriptor: le64 addr, le32 len, le16 flags, le16 next (§2.7.5).
    pub const DESCRIPTOR_BYTES: u16 = 16;
    /// Alignment of the descriptor table (§2.7).
    pub const DESCRIPTORS_ALIGN: u64 = 16;
    /// Alignment of the available ring (§2.7).
    pub const AVAIL_ALIGN: u64 = 2;
    /// Alignment of the used ring (§2.7).
    pub const USED_ALIGN: u64 = 4;
    /// The chain goes on at `next` (§2.7.5).
    pub const DESC_F_NEXT: u16 = 1;
    /// The buffer is for the device to write (§2.7.5).
    pub const DESC_F_WRITE: u16 = 2;
    /// The buffer holds a table of descriptors (§2.7.5.3).
    pub const DESC_F_INDIRECT: u16 = 4;
    /// In avail.flags: the driver wants no interrupts (§2.7.7).
    pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
    /// In used.flags: the device wants no kicks (§2.7.10).
    pub const USED_F_NO_NOTIFY: u16 = 1;
    /// Offset of `idx` in both rings, after le16 flags (§2.7.6, §2.7.8).
    pub const INDEX_OFFSET: u64 = 2;
    /// Offset of `ring` in both rings (§2.7.6, §2.7.8).
    pub const ENTRIES_OFFSET: u64 = 4;
    /// Bytes of an entry of the available ring: le16 head (§2.7.6).
    pub const AVAIL_ENTRY_BYTES: u64 = 2;
    /// Bytes of an entry of the used ring: le32 id, le32 len (§2.7.8).
    pub const USED_ENTRY_BYTES: u64 = 8;
    /// Bytes of `used_event` and `avail_event` behind the entries (§2.7.6, §2.7.8).
    pub const EVENT_BYTES: u64 = 2;
}

/// The MMIO register layout, version 2 (§4.2.2).
pub mod register {
    /// "virt", little endian.
    pub const MAGIC: u32 = 0x7472_6976;
    /// Not legacy.
    pub const VERSION: u32 = 2;
    /// Read: [`MAGIC`].
    pub const MAGIC_VALUE: u64 = 0x000;
    /// Read: [`VERSION`].
    pub const VERSION_VALUE: u64 = 0x004;
    /// Read: the device type.
    pub const DEVICE_ID: u64 = 0x008;
    /// Read: the vendor.
    pub const VENDOR_ID: u64 = 0x00c;
    /// Read: 32 of the offered feature bits.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Write: which 32.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// Write: 32 of the accepted feature bits.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Write: which 32.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Write: the queue that the queue registers mean.
    pub const QUEUE_SEL: u64 = 0x030;
    /// Read: largest size of that queue, 0 when there is none.
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    /// Write: its size.
    pub const QUEUE_NUM: u64 = 0x038;
    /// Read and write: whether it may be used.
    pub const QUEUE_READY: u64 = 0x044;
    /// Write: a queue index, "there are new buffers".
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// Read: why the interrupt was raised.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// Write: causes that have been seen.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Read and write: the device status.
    pub const STATUS: u64 = 0x070;
    /// Write: descriptor table, low half.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// Write: descriptor table, high half.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// Write: driver area (available ring), low half.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// Write: driver area, high half.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// Write: device area (used ring), low half.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// Write: device area, high half.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Read: length of the selected shared memory region, low half; all ones: none.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// Read: the high half.
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    /// Read: its base, low half; all ones: none.
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    /// Read: the high half.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Read: changes whenever the configuration space does.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// First byte of the device's configuration space.
    pub const CONFIG: u64 = 0x100;
}

/// Bits of InterruptStatus and InterruptACK (§4.2.2).
pub mod interrupt {
    /// The device has used a buffer.
    pub const USED_BUFFER: u32 = 1;
    /// The configuration or the device status has changed.
    pub const CONFIG_CHANGE: u32 = 2;
}
