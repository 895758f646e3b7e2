#!/bin/sh
# Gets what virtual machines take, and packs what they start from. A stock Debian kernel, an emulator and tools are
# fetched with apt-get and unpacked below OUT, never installed; the test module is compiled for that kernel. All this
# is kept; only the programs are packed anew each time.
#
# Usage: tests/vm/prepare.sh OUT INITRAMFS PROGRAM...
# Afterwards OUT/vmlinuz is the kernel and OUT/qemu runs the emulator.
# Exit status: 0 done, 77 something it takes cannot be had here, said on stderr with the remedy; else it failed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
initramfs=$2
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift 2
# Two runs at once: the second waits, and finds everything done.
exec 9> "$out/lock"
flock 9

fail() { echo "vm-test: $1" >&2; exit 1; }
unable() { echo "vm-test: skipped: $1" >&2; exit 77; }

# The packages that apt would have to add for these; quoted as apt quotes them.
missing() {
    apt-get install --print-uris -qqy --no-install-recommends --no-upgrade "$@" | awk '{ print $2 }' |
        sed 's/_.*//' || :
}

# unpacked DIRECTORY PACKAGE...: fetches and unpacks packages, unless that was done before.
unpacked() {
    to=$1
    shift
    [ ! -d "$to" ] || return 0
    echo "vm-test: fetching $*" >&2
    rm -rf "$out/fetch"
    mkdir -p "$out/fetch/root"
    (cd "$out/fetch" && apt-get -qq -o APT::Sandbox::User=root download "$@") ||
        unable "packages cannot be fetched; make a Debian mirror reachable and, as root, run: apt-get update"
    for package in "$out"/fetch/*.deb; do
        dpkg-deb -x "$package" "$out/fetch/root" || fail "$package cannot be unpacked"
    done
    mv "$out/fetch/root" "$to"
    rm -rf "$out/fetch"
}

# first PATTERN PACKAGE: the first package it depends on whose name matches.
first() { apt-cache depends "$2" 2> /dev/null | awk -v name="$1" '$1 == "Depends:" && $2 ~ name { print $2; exit }'; }

# shellcheck disable=SC2046 # words are packages
fetch() {
    if ! command -v apt-get > /dev/null || [ "$(dpkg --print-architecture)" != amd64 ]; then
        unable "it takes Debian's packages, by apt-get on amd64"
    fi
    [ "$(id -u)" != 0 ] || apt-get -qq update || :
    image=$(first '^linux-image-.*-cloud-amd64$' linux-image-cloud-amd64)
    [ -n "$image" ] || unable "apt knows no package linux-image-cloud-amd64; as root, run: apt-get update"
    headers=linux-headers-${image#linux-image-}
    kbuild=$(first '^linux-kbuild-' "$headers")
    # With what kbuild's programs need.
    unpacked "$out/kernel" "$image" "$headers" "$(first '-common$' "$headers")" "$kbuild" \
        $(missing "$(first '^libelf' "$kbuild")")
    unpacked "$out/tools" $({ echo busybox-static && echo iproute2 && missing iproute2; } | sort -u)
    [ -n "$installed" ] || unpacked "$out/emulator" $(missing qemu-system-x86)
}

libraries() { echo "$1/usr/lib/x86_64-linux-gnu:$1/lib/x86_64-linux-gnu"; }

# The emulator as one command.
emulator() {
    if [ -z "$installed" ]; then
        root=$out/emulator
        cat <<END
#!/bin/sh
export LD_LIBRARY_PATH='$(libraries "$root")' QEMU_MODULE_DIR='$root/usr/lib/x86_64-linux-gnu/qemu'
exec '$root/usr/bin/qemu-system-x86_64' -L '$root/usr/share/qemu' -L '$root/usr/share/seabios' -L /usr/share/qemu "\$@"
END
    else
        printf '#!/bin/sh\nexec qemu-system-x86_64 "$@"\n'
    fi > "$out/qemu.new"
    chmod 755 "$out/qemu.new"
    mv "$out/qemu.new" "$out/qemu"
}

compile() {
    module=$out/kernel/hadm_kmod
    if [ -e "$module/hadm_kmod.ko" ] && cmp -s "$here/module/hadm_kmod.c" "$module/hadm_kmod.c"; then return; fi
    release=$(basename "$out"/kernel/lib/modules/*)
    headers=$out/kernel/usr/src/linux-headers-$release
    # They expect to be installed.
    sed -i "s|^include /usr/src/|include $out/kernel/usr/src/|" "$headers/Makefile"
    rm -rf "$module"
    cp -r "$here/module" "$module"
    LD_LIBRARY_PATH=$(libraries "$out/kernel") make -s -C "$headers" M="$module" W=1 modules \
        > "$out/module.log" 2>&1 || { cat "$out/module.log" >&2; fail "the test module cannot be compiled"; }
    ! grep -E 'hadm_kmod.c:.*(warning|error)' "$out/module.log" >&2 || fail "the test module has warnings"
}

# load_order MODULE...: the files of modules and of what they need, in the order to load them. What is no file is
# part of the kernel.
load_order() {
    for name in "$@"; do
        file=$(find "$out/kernel/lib/modules" -name "$name.ko*" | head -n 1)
        [ -n "$file" ] || continue
        case $file in
            *.xz) xz -dkf "$file" && file=${file%.xz} ;;
        esac
        needs=$(tr '\0' '\n' < "$file" | sed -n 's/^depends=//p' | tr , ' ')
        # shellcheck disable=SC2086 # words are modules
        (load_order $needs)
        echo "$file"
    done
}

# put FILE DIRECTORY: into the machine's files, programs with their libraries.
put() {
    mkdir -p "$pack$2"
    cp -L "$1" "$pack$2"
    LD_LIBRARY_PATH=$(libraries "$out/tools") ldd "$1" 2> /dev/null | grep -o '/[^ ]*' | sort -u |
        while read -r library; do
            case $library in
                */ld-linux*) to=/lib64 ;;
                *) to=/lib/x86_64-linux-gnu ;;
            esac
            [ -e "$pack$to/${library##*/}" ] || { mkdir -p "$pack$to" && cp -L "$library" "$pack$to"; }
        done
}

installed=$(command -v qemu-system-x86_64) || :
[ -z "$installed" ] && emulator=$out/emulator || emulator=$out
if [ ! -d "$out/kernel" ] || [ ! -d "$out/tools" ] || [ ! -d "$emulator" ]; then fetch; fi
emulator
compile
cp -u "$out"/kernel/boot/vmlinuz-* "$out/vmlinuz"
pack=$(mktemp -d "$out/pack.XXXXXX")
trap 'rm -rf "$pack"' EXIT
trap 'exit 130' INT TERM HUP
busybox=$out/tools/bin/busybox
[ -x "$busybox" ] || busybox=$out/tools/usr/bin/busybox
mkdir -p "$pack/modules" "$pack/proc" "$pack/sys" "$pack/dev" "$pack/run/hadm" "$pack/tmp"
put "$busybox" /bin
put "$(find "$out/tools" -path '*/sbin/tc' -type f | head -n 1)" /sbin
# Without what is for debuggers, which would fill the machine's memory.
for program in "$@"; do put "$program" /sbin && strip "$pack/sbin/${program##*/}"; done
cp "$here/init" "$pack/init"
chmod 755 "$pack/init"
cp "$module/hadm_kmod.ko" "$pack"
number=10
for file in $(load_order virtio_pci virtio_console virtio_net sch_netem | awk '!seen[$0]++'); do
    cp "$file" "$pack/modules/$number-${file##*/}"
    number=$((number + 1))
done
(cd "$pack" && find . | "$busybox" cpio -o -H newc 2> /dev/null) > "$initramfs"
