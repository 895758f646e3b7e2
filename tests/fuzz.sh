#!/bin/sh
# Fuzzes one target, or each in turn; `make fuzz` calls it. Takes the build directory, the seconds for each target,
# and a target of tests/fuzz/fuzz_targets. What is found on the way is kept below the build directory, inputs that break a
# promise in tests/fuzz/artifacts; both are used again with the next run.
# Exit status: 0 if nothing was broken.
set -eu
cd "$(dirname "$0")/fuzz"
build=$1 secs=$2 only=${3:-}
case $build in /*) ;; *) build=$PWD/../../$build ;; esac

if ! cargo +nightly fuzz --version > /dev/null 2>&1; then
    echo "make fuzz needs a nightly Rust and cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz" >&2
    exit 1
fi
if [ -n "$only" ] && [ ! -e "fuzz_targets/$only.rs" ]; then
    echo "make fuzz: there is no target $only: $(cd corpus && echo *)" >&2
    exit 1
fi
export CARGO_TARGET_DIR="$build/fuzz"
# No look for leaks: it takes what the C library notes of a thread that is just ending for one.
for target in ${only:-$(cd corpus && echo *)}; do
    found=$build/fuzz-corpus/$target
    mkdir -p "$found"
    echo "==> $target, $secs s"
    cargo +nightly fuzz run --fuzz-dir . "$target" "$found" "corpus/$target" -- -max_total_time="$secs" -max_len=8192 \
        -timeout=10 -rss_limit_mb=1024 -detect_leaks=0 -print_final_stats=1 -verbosity=0
done
