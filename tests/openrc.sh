#!/bin/sh
# The samples for OpenRC under a real openrc-run and supervise-daemon, unpacked from Debian's packages into a root of its own:
# start, status, reload that fails where the daemon refuses, another start after a crash, stop. `make openrc-test` calls it.
# Needs root, overlay mounts and Debian's package index.
#
# Usage: tests/openrc.sh DIRECTORY   (where the programs are)
# Exit status: 0 if every step did what it should; 77, with a line that says why, if it cannot run here.
set -eu

fail() { echo "openrc: $1" >&2; exit 1; }
skip() { echo "openrc: SKIPPED: $1"; exit 77; }
expect() {
    got=0
    /etc/init.d/hadmd "$2" > /tmp/out 2>&1 || got=$?
    [ "$got" = "$1" ] || { cat /tmp/out >&2; fail "$2: ended with $got, not $1"; }
}
until_so() {
    tries=200
    until "$@" > /dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "this did not come about: $*"
        sleep 0.1
    done
}
# shellcheck disable=SC2317 # until_so calls it
another() { hadmctl status && [ "$(pidof hadmd)" != "$first" ]; }

inside() {
    for name in daemons exclusive failed hotplugged inactive options scheduled started starting stopping tmp wasinactive; do
        mkdir -p /run/openrc/$name
    done
    ldconfig
    expect 0 start
    until_so hadmctl status
    expect 0 status
    first=$(pidof hadmd)
    [ "$(stat -c %U "/proc/$first")" = hadm ] || fail "it runs as $(stat -c %U "/proc/$first")"
    sed -i 's/<maxpingcount>3</<maxpingcount>4</' /etc/hadm/hadm.xml
    expect 0 reload
    grep -q 'maxpingcount: 3 -> 4' /tmp/out || fail "reload does not say what changed"
    sed -i 's/<serverport>9998</<serverport>9996</' /etc/hadm/hadm.xml
    expect 1 reload
    sed -i 's/<serverport>9996</<serverprot>9996</' /etc/hadm/hadm.xml
    expect 1 reload
    expect 0 status
    sed -i 's/<serverprot>9996</<serverport>9998</' /etc/hadm/hadm.xml
    # More often than supervise-daemon would do it by itself.
    for round in 1 2 3; do
        first=$(pidof hadmd)
        kill -9 "$first"
        until_so another
    done
    expect 0 stop
    ! pidof hadmd || fail "it runs on after round $round and the stop"
    echo "openrc: the sample starts, reloads and starts again under $(openrc --version | head -n 1)"
}
if [ "$1" = inside ]; then inside; exit; fi

# root PROGRAMS WORK: makes the root in a tmpfs, and goes there.
root() {
    top=$PWD
    mount -t tmpfs -o mode=755 root "$2/root"
    cd "$2/root"
    mkdir upper work new
    cd new
    mkdir usr etc etc/hadm etc/init.d etc/conf.d etc/runlevels etc/runlevels/default etc/pam.d run run/openrc proc dev tmp var var/log
    mount -t overlay overlay -o "lowerdir=/usr,upperdir=$2/root/upper,workdir=$2/root/work" usr || exit 77
    for name in bin sbin lib lib64; do ln -s usr/$name $name; done
    ln -s /run var/run
    for file in "$2"/*.deb; do dpkg-deb --fsys-tarfile "$file" | tar -x --keep-directory-symlink; done
    mount -t proc proc proc
    for name in null zero urandom; do
        : > dev/$name
        mount --bind /dev/$name dev/$name
    done
    cp /etc/ld.so.cache etc
    printf 'root:x:0:0::/root:/bin/sh\nhadm:x:77:77::/:/bin/false\n' > etc/passwd
    printf 'root:x:0:\nhadm:x:77:\n' > etc/group
    for kind in auth account session; do echo "$kind required pam_permit.so"; done > etc/pam.d/other
    rm -f etc/pam.d/supervise-daemon etc/pam.d/start-stop-daemon
    : > etc/insserv.conf
    echo default > run/openrc/softlevel
    cp "$1/hadmd" "$1/hadm-nbd" usr/sbin
    cp "$1/hadmctl" usr/bin
    cp "$top"/etc/openrc/* etc/init.d
    printf '#!/sbin/openrc-run\nstart() { :; }\n' > etc/init.d/net
    chmod 755 etc/init.d/*
    cp "$top/etc/one-site.xml" etc/hadm/hadm.xml
    echo 'DAEMON_ARGS="--no-kmod-check"' > etc/conf.d/hadmd
    cp "$top/tests/openrc.sh" openrc.sh
    hostname node0
    ip link set lo up
    exec chroot . /bin/sh /openrc.sh inside
}
if [ "$1" = root ]; then root "$2" "$3"; exit; fi

bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || skip "it takes root"
command -v apt-get > /dev/null || skip "there is no apt-get"
unshare --mount --pid --fork true 2> /dev/null || skip "it takes the right to make namespaces"
work=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-openrc.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir "$work/root"
(cd "$work" && apt-get -q -o APT::Sandbox::User=root download openrc libeinfo1 librc1 > fetched 2>&1) ||
    skip "OpenRC cannot be fetched: $(tail -n 1 "$work/fetched")"
status=0
unshare --mount --pid --uts --ipc --net --fork --kill-child sh "$PWD/tests/openrc.sh" root "$bin" "$work" || status=$?
[ "$status" != 77 ] || skip "there are no overlay mounts"
exit "$status"
