// SPDX-License-Identifier: Apache-2.0
//! Containers inside a sandbox: Docker as root and Podman as the user, from the image `containers`, each with the network
//! that it gives by default. There is no registry in reach, so the container's image is made of a static shell.

use std::time::Duration;

use crate::context::Context;

crate::tests!("containers":
    OurKernel docker_runs_a_container_on_its_bridge,
    OurKernel podman_runs_a_container_without_privileges,
);

/// In the emulated host these programs, tens of megabytes each, take most of it to be read and translated.
const LIMIT: Duration = Duration::from_secs(360);

/// Leaves `/tmp/tiny.tar`: a root file system with one program.
const TINY: &str =
    "mkdir -p /tmp/tiny/bin /tmp/tiny/srv && cp /bin/busybox /tmp/tiny/bin && echo page > /tmp/tiny/srv/page &&
tar -C /tmp/tiny -cf /tmp/tiny.tar .";

/// The daemons in the order in which a service manager starts them; then what a user would type.
const DOCKER: &str = r#"
containerd >/tmp/containerd.log 2>&1 &
for try in $(seq 600); do [ -S /run/containerd/containerd.sock ] && break; sleep 0.2; done
dockerd >/tmp/dockerd.log 2>&1 &
for try in $(seq 600); do [ -S /run/docker.sock ] && break; sleep 0.2; done
docker import /tmp/tiny.tar tiny || { tail -n 40 /tmp/containerd.log /tmp/dockerd.log; exit 1; }
docker run --rm --memory 64m --publish 8080:80 tiny /bin/busybox sh -c '
    /bin/busybox ip -4 -o addr show eth0
    /bin/busybox ping -c 1 -W 60 172.17.0.1 | /bin/busybox grep received
    /bin/busybox cat /sys/fs/cgroup/memory.max
    /bin/busybox mount | /bin/busybox grep -o "^overlay on / .*lowerdir=/var/lib/docker/overlay2"
    /bin/busybox httpd -f -p 80 -h /srv' &
for try in $(seq 600); do curl -sf http://127.0.0.1:8080/page && break; sleep 0.5; done
echo over
"#;

fn docker_runs_a_container_on_its_bridge(context: &Context) {
    let flags = ["--image", "containers", "--user", "root", "--mem", "2048", "--timeout", "330"];
    let outcome = context.sh(&flags, &format!("{TINY}\n{DOCKER}")).limit(LIMIT).run().code(0);
    for part in [
        "inet 172.17.0.2/16",
        "1 packets received",
        "\n67108864\n",
        "overlay on / type overlay",
        "\npage\n",
        "\nover\n",
    ] {
        assert!(outcome.text().contains(part), "{part:?} is missing: {outcome}");
    }
    context.assert_nothing_left();
}

const PODMAN: &str = r#"
podman import -q /tmp/tiny.tar tiny
podman run --rm tiny /bin/busybox sh -c '
    /bin/busybox ip -4 -o addr show tap0
    /bin/busybox id -u
    /bin/busybox cat /proc/self/uid_map
    /bin/busybox mount | /bin/busybox grep -o "^overlay on / .*userxattr"
    /bin/busybox rm /srv/page && echo removed'
mkdir /tmp/lower /tmp/upper /tmp/work /tmp/merged && echo below > /tmp/lower/file
fuse-overlayfs -o lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work /tmp/merged
cat /tmp/merged/file
"#;

fn podman_runs_a_container_without_privileges(context: &Context) {
    let flags = ["--image", "containers", "--timeout", "330"];
    let outcome = context.sh(&flags, &format!("set -e; {TINY}\n{PODMAN}")).limit(LIMIT).run().code(0);
    // Root in the container is the user outside, and the next 65536 are its own.
    let words: Vec<String> = outcome.text().split_whitespace().map(str::to_owned).collect();
    let words = words.join(" ");
    for part in ["inet 10.0.2.100/24", " 0 0 1000 1 1 100000 65536 ", "overlay on / type overlay", "removed below"] {
        assert!(words.contains(part), "{part:?} is missing: {outcome}");
    }
    context.assert_nothing_left();
}
