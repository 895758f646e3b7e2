#!/bin/sh
# Linux 6.18 with ss of iproute2 6.1.0 (Debian 12): a TCP socket in TIME_WAIT has no owner any more. Needs root.
#
# Guess before it was run: sock_diag, and so `ss -e`, gives the uid of the user for as long as the connection is listed.
# Seen: while it is open, ss shows uid:65534; after the close, in TIME_WAIT, it shows no uid, as for root: the kernel
# reports 0. A program that asks for the owner of the other end must believe the answer for established sockets only, or
# a connection of anybody that was closed a moment ago passes for root's.
# Output seen: "open: uid 65534" and "TIME-WAIT: no uid".
set -eu
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -q -o APT::Sandbox::User=root download iproute2=6.1.0-3 > /dev/null
dpkg -x iproute2_*.deb .
python3 - "$work/bin/ss" << 'P'
import os, socket, subprocess, sys, time

def listed(port):
    found = subprocess.run([sys.argv[1], "-Htane", f"dport = :{port}"], capture_output=True, text=True, check=True)
    return found.stdout

listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
ready, told = os.pipe()
child = os.fork()
if child == 0:
    os.setgid(65534)
    os.setuid(65534)
    client = socket.socket()
    client.connect(("127.0.0.1", port))
    os.read(ready, 1)
    client.close()
    os._exit(0)
server, _ = listener.accept()
open_line = listed(port)
os.write(told, b"x")
os.waitpid(child, 0)
server.recv(1)
server.close()
end = time.monotonic() + 10
while "TIME-WAIT" not in (closed := listed(port)):
    if time.monotonic() > end:
        sys.exit("no TIME-WAIT: " + closed)
    time.sleep(0.05)
print("open:", "uid 65534" if "uid:65534" in open_line else open_line)
print("TIME-WAIT:", closed if "uid:" in closed else "no uid")
sys.exit("uid:65534" not in open_line or "uid:" in closed)
P
