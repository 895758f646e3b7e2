# What the scripts in this directory share; they source it. Leaves them in the project's top directory.
set -eu

version=1.85.0+dfsg3-1~deb12u3
cd "$(dirname "$0")/../.."
mkdir -p "${CARGO_TARGET_DIR:=target}/cross"
cross=$(cd "$CARGO_TARGET_DIR/cross" && pwd)
linking=${STATIC:+static}
linking=${linking:-dynamic}
build=${LEAN:+lean-}$linking

fail() {
    echo "${0##*/}: $1" >&2
    exit 1
}

names() { awk '!/^#/ { print $1 }' etc/cross/targets; }

# target NAME: sets what the table says, the command that runs programs of the target, and where they are.
# For native, which is what `make build` built, only the latter two.
target() {
    runner='' bin=$CARGO_TARGET_DIR/release
    [ "$1" != native ] || return 0
    row=$(awk -v name="$1" '$1 == name' etc/cross/targets)
    [ -n "$row" ] || fail "there is no target \"$1\"; TARGET= takes one of: $(names | paste -sd ' ')"
    read -r name triple arch gnu emulator digest <<-END
	$row
	END
    case $name,$linking in
        x86_64,* | i686,static) ;;
        i686,dynamic) runner="/usr/$gnu/lib/ld-linux.so.2 --library-path /usr/$gnu/lib" ;;
        *) runner="$emulator -L /usr/$gnu" ;;
    esac
    bin=$cross/$build/$triple/release
}
