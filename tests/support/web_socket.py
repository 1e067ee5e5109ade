"""Speaks a WebSocket over TLS and checks that it is echoed. `web_socket.py HOST PORT NAME PATH`"""

import base64
import os
import socket
import ssl
import sys

host, port, name, path = sys.argv[1:]
context = ssl._create_unverified_context()
with context.wrap_socket(socket.create_connection((host, int(port)), 5), server_hostname=name) as stream:
    key = base64.b64encode(os.urandom(16)).decode()
    stream.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    replies = stream.makefile("rb")
    status = replies.readline()
    assert b" 101 " in status, status
    while replies.readline().strip():
        pass
    for text in (b"hello", b"again"):
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
        stream.sendall(bytes([0x81, 0x80 | len(text)]) + mask + masked)
        head = replies.read(2)
        assert replies.read(head[1]) == text
