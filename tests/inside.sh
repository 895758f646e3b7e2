# shellcheck shell=sh
# The beginning of the scripts that try whole daemons on machines of their own, in namespaces. They source it from the
# top of the source tree, once `name` (tests/NAME.sh) and `bin` (where the programs are) are set.

# shellcheck disable=SC2154 # the script has set them

# shellcheck source=tests/wait-for.sh
. tests/wait-for.sh
PATH=$PATH:/usr/sbin:/sbin

skip() { echo "$name: SKIPPED: $1"; exit 77; }

# go_inside WORD TOOL...: starts the script anew in namespaces of its own, with the word `inside`; nothing if that is the
# word.
go_inside() {
    [ "$1" != inside ] || return 0
    shift
    [ "$(id -u)" = 0 ] || skip "it takes root"
    unshare --mount --net --uts --ipc --pid --fork true 2> /dev/null || skip "it takes the right to make namespaces"
    for tool; do command -v "$tool" > /dev/null || skip "$tool is not installed"; done
    exec unshare --mount --net --uts --ipc --pid --fork --kill-child --mount-proc "tests/$name.sh" "$bin" inside
}

# make_dir: a folder $dir that goes with the script; $logs is the pattern of the files that a failure shows.
make_dir() {
    dir=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-$name.XXXXXX")
    logs="$dir/*.log"
    trap 'rm -rf "$dir"' EXIT
    trap 'exit 130' INT TERM HUP
}

fail() {
    echo "$name: $1" >&2
    for file in $logs; do echo "--- ${file##*/}"; tail -n "${LINES_OF_LOGS:-15}" "$file"; done >&2
    exit 1
}
