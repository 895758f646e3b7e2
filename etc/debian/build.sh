#!/bin/sh
# Makes hadmd_VERSION_ARCH.deb of what is built; `make deb` calls it. The version is Cargo.toml's. The same input gives
# the same bytes if SOURCE_DATE_EPOCH is given, or git knows the time of the last commit.
#
# Usage: etc/debian/build.sh PROGRAMS OUT   (directories: of the programs, and where the package goes)
# TARGET, of etc/cross/targets: take what `make cross` built for it instead.
set -eu

out=$(mkdir -p "$2" && cd "$2" && pwd)
if [ "${TARGET:-}" ]; then
    # shellcheck source=etc/cross/lib.sh
    . "$(dirname "$0")/../cross/lib.sh"
    target "$TARGET"
else
    bin=$1 arch=$(dpkg --print-architecture)
fi
bin=$(cd "$bin" && pwd)
cd "$(dirname "$0")/../.."
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || date +%s)}
export SOURCE_DATE_EPOCH
umask 022

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# What the programs' symbols ask of the C library: nothing, if they are static.
glibc=$(grep -aoh 'GLIBC_[0-9][0-9.]*' "$bin/hadmd" "$bin/hadmctl" "$bin/hadm-probe" "$bin/hadm-nbd" | sort -uV | tail -n 1)
root=$out/deb
needs=passwd
[ -z "$glibc" ] || needs="libc6 (>= ${glibc#GLIBC_}), libgcc-s1, passwd"
rm -rf "$root"

make --no-print-directory -s install bin="$bin" DESTDIR="$root" PREFIX=/usr SYSCONFDIR=/etc
find "$root/usr/share/man" -type f -exec gzip -9n {} +
cat LICENSE-MIT LICENSE-APACHE > "$root/usr/share/doc/hadmd/copyright"
rm "$root"/usr/share/doc/hadmd/LICENSE-*

mkdir "$root/DEBIAN"
(cd "$root" && find etc -type f | LC_ALL=C sort | sed 's|^|/|') > "$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f | LC_ALL=C sort | xargs md5sum) > "$root/DEBIAN/md5sums"
install -m 755 etc/debian/postinst etc/debian/prerm etc/debian/postrm "$root/DEBIAN"
cat > "$root/DEBIAN/control" << END
Package: hadmd
Version: $version
Architecture: $arch
Maintainer: the hadmd developers <hadmd@localhost>
Installed-Size: $(du -sk "$root/usr" | cut -f 1)
Depends: $needs
Section: admin
Priority: optional
Description: disk mirror daemon
 Carries the packets of a disk mirror's kernel module, hadm_kmod, between the
 nodes of a cluster. Included are hadmctl, which asks and steers the daemon, and
 hadm-probe, which plays the kernel module: with it a cluster can be tried and
 measured before the module is loaded.
END
dpkg-deb --root-owner-group --build "$root" "$out/hadmd_${version}_$arch.deb"
