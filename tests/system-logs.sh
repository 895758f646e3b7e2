#!/bin/sh
# hadmd's lines in real system logs: each gets a reload with 20 long problems, and what it filed is read back. Each runs
# with a /dev and a /run of its own. Needs root; a system log that is not installed is skipped, unless FETCH=1, on Debian,
# has its package unpacked into a temporary folder, with no installation. `make log-test` does that.
#
# Usage: [FETCH=1] tests/system-logs.sh DIRECTORY   (where hadmd is)
# Exit status: 0 unless a system log files a line in another way than hadmd(8) says; 77 if nothing can run here.
set -eu

fail() { echo "system-logs: $1" >&2; head -n 40 "$work/log" | cut -c 1-300 >&2 || :; exit 1; }
skip() { echo "system-logs: SKIPPED: $1"; }
until_so() {
    tries=100
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

# receive NAME: starts a system log that files into $work/log, with $unpacked for what is not installed.
receive() {
    lib=$(find "$unpacked/usr/lib" -maxdepth 1 -name '*-linux-gnu*' 2> /dev/null | head -n 1)
    [ -z "$lib" ] || export LD_LIBRARY_PATH="$lib:$unpacked/usr/lib/syslog-ng"
    PATH=$unpacked/usr/sbin:$PATH
    case $1 in
    busybox) busybox syslogd -n -O "$work/log" ;;
    rsyslog)
        printf 'module(load="imuxsock")\naction(type="omfile" file="%s")\n' "$work/log" > "$work/conf"
        rsyslogd -n -f "$work/conf" -i "$work/pid" ${lib:+-M "$lib/rsyslog"}
        ;;
    syslog-ng-*)
        cat > "$work/conf" << END
@version: 3.35
source s { unix-${1##*-}("/dev/log"); };
log { source(s); destination { file("$work/log"); }; };
END
        modules=$(find "$unpacked/usr/lib/syslog-ng" -maxdepth 1 -type d -name '3.*' 2> /dev/null | head -n 1)
        syslog-ng -F -f "$work/conf" -R "$work/persist" -p "$work/pid" -c "$work/ctl" ${modules:+--module-path "$modules"}
        ;;
    inetutils)
        echo "*.* $work/log" > "$work/conf"
        : > "$work/log"
        syslogd -n --no-klog -f "$work/conf" -P "$work/pid"
        ;;
    socklog) socklog unix /dev/log > "$work/log" ;;
    journald)
        mkdir -p /run/log/journal /run/systemd/journal
        ln -s /run/systemd/journal/dev-log /dev/log
        /lib/systemd/systemd-journald
        ;;
    esac
}
# filed NUMBER TEXT: whether so many lines with the text are there.
filed() {
    [ "$receiver" != journald ] || journalctl -q --no-pager -o json > "$work/log"
    [ "$(grep -ac "$2" "$work/log")" -ge "$1" ]
}

# try NAME: in namespaces of its own.
try() {
    receiver=$1
    mount -t tmpfs none /run
    mkdir /run/dev /run/dev/shm
    for node in null zero urandom; do
        : > /run/dev/$node
        mount --bind /dev/$node /run/dev/$node
    done
    mount --rbind /run/dev /dev
    receive "$receiver" > "$work/receiver" 2>&1 &
    until_so test -S /dev/log || { cat "$work/receiver" >&2; fail "$receiver does not make /dev/log"; }
    # The path alone makes each problem longer than a line may be.
    deep=$work/$(printf '%0200d/%0200d/%0200d/%0200d/%0200d' 0 0 0 0 0)
    mkdir -p "$deep"
    cp etc/one-site.xml "$deep/hadm.xml"
    ip link set lo up
    "$bin/hadmd" -c "$deep/hadm.xml" --hostname node0 --no-kmod-check --log syslog --control "$work/socket" > "$work/said" 2>&1 &
    daemon=$!
    until_so test -S "$work/socket" || { cat "$work/said" >&2; fail "hadmd does not start"; }
    nodes=$(for n in $(seq 4 23); do
        printf '<node><id>%s</id><hostname>h%s</hostname><ipaddr>192.0.2.%s</ipaddr><port>bad</port></node>' "$n" "$n" "$n"
    done)
    sed -i "s|</nodes>|$nodes</nodes>|" "$deep/hadm.xml"
    kill -HUP $daemon
    "$bin/hadmd" -c "$deep/hadm.xml" --hostname node0 --check > "$work/checked" 2>&1 || :
    [ "$(grep -c '"bad"' "$work/checked")" = 20 ] || fail "the file has not the 20 problems that this test is about"
    until_so filed 20 ' bytes cut)' || fail "$receiver does not have every line"
    kill $daemon
    wait $daemon || :
    until_so filed 1 'ending: SIGTERM' || fail "$receiver does not have the last line"

    # Under the right name, whole, and each once.
    if [ "$receiver" = journald ]; then
        grep -a '"SYSLOG_IDENTIFIER":"hadmd"' "$work/log" > "$work/own"
        ! grep -q SYSLOG_RAW "$work/own" || fail "journald keeps a line twice"
        [ "$(grep -c '"SYSLOG_TIMESTAMP"' "$work/own")" = "$(grep -c . "$work/own")" ] || fail "journald finds no time stamp"
    else
        grep -a "hadmd\[$daemon\]: " "$work/log" > "$work/own"
        ! grep -a ' bytes cut)\|"bad"\|hadmd ' "$work/log" | grep -v "hadmd\[$daemon\]: " > "$work/other" ||
            fail "$receiver files lines under another name: $(cut -c 1-200 "$work/other")"
    fi
    cut=$(grep -c ' bytes cut)' "$work/own")
    [ "$cut" = 20 ] || fail "$receiver has $cut of 20 lines"
    [ "$(grep -c 'hadmd [^ ]* ready: node 0' "$work/own")" = 1 ] || fail "$receiver has not the line of the start"
    echo "  $receiver: $(grep -c . "$work/own") lines, each whole and under its name"
}

bin=$(cd "${1:?Usage: tests/system-logs.sh DIRECTORY}" && pwd)
if [ "${2:-}" ]; then
    work=$3 unpacked=$4
    try "$2"
    exit
fi
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ] || ! unshare --mount --net --pid --fork true 2> /dev/null; then
    skip "it takes root, and the right to make namespaces"
    exit 77
fi
all=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-logs.XXXXXX")
trap 'rm -rf "$all"' EXIT
trap 'exit 130' INT TERM HUP
unpacked=$all/unpacked
mkdir "$unpacked"
if [ "${FETCH:-}" ]; then
    (cd "$all" && apt-get -q -o APT::Sandbox::User=root download rsyslog libestr0 libfastjson4 liblognorm5 syslog-ng-core libivykis0 \
        libnet1 libwrap0 inetutils-syslogd socklog > fetched 2>&1 && for file in *.deb; do dpkg -x "$file" "$unpacked"; done) ||
        skip "what is not installed: it cannot be fetched: $(tail -n 1 "$all/fetched")"
fi
tried=
for pair in busybox:busybox rsyslog:rsyslogd syslog-ng-dgram:syslog-ng syslog-ng-stream:syslog-ng inetutils:syslogd socklog:socklog \
    journald:journalctl; do
    name=${pair%:*} program=${pair#*:}
    PATH=$unpacked/usr/sbin:$PATH command -v "$program" > /dev/null || { skip "$name is not installed"; continue; }
    work=$all/$name
    mkdir "$work"
    unshare --mount --net --pid --uts --ipc --fork --kill-child sh "$PWD/tests/system-logs.sh" "$bin" "$name" "$work" "$unpacked" || exit 1
    tried=yes
done
[ "$tried" ] || exit 77
echo "system-logs: lines arrive as hadmd(8) says"
