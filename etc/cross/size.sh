#!/bin/sh
# Builds for the named targets, dynamic and static, with and without encrypted links, and prints how large the
# programs are, in bytes; also those of `make build`, where that has been done.
#
# Usage: etc/cross/size.sh NAME...   (of etc/cross/targets; none: all)
# Exit status: 0 only if hadmd is within etc/cross/size-budget everywhere.
. "$(dirname "$0")/lib.sh"
[ $# -gt 0 ] || set -- $(names)

for name; do
    for lean in '' 1; do
        for static in '' 1; do
            LEAN=$lean STATIC=$static etc/cross/cargo.sh "$name" build --release --locked
        done
    done
done

over=
printf '\n%-8s %-12s %10s %10s %6s %11s\n' target build hadmd budget used hadm-probe
for name in native "$@"; do
    while read -r build budget; do
        target "$name"
        [ "$name" = native ] && [ "$build" != dynamic ] && continue
        [ -x "$bin/hadmd" ] || continue
        size=$(stat -c %s "$bin/hadmd")
        printf '%-8s %-12s %10d %10d %5d%% %11d\n' "$name" "$build" "$size" "$budget" \
            $((100 * size / budget)) "$(stat -c %s "$bin/hadm-probe")"
        [ "$size" -le "$budget" ] || over="$over, $name $build"
    done <<-END
	$(awk -v name="$name" '$1 == "*" || $1 == name { most[$2] = $3 } END { for (b in most) print b, most[b] }' \
	    etc/cross/size-budget | sort)
	END
done
[ -z "$over" ] || fail "hadmd is over the budget of etc/cross/size-budget: ${over#, }"
