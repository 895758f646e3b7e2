#!/bin/sh
# dpkg 1.21.23 (Debian 12): a conffile that the administrator has made a link, and the package's end. Needs root.
#
# Guess before it was run: `dpkg -P` removes the link, which is the conffile's path, and leaves alone the file that it
# points to, which no package ever had.
# Seen: it is the other way round. The file behind the link is removed, without a word, and the link stays, pointing to
# nothing. An installation over the link before that has left a `.dpkg-new` beside it, which stays, too. A configuration that
# was moved to another disk is lost by a purge, and a package that wants to leave nothing has to remove the link itself.
# Output seen: "the file behind the link: gone" and "the link: there".
set -eu
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 1; }
version=1.21.23
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -q -o APT::Sandbox::User=root download "dpkg=$version" > /dev/null
dpkg -x dpkg_*.deb program
PATH=$work/program/usr/bin:$PATH
mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates root/data package/etc/sample package/DEBIAN
: > root/var/lib/dpkg/status
echo "the package's" > package/etc/sample/sample.conf
echo /etc/sample/sample.conf > package/DEBIAN/conffiles
printf '%s\n' "Package: sample" "Version: 1" "Architecture: all" "Maintainer: nobody <nobody@localhost>" \
    "Description: a sample" > package/DEBIAN/control
dpkg-deb --root-owner-group --build package sample.deb > log
dpkg --root="$work/root" -i sample.deb >> log 2>&1
mv root/etc/sample/sample.conf root/data/
ln -s /data/sample.conf root/etc/sample/sample.conf
dpkg --root="$work/root" -i sample.deb >> log 2>&1
dpkg --root="$work/root" -P sample >> log 2>&1
there() { if [ -e "$1" ] || [ -L "$1" ]; then echo there; else echo gone; fi; }
file=$(there root/data/sample.conf)
link=$(there root/etc/sample/sample.conf)
echo "the file behind the link: $file"
echo "the link: $link"
[ "$file $link" = "gone there" ]
