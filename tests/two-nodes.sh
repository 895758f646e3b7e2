#!/bin/sh
# A guide, etc/doc/two-nodes.md or another one, typed line by line: three machines in namespaces, and every block of commands in the guide's
# order, on the machine that its first line names. systemctl is played by a script that starts the programs as the units do. For from-drbd and
# from-module there are disks of DRBD and of the kernel module, with an ext4 on them. Needs root, qemu-io and nbdinfo.
#
# Usage: [GUIDE=wan|from-drbd|from-module] tests/two-nodes.sh DIRECTORY   (where the programs are)
# Exit status: 0 if every line did what the guide says; 77, with a line that says why, if it cannot run here.
set -eu

name=two-nodes
guide=${GUIDE:-two-nodes}
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
# shellcheck source=tests/inside.sh
. tests/inside.sh
case $guide in from-*) tools="mkfs.ext4 debugfs e2fsck nbdcopy perl" ;; *) tools= ;; esac
# shellcheck disable=SC2086 # one word each
go_inside "${2:-}" ip nsenter qemu-io nbdinfo pkill setsid $tools
make_dir
mkdir "$dir/programs"
for program in hadmd hadm-nbd hadmctl; do ln -s "$bin/$program" "$dir/programs/$program"; done
# What the units do, as far as the guide needs it: each program in the background, with the options of /etc/default.
cat > "$dir/programs/systemctl" << LINES
#!/bin/sh
verb=\$1
shift
DAEMON_ARGS=
[ ! -r /etc/default/hadmd ] || . /etc/default/hadmd
case \$verb in
    daemon-reload) [ -e /etc/systemd/system/hadmd.service.d/no-module.conf ]; exit ;;
    enable | start) ;;
    restart) "\$0" stop "\$@" || exit ;;
    stop)
        for unit; do
            pkill -x "\$unit"
            for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do pgrep -r D,R,S -x "\$unit" > /dev/null || continue 2; sleep 0.5; done
            echo "systemctl: \$unit does not end" >&2
            exit 1
        done
        exit
        ;;
    *) echo "systemctl: \$verb is not played here" >&2; exit 1 ;;
esac
for unit; do
    case \$unit in
        --now) ;;
        hadmd) setsid hadmd -c /etc/hadm/hadm.xml \$DAEMON_ARGS --log stderr < /dev/null >> "$dir/\$(hostname).hadmd.log" 2>&1 & ;;
        hadm-nbd) setsid hadm-nbd -c /etc/hadm/hadm.xml run --log stderr < /dev/null >> "$dir/\$(hostname).hadm-nbd.log" 2>&1 & ;;
        *) echo "systemctl: there is no \$unit" >&2; exit 1 ;;
    esac
done
# As Type=notify: it returns when they answer. A socket may be there of one that was killed.
for unit; do
    case \$unit in --now) continue ;; hadmd) question=status ;; *) question="disk status" ;; esac
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        hadmctl --control "/run/hadm/\$unit.sock" --timeout 5 \$question > /dev/null 2>&1 && continue 2
        sleep 0.2
    done
    echo "systemctl: \$unit does not answer" >&2
    exit 1
done
LINES
chmod 755 "$dir/programs/systemctl"

ip link add bridge type bridge
ip link set bridge up
number=0
for machine in left right third; do
    number=$((number + 1))
    mkdir "$dir/$machine.disks"
    # Bare, but for the samples among the documentation.
    # shellcheck disable=SC2016 # that is for the inner shell
    unshare --mount --net --uts --ipc --pid --fork --kill-child --mount-proc sh -euc '
        hostname "$0"
        mount --bind "$1" /mnt
        for place in /run /etc/default /etc/systemd /var/lib /usr/share/doc; do mkdir -p $place; mount -t tmpfs -o mode=755 none $place; done
        mkdir -p /run/hadm /usr/share/doc/hadmd
        [ -d /etc/hadm ] || { mkdir -p /run/etc /run/work; mount -t overlay none -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc; mkdir -p /etc/hadm; }
        mount -t tmpfs none /etc/hadm
        mkdir -p /etc/default /etc/systemd/system
        cp etc/mirror.xml /usr/share/doc/hadmd
        echo 1 > "$2"
        exec sleep 900' "$machine" "$dir/$machine.disks" "$dir/$machine.up" > "$dir/$machine.up.log" 2>&1 &
    unshared=$!
    wait_for 10 test -s "$dir/$machine.up" || fail "no namespaces for $machine"
    pgrep -P $unshared > "$dir/$machine.pid"
    ip link add "$machine" type veth peer name eth0 netns "$(cat "$dir/$machine.pid")"
    ip link set "$machine" master bridge up
    printf 'link set lo up\nlink set eth0 up\naddr add 192.0.2.%s/24 dev eth0\n' $number |
        timeout 10 nsenter -t "$(cat "$dir/$machine.pid")" -n ip -batch -
done

# file_system SIZE IMAGE: an ext4 with a file, hello.
file_system() {
    mkdir "$dir/tree"
    echo "written long ago" > "$dir/tree/hello"
    truncate -s "$1" "$2"
    mkfs.ext4 -q -F -d "$dir/tree" "$2" > "$dir/mkfs.log" 2>&1 || fail "no file system"
}
on_both() {
    for machine in left right; do
        timeout 20 nsenter -t "$(cat "$dir/$machine.pid")" -m -- sh -c "mkdir -p /var/lib/hadm; cp --sparse=always $dir/$machine.disks/* /var/lib/hadm"
    done
}
case $guide in
    from-drbd)
        # A disk with internal metadata, for one peer: by DRBD's own tool, or as that does it: a bitmap and a log behind the file system, and in
        # the last block the mark.
        file_system 67067904 "$dir/left.disks/data.disk"
        truncate -s 64M "$dir/left.disks/data.disk"
        if command -v drbdmeta > /dev/null; then
            drbdmeta --force 0 v09 "$dir/left.disks/data.disk" internal create-md 1 > "$dir/drbdmeta.log" 2>&1 < /dev/null || fail "no metadata of DRBD"
        else
            head -c 36864 /dev/urandom | dd of="$dir/left.disks/data.disk" bs=4096 seek=16374 conv=notrunc 2> /dev/null
            printf '\203\164\002\155' | dd of="$dir/left.disks/data.disk" bs=1 seek=67104828 conv=notrunc 2> /dev/null
        fi
        cp --sparse=always "$dir/left.disks/data.disk" "$dir/right.disks/data.disk"
        # Two that are not quite equal.
        head -c 4096 /dev/urandom | dd of="$dir/right.disks/data.disk" bs=4096 seek=9000 conv=notrunc 2> /dev/null
        on_both
        ;;
    from-module)
        # What was written last stands on the ring of the primary alone.
        file_system 64M "$dir/before"
        cp --sparse=always "$dir/before" "$dir/after"
        echo "written at last" > "$dir/tree/hello"
        debugfs -w -R "rm hello" "$dir/after" > "$dir/debugfs.log" 2>&1
        debugfs -w -R "write $dir/tree/hello hello" "$dir/after" >> "$dir/debugfs.log" 2>&1
        e2fsck -fn "$dir/after" > "$dir/e2fsck.log" 2>&1 || fail "no second state of the file system"
        for machine in left right; do cp --sparse=always "$dir/before" "$dir/$machine.disks/data.disk"; done
        tests/module-site.pl primary 0 "$dir/before" "$dir/after" "$dir/left.disks/data.meta" > "$dir/pages.log" || fail "no ring"
        tests/module-site.pl secondary 1 "$dir/before" "$dir/before" "$dir/right.disks/data.meta" > "$dir/pages.log" || fail "no ring"
        on_both
        ;;
esac

# type_in FILE MACHINE...: each line in turn on each machine, as a person would; each has to succeed.
type_in() {
    block=$1
    shift
    while read -r line; do
        case $line in '' | '#'*) continue ;; esac
        for machine; do
            timeout 60 nsenter -t "$(cat "$dir/$machine.pid")" -m -n -u -i -p -- env PATH="$dir/programs:$PATH" sh -c "$line" < /dev/null > "$dir/typed.log" 2>&1 ||
                fail "$machine: this line of the guide fails: $line"
            ! grep -q 'Pattern verification failed' "$dir/typed.log" || fail "$machine: other data is read than the guide says: $line"
            typed=$((typed + 1))
        done
    done < "$block"
}
awk -v dir="$dir" '/^```/ { inside = !inside && $0 == "```sh"; if (inside) file = sprintf("%s/block.%02d", dir, ++n); next } inside { print > file }' "etc/doc/$guide.md"
typed=0
for block in "$dir"/block.*; do
    case $(head -n 1 "$block") in
        "# both") type_in "$block" left right ;;
        "# left") type_in "$block" left ;;
        "# right") type_in "$block" right ;;
        "# third") type_in "$block" third ;;
        "# all") type_in "$block" left right third ;;
        *) fail "a block does not say where it is typed: $(head -n 1 "$block")" ;;
    esac
done
[ $typed -ge 25 ] || fail "only $typed lines were found in the guide"
if [ "$guide" != two-nodes ]; then
    echo "$guide: all $typed lines of the guide do what it says"
    exit
fi
# The last sentence of that part: the machine that is back has what was written.
same() { timeout 10 nsenter -t "$(cat "$dir/left.pid")" -m -n -u -i -p -- "$bin/hadmctl" --json --control /run/hadm/hadm-nbd.sock disk status data | grep -q '"in_sync": *true'; }
wait_for 30 same || fail "right is not brought to the state of left"
echo "two-nodes: all $typed lines of the guide do what it says"
