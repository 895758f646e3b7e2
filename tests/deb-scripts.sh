#!/bin/sh
# The Debian package's own scripts, installed and purged again and again on a copy of this machine's /usr, with nothing of
# its packages, users or services: what a purge leaves and what the next installation finds. `tests/deb.sh` runs the
# daemon in a whole Debian; this needs no network, and no programs either. Needs root, dpkg and overlay mounts.
#
# Usage: tests/deb-scripts.sh
# Exit status: 0 if every step did what it should; 77, with a line that says why, if it cannot run here.
set -eu

fail() {
    echo "deb-scripts: $1" >&2
    cat /tmp/step >&2
    exit 1
}
skip() { echo "deb-scripts: SKIPPED: $1"; exit 77; }
# step WHAT COMMAND...
step() {
    what=$1
    shift
    "$@" > /tmp/step 2>&1 || fail "$what failed: $*"
}
install_it() { step "$1" dpkg --force-depends -i /hadmd.deb; }
purge() { step "$1" dpkg -P hadmd; }

inside() {
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin
    install_it "installation"
    step "user and group" sh -c 'getent passwd hadm && getent group hadm'
    step "hadmctl in bin" hadmctl
    step "hadmctl at its old place" /usr/sbin/hadmctl

    step "a member" useradd admin
    step "a member" usermod -aG hadm admin
    purge "purge"
    ! getent passwd hadm > /tmp/step || fail "the user stays"
    step "the group stays for its member" sh -c 'getent group hadm | grep -q ":admin$"'
    install_it "installation with the group there"
    [ "$(id -gn hadm)" = hadm ] || fail "hadm's group is $(id -gn hadm)"
    step "the member still is one" sh -c 'id -Gn admin | grep -qw hadm'
    install_it "the same version again"
    step "the member leaves" gpasswd -d admin hadm
    purge "purge without members"
    ! getent group hadm > /tmp/step || fail "the group stays without members"

    # A user that somebody made before is not the package's.
    step "a user of the administrator's" useradd --system --home-dir /home hadm
    install_it "installation with the user there"
    purge "purge"
    step "the administrator's user stays" getent passwd hadm
    step "a user of the administrator's" userdel hadm

    # As hadmd(8) says: dpkg removes the file behind a link, and the link must not be left pointing to nothing.
    install_it "installation"
    mkdir /data
    mv /etc/hadm/hadm.xml /data
    ln -s /data/hadm.xml /etc/hadm/hadm.xml
    install_it "installation over a link"
    [ -L /etc/hadm/hadm.xml ] || fail "the link was replaced"
    purge "purge with a link"
    find /etc/hadm /data > /tmp/step 2>&1 || :
    if [ -e /etc/hadm ] || [ -e /data/hadm.xml ]; then fail "dpkg treats a configuration that is a link in another way than hadmd(8) says"; fi
    echo "deb-scripts: installed and purged with and without members, users and links"
}
if [ "${1:-}" = inside ]; then inside; exit; fi

# root WORK: makes the root in a tmpfs, and goes there.
root() {
    mount -t tmpfs -o mode=755 root "$1"
    cd "$1"
    mkdir upper work old new new/usr new/etc new/var new/var/lib new/var/lib/dpkg new/var/lib/dpkg/info new/var/lib/dpkg/updates \
        new/tmp new/run new/proc new/dev new/home
    mount -t overlay overlay -o "lowerdir=/usr,upperdir=$1/upper,workdir=$1/work" new/usr || exit 77
    for name in bin sbin lib lib64; do ln -s usr/$name new/$name; done
    : > new/dev/null
    mount --bind /dev/null new/dev/null
    mount -t proc proc new/proc
    cp -r /etc/ld.so.cache /etc/login.defs /etc/default /etc/pam.d new/etc 2> /dev/null || :
    rm -f new/etc/default/hadmd
    mkdir -p new/etc/rc0.d new/etc/rc1.d new/etc/rc2.d new/etc/rc3.d new/etc/rc4.d new/etc/rc5.d new/etc/rc6.d new/etc/rcS.d \
        new/etc/init.d new/etc/security
    echo "root:x:0:0::/root:/bin/sh" > new/etc/passwd
    echo "root:x:0:" > new/etc/group
    : > new/etc/shadow
    : > new/etc/gshadow
    : > new/var/lib/dpkg/status
    printf '#!/bin/sh\nexit 101\n' > new/usr/sbin/policy-rc.d
    chmod 755 new/usr/sbin/policy-rc.d
    cp "$2"/hadmd_*.deb new/hadmd.deb
    cp "$3" new/deb-scripts.sh
    exec chroot new /bin/sh /deb-scripts.sh inside
}
if [ "${1:-}" = root ]; then root "$2" "$3" "$4"; exit; fi

cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || skip "it takes root"
for tool in dpkg-deb useradd update-rc.d unshare; do
    command -v $tool > /dev/null || skip "$tool is missing"
done
unshare --mount --pid --fork true 2> /dev/null || skip "it takes the right to make namespaces"
work=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir "$work/bin" "$work/root"
# Anything with symbols of the C library does.
for program in hadmd hadmctl hadm-probe hadm-nbd; do cp -L /usr/bin/true "$work/bin/$program"; done
etc/debian/build.sh "$work/bin" "$work/out" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
status=0
unshare --mount --pid --uts --ipc --net --fork --kill-child sh "$PWD/tests/deb-scripts.sh" root "$work/root" "$work/out" \
    "$PWD/tests/deb-scripts.sh" || status=$?
[ "$status" != 77 ] || skip "there are no overlay mounts"
exit "$status"
