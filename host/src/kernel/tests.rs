// SPDX-License-Identifier: Apache-2.0
//! Tests of finding kernels in a cache.

use super::*;

fn put(cache: &Cache, dir: &str, flavour: Flavour, config_key: &str, built_at_unix_s: u64) {
    let dir = cache.dir("kernels").unwrap().join(dir);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("vmlinux"), "elf").unwrap();
    let record = BuildRecord {
        flavour,
        version: "6.12.7".into(),
        compiler: "cc".into(),
        config_key: config_key.into(),
        build_s: 1,
        vmlinux_bytes: 3,
        text_data_bss_bytes: [1, 1, 1],
        built_at_unix_s,
    };
    fs::write(dir.join("build.json"), serde_json::to_vec(&record).unwrap()).unwrap();
}

fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path()).unwrap();
    (dir, cache)
}

#[test]
fn newest_of_the_current_fragments_is_found() {
    let (_guard, cache) = cache();
    let current = config_key(Flavour::Guest);
    put(&cache, "guest-1", Flavour::Guest, &current, 10);
    put(&cache, "guest-2", Flavour::Guest, &current, 20);
    put(&cache, "guest-3", Flavour::Guest, "older fragments", 30);
    put(&cache, "host-4", Flavour::Host, &config_key(Flavour::Host), 40);
    let found = find(&cache, Flavour::Guest).unwrap().unwrap();
    assert!(found.vmlinux.ends_with("guest-2/vmlinux"), "{:?}", found.vmlinux);
    assert!(find(&cache, Flavour::GuestSmp).unwrap().is_none());
    assert_eq!(list(&cache).unwrap().len(), 4);
}

#[test]
fn half_an_artefact_is_none() {
    let (_guard, cache) = cache();
    put(&cache, "guest-1", Flavour::Guest, &config_key(Flavour::Guest), 10);
    let dir = cache.root().join("kernels/guest-1");
    fs::write(dir.join("build.json"), "{\"flavour\":\"guest\"").unwrap();
    assert!(find(&cache, Flavour::Guest).unwrap().is_none());
    fs::remove_file(dir.join("vmlinux")).unwrap();
    assert!(find(&cache, Flavour::Guest).unwrap().is_none());
}

#[test]
fn found_kernel_is_used_without_source_or_tools() {
    let (_guard, cache) = cache();
    put(&cache, "guest-1", Flavour::Guest, &config_key(Flavour::Guest), 10);
    let path = ensure(&cache, Flavour::Guest, &crate::progress::Silent).unwrap();
    assert_eq!(path, cache.root().join("kernels/guest-1/vmlinux"));
}

#[test]
fn flavours_have_names_of_their_own_and_configurations_of_their_own() {
    for flavour in Flavour::ALL {
        assert_eq!(Flavour::from_name(flavour.name()), Some(flavour));
        let same = Flavour::ALL.into_iter().filter(|other| config_key(*other) == config_key(flavour));
        assert_eq!(same.count(), 1);
    }
    assert_eq!(Flavour::from_name("Guest"), None);
}

#[test]
fn one_vcpu_gets_the_kernel_without_smp() {
    assert_eq!(Flavour::for_cpus(1), Flavour::Guest);
    assert_eq!(Flavour::for_cpus(2), Flavour::GuestSmp);
}

#[test]
fn record_survives_a_round_trip_with_the_flavours_name() {
    let (_guard, cache) = cache();
    put(&cache, "guest-smp-1", Flavour::GuestSmp, "key", 5);
    let text = fs::read_to_string(cache.root().join("kernels/guest-smp-1/build.json")).unwrap();
    assert!(text.contains("\"flavour\":\"guest-smp\""), "{text}");
}
