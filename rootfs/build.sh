#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds one base image. Run by `midge image build` in an empty directory that holds `packages` (names, one a line)
# and `sources.list` (the machine's own apt sources); leaves `image.erofs` there. Works as root, and for everybody
# else in a user namespace. The agent and the guest's DNS are not in it: they come from outside at each start.
set -eu

packages=$(paste -sd, packages)
suite=$1
if [ "$(id -u)" = 0 ]; then
    mode=root
    as_root() { sh -euc "$1"; }
else
    mode=unshare
    as_root() { unshare --map-root-user --map-auto sh -euc "$1"; }
fi

# What a fresh chroot is told: the user that commands run as, a place for their project, UTF-8 without locale data,
# no identity, no name servers, a Python that pip may install into (the sandbox is thrown away anyway), and where there
# is a container engine the directory of its layers: the agent puts the scratch disk there.
settle='
chroot "$1" useradd --uid 1000 --user-group --create-home --shell /bin/bash agent
mkdir -p "$1/workspace"
chroot "$1" chown agent:agent /workspace
echo "LANG=C.UTF-8" > "$1/etc/default/locale"
echo "sandbox" > "$1/etc/hostname"
printf "127.0.0.1 localhost sandbox\n::1 localhost\n" > "$1/etc/hosts"
printf "[safe]\n\tdirectory = /workspace\n" > "$1/etc/gitconfig"
ln -sfn ../proc/self/mounts "$1/etc/mtab"
rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED
: > "$1/etc/machine-id"
[ ! -e "$1/usr/sbin/dockerd" ] || mkdir -p -m 0710 "$1/var/lib/docker" "$1/var/lib/containerd"
[ ! -e "$1/usr/bin/podman" ] || {
    mkdir -p "$1/var/lib/containers" "$1/etc/containers"
    printf "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n" > "$1/etc/containers/storage.conf"
    chroot "$1" setpriv --reuid agent --regid agent --clear-groups mkdir -p /home/agent/.local/share/containers
}
'

# Documentation and translations are a third of a small image, and nobody reads them there; licences stay.
mmdebstrap --verbose --mode="$mode" --variant=minbase --format=tar --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --aptopt='Apt::Install-Recommends "false"' \
    --customize-hook="$settle" "$suite" tree.tar sources.list </dev/null

# Device nodes come from devtmpfs, and a user namespace could not make them. Times stay as packaged: Python compares
# them with its compiled files.
as_root '
mkdir tree
tar --numeric-owner --xattrs --xattrs-include="*" --exclude="./dev/*" -xpf tree.tar -C tree
: > tree/etc/resolv.conf
mkfs.erofs -U 6d696467-6520-696d-6167-652000000000 image.erofs tree > /dev/null
rm -rf tree
'
rm tree.tar
