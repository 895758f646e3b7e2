#!/bin/sh
# Two daemons built for two targets form one cluster, and a file goes from each to the other through hadm-probe;
# what is not this machine's kind runs emulated. `make cross-pair` and `make cross-test` call it.
#
# Usage: [STATIC=1] etc/cross/pair.sh NAME0 NAME1   (of etc/cross/targets, or native: what `make build` built)
# Exit status: 0 only if both files arrived unchanged, both daemons recognised the other as hadmd with the same
# configuration, ended in order, and their books balance.
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/wait-for.sh
. tests/wait-for.sh

dir=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-pair.XXXXXX")
# A network of its own in 127.0.0.0/8, all of which is this machine: two runs do not disturb each other.
net=127.$(od -An -N2 -tu1 /dev/urandom | awk '{ print 1 + $1 % 254 "." 1 + $2 % 254 }')
daemons=
probes=

clean_up() {
    trap '' INT TERM HUP
    # shellcheck disable=SC2086
    end_all 10 $probes $daemons
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# give_up MESSAGE: with what was said so far.
give_up() {
    tail -n 20 "$dir"/*.log "$dir"/*.err >&2 || :
    fail "$1"
}

gone() { ! kill -0 "$1" 2> /dev/null; }
# logged NODE TEXT [TIMES]: so many lines of its log have the text.
logged() { [ "$(grep -c "$2" "$dir/node$1.log")" -ge "${3:-1}" ]; }
logged_or_gone() { logged "$1" "$2" "$3" || gone "$4"; }
# expect NODE TEXT [TIMES]: emulated daemons on a busy machine are slow, so the deadline is generous.
expect() { wait_for 60 logged "$@" || give_up "no line \"$2\" in the log of node $1"; }

# choose NODE: which program to run, and how.
choose() {
    if [ "$1" = 0 ]; then name=$first; else name=$second; fi
    target "$name"
}

# start NODE: its daemon, up to the line that says it is ready.
start() {
    choose "$1"
    [ -x "$bin/hadmd" ] || fail "there is no $bin/hadmd: build it first"
    : > "$dir/node$1.log"
    $runner "$bin/hadmd" -c "$dir/hadm.xml" --hostname "node$1" --server "$net.1$1:9998" \
        --no-kmod-check --log stderr 2> "$dir/node$1.log" &
    daemons="$daemons $!"
    wait_for 60 logged_or_gone "$1" ' ready: ' 1 $! || :
    logged "$1" ' ready: ' || give_up "the daemon of node $1 ($name) did not start"
}

# probe NODE COMMAND...: in the background.
probe() {
    choose "$1"
    server=$net.1$1:9998 out=$dir/probe$1
    shift
    $runner "$bin/hadm-probe" --server "$server" "$@" > "$out.out" 2> "$out.err" &
    probes="$probes $!"
}

# transfer FROM TO TIMES: a file, and its digest compared; so often has a probe come to node TO then.
transfer() {
    from=$1 to=$2 began=$(date +%s)
    probe "$to" recv -o "$dir/got"
    expect "$to" 'kernel module attached' "$3"
    probe "$from" send --to "$to" "$dir/file"
    for pid in $probes; do
        wait_for 120 gone "$pid" && wait "$pid" || give_up "no file came from node $from to node $to"
    done
    probes=
    [ "$(sha256sum < "$dir/got")" = "$sum" ] || give_up "node $to has another file than node $from sent"
    rm "$dir/got"
    echo "  node $from ($(name_of "$from")) to node $to ($(name_of "$to")): $size bytes in" \
        "$(($(date +%s) - began)) s, SHA-256 ok"
}
name_of() { choose "$1"; echo "$name"; }

first=$1 second=$2
size=8388611
# An emulated daemon on a busy machine may be silent for seconds, and where it has another byte order than the
# machine, it cannot look up whose socket calls: neither is what is tested here.
sed "s/127\.0\.0\./$net./g; s/<maxpingcount>3</<maxpingcount>60</; s|</global>|<kerneluser>any</kerneluser>&|" \
    etc/one-site.xml > "$dir/hadm.xml"
head -c "$size" /dev/urandom > "$dir/file"
sum=$(sha256sum < "$dir/file")

echo "Two daemons at $net.10 and $net.11, $linking: node 0 is $first, node 1 is $second"
start 0
start 1
for node in 0 1; do expect "$node" ': connected (.*; hadmd [0-9]'; done
transfer 0 1 1
transfer 1 0 2

for node in 0 1; do
    logged "$node" 'has another configuration' && give_up "the configuration digests differ"
    sed -n "s/^[^ ]* INFO  \(.*: connected (.*\)/  node $node: \1/p" "$dir/node$node.log" | sed 1q
done
for pid in $daemons; do kill "$pid"; done
for pid in $daemons; do
    wait_for 60 gone "$pid" || give_up "a daemon does not end"
    wait "$pid" || give_up "a daemon ended with status $?"
done
daemons=
for node in 0 1; do
    sed -n "s/.* books: \(.* data .*\)/  node $node counted: \1/p" "$dir/node$node.log"
    awk '/ books: / {
            for (i = 1; i < NF; i++) n[$i] = $(i + 1)
            lines++; wrong += n["received"] != n["forwarded"] + n["queued"] + n["dropped"]
        }
        END { exit lines == 0 || wrong > 0 }' "$dir/node$node.log" || give_up "the books of node $node do not balance"
done
echo "  everything arrived unchanged"
