#!/bin/sh
# The init scripts in a root that has BusyBox and these programs, nothing else: start, stop, restart, reload and status,
# with and without a user for the daemon. Processes, mounts and network are its own. Needs root and a static busybox.
#
# Usage: tests/init-script.sh DIRECTORY   (where the programs are)
# Exit status: 0 only if every step did what it should.
set -eu

fail() { echo "init-script: $1" >&2; exit 1; }
script=hadmd
service() { "/etc/init.d/$script" "$@"; }
pid() { cat /run/hadmd.pid; }
# expect STATUS ACTION: what the init script must end with.
expect() {
    got=0
    service "$2" > /out 2>&1 || got=$?
    [ "$got" = "$1" ] || { cat /out >&2; fail "$2: ended with $got, not $1"; }
}
owner() { awk '$1 == "Uid:" { print $2 }' "/proc/$(pid)/status"; }
# until_so COMMAND...: within 5 s
until_so() {
    tries=50
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "this did not come about: $*"
        sleep 0.1
    done
}
status_is() { got=0; service status > /out || got=$?; [ "$got" = "$1" ]; }

inside() {
    mount -t proc proc /proc
    ip link set lo up
    hostname node0

    expect 3 status
    expect 1 start
    expect 3 status
    echo 'DAEMON_ARGS="--no-kmod-check -v"' > /etc/default/hadmd
    expect 0 start
    expect 0 status
    [ "$(owner)" = 77 ] || fail "it runs as $(owner), not as user hadm"
    [ "$(stat -c '%a %u' /run/hadm)" = "750 77" ] || fail "/run/hadm is not hadm's"
    first=$(pid)
    expect 0 start
    [ "$(pid)" = "$first" ] || fail "start again: another process runs"
    expect 0 restart
    [ "$(pid)" != "$first" ] || fail "restart: the same process runs"
    timeout 5 hadm-probe state > /probe 2>&1 &
    until_so grep -qs 'attached to the daemon of node 0' /probe

    first=$(pid)
    cp /etc/hadm/hadm.xml /good.xml
    echo "<hadm/>" > /etc/hadm/hadm.xml
    for action in reload restart; do
        expect 6 "$action"
        grep -q 'has no <global>' /out || fail "$action does not say what is wrong with the configuration"
    done
    [ "$(pid)" = "$first" ] || fail "a bad configuration ended the daemon"
    cp /good.xml /etc/hadm/hadm.xml
    sed -i 's/<maxpingcount>3</<maxpingcount>4</' /etc/hadm/hadm.xml
    expect 0 reload
    grep -q 'maxpingcount: 3 -> 4' /out || fail "reload does not say what changed: $(cat /out)"
    # Good by itself, but not for the daemon that runs.
    sed -i 's/<serverport>9998</<serverport>9996</' /etc/hadm/hadm.xml
    expect 1 reload
    grep -q 'needs a restart' /out || fail "reload does not say why it was refused: $(cat /out)"
    cp /good.xml /etc/hadm/hadm.xml
    mv /usr/bin/hadmctl /hadmctl
    expect 0 reload
    grep -q 'log says' /out || fail "reload without hadmctl does not say where the outcome is"
    mv /hadmctl /usr/bin/hadmctl
    expect 0 status
    [ "$(pid)" = "$first" ] || fail "reload: another process runs"

    kill -9 "$(pid)"
    until_so status_is 1
    expect 0 try-restart
    expect 7 reload
    expect 0 start
    expect 0 stop
    expect 3 status
    expect 0 stop

    sed -i /hadm/d /etc/passwd
    expect 0 start
    [ "$(owner)" = 0 ] || fail "without a user hadm it runs as $(owner), not as root"
    expect 0 stop
    expect 2 nonsense

    script=hadm-nbd
    hostname left
    ip addr add 192.0.2.1/32 dev lo
    cp /mirror.xml /etc/hadm/hadm.xml
    expect 3 status
    expect 1 start
    truncate -s 16M /var/lib/hadm/data.disk
    hadm-nbd init --clean data > /out
    expect 0 start
    expect 0 status
    first=$(cat /run/hadm-nbd.pid)
    expect 0 start
    expect 0 restart
    [ "$(cat /run/hadm-nbd.pid)" != "$first" ] || fail "restart: the same process runs"
    expect 0 reload
    echo "<hadm/>" > /etc/hadm/hadm.xml
    expect 6 reload
    cp /mirror.xml /etc/hadm/hadm.xml
    expect 0 status
    kill -9 "$(cat /run/hadm-nbd.pid)"
    until_so status_is 1
    expect 0 try-restart
    expect 0 start
    expect 0 stop
    expect 3 status
    expect 7 reload
    expect 2 nonsense
    echo "init-script: every action works with BusyBox's start-stop-daemon"
}
if [ "$1" = inside ]; then inside; exit; fi

bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
busybox=$(command -v busybox) || fail "busybox is missing"
root=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-init.XXXXXX")
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
trap 'exit 130' INT TERM HUP

mkdir -p "$root/bin" "$root/proc" "$root/dev" "$root/run" "$root/tmp" "$root/etc/hadm" "$root/etc/default" "$root/etc/init.d"
cp "$busybox" "$root/bin/busybox"
chroot "$root" /bin/busybox true 2> /dev/null || fail "$busybox is not static: install busybox-static"
chroot "$root" /bin/busybox --install -s /bin
mkdir -p "$root/usr/sbin" "$root/usr/bin" "$root/var/lib/hadm"
cp "$bin/hadmd" "$bin/hadm-nbd" "$root/usr/sbin"
cp "$bin/hadmctl" "$bin/hadm-probe" "$root/usr/bin"
# The libraries the programs load, at their own paths.
ldd "$bin/hadmd" "$bin/hadmctl" "$bin/hadm-nbd" "$bin/hadm-probe" | grep -o '/[^ :]*\.so[^ :]*' | sort -u | while read -r library; do
    mkdir -p "$root${library%/*}"
    cp -L "$library" "$root$library"
done
mknod "$root/dev/null" c 1 3
echo "hadm:x:77:77::/:/bin/false" >> "$root/etc/passwd"
echo "hadm:x:77:" >> "$root/etc/group"
cp etc/one-site.xml "$root/etc/hadm/hadm.xml"
cp etc/mirror.xml "$root/mirror.xml"
cp etc/init.d/hadmd etc/init.d/hadm-nbd "$root/etc/init.d"
cp "$0" "$root/init-script.sh"

unshare --mount --net --pid --uts --ipc --fork --kill-child chroot "$root" /bin/sh /init-script.sh inside
