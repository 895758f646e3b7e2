#!/bin/sh
# The sample for keepalived, with a real keepalived in network namespaces: a floating address goes to the other node and
# comes back when keepalived ends or is killed, the daemon is killed, or the interface is down; hadmd follows it, and so does the other site.
# No notify script takes part. Needs root and keepalived.
#
# Usage: tests/keepalived.sh DIRECTORY   (where the programs are)
# Exit status: 0 if every step did what it should; 77, with a line that says why, if it cannot run here.
set -eu

name=keepalived
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
# shellcheck source=tests/inside.sh
. tests/inside.sh
go_inside "${2:-}" keepalived ip nsenter

mount -t tmpfs -o mode=755 none /run
# keepalived runs a program only from where no user but root could have changed it.
cp "$bin/hadmctl" /run/hadmctl
make_dir
# within MACHINE COMMAND...: only in place of the shell it runs in.
within() { at=$(cat "$dir/$1.pid"); shift; exec nsenter --net="/proc/$at/ns/net" --uts="/proc/$at/ns/uts" "$@"; }
has() { (within "$1" ip -o addr show dev eth0) | grep -q "inet $2/"; }
has_not() { ! has "$@"; }

# plug MACHINE ADDRESS: a machine with one interface at the bridge. Both sites' networks are on it.
plug() {
    # shellcheck disable=SC2016 # that is for the inner shell
    unshare --net --uts sh -c 'hostname "$0"; echo; exec sleep 900' "$1" > "$dir/up" &
    echo $! > "$dir/$1.pid"
    wait_for 10 test -s "$dir/up" || fail "no namespace for $1"
    rm "$dir/up"
    ip link add "$1" type veth peer name eth0 netns $!
    ip link set "$1" master bridge up
    (within "$1" ip -batch - << END
link set lo up
link set eth0 up
addr add $2/24 dev eth0
END
    )
    routes "$1"
}
routes() {
    for net in 192.0.2.0/24 198.51.100.0/24; do (within "$1" ip route replace $net dev eth0 metric 9); done
}
ready() { grep -qs ' ready: ' "$dir/$1.log"; }
# start MACHINE: its daemon.
start() {
    : > "$dir/$1.log"
    (within "$1" "$bin/hadmd" -c etc/two-sites.xml --no-kmod-check --log stderr --control "$dir/$1.sock") 2> "$dir/$1.log" &
    echo $! > "$dir/$1.daemon"
    wait_for 20 ready "$1" || fail "$1 does not start"
}
# ended MACHINE: whether no process of its keepalived is left; another one would not start beside it.
ended() {
    for part in keepalived vrrp checkers; do
        ! { pid=$(cat "$dir/$1.$part") && kill -0 "$pid"; } 2> /dev/null || return 1
    done
}
# keep MACHINE: keepalived with the sample, but for the places of the programs and the user.
keep() {
    wait_for 20 ended "$1" || fail "the former keepalived of $1 does not end"
    sed "s|script_user hadm|script_user root|; s|/usr/bin/hadmctl|/run/hadmctl --control $dir/$1.sock|" \
        etc/keepalived/keepalived.conf > "$dir/$1.conf"
    (within "$1" keepalived --use-file "$dir/$1.conf" --config-test) > "$dir/test.log" 2>&1 || echo "it fails" >> "$dir/test.log"
    [ ! -s "$dir/test.log" ] || fail "keepalived finds fault with the sample"
    (within "$1" keepalived --dont-fork --log-console --log-detail --use-file "$dir/$1.conf" --pid "$dir/$1.keepalived" \
        --vrrp_pid "$dir/$1.vrrp" --checkers_pid "$dir/$1.checkers") > "$dir/$1.keepalived.log" 2>&1 &
}
# at NEW OLD: whether the address, the log and the other site are at NEW, and not at OLD.
at() {
    has "$1" 192.0.2.100 && has_not "$2" 192.0.2.100 &&
        [ "$(grep 'resource 0 (mail): log owner' "$dir/$1.log" | tail -n 1 | grep -c 'log owner now')" = 1 ] &&
        [ "$(grep 'resource 0 (mail): log owner' "$dir/$2.log" | tail -n 1 | grep -c 'log owner now')" = 0 ] &&
        [ "$(grep 'site 1 of resource 0: ' "$dir/$1.log" | grep 'connected (\|session ended' | tail -n 1 | grep -c 'connected (')" = 1 ]
}
moved() {
    began=$(date +%s)
    wait_for 40 at "$1" "$2" || fail "$3: address, log and session are not at $1"
    echo "  $3: at $1 after $(($(date +%s) - began)) s"
}

ip link set lo up
ip link add bridge type bridge
ip link set bridge up
plug north-a 192.0.2.11
plug north-b 192.0.2.12
plug south-a 198.51.100.11
(within south-a ip addr add 198.51.100.100/32 dev eth0)
for machine in north-a north-b south-a; do start $machine; done
for machine in north-a north-b; do keep $machine; done

moved north-a north-b "start"
kill "$(cat "$dir/north-a.keepalived")"
moved north-b north-a "keepalived ends"
keep north-a
moved north-a north-b "keepalived is back"
kill -9 "$(cat "$dir/north-a.keepalived")"
moved north-b north-a "keepalived is killed"
keep north-a
moved north-a north-b "keepalived is back"
kill -9 "$(cat "$dir/north-a.daemon")"
: > "$dir/north-a.log"
moved north-b north-a "the daemon is killed"
start north-a
moved north-a north-b "the daemon is back"
(within north-a ip link set eth0 down)
moved north-b north-a "the interface is down"
(within north-a ip link set eth0 up)
routes north-a
moved north-a north-b "the interface is up"
echo "keepalived: $(keepalived --version 2>&1 | head -n 1) moves the floating address, and hadmd follows"
