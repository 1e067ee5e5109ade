"""How long `certs run` takes from execve to its first answer on port 80, in milliseconds, in an empty root
and a network of its own, as a container gives it. `cold_start.py PROGRAM`, as root."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

CLONE_NEWNET = 0x40000000
if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
    sys.exit("no network namespace can be made here")
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

root = tempfile.mkdtemp()
started = None
try:
    shutil.copy(sys.argv[1], root + "/certs")
    for name in ("data", "out", "proc"):
        os.mkdir(f"{root}/{name}")
    environment = {"CERTS_DATA_DIR": "/data", "CERTS_OUTPUT_DIR": "/out", "CERTS_HTTP_LISTEN": "127.0.0.1:80"}
    began = time.monotonic()
    started = subprocess.Popen(
        ["/certs", "-q", "run"],
        env=environment,
        preexec_fn=lambda: os.chroot(root),
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    while True:
        try:
            with socket.create_connection(("127.0.0.1", 80), 1) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
                if client.recv(100).startswith(b"HTTP/1."):
                    break
        except OSError:
            pass
        if time.monotonic() - began > 10:
            sys.exit("no answer within 10 s")
        time.sleep(0.0005)
    print(int((time.monotonic() - began) * 1000 + 0.5))
finally:
    if started:
        started.send_signal(signal.SIGTERM)
        started.wait(15)
    shutil.rmtree(root)
