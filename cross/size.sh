#!/bin/sh
# Builds for the named targets, dynamic and static, and prints how large the programs are, in bytes; also those
# of `make build`, where that has been done.
#
# Usage: cross/size.sh NAME...   (of cross/targets; none: all)
# Exit status: 0 only if hadmd is within cross/size-budget everywhere.
. "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || set -- $(names)

for name; do
    STATIC= cross/cargo.sh "$name" build --release --locked
    STATIC=1 cross/cargo.sh "$name" build --release --locked
done

over=
printf '\n%-8s %-8s %10s %10s %6s %11s\n' target linking hadmd budget used hadm-probe
for name in native "$@"; do
    while read -r linking budget; do
        target "$name"
        [ "$name,$linking" != native,static ] && [ -x "$bin/hadmd" ] || continue
        size=$(stat -c %s "$bin/hadmd")
        printf '%-8s %-8s %10d %10d %5d%% %11d\n' "$name" "$linking" "$size" "$budget" \
            $((100 * size / budget)) "$(stat -c %s "$bin/hadm-probe")"
        [ "$size" -le "$budget" ] || over="$over, $name $linking"
    done <<-END
	$(grep -v '^#' cross/size-budget)
	END
done
[ -z "$over" ] || fail "hadmd is over the budget of cross/size-budget: ${over#, }"
