#!/bin/sh
# Shows two sites: starts the four nodes of etc/two-sites.xml, each in a network namespace of its own, sends a
# file from site 1 to site 0, moves the floating address of resource 0 from one node of site 0 to the other, and
# sends a file again. `make demo` calls it. Needs no root where users may have namespaces of their own.
#
# Usage: tests/demo-sites.sh DIRECTORY   (where hadmd and hadm-probe are)
# Exit status: 0 only if everything arrived unchanged, every daemon ended in order and its books balance; or if
# there can be no namespaces here, which a line says.
set -eu

bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
# shellcheck source=tests/wait-for.sh
. tests/wait-for.sh

skip() {
    echo "demo: two sites: skipped: $1"
    exit 0
}

if [ "${2-}" != inside ]; then
    for tool in ip unshare nsenter; do
        command -v "$tool" > /dev/null || skip "needs $tool (packages iproute2 and util-linux)"
    done
    user=
    [ "$(id -u)" = 0 ] || user="--user --map-root-user"
    # shellcheck disable=SC2086
    unshare $user --net sh -c 'ip link add bridge type bridge && unshare --net true' > /dev/null 2>&1 ||
        skip "this system gives no network namespaces with a bridge${user:+ to users}; run it as root"
    # shellcheck disable=SC2086
    exec unshare $user --net tests/demo-sites.sh "$bin" inside
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-demo.XXXXXX")
machines=
daemons=
tools=

clean_up() {
    trap '' INT TERM HUP
    # Daemons end in order within 3 s; what does not is put to an end.
    # shellcheck disable=SC2086
    end_all 8 $tools $daemons
    for pid in $machines; do kill "$pid" 2>/dev/null || :; done
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

fail() {
    echo "demo: two sites: $1" >&2
    shift
    for file; do
        [ ! -s "$file" ] || { echo "--- ${file##*/}"; tail -n 20 "$file"; } >&2
    done
    exit 1
}

log() { echo "$dir/$1.log"; }
# within MACHINE COMMAND...: only in place of the shell it runs in.
within() { at=$(cat "$dir/$1.pid"); shift; exec nsenter --net="/proc/$at/ns/net" "$@"; }
attached() { grep -c 'kernel module attached' "$(log "$1")" || :; }
attached_again() { [ "$(attached "$1")" -gt "$2" ]; }
ready() { grep -qs ' ready: ' "$(log "$1")"; }
ready_or_gone() { ready "$1" || ! kill -0 "$2" 2>/dev/null; }

# plug MACHINE ADDRESS: a namespace with one interface at the bridge. Both sites' networks are on it.
plug() {
    # The process that holds it ends by itself, should nothing else end it.
    unshare --net sh -c 'echo; exec sleep 900' > "$dir/up" &
    machines="$machines $!"
    echo $! > "$dir/$1.pid"
    wait_for 10 test -s "$dir/up" || fail "no network namespace for $1"
    rm "$dir/up"
    ip link add "$1" type veth peer name eth0 netns $!
    ip link set "$1" master bridge up
    (within "$1" ip -batch - << END
link set lo up
link set eth0 up
addr add $2/24 dev eth0
route add 192.0.2.0/24 dev eth0 metric 9
route add 198.51.100.0/24 dev eth0 metric 9
END
    )
}

# start MACHINE: its daemon, up to the line that says it is ready.
start() {
    within "$1" "$bin/hadmd" -c etc/two-sites.xml --hostname "$1" --no-kmod-check --log stderr \
        --control "$dir/$1.sock" 2> "$(log "$1")" &
    daemons="$daemons $!"
    wait_for 20 ready_or_gone "$1" $! || :
    ready "$1" || fail "$1 did not start" "$(log "$1")"
}

# attach MACHINE COMMAND...: a probe in the background, up to the moment it is attached to its daemon.
attach() {
    machine=$1
    before=$(attached "$machine")
    shift
    within "$machine" "$bin/hadm-probe" "$@" > "$dir/$machine.out" 2> "$dir/$machine.err" &
    tools="$tools $!"
    wait_for 20 attached_again "$machine" "$before" ||
        fail "hadm-probe cannot attach at $machine" "$dir/$machine.err" "$(log "$machine")"
}

# transfer FILE MACHINE: from south-a to the log owner of site 0, and a line of the table for it.
transfer() {
    attach "$2" recv --dev 0 -o "$dir/got"
    attach south-a send --site --dev 0 --to 0 "$1"
    # In the background, since a shell that waits for a command in front does not answer signals.
    for pid in $tools; do
        wait "$pid" || fail "$1 was not transferred" "$dir"/*.err "$dir"/*.log
    done
    tools=
    [ "$(sha256sum < "$dir/got")" = "$(sha256sum < "$1")" ] || fail "$2 has another ${1##*/} than was sent"
    awk -v to="$2" -v file="${1##*/}" '$1 == 0 {
        printf "  %-14s %8s %12d %9d %9s   ok\n", file, to, $2, $3, $4 }' "$dir/south-a.out"
    rm "$dir/got"
}

# told MACHINE SITES: whether the last state its kernel module was told of resource 0 has these sites.
told() { tail -n 1 "$dir/$1.out" | grep -q "sites of resource 0: {$2}"; }

# fail_over ADDRESS OLD NEW: as a cluster manager does, and how long it took until all were told. The others forget
# at which machine the address was, which is what a cluster manager's gratuitous ARP is for.
fail_over() {
    for machine in "$2" "$3" south-a; do attach "$machine" state; done
    for machine in "$2" south-a; do
        wait_for 20 told "$machine" "[01]" || fail "$machine is not connected" "$dir"/*.out "$dir"/*.log
    done
    # A session younger than a second is not made anew at once.
    sleep 1.2
    (within "$2" ip addr del "$1/24" dev eth0)
    (within "$3" ip addr add "$1/24" dev eth0)
    for machine in north-a north-b south-a south-b; do
        [ "$machine" = "$3" ] || (within "$machine" ip neigh flush to "$1" dev eth0)
    done
    wait_for 20 told "$2" "" || fail "$2 was not told" "$dir"/*.out "$dir"/*.log
    wait_for 20 told "$3" 1 || fail "$3 was not told" "$dir"/*.out "$dir"/*.log
    wait_for 20 told south-a 0 || fail "south-a was not told" "$dir"/*.out "$dir"/*.log
    for machine in "$2" south-a "$3"; do
        tail -n "$([ "$machine" = south-a ] && echo 2 || echo 1)" "$dir/$machine.out" | sed "s/^/$machine /"
    done | sort -k 2 | awk '{
            split($2, day, "T"); split(day[2], clock, /[:Z]/)
            now = clock[1] * 3600 + clock[2] * 60 + clock[3]
            if (NR == 1) first = now
            took = now - first + (now < first ? 86400 : 0)
            sites = $0; sub(/.*sites of resource 0: /, "", sites); sub(/}.*/, "}", sites)
            printf "  after %4d ms: the kernel module of %-8s is told of sites %s\n", took * 1000, $1, sites
        }'
    for pid in $tools; do kill "$pid" 2>/dev/null || :; wait "$pid" || :; done
    tools=
}

# stop: ends every daemon in order, and checks what it counted.
stop() {
    for pid in $daemons; do kill "$pid"; done
    for pid in $daemons; do
        wait "$pid" || fail "a daemon ended with status $?" "$dir"/*.log
    done
    daemons=
    for log in "$dir"/*.log; do
        awk '/ books: / {
                for (i = 1; i < NF; i++) n[$i] = $(i + 1)
                wrong += n["received"] != n["forwarded"] + n["queued"] + n["dropped"]
            }
            END { exit wrong > 0 }' "$log" || fail "the books do not balance" "$log"
    done
}

free=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
[ "$free" -ge 200000 ] || fail "${TMPDIR:-/tmp} has no 200 MB left; name a roomier directory in TMPDIR"
ip link add bridge type bridge
ip link set bridge up
plug north-a 192.0.2.11
plug north-b 192.0.2.12
plug south-a 198.51.100.11
plug south-b 198.51.100.12
(within north-a ip addr add 192.0.2.100/24 dev eth0)
(within south-a ip addr add 198.51.100.100/24 dev eth0)
for machine in north-a north-b south-a south-b; do start "$machine"; done
head -c 67108864 /dev/urandom > "$dir/random-64MiB"

echo "Two sites of two nodes, etc/two-sites.xml; south-a sends to site 0, whose floating address north-a has:"
echo
echo "  file                 at        bytes   packets      MB/s   SHA-256"
transfer "$dir/random-64MiB" north-a
echo
echo "The floating address 192.0.2.100 moves to north-b:"
echo
fail_over 192.0.2.100 north-a north-b
echo
echo "south-a sends to site 0 again:"
echo
echo "  file                 at        bytes   packets      MB/s   SHA-256"
transfer "$dir/random-64MiB" north-b
stop
echo
echo "demo: two sites: everything arrived unchanged"
