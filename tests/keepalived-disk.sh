#!/bin/sh
# The sample for a mirrored disk, with a real keepalived and two machines in network namespaces: keepalived ends, keepalived is killed,
# hadm-nbd is killed, the whole machine is killed. Each time a site is primary again, and a client at the floating address reads what was
# flushed before and writes on. Without fencing the survivor of a killed machine refuses, and says why. With it, five machines are killed, and the
# client waits at most 3 s, as the median. Needs root, keepalived, qemu-io.
#
# Usage: tests/keepalived-disk.sh DIRECTORY   (where the programs are)
# Exit status: 0 if every step did what it should; 77, with a line that says why, if it cannot run here.
set -eu

name=keepalived-disk
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
# shellcheck source=tests/inside.sh
. tests/inside.sh
go_inside "${2:-}" keepalived ip nsenter qemu-io flock

# keepalived runs a program only from where no user but root could have changed it.
mount -t tmpfs -o mode=755 none /run
cp "$bin/hadmctl" /run/hadmctl
make_dir
logs="$logs /run/*.roles/*.state"
# in_machine MACHINE COMMAND...: only in place of the shell it runs in.
in_machine() { at=$(cat "$dir/$1.pid"); shift; exec nsenter --net="/proc/$at/ns/net" --uts="/proc/$at/ns/uts" "$@"; }
disk() { at=$1; shift; /run/hadmctl --control "$dir/$at.nbd.sock" disk "$@"; }
# States are waited for with --json: its words stay.
has() { disk "$1" --json status data 2> /dev/null | grep -q "$2"; }
primary() { has "$1" '"role": *"primary"'; }
in_sync() { has "$1" '"in_sync": *true'; }
address() { (in_machine "$1" ip -o addr show dev eth0) | grep -q 'inet 192.0.2.100/'; }

# launch MACHINE NAME COMMAND...: a program of the machine; its process goes into a file.
launch() {
    machine=$1 name=$2
    shift 2
    (in_machine "$machine" "$@") >> "$dir/$machine.$name.log" 2>&1 &
    echo $! > "$dir/$machine.$name.run"
}
mirror() {
    launch "$1" nbd "$bin/hadm-nbd" -c "$dir/$1.xml" --hostname "$1" run --log stderr --control "$dir/$1.nbd.sock" --sockets "$dir/$1"
}
daemon() {
    launch "$1" hadmd "$bin/hadmd" -c "$dir/$1.xml" --hostname "$1" --no-kmod-check --log stderr --control "$dir/$1.sock"
}
ended() {
    for file in "$dir/$1.keepalived" "$dir/$1.vrrp"; do
        ! kill -0 "$(cat "$file" 2> /dev/null || echo 0x)" 2> /dev/null || return 1
    done
}
runs() { ! ended "$1"; }
# One that is just ending has to be gone: a second one would not start beside it.
keep() {
    wait_for 20 ended "$1" || fail "keepalived does not end at $1"
    launch "$1" keepalived keepalived --dont-fork --log-console --log-detail --use-file "/run/$1.conf" --pid "$dir/$1.keepalived" \
        --vrrp_pid "$dir/$1.vrrp" --checkers_pid "$dir/$1.checkers"
}
# All that runs in the network namespace of the machine dies at once, and nothing of it is heard any more.
kill_machine() {
    ip link set "$1" down
    for pid in $(ip netns pids "$1"); do
        [ "$pid" = "$(cat "$dir/$1.pid")" ] || kill -9 "$pid" 2> /dev/null || :
    done
}

mkdir -p /run/netns
ip link set lo up
ip link add bridge type bridge
ip addr add 192.0.2.200/24 dev bridge
ip link set bridge up
number=0
for machine in left right; do
    number=$((number + 1))
    mkdir "$dir/$machine" "$dir/$machine.disks"
    # shellcheck disable=SC2016 # that is for the inner shell
    unshare --net --uts sh -c 'hostname "$0"; echo; exec sleep 900' "$machine" > "$dir/up" &
    echo $! > "$dir/$machine.pid"
    wait_for 10 test -s "$dir/up" || fail "no namespace for $machine"
    rm "$dir/up"
    ip netns attach "$machine" "$(cat "$dir/$machine.pid")"
    ip link add "$machine" type veth peer name eth0 netns "$(cat "$dir/$machine.pid")"
    ip link set "$machine" master bridge up
    (in_machine "$machine" ip -batch - << LINES
link set lo up
link set eth0 up
addr add 192.0.2.$number/24 dev eth0
LINES
    )
    sed "s|/var/lib/hadm|$dir/$machine.disks|; s|<pingtimeout>1<|<pingtimeout>0.2<|; s|<maxpingcount>5<|<maxpingcount>3<|
        s|<onloss>|<nbd>0.0.0.0:10809</nbd>&|" \
        etc/mirror.xml > "$dir/$machine.xml"
    # The samples, but for the places of files, and of the log.
    sed "s|/usr/bin/hadmctl|/run/hadmctl|; s|/run/hadm/hadm-nbd.sock|$dir/$machine.nbd.sock|; s|/run/hadm-keepalived|/run/$machine.roles|
        s|logger -t hadm-disk -p daemon.notice --|echo >> $dir/$machine.roles.log|" etc/keepalived/hadm-disk > "/run/$machine.disk"
    chmod 755 "/run/$machine.disk"
    sed "s|/etc/keepalived/hadm-disk|/run/$machine.disk|" etc/keepalived/mirror.conf > "/run/$machine.conf"
    truncate -s 16M "$dir/$machine.disks/data.disk"
    "$bin/hadm-nbd" -c "$dir/$machine.xml" --hostname "$machine" init --clean data > "$dir/init.log" 2>&1 || fail "no metadata"
    (in_machine "$machine" keepalived --use-file "/run/$machine.conf" --config-test) > "$dir/test.log" 2>&1 || fail "the sample is faulty"
    [ ! -s "$dir/test.log" ] || fail "keepalived finds fault with the sample"
    daemon "$machine"
    mirror "$machine"
done
wait_for 30 in_sync left || fail "the sites do not meet"

# A client elsewhere, at the floating address. One try is short: what it calls may be gone.
io() {
    limit=$1
    shift
    timeout "$limit" qemu-io -f raw "$@" nbd://192.0.2.100:10809/data > "$dir/io.log" 2>&1 && ! grep -qi 'fail\|error' "$dir/io.log"
}
# write BYTE: a flushed write. goes_on BYTE: it is there, and may be written anew.
write() { io 20 -c "write -P $1 0 64k" -c flush || fail "the disk cannot be written"; }
goes_on() { io 0.5 -c "read -P $1 0 64k" -c "write -P $1 0 64k" -c flush; }
# Milliseconds since the machine's start.
now() { awk '{ print int($1 * 1000) }' /proc/uptime; }
serves() { goes_on "$2" && address "$1" && primary "$1"; }
# moved NEW BYTE WHAT: the address and the disk are there, with what was written; the client waited for $time ms.
moved() {
    wait_for 60 serves "$1" "$2" || fail "$3: address and disk are not at $1"
    time=$(($(now) - began))
    echo "  $3: served at $1 after $time ms"
}

began=$(now)
keep left
keep right
if wait_for 30 serves left 0; then :; else fail "nobody is primary at left"; fi
echo "  start: served at left after $(($(now) - began)) ms"

write 1
began=$(now)
kill "$(cat "$dir/left.keepalived.run")"
moved right 1 "keepalived ends"
! primary left || fail "two primaries"

wait_for 30 in_sync right || fail "not in sync"
write 2
# A hadm-nbd that is started anew within three seconds is primary again.
began=$(now)
kill -9 "$(cat "$dir/right.nbd.run")"
# Until it is gone, its disk is in use.
wait "$(cat "$dir/right.nbd.run")" || :
mirror right
moved right 2 "hadm-nbd is killed, and started"
keep left
# It is refused while the other site is primary, and the reason is there to read.
/run/left.disk data INSTANCE data MASTER 150
said() { grep -q "^not primary: .*$2" "/run/$1.roles/data.state" 2> /dev/null; }
wait_for 10 said left "primary" || fail "left says no reason"
! primary left || fail "two primaries"
echo "  refused at left: $(cat /run/left.roles/data.state)"
/run/left.disk data INSTANCE data BACKUP 150
wait_for 10 grep -q '^secondary' /run/left.roles/data.state || fail "left does not give the wish up"

wait_for 30 in_sync right || fail "not in sync"
began=$(now)
kill_machine right
wait_for 30 address left || fail "the address does not move"
wait_for 30 said left "not connected" || fail "left says no reason"
! primary left || fail "left is primary without fencing"
echo "  a machine is killed, no fencing: $(cat /run/left.roles/data.state)"

# With a program that puts the other machine out, it goes on. That has been done here already.
cat > "$dir/fence" << LINES
#!/bin/sh
cut -d. -f1 /proc/uptime >> "$dir/fence.log"
[ \$(wc -l < "$dir/fence.log") -gt 4 ] || exit 5
exit 7
LINES
chmod 755 "$dir/fence"
for machine in left right; do
    sed -i "s|<onloss>|<fencing>$dir/fence</fencing><onloss>|" "$dir/$machine.xml"
done
kill -HUP "$(cat "$dir/left.nbd.run")"
moved left 2 "a machine is killed, fencing is configured afterwards"
# Four times it failed: after 1, 2, 4 and 8 seconds it is called again.
[ $(($(sed -n 5p "$dir/fence.log") - $(sed -n 1p "$dir/fence.log"))) -ge 14 ] || fail "a fencing handler that fails is called without a pause: $(tr '\n' ' ' < "$dir/fence.log")"

times=
for round in 1 2 3 4 5; do
    ip link set right up
    daemon right
    mirror right
    wait_for 30 in_sync left || fail "right does not come back"
    keep right
    wait_for 30 runs right || fail "keepalived does not start at right"
    wait_for 30 grep -q '^secondary' /run/right.roles/data.state || fail "right does not follow"
    write "$((round + 2))"
    # The other way round, in order, so that the killed machine is always right.
    began=$(now)
    if [ $round = 2 ]; then signal=KILL; else signal=TERM; fi
    kill -s $signal "$(cat "$dir/left.keepalived.run")"
    moved right "$((round + 2))" "keepalived ends by SIG$signal"
    wait_for 30 in_sync right || fail "not in sync"
    keep left
    wait_for 30 runs left || fail "keepalived does not start at left"
    wait_for 30 grep -q '^secondary' /run/left.roles/data.state || fail "left does not follow"
    write "$((round + 12))"
    began=$(now)
    kill_machine right
    moved left "$((round + 12))" "a machine is killed, pings 0.2 s x 3"
    times="$times $time"
done
# shellcheck disable=SC2086 # one word each
median=$(printf '%s\n' $times | sort -n | sed -n 3p)
echo "  a machine is killed, five times: the client waited for$times ms, median $median"
[ "$median" -le 3000 ] || fail "a client waits for $median ms"
echo "keepalived-disk: $(keepalived --version 2>&1 | head -n 1) decides, and the disk follows with all that was flushed"
