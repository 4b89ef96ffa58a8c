// SPDX-License-Identifier: Apache-2.0
//! Real programs of the guest and real servers, with the broker in between.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;
use std::process::Command;

use crate::context::Context;
use crate::directed::Directed;
use crate::https::{Authority, Site};

crate::tests!("network":
    Guest packages_come_through_the_broker,
    Guest repository_is_cloned_over_https,
);

/// The package index, with the shipped policy for it, and what that refuses.
fn packages_come_through_the_broker(context: &Context) {
    let shipped = context.midge(["policy", "show", "package-install"]).run().code(0).text();
    let (index, ranges) = ("pypi.org", unusual_addresses(&["pypi.org", "files.pythonhosted.org"]));
    let policy = shipped.replace("action = \"allow\"", &format!("action = \"allow\"\nranges = {ranges}"));
    let policy = policy.replace("memory_mib = 2048", "memory_mib = 512");
    let install = "pip install --no-cache-dir --disable-pip-version-check -q --target /tmp/s six; \
                   PYTHONPATH=/tmp/s python3 -c \"import six; print(six.__name__, \\\"came\\\")\"";
    let post = format!("curl -sS -m 60 -X POST https://{index}/simple/six/");
    let said = Directed::under(policy)
        .command(install, &["six came"])
        .command(&post, &["no rule allows"])
        .command("curl -sS -m 60 https://example.org/", &["403"])
        .start(context)
        .done();
    for part in [&format!("GET https://{index}:443/simple/six/ (rule python)"), "denied POST", "denied CONNECT"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    context.assert_nothing_left();
}

/// Ranges for those hosts here whose addresses are not of the public Internet, as behind a mirror: as a list of a policy.
fn unusual_addresses(hosts: &[&str]) -> String {
    let addresses =
        hosts.iter().flat_map(|host| (*host, 443).to_socket_addrs().expect("the package index has an address"));
    let ranges = addresses.filter_map(|address| match address.ip() {
        IpAddr::V4(ip) if ip.is_private() || ip.is_documentation() || ip.is_loopback() => Some(format!("{ip}/32")),
        _ => None,
    });
    let ranges: std::collections::BTreeSet<String> = ranges.collect();
    format!("{ranges:?}").replace('{', "[").replace('}', "]")
}

/// A repository on a site with an authority of its own, to which the host adds the password; what the site sends elsewhere ends.
fn repository_is_cloned_over_https(context: &Context) {
    let dir = tempfile::tempdir().expect("a directory");
    repository(dir.path());
    let authority = Authority::new();
    let site = Site::start(&authority, "localhost", Some(dir.path().to_owned()));
    let roots = dir.path().join("roots.pem");
    std::fs::write(&roots, &authority.pem).expect("writes");
    let port = site.port;
    let policy = format!(
        r#"version = 1
[limits]
memory_mib = 256
[[network.rules]]
name = "forge"
hosts = ["localhost"]
ports = [{port}]
methods = ["GET"]
paths = ["/project.git/*"]
ranges = ["127.0.0.0/8", "::1/128"]
[[credentials]]
name = "forge"
hosts = ["localhost"]
basic_user = "ci"
secret = {{ env = "FORGE_PASSWORD" }}
"#
    );
    let git =
        format!("NO_PROXY= no_proxy= git clone -q https://localhost:{port}/project.git /tmp/p && cat /tmp/p/file");
    let push = "cd /tmp/p && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x; NO_PROXY= no_proxy= git push 2>&1";
    let _ = Directed::under(policy)
        .env("SSL_CERT_FILE", &roots.display().to_string())
        .env("FORGE_PASSWORD", "forge-0a1b2c3d4e5f")
        .command(&git, &["content of the file"])
        .command(push, &["failed to push"])
        .start(context)
        .done();
    let heads: Vec<String> = site.all();
    assert!(heads.len() > 3, "{heads:?}");
    for head in &heads {
        assert!(head.starts_with("GET /project.git/") && head.contains("Basic Y2k6Zm9yZ2UtMGExYjJjM2Q0ZTVm"), "{head}");
    }
    context.assert_nothing_left();
}

/// A bare repository at `project.git` that any server of files can serve.
fn repository(dir: &Path) {
    let script = "git init -q p && cd p && echo content of the file >file && git add file &&
        git -c user.name=a -c user.email=a@b commit -q -m first && cd .. && git clone -q --bare p project.git &&
        git --git-dir=project.git update-server-info";
    let status = Command::new("sh").args(["-c", script]).current_dir(dir).status().expect("sh runs");
    assert!(status.success());
}
