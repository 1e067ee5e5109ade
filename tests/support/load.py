"""Asks for / over TLS from four threads, each time on a new connection, until SIGINT; then says how many
requests there were and how many failed. `load.py HOST PORT NAME`"""

import signal
import socket
import ssl
import sys
import threading

host, port, name = sys.argv[1:]
context = ssl._create_unverified_context()
ended = threading.Event()
asked, failed = [0] * 4, []


def ask():
    with socket.create_connection((host, int(port)), 5) as plain:
        with context.wrap_socket(plain, server_hostname=name) as stream:
            stream.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            reply = b""
            while part := stream.recv(65536):
                reply += part
            assert reply.startswith(b"HTTP/1.1 200 ") and reply.endswith(b"</html>\n"), reply[:80]


def work(number):
    while not ended.is_set():
        asked[number] += 1
        try:
            ask()
        except Exception as error:  # whatever it is, a user has seen it
            failed.append(repr(error))


signal.signal(signal.SIGINT, lambda *_: ended.set())
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for error in failed[:5]:
    print(error)
print(f"{sum(asked)} requests, {len(failed)} failed")
