// SPDX-License-Identifier: Apache-2.0
//! Requests for files from the host's side of the conversation, on trees in a temporary directory.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use midge_protocol::{
    ErrorCode, Failure, FileKind, FileRead, FileWrite, List, MAX_DATA_BYTES, Metadata, Mkdir, Move, Owner, Remove,
    Stat, TarIn, TarOut, ToAgent, ToHost, WriteHow,
};
use tempfile::TempDir;

use crate::testing::{Peer, is_root};

fn tree() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// One request and everything that answers it.
fn ask(request: &ToAgent) -> Vec<ToHost> {
    let mut peer = Peer::with(request);
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    peer.rest()
}

fn done(request: &ToAgent) {
    assert_eq!(ask(request), [ToHost::Done], "{request:?}");
}

fn refused(request: &ToAgent) -> Failure {
    match &ask(request)[..] {
        [ToHost::Error(failure)] => failure.clone(),
        other => panic!("unexpected {other:?}"),
    }
}

fn read(path: &Path, offset: u64, len: u64) -> Vec<ToHost> {
    ask(&ToAgent::FileRead(FileRead { path: path.into(), offset, len }))
}

/// The content of an answer that ended well.
fn content(answer: Vec<ToHost>) -> Vec<u8> {
    let mut all = Vec::new();
    let mut answer = answer.into_iter();
    loop {
        match answer.next() {
            Some(ToHost::Data(bytes)) => all.extend(bytes),
            Some(ToHost::End) => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(answer.next(), None);
    all
}

fn file_write(path: &Path, how: WriteHow) -> FileWrite {
    FileWrite { path: path.into(), mode: None, owner: None, how, parents: false }
}

/// Sends a request with content; answers what came back.
fn send(request: &ToAgent, pieces: &[&[u8]]) -> Vec<ToHost> {
    let mut peer = Peer::with(request);
    for piece in pieces {
        peer.send(&ToAgent::Data(piece.to_vec()));
    }
    peer.send(&ToAgent::End);
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    peer.rest()
}

fn write(request: FileWrite, pieces: &[&[u8]]) -> Vec<ToHost> {
    send(&ToAgent::FileWrite(request), pieces)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_read_whole_or_in_part() {
    let dir = tree();
    let path = dir.path().join("file");
    let bytes: Vec<u8> = (0..=255).cycle().take(MAX_DATA_BYTES * 2 + 7).collect();
    fs::write(&path, &bytes).unwrap();
    assert_eq!(content(read(&path, 0, u64::MAX)), bytes);
    assert_eq!(content(read(&path, 5, 10)), &bytes[5..15]);
    assert_eq!(content(read(&path, bytes.len() as u64, 10)), b"");
    assert_eq!(content(read(&path, 0, 0)), b"");
    assert_eq!(content(read(Path::new("/proc/self/comm"), 0, u64::MAX)).last(), Some(&b'\n'));
}

#[test]
fn what_is_no_file_is_not_read() {
    let dir = tree();
    let code = |path: &Path| match &read(path, 0, 1)[..] {
        [ToHost::Error(failure)] => failure.code,
        other => panic!("unexpected {other:?}"),
    };
    assert_eq!(code(&dir.path().join("missing")), ErrorCode::NotFound);
    assert_eq!(code(dir.path()), ErrorCode::IsADirectory);
    assert_eq!(code(Path::new("/dev/zero")), ErrorCode::InvalidInput);
    assert_eq!(code(Path::new("relative")), ErrorCode::InvalidInput);
    assert_eq!(code(Path::new("/a\0b")), ErrorCode::InvalidInput);
}

#[test]
fn a_failure_names_the_path_and_the_cause() {
    let failure = refused(&ToAgent::List(List { path: "/no/such/dir".into() }));
    assert_eq!((failure.code, failure.errno), (ErrorCode::NotFound, libc::ENOENT));
    assert!(failure.text.starts_with("listing /no/such/dir: "), "{}", failure.text);
}

#[test]
fn a_new_file_gets_its_content_and_mode() {
    let dir = tree();
    let path = dir.path().join("a/b/file");
    let request = FileWrite { mode: Some(0o750), parents: true, ..file_write(&path, WriteHow::Replace) };
    assert_eq!(write(request, &[b"one ", b"two"]), [ToHost::Done]);
    assert_eq!(fs::read(&path).unwrap(), b"one two");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(names(path.parent().unwrap()), ["file"]);
}

#[test]
fn a_replaced_file_keeps_its_mode_and_open_readers_keep_the_old_one() {
    let dir = tree();
    let path = dir.path().join("file");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut reader = fs::File::open(&path).unwrap();
    assert_eq!(write(file_write(&path, WriteHow::Replace), &[b"new"]), [ToHost::Done]);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(std::io::read_to_string(&mut reader).unwrap(), "old");
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn a_symlink_is_written_through() {
    let dir = tree();
    let (path, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&path, "old").unwrap();
    symlink("file", &link).unwrap();
    assert_eq!(write(file_write(&link, WriteHow::Replace), &[b"new"]), [ToHost::Done]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn appending_adds_and_creating_refuses_what_is_there() {
    let dir = tree();
    let path = dir.path().join("file");
    assert_eq!(write(file_write(&path, WriteHow::Append), &[b"a"]), [ToHost::Done]);
    assert_eq!(write(file_write(&path, WriteHow::Append), &[b"b"]), [ToHost::Done]);
    assert_eq!(fs::read(&path).unwrap(), b"ab");
    let answer = write(file_write(&path, WriteHow::CreateNew), &[b"c"]);
    assert!(matches!(&answer[..], [ToHost::Error(failure)] if failure.code == ErrorCode::AlreadyExists), "{answer:?}");
    let new = dir.path().join("new");
    assert_eq!(write(file_write(&new, WriteHow::CreateNew), &[]), [ToHost::Done]);
    assert_eq!(names(dir.path()), ["file", "new"]);
}

#[test]
fn an_unfinished_write_leaves_the_old_file_and_nothing_else() {
    let dir = tree();
    let path = dir.path().join("file");
    fs::write(&path, "old").unwrap();
    let mut peer = Peer::with(&ToAgent::FileWrite(file_write(&path, WriteHow::Replace)));
    peer.send(&ToAgent::Data(b"half".to_vec()));
    peer.leave();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["file"]);
}

#[test]
fn directories_and_devices_are_not_overwritten() {
    let dir = tree();
    for path in [dir.path(), Path::new("/dev/null"), Path::new("/")] {
        let answer = write(file_write(path, WriteHow::Replace), &[b"x"]);
        assert!(matches!(&answer[..], [ToHost::Error(_)]), "{answer:?}");
    }
}

#[test]
fn the_request_after_a_failed_one_is_answered() {
    let dir = tree();
    let mut peer = Peer::with(&ToAgent::FileWrite(file_write(&dir.path().join("no/file"), WriteHow::Replace)));
    peer.send(&ToAgent::Data(vec![0; 1000]));
    peer.send(&ToAgent::End);
    assert!(matches!(peer.next(), Some(ToHost::Error(_))));
    peer.send(&ToAgent::Stat(Stat { path: dir.path().into(), follow: true }));
    assert!(matches!(peer.next(), Some(ToHost::Metadata(Metadata { kind: FileKind::Dir, .. }))));
    // A failure after the content was complete leaves nothing to skip.
    peer.send(&ToAgent::FileWrite(file_write(&dir.path().join("file"), WriteHow::CreateNew)));
    fs::write(dir.path().join("file"), "first").unwrap();
    peer.send(&ToAgent::End);
    assert!(matches!(peer.next(), Some(ToHost::Error(_) | ToHost::Done)));
    peer.send(&ToAgent::Remove(Remove { path: dir.path().join("file"), recursive: false }));
    assert_eq!(peer.next(), Some(ToHost::Done));
}

#[test]
fn owners_are_given_and_inherited() {
    if !is_root("giving files away") {
        return;
    }
    let dir = tree();
    std::os::unix::fs::chown(dir.path(), Some(1000), Some(1001)).unwrap();
    let ids = |name: &str| {
        let metadata = fs::metadata(dir.path().join(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    write(FileWrite { parents: true, ..file_write(&dir.path().join("sub/heir"), WriteHow::Replace) }, &[b"x"]);
    assert_eq!((ids("sub"), ids("sub/heir")), ((1000, 1001), (1000, 1001)));
    let owner = Some(Owner { uid: 7, gid: 8 });
    let request = FileWrite {
        owner: owner.clone(),
        mode: Some(0o4755),
        ..file_write(&dir.path().join("given"), WriteHow::Replace)
    };
    write(request, &[b"x"]);
    assert_eq!(ids("given"), (7, 8));
    assert_eq!(fs::metadata(dir.path().join("given")).unwrap().mode() & 0o7777, 0o4755);
    done(&ToAgent::Mkdir(Mkdir { path: dir.path().join("dir"), mode: 0o700, owner, parents: false }));
    assert_eq!(ids("dir"), (7, 8));
}

#[test]
fn a_path_tells_what_it_is() {
    let dir = tree();
    fs::write(dir.path().join("file"), "12345").unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let stat = |name: &str, follow| match &ask(&ToAgent::Stat(Stat { path: dir.path().join(name), follow }))[..] {
        [ToHost::Metadata(metadata)] => metadata.clone(),
        other => panic!("unexpected {other:?}"),
    };
    assert_eq!((stat("file", false).kind, stat("file", false).size), (FileKind::File, 5));
    assert_eq!((stat("link", true).kind, stat("link", true).target), (FileKind::File, None));
    assert_eq!((stat("link", false).kind, stat("link", false).target), (FileKind::Symlink, Some("file".into())));
    assert_eq!((stat("", false).kind, stat("socket", false).kind), (FileKind::Dir, FileKind::Special));
    assert!(stat("file", false).mtime_ns > 1_600_000_000_000_000_000);
}

#[test]
fn a_directory_is_listed_with_what_its_entries_are() {
    let dir = tree();
    for number in 0..3000 {
        fs::write(dir.path().join(format!("file-{number}")), "x").unwrap();
    }
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    let mut answer = ask(&ToAgent::List(List { path: dir.path().into() }));
    assert_eq!(answer.pop(), Some(ToHost::End));
    assert_eq!(answer.len(), 3001);
    let is_dangling = |message: &ToHost| matches!(message, ToHost::Entry(entry) if entry.name == "dangling" && entry.metadata.kind == FileKind::Symlink);
    assert_eq!(answer.iter().filter(|message| is_dangling(message)).count(), 1);
}

#[test]
fn directories_are_made_moved_and_removed() {
    let dir = tree();
    let path = |name: &str| dir.path().join(name);
    let mkdir = |name: &str, parents| ToAgent::Mkdir(Mkdir { path: path(name), mode: 0o711, owner: None, parents });
    assert_eq!(refused(&mkdir("a/b", false)).code, ErrorCode::NotFound);
    done(&mkdir("a/b", true));
    done(&mkdir("a/b", true));
    assert_eq!(refused(&mkdir("a/b", false)).code, ErrorCode::AlreadyExists);
    assert_eq!(fs::metadata(path("a/b")).unwrap().mode() & 0o7777, 0o711);
    let rename = |from: &str, to: &str, replace| ToAgent::Move(Move { from: path(from), to: path(to), replace });
    done(&mkdir("c", false));
    assert_eq!(refused(&rename("a", "c", false)).code, ErrorCode::AlreadyExists);
    done(&rename("a", "c", true));
    let remove = |name: &str, recursive| ToAgent::Remove(Remove { path: path(name), recursive });
    assert_eq!(refused(&remove("c", false)).code, ErrorCode::NotEmpty);
    done(&remove("c", true));
    assert_eq!(refused(&remove("c", true)).code, ErrorCode::NotFound);
    for root in ["/", "/.", "//"] {
        let failure = refused(&ToAgent::Remove(Remove { path: root.into(), recursive: true }));
        assert_eq!(failure.code, ErrorCode::InvalidInput);
    }
}

#[test]
fn removing_does_not_follow_symlinks() {
    let dir = tree();
    fs::create_dir(dir.path().join("kept")).unwrap();
    fs::write(dir.path().join("kept/file"), "x").unwrap();
    fs::create_dir(dir.path().join("removed")).unwrap();
    symlink("../kept", dir.path().join("removed/link")).unwrap();
    done(&ToAgent::Remove(Remove { path: dir.path().join("removed"), recursive: true }));
    assert_eq!(names(&dir.path().join("kept")), ["file"]);
}

fn pack(path: &Path) -> Vec<u8> {
    content(ask(&ToAgent::TarOut(TarOut { path: path.into() })))
}

fn unpack(dir: &Path, bytes: &[u8]) -> Vec<ToHost> {
    let request = ToAgent::TarIn(TarIn { dir: dir.into(), owner: None });
    send(&request, &bytes.chunks(10_000).collect::<Vec<_>>())
}

#[test]
fn a_tree_goes_out_and_in_again_unchanged() {
    let (dir, other) = (tree(), tree());
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("sub/deep")).unwrap();
    fs::write(path("sub/deep/file"), vec![7; 200_000]).unwrap();
    fs::write(path("program"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(path("program"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../program", path("sub/link")).unwrap();
    fs::create_dir(path("empty")).unwrap();
    let long = "n".repeat(200);
    fs::write(path(&long), "long").unwrap();
    let _socket = UnixListener::bind(path("socket")).unwrap();
    let target = other.path().join("new");
    assert_eq!(unpack(&target, &pack(dir.path())), [ToHost::Done]);
    assert_eq!(names(&target), ["empty", &long, "program", "sub"]);
    assert_eq!(fs::read(target.join("sub/deep/file")).unwrap(), vec![7; 200_000]);
    assert_eq!(fs::read_link(target.join("sub/link")).unwrap(), PathBuf::from("../program"));
    assert_eq!(fs::metadata(target.join("program")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(pack(&target), pack(&target), "the same tree has one archive");
}

#[test]
fn a_single_file_goes_out_under_its_name() {
    let (dir, other) = (tree(), tree());
    fs::write(dir.path().join("one"), "1").unwrap();
    assert_eq!(unpack(other.path(), &pack(&dir.path().join("one"))), [ToHost::Done]);
    assert_eq!(names(other.path()), ["one"]);
}

fn archive(name: &[u8], link: Option<&str>) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_mode(0o644);
    header.set_size(if link.is_some() { 0 } else { 4 });
    if let Some(link) = link {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_link_name(link).unwrap();
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    if link.is_none() {
        bytes.extend_from_slice(b"evil");
        bytes.resize(1024, 0);
    }
    bytes
}

#[test]
fn an_archive_does_not_lead_out_of_its_directory() {
    let dir = tree();
    let target = dir.path().join("in");
    let answer = unpack(&target, &archive(b"../out", None));
    assert!(matches!(&answer[..], [ToHost::Error(failure)] if failure.code == ErrorCode::InvalidInput), "{answer:?}");
    let mut through_link = archive(b"link", Some(dir.path().to_str().unwrap()));
    through_link.extend(archive(b"link/out", None));
    through_link.resize(through_link.len() + 1024, 0);
    let answer = unpack(&target, &through_link);
    assert!(matches!(&answer[..], [ToHost::Error(_)]), "{answer:?}");
    assert_eq!(names(dir.path()), ["in"]);
}

#[test]
fn a_broken_archive_is_refused() {
    let dir = tree();
    for bytes in [&vec![1; 600][..], &archive(b"cut", None)[..700]] {
        let answer = unpack(&dir.path().join("in"), bytes);
        assert!(matches!(&answer[..], [ToHost::Error(_)]), "{answer:?}");
    }
}

#[test]
fn an_unpacked_tree_belongs_to_whom_the_request_names() {
    if !is_root("giving files away") {
        return;
    }
    let (dir, other) = (tree(), tree());
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/file"), "x").unwrap();
    symlink("/etc/passwd", dir.path().join("link")).unwrap();
    let request = ToAgent::TarIn(TarIn { dir: other.path().into(), owner: Some(Owner { uid: 1000, gid: 1001 }) });
    assert_eq!(send(&request, &[&pack(dir.path())]), [ToHost::Done]);
    for name in ["sub", "sub/file", "link"] {
        let metadata = fs::symlink_metadata(other.path().join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001), "{name}");
    }
    assert_eq!(fs::metadata("/etc/passwd").unwrap().uid(), 0);
}
