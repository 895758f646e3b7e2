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

# part COMPONENT NAME CARGO-COMMAND ARGUMENTS...: a check by a part of Rust that may be missing.
part() {
    component=$1 name=$2
    shift 2
    if { cargo "$1" --version || rustup component add "$component"; } > /dev/null 2>&1; then
        check "$name" cargo "$@"
    else
        echo "==> SKIPPED: $name: Rust's $component is not installed"
        skipped="$skipped, $name"
    fi
}

part rustfmt formatting fmt --check
part clippy lints clippy --locked --all-targets -- -D warnings
check documentation env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
check tests cargo test --locked
echo "==> everything passed${skipped:+; skipped: ${skipped#, }}"
