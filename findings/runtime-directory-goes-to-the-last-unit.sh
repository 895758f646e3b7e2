#!/bin/sh
# systemd 252 (Debian 12, 252.39-1~deb12u2): two units of different users with the same RuntimeDirectory=. Needs root and
# cgroup2.
#
# Guess before it was run: a directory that is there already, kept by RuntimeDirectoryPreserve=yes, is left as it is, so that
# two services can have their sockets in one.
# Seen: each unit that starts gives the directory, with all that is in it, to its own user. A service that runs as another
# one, with mode 0750, can no longer look up its own socket there: its clients' calls and its own removal of the socket fail, and
# nothing is logged. The directory has to be one unit's, and the other must make no such claim.
# Output seen: "first: daemon" and "after the second: root".
set -eu
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 1; }
if [ "${1:-}" = root ]; then
    cd "$2"
    mount -t tmpfs -o mode=755 root root
    cd root
    mkdir out usr etc etc/systemd etc/systemd/system run var tmp proc sys dev old
    for name in bin sbin lib lib64; do ln -s usr/$name $name; done
    mount --bind ../out out
    mount --bind /usr usr
    mount -t proc proc proc
    mount --bind proc/sys proc/sys
    mount -o remount,ro,bind proc/sys
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 dev dev
    for name in null zero urandom; do : > dev/$name; mount --bind /dev/$name dev/$name; done
    printf 'root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n' > etc/passwd
    printf 'root:x:0:\ndaemon:x:1:\n' > etc/group
    : > etc/machine-id
    for user in daemon root; do
        cat > etc/systemd/system/$user.service << END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
User=$user
RuntimeDirectory=shared
RuntimeDirectoryMode=0750
RuntimeDirectoryPreserve=yes
ExecStart=/bin/true
END
    done
    cat > etc/systemd/system/look.service << 'END'
[Unit]
DefaultDependencies=no
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=systemctl start daemon.service
ExecStart=sh -c "stat -c %%U /run/shared > /out/first"
ExecStart=systemctl start root.service
ExecStart=sh -c "stat -c %%U /run/shared > /out/second"
END
    pivot_root . old
    umount -l old
    exec env -i container=test PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --system --unit=look.service --show-status=no --log-target=null
fi
script=$(realpath "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root" "$work/out"
timeout 60 unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child sh "$script" root "$work" || :
first=$(cat "$work/out/first")
second=$(cat "$work/out/second")
echo "first: $first"
echo "after the second: $second"
[ "$first $second" = "daemon root" ]
