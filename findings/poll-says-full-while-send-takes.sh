#!/bin/sh
# Linux 6.18, TCP: a socket that poll() does not call writable may take bytes all the same.
#
# Guess before it was run: POLLOUT is there whenever a send that does not block would take at least one byte.
# Seen: after the send buffer was full and the peer has read a little, a non-blocking send takes bytes while poll() still
# says nothing: POLLOUT comes only once about a third of the buffer is free. A writer that waits for POLLOUT after each
# partial write hands a slow reader its bytes in lumps, seconds apart, and may take it for stuck.
# Output seen: "63 of 400 sends took bytes that poll had not announced" (the number varies, and is above 0).
set -eu
python3 - << 'P'
import select, socket, sys, time

listener = socket.create_server(("127.0.0.1", 0))
writer = socket.socket()
writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
writer.connect(listener.getsockname())
reader, _ = listener.accept()
writer.setblocking(False)

def take(size):
    try:
        return writer.send(b"x" * size)
    except BlockingIOError:
        return 0

def is_writable(seconds):
    poll = select.poll()
    poll.register(writer, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))

# Full, and at rest.
end = time.monotonic() + 10
while take(4096) or is_writable(0.3):
    if time.monotonic() > end:
        sys.exit("the socket never gets full")
taken = 0
for _ in range(400):
    reader.recv(16384)
    time.sleep(0.001)
    announced = is_writable(0)
    taken += bool(take(4096) and not announced)
print(taken, "of 400 sends took bytes that poll had not announced")
sys.exit(taken == 0)
P
