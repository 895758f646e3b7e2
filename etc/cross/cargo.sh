#!/bin/sh
# Runs Debian's cargo 1.85 for one target, and before that gets what it needs: packages of this machine with
# apt-get, as root only, and the target's standard library into the build directory, never into the system. A
# Rust from elsewhere stays as it is, and is not used.
#
# Usage: [STATIC=1] [LEAN=1] etc/cross/cargo.sh NAME COMMAND [ARGUMENT...]   (NAME is of etc/cross/targets)
# LEAN: without encrypted links. MIRROR: where Debian's packages are, if not at deb.debian.org.
. "$(dirname "$0")/lib.sh"
target "$1"
command=$2
shift 2

install_packages() {
    need="rustc-web=$version cargo-web=$version libstd-rust-web-dev=$version ca-certificates"
    [ "$arch" = amd64 ] || need="$need gcc-$gnu libc6-dev-$arch-cross"
    [ "$emulator" = - ] || need="$need qemu-user-static"
    missing=
    for package in $need; do
        installed=$(dpkg-query -W -f '${db:Status-Status}=${Version}' "${package%%=*}" 2> /dev/null) || :
        case $package,$installed in
            *=*,"installed=${package#*=}") ;;
            *=*,*) missing="$missing $package" ;;
            *,installed=*) ;;
            *) missing="$missing $package" ;;
        esac
    done
    [ -n "$missing" ] || return 0
    # --no-remove: rather fail than take anything off the machine.
    install="apt-get install -y --no-remove --no-install-recommends$missing"
    [ "$(id -u)" = 0 ] || fail "packages are missing; as root, run: apt-get update && $install"
    export DEBIAN_FRONTEND=noninteractive
    # An index that cannot be fetched does not matter unless one of the packages is in it.
    apt-get update || :
    $install || fail "these packages cannot be installed:$missing"
}

unpack_library() {
    [ ! -d "$sysroot/lib/rustlib/$triple" ] || return 0
    file=libstd-rust-web-dev_${version}_$arch.deb
    part=$(mktemp -d "$cross/unpack.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    trap 'exit 1' INT TERM HUP
    /usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file \
        "${MIRROR:-http://deb.debian.org/debian}/pool/main/r/rustc-web/$file" "$part/$file" "SHA256:$digest" ||
        fail "$file cannot be fetched"
    dpkg-deb --fsys-tarfile "$part/$file" | tar -x -C "$part" "./usr/lib/rustlib/$triple"
    mkdir -p "$sysroot/lib/rustlib"
    # Another run may have been faster.
    mv -T "$part/usr/lib/rustlib/$triple" "$sysroot/lib/rustlib/$triple" 2> /dev/null ||
        [ -d "$sysroot/lib/rustlib/$triple" ]
    rm -rf "$part"
    trap - EXIT INT TERM HUP
}

. /etc/os-release
[ "$ID${VERSION_ID:-}-$(dpkg --print-architecture)" = debian12-amd64 ] ||
    fail "this is made for Debian 12 on amd64, not for $PRETTY_NAME"
install_packages

# Either would take precedence over the flags of the target.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
flags=${STATIC:+-C target-feature=+crt-static}
prefix=CARGO_TARGET_$(echo "$triple" | tr a-z- A-Z_)
if [ "$arch" != amd64 ]; then
    sysroot=$cross/sysroot
    unpack_library
    flags="--sysroot=$sysroot $flags"
    export "${prefix}_LINKER=$gnu-gcc"
fi
[ -z "$runner" ] || export "${prefix}_RUNNER=$runner"
export "${prefix}_RUSTFLAGS=$flags" RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
export CARGO_TARGET_DIR="$cross/$build"
exec /usr/bin/cargo "$command" --target "$triple" ${LEAN:+--no-default-features} "$@"
