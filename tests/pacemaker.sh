#!/bin/sh
# A mirrored disk in a real cluster of corosync and Pacemaker: nodes in namespaces, the sample etc/pacemaker/mirror.xml with the agents of
# etc/ocf, a floating address, and a client that writes through that. The active node is killed, daemons are killed, a network is cut, a
# disk is full: the client goes on, in the time that corosync's token allows; what was answered and flushed is there, and there is one primary.
# Two nodes have the fencing handler. NODES=3 has a third disk, and a majority decides; with SITES=2 the third node has no disk, but a vote
# in the cluster. Needs root, Debian's corosync, pacemaker and qemu-utils.
#
# Usage: [NODES=3 [SITES=2]] tests/pacemaker.sh DIRECTORY   (where the programs are)
# Exit status: 0 if every step did what it should; 77, with a line that says why, if it cannot run here.
set -eu

name=pacemaker
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
# shellcheck source=tests/inside.sh
. tests/inside.sh
[ -x /usr/lib/ocf/resource.d/heartbeat/IPaddr2 ] || skip "there is no agent IPaddr2 (Debian package resource-agents)"
go_inside "${2:-}" corosync pacemakerd cibadmin crm_mon ip bridge nsenter qemu-io

case ${NODES:-2},${SITES:-${NODES:-2}} in
    2,2) nodes="left right" sites=$nodes ;;
    3,3) nodes="left right third" sites=$nodes ;;
    3,2) nodes="left right third" sites="left right" ;;
    *) echo "pacemaker: NODES is 2 or 3, and SITES is not more" >&2; exit 2 ;;
esac
# With two disks the cluster decides; of three disks two.
policy="<fencing>resource-and-stonith</fencing><fencepeer>/usr/lib/hadm/fencing/pacemaker</fencepeer>"
[ "${sites##* }" != third ] || policy="<quorum>majority</quorum>"
make_dir
# The nodes end first: they write their logs there.
clean() {
    for at in $client $(cat "$dir"/*.pid); do kill -9 "$at"; done
    umount -l "$dir"/*.disks
    wait_for 10 rm -rf "$dir"
}
client=
trap 'clean 2> /dev/null' EXIT
chmod 755 "$dir"
# Laid over each node's /usr and /etc, as if installed.
mkdir -p "$dir/logs" "$dir/sbin" "$dir/bin" "$dir/lib/ocf/resource.d/hadm" "$dir/lib/hadm/fencing" "$dir/etc/hadm"
chmod 777 "$dir/logs"
# With what the cluster says of itself.
fail() {
    echo "pacemaker: $1" >&2
    for file in "$dir"/logs/*; do echo "--- ${file##*/}"; tail -n "${LINES_OF_LOGS:-12}" "$file"; done >&2
    for node in $nodes; do echo "--- status of $node"; { in_node "$node" crm_mon --one-shot --inactive; in_node "$node" cibadmin --query --scope constraints; } || :; done >&2
    exit 1
}
now() { awk '{ print int($1 * 1000) }' /proc/uptime; }
in_node() { at=$(cat "$dir/$1.pid"); shift; timeout 20 nsenter -t "$at" -m -n -u -i -p -- "$@"; }
disk() { at_node=$1; shift; in_node "$at_node" hadmctl --control /run/hadm/hadm-nbd.sock disk "$@"; }
has() { disk "$1" --json status data 2> /dev/null | grep -q "$2"; }
primary() { has "$1" '"role": *"primary"'; }
# With all other sites, as the primary sees it.
in_sync() { has "$1" '"in_sync": *true' && ! has "$1" '"in_sync": *false'; }

cp etc/ocf/* "$dir/lib/ocf/resource.d/hadm"
cp etc/fencing/* "$dir/lib/hadm/fencing"
cp "$bin/hadmctl" "$dir/bin"
for program in hadmd hadm-nbd; do
    # Their log, for those who read a failure.
    cat > "$dir/sbin/$program" << LINES
#!/bin/sh
exec $bin/$program \$(echo "\$*" | sed 's/--log syslog/--log stderr/') 2>> "$dir/logs/\$(hostname).$program"
LINES
done
# The power switch: a node asks for the other's end, and gets it from outside.
cat > "$dir/sbin/fence_power" << LINES
#!/bin/sh
action=reboot plug=
while read -r line; do
    case \$line in action=*) action=\${line#*=} ;; plug=* | port=* | nodename=*) plug=\${line#*=} ;; esac
done
[ "\${1:-}" != -o ] || action=\$2
case \$action in
    metadata) echo '<?xml version="1.0"?><resource-agent name="fence_power" shortdesc="power switch"><longdesc>power switch</longdesc>
        <parameters><parameter name="plug" required="0"><content type="string"/><shortdesc lang="en">plug</shortdesc></parameter></parameters>
        <actions><action name="off"/><action name="reboot"/><action name="monitor"/><action name="metadata"/><action name="status"/></actions></resource-agent>' ;;
    off | reboot)
        echo "\$(hostname) has \$plug put off" >> "$dir/logs/power"
        done="$dir/done.\$(hostname).\$\$"
        echo "\$plug \$done" > "$dir/power"
        for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ ! -e "\$done" ] || exit 0; sleep 0.2; done
        exit 1
        ;;
esac
LINES
chmod 755 "$dir"/sbin/*
mkfifo "$dir/power"
power_off() {
    [ -e "$dir/$1.pid" ] || return 0
    ip link set "$1" down 2> /dev/null || :
    at=$(cat "$dir/$1.pid")
    kill -9 "$at" 2> /dev/null || :
    wait_for 10 sh -c "! kill -0 $at 2> /dev/null" || :
    : > "$dir/$1.off"
}
# One at a time: the switch has one hand.
(exec 8<> "$dir/power"; while read -r node confirm <&8; do power_off "$node"; : > "${confirm:-$dir/done}"; done) &

for node in $nodes; do
    mkdir "$dir/$node.disks"
    mount -t tmpfs -o size=24m none "$dir/$node.disks"
done
# add_third FILE: the same for a third node as for right, in a configuration of hadmd or of the cluster.
add_third() {
    awk '
        function third(text) {
            gsub(/right/, "third", text); gsub(/192\.0\.2\.2</, "192.0.2.3<", text)
            sub(/<id>1</, "<id>2<", text); sub(/<node id="2"/, "<node id=\"3\"", text)
            return text
        }
        /<(site|runsite)>|<primitive / { block = ""; inside = 1 }
        { print }
        inside { block = block $0 "\n" }
        !inside && /right"/ { print third($0) }
        /<\/(site|runsite|primitive)>/ { if (block ~ /right|192\.0\.2\.2</) printf "%s", third(block); inside = 0 }
    ' "$1" > "$dir/three" && mv "$dir/three" "$1"
}
sed "s|<pingtimeout>1<|<pingtimeout>0.2<|; s|<maxpingcount>5<|<maxpingcount>3<|
    s|<onloss>.*|<nbd>0.0.0.0:10809</nbd>$policy|
    s|/var/lib/hadm|/run/place|" etc/mirror.xml > "$dir/etc/hadm/hadm.xml"
[ "${sites##* }" != third ] || add_third "$dir/etc/hadm/hadm.xml"
for node in $sites; do
    truncate -s 16M "$dir/$node.disks/data.disk"
    sed "s|/run/place|$dir/$node.disks|" "$dir/etc/hadm/hadm.xml" > "$dir/init.xml"
    "$bin/hadm-nbd" -c "$dir/init.xml" --hostname "$node" init --clean data > "$dir/logs/init" 2>&1 || fail "no metadata"
done
# number NODE: its place in the cluster, and in the network.
number() { echo "$nodes" | tr ' ' '\n' | grep -nx "$1" | cut -d: -f1; }
{
    cat << LINES
totem {
    version: 2
    cluster_name: mirror
    transport: knet
    crypto_cipher: none
    crypto_hash: none
}
LINES
    echo "nodelist {"
    for node in $nodes; do
        echo "    node {"
        echo "        ring0_addr: 192.0.2.$(number "$node")"
        echo "        name: $node"
        echo "        nodeid: $(number "$node")"
        echo "    }"
    done
    echo "}"
    echo "quorum {"
    echo "    provider: corosync_votequorum"
    [ "$nodes" != "left right" ] || echo "    two_node: 1"
    cat << LINES
}
system {
    sched_rr: no
}
logging {
    to_syslog: no
    to_stderr: yes
}
LINES
} > "$dir/corosync.conf"
# The sample, but for the power switch.
sed 's|type="fence_ipmilan"|type="fence_power"|' etc/pacemaker/mirror.xml > "$dir/cluster.xml"
[ "$nodes" = "left right" ] || add_third "$dir/cluster.xml"
if [ "$nodes" != "$sites" ]; then
    for clone in hadmd nbd disk; do
        sed -i "s|</constraints>|<rsc_location id=\"no-$clone\" rsc=\"$clone-clone\" node=\"third\" score=\"-INFINITY\"/>&|" "$dir/cluster.xml"
    done
fi

mount -t tmpfs -o mode=755 none /run
mkdir -p /run/netns
ip link set lo up
ip link add bridge type bridge
ip addr add 192.0.2.200/24 dev bridge
ip link set bridge up
# power_on NODE: a machine with its own network, names, processes, /run, /dev/shm and /var/lib; its disk is kept.
power_on() {
    rm -f "$dir/$1.off" "$dir/$1.up"
    # shellcheck disable=SC2016 # that is for the inner shell
    unshare --mount --net --uts --ipc --pid --fork --kill-child --mount-proc sh -euc '
        dir=$1
        hostname "$0"
        mount -t tmpfs -o mode=1777 none /dev/shm
        for place in /run /var/lib/corosync /var/lib/pacemaker /var/log; do mount -t tmpfs -o mode=755 none $place; done
        mkdir -p /var/log/pacemaker /run/lock /var/lib/pacemaker/cib /var/lib/pacemaker/pengine /var/lib/pacemaker/blackbox /var/lib/pacemaker/cores
        chown hacluster:haclient /var/lib/pacemaker /var/lib/pacemaker/* /var/log/pacemaker
        mkdir -p /run/place && mount --bind "$dir/$0.disks" /run/place
        for place in sbin bin lib; do mount -t overlay none -o "lowerdir=$dir/$place:/usr/$place" /usr/$place; done
        mount -t overlay none -o "lowerdir=$dir/etc:/etc" /etc
        echo 1 > "$dir/$0.up"
        while :; do sleep 1000; done' "$1" "$dir" >> "$dir/logs/$1.node" 2>&1 &
    unshared=$!
    wait_for 10 test -s "$dir/$1.up" || fail "no namespaces for $1"
    pgrep -P $unshared > "$dir/$1.pid"
    ip netns delete "$1" 2> /dev/null || :
    ip netns attach "$1" "$(cat "$dir/$1.pid")"
    ip link del "$1" 2> /dev/null || :
    ip link add "$1" type veth peer name eth0 netns "$(cat "$dir/$1.pid")"
    ip link set "$1" master bridge up
    in_node "$1" ip -batch - << LINES
link set lo up
link set eth0 up
addr add 192.0.2.$(number "$1")/24 dev eth0
LINES
    start "$1" corosync corosync -f -c "$dir/corosync.conf"
    wait_for 20 in_node "$1" corosync-cfgtool -s > "$dir/logs/$1.cfgtool" 2>&1 || fail "corosync does not start at $1"
    start "$1" pacemaker env PCMK_logfile="$dir/logs/$1.pacemaker.log" pacemakerd -f
}
start() {
    at=$(cat "$dir/$1.pid") log=$dir/logs/$1.$2
    shift 2
    nsenter -t "$at" -m -n -u -i -p -- "$@" >> "$log" 2>&1 &
}

# The client: block after block through the floating address, each flushed. "answered" has those that were.
export=nbd://192.0.2.100:10809/data
cat > "$dir/client" << LINES
#!/bin/sh
block=0
while [ \$block -lt 4000 ]; do
    if timeout 2 qemu-io -f raw -c "write -P \$((block % 255 + 1)) \$((block * 4096)) 4096" -c flush $export > "$dir/io" 2>&1 && ! grep -qi 'fail\|error' "$dir/io"; then
        echo "\$block \$(awk '{ print int(\$1 * 1000) }' /proc/uptime)" >> "$dir/answered"
        block=\$((block + 1))
    fi
    sleep 0.05
done
LINES
chmod 755 "$dir/client"
: > "$dir/answered"
answered() { wc -l < "$dir/answered"; }
goes_on() { [ "$(answered)" -ge $((before + 3)) ]; }
# served WHAT SECONDS [LIMIT]: the client goes on, within LIMIT milliseconds, and reads all that was answered.
event() { began=$(now) before=$(answered); }
served() {
    # One that was answered before it began is no proof.
    wait_for "$2" goes_on || fail "$1: the client does not go on"
    first=$(awk -v began="$began" '$2 > began { if (last == "") last = began; if ($2 - last > gap) { gap = $2 - last; end = $2 } last = $2 } END { print end - began }' "$dir/answered")
    echo "  $1: served again after $first ms${3:+, of $3}"
    [ "$first" -le "${3:-$first}" ] || fail "$1: that is longer than corosync takes, and what follows it"
    check "$1"
}
check() {
    awk '{ printf "read -P %d %d 4096\n", $1 % 255 + 1, $1 * 4096 }' "$dir/answered" > "$dir/reads"
    timeout 30 qemu-io -r -f raw $export < "$dir/reads" > "$dir/logs/check" 2>&1 || fail "$1: the disk cannot be read"
    ! grep -i 'fail\|error' "$dir/logs/check" || fail "$1: an answered write is gone"
    count=0
    for node in $sites; do if primary "$node"; then count=$((count + 1)); fi; done
    [ $count -le 1 ] || fail "$1: two primaries"
    wait_for 30 active || fail "$1: nobody is primary"
}
# whole: all nodes are there, in sync, and the handler's constraint is gone.
whole() {
    for node in $nodes; do [ ! -e "$dir/$node.off" ] || power_on "$node"; done
    online && active && in_sync "$active" && ! in_node "$active" cibadmin --query --xpath "//rsc_location[@id='hadm-fence-data']" > "$dir/logs/constraint" 2>&1
}
active() {
    for active in $sites; do if primary "$active"; then return 0; fi; done
    return 1
}
restored() {
    wait_for 120 whole || fail "$1: the sites are not in sync again, or the constraint stays"
    check "$1"
}

event
for node in $nodes; do power_on "$node"; done
online() { [ "$(in_node left crm_mon --one-shot --output-as=xml 2> /dev/null | grep -c '<node name.* online="true"')" = "$(echo "$nodes" | wc -w)" ]; }
wait_for 60 online || fail "the nodes do not meet"
in_node left cibadmin --replace --scope configuration --xml-file "$dir/cluster.xml" > "$dir/logs/cluster" 2>&1 || fail "the cluster's configuration is refused"
in_node left crm_verify --live-check -VV > "$dir/logs/cluster" 2>&1 || fail "crm_verify finds fault"
token=$(in_node left corosync-cmapctl -g runtime.config.totem.token | sed 's/.*= //')
consensus=$(in_node left corosync-cmapctl -g runtime.config.totem.consensus | sed 's/.*= //')
echo "pacemaker: $nodes; disks at $sites; token $token ms, consensus $consensus ms as they are at run time; pings 0.2 s x 3"
# Until the cluster has noticed that a node is gone; then the power switch and its delay of 2 s, the promotion, the address, and the client.
limit=$((token + consensus + 10000))
wait_for 90 active || fail "nobody is primary"
"$dir/client" &
client=$!
served "start" 60
restored "start"

was=$active
event
echo "$was" > "$dir/power"
served "the active node $was is killed" 90 $limit
[ "$active" != "$was" ] || fail "nobody took over"
restored "the active node $was is killed"

# Processes of a node, killed as by a fault of their own.
for program in hadmd hadm-nbd pacemaker-controld corosync; do
    event
    was=$active
    # shellcheck disable=SC2046 # one word each
    in_node "$was" kill -9 $(in_node "$was" pgrep -x "$(echo "$program" | cut -c 1-15)") || fail "there is no $program"
    if [ $program = corosync ]; then
        # Such a node goes on until the others have it put off, and take over.
        wait_for 60 test -e "$dir/$was.off" || fail "nobody put $was off"
        before=$(answered)
        served "$program is killed at $was" 90 $limit
    else
        served "$program is killed at $was" 90
    fi
    restored "$program is killed at $was"
done

if [ "$nodes" = "left right" ]; then
    # The nodes reach the client and the power switch, and not each other: one of them has the other put off.
    event
    for node in $nodes; do bridge link set dev "$node" isolated on; done
    served "the nodes lose each other" 90
    for node in $nodes; do bridge link set dev "$node" isolated off; done
    [ "$(find "$dir" -name '*.off' | wc -l)" = 1 ] || fail "not one node was put off"
    restored "the nodes lose each other"
else
    # The active node's cable is pulled: the others are the majority, and have it put off.
    event
    was=$active
    ip link set "$was" down
    served "the network of $was is cut" 90 $limit
    [ -e "$dir/$was.off" ] || fail "$was was not put off"
    restored "the network of $was is cut"
fi

if [ "${sites##* }" = third ]; then
    # Without a power switch, too: a node without a majority stops what it runs, and the others, who are one, go on.
    in_node left crm_attribute --type crm_config --name stonith-enabled --update false
    event
    was=$active
    ip link set "$was" down
    served "the network of $was is cut, no power switch" 90 $limit
    [ "$active" != "$was" ] || fail "nobody took over"
    stopped() { ! in_node "$was" pgrep -x hadm-nbd > /dev/null; }
    wait_for 90 stopped || fail "$was has no majority, and does not stop"
    [ ! -e "$dir/$was.off" ] || fail "$was was put off"
    ip link set "$was" up
    restored "the network of $was is cut, no power switch"
    in_node left crm_attribute --type crm_config --name stonith-enabled --update true
fi

# The disk of the active node is full: a write that has no room there is refused, the others go on, and both sites stay equal.
event
was=$active
fallocate -l 1G "$dir/$was.disks/filler" 2> /dev/null || dd if=/dev/zero of="$dir/$was.disks/filler" bs=1M > /dev/null 2>&1 || :
new_place() { timeout 30 qemu-io -f raw -c 'write -P 99 12M 1M' -c flush -c 'read -P 99 12M 1M' $export > "$dir/logs/full" 2>&1 && ! grep -qi 'fail\|error' "$dir/logs/full"; }
! new_place || fail "a full disk: a write that has no room is answered"
grep -q 'No space left on device' "$dir/logs/full" || fail "a full disk: the client does not get the reason"
served "the disk of $was is full" 90
rm "$dir/$was.disks/filler"
wait_for 30 new_place || fail "a disk that was full: there is room, and the write is refused"
restored "the disk of $was is full"

echo "pacemaker: the disk follows the cluster, with all that was answered and flushed"
