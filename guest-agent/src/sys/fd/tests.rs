// SPDX-License-Identifier: Apache-2.0
//! Waiting and waking with real descriptors, and what paths tell.

use std::io::Write as _;
use std::time::Instant;

use super::*;

fn ready(watch: Watch) -> Watch {
    let mut watches = [watch];
    wait(&mut watches, Some(Duration::ZERO)).unwrap();
    watches[0]
}

#[test]
fn a_bell_rings_until_it_is_silenced() {
    let bell = Bell::new().unwrap();
    assert!(!ready(Watch::new(&bell, true, false)).readable());
    bell.ring();
    bell.ring();
    assert!(ready(Watch::new(&bell, true, false)).readable());
    bell.silence();
    assert!(!ready(Watch::new(&bell, true, false)).readable());
    // A silent bell can be silenced.
    bell.silence();
}

#[test]
fn a_wait_ends_with_its_time_and_not_before() {
    let bell = Bell::new().unwrap();
    let since = Instant::now();
    wait(&mut [Watch::new(&bell, true, false)], Some(Duration::from_micros(1500))).unwrap();
    assert!(since.elapsed() >= Duration::from_micros(1500), "{:?}", since.elapsed());
}

#[test]
fn a_place_that_waits_for_nothing_is_never_ready() {
    let idle = ready(Watch::idle());
    assert!(!idle.readable() && !idle.writable() && !idle.hung_up());
}

#[test]
fn a_pipe_tells_room_content_and_end() {
    let (reader, mut writer) = io::pipe().unwrap();
    assert!(ready(Watch::new(&writer, false, true)).writable());
    assert!(!ready(Watch::new(&reader, true, false)).readable());
    writer.write_all(b"x").unwrap();
    assert!(ready(Watch::new(&reader, true, false)).readable());
    drop(writer);
    assert!(ready(Watch::new(&reader, false, false)).hung_up());
}

#[test]
fn reads_do_not_wait_once_they_need_not() {
    let (mut reader, _writer) = io::pipe().unwrap();
    set_nonblocking(&reader).unwrap();
    assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_rename_that_must_not_replace_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("a"), "a").unwrap();
    std::fs::write(path("b"), "b").unwrap();
    assert_eq!(rename_new(&path("a"), &path("b")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(path("b")).unwrap(), b"b");
    rename_new(&path("a"), &path("c")).unwrap();
    assert_eq!(std::fs::read(path("c")).unwrap(), b"a");
}

#[test]
fn an_attribute_that_is_not_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(attribute(dir.path(), c"trusted.nothing").unwrap(), None);
    assert_eq!(attribute(Path::new("/proc/self"), c"trusted.nothing").unwrap(), None);
    assert!(attribute(&dir.path().join("missing"), c"trusted.nothing").is_err());
}

#[test]
fn a_disk_has_a_size_and_no_more_free_than_that() {
    let (total, free) = disk_bytes(Path::new("/")).unwrap();
    assert!(total > 0 && free <= total);
    assert!(disk_bytes(Path::new("/no/such")).is_err());
}
