#!/bin/sh
# qemu-nbd of Debian 12 (qemu-utils 1:7.2+dfsg-7+deb12u18+b3; 10.0.2 does the same), started without --shared: a second client is not refused.
#
# Guess before it was run: the limit of one client means that a second connection is closed at once.
# Seen: the second connection succeeds and then gets nothing, not even the greeting, until the first client has left;
# then it is served as if nothing had been. A client without a deadline on the greeting waits for ever, and a check that
# only connects takes the server for free.
# Output seen: "second: silent" and "second after the first left: NBDMAGIC".
set -eu
version=1:7.2+dfsg-7+deb12u18+b3
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2> /dev/null; rm -rf "$work"' EXIT
cd "$work"
apt-get -q -o APT::Sandbox::User=root download "qemu-utils=$version" > /dev/null
dpkg -x qemu-utils_*.deb .
truncate -s 16M disk
usr/bin/qemu-nbd -f raw -t -k "$work/socket" disk &
server=$!
python3 - "$work/socket" << 'P'
import socket, sys, time

def connect():
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(2)
    client.connect(sys.argv[1])
    return client

end = time.monotonic() + 10
while True:
    try:
        first = connect()
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.05)
assert first.recv(8) == b"NBDMAGIC"
second = connect()
try:
    second.recv(8)
    sys.exit("the second client is answered now: the finding is out of date")
except TimeoutError:
    print("second: silent")
first.close()
greeting = second.recv(8)
print("second after the first left:", greeting.decode())
sys.exit(greeting != b"NBDMAGIC")
P
