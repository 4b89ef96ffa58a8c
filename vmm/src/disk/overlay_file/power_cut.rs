// SPDX-License-Identifier: Apache-2.0
//! Power cuts: the overlay over a file that keeps a log of what was done to it, and that can be cut after every entry.
//!
//! What a disk may have kept then: everything before the last sync; of what came after it any sectors, in any order, torn at
//! 512 or 4,096 bytes; and the length before or after it changed. Every sector that is written carries its place and the number
//! of its request, so that a byte of another sector, or of another time, is recognised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::super::fake::FakeBase;
use super::*;
use crate::dice::Dice;

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

/// What was done to the file, in order.
#[derive(Debug, Clone)]
enum Event {
    Write {
        at: u64,
        bytes: Vec<u8>,
    },
    /// Reads as zeros, or as before.
    Punch {
        at: u64,
        len: u64,
    },
    Length(u64),
    Sync,
}

impl Event {
    /// Does to `sector`, number `index`, what this does to the file.
    fn apply(&self, index: u64, sector: &mut Sector) {
        let (at, len) = match self {
            Self::Write { at, bytes } => (*at, bytes.len() as u64),
            Self::Punch { at, len } => (*at, *len),
            Self::Length(_) | Self::Sync => return,
        };
        let start = index * SECTOR as u64;
        let (first, end) = (at.max(start), (at + len).min(start + SECTOR as u64));
        if first < end {
            let part = &mut sector[size(first - start)..size(end - start)];
            match self {
                Self::Write { bytes, .. } => part.copy_from_slice(&bytes[size(first - at)..size(end - at)]),
                _ => part.fill(0),
            }
        }
    }
}

fn size(len: u64) -> usize {
    usize::try_from(len).unwrap()
}

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        size(self.roll() % end as u64)
    }

    pub(super) fn coin(&mut self) -> bool {
        self.roll() & 1 == 1
    }
}

/// A sparse file and its log.
#[derive(Default)]
pub(super) struct Platter {
    /// As it was found, before the log.
    found: BTreeMap<u64, Sector>,
    found_len: u64,
    current: BTreeMap<u64, Sector>,
    len: u64,
    log: Vec<Event>,
    /// Whether its file system can make holes.
    without_holes: bool,
    /// Operations that still work; then everything fails.
    pub(super) operations_left: Option<u32>,
    /// No space is left.
    pub(super) full: bool,
}

impl Platter {
    fn operate(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.operations_left {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("crashed"))?;
        }
        Ok(())
    }

    fn log(&mut self, event: Event) {
        match &event {
            Event::Write { at, bytes } => {
                for index in at / SECTOR as u64..(at + bytes.len() as u64).div_ceil(SECTOR as u64) {
                    event.apply(index, self.current.entry(index).or_insert([0; SECTOR]));
                }
                self.len = self.len.max(at + bytes.len() as u64);
            }
            Event::Punch { .. } => self.current.iter_mut().for_each(|(index, sector)| event.apply(*index, sector)),
            Event::Length(len) => self.len = *len,
            Event::Sync => {}
        }
        self.log.push(event);
    }

    /// What a disk may have kept of the first `events` of the log, sectors torn in groups of `group`.
    fn kept(&self, events: usize, group: u64, dice: &mut Dice) -> (BTreeMap<u64, Sector>, u64) {
        let log = &self.log[..events];
        let synced = log.iter().rposition(|event| matches!(event, Event::Sync)).map_or(0, |sync| sync + 1);
        let mut len = self.found_len;
        let mut lengths = Vec::new();
        for (i, event) in log.iter().enumerate() {
            len = match event {
                Event::Write { at, bytes } => len.max(at + bytes.len() as u64),
                Event::Length(len) => *len,
                _ => len,
            };
            if i < synced {
                lengths.clear();
            }
            lengths.push(len);
        }
        if synced == 0 {
            lengths.push(self.found_len);
        }
        let len = lengths[dice.below(lengths.len())];
        // In which order the disk took what was not synced, and what of it, for each group of sectors.
        let mut orders: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let indices = self.found.keys().chain(self.current.keys()).collect::<BTreeSet<_>>();
        let mut sectors = BTreeMap::new();
        for index in indices.into_iter().filter(|index| *index * (SECTOR as u64) < len) {
            let order = orders.entry(index / group).or_insert_with(|| {
                let mut order: Vec<usize> = (synced..events).filter(|_| dice.coin()).collect();
                (1..order.len()).for_each(|i| order.swap(i, dice.below(i + 1)));
                order
            });
            let mut sector = self.found.get(index).copied().unwrap_or([0; SECTOR]);
            log[..synced].iter().for_each(|event| event.apply(*index, &mut sector));
            order.iter().for_each(|event| log[*event].apply(*index, &mut sector));
            sectors.insert(*index, sector);
        }
        (sectors, len)
    }
}

/// A handle to a [`Platter`].
#[derive(Clone, Default)]
pub(super) struct CutFile(pub(super) Arc<Mutex<Platter>>);

impl CutFile {
    /// Entries of the log: one less than the places to cut at.
    fn events(&self) -> usize {
        self.0.lock().unwrap().log.len()
    }

    /// The file as it may be found after a cut behind the first `events`.
    fn cut_after(&self, events: usize, dice: &mut Dice) -> Self {
        let group = if dice.coin() { 1 } else { 8 };
        let platter = self.0.lock().unwrap();
        let (found, found_len) = platter.kept(events, group, dice);
        let without_holes = platter.without_holes;
        let current = found.clone();
        Self(Arc::new(Mutex::new(Platter {
            current,
            len: found_len,
            found,
            found_len,
            without_holes,
            ..Platter::default()
        })))
    }

    /// The same after a cut now.
    pub(super) fn cut(&self, dice: &mut Dice) -> Self {
        self.cut_after(self.events(), dice)
    }

    pub(super) fn fail_after(&self, operations: Option<u32>) {
        self.0.lock().unwrap().operations_left = operations;
    }
}

impl Backing for CutFile {
    fn read_at(&self, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut platter = self.0.lock().unwrap();
        platter.operate()?;
        // Short transfers are legal, so a list is read one buffer at a time.
        let len = into[0].len().min(size(platter.len.saturating_sub(offset)));
        let mut bytes = vec![0; len];
        for index in offset / SECTOR as u64..(offset + len as u64).div_ceil(SECTOR as u64) {
            let start = index * SECTOR as u64;
            let (first, end) = (offset.max(start), (offset + len as u64).min(start + SECTOR as u64));
            if let Some(sector) = platter.current.get(&index) {
                bytes[size(first - offset)..size(end - offset)]
                    .copy_from_slice(&sector[size(first - start)..size(end - start)]);
            }
        }
        into[0].copy_from(&bytes);
        Ok(len)
    }

    fn write_at(&mut self, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut platter = self.0.lock().unwrap();
        platter.operate()?;
        if platter.full {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let mut bytes = vec![0; from[0].len()];
        from[0].copy_to(&mut bytes);
        platter.log(Event::Write { at: offset, bytes });
        Ok(from[0].len())
    }

    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.operate()?;
        if !platter.without_holes {
            platter.log(Event::Punch { at: offset, len });
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.operate()?;
        platter.log(Event::Sync);
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len)
    }

    fn grow(&mut self, len_bytes: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.operate()?;
        platter.log(Event::Length(len_bytes));
        Ok(())
    }
}

/// What a sector holds: nothing, the base's content, or that of one request (from 2 on).
type Version = u64;
const ZEROS: Version = 0;
const BASE: Version = 1;

fn stamp(sector: u64, version: Version) -> Sector {
    let mut bytes = [0; SECTOR];
    if version != ZEROS {
        for part in bytes.chunks_mut(16) {
            part[..8].copy_from_slice(&(sector + 1).to_le_bytes());
            part[8..].copy_from_slice(&version.to_le_bytes());
        }
    }
    bytes
}

/// Sectors of the disk: a map of two blocks, and a last page of three sectors.
const SECTORS: u64 = 8 * (16384 + 3000) + 3;
const SECTORS_PER_PAGE: u64 = 8;

/// Places worth looking at: where the disk begins and ends, where a sector of the map ends, and where a block of it does.
const HOT: [std::ops::Range<u64>; 4] = [0..48, 8 * 2045..8 * 2051, 8 * 16381..8 * 16387, SECTORS - 8 * 3 - 3..SECTORS];

/// Every sector of it carries its place.
fn stamped_base() -> Box<dyn Disk> {
    let fill = |offset: u64, into: &mut [u8]| {
        assert!(offset.is_multiple_of(SECTOR as u64), "the tests ask for sectors");
        let sectors = offset / SECTOR as u64..;
        for (into, sector) in into.chunks_mut(SECTOR).zip(sectors) {
            into.copy_from_slice(&stamp(sector, BASE)[..into.len()]);
        }
    };
    Box::new(FakeBase { len_bytes: SECTORS * SECTOR as u64, fill })
}

fn open(file: &CutFile) -> Result<Overlay<FileStore<CutFile>>, OpenError> {
    Overlay::in_backing(stamped_base(), file.clone(), u64::MAX)
}

/// One request on sectors.
#[derive(Debug, Clone)]
enum Step {
    Read(u64, u64),
    Write(u64, u64),
    Discard(u64, u64),
    Zero { first: u64, end: u64, may_free: bool },
    Flush,
}

/// Requests near the hot places; now and then one from the first of them to the last.
fn any_step() -> impl Strategy<Value = Step> {
    let span = (0..HOT.len(), 0_u64..48, 1_u64..30).prop_map(|(place, start, len)| {
        let place = &HOT[place];
        let first = place.start + start % (place.end - place.start);
        (first, (first + len).min(place.end))
    });
    let wide = Just((3, SECTORS - 1));
    prop_oneof![
        1 => span.clone().prop_map(|(first, end)| Step::Read(first, end)),
        6 => span.clone().prop_map(|(first, end)| Step::Write(first, end)),
        3 => span.clone().prop_map(|(first, end)| Step::Discard(first, end)),
        1 => wide.prop_map(|(first, end)| Step::Discard(first, end)),
        2 => (span, any::<bool>()).prop_map(|((first, end), may_free)| Step::Zero { first, end, may_free }),
        3 => Just(Step::Flush),
    ]
}

/// What each hot sector may hold after a cut: what it held when the last flush ended, or since.
#[derive(Clone)]
struct Expected(BTreeMap<u64, Vec<Version>>);

impl Expected {
    fn new() -> Self {
        Self(HOT.into_iter().flatten().map(|sector| (sector, vec![BASE])).collect())
    }

    fn now(&self, sector: u64) -> Version {
        *self.0[&sector].last().unwrap()
    }

    /// Does `step`, the request of this number.
    fn apply(&mut self, step: &Step, number: Version) {
        let (range, version) = match *step {
            Step::Write(first, end) => (first..end, number),
            Step::Zero { first, end, .. } => (first..end, ZEROS),
            // Whole pages only; the last one of the disk is short.
            Step::Discard(first, end) => {
                let whole_end = if end == SECTORS { end } else { end / SECTORS_PER_PAGE * SECTORS_PER_PAGE };
                (first.next_multiple_of(SECTORS_PER_PAGE)..whole_end, ZEROS)
            }
            Step::Read(..) => return,
            Step::Flush => return self.0.values_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1))),
        };
        self.0.iter_mut().filter(|(sector, _)| range.contains(sector)).for_each(|(_, versions)| versions.push(version));
    }

    /// Reads every hot sector and takes what is found as what is there from now on.
    fn settle(&mut self, disk: &mut dyn Disk) -> Result<(), TestCaseError> {
        for place in HOT {
            let found = read(disk, place.start, place.end);
            for (sector, bytes) in place.zip(found.chunks(SECTOR)) {
                let versions = self.0.get_mut(&sector).unwrap();
                let held = versions.iter().copied().find(|version| stamp(sector, *version) == bytes);
                let Some(held) = held else {
                    let (place, version) = (&bytes[..8], &bytes[8..16]);
                    let text = format!("sector {sector} may hold {versions:?}, and holds {place:?} {version:?} ..");
                    return Err(TestCaseError::fail(text));
                };
                *versions = vec![held];
            }
        }
        Ok(())
    }
}

fn read(disk: &mut dyn Disk, first: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0xcc; size(end - first) * SECTOR];
    disk.read_at(first * SECTOR as u64, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    bytes
}

/// Does `step` for real.
fn run(disk: &mut dyn Disk, step: &Step, number: Version, expected: &Expected) -> Result<(), TestCaseError> {
    let at = |sector: u64| sector * SECTOR as u64;
    match *step {
        Step::Read(first, end) => {
            let wanted: Vec<u8> = (first..end).flat_map(|sector| stamp(sector, expected.now(sector))).collect();
            prop_assert!(read(disk, first, end) == wanted, "read other sectors than were written");
        }
        Step::Write(first, end) => {
            let mut bytes: Vec<u8> = (first..end).flat_map(|sector| stamp(sector, number)).collect();
            let slices: Vec<_> = bytes.chunks_mut(3 * SECTOR).map(VolatileSlice::from).collect();
            disk.write_at(at(first), &slices).unwrap();
        }
        Step::Discard(first, end) => disk.discard(at(first), at(end - first)).unwrap(),
        Step::Zero { first, end, may_free } => disk.write_zeroes(at(first), at(end - first), may_free).unwrap(),
        Step::Flush => disk.flush().unwrap(),
    }
    Ok(())
}

/// Runs `steps` and returns, for each place to cut at, what is expected then.
fn run_all(
    disk: &mut dyn Disk,
    file: &CutFile,
    steps: &[Step],
    mut expected: Expected,
    first_number: Version,
) -> Result<Vec<Expected>, TestCaseError> {
    // Before the disk is open nothing has changed.
    let mut at_cut = vec![expected.clone(); file.events() + 1];
    for (step, number) in steps.iter().zip(first_number..) {
        let before = expected.clone();
        expected.apply(step, number);
        run(disk, step, number, &before)?;
        // A flush has promised nothing before it returns; anything else may be there as soon as it began.
        let meanwhile = if matches!(step, Step::Flush) { &before } else { &expected };
        at_cut.resize(file.events(), meanwhile.clone());
        at_cut.push(expected.clone());
    }
    Ok(at_cut)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// After a cut anywhere, and another cut anywhere in what the next monitor does.
    #[test]
    fn whatever_a_cut_leaves_is_the_last_flush_or_later_requests(
        steps in prop::collection::vec(any_step(), 1..40),
        later in prop::collection::vec(any_step(), 1..12),
        without_holes in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut dice = Dice(seed);
        let file = CutFile::default();
        file.0.lock().unwrap().without_holes = without_holes;
        let mut disk = open(&file).unwrap();
        let at_cut = run_all(&mut disk, &file, &steps, Expected::new(), 2)?;
        prop_assert_eq!(at_cut.len(), file.events() + 1);
        for (events, expected) in at_cut.iter().enumerate() {
            let mut expected = expected.clone();
            let found = file.cut_after(events, &mut dice);
            let mut disk = open(&found).map_err(|error| TestCaseError::fail(format!("cut after {events}: {error}")))?;
            expected.settle(&mut disk)?;
            // What was found once is found again: another cut takes nothing from it.
            let events = run_all(&mut disk, &found, &later, expected, 1000)?;
            let cut = dice.below(events.len());
            let mut expected = events[cut].clone();
            let found = found.cut_after(cut, &mut dice);
            let mut disk = open(&found).map_err(|error| TestCaseError::fail(format!("second cut: {error}")))?;
            expected.settle(&mut disk)?;
        }
    }
}

#[test]
fn an_overlay_that_was_cut_while_it_was_made_is_made_again() {
    let file = CutFile::default();
    drop(open(&file).unwrap());
    for events in 0..=file.events() {
        for seed in 0..50 {
            let found = file.cut_after(events, &mut Dice(seed));
            let mut disk = open(&found).unwrap_or_else(|error| panic!("cut after {events}, seed {seed}: {error}"));
            Expected::new().settle(&mut disk).unwrap();
        }
    }
}
