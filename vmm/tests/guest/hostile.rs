// SPDX-License-Identifier: Apache-2.0
//! A hostile guest on a real KVM: what [`crate::script`] makes it do to every register, port and ring of a machine with two
//! disks and a vsock device. The monitor must live and stay small, the disk that is used as it should be must go on, and
//! after a reset the others must work.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::dice::Dice;
use crate::monitor::{Monitor, kvm_or_skip};
use crate::script::{FAR, Script};

/// Far more than any of these guests takes, on an emulated host too.
const PATIENCE: Duration = Duration::from_secs(240);
/// Memory of these guests.
const MEM_MIB: u64 = 64;
/// What a monitor may use besides its guest's memory, whatever the guest does.
const MONITOR_KIB_MAX: u64 = 8 << 10;
/// What a hostile guest may cost beyond one that does nothing, with the memory of its own that it has touched.
const HOSTILE_KIB_MAX: u64 = 32 << 10;

/// Windows of the devices in their order: the disk that is used well, the disk and the vsock device that are not.
const GOOD: u64 = 0xd000_0000;
const BAD: u64 = 0xd000_1000;
const VSOCK: u64 = 0xd000_2000;
/// What is wrong with a guest is done above: buffers that begin there reach nothing below.
const PLAY: u64 = 0x200_0000;

impl Dice {
    fn word(&mut self) -> u32 {
        u32::try_from(self.roll() >> 32).unwrap()
    }
}

/// A queue of four descriptors: table, available ring at 0x100, used ring at 0x200, a request's parts from 0x1000.
struct Queue {
    window: u64,
    at: u64,
    done: u16,
}

impl Queue {
    /// Reset, ACKNOWLEDGE, DRIVER, VERSION_1, FEATURES_OK; one queue; DRIVER_OK.
    fn bring_up(&mut self, script: &mut Script) {
        begin(script, self.window);
        place(script, self.window, 0, 4, self.at);
        script.store(4, self.window + 0x70, 0xf);
        // Header, data, status.
        for (index, (at, len)) in (0_u64..).zip([(0x1000, 16), (0x2000, 512), (0x3000, 1)]) {
            script.store(8, self.at + 16 * index, self.at + at).store(4, self.at + 16 * index + 8, len);
        }
        self.done = 0;
    }

    /// Writes sector `sector`, or reads it, and waits.
    fn request(&mut self, script: &mut Script, kind: u32, sector: u64) {
        let data_flags = if kind == 1 { 1 } else { 3 };
        for (index, flags) in [1, data_flags, 2].into_iter().enumerate() {
            script.store(4, self.at + 16 * index as u64 + 12, flags | (index as u64 + 1) << 16);
        }
        script.store(8, self.at + 0x1000, kind.into()).store(8, self.at + 0x1008, sector);
        script.store(4, self.at + 0x3000, 0xff);
        script.store(2, self.at + 0x104 + 2 * u64::from(self.done % 4), 0);
        self.done = self.done.wrapping_add(1);
        script.store(2, self.at + 0x102, self.done.into()).store(4, self.window + 0x50, 0);
        script.wait(self.at + 0x202, self.done).check(self.at + 0x3000, 0);
    }

    /// Writes something to `sector`, forgets it, and finds it again.
    fn round(&mut self, script: &mut Script, sector: u64, word: u32) {
        script.store(4, self.at + 0x2000, word.into()).store(4, self.at + 0x21fc, word.into());
        self.request(script, 1, sector);
        script.store(4, self.at + 0x2000, 0).store(4, self.at + 0x21fc, 0);
        self.request(script, 0, sector);
        script.check(self.at + 0x2000, word).check(self.at + 0x21fc, word);
    }
}

/// To FEATURES_OK with VERSION_1 alone.
fn begin(script: &mut Script, window: u64) {
    for (offset, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 0), (0x20, 0), (0x24, 1), (0x20, 1), (0x70, 0xb)] {
        script.store(4, window + offset, value);
    }
}

/// Makes queue `index` ready with its parts at `at`, zeroed.
fn place(script: &mut Script, window: u64, index: u64, size: u64, at: u64) {
    for more in (0..0x400).step_by(8) {
        script.store(8, at + more, 0);
    }
    let parts = [(0x80, at), (0x84, 0), (0x90, at + 0x100), (0x94, 0), (0xa0, at + 0x200), (0xa4, 0)];
    for (offset, value) in [(0x30, index), (0x38, size)].into_iter().chain(parts).chain([(0x44, 1)]) {
        script.store(4, window + offset, value);
    }
}

/// A machine with the three devices, and its disks' files.
fn machine(dir: &Path) -> Value {
    let disk = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        json!({ "path": path, "mode": { "overlay_memory": { "cap_mib": 1 } } })
    };
    let vsock = json!({ "guest_cid": 3, "uds": dir.join("v.sock") });
    json!({ "console": "on", "mem_mib": MEM_MIB, "disks": [disk("good"), disk("bad")], "vsock": vsock })
}

/// Runs `script`, at whose end every device must come up and work, and holds the monitor to its bounds.
fn run(name: &str, script: &mut Script) {
    let quiet = peak_kib("nothing", &mut Script::new());
    let peak = peak_kib(name, script);
    assert!(peak < MEM_MIB * 1024 + MONITOR_KIB_MAX, "{name}: the monitor grew to {peak} KiB");
    assert!(peak < quiet + HOSTILE_KIB_MAX, "{name}: the monitor grew to {peak} KiB, and from nothing to {quiet}");
}

/// The most memory that a monitor had which survived `script`.
fn peak_kib(name: &str, script: &mut Script) -> u64 {
    let dir = tempfile::TempDir::new().unwrap();
    let (mut good, mut bad) = (good(), Queue { window: BAD, at: PLAY + 0x10_0000, done: 0 });
    for (queue, word) in [(&mut good, 0x600d), (&mut bad, 0xbad)] {
        queue.bring_up(script);
        queue.round(script, 3, word);
    }
    vsock_works(script);
    script.print("alive\n");
    let mut monitor = Monitor::start(&script.spin(), machine(dir.path()));
    monitor.wait_console("alive", PATIENCE);
    let threads = monitor.threads();
    let mut names: Vec<_> = threads.iter().map(|thread| thread.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["block 0", "block 1", "midge-vmm", "vcpu 0"], "{name}: nobody has died or been born");
    let peak = threads[0].status("VmHWM").trim_end_matches(" kB").parse().unwrap();
    let descriptors = monitor.open_files().len();
    assert!(descriptors < 64, "{name}: {descriptors} descriptors are open");
    monitor.close_lifeline();
    let end = monitor.wait(PATIENCE);
    assert_eq!((end.status.code(), &end.exit["reason"]), (Some(0), &json!("stopped")), "{name}: {:?}", end.exit);
    println!("{name}: {} steps, exits {}, peak {peak} KiB", script.len(), end.exit["exits"]);
    peak
}

/// The disk that is used as it should be; its rings lie below what the others can reach.
fn good() -> Queue {
    Queue { window: GOOD, at: 0x194_0000, done: 0 }
}

/// Sends a packet of no connection and waits for its reset.
fn vsock_works(script: &mut Script) {
    begin(script, VSOCK);
    let [rx, tx, event] = [PLAY + 0x20_0000, PLAY + 0x21_0000, PLAY + 0x22_0000];
    for (index, at) in (0..).zip([rx, tx, event]) {
        place(script, VSOCK, index, 4, at);
    }
    script.store(4, VSOCK + 0x70, 0xf);
    // One buffer to fill; a header from CID 3 to CID 2, ports 7 and 8, no length, stream, RW.
    script.store(8, rx, rx + 0x1000).store(4, rx + 8, 100).store(4, rx + 12, 2).store(2, rx + 0x102, 1);
    for (at, word) in (0_u64..).step_by(8).zip([3, 2, 8 << 32 | 7, 5 << 48 | 1 << 32, 0, 0]) {
        script.store(8, tx + 0x1000 + at, word);
    }
    script.store(8, tx, tx + 0x1000).store(4, tx + 8, 44).store(4, tx + 12, 0).store(2, tx + 0x102, 1);
    script.store(4, VSOCK + 0x50, 0).store(4, VSOCK + 0x50, 1);
    script.wait(tx + 0x202, 1).wait(rx + 0x202, 1).check(rx + 0x101c, 3 << 16 | 1);
}

#[test]
fn a_client_that_says_nothing_is_sent_away_though_nothing_else_happens() {
    kvm_or_skip!();
    let dir = tempfile::TempDir::new().unwrap();
    let mut script = Script::new();
    vsock_works(&mut script);
    script.print("alive\n");
    let mut monitor = Monitor::start(&script.spin(), machine(dir.path()));
    monitor.wait_console("alive", PATIENCE);
    let client = UnixStream::connect(dir.path().join("v.sock")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!((&client).read(&mut [0]).unwrap(), 0, "the end");
    monitor.close_lifeline();
    assert_eq!(monitor.wait(PATIENCE).status.code(), Some(0));
}

/// Ports that may be written with anything: not the reset line, not the console, which would say the same as the test.
fn may_be_written(port: u16) -> bool {
    !(0x61..=0x64).contains(&port) && !(0x3f5..=0x3ff).contains(&port)
}

#[test]
fn a_guest_that_touches_every_register_in_every_width_harms_nobody() {
    kvm_or_skip!();
    let mut script = Script::new();
    let mut good = good();
    good.bring_up(&mut script);
    for (round, (window, stage)) in [BAD, VSOCK].into_iter().flat_map(|window| [(window, 0), (window, 1)]).enumerate() {
        if stage == 1 {
            begin(&mut script, window);
        } else {
            script.store(4, window + 0x70, 0);
        }
        for width in [1_u32, 2, 4, 8] {
            // All control registers and some of the configuration space in full, the rest of the window in steps.
            let offsets = (0..0x140).chain((0x140..0xff8).step_by(61)).chain([0xff8, 0xffc, 0xffe, 0xfff, 0x1000]);
            for offset in offsets {
                script.load(width, window + offset);
                for value in [u64::MAX, 1] {
                    script.store(width, window + offset, value);
                }
            }
        }
        good.round(&mut script, 8 * round as u64, 0x1000 + u32::try_from(round).unwrap());
    }
    run("registers", &mut script);
}

#[test]
fn a_guest_that_touches_every_port_and_every_hole_harms_nobody() {
    kvm_or_skip!();
    let mut script = Script::new();
    let mut good = good();
    good.bring_up(&mut script);
    for port in (0..=u16::MAX).step_by(7).chain(0..0x500) {
        for width in [1, 2, 4] {
            script.input(width, port);
            if may_be_written(port) {
                script.output(width, port, 0xfefe_fefe);
            }
        }
        if port % 0x1000 == 0 {
            good.round(&mut script, 1, port.into());
        }
    }
    for port in [0, 0x70, 0x80, 0x3fd, 0xcf8, 0xffff] {
        script.input_many(port, 9000);
        if may_be_written(port) {
            script.output_many(port, 9000);
        }
    }
    // Between memory and devices, between devices, behind the last of them, below the interrupt controllers, above 4 GiB.
    for at in [
        0xc000_0000,
        0xcfff_fff8,
        0xd000_2ffc,
        0xd000_2fff,
        0xd000_3000,
        0xe000_0000,
        0xfebf_fff8,
        0xfff0_0000,
        FAR,
        FAR + 0x1f_fff8,
    ] {
        for width in [1, 2, 4, 8] {
            script.load(width, at).store(width, at, 0x1234_5678_9abc_def0).store_many(50, at, 0);
        }
    }
    good.round(&mut script, 2, 0x77);
    run("ports and holes", &mut script);
}

/// Fills the three parts of a queue of `size` with what looks like work; buffers begin in [`PLAY`], or nowhere. True when the
/// index that is offered cannot be.
fn lie(script: &mut Script, dice: &mut Dice, at: u64, size: u64) -> bool {
    let nowhere = [0x400_0000, 0xc000_0000, GOOD, 1 << 63, u64::MAX];
    let somewhere = [PLAY + 0x80_0000, PLAY + 0x90_0000, PLAY + 0x1ff_f000, 0x3ff_ffff];
    let places = [&somewhere[..], &nowhere].concat();
    let lengths = [0, 1, 16, 44, 512, 4096, 0x1_0000, 1 << 24, 1 << 31, 0xffff_ffff];
    for index in 0..size {
        let flags = if dice.one_in(8) { dice.roll() & 0xffff } else { dice.pick(&[0, 1, 1, 2, 3, 3, 4, 6]) };
        let next = if dice.one_in(8) { dice.roll() & 0xffff } else { dice.roll() % size };
        script.store(8, at + 16 * index, dice.pick(&places)).store(4, at + 16 * index + 8, dice.pick(&lengths));
        script.store(4, at + 16 * index + 12, flags | next << 16);
        let head = if dice.one_in(8) { dice.roll() & 0xffff } else { dice.roll() % size };
        script.store(2, at + 0x104 + 2 * index, head);
    }
    // Headers that a disk or a vsock device could take for its own.
    for place in &somewhere[..2] {
        let (kind, sector) = (dice.pick(&[0, 1, 4, 8, 11, 13, 3, 99]), dice.pick(&[0, 1, 2, 2048, 1 << 63, u64::MAX]));
        script.store(8, *place, kind).store(8, place + 8, sector).store(8, place + 16, dice.roll());
        script.store(8, place + 24, dice.pick(&[0, 1 << 32 | 5 << 48, 1 << 32 | 1 << 48]));
    }
    let offered = dice.pick(&[1, 2, size, size + 1, 0x8000, 0xffff]);
    script.store(2, at + 0x100, dice.pick(&[0, 1, 0xffff])).store(2, at + 0x102, offered);
    offered > size
}

/// Brings a device up over rings that lie, kicks it, and leaves it in some state.
fn attack(script: &mut Script, dice: &mut Dice) {
    let (window, queues) = dice.pick(&[(BAD, 1), (VSOCK, 3)]);
    begin(script, window);
    if dice.one_in(2) {
        // Some features that both kinds of device have.
        script.store(4, window + 0x70, 0).store(4, window + 0x70, 1).store(4, window + 0x70, 3);
        script.store(4, window + 0x24, 0).store(4, window + 0x20, 3 << 28);
        script.store(4, window + 0x24, 1).store(4, window + 0x20, 1).store(4, window + 0x70, 0xb);
    }
    let size = dice.pick(&[1, 2, 4, 8, 8, 8]);
    let areas = [PLAY, PLAY + 0x1_0000, PLAY + 0x2_0000];
    for (index, area) in (0..queues).zip(areas) {
        place(script, window, index, size, area);
    }
    let is_displaced = dice.one_in(8);
    if is_displaced {
        // At a border, in a device, beyond memory.
        let places = [0, 0x3ff_fff0, 0x400_0000, 0xcfff_fff0, 0xd000_0000, 0xffff_fff0];
        script.store(4, window + 0x44, 0).store(4, window + dice.pick(&[0x80, 0x90, 0xa0]), dice.pick(&places));
        script.store(4, window + dice.pick(&[0x84, 0x94, 0xa4]), dice.pick(&[0, 0, 1, 0xffff_ffff]));
        script.store(4, window + 0x44, 1);
    }
    script.store(4, window + 0x70, 0xf);
    let mut must_latch = false;
    for (index, area) in (0..queues).zip(areas) {
        let is_impossible = lie(script, dice, area, size);
        // The queue of a disk, and the one that the guest sends packets by, are looked at when they are kicked.
        must_latch |= is_impossible && (queues == 1 || index == 1);
        script.store_many(dice.word() % 20 + 1, window + 0x50, u32::try_from(index).unwrap());
    }
    if must_latch && !is_displaced && dice.one_in(2) {
        // DEVICE_NEEDS_RESET, and the guest may wait for it.
        script.wait(window + 0x70, 0x4f);
    }
    match dice.roll() % 4 {
        // Kicks, a reset amid them, and kicks of what is no more.
        0 => {
            script.store(4, window + 0x70, 0).store_many(10, window + 0x50, 0);
        }
        // The driver gives up, and kicks.
        1 => {
            script.store(4, window + 0x70, 0x80).store(4, window + 0x50, 0);
        }
        // The index jumps under a device that looks.
        2 => (0..10).for_each(|_| jump(script, dice, window)),
        _ => {}
    }
}

fn jump(script: &mut Script, dice: &mut Dice, window: u64) {
    script.store(2, PLAY + 0x102, dice.roll() & 0xffff).store(4, window + 0x50, 0);
}

#[test]
fn a_guest_whose_rings_lie_and_that_kicks_while_it_resets_harms_nobody() {
    kvm_or_skip!();
    for seed in 0..3 {
        let mut dice = Dice(seed);
        let mut script = Script::new();
        let mut good = good();
        good.bring_up(&mut script);
        for round in 0..150_u32 {
            attack(&mut script, &mut dice);
            if round.is_multiple_of(10) {
                good.round(&mut script, round.into(), 0x5eed_0000 + round);
            }
        }
        run(&format!("rings, seed {seed}"), &mut script);
    }
}

/// A size or a place that changes under a running queue is how others were broken into.
#[test]
fn a_guest_cannot_move_a_queue_that_is_served() {
    kvm_or_skip!();
    let mut script = Script::new();
    let mut bad = Queue { window: BAD, at: PLAY, done: 0 };
    bad.bring_up(&mut script);
    for (round, value) in [0, 1, 0x8000, 0xffff_ffff].into_iter().enumerate() {
        script.store(4, BAD + 0x44, 0).check(BAD + 0x44, 1);
        for offset in [0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
            script.store(4, BAD + offset, value);
        }
        script.store(4, BAD + 0x44, 1);
        bad.round(&mut script, round as u64, 0x4000 + u32::try_from(round).unwrap());
    }
    run("geometry", &mut script);
}
