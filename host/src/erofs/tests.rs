// SPDX-License-Identifier: Apache-2.0
//! Images against three judges: the small reader, `fsck.erofs`, and the kernel's own file system where it can be mounted.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::reader::{Found, walk};
use super::*;

fn attributes(mode: u32) -> Attributes {
    Attributes { mode, uid: 1000, gid: 100_000, mtime_s: 1_700_000_000, mtime_ns: 5, xattrs: Vec::new() }
}

/// Runs `fsck.erofs`; `None` when it is not installed.
fn fsck(image: &Path) -> Option<()> {
    let Ok(output) = Command::new("fsck.erofs").arg("--extract").arg(image).output() else {
        println!("skipped: fsck.erofs is not installed (apt install erofs-utils)");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("<E>"), "{text}");
    Some(())
}

/// Mounts `image` on a new directory; `None`, with the reason printed, where that is not possible.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(image: &Path) -> Option<Self> {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("erofs");
        if !known || !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting erofs needs root and a kernel that has it");
            return None;
        }
        let at = tempfile::tempdir().unwrap();
        let mount = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(at.path()).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(at)),
            other => {
                println!("skipped: mount failed: {other:?}");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.0.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "unmount {:?}", self.0.path());
    }
}

fn build(path: &Path, fill: impl FnOnce(&mut Builder)) -> BTreeMap<Vec<u8>, Found> {
    let mut builder = Builder::create(path, &attributes(0o755)).unwrap();
    fill(&mut builder);
    let image = builder.finish().unwrap();
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, image.len_bytes);
    walk(&bytes)
}

fn add_file(builder: &mut Builder, parent: NodeId, name: &[u8], data: &[u8]) -> NodeId {
    let attributes = attributes(0o644);
    let mut file = builder.file(parent, name, &attributes).unwrap();
    data.chunks(700).for_each(|chunk| file.write(chunk).unwrap());
    file.end().unwrap()
}

#[test]
fn an_empty_tree_is_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let found = build(&path, |_| {});
    assert_eq!(found.len(), 1);
    assert!(found[b"".as_slice()].nid > 0, "inode number 0 would hide the root");
    fsck(&path);
}

#[test]
fn file_sizes_around_every_border_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let sizes = [0, 1, 1023, 1024, 1025, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 300_000];
    let data = |size: usize| (0..size).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect::<Vec<u8>>();
    let found = build(&path, |builder| {
        for size in sizes {
            add_file(builder, builder.root(), format!("f{size}").as_bytes(), &data(size));
        }
    });
    for size in sizes {
        assert_eq!(found[format!("f{size}").as_bytes()].data, data(size), "{size}");
    }
    fsck(&path);
}

#[test]
fn link_targets_up_to_the_longest_path_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let found = build(&path, |builder| {
        for len in [1, 1024, 1025, 4095] {
            let name = format!("l{len}");
            builder.symlink(builder.root(), name.as_bytes(), &attributes(0o777), &vec![b't'; len]).unwrap();
        }
    });
    for len in [1, 1024, 1025, 4095] {
        assert_eq!(found[format!("l{len}").as_bytes()].data, vec![b't'; len], "{len}");
    }
    fsck(&path);
}

#[test]
fn large_directories_with_names_that_sort_before_dot_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let names: Vec<Vec<u8>> = (0..3000u32)
        .map(|number| match number % 3 {
            0 => format!("+{number}").into_bytes(),
            1 => [vec![0xff, 1], vec![b'x'; 1 + number as usize % 250], number.to_string().into_bytes()].concat(),
            _ => number.to_string().into_bytes(),
        })
        .map(|name| name[..name.len().min(255)].to_vec())
        .collect();
    let found = build(&path, |builder| {
        for name in &names {
            add_file(builder, builder.root(), name, name);
        }
    });
    assert_eq!(found.len(), names.len() + 1);
    assert!(names.iter().all(|name| found[name].data == *name));
    fsck(&path);
}

#[test]
fn zero_blocks_take_no_space_in_the_image_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let attributes = attributes(0o644);
    let found = build(&path, |builder| {
        let mut file = builder.file(builder.root(), b"sparse", &attributes).unwrap();
        file.write(b"head").unwrap();
        file.write(&[0; 4092]).unwrap();
        (0..64).for_each(|_| file.write(&[0; 1 << 16]).unwrap());
        file.end().unwrap();
    });
    assert_eq!(found[b"sparse".as_slice()].data.len(), 4096 + (1 << 22));
    assert!(path.metadata().unwrap().blocks() * 512 < 1 << 20, "{} blocks", path.metadata().unwrap().blocks());
}

#[test]
fn hard_links_share_an_inode_and_twins_share_only_their_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let data = vec![7; 10_000];
    let mut twin = None;
    let found = build(&path, |builder| {
        let file = add_file(builder, builder.root(), b"file", &data);
        builder.link(builder.root(), b"link", file).unwrap();
        twin = Some(builder.twin(builder.root(), b"twin", &attributes(0o600), file).unwrap());
    });
    let (file, link, twin) = (&found[b"file".as_slice()], &found[b"link".as_slice()], &found[b"twin".as_slice()]);
    assert_eq!((file.nid, file.links, &file.data), (link.nid, 2, &data));
    assert_eq!((twin.links, twin.mode & 0o777, &twin.data), (1, 0o600, &data));
    assert_ne!(twin.nid, file.nid);
    assert!(path.metadata().unwrap().len() < 6 * 4096, "data is stored once");
    fsck(&path);
}

#[test]
fn content_offset_names_where_the_data_lies() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Builder::create(&dir.path().join("i"), &attributes(0o755)).unwrap();
    let root = builder.root();
    let nodes: Vec<(NodeId, Vec<u8>)> = [3, 1024, 5000]
        .into_iter()
        .map(|size| (size, (0..size).map(|at| u8::try_from((at + size) % 256).unwrap()).collect::<Vec<u8>>()))
        .map(|(size, data)| (add_file(&mut builder, root, size.to_string().as_bytes(), &data), data))
        .collect();
    let image = builder.finish().unwrap();
    for (node, data) in nodes {
        let mut read = vec![0; data.len()];
        image.file.read_exact_at(&mut read, image.content_offset(node)).unwrap();
        assert_eq!(read, data);
    }
}

#[test]
fn impossible_names_and_duplicates_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Builder::create(&dir.path().join("i"), &attributes(0o755)).unwrap();
    let root = builder.root();
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'n'; 256]] {
        let result = builder.directory(root, name, &attributes(0o755));
        assert!(matches!(result, Err(ErofsError::Name { .. })), "{name:?}");
    }
    builder.directory(root, &[b'n'; 255], &attributes(0o755)).unwrap();
    builder.directory(root, &[b'n'; 255], &attributes(0o755)).unwrap();
    assert!(matches!(builder.finish(), Err(ErofsError::Duplicate { .. })));
}

#[test]
fn a_full_disk_is_an_error_that_names_the_image() {
    let result = Builder::create(Path::new("/proc/self/nowhere/image"), &attributes(0o755));
    let text = result.unwrap_err().to_string();
    assert!(text.contains("/proc/self/nowhere/image"), "{text}");
}

/// A real tree with everything in it that a root file system has.
fn real_tree(top: &Path) {
    std::fs::create_dir_all(top.join("usr/lib/deep/er")).unwrap();
    std::fs::write(top.join("usr/lib/file"), vec![3; 5000]).unwrap();
    std::fs::write(top.join("usr/lib/small"), "small").unwrap();
    std::fs::hard_link(top.join("usr/lib/file"), top.join("hard")).unwrap();
    std::fs::set_permissions(top.join("usr/lib/small"), std::fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("usr/lib", top.join("lib")).unwrap();
    nix::unistd::mkfifo(&top.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    for number in 0..200 {
        std::fs::write(top.join(format!("usr/lib/deep/name-that-is-long-enough-{number}")), format!("{number}"))
            .unwrap();
    }
    let _ = rustix::fs::lsetxattr(top.join("hard"), "user.note", b"value", rustix::fs::XattrFlags::empty());
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(top.join("usr/lib/small"), Some(12), Some(70_000)).unwrap();
        let device = rustix::fs::makedev(1, 3);
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            top.join("null"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            device,
        );
        println!("device node: {made:?}");
    }
}

#[test]
fn a_packed_directory_says_what_the_directory_says() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("tree");
    real_tree(&top);
    let image = dir.path().join("image");
    let packed = pack_directory(&top, &image).unwrap();
    assert_eq!(packed.changed, Vec::<PathBuf>::new());
    let found = walk(&std::fs::read(&image).unwrap());
    let mut compared = 0;
    for (path, entry) in &found {
        let real = top.join(std::str::from_utf8(path).unwrap());
        let stat = real.symlink_metadata().unwrap();
        assert_eq!((entry.mode, entry.uid, entry.gid), (stat.mode(), stat.uid(), stat.gid()), "{real:?}");
        assert_eq!(entry.mtime, (stat.mtime(), u32::try_from(stat.mtime_nsec()).unwrap()), "{real:?}");
        if stat.is_file() {
            assert_eq!(entry.data, std::fs::read(&real).unwrap());
            assert_eq!(u64::from(entry.links), stat.nlink());
        }
        compared += 1;
    }
    assert_eq!(compared, packed.inodes + 1, "one file has two names");
    assert!(compared > 200);
    fsck(&image);
    let again = dir.path().join("again");
    pack_directory(&top, &again).unwrap();
    assert_eq!(std::fs::read(&image).unwrap(), std::fs::read(&again).unwrap(), "the same input gives the same image");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing temporary is left");
}

#[test]
fn the_kernel_shows_a_packed_directory_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("tree");
    real_tree(&top);
    let image = dir.path().join("image");
    pack_directory(&top, &image).unwrap();
    let Some(mounted) = Mounted::new(&image) else { return };
    let list = |at: &Path| {
        let format = "%P %y %m %U %G %s %T@ %l %n\n";
        let output = Command::new("find").arg(at).args(["-not", "-type", "d", "-printf", format]).output().unwrap();
        let mut lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(Into::into).collect();
        lines.sort();
        lines
    };
    assert_eq!(list(mounted.0.path()), list(&top));
    let options = ["-r", "--no-dereference", "-x", "pipe", "-x", "null"];
    let output = Command::new("diff").args(options).arg(&top).arg(mounted.0.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let mut buffer = [0; 16];
    match rustix::fs::lgetxattr(top.join("hard"), "user.note", &mut buffer) {
        Ok(len) => {
            let mut mounted_value = [0; 16];
            let mounted_len = rustix::fs::lgetxattr(mounted.0.path().join("hard"), "user.note", &mut mounted_value);
            assert_eq!((mounted_len, mounted_value), (Ok(len), buffer));
        }
        Err(errno) => println!("extended attributes not compared here: {errno}"),
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = pack_directory(&dir.path().join("absent"), &dir.path().join("image")).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
    assert!(!dir.path().join("image").exists());
}

/// A file system of `size` bytes; `None`, with the reason printed, where mounting is not permitted.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn new(size: &str) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at.path()).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        println!("skipped: mounting a tmpfs needs root");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_fills_up_leaves_neither_an_image_nor_a_temporary_file() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("large"), vec![1; 3 << 20]).unwrap();
    let out = disk.path().join("image");
    std::fs::write(&out, "the image of before").unwrap();
    let error = pack_directory(tree.path(), &out).unwrap_err();
    assert!(matches!(&error, ErofsError::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
    assert_eq!(std::fs::read(&out).unwrap(), b"the image of before");
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 1);
}

#[test]
fn file_systems_mounted_below_and_the_image_itself_are_left_out() {
    let Some(disk) = SmallDisk::new("8m") else { return };
    let inner = disk.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(disk.path().join("file"), "x").unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&inner).status().unwrap();
    assert!(mount.success());
    std::fs::write(inner.join("hidden"), "x").unwrap();
    let packed = pack_directory(disk.path(), &disk.path().join("image"));
    assert!(Command::new("umount").arg(&inner).status().unwrap().success());
    packed.unwrap();
    let found = walk(&std::fs::read(disk.path().join("image")).unwrap());
    assert_eq!(found.keys().collect::<Vec<_>>(), [&b""[..], b"file", b"inner"]);
}

#[test]
fn images_whose_last_inode_ends_at_any_place_in_a_block_are_sound() {
    let dir = tempfile::tempdir().unwrap();
    for count in 55..66 {
        let path = dir.path().join(format!("i{count}"));
        let found = build(&path, |builder| {
            for number in 0..count {
                let name = format!("{number:02}");
                builder.device(builder.root(), name.as_bytes(), &attributes(0o600), Device::Fifo).unwrap();
            }
        });
        assert_eq!(found.len(), count + 1);
        fsck(&path);
    }
}

#[test]
fn device_numbers_and_attributes_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let xattr = |name: &str, value: &[u8]| Xattr { name: name.into(), value: value.into() };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let with = Attributes {
        xattrs: vec![
            xattr("user.empty", b""),
            xattr("security.capability", &capability),
            xattr("trusted.t", &[9; 300]),
        ],
        ..attributes(0o755)
    };
    let found = build(&path, |builder| {
        let root = builder.root();
        builder.device(root, b"null", &attributes(0o666), Device::Char { major: 1, minor: 3 }).unwrap();
        builder.device(root, b"disk", &attributes(0o660), Device::Block { major: 259, minor: 70_000 }).unwrap();
        builder.device(root, b"socket", &attributes(0o600), Device::Socket).unwrap();
        builder.directory(root, b"dir", &with).unwrap();
        let mut file = builder.file(root, b"ping", &with).unwrap();
        file.write(&[5; 900]).unwrap();
        file.end().unwrap();
    });
    let null = &found[b"null".as_slice()];
    assert_eq!((null.mode, null.rdev), (0o020_666, 0x103));
    assert_eq!(found[b"disk".as_slice()].rdev, (70_000 & 0xff) | (259 << 8) | ((70_000 & !0xff) << 12));
    assert_eq!(found[b"socket".as_slice()].mode, 0o140_600);
    for name in [&b"dir"[..], b"ping"] {
        let xattrs = &found[name].xattrs;
        assert_eq!(xattrs.len(), 3, "{xattrs:?}");
        assert_eq!(xattrs[b"security.capability".as_slice()], capability);
        assert_eq!(xattrs[b"trusted.t".as_slice()], [9; 300]);
    }
    assert_eq!(found[b"ping".as_slice()].data, [5; 900]);
    fsck(&path);
}

#[test]
fn times_before_1970_and_far_ahead_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let found = build(&dir.path().join("i"), |builder| {
        for (name, mtime_s) in [("old", -86_400), ("new", 1 << 40)] {
            let attributes = Attributes { mtime_s, mtime_ns: 999_999_999, ..attributes(0o644) };
            builder.file(builder.root(), name.as_bytes(), &attributes).unwrap().end().unwrap();
        }
    });
    assert_eq!(found[b"old".as_slice()].mtime, (-86_400, 999_999_999));
    assert_eq!(found[b"new".as_slice()].mtime, (1 << 40, 999_999_999));
}

#[test]
fn a_file_dropped_halfway_is_not_in_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let attributes = attributes(0o644);
    let found = build(&dir.path().join("i"), |builder| {
        let mut file = builder.file(builder.root(), b"half", &attributes).unwrap();
        file.write(&[1; 4096]).unwrap();
        drop(file);
        add_file(builder, builder.root(), b"whole", &[2; 5000]);
    });
    assert_eq!(found.len(), 2);
    assert_eq!(found[b"whole".as_slice()].data, [2; 5000]);
}

#[test]
fn trees_as_deep_as_a_path_can_be_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i");
    let found = build(&path, |builder| {
        let mut at = builder.root();
        for _ in 0..500 {
            at = builder.directory(at, b"d", &attributes(0o755)).unwrap();
        }
        add_file(builder, at, b"f", b"deep");
    });
    assert_eq!(found[[b"d/".repeat(500), b"f".to_vec()].concat().as_slice()].data, b"deep");
}

/// A random tree as a list of (parent, name, what).
#[derive(Clone, Debug)]
enum What {
    Dir,
    File(usize),
    Link(usize),
    Fifo,
}

fn tree() -> impl Strategy<Value = Vec<(usize, u16, usize, What)>> {
    let what = prop_oneof![
        3 => Just(What::Dir),
        3 => (0usize..6000).prop_map(What::File),
        1 => (1usize..2000).prop_map(What::Link),
        1 => Just(What::Fifo),
    ];
    proptest::collection::vec((any::<usize>(), any::<u16>(), 0usize..250, what), 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_trees_read_back_as_they_were_added(tree in tree()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i");
        let mut expected: BTreeMap<Vec<u8>, (u32, Vec<u8>)> = BTreeMap::from([(Vec::new(), (0o040_755, Vec::new()))]);
        let found = build(&path, |builder| {
            let mut dirs = vec![(builder.root(), Vec::new())];
            for (parent, name, pad, what) in &tree {
                let (parent, above) = dirs[parent % dirs.len()].clone();
                let name = [name.to_string().into_bytes(), vec![b'~'; *pad]].concat();
                let full: Vec<u8> = if above.is_empty() { name.clone() } else { [&above[..], b"/", &name].concat() };
                if expected.contains_key(&full) {
                    continue;
                }
                let entry = match what {
                    What::Dir => {
                        dirs.push((builder.directory(parent, &name, &attributes(0o755)).unwrap(), full.clone()));
                        (0o040_755, Vec::new())
                    }
                    What::File(size) => {
                        let data = vec![u8::try_from(size % 256).unwrap(); *size];
                        add_file(builder, parent, &name, &data);
                        (0o100_644, data)
                    }
                    What::Link(size) => {
                        let target = vec![b'l'; *size];
                        builder.symlink(parent, &name, &attributes(0o777), &target).unwrap();
                        (0o120_777, target)
                    }
                    What::Fifo => {
                        builder.device(parent, &name, &attributes(0o600), Device::Fifo).unwrap();
                        (0o010_600, Vec::new())
                    }
                };
                expected.insert(full, entry);
            }
        });
        let got: BTreeMap<_, _> = found.into_iter().map(|(path, entry)| (path, (entry.mode, entry.data))).collect();
        prop_assert_eq!(got, expected);
        fsck(&path);
    }
}
