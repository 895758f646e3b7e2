#!/bin/sh
# The units under a real systemd, as the first process of a root of its own with this machine's /usr: hadmd and hadm-nbd
# as `make install` leaves them, with all that the units forbid them. Processes, mounts, network and control groups are
# its own. Needs root and Linux with cgroup2.
#
# Usage: tests/systemd.sh DIRECTORY   (where the programs are)
# Exit status: 0 if every step did what it should; 77, with a line that says why, if systemd cannot run here.
set -eu

fail() {
    echo "systemd: $1" >&2
    journalctl -q -o short-monotonic -n 30 >&2 || :
    exit 1
}
skip() { echo "systemd: SKIPPED: $1"; exit 77; }
# until_so SECONDS COMMAND...
until_so() {
    tries=$(($1 * 10))
    shift
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "this did not come about: $*"
        sleep 0.1
    done
}
# refused COMMAND...: it must fail.
refused() { ! "$@" > /tmp/out 2>&1 || fail "this succeeded: $*"; }
show() { systemctl show -P "$2" "$1"; }
is() { [ "$(show "$1" "$2")" = "$3" ]; }
# A setting for a unit, for this test. An empty value comes before another for what would else be a list.
drop_in() {
    mkdir -p "/etc/systemd/system/$1.d"
    printf '[%s]\n%s\n' "$2" "$3" > "/etc/systemd/system/$1.d/$4.conf"
    systemctl daemon-reload
}
said() { journalctl -q -o cat -u "$1" --after-cursor "$cursor"; }
# Nothing above a note in the journal: no warning about a socket, a call that was forbidden, a watchdog.
no_complaint() {
    if journalctl -q -o cat -p warning -u "$1" --after-cursor "$cursor" | grep . > /tmp/out; then
        cat /tmp/out >&2
        fail "$1 complains"
    fi
}
# What comes after this is what is looked at.
begin() {
    journalctl --sync
    cursor=$(journalctl -n 1 -o cat --show-cursor | sed -n 's/^-- cursor: //p')
}
runs_on() { [ "$(show hadmd MainPID)" = "$first" ] || fail "$1: another process runs"; }
set_pings() { sed -i "s|<maxpingcount>.*<|<maxpingcount>$1<|" /etc/hadm/hadm.xml; }

# shellcheck disable=SC2317 # until_so calls them
restarted() { [ "$(show hadmd MainPID)" != "$first" ] && [ "$(show hadmd NRestarts)" -gt 0 ]; }
# shellcheck disable=SC2317
restarts_beyond() { [ "$(show hadmd NRestarts)" -gt "$1" ]; }
# shellcheck disable=SC2317
attached() { hadmctl status 2> /dev/null | grep -q 'kernel module attached'; }

steps() {
    ip link set lo up
    ip addr add 192.0.2.1/32 dev lo
    systemd-sysusers > /tmp/out 2>&1 || fail "systemd-sysusers: $(cat /tmp/out)"
    drop_in hadmd.service Unit 'ConditionPathExists=' module
    # What peers do not answer is no complaint of this machine's.
    systemd-analyze verify --man=no hadmd.service hadm-nbd.service > /tmp/out 2>&1 || fail "verify: $(cat /tmp/out)"
    ! grep hadm /tmp/out > /complaints || fail "verify: $(cat /complaints)"

    begin
    systemctl start hadmd || fail "start"
    until_so 5 is hadmd StatusText "0 of 1 peers connected, kernel module not attached"
    [ "$(stat -c '%a %U %G' /run/hadm /run/hadm/hadmd.sock | xargs)" = "750 hadm hadm 660 hadm hadm" ] ||
        fail "the control socket: $(stat -c '%a %U %G' /run/hadm /run/hadm/hadmd.sock | xargs)"
    no_complaint hadmd
    echo "  start: user, control socket and system calls fit, nobody complains"

    first=$(show hadmd MainPID)
    set_pings 7
    systemctl reload hadmd || fail "reload"
    said hadmd | grep -q 'maxpingcount: 5 -> 7' || fail "reload changed nothing"
    sed -i s/maxpingcount/maxpingcuont/ /etc/hadm/hadm.xml
    refused systemctl reload hadmd
    said hadmd | grep -q maxpingcuont || fail "reload of a bad file: nothing says why"
    sed -i 's/maxpingcuont/maxpingcount/; s/<serverport>9998/<serverport>9996/' /etc/hadm/hadm.xml
    refused systemctl reload hadmd
    said hadmd | grep -q 'needs a restart' || fail "reload of what needs a restart: nothing says so"
    sed -i 's/<serverport>9996/<serverport>9998/' /etc/hadm/hadm.xml
    systemctl kill -s HUP hadmd
    until_so 5 is hadmd ActiveState active
    runs_on reload
    echo "  reload: fails where the daemon refuses, and the journal says why"

    drop_in hadmd.service Service "WatchdogSec=2" watchdog
    systemctl restart hadmd
    first=$(show hadmd MainPID)
    begin
    sleep 4
    runs_on "a watchdog that is fed"
    no_complaint hadmd
    systemctl kill -s STOP hadmd
    until_so 20 restarted
    until_so 10 is hadmd ActiveState active
    echo "  watchdog: content with a daemon that works, starts one anew that does not"

    systemctl stop hadmd
    drop_in hadmd.service Service "RestartSec=50ms" limits
    sed 's/>7000</>7001</; s|<serverport>9998|<serverport>9995|' /etc/hadm/hadm.xml > /other.xml
    sed -i 's/<serverport>9998/<serverport>9995/' /etc/hadm/hadm.xml
    hadmd -c /other.xml --no-kmod-check --log stderr --control /other.sock 2> /other.log &
    other=$!
    until_so 10 test -S /other.sock
    systemctl start --no-block hadmd
    until_so 60 restarts_beyond 15
    kill $other
    wait $other || :
    until_so 20 is hadmd ActiveState active
    said hadmd | grep -q '^cannot listen' || fail "nothing says that the port is in use"
    ! said hadmd | grep -q '^hadmd: cannot listen' || fail "the journal has lines of the system log twice"
    echo "  a port in use: tried until it is free"

    systemctl stop hadmd
    mv /etc/hadm/hadm.xml /good.xml
    echo '<hadm/>' > /etc/hadm/hadm.xml
    refused systemctl start hadmd
    is hadmd ActiveState failed || fail "a wrong configuration: $(show hadmd ActiveState)"
    [ "$(show hadmd ExecMainStatus) $(show hadmd NRestarts)" = "2 0" ] || fail "a wrong configuration is tried again"
    mv /good.xml /etc/hadm/hadm.xml
    echo "  a wrong configuration: not tried again"

    begin
    systemctl start hadmd hadm-nbd || fail "start with hadm-nbd"
    until_so 10 attached
    # Both have their sockets in one folder, whichever came first.
    [ "$(stat -c '%a %U %G' /run/hadm/hadm-nbd.sock /run/hadm/data.nbd | xargs)" = "660 root hadm 660 root hadm" ] ||
        fail "sockets of hadm-nbd: $(stat -c '%n %a %U %G' /run/hadm/* | xargs)"
    no_complaint hadm-nbd
    ! said hadm-nbd | grep 'memory is not locked' || fail "the unit forbids hadm-nbd to lock its memory"
    first=$(show hadm-nbd MainPID)
    systemctl restart hadmd
    until_so 10 attached
    [ "$(show hadm-nbd MainPID)" = "$first" ] || fail "hadm-nbd does not outlive hadmd"
    drop_in hadm-nbd.service Service "WatchdogSec=2" watchdog
    systemctl restart hadm-nbd || fail "restart of hadm-nbd"
    until_so 10 attached
    [ "$(stat -c '%a %U' /run/hadm)" = "750 hadm" ] || fail "hadm-nbd took /run/hadm"
    systemctl stop hadm-nbd hadmd
    rm -r /run/hadm
    systemctl start hadm-nbd
    systemctl start hadmd
    until_so 10 attached
    first=$(show hadm-nbd MainPID)
    sleep 4
    [ "$(show hadm-nbd MainPID)" = "$first" ] || fail "hadm-nbd does not feed its watchdog"
    first=$(show hadm-nbd MainPID)
    systemctl reload hadm-nbd || fail "reload of hadm-nbd"
    cp /etc/hadm/hadm.xml /good.xml
    echo '<hadm/>' > /etc/hadm/hadm.xml
    refused systemctl reload hadm-nbd
    [ "$(show hadm-nbd MainPID)" = "$first" ] || fail "reload of hadm-nbd: another process runs"
    # A peer whose name no name server knows yet holds up neither of them.
    sed 's|<ipaddr>192.0.2.2<|<ipaddr>right.invalid<|' /good.xml > /etc/hadm/hadm.xml
    systemctl restart hadmd hadm-nbd || fail "start without a name server"
    until_so 10 attached
    systemctl stop hadm-nbd hadmd || fail "stop"
    for unit in hadmd hadm-nbd; do
        is $unit Result success || fail "stop of $unit: $(show $unit Result)"
    done
    echo "  hadm-nbd: the same, with and without hadmd"
}

if [ "$1" = steps ]; then steps; echo 0 > /out/result; exit; fi

# Becomes the first process of the new root.
root() {
    bin=$1 work=$2 top=$PWD
    root=$work/root
    mount -t tmpfs -o mode=755 root "$root"
    cd "$root"
    mkdir out usr etc etc/systemd etc/systemd/system run var var/log var/lib var/lib/hadm var/tmp tmp proc sys dev root
    for name in bin sbin lib lib64; do ln -s usr/$name $name; done
    mount --bind "$work/out" out
    mount --bind /usr usr
    mount -o remount,ro,bind usr
    mount -t tmpfs -o mode=755 local usr/local
    mount -t proc proc proc
    # Settings of this machine are none of that root's business: systemd leaves alone what it cannot write.
    mount --bind proc/sys proc/sys
    mount -o remount,ro,bind proc/sys
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 dev dev
    for name in null zero full random urandom tty; do
        : > dev/$name
        mount --bind /dev/$name dev/$name
    done
    mkdir dev/shm dev/pts
    mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    mount -t tmpfs shm dev/shm
    echo "root:x:0:0::/root:/bin/sh" > etc/passwd
    echo "root:x:0:" > etc/group
    : > etc/machine-id
    cp /etc/ld.so.cache etc
    hostname left
    cp "$top/tests/systemd.sh" test.sh
    make -s -C "$top" install bin="$bin" DESTDIR="$root" PREFIX=/usr/local > install.log
    cp "$top/etc/mirror.xml" etc/hadm/hadm.xml
    chmod 755 . etc/hadm
    truncate -s 16M var/lib/hadm/data.disk
    chroot . /usr/local/sbin/hadm-nbd init --clean data > init.log
    echo 'DAEMON_ARGS=--no-kmod-check' > etc/default/hadmd
    # Nothing else of what a whole Debian starts.
    cat > etc/systemd/system/test.target << 'END'
[Unit]
DefaultDependencies=no
Requires=systemd-journald.service test.service
END
    cat > etc/systemd/system/test.service << 'END'
[Unit]
DefaultDependencies=no
After=systemd-journald.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/bin/sh /test.sh steps
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LC_ALL=C
StandardOutput=append:/out/said
StandardError=append:/out/said
END
    # Not only a chroot: the units get mount namespaces, which takes a root that is a mount.
    mkdir old
    pivot_root . old
    cd /
    umount -l old
    exec env -i container=test PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --system --unit=test.target --show-status=no \
        --log-target=journal --default-standard-output=journal
}
if [ "$1" = root ]; then root "$2" "$3"; exit; fi

bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || skip "it takes root"
[ -x /lib/systemd/systemd ] || skip "there is no systemd"
work=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-systemd.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir "$work/root" "$work/out" "$work/cg"
# A control group of its own, and a mount namespace in which only this script sees where it is.
# shellcheck disable=SC2016 # that is for the inner shells
unshare --mount sh -c '
    mount -t cgroup2 none "$2/cg" && mkdir "$2/cg/hadmd-$$" || exit 77
    own=$2/cg/hadmd-$$
    sh -c "echo \$\$ > \"$own/cgroup.procs\" && exec timeout 240 unshare --mount --net --pid --uts --ipc --cgroup --fork \
        --kill-child \"\$0\" root \"\$@\"" "$0" "$1" "$2" || status=$?
    find "$own" -depth -type d -exec rmdir {} +
    exit ${status:-0}
' "$PWD/tests/systemd.sh" "$bin" "$work" > "$work/log" 2>&1 || :
[ ! -s "$work/out/said" ] || cat "$work/out/said"
[ ! -e "$work/out/result" ] || { echo "systemd: both units do what they say under $(/lib/systemd/systemd --version | head -n 1)"; exit; }
[ -s "$work/out/said" ] || skip "systemd does not run here: $(tail -n 3 "$work/log" | tr '\n' ' ')"
exit 1
