#!/bin/sh
# The Debian package, through its whole life, in a Debian of its own: installed, started under its init script,
# upgraded, removed, purged. `make deb-test` calls it, as root. The pristine Debian, 200 MB, is fetched once (from
# DEBIAN_MIRROR, if given) and kept in OUT/debian-root; each run works on a copy, with processes, mounts and a
# network of its own, and leaves nothing behind.
#
# Usage: tests/deb.sh OUT   (the directory with hadmd_*.deb)
# Exit status: 0 only if every step did what it should.
set -eu

fail() { echo "deb-test: $1" >&2; exit 1; }
# step WHAT COMMAND...
step() {
    what=$1
    shift
    "$@" > /tmp/step.out 2>&1 || { cat /tmp/step.out >&2; fail "$what: failed"; }
    echo "  $what"
}
# refused STATUS WHAT COMMAND...: it must end with this status.
refused() {
    status=$1 what=$2
    shift 2
    got=0
    "$@" > /tmp/step.out 2>&1 || got=$?
    [ "$got" = "$status" ] || { cat /tmp/step.out >&2; fail "$what: ended with $got, not $status"; }
    echo "  $what"
}
service() { /etc/init.d/hadmd "$@"; }
pid() { cat /run/hadmd.pid; }

# Every file, and whatever else the package could have changed outside dpkg's own records. useradd keeps backups,
# whose names end in `-`.
inventory() {
    find / -xdev \( -path /proc -o -path /tmp -o -path /var/lib/dpkg -o -path /var/log -o -path /var/cache -o -path /run \) \
        -prune -o ! -name '*-' -print | sort
    find /run -name '*hadm*'
    cat /etc/passwd /etc/group
}
no_links() { ! ls /etc/rc[2-5].d/S*hadmd 2> /dev/null; }
runs_as_hadm() {
    [ "$(awk '$1 == "Uid:" { print $2 }' "/proc/$(pid)/status")" = "$(id -u hadm)" ]
}
# The daemon speaks: a probe attaches as the kernel module would, and is told who is there.
speaks() {
    timeout 10 hadm-probe state > /tmp/probe.out 2>&1 &
    tries=50
    until grep -qs 'attached to the daemon of node 0' /tmp/probe.out; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { cat /tmp/probe.out; return 1; }
        sleep 0.1
    done
    kill $!
    wait $! || :
}
# ended STATUS: until `status` says so.
ended() {
    tries=50
    until got=0; service status || got=$?; [ "$got" = "$1" ]; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

# Both lines of `hadmctl version`, the program and the daemon that answers it.
same_version() { hadmctl version > /tmp/said && [ "$(awk '{ print $2 }' /tmp/said | uniq | wc -l)" = 1 ]; }
shows_status() { hadmctl status > /tmp/said && grep -q '^hadmd .* node 0 (node0) of site 0 ' /tmp/said; }

# What happens in the copy.
inside() {
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C
    mount -t proc proc /proc
    hostname node0
    # Without an init system, Debian starts nothing unless a policy allows it.
    printf '#!/bin/sh\nexit 0\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    inventory > /tmp/before

    step "install" dpkg -i /tmp/hadmd.deb
    step "user hadm is there" getent passwd hadm
    step "nothing starts at boot by itself" no_links
    refused 3 "and nothing runs" service status
    refused 1 "start without the kernel module is refused" service start
    echo 'DAEMON_ARGS="--modules /tmp/modules"' > /etc/default/hadmd
    echo "hadm_kmod 16384 0 - Live 0x0" > /tmp/modules

    step "start" service start
    step "status" service status
    step "it runs as user hadm" runs_as_hadm
    step "it serves its kernel module" speaks
    step "hadmctl and it have the same version" same_version
    step "hadmctl shows its status" shows_status
    first=$(pid)
    step "start again changes nothing" service start
    [ "$(pid)" = "$first" ] || fail "start again: another process runs"
    step "restart" service restart
    [ "$(pid)" != "$first" ] || fail "restart: the same process runs"
    sed -i s/serverport/serverprot/ /etc/hadm/hadm.xml
    refused 6 "reload with a bad configuration is refused" service reload
    step "and it runs on" service status
    sed -i s/serverprot/serverport/ /etc/hadm/hadm.xml
    : > /tmp/modules
    step "it ends when the kernel module goes" ended 1
    echo "hadm_kmod 16384 0 - Live 0x0" > /tmp/modules
    step "start when it is back" service start

    step "enable" update-rc.d hadmd enable
    first=$(pid)
    echo "<!-- ours -->" >> /etc/hadm/hadm.xml
    step "upgrade" dpkg -i /tmp/newer.deb
    step "it still runs" service status
    [ "$(pid)" != "$first" ] || fail "upgrade: the old process runs"
    step "the configuration is kept" grep -q ours /etc/hadm/hadm.xml
    step "remove" dpkg -r hadmd
    refused 1 "nothing runs" pgrep_hadmd
    step "the configuration is kept" test -e /etc/hadm/hadm.xml -a -e /etc/default/hadmd
    step "purge" dpkg -P hadmd
    inventory > /tmp/after
    step "nothing is left" diff /tmp/before /tmp/after
}
pgrep_hadmd() { grep -lx hadmd /proc/[0-9]*/comm; }

if [ "$1" = inside ]; then inside; exit; fi

out=$(cd "$1" && pwd)
[ "$(id -u)" = 0 ] || fail "needs root, for a Debian of its own"
for tool in debootstrap unshare ip dpkg-deb; do
    command -v $tool > /dev/null || fail "$tool is missing"
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml" | head -n 1)
package=$out/hadmd_${version}_$(dpkg --print-architecture).deb

pristine=$out/debian-root
if [ ! -d "$pristine" ]; then
    echo "deb-test: fetching a minimal Debian, once"
    rm -rf "$pristine.new"
    debootstrap --variant=minbase bookworm "$pristine.new" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} > "$out/debootstrap.log" 2>&1 ||
        fail "debootstrap failed; $out/debootstrap.log says why"
    mv "$pristine.new" "$pristine"
fi
root=$(mktemp -d "$out/deb-test.XXXXXX")
trap 'rm -rf "$root"' EXIT
trap 'exit 130' INT TERM HUP
cp -a "$pristine/." "$root"

# The same files as a newer version.
cp "$package" "$root/tmp/hadmd.deb"
dpkg-deb -R "$package" "$root/tmp/newer"
sed -i 's/^Version: .*/&+1/' "$root/tmp/newer/DEBIAN/control"
dpkg-deb --build "$root/tmp/newer" "$root/tmp/newer.deb" > /dev/null
cp "$0" "$root/tmp/deb.sh"

# The end of the first process in it ends whatever was left running.
# shellcheck disable=SC2016 # that is for the inner shell
unshare --mount --net --pid --uts --ipc --fork --kill-child \
    sh -c 'ip link set lo up && exec chroot "$1" /bin/sh /tmp/deb.sh inside' sh "$root"
echo "deb-test: installed, ran, upgraded and went without a trace"
