// SPDX-License-Identifier: Apache-2.0
//! Tests of finding images.

use super::*;
use crate::progress::Silent;

fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(&dir.path().join("cache")).unwrap();
    (dir, cache)
}

fn put(cache: &Cache, dir: &str, name: &str, built_at_unix_s: u64) {
    let dir = cache.dir("images").unwrap().join(dir);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("image.erofs"), "image").unwrap();
    let record = ImageRecord {
        name: name.into(),
        release: "debian x".into(),
        packages: vec![],
        key: "k".into(),
        bytes: 5,
        build_s: 1,
        built_at_unix_s,
    };
    fs::write(dir.join("image.json"), serde_json::to_vec(&record).unwrap()).unwrap();
}

fn refuse(cache: &Cache, spec: &Path) -> String {
    resolve(cache, spec.to_str(), &Silent).unwrap_err().to_string()
}

#[test]
fn built_image_is_found_by_name_and_is_the_default() {
    let (_guard, cache) = cache();
    put(&cache, "base-1", "base", 10);
    put(&cache, "base-2", "base", 20);
    put(&cache, "build-3", "build", 30);
    let newest = cache.root().join("images/base-2/image.erofs");
    let resolved = resolve(&cache, None, &Silent).unwrap();
    assert_eq!(resolved, ResolvedImage { path: newest, file_system: FileSystem::Erofs });
    assert_eq!(resolve(&cache, Some("base"), &Silent).unwrap(), resolved);
    assert_eq!(list(&cache).unwrap().len(), 3);
}

#[test]
fn image_without_its_file_or_record_is_none() {
    let (_guard, cache) = cache();
    put(&cache, "base-1", "base", 10);
    fs::remove_file(cache.root().join("images/base-1/image.erofs")).unwrap();
    put(&cache, "base-2", "base", 10);
    fs::write(cache.root().join("images/base-2/image.json"), "{").unwrap();
    assert!(find(&cache, "base").unwrap().is_none());
}

#[test]
fn rebuilt_image_does_not_replace_one_that_may_be_in_use() {
    let (_guard, cache) = cache();
    let dir = cache.dir("images").unwrap();
    assert!(unused(&dir, "base-k").ends_with("base-k"));
    fs::create_dir(dir.join("base-k")).unwrap();
    assert!(unused(&dir, "base-k").ends_with("base-k.2"));
}

#[test]
fn missing_image_is_refused_with_the_names_that_can_be_built() {
    let (guard, cache) = cache();
    let text = refuse(&cache, &guard.path().join("none.img"));
    assert!(text.contains("none.img") && text.contains("base, build, containers"), "{text}");
}

#[test]
fn files_that_are_no_image_are_refused_by_what_they_are() {
    let (guard, cache) = cache();
    let empty = guard.path().join("empty");
    fs::write(&empty, "").unwrap();
    assert!(refuse(&cache, &empty).contains("the file is empty"));
    let random = guard.path().join("random");
    fs::write(&random, vec![b'x'; 100_000]).unwrap();
    assert!(refuse(&cache, &random).contains("no known file system"));
    assert!(refuse(&cache, Path::new("/dev/null")).contains("neither a regular file"));
}

#[test]
fn directory_becomes_an_erofs_file_made_again_only_after_a_change() {
    let (guard, cache) = cache();
    let tree = guard.path().join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/hostname"), "one\n").unwrap();
    let first = resolve(&cache, tree.to_str(), &Silent).unwrap();
    assert_eq!(first.file_system, FileSystem::Erofs);
    let meta = fs::metadata(&first.path).unwrap();
    assert_eq!(identify(&first.path, &meta).unwrap(), FileSystem::Erofs);
    assert_eq!(resolve(&cache, tree.to_str(), &Silent).unwrap(), first);
    fs::write(tree.join("etc/hostname"), "three\n").unwrap();
    assert_ne!(resolve(&cache, tree.to_str(), &Silent).unwrap().path, first.path);
}

#[test]
fn cut_image_is_refused() {
    let (guard, cache) = cache();
    let tree = guard.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), vec![7; 20_000]).unwrap();
    let whole = resolve(&cache, tree.to_str(), &Silent).unwrap().path;
    let cut = guard.path().join("cut.erofs");
    let bytes = fs::read(whole).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 4096]).unwrap();
    assert!(refuse(&cache, &cut).contains("cut short"));
}
