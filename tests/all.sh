#!/bin/sh
# Every check of the project, one after the other, with the time each took; `make test` calls it. What the
# toolchain has no part for is fetched with rustup where that is there, and skipped, and said so, where not.
# Exit status: 0 only if nothing failed.
set -eu
cd "$(dirname "$0")/.."
skipped=

# check NAME COMMAND...
check() {
    name=$1
    shift
    echo "==> $name: $*"
    began=$(date +%s)
    "$@" || { echo "==> FAILED: $name" >&2; exit 1; }
    echo "==> $name: passed, $(($(date +%s) - began)) s"
}

skip() {
    echo "==> SKIPPED: $1: $2"
    skipped="$skipped, $1"
}

# part COMPONENT NAME CARGO-COMMAND ARGUMENTS...: a check by a part of Rust that may be missing.
part() {
    component=$1 name=$2
    shift 2
    if { cargo "$1" --version || rustup component add "$component"; } > /dev/null 2>&1; then
        check "$name" cargo "$@"
    else
        skip "$name" "Rust's $component is not installed"
    fi
}

# have COMMAND PACKAGE: whether a program of Debian's is there, once root has got it where it is missing.
have() {
    command -v "$1" > /dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || return
    [ -n "$updated" ] || apt-get -q update > /dev/null 2>&1 || true
    updated=yes
    apt-get install -qy --no-install-recommends "$2" > /dev/null 2>&1
}
updated=

# tool COMMAND PACKAGE NAME COMMAND...: a check by a program that may be missing.
tool() {
    tool=$1 package=$2 name=$3
    shift 3
    if have "$tool" "$package"; then
        check "$name" "$@"
    else
        skip "$name" "$tool is not installed (Debian package $package)"
    fi
}

part rustfmt formatting fmt --check
part clippy lints clippy --locked --all-targets -- -D warnings
check documentation env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
# Some tests need these, and say that they are skipped without.
have ip iproute2 || skip "tests of sites" "ip is not installed (Debian package iproute2)"
have nft nftables || skip "tests of links that lose packets" "nft is not installed (Debian package nftables)"
have promtool prometheus || skip "tests of alerts and dashboard" "promtool is not installed (Debian package prometheus)"
have chromium chromium || skip "tests of the web page in a browser" "chromium is not installed (Debian package chromium)"
have zsh zsh || skip "completion in zsh" "zsh is not installed (Debian package zsh)"
have fish fish || skip "completion in fish" "fish is not installed (Debian package fish)"
have strace strace || skip "count of system calls" "strace is not installed (Debian package strace)"
have faketime faketime || skip "clock steps in chaos" "libfaketime is not installed (Debian package faketime)"
check tests cargo test --locked
# script NAME COMMAND...: a script of tests, which says itself what it skips; 77 is all.
script() {
    name=$1
    shift
    status=0
    echo "==> $name: $*"
    "$@" || status=$?
    case $status in
        0) echo "==> $name: passed" ;;
        77) skip "$name" "see above" ;;
        *) echo "==> FAILED: $name" >&2; exit 1 ;;
    esac
}
script "system logs" tests/system-logs.sh "${CARGO_TARGET_DIR:-target}/debug"
script "guide for two nodes" tests/two-nodes.sh "${CARGO_TARGET_DIR:-target}/debug"
script "guide for a copy far away" env GUIDE=wan tests/two-nodes.sh "${CARGO_TARGET_DIR:-target}/debug"
script "guide from DRBD" env GUIDE=from-drbd tests/two-nodes.sh "${CARGO_TARGET_DIR:-target}/debug"
script "guide from the kernel module" env GUIDE=from-module tests/two-nodes.sh "${CARGO_TARGET_DIR:-target}/debug"
script "resource agents" tests/ocf.sh "${CARGO_TARGET_DIR:-target}/debug"
script "package scripts" tests/deb-scripts.sh
if cargo deny --version > /dev/null 2>&1; then
    check dependencies make -s deny
fi

tool mandoc mandoc "manual pages" make -s man-lint
tool shellcheck shellcheck "shell scripts" shellcheck -x tests/*.sh tests/vm/prepare.sh tests/vm/init etc/debian/* etc/init.d/hadmd etc/init.d/hadm-nbd \
    etc/procd/hadmd.init etc/procd/hadm-nbd.init etc/openrc/hadmd etc/openrc/hadm-nbd etc/completion/hadmd etc/keepalived/hadm-disk etc/ocf/hadm-disk etc/ocf/hadmd etc/fencing/pacemaker
if systemd-analyze --help 2> /dev/null | grep -q -e --offline; then
    check "systemd unit" systemd-analyze security --no-pager --offline=true --threshold=20 etc/systemd/hadmd.service
else
    skip "systemd unit" "there is no systemd-analyze that works offline"
fi
# A container's root may not be allowed what this takes.
if unshare --mount --net --pid --uts --ipc --fork true 2> /dev/null; then
    tool busybox busybox-static "init script" tests/init-script.sh "${CARGO_TARGET_DIR:-target}/debug"
else
    skip "init script" "it takes root, and the right to make namespaces"
fi
echo "==> everything passed${skipped:+; skipped: ${skipped#, }}"
