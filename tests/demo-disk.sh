#!/bin/sh
# Shows a mirrored disk: two sites of one node each, as in etc/mirror.xml, each in a network namespace of its own. An
# ext4 is made on the disk, a source tree is unpacked in it, the primary's machine is killed in the middle of writing, the
# other site is promoted, and everything that was synced is there. Then the first comes back. `make demo` calls it.
#
# Usage: tests/demo-disk.sh DIRECTORY   (where hadmd, hadm-nbd and hadmctl are)
# Exit status: 0 only if nothing was lost and both disks are equal in the end; or if there can be no namespaces here, which
# a line says. Without nbdfuse, loop devices or mkfs.ext4 it writes to the disk itself by nbdcopy; without that, too, it
# says so and ends.
set -eu

bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
# shellcheck source=tests/wait-for.sh
. tests/wait-for.sh

skip() {
    echo "demo: a mirrored disk: skipped: $1"
    exit 0
}

if [ "${2-}" != inside ]; then
    [ "$(id -u)" = 0 ] || skip "needs root, for its file system"
    for tool in ip unshare nsenter; do
        command -v "$tool" > /dev/null || skip "needs $tool (packages iproute2 and util-linux)"
    done
    command -v nbdcopy > /dev/null || skip "needs nbdcopy (package libnbd-bin)"
    unshare --net --mount true 2> /dev/null || skip "this system gives no network namespaces"
    # Mounts end with the namespace, however this ends.
    exec unshare --net --mount tests/demo-disk.sh "$bin" inside
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-demo.XXXXXX")
machines=
programs=
fuse=

clean_up() {
    trap '' INT TERM HUP
    umount "$dir/tree" 2> /dev/null || :
    umount "$dir/raw" 2> /dev/null || :
    # shellcheck disable=SC2086
    end_all 8 $fuse $programs
    for pid in $machines; do kill "$pid" 2> /dev/null || :; done
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

fail() {
    echo "demo: a mirrored disk: $1" >&2
    for file in "$dir"/*.log; do
        [ ! -s "$file" ] || { echo "--- ${file##*/}"; tail -n 20 "$file"; } >&2
    done
    exit 1
}

within() { at=$(cat "$dir/$1.pid"); shift; exec nsenter --net="/proc/$at/ns/net" "$@"; }
disk() { at=$1; shift; "$bin/hadmctl" --control "$dir/$at.nbd.sock" disk "$@"; }
says() { disk "$1" status data 2> /dev/null | grep -q "$2"; }
show() { for at in left right; do printf '  %-6s %s\n' "$at" "$(disk "$at" status data 2> /dev/null || echo 'is gone')"; done; }

# start MACHINE: daemon and mirror.
start() {
    within "$1" "$bin/hadmd" -c "$dir/$1.xml" --hostname "$1" --no-kmod-check --log stderr \
        --control "$dir/$1.sock" 2>> "$dir/$1.hadmd.log" &
    echo $! > "$dir/$1.hadmd"
    programs="$programs $!"
    within "$1" "$bin/hadm-nbd" -c "$dir/$1.xml" --hostname "$1" run --log stderr --control "$dir/$1.nbd.sock" \
        --sockets "$dir/$1" 2>> "$dir/$1.nbd.log" &
    echo $! > "$dir/$1.nbd"
    programs="$programs $!"
    wait_for 20 says "$1" data || fail "$1 did not start"
}

# open_tree MACHINE: the primary's disk as a file, by nbdfuse, and the file system in it.
open_tree() {
    mkdir -p "$dir/raw" "$dir/tree"
    : > "$dir/raw.file"
    nbdfuse "$dir/raw.file" --unix "$dir/$1/data.nbd" 2> "$dir/fuse.log" &
    fuse=$!
    wait_for 10 test -s "$dir/raw.file" || fail "nbdfuse does not show the disk"
}

free=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
[ "$free" -ge 600000 ] || fail "${TMPDIR:-/tmp} has no 600 MB left; name a roomier directory in TMPDIR"

for machine in left right; do
    mkdir "$dir/$machine" "$dir/$machine.disks"
    sed "s|/var/lib/hadm|$dir/$machine.disks|" etc/mirror.xml > "$dir/$machine.xml"
    truncate -s 128M "$dir/$machine.disks/data.disk"
    unshare --net sh -c 'echo; exec sleep 900' > "$dir/up" &
    machines="$machines $!"
    echo $! > "$dir/$machine.pid"
    wait_for 10 test -s "$dir/up" || fail "no network namespace for $machine"
    rm "$dir/up"
done
ip link add left type veth peer name right
number=0
for machine in left right; do
    number=$((number + 1))
    ip link set "$machine" netns "$(cat "$dir/$machine.pid")"
    (within "$machine" ip -batch - << END
link set lo up
link set $machine up
addr add 192.0.2.$number/24 dev $machine
END
    )
    (within "$machine" "$bin/hadm-nbd" -c "$dir/$machine.xml" --hostname "$machine" init --clean data) \
        > "$dir/$machine.init.log" 2>&1 || fail "$machine has no metadata"
done
start left
start right
wait_for 20 says left "site 1 in sync" || fail "the sites do not meet"
wait_for 20 says right "site 0 in sync" || fail "the sites do not meet"

echo "Two sites with a disk of 128 MiB, etc/mirror.xml; the left one becomes primary:"
disk left primary data > "$dir/primary.log" 2>&1 || fail "the left site is not promoted"
show
echo

mkfs=
if command -v nbdfuse > /dev/null && command -v mkfs.ext4 > /dev/null && [ -e /dev/fuse ] && losetup -f > /dev/null 2>&1; then
    mkfs=yes
fi
if [ "$mkfs" ]; then
    open_tree left
    mkfs.ext4 -q -F "$dir/raw.file" > "$dir/mkfs.log" 2>&1 || fail "no ext4 can be made"
    if mount -o loop "$dir/raw.file" "$dir/tree" 2> "$dir/mount.log"; then
        cp -R src "$dir/tree/first"
        (cd src && find . -type f -exec sha256sum {} +) > "$dir/sums"
        sync -f "$dir/tree/first"
        echo "An ext4 on it, with $(wc -l < "$dir/sums") files that are synced; then files without an end, and the left machine is killed:"
        (n=0; while cp -R src "$dir/tree/more$n"; do n=$((n + 1)); done) > /dev/null 2>&1 &
        writer=$!
        sleep 1
    else
        mkfs=
        kill "$fuse"; fuse=
    fi
fi
if [ -z "$mkfs" ]; then
    echo "Without nbdfuse, loop devices and mkfs.ext4 no file system: 64 MiB are copied to it and flushed; the left machine is killed:"
    head -c 67108864 /dev/urandom > "$dir/sample"
    nbdcopy --flush "$dir/sample" "nbd+unix:///data?socket=$dir/left/data.nbd" || fail "the disk cannot be written"
    writer=
fi
kill -9 "$(cat "$dir/left.nbd")" "$(cat "$dir/left.hadmd")"
[ -z "$writer" ] || { wait "$writer" 2> /dev/null || :; }
if [ "$mkfs" ]; then
    umount -l "$dir/tree" 2> /dev/null || :
    kill -9 "$fuse" 2> /dev/null || :
    fuse=
    umount -l "$dir/raw.file" 2> /dev/null || :
fi
wait_for 30 says right "no primary" || fail "the right site does not notice"
show
echo

echo "The right one is promoted; a person says that the left one is gone:"
disk right primary data > "$dir/refused.log" 2>&1 && fail "it was promoted without being forced"
sed 's/^/  /' "$dir/refused.log" | fold -s -w 118
disk right primary data --force > "$dir/primary.log" 2>&1 || fail "the right site is not promoted"
show
nbdcopy "nbd+unix:///data?socket=$dir/right/data.nbd" "$dir/copy" || fail "the disk cannot be read"
if [ "$mkfs" ]; then
    # The journal is replayed as after any loss of power; then nothing may be wrong.
    e2fsck -p "$dir/copy" > "$dir/fsck.log" 2>&1 || [ $? -le 1 ] || fail "the file system is damaged"
    e2fsck -fn "$dir/copy" > "$dir/fsck.log" 2>&1 || fail "the file system is not clean"
    mount -o loop,ro "$dir/copy" "$dir/tree" || fail "the file system cannot be mounted"
    (cd "$dir/tree/first" && sha256sum --quiet -c "$dir/sums") || fail "a file that was synced is not there"
    umount "$dir/tree"
    echo "  the file system is clean, and each of the $(wc -l < "$dir/sums") files is as it was"
else
    cmp -n 67108864 "$dir/sample" "$dir/copy" || fail "what was flushed is not there"
    echo "  all that was flushed is there"
fi
echo

echo "The left machine comes back:"
start left
wait_for 60 says right "site 0 in sync" || fail "the left site is not resynced"
wait_for 20 says left "site 1 in sync" || fail "the left site is not resynced"
sed -n 's/.*\(site [01] has newer data.*\)/  \1/p' "$dir/right.nbd.log" | tail -n 1
show
cmp "$dir/left.disks/data.disk" "$dir/right.disks/data.disk" || fail "the disks differ"
echo
echo "demo: a mirrored disk: nothing was lost, and both disks are equal"
