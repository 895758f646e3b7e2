#!/bin/sh
# keepalived 2.2.7 of Debian 12 (1:2.2.7-1+b2), its main process killed by SIGKILL. Needs root.
#
# Guess before it was run: nothing can run at a SIGKILL, so that the floating address stays on the interface, and after three
# intervals two machines have it.
# Seen: the address is removed within a moment, and the other node is told. The VRRP process is a child that asked the kernel
# for a SIGTERM at its parent's death, and ends in order. A fail-over test that kills "keepalived" this way tests the orderly
# end; two owners of one address come from a kill of the child, or of the machine's processes by group.
# Output seen: "before: has it" and "after: gone, with 0 priority sent".
set -eu
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 1; }
if [ "${1:-}" != inside ]; then
    script=$(realpath "$0")
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    apt-get -q -o APT::Sandbox::User=root download keepalived=1:2.2.7-1+b2 > /dev/null
    dpkg -x keepalived_*.deb .
    unshare --mount --net --pid --fork --kill-child --mount-proc sh "$script" inside
    exit
fi
mount -t tmpfs none /run
ip link add eth0 type veth peer name eth1
ip link set eth1 up
ip link set lo up
ip link set eth0 up
ip addr add 192.0.2.1/24 dev eth0
cat > conf << 'END'
vrrp_instance one {
    state MASTER
    interface eth0
    virtual_router_id 50
    priority 150
    virtual_ipaddress {
        192.0.2.100/32 dev eth0
    }
}
END
usr/sbin/keepalived --dont-fork --log-console --log-detail --use-file conf --pid main --vrrp_pid vrrp > log 2>&1 &
has_it() { ip -o addr show dev eth0 | grep -q 192.0.2.100; }
until_so() {
    tries=100
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}
gone() { ! has_it; }
until_so has_it || { cat log >&2; exit 1; }
echo "before: has it"
kill -9 "$(cat main)"
until_so gone || { echo "after: still has it: the finding is out of date"; exit 1; }
until_so grep -q "sent 0 priority" log || { echo "after: gone, without a word"; exit 1; }
echo "after: gone, with 0 priority sent"
