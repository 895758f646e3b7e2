#!/bin/sh
# Shows hadmd at work on this one machine: starts the nodes of etc/one-site.xml, sends files from node 2 to
# nodes 0 and 1, compares what arrived with what was sent, and measures the round trip. `make demo` calls it.
#
# Usage: tests/demo.sh DIRECTORY   (where hadmd and hadm-probe are)
# Exit status: 0 only if everything arrived unchanged, every daemon ended in order and its books balance.
set -eu

bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
# shellcheck source=tests/wait-for.sh
. tests/wait-for.sh
dir=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-demo.XXXXXX")
# A network of its own in 127.0.0.0/8, all of which is this machine: two demos do not disturb each other, nor
# a daemon that is at work here.
net=127.$(od -An -N2 -tu1 /dev/urandom | awk '{ print 1 + $1 % 254 "." 1 + $2 % 254 }')
daemons=
tools=

clean_up() {
    trap '' INT TERM HUP
    # Daemons end in order within 3 s; what does not is put to an end.
    # shellcheck disable=SC2086
    end_all 8 $tools $daemons
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

fail() {
    echo "demo: $1" >&2
    shift
    for file; do
        [ ! -s "$file" ] || { echo "--- ${file##*/}"; tail -n 20 "$file"; } >&2
    done
    exit 1
}

log() { echo "$dir/node$1.log"; }
# probe NODE COMMAND...: only ever in the background, where it takes the place of the subshell it runs in.
probe() { node=$1; shift; exec "$bin/hadm-probe" --server "$net.1$node:9998" "$@"; }
attached() { grep -c 'kernel module attached' "$(log "$1")" || :; }
attached_again() { [ "$(attached "$1")" -gt "$2" ]; }

ready() { grep -qs ' ready: ' "$(log "$1")"; }
ready_or_gone() { ready "$1" || ! kill -0 "$2" 2>/dev/null; }

# start NODE: its daemon, up to the line that says it is ready.
start() {
    "$bin/hadmd" -c "$dir/hadm.xml" --hostname "node$1" --server "$net.1$1:9998" \
        --no-kmod-check --log stderr --control "$dir/node$1.sock" 2> "$(log "$1")" &
    daemons="$daemons $!"
    wait_for 20 ready_or_gone "$1" $! || :
    ready "$1" || fail "node $1 did not start. It needs ports 7000 and 9998 of \
$net.1$1, an address drawn at random: if that is in use, run the demo again" "$(log "$1")"
}

# attach NODE COMMAND...: a probe in the background, up to the moment it is attached to its daemon.
attach() {
    before=$(attached "$1")
    probe "$@" > "$dir/probe$1.out" 2> "$dir/probe$1.err" &
    tools="$tools $!"
    wait_for 20 attached_again "$1" "$before" ||
        fail "hadm-probe cannot attach at node $1" "$dir/probe$1.err" "$(log "$1")"
}

# transfer FILE: from node 2 to nodes 0 and 1; a line of the table for each.
transfer() {
    sum=$(sha256sum < "$1")
    for to in 0 1; do attach "$to" recv -o "$dir/got$to"; done
    probe 2 send --to 0,1 "$1" > "$dir/send.out" 2> "$dir/send.err" &
    tools="$tools $!"
    # In the background, since a shell that waits for a command in front does not answer signals.
    for pid in $tools; do
        wait "$pid" || fail "$1 was not transferred" "$dir"/send.* "$dir"/probe?.* "$dir"/node?.log
    done
    tools=
    for to in 0 1; do
        [ "$(sha256sum < "$dir/got$to")" = "$sum" ] || fail "node $to has another ${1##*/} than was sent"
        awk -v to="$to" -v file="${1##*/}" '$1 == to {
            printf "  %-14s %6d %12d %9d %9s   ok\n", file, to, $2, $3, $4 }' "$dir/send.out"
        rm "$dir/got$to"
    done
}

round_trip() {
    attach 0 echo
    probe 2 latency --to 0 --secs 2 > "$dir/latency.out" 2> "$dir/latency.err" &
    tools="$tools $!"
    wait $! || fail "the round trip could not be measured" "$dir"/latency.* "$dir"/probe0.* "$dir"/node?.log
    for pid in $tools; do kill "$pid" 2>/dev/null || :; wait "$pid" || :; done
    tools=
    sed 's/^/  /' "$dir/latency.out"
}

# stop: ends every daemon in order; what each counted for each peer is the end of its log.
stop() {
    for pid in $daemons; do kill "$pid"; done
    for pid in $daemons; do
        wait "$pid" || fail "a daemon ended with status $?" "$dir"/node?.log
    done
    daemons=
    for log in "$dir"/node?.log; do
        sed -n "s/.* books: /  at ${log##*/}: /p" "$log" | sed 's/\.log:/:/'
        awk '/ books: / {
                for (i = 1; i < NF; i++) n[$i] = $(i + 1)
                lines++; wrong += n["received"] != n["forwarded"] + n["queued"] + n["dropped"]
            }
            END { exit lines == 0 || wrong > 0 }' "$log" || fail "the books do not balance" "$log"
    done
}

one_site() {
    sed "s/127\.0\.0\./$net./g" etc/one-site.xml > "$dir/hadm.xml"
    for node in 0 1 2; do start "$node"; done
    echo "Three daemons of etc/one-site.xml, at $net.10 to $net.12; node 2 sends to nodes 0 and 1:"
    echo
    echo "  file             node        bytes   packets      MB/s   SHA-256"
    transfer "$bin/hadmd"
    head -c 268435456 /dev/urandom > "$dir/random-256MiB"
    transfer "$dir/random-256MiB"
    rm "$dir/random-256MiB"
    echo
    echo "Round trip from node 2 to node 0 and back, through both daemons:"
    echo
    round_trip
    echo
    echo "What each daemon counted in packets, for each peer and direction:"
    echo
    stop
}

free=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
[ "$free" -ge 900000 ] || fail "${TMPDIR:-/tmp} has no 900 MB left; name a roomier directory in TMPDIR"
one_site
echo
echo "demo: everything arrived unchanged"
